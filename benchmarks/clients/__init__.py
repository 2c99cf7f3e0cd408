"""The measured clients, each a process of its own."""
