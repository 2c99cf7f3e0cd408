"""``dicomtwist.asyncio`` in processes of its own: the reactor of the tests is another one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

import dicomtwist
from tests import peers

ROOT = Path(dicomtwist.__file__).parent


class Processes(TestCase):
    timeout = 120

    async def check(self, *arguments: object, cwd: Path | None = None) -> str:
        """Run Python with *arguments*, and return what it prints."""
        command: list[Any] = [sys.executable, "-W", "error::RuntimeWarning", *arguments]
        if cwd is not None:
            code = "import os, sys; os.chdir(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"
            command = [sys.executable, "-c", code, cwd, *command]
        result = await peers.run(*command)
        self.assertEqual(result.code, 0, result.text)
        return str(result.text)

    async def test_asyncio(self) -> None:
        self.assertIn("\nOK\n", await self.check("-m", "tests.asyncio.loop_tests"))

    async def test_uvloop(self) -> None:
        self.assertIn("\nOK\n", await self.check("-m", "tests.asyncio.loop_tests", "uvloop"))

    async def test_another_reactor(self) -> None:
        """A reactor that is not asyncio's gives an error that says so."""
        text = await self.check("-c", ANOTHER_REACTOR)
        self.assertIn("EPollReactor is installed" if sys.platform == "linux" else "is installed", text)

    async def test_reactor_of_the_program(self) -> None:
        """A program that runs asyncioreactor itself uses the face in its coroutines."""
        self.assertIn("0x0000 Success\n", await self.check("-c", OWN_REACTOR))

    async def test_name(self) -> None:
        """The name shadows Python's module for nobody, not even in the folder of the package or by ``import *``."""
        for code in (
            "import asyncio; print(asyncio.run(asyncio.sleep(0, 'Python')))",
            "import asyncio.events; print(asyncio.events.get_event_loop_policy and 'Python')",
            "from asyncio import run, sleep; print(run(sleep(0, 'Python')))",
        ):
            self.assertEqual(await self.check("-c", code, cwd=ROOT), "Python\n")
        star = "from dicomtwist import *; import asyncio; print(asyncio.run.__module__)"
        self.assertEqual(await self.check("-c", star), "asyncio.runners\n")
        lazy = "import dicomtwist; print(dicomtwist.asyncio.connect.__module__, dicomtwist.sync.connect.__module__)"
        self.assertEqual(await self.check("-c", lazy), "dicomtwist.asyncio.connecting dicomtwist.sync.connecting\n")

    async def test_ctrl_c(self) -> None:
        """Ctrl-C ends asyncio.run(), stops the server and aborts associations."""
        port = peers.free_port()
        process = await peers.start(self, sys.executable, "-c", SERVE, port, ready=port)
        os.kill(process.pid, 2)
        await process.wait_for("KeyboardInterrupt")
        self.assertIn("stopped\n", process.text)


ANOTHER_REACTOR = """
import asyncio
from twisted.internet import reactor
import dicomtwist, dicomtwist.asyncio

async def main():
    try:
        await dicomtwist.asyncio.connect("127.0.0.1", 9)
    except dicomtwist.ReactorConflict as error:
        print(error)

asyncio.run(main())
"""

SCP = """
from dicomtwist import AE
from dicomtwist.sop_class import Verification

ae = AE("SCP")
ae.add_supported_context(Verification)
"""

OWN_REACTOR = f"""
import asyncio
from twisted.internet import asyncioreactor

loop = asyncio.new_event_loop()
asyncioreactor.install(loop)
from twisted.internet import reactor
import dicomtwist.asyncio
{SCP}

async def main():
    async with dicomtwist.asyncio.serve(ae, ("127.0.0.1", 0)) as server:
        async with dicomtwist.asyncio.connect("127.0.0.1", server.port) as assoc:
            print(await assoc.echo())
    reactor.stop()

reactor.callWhenRunning(lambda: setattr(reactor, "main", loop.create_task(main())))
reactor.run()
"""

SERVE = f"""
import asyncio, sys
import dicomtwist.asyncio
{SCP}

async def main():
    try:
        async with dicomtwist.asyncio.serve(ae, ("127.0.0.1", int(sys.argv[1])), grace=1):
            await asyncio.Event().wait()
    finally:
        print("stopped", flush=True)

asyncio.run(main())
"""
