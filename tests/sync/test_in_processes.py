"""``dicomtwist.sync`` in processes of its own, and in a thread beside the reactor of the tests."""

from __future__ import annotations

import os
import sys
import time

from twisted.internet import reactor
from twisted.internet.error import ConnectError
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

import dicomtwist.sync
from dicomtwist import AE, AssociationError, ReactorConflict, build_context, evt
from dicomtwist.sop_class import Verification
from tests import peers
from tests.certificates import Authority


class Processes(TestCase):
    timeout = 120

    async def check(self, code: str, *arguments: object) -> str:
        """Run Python code, and return what it prints."""
        result = await peers.run(sys.executable, "-W", "error::RuntimeWarning", "-c", code, *arguments)
        self.assertEqual(result.code, 0, result.text)
        return str(result.text)

    async def test_threads(self) -> None:
        result = await peers.run(sys.executable, "-m", "tests.sync.thread_tests")
        self.assertEqual(result.code, 0, result.text)

    async def test_end_of_the_program(self) -> None:
        """A program that ends with an association open ends at once, and the peer gets an A-ABORT."""
        aborts: list[object] = []
        scp = AE("SCP")
        scp.add_supported_context(Verification)
        scp.bind(evt.EVT_ABORTED, lambda event: aborts.append(event.reason))
        self.addCleanup(scp.shutdown)
        server = await scp.start_server(("127.0.0.1", 0))
        start = time.monotonic()
        self.assertEqual(await self.check(LEFT_OPEN, server.port), "0x0000 Success\n")
        self.assertLess(time.monotonic() - start, 20)
        while not aborts:
            await deferLater(reactor, 0.01)
        self.assertIn("aborted by the peer", str(aborts[0]))

    async def test_ctrl_c_ends_a_server(self) -> None:
        """``wait()`` returns at Ctrl-C with the server stopped, and the script goes on without a traceback."""
        script = await peers.start(self, sys.executable, "-c", SERVED)
        await script.wait_for("port")
        script.signal("INT")
        result = await script.wait()
        self.assertEqual((result.code, result.text.splitlines()[1:]), (0, ["stopped: True", "closed"]), result.text)

    async def test_debug_logger(self) -> None:
        """The traceback of a handler is printed once: by Twisted, until the program begins its logging."""
        for begin in ("", BEGIN):
            text = await self.check(RAISING.replace("BEGIN", begin))
            self.assertEqual(text.count("Traceback"), 1, text)
            self.assertIn("#1 <- C-ECHO-RQ 1", text)
            self.assertIn("ZeroDivisionError", text)

    async def test_second_ctrl_c(self) -> None:
        """A second Ctrl-C aborts the associations that the first one leaves time to."""
        script = await peers.start(self, sys.executable, "-c", SERVED.replace("grace=0", "grace=None"))
        await script.wait_for("port")
        port = int(script.text.split()[-1])
        scu = AE("SCU")
        self.addCleanup(scu.shutdown)
        association = await scu.associate("127.0.0.1", port, contexts=[build_context(Verification)])
        script.signal("INT")
        refused = False
        while not refused:  # until the server has stopped listening
            try:
                other = await scu.associate("127.0.0.1", port, contexts=[build_context(Verification)])
                await other.release()
            except (AssociationError, ConnectError):
                refused = True
        script.signal("INT")
        await association.when_ended()
        result = await script.wait()
        self.assertNotEqual(result.code, 0)
        self.assertIn("KeyboardInterrupt", result.text)

    async def test_installed_reactor(self) -> None:
        """A reactor that the program has installed is left alone before it runs and after it has; while it runs it is used."""
        text = await self.check(INSTALLED_REACTOR)
        success = "0x0000 Success\n"
        self.assertEqual(text, f"{success}dicomtls\n{success}{success}LoopReactor SelectReactor LoopReactor\n")

    async def test_fork_beside_a_reactor(self) -> None:
        """A process that is forked off from one whose reactor runs has one of its own."""
        self.assertEqual(await self.check(FORKED_REACTOR), "0x0000 Success\n" * 2)


