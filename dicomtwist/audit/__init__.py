"""The audit trail (PS3.15 A.5): messages, their storage until they are delivered, and their delivery."""
