"""Protocols by which a lower room knows an upper one."""
