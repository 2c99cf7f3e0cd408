"""Files: found and sent, received, and recorded for a later run."""
