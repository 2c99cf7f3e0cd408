"""The DIMSE services of the archive."""
