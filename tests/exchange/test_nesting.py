"""
Requests from inside a loop over responses, and from inside handlers, on the association that these belong to: each one is
answered, or fails at once and says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import Context
from functools import partial
from typing import Any

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from twisted.internet.defer import Deferred, ensureDeferred, inlineCallbacks, maybeDeferred, succeed

from dicomtwist import (
    Association,
    AssociationTimeout,
    AsyncOperationsWindow,
    NotEstablished,
    OperationFailed,
    WouldDeadlock,
    build_context,
    build_role,
    evt,
)
from dicomtwist.datasets.identifier import encode_identifier
from dicomtwist.dimse.messages import CEchoRQ, CEchoRSP, CFindRSP
from dicomtwist.scu import responses
from dicomtwist.ul.items import UserInformation
from tests.memory import CONTEXTS, CT, MemoryTestCase, instance

FIND = "1.2.840.10008.5.1.4.1.2.2.1"
GET = "1.2.840.10008.5.1.4.1.2.2.3"
MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
PRINTER = "1.2.840.10008.5.1.1.16"
MODELS = (FIND, GET, MOVE, PRINTER)


def keys(name: str = "*") -> Dataset:
    dataset = Dataset()
    dataset.QueryRetrieveLevel = "STUDY"
    dataset.PatientName = name
    return dataset


#: One request of each kind.
REQUESTS: dict[str, Callable[[Association], Any]] = {
    "C-ECHO": lambda assoc: assoc.send_c_echo(),
    "C-STORE": lambda assoc: assoc.send_c_store(instance()),
    "C-FIND": lambda assoc: assoc.send_c_find(keys("few"), FIND).collect(),
    "C-GET": lambda assoc: assoc.send_c_get(keys(), GET).when_done(),
    "C-MOVE": lambda assoc: assoc.send_c_move(keys(), "SCP", MOVE).when_done(),
    "N-GET": lambda assoc: assoc.send_n_get([], PRINTER, "1.2.3"),
    "N-SET": lambda assoc: assoc.send_n_set(keys(), PRINTER, "1.2.3"),
    "N-ACTION": lambda assoc: assoc.send_n_action(keys(), 1, PRINTER, "1.2.3"),
    "N-CREATE": lambda assoc: assoc.send_n_create(keys(), PRINTER, "1.2.3"),
    "N-DELETE": lambda assoc: assoc.send_n_delete(PRINTER, "1.2.3"),
}


class NestingTestCase(MemoryTestCase):
    """
    :ivar store: the requestor's handler of C-STORE.
    :ivar answers: the number of answers to a C-FIND and of sub-operations of a C-GET.
    """

    def setUp(self) -> None:
        super().setUp()
        contexts = [*CONTEXTS, *(build_context(uid, ExplicitVRLittleEndian) for uid in MODELS)]
        self.scp.supported_contexts = self.scu.requested_contexts = contexts
        self.scp.add_supported_context(CT, ExplicitVRLittleEndian, scu_role=True, scp_role=True)
        self.answers = 250
        self.store: Any = lambda event: 0

    def find(self, event: evt.IdentifierEvent) -> Iterator[Any]:
        few = event.identifier.PatientName == "few"
        for number in range(2 if few else self.answers):
            yield 0xFF00, keys(str(number))

    def get(self, event: evt.IdentifierEvent) -> Iterator[Any]:
        if event.event is evt.EVT_C_MOVE:
            yield "127.0.0.1", 104
        yield self.answers
        for number in range(self.answers):
            yield instance(uid=f"1.2.3.{number}")

    def associated(self, size: int = 1) -> Association:
        handlers: list[Any] = [(evt.EVT_C_FIND, self.find), (evt.EVT_C_GET, self.get), (evt.EVT_C_MOVE, self.get)]
        handlers += [(evt.EVT_C_STORE, lambda event: 0), (evt.EVT_ASYNC_OPS, lambda event: (size, size))]
        for event in (evt.EVT_N_GET, evt.EVT_N_SET, evt.EVT_N_ACTION, evt.EVT_N_CREATE, evt.EVT_N_DELETE):
            handlers.append((event, lambda event: 0))
        self.server = self.listen(*handlers)
        items: list[Any] = [build_role(CT, scu_role=True, scp_role=True)]
        if size > 1:
            items.append(AsyncOperationsWindow(size, size))
        store = [(evt.EVT_C_STORE, lambda event: self.store(event))]
        if getattr(self.store, "is_streaming", False):
            store = [(evt.EVT_C_STORE, self.store)]
        return self.associate(ext_neg=items, evt_handlers=store)

    def close(self, association: Association) -> None:
        """The association is as usable as ever."""
        self.assertEqual(self.network.result_of(association.send_c_echo()), 0)
        self.assertIsNone(self.network.result_of(association.release()))
        self.server.shutdown()
        self.network.flush()

    async def loop(self, answers: Any, body: Callable[[], Any], every: int = 50) -> tuple[int, list[Any]]:
        """Await *body* for some of the answers; return the number of answers, and what came of it."""
        count, results = 0, []
        async for status, _ in answers:
            if not status.is_pending:
                break
            if count % every == 0:
                try:
                    results.append(await body())
                except WouldDeadlock as error:
                    results.append(error)
            count += 1
        return count, results

    def looped(self, answers: Any, body: Callable[[], Any], every: int = 50) -> tuple[int, list[Any]]:
        ended = Deferred.fromCoroutine(self.loop(answers, body, every))
        self.network.flush()
        return self.successResultOf(ended)


class LoopTests(NestingTestCase):
    """Inside ``async for`` over the responses."""

    def test_each_request(self) -> None:
        """Each kind of request is answered inside a loop of each kind, without a window and with one."""
        loops: dict[str, Callable[[Association], Any]] = {
            "C-FIND": lambda assoc: assoc.send_c_find(keys(), FIND),
            "C-GET": lambda assoc: assoc.send_c_get(keys(), GET),
            "C-MOVE": lambda assoc: assoc.send_c_move(keys(), "SCP", MOVE),
        }
        self.answers = 130
        for size in (1, 3):
            for loop, begin in loops.items():
                association = self.associated(size)
                for name, request in REQUESTS.items():
                    count, results = self.looped(begin(association), lambda: request(association), every=110)  # noqa: B023
                    expected = self.answers if loop == "C-FIND" else self.answers - 1
                    self.assertEqual(count, expected, f"{name} in {loop}, window {size}")
                    self.assertEqual(len(results), 2)
                    self.assertEqual([one for one in results if isinstance(one, WouldDeadlock)], [])
                self.close(association)

    def test_more_answers_than_may_wait(self) -> None:
        """With too many answers the request fails, and the loop goes on to its end."""
        self.patch(responses, "OVERFULL_COUNT", 300)
        self.answers = 1000
        for name, request in REQUESTS.items():
            association = self.associated()
            count, results = self.looped(association.send_c_find(keys(), FIND), lambda: request(association))  # noqa: B023
            self.assertEqual(count, 1000, name)
            self.assertIsInstance(results[0], WouldDeadlock, name)
            self.assertIn("C-FIND", str(results[0]))
            self.close(association)

    def test_inline_callbacks(self) -> None:
        """A loop that is written with ``inlineCallbacks`` is one as well."""
        self.patch(responses, "OVERFULL_COUNT", 300)
        self.answers = 1000
        association = self.associated()
        refused: list[Exception] = []

        @inlineCallbacks
        def loop() -> Any:
            answers = association.send_c_find(keys(), FIND)
            for count in range(1000):
                status, _ = yield ensureDeferred(answers.__anext__())  # type: ignore[arg-type]
                self.assertTrue(status.is_pending)
                if count % 100 == 0:
                    try:
                        yield association.send_c_echo()
                    except WouldDeadlock as error:
                        refused.append(error)
            status, _ = yield ensureDeferred(answers.__anext__())  # type: ignore[arg-type]
            return status

        self.assertEqual(self.network.result_of(loop()), 0)
        self.assertGreater(len(refused), 0)
        self.close(association)

    def test_more_bytes_than_may_wait(self) -> None:
        self.patch(responses, "OVERFULL_SIZE", 20_000)
        self.answers = 2000
        association = self.associated()
        count, results = self.looped(association.send_c_find(keys(), FIND), association.send_c_echo)
        self.assertEqual(count, 2000)
        self.assertIsInstance(results[0], WouldDeadlock)
        self.close(association)

    def test_a_peer_that_answers_in_order(self) -> None:
        """The request has a place in the window and is sent, but the peer answers the query first."""
        self.patch(responses, "OVERFULL_COUNT", 300)
        for pending in (200, 1000):
            association, peer = self.scripted_in_window(1000 + pending)
            ended = Deferred.fromCoroutine(
                self.loop(association.send_c_find(keys(), FIND), association.send_c_echo, every=pending)
            )
            self.network.flush()
            (find, _), *_ = peer.messages()
            one = keys("one")
            for _ in range(pending):
                response = CFindRSP(message_id_being_responded_to=find.message_id, status=0xFF00)
                peer.send_message(5, response, responses_encoded(one))
            self.network.flush()
            echoes = [message.message_id for message, _ in peer.messages() if isinstance(message, CEchoRQ)]
            self.assertEqual(len(echoes), 1)
            peer.send_message(5, CFindRSP(message_id_being_responded_to=find.message_id))
            peer.send_message(1, CEchoRSP(message_id_being_responded_to=echoes[0]))
            self.network.flush()
            count, (result,) = self.successResultOf(ended)
            self.assertEqual(count, pending)
            if pending == 200:
                self.assertEqual(result, 0)
            else:
                self.assertIsInstance(result, WouldDeadlock)
            # The late response is taken, and its place in the window is free again.
            self.assertFalse(association.exchange.asking)
            self.assertTrue(association.is_established)
            association.abort()
            peer.close()
            self.network.flush()

    def scripted_in_window(self, port: int) -> tuple[Association, Any]:
        peer = self.network.scripted_server(port)
        asking = self.asking(port, ext_neg=[AsyncOperationsWindow(4, 4)])
        peer.accept(information=UserInformation(16384, "1.2.3", None, AsyncOperationsWindow(4, 4)))
        peer.take()
        return self.successResultOf(asking), peer

    def test_release(self) -> None:
        """A release from inside the loop waits for the query to end, as far as its answers may wait."""
        association = self.associated()
        count, results = self.looped(association.send_c_find(keys(), FIND), association.release, every=1000)
        self.assertEqual((count, results), (250, [None]))
        self.server.shutdown()
        self.network.flush()
        self.patch(responses, "OVERFULL_COUNT", 300)
        self.answers = 1000
        association = self.associated()
        count, results = self.looped(association.send_c_find(keys(), FIND), association.release, every=1000)
        self.assertEqual(count, 1000)
        self.assertIsInstance(results[0], WouldDeadlock)
        self.close(association)

    def test_loops_in_loops(self) -> None:
        """A loop over another query inside the loop, left early, leaves nothing behind."""
        self.patch(responses, "OVERFULL_COUNT", 300)
        for size in (1, 3):
            association = self.associated(size)

            async def inner(association: Association = association) -> int:
                async for _ in association.send_c_find(keys(), FIND):
                    return int(await association.send_c_echo())
                return -1

            count, results = self.looped(association.send_c_find(keys(), FIND), inner, every=200)
            self.assertEqual((count, results), (250, [0, 0]))
            self.close(association)

    def test_others_are_not_inside(self) -> None:
        """A request from elsewhere waits for a slow loop, however many answers there are."""
        self.patch(responses, "OVERFULL_COUNT", 300)
        self.answers = 1000
        association = self.associated()
        gate: Deferred[None] = Deferred()
        ended = Deferred.fromCoroutine(self.loop(association.send_c_find(keys(), FIND), lambda: gate, every=2000))
        echo, collected = association.send_c_echo(), association.send_c_find(keys("few"), FIND).collect()
        self.network.flush()
        self.assertNoResult(echo)
        self.assertTrue(association.protocol.reading_paused)
        gate.callback(None)
        self.network.flush()
        self.assertEqual(self.successResultOf(ended)[0], 1000)
        self.assertEqual(self.successResultOf(echo), 0)
        self.assertEqual(len(self.successResultOf(collected)), 2)
        self.close(association)

    def test_after_the_loop(self) -> None:
        """The loop leaves no mark on what its coroutine asks afterwards, however it ended."""
        self.patch(responses, "OVERFULL_COUNT", 300)
        self.answers = 1000
        association = self.associated()

        async def both() -> list[Any]:
            async for _ in association.send_c_find(keys(), FIND):
                break
            first = await association.send_c_echo()
            count = 0
            async for _ in association.send_c_find(keys(), FIND):
                count += 1
            return [first, count, await association.send_c_echo()]

        self.assertEqual(self.network.result_of(Deferred.fromCoroutine(both())), [0, 1001, 0])
        self.close(association)


def responses_encoded(dataset: Dataset) -> bytes:
    return encode_identifier(dataset, str(ExplicitVRLittleEndian))


class UnseenTests(NestingTestCase):
    """Requests for a loop or a handler that nothing connects with it, because a timer makes them."""

    def setUp(self) -> None:
        super().setUp()
        self.scu.dimse_timeout = 30
        self.scp.dimse_timeout = self.scp.network_timeout = self.scp.write_timeout = None
        self.patch(responses, "OVERFULL_COUNT", 300)

    def later(self, request: Callable[[], Any]) -> Any:
        # A timer runs in the context of the reactor.
        asked: Deferred[Any] = Deferred()
        Context().run(self.network.callLater, 0, lambda: maybeDeferred(request).chainDeferred(asked))
        return asked

    async def asked_in_loop(self, association: Association, request: Callable[[], Any]) -> tuple[int, list[Any]]:
        return await self.loop(association.send_c_find(keys(), FIND), lambda: self.later(request), every=10_000)

    def test_loop(self) -> None:
        """A request of each kind, and a release, fail after the DIMSE timeout, and the loop goes on."""
        self.answers = 1000
        for name, request in [*REQUESTS.items(), ("release", lambda one: one.release())]:
            for size in (1, 3):
                association = self.associated(size)
                ended = Deferred.fromCoroutine(self.asked_in_loop(association, partial(request, association)))
                self.network.flush()
                self.network.advance(29)
                self.assertNoResult(ended)
                self.network.advance(2)
                self.network.flush()
                count, (result,) = self.successResultOf(ended)
                self.assertEqual(count, 1000)
                self.assertIsInstance(result, WouldDeadlock, (name, size))
                self.assertIn("30 seconds", str(result))
                self.close(association)

    def test_few_answers(self) -> None:
        """Below the limit it is answered."""
        association = self.associated()
        ended = Deferred.fromCoroutine(self.asked_in_loop(association, association.send_c_echo))
        self.network.flush()
        self.network.advance(0.1)
        self.network.flush()
        self.assertEqual(self.successResultOf(ended), (250, [0]))
        self.close(association)

    def test_a_slow_loop(self) -> None:
        """A loop that nothing waits for takes its time."""
        self.answers = 1000
        association = self.associated()
        going: Deferred[None] = Deferred()
        ended = Deferred.fromCoroutine(self.loop(association.send_c_find(keys(), FIND), lambda: going, every=10_000))
        self.network.flush()
        self.network.advance(1000)
        self.assertNoResult(ended)
        going.callback(None)
        self.network.flush()
        self.assertEqual(self.successResultOf(ended), (1000, [None]))
        self.close(association)

    def getting(self, ask: Callable[[evt.StoreEvent], Any]) -> Deferred[Any]:
        self.answers = 1
        results: list[Any] = []

        async def store(event: evt.StoreEvent) -> int:
            try:
                await ask(event)
            except WouldDeadlock as error:
                results.append(error)
            return 0

        self.store = store
        self.asking_association = self.associated()
        done = self.asking_association.send_c_get(keys(), GET).when_done()
        self.network.flush()
        self.network.advance(31)
        self.network.flush()
        return done.addCallback(lambda result: (result, results))

    def test_handler(self) -> None:
        """In a handler during a C-GET they fail, and the C-GET goes on."""
        for name, request in [*REQUESTS.items(), ("release", lambda one: one.release())]:
            done = self.getting(lambda event: self.later(partial(request, event.assoc)))  # noqa: B023
            result, (error,) = self.successResultOf(done)
            self.assertEqual(result.status, 0, name)
            self.assertIn("the handler of C-STORE", str(error))
            self.store = lambda event: 0
            self.close(self.asking_association)

    def test_a_handler_that_does_not_end(self) -> None:
        """The association ends, and the error names the handler instead of the peer."""
        error = self.failureResultOf(self.getting(lambda event: Deferred()), AssociationTimeout).value
        self.assertIn("waited for the handler of C-STORE", str(error))
        self.flushLoggedErrors()


class BothWaysTestCase(NestingTestCase):
    """Both sides have both roles for all of their contexts, and handlers for all requests."""

    def both_ways(self, size: int, handlers: list[Any], own: list[Any] | None = None) -> Association:
        """
        Return an association.

        :param handlers: the acceptor's, in addition to those that answer at once; *own* are the requestor's.
        """
        supported, self.scp.supported_contexts = self.scu.requested_contexts, []
        for context in supported:
            self.scp.add_supported_context(context.abstract_syntax or "", ExplicitVRLittleEndian, True, True)
        simple: list[Any] = [
            *((evt.EVT_C_FIND, self.find), (evt.EVT_C_GET, self.get), (evt.EVT_C_MOVE, self.get)),
            *((event, lambda event: 0) for event in (evt.EVT_N_GET, evt.EVT_N_SET, evt.EVT_N_ACTION)),
            *((event, lambda event: 0) for event in (evt.EVT_N_CREATE, evt.EVT_N_DELETE, evt.EVT_C_STORE)),
        ]
        self.server = self.listen((evt.EVT_ASYNC_OPS, lambda event: (size, size)), *simple, *handlers)
        items: list[Any] = [build_role(context.abstract_syntax or "", True, True) for context in supported]
        if size > 1:
            items.append(AsyncOperationsWindow(size, size))
        return self.associate(ext_neg=items, evt_handlers=[*simple, *(own or ())])


#: A request for each handler that yields its answers, and what it fires with.
YIELDING: dict[evt.EventType, Callable[[Association], Any]] = {
    evt.EVT_C_FIND: lambda assoc: assoc.send_c_find(keys(), FIND).collect(),
    evt.EVT_C_GET: lambda assoc: assoc.send_c_get(keys(), GET).when_done(),
    evt.EVT_C_MOVE: lambda assoc: assoc.send_c_move(keys(), "SCP", MOVE).when_done(),
}


class YieldingHandlerTests(BothWaysTestCase):
    """Inside a handler that yields its answers."""

    def yielding(self, event: evt.EventType, ask: Callable[[Association], Any], place: str) -> Any:
        """Return an asynchronous generator, which asks before its first answer, between answers, or at its end."""
        self.results: list[Any] = []

        async def asked(association: Any) -> None:
            try:
                self.results.append(await ask(association))
            except WouldDeadlock as error:
                self.results.append(error)

        async def handler(occurrence: evt.IdentifierEvent) -> Any:
            try:
                if place == "before":
                    await asked(occurrence.assoc)
                if event is evt.EVT_C_MOVE:
                    yield "127.0.0.1", 104
                if event is not evt.EVT_C_FIND:
                    yield 3
                for number in range(3):
                    if place == "between":
                        await asked(occurrence.assoc)
                    yield (0xFF00, keys()) if event is evt.EVT_C_FIND else instance(uid=f"1.2.3.{number}")
            finally:
                if place == "behind":
                    await asked(occurrence.assoc)

        async def listing(occurrence: evt.IdentifierEvent) -> Any:
            await asked(occurrence.assoc)
            return [item async for item in handler(occurrence)]

        return listing if place == "listing" else handler

    def test_each_request(self) -> None:
        """
        Each kind of request is answered, and a C-GET fails at once without a window: its C-STORE operations would come while
        the operation of the handler is performed.
        """
        self.answers = 3
        for event, begin in YIELDING.items():
            for place in ("before", "between", "behind", "listing"):
                for name, request in REQUESTS.items():
                    for size in (1, 3):
                        case = (event.name, place, name, size)
                        association = self.both_ways(size, [(event, self.yielding(event, request, place))])
                        result = self.network.result_of(begin(association))
                        if event is not evt.EVT_C_FIND:
                            self.assertEqual((result.status, result.suboperations.completed), (0, 3), case)
                        for one in self.results:
                            self.assertEqual(isinstance(one, WouldDeadlock), name == "C-GET" and size == 1, case)
                        self.assertEqual(len(self.results), 3 if place == "between" else 1, case)
                        self.close(association)

    def test_a_get_of_this_side(self) -> None:
        """During a C-GET of this side without a window, the handler gets the answer that a handler of C-STORE gets."""
        self.answers = 1
        for event in (evt.EVT_C_FIND, evt.EVT_C_MOVE):
            begin = YIELDING[event]
            gate: Deferred[None] = Deferred()

            async def get(occurrence: evt.IdentifierEvent, gate: Deferred[None] = gate) -> Any:
                yield 1
                await gate
                yield instance()

            asking = self.yielding(event, lambda association: association.send_c_echo(), "between")
            peer_side: list[Association] = []
            accepted = (evt.EVT_ESTABLISHED, lambda occurrence: peer_side.append(occurrence.assoc))  # noqa: B023
            association = self.both_ways(1, [(evt.EVT_C_GET, get), accepted], [(event, asking)])
            got = association.send_c_get(keys(), GET).when_done()
            self.network.flush()
            asked = begin(peer_side[0])
            self.network.flush()
            self.assertTrue(self.results, event.name)
            for one in self.results:
                self.assertIsInstance(one, WouldDeadlock, event.name)
            gate.callback(None)
            self.network.flush()
            self.assertEqual(self.successResultOf(got).suboperations.completed, 1)
            for one in (got, asked):
                one.addErrback(lambda reason: None)
            association.abort()
            self.server.shutdown()
            self.network.flush()
        self.flushLoggedErrors(NotEstablished)

    def test_a_loop_in_the_handler(self) -> None:
        """The handler of a proxy is inside its loop on another association, also when it goes on after an answer."""
        self.patch(responses, "OVERFULL_COUNT", 300)
        self.answers = 1000
        other = self.associated()
        server = self.server
        results: list[Any] = []

        async def proxy(occurrence: evt.IdentifierEvent) -> Any:
            number = 0
            async for status, found in other.send_c_find(keys(), FIND):
                number += 1
                if found is None or number > 500:
                    break
                yield status, found
                if number == 5:
                    try:
                        results.append(await other.send_c_echo())
                    except WouldDeadlock as error:
                        results.append(error)

        front = self.network.result_of(self.scp.start_server(105, evt_handlers=[(evt.EVT_C_FIND, proxy)]))
        association = self.associate(105)
        found = self.network.result_of(association.send_c_find(keys(), FIND).collect())
        self.assertEqual(len(found), 500)
        self.assertEqual([type(one) for one in results], [WouldDeadlock])
        self.network.result_of(association.release())
        front.shutdown()
        self.server = server
        self.close(other)


class GetsBothWaysTests(BothWaysTestCase):
    """C-GETs of both sides at the same time: their C-STORE operations need places in both windows."""

    gate: Deferred[None]

    def sides(self, offered: tuple[int, int]) -> tuple[Association, Association]:
        """
        Return both ends of an association.

        :param offered: the number of operations that the requestor may have outstanding, and the acceptor.
        """
        window = (evt.EVT_ASYNC_OPS, lambda event: offered)
        supported, self.scp.supported_contexts = self.scu.requested_contexts, []
        for context in supported:
            self.scp.add_supported_context(context.abstract_syntax or "", ExplicitVRLittleEndian, True, True)
        handlers: list[Any] = [(evt.EVT_C_GET, self.held), (evt.EVT_C_STORE, lambda event: 0)]
        self.server = self.listen(window, *handlers)
        items: list[Any] = [build_role(context.abstract_syntax or "", True, True) for context in supported]
        if offered != (1, 1):
            items.append(AsyncOperationsWindow(*offered))
        association = self.associate(ext_neg=items, evt_handlers=handlers)
        (accepted,) = self.server.factory.associations
        return association, accepted

    async def held(self, event: evt.IdentifierEvent) -> Any:
        yield 2
        await self.gate
        yield instance(uid="1.2.3.1")
        yield instance(uid="1.2.3.2")

    def results(self, asked: list[Any]) -> list[str]:
        """Open the gate, and return how each C-GET ended."""
        gate, self.gate = self.gate, succeed(None)
        gate.callback(None)
        self.network.flush()
        ends = []
        for one in asked:
            result: list[Any] = []
            one.addBoth(result.append)
            self.assertTrue(result, "a C-GET waits for ever")
            error = getattr(result[0], "value", None)
            if isinstance(error, OperationFailed):
                ends.append(f"{int(error.status):04X}")
            elif error is not None:
                ends.append(type(error).__name__)
            else:
                ends.append(str(result[0].suboperations.completed))
        return ends

    def begin(self, association: Association) -> Any:
        return association.send_c_get(keys(), GET).when_done()

    def ends(self, offered: tuple[int, int], first: int, second: int, crossing: bool) -> list[str]:
        self.gate = Deferred()
        requestor, acceptor = self.sides(offered)
        asked = [self.begin(requestor) for _ in range(first)]
        if not crossing:
            self.network.flush()
        asked += [self.begin(acceptor) for _ in range(second)]
        self.network.flush()
        ends = self.results(asked)
        self.assertEqual(self.network.result_of(acceptor.send_c_echo()), 0)
        self.close(requestor)
        return ends

    def test_without_a_window(self) -> None:
        """The second one fails before it is sent; of two that cross each other, each side refuses the other's."""
        self.assertEqual(self.ends((1, 1), 1, 1, crossing=False), ["2", "WouldDeadlock"])
        self.assertEqual(self.ends((1, 1), 1, 1, crossing=True), ["A702", "A702"])
        self.assertEqual(self.ends((1, 1), 3, 0, crossing=False), ["2", "2", "2"])

    def test_one_window_has_room(self) -> None:
        """The operations of one C-GET go on, and at its end those of the other."""
        for offered in ((1, 2), (2, 1), (2, 2), (3, 2)):
            for crossing in (False, True):
                self.assertEqual(self.ends(offered, 1, 1, crossing), ["2", "2"], offered)

    def test_as_many_as_fit(self) -> None:
        for crossing in (False, True):
            self.assertEqual(self.ends((2, 2), 1, 2, crossing), ["2", "2", "2"])
        self.assertEqual(self.ends((2, 2), 2, 2, crossing=False), ["2", "2", "2", "WouldDeadlock"])
        self.assertEqual(self.ends((2, 2), 2, 2, crossing=True).count("A702"), 2)

    def test_one_behind_the_other(self) -> None:
        """A C-GET that waits for its place in the window is not in the way of the peer's."""
        self.gate = Deferred()
        requestor, acceptor = self.sides((1, 1))
        asked = [self.begin(requestor), self.begin(requestor)]
        self.network.flush()
        asked.append(self.begin(acceptor))
        self.network.flush()
        self.assertEqual(self.results(asked), ["2", "2", "WouldDeadlock"])
        self.assertEqual(self.network.result_of(self.begin(acceptor)).suboperations.completed, 2)
        self.close(requestor)


