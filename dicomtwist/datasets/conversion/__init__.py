"""Data sets in another transfer syntax than that of their files."""
