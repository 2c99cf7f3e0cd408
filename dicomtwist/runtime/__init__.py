"""Services for every room: executors, back-off, memory."""
