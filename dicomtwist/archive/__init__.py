"""The archive: instances that are kept, found again, and moved on."""
