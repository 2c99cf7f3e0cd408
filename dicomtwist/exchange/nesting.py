"""
Requests that would wait for themselves: the code that makes them has to end before the peer, or the association, can go on to
answer them.

A context variable holds the operations that the running code is inside of: the handler of an operation that is performed for
the peer, or a loop over the responses to an operation of this side. Coroutines and ``inlineCallbacks`` inherit it from their
caller.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar, Token
from typing import Any, TypeAlias
from weakref import ReferenceType, ref

from dicomtwist.dimse.messages import CGetRQ
from dicomtwist.exchange.invoked import Operation
from dicomtwist.interfaces import PerformedOperation

#: The operations that code is inside of, the innermost one last: those that it performs, and those whose responses it takes.
#: Weak references, because the context of a coroutine may live for longer than the operation and its association.
Frames: TypeAlias = tuple[ReferenceType[Any], ...]

_inside: ContextVar[Frames] = ContextVar("dicomtwist_inside", default=())


def frames() -> Frames:
    """Return the operations that the running code is inside of."""
    return _inside.get()


def enter_handler(performance: PerformedOperation) -> Token[Frames]:
    """Note that a handler of *performance* is about to be called."""
    return _inside.set((ref(performance),))


def leave_handler(token: Token[Frames]) -> None:
    """Note that the handler has returned; coroutines that it has begun stay inside."""
    _inside.reset(token)


def resume_handler(performance: PerformedOperation) -> None:
    """
    Note that a handler of *performance* that yields its answers is about to go on, in the context of the running coroutine.
    Loops that it is inside of since an earlier answer stay noted.
    """
    _inside.set((ref(performance), *_inside.get()))


def suspend_handler(performance: PerformedOperation) -> None:
    """Note that such a handler has yielded, or has ended: what the coroutine does next is not inside of it."""
    _inside.set(tuple(one for one in _inside.get() if one() is not performance))


def enter_loop(operation: Operation) -> None:
    """Note that the running code has taken a response to *operation*, and that more of them follow."""
    present = _inside.get()
    if not present or present[-1]() is not operation:
        _inside.set((*(one for one in present if one() not in (None, operation)), ref(operation)))


def leave_loop(operation: Operation) -> None:
    """Note that the running code has taken all responses to *operation*."""
    present = _inside.get()
    if present:
        _inside.set(tuple(one for one in present if one() not in (None, operation)))


def why_handler_waits(
    inside: Frames, performing: dict[int, PerformedOperation], awaited: Iterable[Operation]
) -> str | None:
    """
    Return why a request from inside a handler would wait for that handler; ``None`` if it would not.

    :param performing: the operations that the association performs, by Message ID.
    :param awaited: operations of this side; the request waits for the first of them to end. None if it does not wait.
    """
    awaited = list(awaited)
    for one in inside:
        performance: PerformedOperation | Operation | None = one()
        if performance is None or isinstance(performance, Operation):
            continue
        if performing.get(performance.request.message_id) is not performance:
            continue  # of another association, or it is answered
        name = performance.service_name
        if performance.stream is not None and performance.stream.needs_reader:
            return (
                f"the handler of {name} has not read the data set of the request to its end, and the response of the peer"
                " comes behind it: read the data set first"
            )
        if awaited and all(type(other.request) is CGetRQ for other in awaited):
            return (
                f"the handler of {name} would wait for the end of the C-GET, which waits for this handler: ask when the C-GET"
                " has ended, use another association, or negotiate an asynchronous operations window"
            )
    return None


def why_get_waits(inside: Frames, performing: dict[int, PerformedOperation], limit: int) -> str | None:
    """
    Return why a C-GET from inside a handler would wait for that handler; ``None`` if it would not.

    :param performing: the operations that the association performs, by Message ID.
    :param limit: the number of operations that it may perform at once.
    """
    held = [one for one in (reference() for reference in inside) if one is not None and one in performing.values()]
    if len(held) < limit:
        return None
    return (
        f"the C-STORE operations of the C-GET would wait for the end of {held[-1].service_name}, whose handler this is: ask"
        " when the handler has ended, use another association, or negotiate an asynchronous operations window"
    )


def why_gets_wait(asked: int, invoke_limit: int, performed: int, perform_limit: int) -> str | None:
    """
    Return why C-GETs in both directions would wait for each other; ``None`` if they would not.

    The C-STORE operations of each need a place in the operations window of the side that performs it. If the C-GETs of both
    sides have all places of both, none of these operations can begin.

    :param asked: the number of C-GETs of this side.
    :param invoke_limit: the number of operations that this side may have outstanding.
    :param performed: the number of C-GETs that this side performs.
    :param perform_limit: the number of operations that the peer may have outstanding.
    """
    if asked < invoke_limit or performed < perform_limit:
        return None
    return "C-GETs in both directions would wait for each other"


def is_inside(inside: Frames, operation: Operation | PerformedOperation) -> bool:
    """Whether code is inside a loop over the responses to *operation*, or in its handler."""
    return any(one() is operation for one in inside)
