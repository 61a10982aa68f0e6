"""What every room stands on: checkpoint, recipe, runner, ledger, errors, progress. Imports no other room."""