class GetInHandlerTests(BothWaysTestCase):
    """A C-GET from inside the handler of a request with one response."""

    def test_each_handler(self) -> None:
        events = {
            evt.EVT_C_ECHO: "C-ECHO",
            evt.EVT_C_STORE: "C-STORE",
            evt.EVT_N_GET: "N-GET",
            evt.EVT_N_SET: "N-SET",
            evt.EVT_N_ACTION: "N-ACTION",
            evt.EVT_N_CREATE: "N-CREATE",
            evt.EVT_N_DELETE: "N-DELETE",
        }
        self.answers = 3
        for event, name in events.items():
            for size in (1, 3):
                results: list[Any] = []

                async def handler(occurrence: Any, results: list[Any] = results) -> int:
                    if results:
                        return 0  # a C-STORE of the C-GET
                    results.append(None)
                    try:
                        results.append(await occurrence.assoc.send_c_get(keys(), GET).when_done())
                    except WouldDeadlock as error:
                        results.append(error)
                    return 0

                association = self.both_ways(size, [(event, handler)])
                self.network.result_of(REQUESTS[name](association))
                if size == 1:
                    self.assertIsInstance(results[1], WouldDeadlock, name)
                    self.assertIn(name, str(results[1]))
                else:
                    self.assertEqual(results[1].suboperations.completed, 3, name)
                self.network.result_of(association.release())
                self.server.shutdown()
                self.network.flush()

    def test_behind_the_handler(self) -> None:
        """A C-GET that a timer makes when the handler has returned is performed."""
        self.answers = 3
        got: list[Any] = []

        def handler(occurrence: Any) -> int:
            get = lambda: occurrence.assoc.send_c_get(keys(), GET).when_done().addBoth(got.append)  # noqa: E731
            self.network.callLater(0, get)
            return 0

        association = self.both_ways(1, [(evt.EVT_C_ECHO, handler)])
        self.assertEqual(self.network.result_of(association.send_c_echo()), 0)
        self.network.advance(0)
        self.network.flush()
        self.assertEqual(got[0].suboperations.completed, 3)
        self.network.result_of(association.release())
        self.server.shutdown()
        self.network.flush()


