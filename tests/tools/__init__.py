"""The ``dicomtwist`` command, as a process."""
