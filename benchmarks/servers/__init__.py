"""Servers of ours for benchmarks that ``twist dicom`` does not fit, each a process of its own."""