class HandlerTests(NestingTestCase):
    """Inside a handler of C-STORE."""

    def setUp(self) -> None:
        super().setUp()
        self.answers = 3
        self.results: list[Any] = []

    async def ask(self, request: Callable[[], Any]) -> int:
        try:
            self.results.append(await request())
        except WouldDeadlock as error:
            self.results.append(error)
        return 0

    def getting(self, store: Any, size: int = 1) -> Association:
        self.results.clear()
        self.store = store
        association = self.associated(size)
        result = self.network.result_of(association.send_c_get(keys(), GET).when_done())
        self.assertEqual((result.status, result.suboperations.completed), (0, 3))
        return association

    def test_each_request(self) -> None:
        """During a C-GET without a window each kind of request fails at once; with a window it is answered."""
        for name, request in REQUESTS.items():
            for size in (1, 3):
                association = self.getting(lambda event: self.ask(lambda: request(event.assoc)), size)  # noqa: B023
                self.assertGreaterEqual(len(self.results), 3, name)  # a C-GET inside a C-GET has handlers of its own
                for result in self.results:
                    if size == 1:
                        self.assertIsInstance(result, WouldDeadlock, name)
                        self.assertIn("C-GET", str(result))
                    elif name != "C-GET":
                        self.assertFalse(isinstance(result, WouldDeadlock), name)
                self.store = lambda event: 0
                self.close(association)

    def test_release(self) -> None:
        for size in (1, 3):
            association = self.getting(lambda event: self.ask(event.assoc.release), size)
            self.assertEqual([type(one) for one in self.results], [WouldDeadlock] * 3)
            self.close(association)

    def test_kinds_of_handlers(self) -> None:
        """Functions that return a Deferred, ``inlineCallbacks``, coroutines that call others."""

        def plain(event: evt.StoreEvent) -> Any:
            return event.assoc.send_c_echo().addErrback(failed)

        def failed(reason: Any) -> int:
            self.results.append(reason.value)
            return 0

        @inlineCallbacks
        def generator(event: evt.StoreEvent) -> Any:
            try:
                yield event.assoc.send_c_echo()
            except WouldDeadlock as error:
                self.results.append(error)
            return 0

        async def deep(event: evt.StoreEvent) -> int:
            async def inner() -> int:
                return await self.ask(event.assoc.send_c_echo)

            return await Deferred.fromCoroutine(inner())

        for handler in (plain, generator, deep):
            association = self.getting(handler)
            self.assertEqual([type(one) for one in self.results], [WouldDeadlock] * 3)
            self.close(association)

    def test_others_are_not_inside(self) -> None:
        """A request from elsewhere waits for the C-GET to end; so does one that a handler begins and does not wait for."""
        gate: Deferred[int] = Deferred()
        self.store = lambda event: gate
        association = self.associated()
        got = association.send_c_get(keys(), GET).when_done()
        echo = association.send_c_echo()
        self.network.flush()
        self.assertNoResult(echo)
        gate.callback(0)
        self.store = lambda event: 0
        self.network.flush()
        self.assertEqual(self.successResultOf(got).status, 0)
        self.assertEqual(self.successResultOf(echo), 0)
        self.close(association)

    def test_a_get_that_begins_later(self) -> None:
        """A call that waits for the window fails when C-GETs have taken all of it."""
        gate: Deferred[int] = Deferred()
        association = self.associated(2)
        self.scp.bind(evt.EVT_C_ECHO, lambda event: 0 if gate.called else gate)
        self.store = lambda event: self.ask(event.assoc.send_c_echo)
        echo = association.send_c_echo()
        first = association.send_c_get(keys(), GET).when_done()
        self.answers = 2
        second = association.send_c_get(keys(), GET).when_done()
        self.network.flush()
        self.assertEqual(self.results, [])
        gate.callback(0)
        self.network.flush()
        self.assertEqual(self.successResultOf(echo), 0)
        for ended in (first, second):
            self.assertEqual(self.successResultOf(ended).status, 0)
        self.assertIn(WouldDeadlock, [type(one) for one in self.results])
        self.store = lambda event: 0
        self.close(association)

    def test_streaming(self) -> None:
        """A handler that has not read its data set to the end gets no response behind that; afterwards it does."""
        tried: list[Any] = []

        @evt.streaming
        async def early(event: evt.StoreEvent) -> int:
            await self.ask(event.assoc.send_c_echo)
            await self.ask(event.assoc.release)
            async for _ in event.stream:
                pass
            return await self.ask(event.assoc.send_c_echo)

        @evt.streaming
        async def sink(event: evt.StoreEvent) -> int:
            data = event.stream.read()
            await self.ask(event.assoc.send_c_echo)
            tried.append(len(await data))
            return 0

        for size in (100, 3_000_000):
            for handler in (early, sink):
                self.results.clear()
                association = self.stored_by_acceptor(handler)
                self.assertEqual(self.network.result_of(association.send_c_store(instance(size))), 0)
                if handler is early:
                    self.assertEqual([type(one) for one in self.results[:2]], [WouldDeadlock] * 2)
                    self.assertIn("read the data set first", str(self.results[0]))
                self.assertEqual(self.results[-1], 0)
                self.network.result_of(association.release())
                self.server.shutdown()
                self.network.flush()
        self.assertEqual(len(tried), 2)

    def stored_by_acceptor(self, handler: Any) -> Association:
        """Return an association on which both sides may ask; the acceptor stores with *handler*."""
        self.scp.supported_contexts = []
        for context in CONTEXTS:
            self.scp.add_supported_context(context.abstract_syntax or "", ExplicitVRLittleEndian, True, True)
        self.server = self.listen((evt.EVT_C_STORE, handler))
        contexts = [build_context(context.abstract_syntax or "", ExplicitVRLittleEndian) for context in CONTEXTS]
        roles = [build_role(context.abstract_syntax or "", True, True) for context in CONTEXTS]
        return self.associate(contexts=contexts, ext_neg=roles)
