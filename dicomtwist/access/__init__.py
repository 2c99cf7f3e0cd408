"""Who may do what: rules, users and certificates, for DIMSE and HTTP alike."""
