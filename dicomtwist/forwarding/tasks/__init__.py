"""The tasks of forwarding: which instance is still to go where, kept in a database of their own."""
