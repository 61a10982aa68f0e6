"""Episodes of agents as rows to train on: read, filtered, redacted, and masked token by token."""
