"""Twisted below the association: the upper layer as a Protocol, sockets and addresses."""
