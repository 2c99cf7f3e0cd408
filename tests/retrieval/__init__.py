"""Tests of :mod:`dicomtwist.retrieval`."""
