"""Several processes that serve one archive."""
