"""Keys and identifiers as they are written on a command line."""
