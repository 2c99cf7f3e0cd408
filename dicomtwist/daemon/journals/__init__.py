"""The journals of a server: records of associations and requests."""
