"""The exchange of messages on one association."""
