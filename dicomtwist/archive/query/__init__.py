"""Queries: identifiers compiled to SQL, and the rows encoded as responses."""
