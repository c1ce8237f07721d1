"""The `stor` command, one command a file."""
