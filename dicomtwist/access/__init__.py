"""Access control for DIMSE and HTTP alike: rules, users, certificates, and their enforcement."""
