"""The archive: it stores instances, finds them, and sends them on."""
