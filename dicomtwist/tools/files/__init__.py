"""Files that the commands send, receive and remember."""
