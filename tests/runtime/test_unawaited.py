"""
Calls that nobody waits for: what is logged about them, and the hint to a program that never runs the reactor.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError, ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.runtime.unawaited import Call, log_unawaited
from tests.memory import CONTEXTS, MemoryTestCase

SERVE = """
from dicomtwist import AE
ae = AE()
ae.add_supported_context("1.2.840.10008.1.1")
ae.add_requested_context("1.2.840.10008.1.1")
"""


class LogTests(MemoryTestCase):
    def lines(self) -> list[str]:
        """Return what was logged."""
        return [
            str(event["log_format"]).format(**event) for event in self.events if "waits for" in str(event["log_format"])
        ]

    def setUp(self) -> None:
        super().setUp()
        self.events: list[Any] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def test_start_server(self) -> None:
        """A server that cannot listen, and whose Deferred is kept but not waited for."""
        self.listen()
        kept = self.scp.start_server(104)
        self.network.flush()
        (line,) = self.lines()
        self.assertIn("start_server() failed", line)
        self.assertIn("104", line)
        self.failureResultOf(kept, CannotListenError)

    def test_associate(self) -> None:
        kept = self.scu.associate("127.0.0.1", 999)
        self.network.flush()
        (line,) = self.lines()
        self.assertIn("associate() failed", line)
        self.failureResultOf(kept)

    def test_what_is_waited_for(self) -> None:
        """Neither a call that something waits for is logged, nor one that succeeds, nor one that is cancelled."""
        self.listen()

        async def awaited() -> str:
            try:
                await self.scp.start_server(104)
            except CannotListenError:
                return "handled"
            return ""

        handled = Deferred.fromCoroutine(awaited())
        refused = self.scu.associate("127.0.0.1", 999).addErrback(lambda reason: None)
        good = self.scu.associate("127.0.0.1", 104, contexts=CONTEXTS)
        cancelled = self.scu.associate("127.0.0.1", 104)
        cancelled.cancel()
        self.network.flush()
        self.assertEqual(self.successResultOf(handled), "handled")
        self.successResultOf(refused)
        self.successResultOf(good).abort()
        self.failureResultOf(cancelled)
        self.network.flush()
        self.assertEqual(self.lines(), [])

    def test_a_clock_alone(self) -> None:
        """A fake clock that can do nothing later gets no line, and the failure is the caller's all the same."""
        failing: Deferred[None] = Deferred()
        self.assertIs(log_unawaited(failing, Clock(), "it"), failing)
        failing.errback(ValueError("no"))
        self.failureResultOf(failing, ValueError)


class CallTests(MemoryTestCase):
    """Programs that take the Deferred of a call for its result."""

    def test_async_with(self) -> None:
        """The call is a context manager, as its result is: it releases, and aborts if the block raises."""
        self.listen()
        found: list[Any] = []

        async def block(fails: bool) -> None:
            async with self.scu.associate("127.0.0.1", 104, contexts=CONTEXTS) as assoc:
                found.append(assoc)
                self.assertEqual(await assoc.send_c_echo(), 0)
                if fails:
                    raise ZeroDivisionError

        self.network.result_of(block(False))
        self.assertTrue(found[0].is_released)
        self.assertRaises(ZeroDivisionError, self.network.result_of, block(True))
        self.assertTrue(found[1].is_aborted)

        async def refused() -> None:
            async with self.scu.associate("127.0.0.1", 999, contexts=CONTEXTS):
                self.fail("there is nobody")

        self.assertRaises(ConnectionRefusedError, self.network.result_of, refused())

    def test_not_awaited(self) -> None:
        """An attribute of the result, or ``with``, says what to write."""
        self.listen()
        call = self.scu.associate("127.0.0.1", 104, contexts=CONTEXTS)
        error = self.assertRaises(AttributeError, getattr, call, "is_established")
        self.assertIn("associate() returns a Deferred, which has no 'is_established': await it", str(error))
        self.assertIn("dicomtwist.sync.connect()", str(error))
        for name in ("__deepcopy__", "__foo__"):
            self.assertFalse(hasattr(call, name))
        self.assertIn("Call at 0x", repr(copy.copy(call)))

        def enter() -> None:
            with call:  # type: ignore[attr-defined, unused-ignore]
                self.fail("it is no context manager")

        self.assertIn("write 'async with' in a coroutine", str(self.assertRaises(TypeError, enter)))
        self.network.result_of(call).abort()
        server = self.scp.start_server(105)
        self.assertIn("dicomtwist.sync.serve()", str(self.assertRaises(AttributeError, getattr, server, "shutdown")))
        self.network.result_of(server)

    def test_error_of_the_call(self) -> None:
        """A RuntimeError of the call itself is raised as it is."""

        async def fail() -> None:
            raise RuntimeError("its own")

        async def later(_: object) -> None:
            await waiting
            await fail()

        waiting: Deferred[None] = Deferred()

        async def awaited() -> None:
            await Call.of(later(None), self.network, "it()", "it()")

        result = Deferred.fromCoroutine(awaited())
        waiting.callback(None)
        self.assertEqual(str(self.failureResultOf(result, RuntimeError).value), "its own")

    def test_task_of_asyncio(self) -> None:
        """A task of asyncio cannot await it: the error names dicomtwist.asyncio, and nothing goes on behind it."""
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                f"""{SERVE}
import asyncio
async def main():
    server = await ae.start_server(("127.0.0.1", 0))
    try:
        await ae.associate("127.0.0.1", server.port)
    except RuntimeError as error:
        print(type(error).__name__, error)
    for _ in range(20):
        await asyncio.sleep(0.01)
    print(len(ae.active_associations))
asyncio.run(main())
""",
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("ReactorConflict a task of asyncio cannot await the Deferred of associate()", done.stdout)
        self.assertIn("call dicomtwist.asyncio.connect() there", done.stdout)
        self.assertEqual(done.stdout.splitlines()[-1], "0")


class HintTests(SynchronousTestCase):
    def run_script(self, text: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-c", SERVE + text], capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stderr

    def test_no_reactor(self) -> None:
        for call in ("start_server(('127.0.0.1', 0))", "associate('127.0.0.1', 1)"):
            status, errors = self.run_script(f"kept = ae.{call}\n")
            self.assertEqual(status, 0)
            self.assertIn(f"RuntimeWarning: {call.partition('(')[0]}() was called", errors)
            self.assertIn("reactor.run()", errors)

    def test_a_reactor(self) -> None:
        """A program that runs its reactor, or ends in another error, or calls nothing, gets no hint."""
        run = "from twisted.internet import reactor\nreactor.callLater(0, reactor.stop)\nreactor.run()\n"
        for text in (f"kept = ae.start_server(('127.0.0.1', 0))\n{run}", "", "ae.acceptor_factory()\n"):
            self.assertEqual(self.run_script(text), (0, ""))
        status, errors = self.run_script("kept = ae.start_server(('127.0.0.1', 0))\nraise ZeroDivisionError\n")
        self.assertEqual(status, 1)
        self.assertNotIn("RuntimeWarning", errors)
