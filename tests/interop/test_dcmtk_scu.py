"""
DCMTK's clients against our server: echoscu, storescu, dcmsend.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from dicomtwist import Server, Status, build_context, evt
from dicomtwist.evt import StoreEvent
from tests.interop.common import CT, InteropTestCase, Recorder, Store, ends_of, store_stream
from tests.peers import (
    DicomFile,
    Result,
    dataset_bytes,
    dcmtk,
    dcmtk_storescp,
    dicom_files,
    one_per_transfer_syntax,
    run,
    start,
)

#: The flag with which storescu proposes each transfer syntax.
PROPOSALS = {
    "1.2.840.10008.1.2": "-xi",
    "1.2.840.10008.1.2.1": "-xe",
    "1.2.840.10008.1.2.2": "-xb",
    "1.2.840.10008.1.2.1.99": "-xd",
    "1.2.840.10008.1.2.5": "-xr",
    "1.2.840.10008.1.2.4.50": "-xy",
    "1.2.840.10008.1.2.4.51": "-xx",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu",
    "1.2.840.10008.1.2.4.90": "-xv",
    "1.2.840.10008.1.2.4.91": "-xw",
}


def ct_small() -> str:
    """A small uncompressed CT image, 39 KB."""
    return str(get_testdata_file("CT_small.dcm", download=False))


def largest() -> DicomFile:
    """The largest of pydicom's files, 322 KB."""
    return max(dicom_files(), key=lambda file: Path(file.path).stat().st_size)


async def echoscu(server: Server, *flags: object) -> Result:
    """Run echoscu against our server."""
    return await run(dcmtk("echoscu"), "-v", *flags, "127.0.0.1", server.port)


async def storescu(port: int, *args: object, **options: Any) -> Result:
    """Run storescu against a server."""
    return await run(dcmtk("storescu"), "-v", "-R", *args[:-1], "127.0.0.1", port, args[-1], **options)


def note_message_id(event: evt.DIMSEEvent, noted: list[int]) -> int:
    """A handler that records the Message ID."""
    noted.append(event.message_id)
    return 0


