"""The tests of dicomtwist; trial runs them."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from twisted.trial._dist.workerreporter import WorkerReporter

# How long it takes to generate an input depends on what else the machine does, so it fails no test.
settings.register_profile("dicomtwist", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dicomtwist")


def _report_subtest(reporter: WorkerReporter, test: Any, subtest: Any, error: Any) -> None:
    """
    Report a failure of a part of a test from a worker process of ``trial -j``.

    Twisted 26.10 keeps it in the worker, and the run passes. Only plain ``unittest.TestCase`` is affected: the classes of trial
    let the exception of a part end the test.
    """
    if error is not None:
        report = reporter.addFailure if issubclass(error[0], test.failureException) else reporter.addError
        report(test, error)


WorkerReporter.addSubTest = _report_subtest  # type: ignore[assignment, method-assign]
