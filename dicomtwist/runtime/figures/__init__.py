"""Figures of a process: counts and durations, which cost almost nothing to keep."""
