"""Images decoded, encoded and rendered, in child processes."""
