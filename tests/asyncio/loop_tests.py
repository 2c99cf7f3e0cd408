"""
Tests of ``dicomtwist.asyncio``, which test_in_processes.py runs in a process without another reactor.

Each test runs on an event loop of its own, as with pytest-asyncio and anyio.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import unittest
from collections.abc import AsyncIterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from pydicom import Dataset
from pydicom.data import get_testdata_file
from twisted.internet.error import CannotListenError, ConnectionRefusedError

import dicomtwist.asyncio
import dicomtwist.sync
from dicomtwist import (
    AE,
    AssociationLost,
    AssociationRejected,
    AsyncOperationsWindow,
    NoAcceptedContexts,
    NoPresentationContext,
    OperationFailed,
    ReactorConflict,
    build_context,
    evt,
)
from dicomtwist.asyncio import connect, from_deferred, get_reactor, serve
from dicomtwist.sop_class import (
    CTImageStorage,
    ModalityPerformedProcedureStep,
    MRImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

FIND, GET = StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelGet
MOVE = StudyRootQueryRetrieveInformationModelMove
CT = str(get_testdata_file("CT_small.dcm"))
HERE = ("127.0.0.1", 0)

variable: ContextVar[str] = ContextVar("variable", default="")


def archive(*sop_classes: str) -> AE:
    """Return an AE that supports *sop_classes*, or those that the tests need."""
    ae = AE("ARCHIVE")
    for uid in sop_classes or (Verification, CTImageStorage, FIND, GET, MOVE, ModalityPerformedProcedureStep):
        ae.add_supported_context(uid, scu_role=True, scp_role=True)
    return ae


def study_keys() -> Dataset:
    keys = Dataset()
    keys.QueryRetrieveLevel = "STUDY"
    keys.StudyInstanceUID = ""
    return keys


def matches(number: int) -> Any:
    """Return a handler that answers with a number of matches, and notes in ``sent`` how many were asked of it."""

    async def find(event: evt.IdentifierEvent) -> AsyncIterator[tuple[int, Dataset]]:
        try:
            for index in range(number):
                match = Dataset()
                match.StudyInstanceUID = f"1.2.{index}"
                match.PatientComments = "x" * 10_000  # so that buffers do not hold all of them
                find.sent += 1  # type: ignore[attr-defined]
                yield 0xFF00, match
                await asyncio.sleep(0)
        finally:
            find.closed.set()  # type: ignore[attr-defined]

    find.sent = 0  # type: ignore[attr-defined]
    find.closed = asyncio.Event()  # type: ignore[attr-defined]
    return find


class LoopTestCase(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        asyncio.get_running_loop().set_debug(False)  # the test case sets it, and it takes long
        self.errors: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: self.errors.append(context))

    async def asyncTearDown(self) -> None:
        gc.collect()
        await asyncio.sleep(0)
        self.assertEqual(self.errors, [])

    async def serve(self, *handlers: Any, ae: AE | None = None) -> dicomtwist.asyncio.Server:
        return await self.enterAsyncContext(serve(ae or archive(), HERE, evt_handlers=list(handlers)))


class Clients(LoopTestCase):
    async def test_operations(self) -> None:
        """Each operation works under both of its names."""
        created: list[str] = []

        async def create(event: evt.CreateEvent) -> tuple[int, Dataset]:
            await asyncio.sleep(0)
            created.append(event.sop_instance_uid)
            return 0x0000, event.attribute_list

        server = await self.serve((evt.EVT_C_STORE, lambda event: 0x0000), (evt.EVT_N_CREATE, create))
        async with connect("127.0.0.1", server.port, ae_title="ARCHIVE", ae="CLIENT") as assoc:
            self.assertEqual((assoc.remote.ae_title, assoc.local.ae_title), ("ARCHIVE", "CLIENT"))
            self.assertEqual(await assoc.echo(), 0x0000)
            self.assertEqual(await assoc.send_c_echo(), 0x0000)
            self.assertEqual(await assoc.store(CT), 0x0000)
            with self.assertRaisesRegex(NoPresentationContext, r"by connect\(\.\.\., contexts=\[build_context\("):
                await assoc.n_create(Dataset(), ModalityPerformedProcedureStep, "1.2.3")
            with self.assertRaises(FileNotFoundError):
                await assoc.store("/nowhere.dcm")
        self.assertTrue(assoc.is_released)
        contexts = [ModalityPerformedProcedureStep]
        assoc = await connect("127.0.0.1", server.port, contexts=contexts)
        step = Dataset()
        step.PerformedProcedureStepStatus = "IN PROGRESS"
        status, answer = await assoc.send_n_create(step, ModalityPerformedProcedureStep, "1.2.3")
        self.assertEqual((status, answer, created), (0x0000, step, ["1.2.3"]))
        await assoc.release()
        self.assertTrue(assoc.is_released)

    async def test_failures(self) -> None:
        """The errors are those of the library."""
        server = await self.serve()
        with self.assertRaises(NoAcceptedContexts):
            async with connect("127.0.0.1", server.port, contexts=[MRImageStorage]):
                self.fail("not reached")
        with self.assertRaises(ConnectionRefusedError):
            await connect("127.0.0.1", 9)
        with self.assertRaises(CannotListenError):
            await serve(archive(), ("127.0.0.1", server.port))
        with self.assertRaises(TypeError):
            await connect("127.0.0.1", server.port, contexts=CTImageStorage)
        wrong: Any = "ARCHIVE"
        with self.assertRaisesRegex(TypeError, "serve\\(\\) needs an AE"):
            await serve(wrong, HERE)
        strict = archive()
        strict.require_called_aet = True
        other = await self.serve(ae=strict)
        with self.assertRaises(AssociationRejected):
            await connect("127.0.0.1", other.port, ae_title="WRONG")

    async def test_without_await(self) -> None:
        """Code that forgets to wait for an association or a server is told what to write."""
        connecting: Any = connect("127.0.0.1", 9)
        serving: Any = serve(AE("SCP"), HERE)
        with self.assertRaisesRegex(
            AttributeError, r"no 'echo' before it is awaited: .*'assoc = await connect\(\.\.\.\)'"
        ):
            connecting.echo()
        with self.assertRaisesRegex(
            AttributeError, r"no 'port' before it is awaited: .*'server = await serve\(\.\.\.\)'"
        ):
            serving.port  # noqa: B018
        for result in (connecting, serving):
            with self.assertRaisesRegex(TypeError, r"'async with .*'with dicomtwist\.sync\."), result:
                pass
            self.assertFalse(hasattr(result, "_ipython_display_"))

    async def test_several_titles(self) -> None:
        """``others`` may be any iterable, as an iterator that is gone through once."""
        first, second = archive(), archive()
        second.ae_title = "SECOND"
        second.require_called_aet = first.require_called_aet = True
        async with (
            serve(first, HERE, others=iter([second])) as server,
            connect("127.0.0.1", server.port, ae_title="SECOND") as assoc,
        ):
            self.assertEqual(await assoc.echo(), 0)

    async def test_many_at_once(self) -> None:
        """Tasks share an association; operations overlap in the window."""
        four = asyncio.Barrier(4)

        async def store(event: evt.StoreEvent) -> int:
            await four.wait()
            return 0x0000

        window = (evt.EVT_ASYNC_OPS, lambda event: (event.nr_invoked, event.nr_performed))
        server = await self.serve((evt.EVT_C_STORE, store), window)
        async with connect("127.0.0.1", server.port, ext_neg=[AsyncOperationsWindow(4, 1)]) as assoc:
            statuses = await asyncio.gather(*[assoc.store(CT) for _ in range(12)])
        self.assertEqual(set(statuses), {0x0000})

    async def test_block_that_raises(self) -> None:
        server = await self.serve()
        with self.assertRaises(KeyError):
            async with connect("127.0.0.1", server.port) as assoc:
                raise KeyError
        self.assertTrue(assoc.is_aborted)

    async def test_context_variables(self) -> None:
        """Handlers see those of the call of serve(), and the caller keeps its own."""
        seen: list[str] = []

        async def store(event: evt.StoreEvent) -> int:
            await asyncio.sleep(0)
            seen.append(variable.get())
            return 0x0000

        variable.set("server")
        server = await self.serve((evt.EVT_C_STORE, store))
        variable.set("client")
        async with connect("127.0.0.1", server.port) as assoc:
            await assoc.store(CT)
        self.assertEqual((seen, variable.get()), (["server"], "client"))


class Cancelling(LoopTestCase):
    async def test_request(self) -> None:
        """A request that is cancelled closes its connection."""
        closed = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            request.reschedule(0)
            with suppress(ConnectionResetError):
                await reader.read()
            closed.set()
            writer.close()

        listener = await asyncio.start_server(silent, *HERE)
        port = listener.sockets[0].getsockname()[1]
        with self.assertRaises(TimeoutError):
            async with asyncio.timeout(None) as request:
                await connect("127.0.0.1", port)
        await closed.wait()
        listener.close()

    async def test_at_each_moment(self) -> None:
        """Whenever a request is cancelled, no association is left."""
        server = await self.serve()
        for turns in range(12):
            task = asyncio.ensure_future(asyncio.wait_for(connect("127.0.0.1", server.port), 60))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await (await task).release()
            except asyncio.CancelledError:
                pass
        async with asyncio.timeout(10):
            while server.inner.factory.associations:
                await asyncio.sleep(0.01)

    async def test_operation(self) -> None:
        """An operation is given up; its association stays, or is aborted with its block."""
        release = asyncio.Event()

        async def store(event: evt.StoreEvent) -> int:
            limit.reschedule(0)
            await release.wait()
            return 0x0000

        server = await self.serve((evt.EVT_C_STORE, store))
        async with connect("127.0.0.1", server.port) as assoc:
            with self.assertRaises(TimeoutError):
                async with asyncio.timeout(None) as limit:
                    await assoc.store(CT)
            self.assertTrue(assoc.is_established)
            release.set()
            self.assertEqual(await assoc.echo(), 0x0000)
        release.clear()
        with self.assertRaises(TimeoutError):
            async with asyncio.timeout(None) as limit, connect("127.0.0.1", server.port) as assoc:
                await assoc.store(CT)
        self.assertTrue(assoc.is_aborted)
        release.set()

    async def test_query(self) -> None:
        """A loop that is left sends C-CANCEL: by break, by an exception, by a cancellation."""
        for leave in ("break", "raise", "timeout", "block"):
            find = matches(5_000)
            server = await self.serve((evt.EVT_C_FIND, find))
            async with connect("127.0.0.1", server.port) as assoc:
                if leave == "break":
                    async for _ in assoc.find(study_keys(), FIND):
                        break
                elif leave == "raise":
                    with self.assertRaises(KeyError):
                        async for _ in assoc.find(study_keys(), FIND):
                            raise KeyError
                elif leave == "timeout":
                    with self.assertRaises(TimeoutError):
                        async with asyncio.timeout(None) as limit:
                            async for _ in assoc.find(study_keys(), FIND):
                                limit.reschedule(0)
                                await asyncio.sleep(60)
                else:
                    async with assoc.find(study_keys(), FIND) as answers:
                        await anext(answers)
                async with asyncio.timeout(10):
                    await find.closed.wait()
                self.assertEqual(await assoc.echo(), 0x0000)
            self.assertLess(find.sent, 5_000)

    async def test_handler(self) -> None:
        """A handler of a peer that is gone is cancelled when it waits for the peer, and an iteration is closed."""
        find = matches(5_000)
        server = await self.serve((evt.EVT_C_FIND, find))
        assoc = await connect("127.0.0.1", server.port)
        answers = assoc.find(study_keys(), FIND)
        await anext(answers)
        assoc.abort()
        async with asyncio.timeout(10):
            await find.closed.wait()
        await assoc.when_ended()


class Querying(LoopTestCase):
    async def test_all(self) -> None:
        server = await self.serve((evt.EVT_C_FIND, matches(250)))
        async with connect("127.0.0.1", server.port) as assoc:
            taken = [identifier async for status, identifier in assoc.find(study_keys(), FIND) if status.is_pending]
            self.assertEqual(len(taken), 250)
            answers = assoc.send_c_find(study_keys(), FIND)
            self.assertEqual(len(await answers.collect()), 250)
            self.assertEqual((answers.status, answers.lost.count), (0x0000, 0))

    async def test_association_that_is_not_kept(self) -> None:
        """Answers keep their association; without them it is aborted."""
        server = await self.serve((evt.EVT_C_FIND, matches(300)))
        number = 0
        async for _ in (await connect("127.0.0.1", server.port)).find(study_keys(), FIND):
            number += 1
        self.assertEqual(number, 301)
        self.assertEqual(len(await (await connect("127.0.0.1", server.port)).find(study_keys(), FIND).collect()), 300)
        gc.collect()
        async with asyncio.timeout(10):
            while server.active_associations:
                await asyncio.sleep(0.01)

    async def test_back_pressure(self) -> None:
        """The peer waits for a loop that takes its time."""
        find = matches(5_000)
        server = await self.serve((evt.EVT_C_FIND, find))
        async with connect("127.0.0.1", server.port) as assoc, assoc.find(study_keys(), FIND) as answers:
            await anext(answers)
            before = -1
            while find.sent != before:
                before = find.sent
                await asyncio.sleep(0.2)
            self.assertLess(find.sent, 5_000)

    async def test_failing(self) -> None:
        server = await self.serve((evt.EVT_C_FIND, lambda event: iter([(0xA700, None)])))
        async with connect("127.0.0.1", server.port) as assoc:
            with self.assertRaises(OperationFailed):
                await assoc.find(study_keys(), FIND).collect()

    async def test_get(self) -> None:
        async def get(event: evt.IdentifierEvent) -> AsyncIterator[Any]:
            yield 2
            for _ in range(2):
                await asyncio.sleep(0)
                yield 0xFF00, CT

        stored: list[str] = []

        async def store(event: evt.StoreEvent) -> int:
            await asyncio.sleep(0)
            stored.append(event.dataset.Modality)
            return 0x0000

        server = await self.serve((evt.EVT_C_GET, get))
        async with connect("127.0.0.1", server.port) as assoc:
            with self.assertRaises(NoPresentationContext):
                assoc.get(study_keys(), GET)
        async with connect("127.0.0.1", server.port, receive=[CTImageStorage]) as assoc:
            with self.assertRaises(ValueError):
                assoc.get(study_keys(), GET)
            assoc.bind(evt.EVT_C_STORE, store)
            result = await assoc.get(study_keys(), GET).when_done()
            self.assertEqual((result.suboperations.completed, stored), (2, ["CT", "CT"]))
            statuses = [status async for status, _ in assoc.get(study_keys(), GET)]
            self.assertEqual([int(status) for status in statuses], [0xFF00, 0x0000])

    async def test_move(self) -> None:
        stored: list[str] = []

        def keep(event: evt.StoreEvent) -> int:
            stored.append(event.dataset.Modality)
            return 0x0000

        destination = await self.serve((evt.EVT_C_STORE, keep))

        async def move(event: evt.IdentifierEvent) -> AsyncIterator[Any]:
            yield "127.0.0.1", destination.port
            yield 1
            yield 0xFF00, CT

        server = await self.serve((evt.EVT_C_MOVE, move))
        async with connect("127.0.0.1", server.port) as assoc:
            result = await assoc.move(study_keys(), "DESTINATION", MOVE).when_done()
        self.assertEqual((result.suboperations.completed, stored), (1, ["CT"]))


class Handlers(LoopTestCase):
    async def test_streaming(self) -> None:
        """A streaming handler awaits the chunks, which are Deferreds, and what asyncio awaits."""
        sizes: list[int] = []

        @evt.streaming
        async def store(event: evt.StoreEvent) -> int:
            size = 0
            async for chunk in event.stream:
                size += len(chunk)
                await asyncio.sleep(0)
            sizes.append(size)
            return 0x0000

        server = await self.serve((evt.EVT_C_STORE, store))
        async with connect("127.0.0.1", server.port) as assoc:
            self.assertEqual(await assoc.store(CT), 0x0000)
        self.assertGreater(sizes[0], 30_000)

    async def test_bound_to_the_ae(self) -> None:
        """Handlers of an AE and of events of the negotiation may be coroutines of asyncio as well."""
        ae = archive()

        async def identity(event: evt.Event) -> tuple[bool, None]:
            await asyncio.sleep(0)
            return event.primary_field == b"alice", None

        async def store(event: evt.StoreEvent) -> int:
            await asyncio.sleep(0)
            raise ValueError("it fails")

        ae.bind(evt.EVT_USER_ID, identity)
        ae.bind(evt.EVT_C_STORE, store)
        server = await self.serve(ae=ae)
        alice = dicomtwist.UserIdentity(1, b"alice")
        async with connect("127.0.0.1", server.port, ext_neg=[alice]) as assoc:
            self.assertEqual(await assoc.store(CT), 0xC211)
        with self.assertRaises(AssociationRejected):
            await connect("127.0.0.1", server.port, ext_neg=[dicomtwist.UserIdentity(1, b"mallory")])

    async def test_requests_from_handlers(self) -> None:
        """A handler may send on."""
        behind = await self.serve((evt.EVT_C_STORE, lambda event: 0x0000))

        async def forward(event: evt.StoreEvent) -> int:
            async with connect("127.0.0.1", behind.port) as onward:
                status = await onward.store(event.encoded_dataset())
            return int(status)

        server = await self.serve((evt.EVT_C_STORE, forward))
        async with connect("127.0.0.1", server.port) as assoc:
            self.assertEqual(await assoc.store(CT), 0x0000)

    async def test_grace(self) -> None:
        """A server that stops lets associations end, if it was given the time."""
        async with serve(archive(), HERE, grace=10) as server:
            assoc = await connect("127.0.0.1", server.port)
            asyncio.get_running_loop().call_later(0.2, lambda: asyncio.ensure_future(assoc.release()))
        self.assertTrue(assoc.is_released)


class Loops(unittest.TestCase):
    def test_one_after_the_other(self) -> None:
        """An AE works on several loops; what a loop leaves open is closed with it."""
        ae = archive()

        async def main() -> Any:
            server = await serve(ae, HERE)
            assoc = await connect("127.0.0.1", server.port)
            self.assertEqual(await assoc.echo(), 0x0000)
            return server, assoc

        for _ in range(3):
            server, assoc = asyncio.run(main())
            self.assertFalse(assoc.is_established)
            self.assertEqual(server.addresses, [])

    def test_a_loop_that_is_only_closed(self) -> None:
        """A loop that is closed without a shutdown: its connections are closed when the next one begins."""

        async def main() -> Any:
            server = await serve(archive(), HERE)
            return await connect("127.0.0.1", server.port)

        loop = asyncio.new_event_loop()
        assoc = loop.run_until_complete(main())
        loop.close()
        asyncio.run(main())
        self.assertFalse(assoc.is_established)
        self.assertIsInstance(assoc.end_reason, AssociationLost)

    def test_in_turns(self) -> None:
        """Two loops that run in turns: connections move on with the reactor."""
        first, second = asyncio.new_event_loop(), asyncio.new_event_loop()

        async def begin() -> Any:
            server = await serve(archive(), HERE)
            return server, await connect("127.0.0.1", server.port)

        async def echo(assoc: Any) -> Any:
            get_reactor()
            return await assoc.echo()

        server, assoc = first.run_until_complete(begin())
        other_server, other = second.run_until_complete(begin())
        for loop, one in ((second, assoc), (first, other), (first, assoc)):
            self.assertEqual(loop.run_until_complete(echo(one)), 0x0000)
        for loop in (first, second):
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
        del server, other_server

    def test_another_thread(self) -> None:
        """A second loop at the same time is refused; a thread runs coroutines on the first one."""

        async def refused() -> None:
            with self.assertRaisesRegex(ReactorConflict, "run_coroutine_threadsafe"):
                await connect("127.0.0.1", 9)

        async def main() -> None:
            async with serve(archive(), HERE) as server:
                await asyncio.to_thread(asyncio.run, refused())
                loop = asyncio.get_running_loop()

                async def echo() -> Any:
                    async with connect("127.0.0.1", server.port) as assoc:
                        return await assoc.echo()

                def elsewhere() -> Any:
                    return asyncio.run_coroutine_threadsafe(echo(), loop).result(30)

                self.assertEqual(await asyncio.to_thread(elsewhere), 0x0000)

        asyncio.run(main())

    def test_sync_beside_it(self) -> None:
        """Calls that block work in other threads, and are refused in that of the loop."""

        def echo(port: int) -> Any:
            with dicomtwist.sync.connect("127.0.0.1", port) as assoc:
                return assoc.echo()

        async def main() -> None:
            async with serve(archive(), HERE) as server:
                with self.assertRaisesRegex(ReactorConflict, "asyncio.to_thread"):
                    echo(server.port)
                self.assertEqual(await asyncio.to_thread(echo, server.port), 0x0000)

        asyncio.run(main())
        # Without a loop, the reactor moves to a thread, and from there to the next loop.
        with dicomtwist.sync.serve(archive(), HERE) as blocking:
            self.assertEqual(echo(blocking.port), 0x0000)
            with self.assertRaisesRegex(ReactorConflict, "dicomtwist.sync has"):
                asyncio.run(main())
        asyncio.run(main())
        self.assertEqual([one.name for one in threading.enumerate() if one.name == "dicomtwist-sync"], [])

    def test_no_loop(self) -> None:
        with self.assertRaisesRegex(ReactorConflict, "no event loop"):
            get_reactor()

    def test_deferreds(self) -> None:
        """Deferreds of an AE work without the face, on one loop after the other."""
        scp, scu = archive(), AE("SCU")
        scu.add_requested_context(Verification)

        async def main() -> None:
            server = await from_deferred(scp.start_server(HERE))
            assoc = await from_deferred(scu.associate("127.0.0.1", server.port))
            self.assertEqual(await from_deferred(assoc.send_c_echo()), 0x0000)
            await from_deferred(assoc.release())
            await from_deferred(scp.shutdown())

        asyncio.run(main())
        asyncio.run(main())

    def test_contexts(self) -> None:
        """Contexts may be given as UIDs, as objects, or by the AE."""
        ae = AE("SCU")
        ae.add_requested_context(Verification)

        async def main() -> None:
            async with serve(archive(), HERE) as server:
                for arguments, number in (
                    ({"ae": ae}, 1),
                    ({"contexts": [Verification, build_context(CTImageStorage)]}, 2),
                    ({"contexts": [Verification], "receive": [CTImageStorage, FIND]}, 3),
                    ({}, 128),
                ):
                    async with connect("127.0.0.1", server.port, **arguments) as assoc:
                        self.assertEqual(len(assoc.accepted_contexts + assoc.rejected_contexts), number)

        asyncio.run(main())


if __name__ == "__main__":
    import sys

    if sys.argv[1:2] == ["uvloop"]:
        import uvloop

        del sys.argv[1]
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    unittest.main()
