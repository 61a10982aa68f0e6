"""What runs a strange program: `python -I -S .../jail`, with a job on standard input (see `burnish.verify.walled`).

Nothing here imports the rest of the package: starting must cost milliseconds, and what is not loaded cannot be abused.
"""
