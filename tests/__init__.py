"""The tests of dicomtwist; trial runs them."""

from hypothesis import HealthCheck, settings

# How long it takes to generate an input depends on what else the machine does, so it fails no test.
settings.register_profile("dicomtwist", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dicomtwist")
