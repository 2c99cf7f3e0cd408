"""Tests of DIMSE. They need no reactor."""

import tests.ul  # noqa: F401  (the settings of hypothesis)
