"""What the commands print: messages, tables, progress."""