class EchoTests(InteropTestCase):
    """
    echoscu.
    """

    async def test_echo(self) -> None:
        """
        One C-ECHO, then the release.
        """
        asked: list[int] = []
        released = Recorder()
        server = await self.serve((evt.EVT_C_ECHO, note_message_id, [asked]), (evt.EVT_RELEASED, released))
        result = await echoscu(server, "-aet", "MODALITY", "-aec", "TWIST")
        self.assertEqual(result.code, 0, result.text)
        await released.wait()
        association = released.events[0].assoc
        self.assertEqual(len(asked), 1)
        self.assertEqual(association.requestor.ae_title, "MODALITY")
        self.assertEqual(association.requestor.address, "127.0.0.1")
        self.assertEqual(association.requestor.maximum_length, 16384)
        self.assertTrue(association.requestor.implementation_class_uid.startswith("1.2.276.0.7230010.3"))
        self.assertTrue(association.requestor.implementation_version_name.startswith("OFFIS_DCMTK"))

    async def test_without_handler(self) -> None:
        """
        Verification is answered without a handler.
        """
        result = await echoscu(await self.serve())
        self.assertEqual(result.code, 0, result.text)
        self.assertIn("Received Echo Response (Success)", result.text)

    async def test_repeat(self) -> None:
        """
        Many C-ECHOs on one association.
        """
        asked: list[int] = []
        server = await self.serve((evt.EVT_C_ECHO, note_message_id, [asked]))
        result = await echoscu(server, "--repeat", 100)
        self.assertEqual(result.code, 0, result.text)
        self.assertEqual(len(asked), 100)
        self.assertEqual(len(set(asked)), 100)

    async def test_stock_client_is_not_stalled(self) -> None:
        """
        A client that uses Nagle's algorithm does not wait for a delayed acknowledgement with each echo.
        """
        server = await self.serve()
        before = reactor.seconds()
        result = await run(dcmtk("echoscu"), "--repeat", 50, "127.0.0.1", server.port, nodelay=False)
        took = reactor.seconds() - before
        self.assertEqual(result.code, 0, result.text)
        # With delayed acknowledgements it takes 50 * 40 ms at least.
        self.assertLess(took, 1.5)

    async def test_many_contexts(self) -> None:
        """
        From one to 128 presentation contexts, with all transfer syntaxes in each.
        """
        established = Recorder()
        server = await self.serve((evt.EVT_ESTABLISHED, established))
        sizes = [(1, 1), (2, 38), (64, 5), (128, 1), (128, 38)]
        for contexts, syntaxes in sizes:
            result = await echoscu(server, "-ppc", contexts, "-pts", syntaxes)
            self.assertEqual(result.code, 0, result.text)
        self.assertEqual(
            [len(event.assoc.accepted_contexts) for event in established.events], [count for count, _ in sizes]
        )
        ids = [context.context_id for context in established.events[-1].assoc.accepted_contexts]
        self.assertEqual(ids, list(range(1, 256, 2)))

    async def test_context_not_supported(self) -> None:
        """
        If no context is accepted, the association is accepted all the same, and echoscu reports that it has no context.
        """
        server = await self.serve(contexts=[build_context(CT)])
        result = await echoscu(server)
        self.assertNotEqual(result.code, 0)
        self.assertIn("No Acceptable Presentation Contexts", result.text)

    async def test_abort(self) -> None:
        """
        A client that aborts at the end.
        """
        aborted = Recorder()
        server = await self.serve((evt.EVT_ABORTED, aborted))
        result = await echoscu(server, "--abort")
        self.assertEqual(result.code, 0, result.text)
        await aborted.wait()
        self.assertEqual(ends_of(aborted.events[0].assoc), ["aborted"])
        self.assertTrue(aborted.events[0].reason.by_peer)
        self.assertEqual(server.factory.associations, set())

    async def test_status(self) -> None:
        """
        The status that a handler returns arrives.
        """
        result = await echoscu(await self.serve((evt.EVT_C_ECHO, lambda event: 0x0122)))
        self.assertIn("Unknown Status: 0x122", result.text)


class NegotiationTests(InteropTestCase):
    """
    The requestors that are accepted.
    """

    async def test_wrong_called_title(self) -> None:
        """
        A wrong called AE title is rejected if it is required; the right one is accepted.
        """
        server = await self.serve(require_called_aet=True)
        result = await echoscu(server, "-aec", "SOMEBODY")
        self.assertNotEqual(result.code, 0)
        self.assertIn("Result: Rejected Permanent, Source: Service User", result.text)
        self.assertIn("Reason: Called AE Title Not Recognized", result.text)
        result = await echoscu(server, "-aec", "TWIST")
        self.assertEqual(result.code, 0, result.text)

    async def test_wrong_calling_title(self) -> None:
        """
        A calling AE title is rejected if it is not in the list, and accepted if it is.
        """
        server = await self.serve(require_calling_aet=["MODALITY"])
        result = await echoscu(server, "-aet", "SOMEBODY")
        self.assertNotEqual(result.code, 0)
        self.assertIn("Reason: Calling AE Title Not Recognized", result.text)
        result = await echoscu(server, "-aet", "MODALITY")
        self.assertEqual(result.code, 0, result.text)

    async def test_limit(self) -> None:
        """
        One association too many is rejected as transient; when another one has ended, the next one is accepted.
        """
        release: Deferred[int] = Deferred()
        inside = Recorder()

        def hold(event: evt.Event) -> Deferred[int]:
            inside(event)
            return release

        released = Recorder()
        server = await self.serve((evt.EVT_C_ECHO, hold), (evt.EVT_RELEASED, released), maximum_associations=1)
        first = await start(self, dcmtk("echoscu"), "-v", "127.0.0.1", server.port)
        await inside.wait()
        result = await echoscu(server)
        self.assertNotEqual(result.code, 0)
        self.assertIn("Result: Rejected Transient", result.text)
        self.assertIn("Reason: Local Limit Exceeded", result.text)
        release.callback(0)
        self.assertEqual((await first.wait()).code, 0)
        await released.wait()
        release = Deferred()
        release.callback(0)
        self.assertEqual((await echoscu(server)).code, 0)

    async def test_user_identity(self) -> None:
        """
        User name and passcode, a ticket, and a positive response.
        """
        seen: list[tuple[int, bytes, bytes, bool]] = []

        async def who(event: Any) -> tuple[bool, bytes | None]:
            fields = (event.user_id_type, event.primary_field, event.secondary_field, event.response_requested)
            seen.append(fields)
            await deferLater(reactor, 0)
            return event.primary_field != b"mallory", b"welcome"

        server = await self.serve((evt.EVT_USER_ID, who), (evt.EVT_C_STORE, lambda event: 0))
        token = Path(self.mktemp())
        token.write_bytes(b"token")
        for flags in (
            ["-usr", "alice"],
            ["-usr", "alice", "-pwd", "secret", "-rsp"],
            ["-kt", token, "-rsp"],
            ["--saml", token, "-rsp"],
            ["--jwt", token],
        ):
            result = await storescu(server.port, *flags, ct_small())
            self.assertEqual(result.code, 0, result.text)
        self.assertEqual(
            seen,
            [
                (1, b"alice", b"", False),
                (2, b"alice", b"secret", True),
                (3, b"token", b"", True),
                (4, b"token", b"", True),
                (5, b"token", b"", False),
            ],
        )
        result = await storescu(server.port, "-usr", "mallory", ct_small())
        self.assertNotEqual(result.code, 0)
        self.assertIn("Association Rejected", result.text)


