"""The schema of a run, and how a command line or a file becomes one."""
