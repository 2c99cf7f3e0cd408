"""Tests of DICOMweb without any I/O."""

import tests.ul  # noqa: F401  (the settings of hypothesis)