class StoreTests(InteropTestCase):
    """
    storescu and dcmsend.
    """

    async def test_every_transfer_syntax(self) -> None:
        """
        A handler gets, byte for byte, the data set that DCMTK's own storescp gets from the same client.

        storescu parses files and encodes them again, so a comparison with the bytes in the file would prove less.
        """
        files = one_per_transfer_syntax(without_study=True)
        self.assertEqual(set(files), set(PROPOSALS))
        folder = Path(self.mktemp())
        reference = await dcmtk_storescp(self, folder, "+xa", "+B", "-pm")
        whole, streamed = Store(), Store()
        server = await self.serve((evt.EVT_C_STORE, whole))
        streaming_server = await self.serve((evt.EVT_C_STORE, store_stream, [streamed]))
        same = 0
        for syntax, file in files.items():
            for port in (reference, server.port, streaming_server.port):
                result = await storescu(port, PROPOSALS[syntax], file.path)
                self.assertEqual(result.code, 0, result.text)
            (written,) = folder.iterdir()
            expected = dataset_bytes(written)
            written.unlink()
            same += expected == dataset_bytes(file.path)
            for store in (whole, streamed):
                stored = store.stored[-1]
                self.assertEqual(stored.transfer_syntax, syntax)
                self.assertEqual((stored.sop_class, stored.sop_instance), (file.sop_class, file.sop_instance))
                self.assertEqual(stored.dataset == expected, True, file.name)
        # Some are already encoded as DCMTK does it.
        self.assertGreater(same, 3)

    async def test_many_files_on_one_association(self) -> None:
        """
        dcmsend proposes the transfer syntax of each file, and sends all of pydicom's files.
        """
        folder = Path(self.mktemp())
        reference = await dcmtk_storescp(self, folder, "+xa", "+B", "-pm", "+uf")
        store = Store()
        released = Recorder()
        server = await self.serve((evt.EVT_C_STORE, store), (evt.EVT_RELEASED, released))
        # dcmsend cannot read these two, and asks to store them as instance "31" of the SOP Class "31".
        unread = ("rtdose_rle.dcm", "rtdose_rle_1frame.dcm")
        files = [file.path for file in dicom_files(without_study=True) if not file.path.endswith(unread)]
        for port in (reference, server.port):
            result = await run(dcmtk("dcmsend"), "-nh", "-nuc", "-dn", "127.0.0.1", port, *files)
            self.assertEqual(result.code, 0, result.text)
        expected = sorted(dataset_bytes(path) for path in folder.iterdir())
        # dcmsend skips a file whose SOP Instance UID it has already sent.
        self.assertGreater(len(expected), 140)
        self.assertEqual(len(store.stored), len(expected))
        self.assertEqual(sorted(store.datasets) == expected, True)
        await released.wait()

    async def test_written_files_are_read(self) -> None:
        """
        ``encoded_dataset()`` returns a file that dcmdump and pydicom can read, with our File Meta Information.
        """
        folder = Path(self.mktemp())
        folder.mkdir()
        decoded: list[Dataset] = []

        def write(event: StoreEvent) -> int:
            (folder / f"{len(decoded):03}.dcm").write_bytes(event.encoded_dataset())
            decoded.append(event.dataset)
            return 0

        server = await self.serve((evt.EVT_C_STORE, write))
        by_instance = {
            file.sop_instance: dcmread(file.path) for file in one_per_transfer_syntax(without_study=True).values()
        }
        files = [dataset.filename for dataset in by_instance.values()]
        result = await run(dcmtk("dcmsend"), "-aet", "SENDER", "-nh", "-nuc", "-dn", "127.0.0.1", server.port, *files)
        self.assertEqual(result.code, 0, result.text)
        written = sorted(folder.iterdir())
        self.assertEqual(len(written), len(files))
        dumped = await run(dcmtk("dcmdump"), "-q", "+L", *written)
        self.assertEqual((dumped.code, dumped.stderr), (0, b""))
        for path, event_dataset in zip(written, decoded, strict=True):
            dataset = dcmread(path)
            self.assertEqual(dataset.file_meta.SourceApplicationEntityTitle, "SENDER")
            sent = by_instance[dataset.SOPInstanceUID]
            self.assertEqual(dataset.group_dataset(0x0010), sent.group_dataset(0x0010))
            self.assertEqual(dataset == event_dataset, True, path)
            if "PixelData" in sent:
                self.assertEqual(dataset.PixelData == sent.PixelData, True, sent.filename)

    async def test_pdu_sizes(self) -> None:
        """
        The bytes that arrive do not depend on the maximum PDU lengths of either side.
        """
        file = largest()
        expected = dataset_bytes(file.path)
        for ours in (0, 512, 4096, 16382, 131072, 4 * 1024 * 1024):
            store = Store()
            server = await self.serve((evt.EVT_C_STORE, store), maximum_pdu_size=ours)
            for flags in (["-pdu", 4096], ["-pdu", 131072], ["--max-send-pdu", 4096], ["--max-send-pdu", 131072]):
                result = await storescu(server.port, *flags, file.path)
                self.assertEqual(result.code, 0, f"{ours} {flags}: {result.text}")
            self.assertEqual([each == expected for each in store.datasets], [True] * 4, ours)

    async def test_repeat(self) -> None:
        """
        Many instances on one association.
        """
        store = Store()
        server = await self.serve((evt.EVT_C_STORE, store))
        result = await storescu(server.port, "--repeat", 100, "+II", ct_small())
        self.assertEqual(result.code, 0, result.text)
        self.assertEqual(len({stored.sop_instance for stored in store.stored}), 100)

    async def test_concurrent_clients(self) -> None:
        """
        Several clients at once, each of which stores all of its instances.
        """
        store = Store()
        server = await self.serve((evt.EVT_C_STORE, store))
        clients = [
            await start(self, dcmtk("storescu"), "-R", "--repeat", 20, "+II", "127.0.0.1", server.port, ct_small())
            for _ in range(6)
        ]
        for client in clients:
            result = await client.wait()
            self.assertEqual(result.code, 0, result.text)
        self.assertEqual(len({stored.sop_instance for stored in store.stored}), 120)

    async def test_abort_after_store(self) -> None:
        """
        On an association that is aborted, the acknowledged instances are stored.
        """
        store, aborted = Store(), Recorder()
        server = await self.serve((evt.EVT_C_STORE, store), (evt.EVT_ABORTED, aborted))
        result = await storescu(server.port, "--abort", ct_small())
        self.assertEqual(result.code, 0, result.text)
        await aborted.wait()
        self.assertEqual(len(store.stored), 1)


