"""Tests of ``dicomtwist.sync``, which test_in_processes.py runs in a process without a reactor."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
import unittest
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from pydicom import Dataset
from pydicom.data import get_testdata_file
from twisted.internet.error import ConnectionRefusedError

import dicomtwist
from dicomtwist import (
    AE,
    AssociationRejected,
    NoPresentationContext,
    OperationFailed,
    ReactorConflict,
    WouldDeadlock,
    build_role,
    evt,
)
from dicomtwist.sop_class import (
    CTImageStorage,
    ModalityPerformedProcedureStep,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)
from dicomtwist.sync import Server, connect, serve

FIND, GET = StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelGet
MOVE = StudyRootQueryRetrieveInformationModelMove
COMMITMENT, COMMITMENT_INSTANCE = StorageCommitmentPushModel, StorageCommitmentPushModelInstance
CT = str(get_testdata_file("CT_small.dcm"))
HERE = ("127.0.0.1", 0)

variable: ContextVar[str] = ContextVar("variable", default="")


def archive() -> AE:
    ae = AE("ARCHIVE")
    for uid in (Verification, CTImageStorage, FIND, GET, MOVE, ModalityPerformedProcedureStep):
        ae.add_supported_context(uid, scu_role=True, scp_role=True)
    return ae


def study_keys() -> Dataset:
    keys = Dataset()
    keys.QueryRetrieveLevel = "STUDY"
    keys.StudyInstanceUID = ""
    return keys


class Find:
    """A handler with many large matches: ``sent`` counts them, ``closed`` is set when the generator is closed."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.sent = 0
        self.began, self.closed = threading.Event(), threading.Event()

    def __call__(self, event: evt.IdentifierEvent) -> Iterator[tuple[int, Dataset]]:
        try:
            for index in range(self.number):
                match = Dataset()
                match.StudyInstanceUID = f"1.2.{index}"
                match.PatientComments = "x" * 10_000
                self.sent += 1
                self.began.set()
                yield 0xFF00, match
        finally:
            self.closed.set()


