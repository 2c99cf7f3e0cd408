"""STOW-RS: storage of instances (PS3.18 10.5), each by the same ingest as with C-STORE."""
