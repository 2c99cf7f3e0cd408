"""The inbox: small instances on the medium with one sync, before they become files."""
