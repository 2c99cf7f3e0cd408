"""
Tests of the upper layer. They need no reactor. Their settings of hypothesis also apply to the tests of DIMSE.

There is no deadline, since a busy machine is not a failure, and no database, since a failure must not depend on earlier
runs. With ``CI`` set, each run uses the same examples.
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
