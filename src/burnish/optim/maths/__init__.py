"""The updates as pure functions of tensors: no model, no parameter group, no file."""
