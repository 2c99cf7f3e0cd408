"""The command itself: help, wrong usage, missing packages, connection settings and secrets."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from dicomtwist import UserIdentity, evt
from dicomtwist.tools.user_identity import MAX_SECRET
from tests import peers
from tests.tools.common import ToolTestCase, reactor

COMMANDS = ("echo", "store", "find", "get", "move", "worklist", "commit", "dump-association", "diagnose")
SECRET = "correct-horse-battery"


class Help(ToolTestCase):
    """The help."""

    async def test_each_command_reads_as_a_manual_page(self) -> None:
        for command in COMMANDS:
            result = await self.tool(command, "--help")
            self.assertEqual(result.code, 0, result.text)
            text = result.stdout.decode()
            self.assertRegex(text, rf"^Usage: dicomtwist {command} \[OPTIONS\] PEER")
            for heading in ("Peer:", "Connection:", "TLS:", "User identity:", "Output:", "Exit status:", "Examples:"):
                self.assertIn(heading, text)
            self.assertIn("3  no association could be established", text)
            # Every option in the help has an explanation.
            for line in re.findall(r"^  (-\S.*)$", text, re.MULTILINE):
                self.assertTrue("  " in line or len(line) > 20, line)

    async def test_only_what_has_an_effect(self) -> None:
        """The help of a subcommand has its own options first, and none that it ignores."""
        for command, own, others in (
            ("store", ["--retries", "--associations", "--async-ops"], []),
            ("echo", ["--associations"], ["--async-ops"]),
            ("find", ["--level"], ["--associations", "--async-ops"]),
            ("worklist", ["--date"], ["--associations", "--async-ops"]),
            ("move", ["--receive"], ["--associations", "--async-ops"]),
            ("diagnose", ["--propose"], ["--associations", "--async-ops"]),
        ):
            text = (await self.tool(command, "--help")).stdout.decode()
            for option in own:
                self.assertIn(f"  {option}", text)
            for option in others:
                self.assertNotIn(f"  {option}", text)
            self.assertLess(text.index("\nOperation:"), text.index("\nConnection:"))
        text = (await self.tool("passwd", "--help")).stdout.decode()
        self.assertIn("--users FILE", text)
        for words in ("PEER", "Connection:", "--tls", "no association"):
            self.assertNotIn(words, text)

    async def test_without_its_packages(self) -> None:
        """Without its packages, the command prints one line that says what to install."""
        blocked = self.folder / "blocked.py"
        blocked.write_text(
            "import importlib.util, sys\n"
            "found = importlib.util.find_spec\n"
            "importlib.util.find_spec = lambda name, *rest: None if name in ('click', 'tqdm') else found(name, *rest)\n"
            "sys.modules['click'] = sys.modules['tqdm'] = None\n"
            "from dicomtwist.tools import main\n"
            "main()\n"
        )
        result = await peers.run(sys.executable, blocked)
        self.assertEqual(result.code, 2)
        self.assertEqual(
            result.text, "dicomtwist: this command needs click and tqdm: pip install 'dicomtwist[tools]'\n"
        )


class Mistakes(ToolTestCase):
    """A wrong command line gives exit status 2, and one line after the usage."""

    def test_words(self) -> None:
        nowhere = self.folder / "nowhere.pem"
        for options, words in (
            (["nowhere"], "has no port"),
            (["127.0.0.1:1", "--calling", "x" * 17], "the maximum is 16"),
            (["127.0.0.1:1", "--tls-roots", nowhere], "--tls-roots: cannot read the file"),
            (["127.0.0.1:1", "--tls-key", nowhere], "--tls-certificate: cannot read the file"),
            (["tls:127.0.0.1:1", "--tls-roots", nowhere], "--tls-roots has no place"),
            (["dicomtls:127.0.0.1:1:trustRoots=/nowhere"], "cannot read the file"),
            (["unix:/nowhere", "--tls"], "--tls-hostname is missing"),
            (["foo:127.0.0.1:1"], "not a known prefix"),
            (["127.0.0.1:1", "--async-ops", "0"], "--async-ops"),
            (["127.0.0.1:1", "--max-pdu", "5"], "at least 64"),
            (["127.0.0.1:1", "--dimse-timeout", "-1"], "is not a time"),
            (["127.0.0.1:1", "-v", "-q"], "contradict"),
            (["127.0.0.1:1", "--user", "U", "--jwt-file", "x"], "contradict"),
            (["127.0.0.1:1", "--no-password"], "--user is missing"),
            (["127.0.0.1:1", "--user", "U"], "there is no terminal"),
        ):
            result = self.misuse("echo", *options)
            self.assertEqual((result.code, result.stdout), (2, b""), result.text)
            lines = [line for line in result.stderr.decode().splitlines() if line.startswith("Error: ")]
            self.assertEqual(len(lines), 1, result.text)
            self.assertIn(words, lines[0])

    async def test_as_a_process(self) -> None:
        result = await self.tool("echo", "nowhere")
        self.assertEqual((result.code, result.stdout), (2, b""), result.text)
        self.assertEqual(
            result.stderr.decode().splitlines()[-1],
            "Error: Invalid value for 'PEER': 'nowhere' has no port: write nowhere:104",
        )


class Settings(ToolTestCase):
    """The effect of the connection options."""

    async def test_longest_pdu(self) -> None:
        server = await self.serve()
        for option, told in ((["--max-pdu", 16384], 16384), (["--max-pdu", 0], 0), ([], 131072)):
            document = await self.json(
                *("dump-association", *option, "--propose", "verification", f"127.0.0.1:{server.port}"), code=0
            )
            self.assertEqual(document["sides"]["proposed"]["maximum_pdu_length"], told)

    async def test_timeouts(self) -> None:
        """The command waits for a silent peer until the timeout, or without limit if there is none."""
        held: list[Deferred[int]] = []

        def hold(event: Any) -> Deferred[int]:
            held.append(Deferred())
            return held[-1]

        server = await self.serve((evt.EVT_C_ECHO, hold))
        document = await self.json("echo", "--dimse-timeout", "0.5", f"127.0.0.1:{server.port}", code=1)
        self.assertIn("within 0.5 s", document["error"])
        never = ("--dimse-timeout", "none", "--network-timeout", "none", "--acse-timeout", "none")
        process = await self.start_tool("echo", "-vv", *never, f"127.0.0.1:{server.port}")
        await process.wait_for("-> C-ECHO-RQ")
        # Longer than the timeout of the first command.
        await deferLater(reactor, 0.6)
        self.assertTrue(process.running)
        held[-1].callback(0)
        self.assertEqual((await process.wait()).code, 0)


class Secrets(ToolTestCase):
    """User identity: secrets reach the peer and appear nowhere else."""

    def setUp(self) -> None:
        super().setUp()
        self.got: list[UserIdentity] = []
        self.secret = self.folder / "secret"
        self.secret.write_text(f"{SECRET}\n")

    async def serve_users(self) -> int:
        def identify(event: Any) -> tuple[bool, bytes]:
            self.got.append(event.assoc.requestor.user_identity)
            return True, b""

        server = await self.serve((evt.EVT_USER_ID, identify))
        return server.port

    def assert_no_secret(self, text: str) -> None:
        self.assertNotIn(SECRET, text)
        self.assertNotIn(SECRET.encode().hex(), text)

    async def test_from_files(self) -> None:
        port = await self.serve_users()
        for options, kind, primary, secondary in (
            (["--user", "Jane", "--password-file", self.secret], 2, "Jane", SECRET),
            (["--user", "Jane", "--no-password"], 1, "Jane", ""),
            (["--kerberos-file", self.secret], 3, f"{SECRET}\n", ""),
            (["--saml-file", self.secret], 4, SECRET, ""),
            (["--jwt-file", self.secret], 5, SECRET, ""),
        ):
            for command in ("echo", "diagnose") if kind == 2 else ("echo",):
                self.got.clear()
                result = await self.tool(command, "-vv", *options, f"127.0.0.1:{port}")
                self.assertEqual(result.code, 0, result.text)
                self.assert_no_secret(result.text)
                (identity,) = self.got
                self.assertEqual(identity.identity_type, kind)
                self.assertEqual((identity.primary, identity.secondary), (primary.encode(), secondary.encode()))

    async def test_at_the_prompt(self) -> None:
        """The command prompts for a password at the terminal, without echo."""
        port = await self.serve_users()
        process = self.terminal("echo", "-vv", "--user", "Jane", f"127.0.0.1:{port}")
        await process.wait_for("Password of Jane: ")
        process.type(f"{SECRET}\n")
        result = await process.wait()
        self.assertEqual(result.code, 0, result.text)
        self.assert_no_secret(result.text)
        self.assertEqual([identity.secondary for identity in self.got], [SECRET.encode()])

    def test_never_from_the_command_line(self) -> None:
        """A secret on the command line is refused and not repeated, even if it is taken for the name of a file."""
        for option in ("--password", "--jwt", "--kerberos", "--saml"):
            for options in ([option, SECRET], [f"{option}={SECRET}"]):
                result = self.misuse("echo", "127.0.0.1:1", "--user", "Jane", *options)
                self.assertEqual(result.code, 2)
                self.assertIn(f"use {option}-file", result.text)
                self.assert_no_secret(result.text)
            result = self.misuse(
                "echo", "127.0.0.1:1", *(["--user", "J"] if option == "--password" else []), f"{option}-file", SECRET
            )
            self.assertEqual(result.code, 2)
            self.assertIn("cannot be read: No such file", result.text)
            self.assert_no_secret(result.text)

    def test_files_that_cannot_be(self) -> None:
        for content, words in (
            (b"", "is empty"),
            (b"\n", "is empty"),
            (b"x" * (MAX_SECRET + 1), "more than 65535 bytes"),
        ):
            self.secret.write_bytes(content)
            result = self.misuse("echo", "127.0.0.1:1", "--user", "Jane", "--password-file", self.secret)
            self.assertEqual(result.code, 2)
            self.assertIn(f"--password-file: the file {'has ' if 'more' in words else ''}{words}", result.text)

    async def test_not_in_the_list_of_processes(self) -> None:
        """A secret is neither in the list of processes nor in the environment."""
        held: Deferred[tuple[bool, bytes]] = Deferred()
        asked: Deferred[None] = Deferred()

        def identify(event: Any) -> Deferred[tuple[bool, bytes]]:
            asked.callback(None)
            return held

        server = await self.serve((evt.EVT_USER_ID, identify))
        process = await self.start_tool(
            "echo", "--user", "Jane", "--password-file", self.secret, f"127.0.0.1:{server.port}"
        )
        await asked
        for name in ("cmdline", "environ"):
            path = Path("/proc", str(process.pid), name)
            if os.access(path, os.R_OK):
                self.assertNotIn(SECRET.encode(), path.read_bytes())
        held.callback((True, b""))
        self.assertEqual((await process.wait()).code, 0)
