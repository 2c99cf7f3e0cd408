"""
The common parts of the tests against real peers: an AE that serves for one test, and an AE that requests associations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydicom.uid import UID
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from dicomtwist import AE, AllStoragePresentationContexts, Server, evt
from dicomtwist.evt import EventType, StoreEvent
from dicomtwist.interfaces import AssociationInterface
from dicomtwist.presentation import ALL_TRANSFER_SYNTAXES

LOOPBACK = ("127.0.0.1", 0)
VERIFICATION = "1.2.840.10008.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"

IMPLICIT = UID("1.2.840.10008.1.2")
EXPLICIT = UID("1.2.840.10008.1.2.1")
DEFLATED = UID("1.2.840.10008.1.2.1.99")
BIG_ENDIAN = UID("1.2.840.10008.1.2.2")


@dataclass
class Stored:
    """
    An instance that the server was asked to store.
    """

    sop_class: str
    sop_instance: str
    transfer_syntax: str
    dataset: bytes


class Store:
    """
    Handlers that record the stored instances, one for complete data sets and one for streams.

    :ivar stored: the instances received so far.
    :ivar status: the status that the handlers return.
    """

    def __init__(self, status: int = 0) -> None:
        self.stored: list[Stored] = []
        self.status = status

    def __call__(self, event: StoreEvent) -> int:
        """Record a complete data set."""
        return self._keep(event, event.encoded_dataset(include_meta=False))

    async def stream(self, event: StoreEvent) -> int:
        """Record a data set that arrives in fragments."""
        parts = [bytes(part) async for part in event.stream]
        return self._keep(event, b"".join(parts))

    def _keep(self, event: StoreEvent, dataset: bytes) -> int:
        request = event.request
        self.stored.append(
            Stored(
                request.affected_sop_class_uid,
                request.affected_sop_instance_uid,
                event.context.transfer_syntax,
                dataset,
            )
        )
        return self.status

    @property
    def datasets(self) -> list[bytes]:
        """The data sets only."""
        return [stored.dataset for stored in self.stored]


@evt.streaming
async def store_stream(event: StoreEvent, store: Store) -> int:
    """A streaming handler, which gets its store as a bound argument."""
    return await store.stream(event)


class Recorder:
    """
    A handler of any notification that records the events.

    :ivar events: the events, in order.
    """

    def __init__(self) -> None:
        self.events: list[evt.Event] = []
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def __call__(self, event: evt.Event) -> None:
        """Record an event."""
        self.events.append(event)
        due = [waiting for count, waiting in self._waiting if count <= len(self.events)]
        self._waiting = [entry for entry in self._waiting if entry[1] not in due]
        for waiting in due:
            waiting.callback(None)

    async def wait(self, count: int = 1) -> None:
        """Wait until this many events have occurred."""
        if len(self.events) < count:
            waiting: Deferred[None] = Deferred()
            self._waiting.append((count, waiting))
            await waiting


class InteropTestCase(TestCase):
    """
    A test with an AE of dicomtwist at one end at least.
    """

    timeout = 60

    async def serve(
        self,
        *handlers: tuple[EventType, Any] | tuple[EventType, Any, list[Any]],
        address: Any = LOOPBACK,
        contexts: Iterable[Any] | None = None,
        **settings: Any,
    ) -> Server:
        """
        Start a server that accepts every storage class in every transfer syntax; it is shut down at the end of the test.

        :param contexts: the contexts to accept instead.
        :param settings: attributes of the AE.
        """
        ae = AE("TWIST")
        ae.requestor_order = True  # so that a test can choose what is accepted by what it proposes
        if contexts is None:
            ae.add_supported_context(VERIFICATION)
            for context in AllStoragePresentationContexts:
                assert context.abstract_syntax is not None
                ae.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
        else:
            ae.supported_contexts = list(contexts)
        for name, value in settings.items():
            assert hasattr(ae, name), name
            setattr(ae, name, value)
        server = await ae.start_server(address, evt_handlers=handlers)
        self.addCleanup(server.shutdown)
        return server

    def requestor(self, *proposals: tuple[str, Any] | str, **settings: Any) -> AE:
        """
        Return an AE that proposes (abstract syntax, transfer syntaxes); its remaining associations are aborted at the end
        of the test.
        """
        ae = AE("TWISTSCU")
        for proposal in proposals or (VERIFICATION,):
            ae.add_requested_context(*((proposal,) if isinstance(proposal, str) else proposal))
        for name, value in settings.items():
            assert hasattr(ae, name), name
            setattr(ae, name, value)
        self.addCleanup(ae.shutdown)
        return ae

    async def assert_fails(self, deferred: Deferred[Any], *kinds: type[BaseException]) -> Any:
        """
        Return the error that *deferred* fails with, and check that it is one of *kinds*.
        """
        try:
            result = await deferred
        except kinds as error:
            return error
        self.fail(f"{result!r} came where {', '.join(kind.__name__ for kind in kinds)} was expected")


def ends_of(*associations: AssociationInterface) -> list[str]:
    """Return how each association ended, in one word."""
    return [
        "released" if each.is_released else "aborted" if each.is_aborted else "rejected" if each.is_rejected else "?"
        for each in associations
    ]
