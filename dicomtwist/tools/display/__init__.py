"""The output of the commands: messages, tables, progress."""