def in_child(function: Callable[[], object]) -> str:
    """Call *function* in a process that is forked off, and return its result as text."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = str(function())
        except BaseException as error:
            text = repr(error)
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        text = file.read()
    os.waitpid(child, 0)
    return text


def echo_to(port: int) -> str:
    with connect(addr="127.0.0.1", port=port) as assoc:
        return str(assoc.echo())


class SyncTestCase(unittest.TestCase):
    def serve(self, *handlers: Any, ae: AE | None = None) -> Server:
        return self.enterContext(serve(ae or archive(), HERE, evt_handlers=list(handlers)))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)


class Operations(SyncTestCase):
    def test_operations(self) -> None:
        """Each operation works under both of its names."""
        server = self.serve(
            (evt.EVT_C_STORE, lambda event: 0x0000), (evt.EVT_N_CREATE, lambda event: (0x0000, event.attribute_list))
        )
        with connect("127.0.0.1", server.port, ae_title="ARCHIVE", ae="CLIENT") as assoc:
            self.assertEqual((assoc.remote.ae_title, assoc.local.ae_title), ("ARCHIVE", "CLIENT"))
            self.assertEqual((assoc.echo(), assoc.send_c_echo()), (0x0000, 0x0000))
            self.assertEqual((assoc.store(CT), assoc.send_c_store(CT)), (0x0000, 0x0000))
            with self.assertRaises(FileNotFoundError):
                assoc.store("/nowhere.dcm")
            with self.assertRaisesRegex(NoPresentationContext, r"by connect\(\.\.\., contexts=\[build_context\("):
                assoc.n_create(Dataset(), ModalityPerformedProcedureStep, "1.2.3")
        self.assertTrue(assoc.is_released)
        with self.assertRaises(dicomtwist.NotEstablished):
            assoc.echo()
        step = Dataset()
        step.PerformedProcedureStepStatus = "IN PROGRESS"
        assoc = connect("127.0.0.1", server.port, contexts=[ModalityPerformedProcedureStep])
        self.assertEqual(assoc.n_create(step, ModalityPerformedProcedureStep, "1.2.3"), (0x0000, step))
        assoc.release()

    def test_failures(self) -> None:
        """The errors are those of the library, unchanged."""
        with self.assertRaises(ConnectionRefusedError):
            connect("127.0.0.1", 9)
        with self.assertRaises(TypeError):
            connect("127.0.0.1", 9, contexts=Verification)
        with self.assertRaises(TypeError):
            connect(port=9)
        wrong: Any = "ARCHIVE"
        with self.assertRaisesRegex(TypeError, "serve\\(\\) needs an AE"):
            serve(wrong, HERE)
        strict = archive()
        strict.require_called_aet = True
        server = self.serve(ae=strict)
        with self.assertRaises(AssociationRejected):
            connect("127.0.0.1", server.port, ae_title="WRONG")
        with self.assertRaises(KeyError), connect("127.0.0.1", server.port, ae_title="ARCHIVE") as assoc:
            raise KeyError
        self.assertTrue(assoc.is_aborted)

    def test_find(self) -> None:
        """All matches arrive, in their order; a loop that is left cancels the query."""
        server = self.serve((evt.EVT_C_FIND, Find(300)))
        with connect("127.0.0.1", server.port) as assoc:
            uids = [match.StudyInstanceUID for status, match in assoc.find(study_keys(), FIND) if match is not None]
            self.assertEqual(uids, [f"1.2.{index}" for index in range(300)])
            answers = assoc.find(study_keys(), FIND)
            self.assertEqual(len(answers.collect()), 300)
            self.assertEqual((answers.status, answers.lost.count), (0x0000, 0))

    def test_leave(self) -> None:
        for leave in ("break", "raise", "block", "next", "drop"):
            find = Find(5_000)
            server = self.serve((evt.EVT_C_FIND, find))
            with connect("127.0.0.1", server.port) as assoc:
                if leave == "break":
                    for _ in assoc.find(study_keys(), FIND):
                        break
                elif leave == "raise":
                    with self.assertRaises(KeyError):
                        for _ in assoc.find(study_keys(), FIND):
                            raise KeyError
                elif leave == "block":
                    with assoc.find(study_keys(), FIND) as answers:
                        next(answers)
                elif leave == "next":
                    next(assoc.find(study_keys(), FIND))
                else:
                    answers = assoc.find(study_keys(), FIND)
                    next(iter(answers))
                    del answers
                gc.collect()
                self.assertTrue(find.closed.wait(30), leave)
                self.assertEqual(assoc.echo(), 0x0000)
            self.assertLess(find.sent, 5_000, leave)

    def test_back_pressure(self) -> None:
        """The peer waits for a loop that takes its time."""
        find = Find(5_000)
        server = self.serve((evt.EVT_C_FIND, find))
        with connect("127.0.0.1", server.port) as assoc, assoc.find(study_keys(), FIND) as answers:
            next(answers)
            before = -1
            while find.sent != before:
                before = find.sent
                time.sleep(0.2)
            self.assertLess(find.sent, 5_000)

    def test_association_that_is_not_kept(self) -> None:
        """Answers keep their association."""
        server = self.serve((evt.EVT_C_FIND, Find(300)))
        statuses = [int(status) for status, _ in connect("127.0.0.1", server.port).find(study_keys(), FIND)]
        self.assertEqual(len(statuses), 301)
        self.assertEqual(len(connect("127.0.0.1", server.port).find(study_keys(), FIND).collect()), 300)
        self.wait_until(lambda: not server.active_associations)

    def test_failing_query(self) -> None:
        server = self.serve((evt.EVT_C_FIND, lambda event: iter([(0xA700, None)])))
        with connect("127.0.0.1", server.port) as assoc:
            with self.assertRaises(OperationFailed):
                assoc.find(study_keys(), FIND).collect()
            self.assertEqual([int(status) for status, _ in assoc.find(study_keys(), FIND)], [0xA700])

    def test_retrieve(self) -> None:
        """C-GET and C-MOVE; the handlers of both sides may block."""
        stored: list[str] = []

        def store(event: evt.StoreEvent) -> int:
            time.sleep(0.01)
            stored.append(event.dataset.Modality)
            return 0x0000

        destination = self.serve((evt.EVT_C_STORE, store))

        def get(event: evt.IdentifierEvent) -> Iterator[Any]:
            yield 2
            for _ in range(2):
                time.sleep(0.01)
                yield 0xFF00, CT

        def move(event: evt.IdentifierEvent) -> Iterator[Any]:
            yield "127.0.0.1", destination.port
            yield from get(event)

        server = self.serve((evt.EVT_C_GET, get), (evt.EVT_C_MOVE, move))
        with connect("127.0.0.1", server.port) as assoc:
            with self.assertRaises(NoPresentationContext):
                assoc.get(study_keys(), GET)
            self.assertEqual(assoc.move(study_keys(), "STORE", MOVE).when_done().suboperations.completed, 2)
        handlers = [(evt.EVT_C_STORE, store)]
        with connect("127.0.0.1", server.port, receive=[CTImageStorage], evt_handlers=handlers) as assoc:
            retrieval = assoc.get(study_keys(), GET)
            self.assertEqual([int(status) for status, _ in retrieval], [0xFF00, 0x0000])
            self.assertEqual((retrieval.suboperations.completed, len(stored)), (2, 4))


class Handlers(SyncTestCase):
    def test_threads_of_handlers(self) -> None:
        """Functions run in worker threads; coroutines in that of the reactor."""
        names: list[str] = []

        def store(event: evt.StoreEvent) -> int:
            names.append(threading.current_thread().name)
            return 0x0000

        async def echo(event: evt.Event) -> int:
            names.append(threading.current_thread().name)
            with self.assertRaises(ReactorConflict):
                connect("127.0.0.1", 9)
            return 0x0000

        server = self.serve((evt.EVT_C_STORE, store))
        server.bind(evt.EVT_C_ECHO, echo)
        with connect("127.0.0.1", server.port) as assoc:
            assoc.store(CT)
            self.assertEqual(assoc.echo(), 0x0000)
            server.unbind(evt.EVT_C_STORE, store)
            self.assertEqual(assoc.store(CT), 0xC211)
        self.assertEqual((names[0].startswith("PoolThread"), names[1:]), (True, ["dicomtwist-sync"]))

    def test_handler_that_connects(self) -> None:
        """A handler in a worker thread may use the module itself."""
        behind = self.serve((evt.EVT_C_STORE, lambda event: 0x0000))

        def forward(event: evt.StoreEvent) -> int:
            with connect("127.0.0.1", behind.port) as assoc:
                return int(assoc.store(event.encoded_dataset()))

        server = self.serve((evt.EVT_C_STORE, forward))
        with connect("127.0.0.1", server.port) as assoc:
            self.assertEqual(assoc.store(CT), 0x0000)

    def test_callables(self) -> None:
        """Objects, methods and functions that return a coroutine are handlers as well."""

        class Handler:
            async def __call__(self, event: evt.Event) -> int:
                return 0x0000

            async def method(self, event: evt.Event, status: int) -> int:
                return status

        async def coroutine() -> int:
            return 0xA700

        server = self.serve((evt.EVT_C_ECHO, Handler()))
        for handler, arguments, status in (
            (Handler().method, [0xA701], 0xA701),
            (lambda event: coroutine(), None, 0xA700),
            (lambda event, status: status, [0xA702], 0xA702),
        ):
            server.bind(evt.EVT_C_STORE, handler, arguments)
            with connect("127.0.0.1", server.port) as assoc:
                self.assertEqual((assoc.echo(), assoc.store(CT)), (0x0000, status))

    def test_generator_that_raises(self) -> None:
        def find(event: evt.IdentifierEvent) -> Iterator[Any]:
            match = Dataset()
            match.StudyInstanceUID = "1.2"
            yield 0xFF00, match
            raise ValueError("it fails")

        server = self.serve((evt.EVT_C_FIND, find))
        with connect("127.0.0.1", server.port) as assoc:
            statuses = [int(status) for status, _ in assoc.find(study_keys(), FIND)]
        self.assertEqual(statuses, [0xFF00, 0xC311])


class HandlersThatRequest(SyncTestCase):
    """Handlers in worker threads that make requests, on their own association and on others."""

    def commit(self, handler: Callable[[Any], Any]) -> tuple[Any, list[Any], list[Any]]:
        """Request a commitment of *handler*, and return the status, and the events and associations that each side has had."""
        ae = AE("COMMITTER")
        ae.add_supported_context(COMMITMENT)
        self.accepted: list[Any] = []
        handlers = [(evt.EVT_N_ACTION, handler), (evt.EVT_ACCEPTED, lambda event: self.accepted.append(event.assoc))]
        server = serve(ae, HERE, evt_handlers=handlers)
        self.addCleanup(server.shutdown)
        reported: list[Any] = []
        came = threading.Event()

        def report(event: evt.EventReportEvent) -> int:
            reported.append(str(event.event_information.TransactionUID))
            came.set()
            return 0x0000

        request = Dataset()
        request.TransactionUID = "1.2.3"
        with connect(
            "127.0.0.1", server.port, contexts=[COMMITMENT], evt_handlers=[(evt.EVT_N_EVENT_REPORT, report)]
        ) as assoc:
            status, _ = assoc.n_action(request, 1, COMMITMENT, COMMITMENT_INSTANCE)
            self.assertTrue(came.wait(30))
            self.assertTrue(assoc.is_established)
        return status, reported, self.accepted

    def test_on_the_association_of_the_event(self) -> None:
        """A handler reports on the association that the request came by, before it answers, as scripts for pynetdicom do."""
        answers: list[Any] = []

        def act(event: Any) -> int:
            answers.append(
                event.assoc.send_n_event_report(event.action_information, 1, COMMITMENT, COMMITMENT_INSTANCE)
            )
            return 0x0000

        self.assertEqual(self.commit(act)[:2], (0x0000, ["1.2.3"]))
        self.assertEqual([int(status) for status, _ in answers], [0x0000])

    def test_in_a_thread_of_its_own(self) -> None:
        """So does a thread that it starts, after the answer; the association stays open without the handler."""
        answers: list[Any] = []
        threads: list[threading.Thread] = []

        def tell(assoc: Any, information: Dataset) -> None:
            answers.append(assoc.n_event_report(information, 1, COMMITMENT, COMMITMENT_INSTANCE))

        def act(event: Any) -> int:
            threads.append(threading.Thread(target=tell, args=(event.assoc, event.action_information)))
            threads[0].start()
            return 0x0000

        self.assertEqual(self.commit(act)[:2], (0x0000, ["1.2.3"]))
        threads[0].join(30)
        self.assertEqual([int(status) for status, _ in answers], [0x0000])

    def test_one_association(self) -> None:
        """Handlers of notifications and of requests find one key of a dict, with the names of pynetdicom."""
        seen: list[Any] = []

        def act(event: Any) -> int:
            seen.append((event.assoc, event.assoc.name, event.assoc.was_established, {event.assoc: 1}))
            event.assoc.send_n_event_report(event.action_information, 1, COMMITMENT, COMMITMENT_INSTANCE)
            return 0x0000

        accepted = self.commit(act)[2]
        (assoc, name, was_established, keys), [inner] = seen[0], accepted
        self.assertEqual((assoc, inner, {inner, assoc}), (inner, assoc, {inner}))
        self.assertEqual((name, was_established, keys[inner]), (inner.name, True, 1))
        self.assertNotEqual(assoc, object())

    def test_would_deadlock(self) -> None:
        """A C-GET of a handler whose C-STORE operations would wait for the handler fails at once."""
        failures: list[BaseException] = []

        def store(event: Any) -> int:
            try:
                event.assoc.get(study_keys(), GET).when_done()
            except BaseException as error:
                failures.append(error)
            return 0x0000

        server = self.serve()
        server.bind(evt.EVT_C_STORE, store)
        roles = [build_role(GET, scp_role=True, scu_role=True)]
        with connect("127.0.0.1", server.port, contexts=[GET], receive=[CTImageStorage], ext_neg=roles) as assoc:
            self.assertEqual(assoc.store(CT), 0x0000)
        self.assertEqual([type(error) for error in failures], [WouldDeadlock])

    def test_many_that_connect_to_a_host(self) -> None:
        """More handlers than a reactor has threads request associations; the look-up of the host needs a thread as well."""
        number = 16
        behind = self.serve((evt.EVT_C_STORE, lambda event: 0x0000))
        together = threading.Barrier(number)

        def forward(event: evt.StoreEvent) -> Any:
            together.wait(30)
            with connect("localhost", behind.port, contexts=[CTImageStorage]) as assoc:
                return assoc.store(event.dataset)

        server = self.serve((evt.EVT_C_STORE, forward))
        statuses: list[int] = []

        def send() -> None:
            with connect("127.0.0.1", server.port, contexts=[CTImageStorage]) as assoc:
                statuses.append(int(assoc.store(CT)))

        threads = [threading.Thread(target=send) for _ in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.assertEqual(statuses, [0x0000] * number)


class Threads(SyncTestCase):
    def test_several(self) -> None:
        """Threads share an association, and have their own."""
        server = self.serve((evt.EVT_C_STORE, lambda event: 0x0000))
        results: list[int] = []

        def work(assoc: Any) -> None:
            for _ in range(10):
                results.append(assoc.echo())
                results.append(assoc.store(CT))
            results.append(0 if echo_to(server.port) == "0x0000 Success" else 1)

        with connect("127.0.0.1", server.port) as assoc:
            threads = [threading.Thread(target=work, args=(assoc,)) for _ in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(results, [0] * 126)

    def test_context_variables(self) -> None:
        seen: list[str] = []

        async def echo(event: evt.Event) -> int:
            seen.append(variable.get())
            return 0x0000

        variable.set("server")
        server = self.serve((evt.EVT_C_ECHO, echo))
        echo_to(server.port)
        self.assertEqual(seen, ["server"])

    def test_dropped(self) -> None:
        """An association that nobody has any more is aborted."""
        server = self.serve()
        assoc = connect("127.0.0.1", server.port)
        self.assertEqual(len(server.active_associations), 1)
        del assoc
        gc.collect()
        self.wait_until(lambda: not server.active_associations)

    def test_server_that_waits(self) -> None:
        server = self.serve()
        self.assertFalse(server.wait(0.01))
        threading.Timer(0.1, server.shutdown).start()
        self.assertTrue(server.wait(30))
        with self.assertRaises(ConnectionRefusedError):
            connect("127.0.0.1", server.port if server.addresses else 9)

    def test_fork(self) -> None:
        """A process that is forked off has nothing of its parent's, and may connect on its own."""
        server = self.serve()
        used = AE("USED")
        with connect("127.0.0.1", server.port, ae=used) as assoc:
            self.assertIn("belongs to the process", in_child(assoc.echo))
            self.assertEqual(in_child(lambda: echo_to(server.port)), "0x0000 Success")
            self.assertIn("uses another reactor", in_child(lambda: connect("127.0.0.1", server.port, ae=used)))
            with multiprocessing.get_context("fork").Pool(2) as pool:
                self.assertEqual(pool.map(echo_to, [server.port] * 4), ["0x0000 Success"] * 4)
            self.assertEqual(assoc.echo(), 0x0000)
        self.assertTrue(assoc.is_released)


