"""Tests of the ``dicomtwist`` command, which mostly run it as a process."""
