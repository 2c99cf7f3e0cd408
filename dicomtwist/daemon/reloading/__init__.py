"""The reload of a running server at SIGHUP."""