class CtrlC(SyncTestCase):
    """A signal interrupts each call in the main thread."""

    def interrupted(self, function: Callable[[], object], seconds: float, began: threading.Event | None = None) -> None:
        """Call *function*, and send the signal *seconds* after *began*."""

        def interrupt() -> None:
            if began is not None:
                began.wait(30)
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        with self.assertRaises(KeyboardInterrupt):
            thread.start()
            function()
            time.sleep(30)  # if it was over before the signal
        thread.join()

    def test_operations(self) -> None:
        began, release = threading.Event(), threading.Event()
        self.addCleanup(release.set)
        find = Find(5_000)

        def store(event: evt.StoreEvent) -> int:
            began.set()
            release.wait(30)
            return 0x0000

        server = self.serve((evt.EVT_C_STORE, store), (evt.EVT_C_FIND, find))

        def session(work: Callable[[Any], object]) -> Callable[[], object]:
            def run() -> None:
                with connect("127.0.0.1", server.port) as assoc:
                    work(assoc)

            return run

        def slow_loop(assoc: Any) -> None:
            for _ in assoc.find(study_keys(), FIND):
                time.sleep(0.01)

        self.interrupted(session(lambda assoc: assoc.store(CT)), 0, began)
        self.interrupted(session(slow_loop), 0.1, find.began)
        self.assertTrue(find.closed.wait(30))
        release.set()
        self.wait_until(lambda: not server.active_associations)
        self.assertEqual(echo_to(server.port), "0x0000 Success")

    def test_request(self) -> None:
        """A request that is interrupted leaves no association, whenever that happens."""

        def identity(event: evt.Event) -> tuple[bool, None]:
            time.sleep(0.02)
            return True, None

        server = self.serve((evt.EVT_USER_ID, identity))
        alice = [dicomtwist.UserIdentity(1, b"alice")]
        for seconds in (0.0, 0.005, 0.02, 0.04):
            self.interrupted(lambda: connect("127.0.0.1", server.port, ext_neg=alice), seconds)
        gc.collect()
        self.wait_until(lambda: not server.active_associations)


if __name__ == "__main__":
    unittest.main()
