"""Files of lines that grow: written in threads, in batches, rotated."""
