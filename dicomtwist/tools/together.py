"""
Several coroutines at once.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import Deferred, FirstError, gatherResults


async def together(*coroutines: Coroutine[Any, Any, Any]) -> None:
    """Run *coroutines* beside each other until all are done; raise what the first that fails raises."""
    try:
        await gatherResults([Deferred.fromCoroutine(each) for each in coroutines], consumeErrors=True)
    except FirstError as error:
        # Whoever waits knows the errors of what was done, and not the one that wraps them.
        error.subFailure.raiseException()
