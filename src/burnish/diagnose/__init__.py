"""What a changed model has unlearned: problems that the original solves, the step where each goes wrong, and pairs."""
