"""
Retrieval into a folder for both faces: its options, and its end before that of the event loop.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from twisted.internet.defer import Deferred

from dicomtwist.ae.ae import AE
from dicomtwist.eventloop.coroutines import from_deferred
from dicomtwist.eventloop.loop_reactor import LoopReactor

if TYPE_CHECKING:
    from dicomtwist.archive.storage.types import Durability
    from dicomtwist.retrieval import Layout, Progress, RequestResult, Totals

__all__ = ["RetrieveOptions", "begin_retrieval"]


class RetrieveOptions(TypedDict, total=False):
    """The options of :func:`dicomtwist.retrieval.retrieve`."""

    ae_title: str
    ext_neg: Iterable[object]
    tls_args: object
    layout: str | Layout
    sop_classes: Sequence[str]
    root: str | None
    associations: int
    retries: int
    durability: Durability | str
    min_free: int
    overwrite: bool
    resume: str | os.PathLike[str] | None
    on_result: Callable[[RequestResult], object] | None
    on_progress: Callable[[Progress], object] | None


class _Retrieving:
    """
    A retrieval under way, an :class:`~dicomtwist.eventloop.loop_reactor.Ending`.

    The retrieval keeps it, since its results are reported to it: also when nobody waits for the retrieval any more, because
    the wait was interrupted.
    """

    def __init__(self, ae: AE, on_result: Callable[[RequestResult], object] | None) -> None:
        self._ae = ae
        self._then = on_result

    def on_result(self, result: RequestResult) -> None:
        """Pass *result* on."""
        if self._then is not None:
            self._then(result)

    async def end(self, seconds: float) -> None:
        """Abort the associations."""
        await from_deferred(self._ae.shutdown())


def begin_retrieval(
    reactor: Any,
    ae: AE,
    address: Any,
    port: int | None,
    wanted: Any,
    folder: Any,
    **options: Unpack[RetrieveOptions],
) -> Deferred[Totals]:
    """Begin a retrieval in the thread of *reactor*, which *ae* uses; see :func:`dicomtwist.retrieval.retrieve`."""
    # Imported on first use: most scripts retrieve nothing.
    from dicomtwist.retrieval.function import retrieve

    retrieving = _Retrieving(ae, options.get("on_result"))
    if isinstance(reactor, LoopReactor):
        reactor.endings.add(retrieving)
    options["on_result"] = retrieving.on_result
    return retrieve(ae, address, port, wanted, folder, **options)
