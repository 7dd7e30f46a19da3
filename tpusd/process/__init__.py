"""The process around a command: exit status, signals, progress."""
