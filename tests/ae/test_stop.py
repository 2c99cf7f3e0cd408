"""The stop of a server from inside the handlers of its own associations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from pydicom import Dataset
from twisted.internet.defer import Deferred, ensureDeferred, inlineCallbacks

from dicomtwist import AE, Association, Server, build_context, evt
from dicomtwist.ae.server import CLOSE_SECONDS
from dicomtwist.service import DICOMService
from tests.memory import CONTEXTS, VERIFICATION, MemoryTestCase, instance

FIND = "1.2.840.10008.5.1.4.1.2.2.1"
PRINTER = "1.2.840.10008.5.1.1.16"
GRACE = 10.0


def keys() -> Dataset:
    dataset = Dataset()
    dataset.QueryRetrieveLevel = "STUDY"
    return dataset


#: A request for each kind of handler.
REQUESTS: dict[evt.EventType, Callable[[Association], Any]] = {
    evt.EVT_C_ECHO: lambda assoc: assoc.send_c_echo(),
    evt.EVT_C_STORE: lambda assoc: assoc.send_c_store(instance()),
    evt.EVT_N_ACTION: lambda assoc: assoc.send_n_action(None, 1, PRINTER, "1.2.3").addCallback(lambda one: one[0]),
    evt.EVT_C_FIND: lambda assoc: assoc.send_c_find(keys(), FIND).collect().addCallback(lambda found: len(found) - 1),
}


class StopInHandlers(MemoryTestCase):
    """
    :ivar stopped: when each call had stopped its server, in seconds.
    """

    def setUp(self) -> None:
        super().setUp()
        contexts = [*CONTEXTS, build_context(FIND), build_context(PRINTER)]
        self.scp.supported_contexts = self.scu.requested_contexts = contexts
        self.stopped: list[float] = []

    def stopping(self, stop: Callable[[], Any]) -> dict[evt.EventType, list[Callable[[Any], Any]]]:
        """Return handlers of each kind that wait for *stop* and answer with success."""

        async def coroutine(event: Any) -> int:
            await stop()
            self.stopped.append(self.network.seconds())
            return 0

        def deferred(event: Any) -> Deferred[int]:
            return ensureDeferred(coroutine(event))

        def later(event: Any) -> Any:
            return stop().addCallback(lambda _: self.stopped.append(self.network.seconds())).addCallback(lambda _: 0)

        @inlineCallbacks
        def inline(event: Any) -> Any:
            yield stop()
            self.stopped.append(self.network.seconds())
            return 0

        async def generator(event: Any) -> Any:
            await stop()
            self.stopped.append(self.network.seconds())
            yield 0xFF00, keys()

        async def listing(event: Any) -> Any:
            return [one async for one in generator(event)]

        simple: list[Callable[[Any], Any]] = [coroutine, deferred, later, inline]
        return dict.fromkeys(REQUESTS, simple) | {evt.EVT_C_FIND: [generator, listing]}

    @staticmethod
    def stop(server: list[Server], grace: float | None) -> Deferred[None]:
        return server[0].shutdown(grace)

    def answered(self, asked: Deferred[Any]) -> None:
        self.network.advance(0)
        self.assertEqual(self.successResultOf(asked), 0)

    def test_each_handler(self) -> None:
        """The peer gets its answer at once, and the association ends as the peer likes."""
        for grace in (None, GRACE):
            for event in REQUESTS:
                for number in range(2 if event is evt.EVT_C_FIND else 4):
                    server: list[Server] = []
                    handlers = self.stopping(partial(self.stop, server, grace))
                    server.append(self.listen((event, handlers[event][number])))
                    association = self.associate()
                    since = self.network.seconds()
                    self.answered(REQUESTS[event](association))
                    self.assertEqual(self.stopped.pop(), since)
                    self.assertEqual(self.network.ports, {})
                    self.assertIsNone(self.network.result_of(association.release()))
                    self.assert_clean()

    def test_a_service(self) -> None:
        """The service that has the server, and the whole AE."""
        stops: list[Callable[[], Deferred[None]]] = []
        handler = self.stopping(lambda: stops[0]())[evt.EVT_C_ECHO][0]
        service = DICOMService(self.scp, ["tcp:104"], evt_handlers=[(evt.EVT_C_ECHO, handler)])
        stops.append(service.stopService)
        service.startService()
        association = self.associate()
        self.answered(association.send_c_echo())
        self.network.result_of(association.release())
        handler = self.stopping(lambda: self.scp.shutdown(GRACE))[evt.EVT_C_ECHO][0]
        self.listen((evt.EVT_C_ECHO, handler))
        association = self.associate()
        self.answered(association.send_c_echo())
        self.network.result_of(association.release())

    def test_others_are_waited_for(self) -> None:
        server: list[Server] = []
        handler = self.stopping(lambda: server[0].shutdown(None))[evt.EVT_C_ECHO][0]
        server.append(self.listen((evt.EVT_C_ECHO, handler)))
        first, second = self.associate(), self.associate()
        asked = first.send_c_echo()
        self.network.advance(20)
        self.assertNoResult(asked)
        second.release()
        self.answered(asked)
        self.network.result_of(first.release())

    def test_the_grace_is_for_its_own_association_as_well(self) -> None:
        server: list[Server] = []
        handler = self.stopping(lambda: server[0].shutdown(GRACE))[evt.EVT_C_ECHO][0]
        server.append(self.listen((evt.EVT_C_ECHO, handler)))
        association = self.associate()
        self.answered(association.send_c_echo())
        self.network.advance(GRACE - 1)
        self.assertTrue(association.is_established)
        self.network.advance(1 + CLOSE_SECONDS)
        self.assertTrue(association.is_aborted)

    def test_without_grace(self) -> None:
        server: list[Server] = []
        handler = self.stopping(lambda: server[0].shutdown())[evt.EVT_C_ECHO][0]
        server.append(self.listen((evt.EVT_C_ECHO, handler)))
        association = self.associate()
        asked = association.send_c_echo()
        self.network.advance(CLOSE_SECONDS)
        self.failureResultOf(asked)
        self.assertEqual(len(self.stopped), 1)

    def test_a_handler_that_does_not_wait(self) -> None:
        """The Deferred fires when every connection is closed, as it does for other callers."""
        for grace in (None, GRACE):
            stopping: list[Deferred[None]] = []
            server: list[Server] = []

            def handler(event: Any, stopping: Any = stopping, server: Any = server, grace: float | None = grace) -> int:
                stopping.append(server[0].shutdown(grace))
                return 0

            server.append(self.listen((evt.EVT_C_ECHO, handler)))
            association = self.associate()
            self.answered(association.send_c_echo())
            self.network.advance(5)
            self.assertNoResult(stopping[0])
            self.network.result_of(association.release())
            self.successResultOf(stopping[0])
            self.assert_clean()

    def test_several_at_once(self) -> None:
        """The handlers of several associations stop the server, and would wait for each other."""
        server: list[Server] = []
        handler = self.stopping(lambda: server[0].shutdown(None))[evt.EVT_C_ECHO][0]
        server.append(self.listen((evt.EVT_C_ECHO, handler)))
        associations = [self.associate() for _ in range(5)]
        asked = [association.send_c_echo() for association in associations[:4]]
        self.network.advance(1)
        for one in asked:
            self.assertNoResult(one)
        outside = server[0].shutdown(None)
        associations[4].release()
        for one in asked:
            self.answered(one)  # none waits until another association has ended
        for association in associations[:4]:
            self.assertNoResult(outside)
            self.network.result_of(association.release())
        self.successResultOf(outside)

    def test_two_servers_stop_each_other(self) -> None:
        other = AE("OTHER", reactor=self.network)
        other.supported_contexts = [build_context(VERIFICATION)]
        servers: list[Server] = []
        handlers = [self.stopping(lambda: servers[1].shutdown(None)), self.stopping(lambda: servers[0].shutdown(None))]
        servers.append(self.listen((evt.EVT_C_ECHO, handlers[0][evt.EVT_C_ECHO][0])))
        servers.append(
            self.network.result_of(
                other.start_server(105, evt_handlers=[(evt.EVT_C_ECHO, handlers[1][evt.EVT_C_ECHO][0])])
            )
        )
        first, second = self.associate(104), self.associate(105)
        asked = first.send_c_echo()
        self.network.advance(5)
        self.assertNoResult(asked)
        outside = servers[1].shutdown(None)
        self.answered(second.send_c_echo())
        self.answered(asked)
        self.assertNoResult(outside)
        self.network.result_of(second.release())
        self.successResultOf(outside)
        self.network.result_of(first.release())

    def test_a_peer_that_leaves(self) -> None:
        server: list[Server] = []
        handler = self.stopping(lambda: server[0].shutdown(None))[evt.EVT_C_STORE][0]
        server.append(self.listen((evt.EVT_C_STORE, handler)))
        first, second = self.associate(), self.associate()
        asked = first.send_c_store(instance())
        self.network.flush()
        first.abort()
        self.network.advance(1)
        self.failureResultOf(asked)
        self.assertEqual(self.stopped, [])
        second.release()
        self.network.flush()
        self.assertEqual(len(self.stopped), 1)
