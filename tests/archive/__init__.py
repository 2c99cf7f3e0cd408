"""Tests of the archive: storage, index, queries and services."""