class BesideTheReactor(TestCase):
    """The reactor of the tests runs in the main thread, as that of an application does."""

    timeout = 60

    async def test_in_a_thread(self) -> None:
        scp = AE("SCP")
        scp.add_supported_context(Verification)
        self.addCleanup(scp.shutdown)
        server = await scp.start_server(("127.0.0.1", 0))

        def echo() -> int:
            with dicomtwist.sync.connect("127.0.0.1", server.port) as assoc:
                return int(assoc.echo())

        await deferLater(reactor, 0)  # until the reactor runs
        self.assertRaises(ReactorConflict, echo)
        self.assertEqual(await deferToThread(echo), 0x0000)

    async def test_tls(self) -> None:
        """Endpoint strings and TLS contexts work as with ``AE.associate``."""
        authority = Authority(self.mktemp_folder(), "ca")
        key = authority.issue("server", "localhost")
        scp = AE("SCP")
        scp.add_supported_context(Verification)
        self.addCleanup(scp.shutdown)
        server = await scp.start_server(
            f"dicomtls:0:privateKey={key}:certKey={key}:clientCertificate=none:interface=127.0.0.1"
        )

        def echo() -> int:
            address = f"dicomtls:localhost:{server.port}:trustRoots={authority.path}"
            with dicomtwist.sync.connect(address) as assoc:
                return int(assoc.echo())

        self.assertEqual(await deferToThread(echo), 0x0000)

    def mktemp_folder(self) -> str:
        folder = str(self.mktemp())
        os.mkdir(folder)
        return folder


BEGIN = """
from twisted.logger import globalLogBeginner
globalLogBeginner.beginLoggingTo([], redirectStandardIO=False)
"""

RAISING = """
import dicomtwist.sync
from dicomtwist import AE, debug_logger, evt
from dicomtwist.sop_class import Verification

BEGIN
debug_logger()
ae = AE("SCP")
ae.add_supported_context(Verification)
with dicomtwist.sync.serve(ae, ("127.0.0.1", 0), evt_handlers=[(evt.EVT_C_ECHO, lambda event: 1 / 0)]) as server:
    with dicomtwist.sync.connect("127.0.0.1", server.port, contexts=[Verification]) as assoc:
        assoc.echo()
"""

SERVED = """
import dicomtwist.sync
from dicomtwist import AE, AssociationError
from dicomtwist.sop_class import Verification

ae = AE("SCP")
ae.add_supported_context(Verification)
with dicomtwist.sync.serve(ae, ("127.0.0.1", 0), grace=0) as server:
    wait = server._stopped.wait

    def waiting(timeout):
        print(f"port {server.port}\\n", end="", flush=True)  # one write, behind which the signal may come
        return wait(timeout)

    server._stopped.wait = waiting  # a signal from now on comes while it waits
    print("stopped:", server.wait())
    try:
        dicomtwist.sync.connect("127.0.0.1", server.port)
    except Exception:
        print("closed")
"""

LEFT_OPEN = """
import sys
import dicomtwist.sync

assoc = dicomtwist.sync.connect("127.0.0.1", int(sys.argv[1]))
print(assoc.echo())
"""

ECHO = """
import os, sys
import dicomtwist.sync
from dicomtwist import AE
from dicomtwist.sop_class import Verification

def echo():
    ae = AE("SCP")
    ae.add_supported_context(Verification)
    with dicomtwist.sync.serve(ae, ("127.0.0.1", 0)) as server:
        with dicomtwist.sync.connect("127.0.0.1", server.port) as assoc:
            print(assoc.echo(), flush=True)
    return type(ae.reactor).__name__
"""

INSTALLED_REACTOR = f"""
from twisted.internet import selectreactor
selectreactor.install()
{ECHO}
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

names = [echo()]
try:
    dicomtwist.sync.connect("tls:localhost:9")
except dicomtwist.ReactorConflict as error:
    print("dicomtls" if "dicomtls" in str(error) else error, flush=True)
reactor.callWhenRunning(lambda: deferToThread(echo).addCallback(names.append).addBoth(lambda _: reactor.stop()))
reactor.run()
names.append(echo())
print(*names)
"""

FORKED_REACTOR = f"""
from threading import Thread
from twisted.internet import selectreactor
selectreactor.install()
{ECHO}
from twisted.internet import reactor

def work():
    if os.fork() == 0:
        echo()
        os._exit(0)
    os.wait()
    echo()

reactor.callInThread(lambda: (work(), reactor.callFromThread(reactor.stop)))
reactor.run()
"""
