"""A running server that a subcommand asks by its API."""
