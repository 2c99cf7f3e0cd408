"""Queries and their keys, as a command line describes them."""
