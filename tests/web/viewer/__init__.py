"""Tests of dicomtwist.web.viewer."""
