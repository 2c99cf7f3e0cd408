"""JSON for operators, below ``/api``."""
