"""Tests of the archive: files on disk, and what is built on them."""
