"""Servers of ours that are measured where ``twist dicom`` is not what is asked for, each a process of its own."""
