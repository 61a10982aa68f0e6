"""What everything else stands on: checkpoint, recipe, runner, ledger, errors, progress."""
