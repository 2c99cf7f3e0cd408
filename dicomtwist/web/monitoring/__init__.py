"""Metrics and health of a server, for monitoring systems."""
