"""The command line: `main` holds the group; one module for each group of commands, one function for each command."""
