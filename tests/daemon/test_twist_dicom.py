"""``twist dicom`` as an operator runs it: a process, with real peers."""

from __future__ import annotations

import os
import re
import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from pydicom import dcmread
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import TestCase

from dicomtwist import AE, AssociationAborted, AssociationLost, AssociationRejected, __version__
from dicomtwist.datasets import outgoing_instance
from dicomtwist.errors import AssociationError
from dicomtwist.part10 import read_file_meta
from tests import peers
from tests.publishing import publish

VERIFICATION = "1.2.840.10008.1.1"

reactor = cast(Any, _reactor)


class Silent(Protocol):
    """A client that sends given bytes and then nothing; a Deferred fires when the server closes the connection."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data
        self.received = b""
        self.answered: Deferred[None] = Deferred()
        self.closed: Deferred[bytes] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self.data)

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if not self.answered.called:
            self.answered.callback(None)

    def connectionLost(self, reason=None) -> None:
        self.closed.callback(self.received)


def connect(port: int, data: bytes) -> Deferred[Silent]:
    return cast("Deferred[Silent]", connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), Silent(data)))


class TwistDicom(TestCase):
    """A test that runs the server as a process."""

    timeout = 240

    def setUp(self) -> None:
        self.storage = Path(self.mktemp())

    async def start(self, *options: str, port: int | None = None) -> int:
        """Start a server, wait until it listens, return its port."""
        self.port = port or peers.free_port()
        if "--port" not in options:
            options = ("--port", f"tcp:{self.port}:interface=127.0.0.1", *options)
        self.server = await peers.start(
            self,
            sys.executable,
            *("-m", "twisted", "--log-format", "text", "dicom", "--storage", str(self.storage), *options),
            ready=self.port,
        )
        return self.port

    def stored(self) -> list[Path]:
        """Return the files in the storage, except the archive's own."""
        files = (path for path in self.storage.rglob("*") if path.is_file() and path.name != ".lock")
        return sorted(path for path in files if ".index" not in path.parts and not path.match(".incoming/inbox-*"))

    async def echo(self, port: int, **keywords: object) -> None:
        """Send a C-ECHO from another AE."""
        ae = AE("OTHER")
        ae.add_requested_context(VERIFICATION)
        async with await ae.associate("127.0.0.1", port, **keywords) as assoc:  # type: ignore[arg-type]
            self.assertTrue((await assoc.send_c_echo()).is_success)

    async def rejected(self, ae: AE, port: int) -> AssociationRejected:
        """Return the rejection that *ae* gets."""
        asking: Deferred[Any] = ae.associate("127.0.0.1", port)  # assertFailure turns it into a Deferred of the error
        error = await self.assertFailure(asking, AssociationRejected)
        assert isinstance(error, AssociationRejected)
        return error

    async def test_stores_every_transfer_syntax_byte_for_byte(self) -> None:
        """The data sets on the disk are those that were sent, and DCMTK and pydicom can read them."""
        peers.require("dcmdump")
        files = list(peers.one_per_transfer_syntax().values())
        self.assertGreaterEqual(len(files), 10)
        port = await self.start()
        ae = AE("SCU")
        for file in files:
            ae.add_requested_context(file.sop_class, file.transfer_syntax)
        async with await ae.associate("127.0.0.1", port) as assoc:
            for file in files:
                status = await assoc.send_c_store(file.path)
                self.assertTrue(status.is_success, f"{file.name}: {status}")
                # Some of the files share their SOP Instance UID, so each is checked before the next is sent.
                await publish(port)
                target = self.storage / file.study / file.series / f"{file.sop_instance}.dcm"
                sent = peers.dataset_bytes(file.path)
                sent += b"\0" * (len(sent) % 2)  # a deflated data set is sent with a padding byte (PS3.5 A.5)
                self.assertEqual(peers.dataset_bytes(target), sent, file.name)
                with open(target, "rb") as opened:
                    meta, _ = read_file_meta(opened)
                self.assertEqual(meta.transfer_syntax_uid, file.transfer_syntax)
                self.assertEqual(meta.source_ae_title, "SCU")
                self.assertEqual(dcmread(target), dcmread(file.path))
                dump = await peers.run(peers.dcmtk("dcmdump"), "-q", target)
                self.assertEqual(dump.code, 0, dump.text)
        self.assertEqual(len(self.stored()), len({file.sop_instance for file in files}))

    async def test_storescu(self) -> None:
        """A stock DCMTK client, which leaves Nagle's algorithm on."""
        peers.require("storescu")
        port = await self.start("--ae-title", "ARCHIVE", "--require-called-aet")
        file = peers.one_per_transfer_syntax()["1.2.840.10008.1.2.1"]
        result = await peers.run(
            peers.dcmtk("storescu"), "-aec", "ARCHIVE", "127.0.0.1", port, file.path, nodelay=False
        )
        self.assertEqual(result.code, 0, result.text)
        await publish(port, "ARCHIVE")
        self.assertEqual(len(self.stored()), 1)
        refused = await peers.run(peers.dcmtk("storescu"), "-aec", "ELSE", "127.0.0.1", port, file.path)
        self.assertNotEqual(refused.code, 0)
        self.assertIn("Called AE Title Not Recognized", refused.text)

    async def test_options_of_the_association(self) -> None:
        """The options restrict which peers may associate, and how many at once."""
        port = await self.start("--allow-calling", "GOOD", "--allow-calling", "OTHER", "--max-associations", "1")
        stranger = AE("STRANGER")
        stranger.add_requested_context(VERIFICATION)
        refused = await self.rejected(stranger, port)
        self.assertEqual((refused.result, refused.source, refused.reason), (1, 1, 3))
        good = AE("GOOD")
        good.add_requested_context(VERIFICATION)
        async with await good.associate("127.0.0.1", port):
            full = await self.rejected(good, port)
            self.assertEqual((full.result, full.source, full.reason), (2, 3, 2))
        await self.echo(port)

    async def test_half_open_peers_delay_nobody_and_go(self) -> None:
        """Eight peers that send the beginning of a PDU and stop are gone after the ARTIM time, and no other peer waits."""
        port = await self.start("--acse-timeout", "2")
        silent = await gatherResults([connect(port, b"\x01\x00\x00\x00\x01\x00") for _ in range(8)])
        await self.echo(port)
        self.assertFalse(any(protocol.closed.called for protocol in silent), "the echo came after the ARTIM time")
        answers = await gatherResults([protocol.closed for protocol in silent])
        self.assertEqual(answers, [b""] * 8)
        await self.echo(port)
        self.assertEqual(self.server.text.count("no association request was received within 2 seconds"), 8)

    async def test_garbage(self) -> None:
        """A connection that does not speak DICOM is aborted, and logged in one line without a traceback."""
        port = await self.start("--acse-timeout", "2")
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", b"\0" * 64, b"\x04\x00\xff\xff\xff\xff" + b"\0" * 6):
            protocol = await connect(port, data)
            answer = await protocol.closed
            self.assertEqual(answer[:1], b"\x07", data)
        await self.echo(port)
        self.assertNotIn("Traceback", self.server.text)

    async def test_interrupted_transfer_leaves_nothing_and_keeps_the_old_copy(self) -> None:
        """A sender that dies in the middle of a re-send."""
        port = await self.start()
        file = max(peers.dicom_files(), key=lambda file: os.path.getsize(file.path))
        ae = AE("SCU")
        ae.add_requested_context(file.sop_class, file.transfer_syntax)
        async with await ae.associate("127.0.0.1", port) as assoc:
            self.assertTrue((await assoc.send_c_store(file.path)).is_success)
        await publish(port)
        before = {path: path.read_bytes() for path in self.stored()}
        assoc = await ae.associate("127.0.0.1", port)

        class Dying:
            """Send half of the file, then reset the connection."""

            def __init__(self) -> None:
                self.left = os.path.getsize(file.path) // 2
                self.file = open(file.path, "rb")

            def read(self, count: int) -> bytes:
                if not self.left:
                    self.file.close()
                    reactor.callFromThread(assoc.protocol.transport.abortConnection)
                    raise OSError("the disk is gone")
                data = self.file.read(min(count, self.left))
                self.left -= len(data)
                return data

        await self.assertFailure(assoc.send_c_store(Dying()), OSError, AssociationError)  # type: ignore[arg-type]
        await assoc.when_ended()
        await self.server.wait_for("lost")
        await self.echo(port)
        self.assertEqual({path: path.read_bytes() for path in self.stored()}, before)

    async def test_uids_that_disagree_and_uids_that_climb(self) -> None:
        """The status is 0xA900 if command and data set differ; no text of a peer ever becomes a path."""
        port = await self.start()
        file = peers.one_per_transfer_syntax()["1.2.840.10008.1.2.1"]
        ae = AE("SCU")
        ae.add_requested_context(file.sop_class, file.transfer_syntax)
        async with await ae.associate("127.0.0.1", port) as assoc:
            for keyword, value in (
                ("StudyInstanceUID", "../../x"),
                ("SeriesInstanceUID", "/etc/x"),
                ("StudyInstanceUID", ".."),
                ("SOPInstanceUID", "../../../x"),
                ("SOPInstanceUID", "$(touch x)"),
                ("SeriesInstanceUID", ""),
            ):
                dataset = dcmread(file.path)
                dataset[keyword]._value = value
                status = await assoc.send_c_store(dataset)
                self.assertTrue(status.is_failure, f"{keyword}={value!r}: {status}")
            other = Path(self.mktemp())
            dataset = dcmread(file.path)
            dataset.SOPInstanceUID = "1.2.3"
            dataset.save_as(other)
            # This client believes the File Meta Information, which still has the old UID, and puts that into the command.
            self.patch(outgoing_instance, "identify", lambda meta, data: meta)
            status = await assoc.send_c_store(other)
            self.assertEqual(status, 0xA900)
            self.assertTrue((await assoc.send_c_store(file.path)).is_success)
        await publish(port)
        self.assertEqual(len(self.stored()), 1)

    async def test_sigterm_lets_associations_finish(self) -> None:
        """The server stops accepting, lets associations finish and exits with 0; each association has its line in the log."""
        port = await self.start("--grace", "60")
        file = peers.one_per_transfer_syntax()["1.2.840.10008.1.2.1"]
        ae = AE("SCU")
        ae.add_requested_context(file.sop_class, file.transfer_syntax)
        assoc = await ae.associate("127.0.0.1", port)
        self.server.signal("TERM")
        await self.server.wait_for("Received SIGTERM") if "Received SIGTERM" in self.server.text else None
        await self.until_refused(port)
        self.assertTrue((await assoc.send_c_store(file.path)).is_success)
        await assoc.release()
        result = await self.server.wait(30)
        self.assertEqual(result.code, 0, result.text)
        self.assertEqual(len(self.stored()), 1)
        self.assertRegex(
            result.text, r"'SCU' at 127\.0\.0\.1 called 'ANY-SCP': 1 C-STORE; 1 instance stored, 1 study; .*; released"
        )

    async def until_refused(self, port: int) -> None:
        """Wait until no process listens at *port*."""
        from twisted.internet.error import ConnectError

        while True:
            try:
                protocol = await connect(port, b"")
            except ConnectError:
                return
            assert protocol.transport is not None
            protocol.transport.abortConnection()  # type: ignore[attr-defined]
            await protocol.closed

    async def test_sigterm_aborts_what_does_not_finish(self) -> None:
        """After the grace time the associations that are left are aborted."""
        port = await self.start("--grace", "0.5")
        ae = AE("SCU")
        ae.add_requested_context(VERIFICATION)
        assoc = await ae.associate("127.0.0.1", port)
        self.server.signal("TERM")
        await assoc.when_ended()
        self.assertIsInstance(assoc.end_reason, AssociationAborted | AssociationLost)
        result = await self.server.wait(30)
        self.assertEqual(result.code, 0, result.text)

    async def test_version(self) -> None:
        """The version is that of dicomtwist: of the option, of the log, of the other command and of the installed package."""
        asked = await peers.run(sys.executable, "-m", "twisted", "dicom", "--version")
        self.assertEqual(asked.code, 0, asked.text)
        self.assertTrue(asked.text.startswith(f"dicomtwist {__version__} (Twisted "), asked.text)
        self.assertEqual(asked.text.count("\n"), 1)
        await self.start("--ae-title", "ARCHIVE")
        self.assertEqual(len(re.findall(rf"dicomtwist {re.escape(__version__)} starts ARCHIVE\n", self.server.text)), 1)
        command = await peers.run(sys.executable, "-m", "dicomtwist.tools", "--version")
        self.assertIn(__version__, command.text)
        self.assertEqual(metadata.version("dicomtwist"), __version__)

    async def test_mistakes_are_one_line(self) -> None:
        """A bad option or a busy port ends the program with one line."""
        port = await self.start()
        busy = f"tcp:{port}:interface=127.0.0.1"
        for options, words in (
            (["--port", busy], "Address already in use"),
            (["--port", "foo:1"], "--port: 'foo:1' is not an endpoint"),
            (["--port", "99999"], "99999"),
            (["--durability", "maybe"], "--durability is full or none"),
            (["--ae-title", "a" * 17], "17 characters"),
            (["--max-pdu", "big"], "--max-pdu 'big'"),
            (["--max-pdu", "5"], "--max-pdu:"),
            (["--dimse-timeout", "-1"], "--dimse-timeout '-1'"),
            (["--storage", "/proc/nowhere"], "--storage"),
            (["--port", "dicomtls:0:privateKey=nowhere:certKey=nowhere"], "--port"),
            (["--bogus"], "--bogus"),
        ):
            if "--storage" not in options:
                options = ["--storage", self.mktemp(), *options]
            result = await peers.run(sys.executable, "-m", "twisted", "dicom", *options)
            self.assertNotEqual(result.code, 0, options)
            self.assertIn(words, result.text)
            lines = [line for line in result.stderr.decode().splitlines() if line.strip()]
            self.assertEqual(len(lines), 1, result.text)

    async def test_several_ports_and_tls(self) -> None:
        """The server listens with TCP, IPv6 and mutual TLS at once. A trace shows the certificate of the peer."""
        certificates = peers.certificates()
        plain, six, secure = peers.free_port(), peers.free_port(), peers.free_port()
        await self.start(
            *("--port", f"tcp:{plain}:interface=127.0.0.1"),
            *("--port", f"tcp6:{six}"),
            "--port",
            f"dicomtls:{secure}:interface=127.0.0.1:privateKey={certificates.server_key}"
            f":certKey={certificates.server_cert}:trustRoots={certificates.ca}",
            "--trace",
            port=secure,
        )
        await self.echo(plain)
        await self.echo(six)
        ae = AE("SCU")
        ae.add_requested_context(VERIFICATION)
        own = f"privateKey={certificates.client_key}:certKey={certificates.client_cert}"
        async with await ae.associate(f"dicomtls:127.0.0.1:{secure}:trustRoots={certificates.ca}:{own}") as assoc:
            self.assertTrue((await assoc.send_c_echo()).is_success)
        self.assertEqual(self.server.text.count("the certificate of the peer is CN="), 1, self.server.text)
        from OpenSSL.SSL import Error

        await self.assertFailure(ae.associate(f"dicomtls:127.0.0.1:{secure}:trustRoots={certificates.ca}"), Error)
        await self.assertFailure(
            ae.associate(f"dicomtls:127.0.0.1:{secure}:trustRoots={certificates.other_ca}:{own}"), Error
        )

    async def test_concurrent_senders(self) -> None:
        """Sixteen associations at once send instances of their own."""
        port = await self.start("--durability", "none")
        files = [file for file in peers.dicom_files() if os.path.getsize(file.path) < 200_000]
        files = list({file.sop_instance: file for file in files}.values())
        ae = AE("SCU")
        ae.requested_contexts = []
        for sop_class, syntax in sorted({(file.sop_class, file.transfer_syntax) for file in files})[:128]:
            ae.add_requested_context(sop_class, syntax)

        async def send(some: list[peers.DicomFile]) -> None:
            async with await ae.associate("127.0.0.1", port) as assoc:
                for file in some:
                    status = await assoc.send_c_store(file.path)
                    self.assertTrue(status.is_success, f"{file.name}: {status}")

        await gatherResults([Deferred.fromCoroutine(send(files[start::16])) for start in range(16)])
        await publish(port)
        self.assertEqual({path.stem for path in self.stored()}, {file.sop_instance for file in files})

    async def test_kill_leaves_whole_files_only(self) -> None:
        """After kill -9 under load, each acknowledged instance is there and whole; nothing partial is visible."""
        port = await self.start()
        files = list({file.sop_instance: file for file in peers.dicom_files()}.values())
        ae = AE("SCU")
        for sop_class, syntax in sorted({(file.sop_class, file.transfer_syntax) for file in files})[:128]:
            ae.add_requested_context(sop_class, syntax)
        answered: list[peers.DicomFile] = []
        assoc = await ae.associate("127.0.0.1", port)
        try:
            for index, file in enumerate(files):
                sending = assoc.send_c_store(file.path)
                if index == len(files) // 2:
                    os.kill(self.server.pid, signal.SIGKILL)
                if (await sending).is_success:
                    answered.append(file)
        except AssociationError:
            pass
        await assoc.when_ended()
        await self.server.wait(10)
        self.assertGreaterEqual(len(answered), len(files) // 2)
        by_uid = {file.sop_instance: file for file in files}

        def visible() -> set[str]:
            found = {path.stem: path for path in self.stored() if path.suffix == ".dcm"}
            for uid, path in found.items():
                self.assertEqual(peers.dataset_bytes(path), peers.dataset_bytes(by_uid[uid].path))
            return set(found)

        visible()
        await self.start()
        self.assertLessEqual({file.sop_instance for file in answered}, visible())
        self.assertEqual([path for path in self.stored() if path.suffix != ".dcm"], [], "temporaries are removed")


class Log(TestCase):
    """The log of ``twist dicom``."""

    timeout = 60

    async def test_peer_text_is_escaped(self) -> None:
        """A title of control characters neither reaches a terminal nor breaks a line."""
        from dicomtwist.ul.items import ProposedContext, UserInformation
        from dicomtwist.ul.pdu import AAssociateRQ

        port = peers.free_port()
        server = await peers.start(
            self,
            sys.executable,
            *("-m", "twisted", "--log-format", "text", "dicom", "--storage", self.mktemp()),
            *("--port", f"tcp:{port}:interface=127.0.0.1"),
            ready=port,
        )
        request = AAssociateRQ(
            "ANY",
            "\x1b[31mRED\r\nX",
            (ProposedContext(1, VERIFICATION, ("1.2.840.10008.1.2",)),),
            UserInformation(maximum_length=16384),
        )
        protocol = await connect(port, request.encode())
        await server.wait_for("requested")
        await protocol.answered
        assert protocol.transport is not None
        protocol.transport.loseConnection()
        answer = await protocol.closed
        self.assertEqual(answer, b"\x03\x00\x00\x00\x00\x04\x00\x01\x01\x03")
        line = next(line for line in server.text.splitlines() if "requested" in line)
        self.assertIsNone(re.search(r"[\x00-\x1f]", line))
        self.assertIn(r"\x1b[31mRED\r\nX", line)