class HandlerTests(InteropTestCase):
    """
    The values that a handler may return.
    """

    async def _store(self, handler: Any) -> Result:
        server = await self.serve((evt.EVT_C_STORE, handler))
        return await storescu(server.port, "-d", ct_small())

    async def test_statuses(self) -> None:
        """
        Success, warnings and failures arrive unchanged.
        """
        for status, words in (
            (0x0000, "Success"),
            (0xB000, "Warning: Coercion of data elements"),
            (0xB007, "Warning: Data set does not match SOP class"),
            (0xA700, "Refused: Out of resources"),
            (0xA900, "Error: Data Set does not match SOP Class"),
            (0xC123, "Error: Cannot understand"),
        ):
            result = await self._store(Store(status))
            self.assertIn(f"DIMSE Status                  : 0x{status:04x}: {words}".lower(), result.text.lower())

    async def test_failure_stops_the_client(self) -> None:
        """
        storescu stops at a failure: its exit code says so, and the association was released or aborted in order.
        """
        server = await self.serve((evt.EVT_C_STORE, Store(0xA700)))
        result = await run(
            dcmtk("storescu"), "-v", "-R", "127.0.0.1", server.port, ct_small(), get_testdata_file("MR_small.dcm")
        )
        self.assertNotEqual(result.code, 0)

    async def test_value_deferred_coroutine(self) -> None:
        """
        A number, a Status, a Dataset, a Deferred and a coroutine are accepted.
        """
        dataset = Dataset()
        dataset.Status = 0xB006
        dataset.ErrorComment = "elements were discarded"

        async def coroutine(event: StoreEvent) -> int:
            await deferLater(reactor, 0.01)
            return 0xB006

        for handler in (
            lambda event: 0xB006,
            lambda event: Status(0xB006),
            lambda event: dataset,
            lambda event: deferLater(reactor, 0.01, lambda: 0xB006),
            coroutine,
        ):
            result = await self._store(handler)
            self.assertEqual(result.code, 0, result.text)
            self.assertIn("DIMSE Status                  : 0xb006", result.text)

    async def test_comment(self) -> None:
        """
        Error Comment and Offending Element are in the response.
        """
        status = Status(0xA900, "C-STORE", "no such patient", (0x00100020,))
        result = await self._store(lambda event: status)
        self.assertIn("0xa900", result.text)
        self.assertIn("no such patient", result.text)
        self.assertIn("0010,0020", result.text)

    async def test_handler_that_raises(self) -> None:
        """
        The peer gets a failure, the log a traceback, and the association continues.
        """
        calls: list[int] = []

        def handler(event: StoreEvent) -> int:
            calls.append(1)
            if len(calls) == 1:
                raise ZeroDivisionError("broken")
            return 0

        server = await self.serve((evt.EVT_C_STORE, handler))
        result = await run(dcmtk("storescu"), "-d", "-R", "-nh", "127.0.0.1", server.port, ct_small(), ct_small())
        self.assertIn("0xc211", result.text)
        self.assertEqual(len(calls), 2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    async def test_no_handler(self) -> None:
        """
        Without a handler, no instance is accepted.
        """
        server = await self.serve()
        result = await storescu(server.port, "-d", ct_small())
        self.assertNotEqual(result.code, 0)
        self.assertIn("0xc211", result.text)

    async def test_streaming_handler_that_answers_early(self) -> None:
        """
        A streaming handler refuses before it has read everything; the client gets the response when it has sent everything.
        """

        @evt.streaming
        async def handler(event: StoreEvent) -> int:
            async for part in event.stream:
                self.assertGreater(len(part), 0)
                break
            return 0xA700

        server = await self.serve((evt.EVT_C_STORE, handler))
        result = await run(dcmtk("storescu"), "-d", "-R", "-nh", "127.0.0.1", server.port, largest().path, ct_small())
        self.assertEqual(result.text.count(": 0xa700"), 2, result.text)
