"""
Tests of the upper layer. They need no reactor and share these settings of hypothesis with the tests of DIMSE.

No deadline, for a busy machine is not a failure; no database, for a failure shall not depend on what ran
before. With ``CI`` set the examples are the same at each run.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "dicomtwist",
    deadline=None,
    database=None,
    max_examples=60,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("dicomtwist")
