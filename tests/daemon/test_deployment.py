"""The unit files, the haproxy configuration and the container of docs/guides/deployment.md work as described."""

from __future__ import annotations

import io
import json
import os
import shlex
import socket
import sys
from configparser import RawConfigParser
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, cast

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from dicomtwist import AE
from dicomtwist.daemon.tap import Options
from dicomtwist.sop_class import Verification
from tests import peers
from tests.containerfile import instructions
from tests.documentation import DOCS, PROJECT, blocks
from tests.interop.test_endpoints import Proxied

reactor = cast(Any, _reactor)

PAGE = DOCS / "guides" / "deployment.md"


def file(name: str) -> str:
    """Return the content of a file that the page has."""
    (found,) = [block.text for block in blocks(PAGE) if block.key == "file" and block.value == name]
    return found


def unit(name: str) -> dict[str, list[tuple[str, str]]]:
    """Return the sections of a unit file, each with its settings in order; a setting may occur several times."""
    # configparser accepts each setting once, so a number makes each unique.
    lines = []
    for number, line in enumerate(file(name).splitlines()):
        key, equals, value = line.partition("=")
        lines.append(f"{number}:{key}{equals}{value}" if equals else line)
    parser = RawConfigParser(delimiters="=")
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string("\n".join(lines))
    return {
        section: [(key.partition(":")[2], value) for key, value in parser.items(section)]
        for section in parser.sections()
    }


def setting(name: str, section: str, key: str) -> str:
    """Return the only value of a setting."""
    (value,) = [value for found, value in unit(name)[section] if found == key]
    return value


def seconds(arguments: list[str], option: str) -> float:
    """Return the value of an option, in seconds."""
    return float(arguments[arguments.index(option) + 1])


class DeploymentTestCase(TestCase):
    """A test that starts the server with a command line of the page."""

    timeout = 120

    def setUp(self) -> None:
        self.storage = Path(self.mktemp()).absolute()

    def arguments(self, command: list[str], **replaced: str) -> list[str]:
        """Return *command* with a storage of this test and with our interpreter."""
        self.assertEqual(Path(command[0]).name, "twist")
        command[command.index("--storage") + 1] = str(self.storage)
        for old, new in replaced.items():
            command[command.index(old)] = new
        return [sys.executable, "-m", "twisted", *command[1:]]

    async def echo(self, endpoint: str | IStreamClientEndpoint, called: str) -> None:
        """Send a C-ECHO, which must succeed."""
        ae = AE("OTHER")
        ae.add_requested_context(Verification)
        async with await ae.associate(endpoint, ae_title=called) as assoc:
            self.assertTrue((await assoc.send_c_echo()).is_success)


class SystemdTests(DeploymentTestCase):
    async def test_socket_activation(self) -> None:
        """The command line of the service adopts a socket that it inherits, as from systemd (sd_listen_fds(3))."""
        command = self.arguments(shlex.split(setting("dicomtwist.service", "Service", "ExecStart")))
        if not socket.has_ipv6:
            raise SkipTest("no IPv6 here")
        with socket.socket(socket.AF_INET6) as listener:
            try:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                listener.bind(("::", 0))
            except OSError as error:
                raise SkipTest(f"no IPv6 here: {error}") from None
            listener.listen(5)
            port = listener.getsockname()[1]
            # LISTEN_PID is the process that has to adopt the sockets; its ID is known only when it runs.
            script = 'LISTEN_FDS=1 LISTEN_FDNAMES=dicomtwist.socket LISTEN_PID=$$ exec "$0" "$@"'
            process = peers.Process(["/bin/bash", "-c", script, *command])
            reactor.spawnProcess(
                process,
                "/bin/bash",
                process.command,
                env=dict(os.environ),
                childFDs={0: "w", 1: "r", 2: "r", 3: listener.fileno()},
            )
        self.addCleanup(lambda: Deferred.fromCoroutine(process.stop("KILL")))
        await process.wait_for("Starting reactor", 60)
        await self.echo(f"tcp:127.0.0.1:{port}", "ARCHIVE")
        result = await process.stop("TERM", 60)
        self.assertEqual((result.code, result.signal), (0, None), process.text)
        self.assertIn("'OTHER' at", process.text)

    def test_units(self) -> None:
        """The two units refer to each other, and their times match the options."""
        self.assertEqual(setting("dicomtwist.service", "Unit", "Requires"), "dicomtwist.socket")
        command = shlex.split(setting("dicomtwist.service", "Service", "ExecStart"))
        grace = seconds(command, "--grace")
        self.assertGreater(float(setting("dicomtwist.service", "Service", "TimeoutStopSec")), grace)
        folder = Path("/var/lib") / setting("dicomtwist.service", "Service", "StateDirectory")
        self.assertEqual(command[command.index("--storage") + 1], str(folder))
        listening = [value for key, value in unit("dicomtwist.socket")["Socket"] if key == "ListenStream"]
        ports = [value for value in command if value.startswith("systemd:")]
        self.assertEqual(len(listening), len(ports))

    def test_options(self) -> None:
        """The server accepts the options of the service, except the port, which systemd has to hand over."""
        command = shlex.split(setting("dicomtwist.service", "Service", "ExecStart"))
        arguments = self.arguments(command, **{"systemd:domain=INET6:index=0": "tcp:0"})
        with redirect_stdout(io.StringIO()):
            given = arguments[arguments.index("dicom") + 1 :]
            ended = self.assertRaises(SystemExit, Options().parseOptions, [*given, "--check"])
        self.assertEqual(ended.code, 0)

    def test_unit_with_a_configuration(self) -> None:
        """Each of its commands is one that the server has, and a reload checks the configuration first."""
        service = unit("archive.service")["Service"]
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        (folder / "archive.toml").write_text(f'storage = "{folder}/archive"\n')
        commands = [(key, shlex.split(value)) for key, value in service if key.startswith("Exec")]
        self.assertEqual(
            [(key, command[-1]) for key, command in commands],
            [
                ("ExecStartPre", "--check"),
                ("ExecStart", "/etc/dicom/archive.toml"),
                ("ExecReload", "--check"),
                ("ExecReload", "$MAINPID"),
            ],
        )
        arguments = [part.replace("/etc/dicom", str(folder)) for part in commands[0][1][2:]]
        with redirect_stdout(io.StringIO()):
            ended = self.assertRaises(SystemExit, Options().parseOptions, arguments)
        self.assertEqual(ended.code, 0)

    async def test_systemd_reads_them(self) -> None:
        """systemd-analyze finds nothing wrong."""
        tool = Path("/usr/bin/systemd-analyze")
        if not tool.exists():
            raise SkipTest("systemd is not installed")
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        program = setting("dicomtwist.service", "Service", "ExecStart").split()[0]
        names = ("dicomtwist.service", "dicomtwist.socket", "archive.service")
        for name in names:
            (folder / name).write_text(file(name).replace(program, "/bin/true"))
        result = await peers.run(str(tool), "verify", "--man=no", *(folder / name for name in names))
        self.assertEqual((result.code, result.text), (0, ""))


class HAProxyTests(DeploymentTestCase):
    async def start_behind(self) -> tuple[int, peers.Process]:
        """Start the server of the page; return its port."""
        (block,) = [block for block in blocks(PAGE) if "haproxy:tcp:11113" in block.text]
        command = shlex.split(block.text.removeprefix("$ "))
        port = peers.free_port()
        endpoint = "haproxy:tcp:11113:interface=127.0.0.1"
        arguments = self.arguments(command, **{endpoint: endpoint.replace("11113", str(port))})
        return port, await peers.start(self, arguments[0], *arguments[1:], ready=port)

    async def test_the_address_that_a_proxy_tells(self) -> None:
        """With a header of version 1 before an association request, the log has the address of the header."""
        port, server = await self.start_behind()
        await self.echo(Proxied(port), "ARCHIVE")
        await server.wait_for("192.0.2.7", 60)

    async def test_haproxy_itself(self) -> None:
        """A C-ECHO passes through haproxy with the configuration of the page."""
        haproxy = peers.tool("haproxy")
        behind, server = await self.start_behind()
        front = peers.free_port()
        configuration = Path(self.mktemp()).absolute()
        configuration.write_text(file("haproxy.cfg").replace("11112", str(front)).replace("11113", str(behind)))
        await peers.start(self, haproxy, "-db", "-f", configuration, ready=front)
        await self.echo(f"tcp:127.0.0.1:{front}", "ARCHIVE")
        await server.wait_for("'OTHER'", 60)


class ContainerTests(DeploymentTestCase):
    async def test_entry_point(self) -> None:
        """The command of the container starts, is healthy, and stops in order within the time that an engine allows."""
        found = dict(instructions(file("Containerfile")))
        self.assertEqual(found["STOPSIGNAL"], "SIGTERM")
        entry, extra = json.loads(found["ENTRYPOINT"]), json.loads(found["CMD"])
        self.assertLess(seconds(extra, "--grace"), 10)
        self.assertEqual(entry[entry.index("--storage") + 1], found["VOLUME"])
        self.assertIn(found["VOLUME"], found["RUN"])
        self.assertTrue(entry[entry.index("--port") + 1].endswith(found["EXPOSE"]))
        port = peers.free_port()
        arguments = self.arguments(entry + extra, **{"tcp:11112": f"tcp:{port}"})
        server = await peers.start(self, arguments[0], *arguments[1:], ready=port)
        check = json.loads(found["HEALTHCHECK"].partition("CMD ")[2])
        self.assertEqual(check.pop(0), "dicomtwist")
        check[-1] = check[-1].replace("11112", str(port))
        result = await peers.run(sys.executable, "-m", "dicomtwist.tools", *check)
        self.assertEqual((result.code, result.text), (0, ""))
        self.assertEqual((await server.stop("TERM", 60)).code, 0, server.text)


class FileTests(SynchronousTestCase):
    def test_the_page_shows_them(self) -> None:
        """The Containerfile and each file of deploy/ are on the page as they are."""
        for path in (PROJECT / "Containerfile", *sorted((PROJECT / "deploy").iterdir())):
            self.assertEqual(file(path.name), path.read_text(), path.name)


class UnitTests(SynchronousTestCase):
    def test_settings_that_come_twice(self) -> None:
        """The parser of this test keeps repeated settings."""
        self.assertIn(("ListenStream", "104"), unit("dicomtwist.socket")["Socket"])
        self.assertRaises(ValueError, setting, "dicomtwist.socket", "Socket", "Nonsense")
