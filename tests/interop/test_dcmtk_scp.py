"""
Our client against DCMTK's storescp.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.tag import Tag
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ConnectionRefusedError as ConnectError
from twisted.python.failure import Failure

from dicomtwist import (
    AE,
    AssociationAborted,
    AssociationError,
    AssociationLost,
    AssociationRejected,
    NoPresentationContext,
    NotEstablished,
    evt,
)
from dicomtwist.association.explanations import syntax_names
from tests.interop.common import (
    BIG_ENDIAN,
    CT,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    VERIFICATION,
    InteropTestCase,
    Recorder,
)
from tests.peers import (
    DicomFile,
    dataset_bytes,
    dcmtk,
    dcmtk_storescp,
    dicom_files,
    free_port,
    one_per_transfer_syntax,
    run,
    start,
)

FILES = list(one_per_transfer_syntax(without_study=True).values())


def uncompressed(suffix: str) -> DicomFile:
    """Return one of pydicom's files by the end of its path."""
    (found,) = (file for file in dicom_files(without_study=True) if file.path.endswith(suffix))
    return found


def padded(data: bytes) -> bytes:
    """Return a data set as it is sent: a deflated one may need a byte for an even length (PS3.5 A.5)."""
    return data + b"\0" * (len(data) & 1)


def values(dataset: Dataset) -> dict[int, Any]:
    """Return the values of a data set in a form that can be compared, without group lengths and padding."""
    found: dict[int, Any] = {}
    for element in dataset:
        if element.tag.element == 0 or element.tag == 0xFFFCFFFC:
            continue
        value = element.value
        if element.VR == "SQ":
            found[element.tag] = [values(item) for item in value]
        elif element.is_private or element.VR == "UN":
            found[element.tag] = None
        elif isinstance(value, bytes):
            found[element.tag] = value
        else:
            found[element.tag] = str(value)
    return found


class Scp(InteropTestCase):
    """
    A storescp for each test.
    """

    async def scp(self, *flags: object) -> int:
        """Start storescp; it stores into ``self.folder``."""
        self.folder = Path(self.mktemp())
        return await dcmtk_storescp(self, self.folder, "-pm", *flags)

    def taken(self) -> bytes:
        """Return the data set of the only file that it stored, and remove the file."""
        (path,) = self.folder.iterdir()
        content = dataset_bytes(path)
        path.unlink()
        return content

    def proposing(self, *files: DicomFile, **settings: Any) -> AE:
        """Return an AE that proposes Verification, and for each file exactly its transfer syntax."""
        ae = self.requestor(**settings)
        for sop_class, syntax in dict.fromkeys((file.sop_class, file.transfer_syntax) for file in files):
            ae.add_requested_context(sop_class, syntax)
        return ae

    def assert_same(self, ours: Dataset, theirs: Dataset, label: str) -> None:
        """
        Check that both have the same elements. VRs are not compared, since Implicit VR leaves them to the dictionary.
        """
        left, right = values(ours), values(theirs)
        different = [
            f"{Tag(tag)}: {left.get(tag)!r:.60} {right.get(tag)!r:.60}"
            for tag in left | right
            if left.get(tag) != right.get(tag)
        ]
        self.assertEqual(different, [], label)


class StoreTests(Scp):
    """
    C-ECHO and C-STORE.
    """

    async def test_echo(self) -> None:
        """
        One association with several operations, released in order.
        """
        port = await self.scp("-aet", "DCMTK")
        ae = self.requestor()
        assoc = await ae.associate("127.0.0.1", port, ae_title="DCMTK")
        for _ in range(20):
            self.assertEqual(await assoc.send_c_echo(), 0)
        self.assertEqual(assoc.acceptor.maximum_length, 16384)
        self.assertTrue(assoc.acceptor.implementation_version_name.startswith("OFFIS_DCMTK"))
        await assoc.release()
        self.assertTrue(assoc.is_released)
        self.assertIsNone(assoc.end_reason)
        await self.assert_fails(assoc.send_c_echo(), NotEstablished)
        self.assertEqual(ae.active_associations, [])

    async def test_every_transfer_syntax(self) -> None:
        """
        The bytes of the data set in the stored file are ours, in each transfer syntax, from a path, from an open file, and
        from memory.
        """
        port = await self.scp("+xa", "+B")
        ae = self.proposing(*FILES)
        async with await ae.associate("127.0.0.1", port) as assoc:
            for file in FILES:
                expected = padded(dataset_bytes(file.path))
                for source in (file.path, Path(file.path), BytesIO(Path(file.path).read_bytes())):
                    self.assertEqual(await assoc.send_c_store(source), 0)
                    self.assertEqual(self.taken() == expected, True, file.name)
                with open(file.path, "rb") as opened:
                    self.assertEqual(await assoc.send_c_store(opened), 0)
                    self.assertFalse(opened.closed)
                self.assertEqual(self.taken() == expected, True, file.name)

    async def test_dataset(self) -> None:
        """
        A pydicom Dataset, sent in each transfer syntax and read back, is unchanged.
        """
        port = await self.scp("+xa", "+B")
        ae = self.proposing(*FILES)
        async with await ae.associate("127.0.0.1", port) as assoc:
            for file in FILES:
                dataset = dcmread(file.path)
                self.assertEqual(await assoc.send_c_store(dataset), 0)
                (path,) = self.folder.iterdir()
                stored = dcmread(path)
                self.assertEqual(stored.file_meta.TransferSyntaxUID, file.transfer_syntax)
                self.assert_same(stored, dataset, file.name)
                path.unlink()

    async def test_file_is_read_by_dcmdump(self) -> None:
        """
        Without +B, storescp parses the received data set and encodes it in its own way: it understands all of it.
        """
        port = await self.scp("+xa", "+uf")
        ae = self.proposing(*FILES)
        async with await ae.associate("127.0.0.1", port) as assoc:
            for file in FILES:
                self.assertEqual(await assoc.send_c_store(file.path), 0)
        dumped = await run(dcmtk("dcmdump"), "-q", *self.folder.iterdir())
        self.assertEqual((dumped.code, dumped.stderr), (0, b""))

    async def test_every_file(self) -> None:
        """
        All of pydicom's files on one association, as paths, all requested at once: they are sent one after the other.
        """
        # storescp does not accept Color Palette Storage, not even with -pm.
        files = [file for file in dicom_files(without_study=True) if not file.name.startswith("palettes")]
        port = await self.scp("+xa", "+B", "+uf")
        ae = self.proposing(*files)
        async with await ae.associate("127.0.0.1", port) as assoc:
            results = await DeferredList([assoc.send_c_store(file.path) for file in files], fireOnOneErrback=True)
        self.assertEqual({(success, int(status)) for success, status in results}, {(True, 0)})
        stored = sorted(dataset_bytes(path) for path in self.folder.iterdir())
        self.assertEqual(stored == sorted(padded(dataset_bytes(file.path)) for file in files), True)

    async def test_pdu_sizes(self) -> None:
        """
        The bytes that arrive do not depend on the peer's maximum PDU length.
        """
        file = uncompressed("examples_overlay.dcm")
        for size in (4096, 16384, 131072):
            port = await self.scp("+xa", "+B", "-pdu", size)
            for ours in (0, 4096, 1 << 20):
                async with await self.proposing(file).associate("127.0.0.1", port, max_pdu=ours) as assoc:
                    self.assertEqual(assoc.acceptor.maximum_length, size)
                    self.assertEqual(await assoc.send_c_store(file.path), 0)
                self.assertEqual(self.taken() == dataset_bytes(file.path), True, (size, ours))

    async def test_sequential_and_concurrent_associations(self) -> None:
        """
        Forty associations, one after the other, then eight at a time.
        """
        file = uncompressed("CT_small.dcm")
        port = await self.scp("--fork", "+xa", "+B", "+uf")
        ae = self.proposing(file)

        async def one() -> None:
            async with await ae.associate("127.0.0.1", port) as assoc:
                self.assertEqual(await assoc.send_c_echo(), 0)
                self.assertEqual(await assoc.send_c_store(file.path), 0)

        for _ in range(40):
            await one()
        for _ in range(3):
            results = await DeferredList([Deferred.fromCoroutine(one()) for _ in range(8)], consumeErrors=True)
            self.assertEqual(results, [(True, None)] * 8)
        stored = list(self.folder.iterdir())
        self.assertEqual(len(stored), 64)
        self.assertEqual({dataset_bytes(path) == dataset_bytes(file.path) for path in stored}, {True})
        self.assertEqual(ae.active_associations, [])


class ConversionTests(Scp):
    """
    A data set in a transfer syntax that was not accepted.
    """

    SYNTAXES = {
        IMPLICIT: ("+xi", "+ti"),
        EXPLICIT: ("+xe", "+te"),
        BIG_ENDIAN: ("+xb", "+tb"),
        DEFLATED: ("+xd", "+td"),
    }

    async def _send(self, file: DicomFile, target: str, source: Any) -> Path:
        """Send to an acceptor that accepts only *target*; return the path of the file that it stored."""
        ae = self.requestor(VERIFICATION, (file.sop_class, target))
        async with await ae.associate("127.0.0.1", self.port) as assoc:
            self.assertEqual(await assoc.send_c_store(source), 0)
        (path,) = self.folder.iterdir()
        return path

    async def test_uncompressed(self) -> None:
        """
        Paths and Datasets are converted between the four uncompressed transfer syntaxes: pydicom reads in DCMTK's file the
        original data set, pixel data included.
        """
        self.port = await self.scp("+xa", "+B")
        names = ("CT_small.dcm", "MR_small_bigendian.dcm", "rtplan.dcm", "image_dfl.dcm", "ExplVR_BigEnd.dcm")
        converted = Path(self.mktemp())
        for file in [file for file in dicom_files(without_study=True) if file.path.endswith(names)]:
            original = dcmread(file.path)
            for target, (_, flag) in self.SYNTAXES.items():
                result = await run(dcmtk("dcmconv"), "-q", flag, file.path, converted)
                self.assertEqual(result.code, 0, result.text)
                theirs = dcmread(converted)
                for source in (file.path, original):
                    label = f"{file.name} -> {target.name}, {type(source).__name__}"
                    path = await self._send(file, target, source)
                    ours = dcmread(path)
                    path.unlink()
                    self.assertEqual(ours.file_meta.TransferSyntaxUID, target, label)
                    self.assert_same(ours, theirs, label)
                self.assertEqual(dcmread(file.path) == original, True, "the caller's Dataset was changed")

    async def test_what_the_peer_prefers(self) -> None:
        """
        An AE that proposes the uncompressed transfer syntaxes uses the acceptor's choice.
        """
        file = uncompressed("CT_small.dcm")
        converted = Path(self.mktemp())
        for target, (flag, conversion) in self.SYNTAXES.items():
            await run(dcmtk("dcmconv"), conversion, file.path, converted)
            port = await self.scp(flag, "+B")
            ae = self.requestor(VERIFICATION, (CT, [IMPLICIT, BIG_ENDIAN, DEFLATED, EXPLICIT]))
            async with await ae.associate("127.0.0.1", port) as assoc:
                (context,) = (each for each in assoc.accepted_contexts if each.abstract_syntax == CT)
                self.assertEqual(context.transfer_syntax, [target])
                self.assertEqual(await assoc.send_c_store(file.path), 0)
            (path,) = self.folder.iterdir()
            self.assert_same(dcmread(path), dcmread(converted), target.name)

    async def test_compressed_without_a_context(self) -> None:
        """
        A compressed data set is not converted: without a context in its own transfer syntax it is not sent, and the
        association continues.
        """
        port = await self.scp()
        for file in FILES:
            if file.transfer_syntax in (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED):
                continue
            ae = self.requestor(VERIFICATION, (file.sop_class, [IMPLICIT, EXPLICIT]))
            async with await ae.associate("127.0.0.1", port) as assoc:
                for source in (file.path, dcmread(file.path), BytesIO(Path(file.path).read_bytes())):
                    error = await self.assert_fails(assoc.send_c_store(source), NoPresentationContext)
                    self.assertIn(syntax_names([file.transfer_syntax]), str(error))
                self.assertEqual(await assoc.send_c_echo(), 0)
        self.assertEqual(list(self.folder.iterdir()), [])

    async def test_refused_context(self) -> None:
        """
        For a context that was proposed but not accepted, the error says so.
        """
        port = await self.scp("+xi")
        ae = self.requestor(VERIFICATION, (CT, EXPLICIT))
        async with await ae.associate("127.0.0.1", port) as assoc:
            error = await self.assert_fails(
                assoc.send_c_store(uncompressed("CT_small.dcm").path), NoPresentationContext
            )
            self.assertIn("the peer did not accept", str(error))
            self.assertEqual([context.result for context in assoc.rejected_contexts], [4])


class EndingTests(Scp):
    """
    Peers that refuse, abort or die.
    """

    async def test_refuse(self) -> None:
        """
        A rejection is an exception with result, source and reason.
        """
        port = await self.scp("--refuse")
        rejected = Recorder()
        ae = self.requestor()
        error = await self.assert_fails(
            ae.associate("127.0.0.1", port, evt_handlers=[(evt.EVT_REJECTED, rejected)]), AssociationRejected
        )
        self.assertEqual((error.result, error.source, error.reason), (1, 1, 1))
        self.assertTrue(error.is_permanent)
        self.assertIn("rejected permanently", str(error))
        self.assertEqual(len(rejected.events), 1)
        self.assertTrue(rejected.events[0].assoc.is_rejected)
        self.assertEqual(ae.active_associations, [])

    async def test_reject_without_implementation_class(self) -> None:
        """
        An acceptor that requires an Implementation Class UID gets ours.
        """
        port = await self.scp("--reject")
        async with await self.requestor().associate("127.0.0.1", port) as assoc:
            self.assertEqual(await assoc.send_c_echo(), 0)

    async def _fails_once(self, *flags: object) -> None:
        file = uncompressed("examples_overlay.dcm")
        port = await self.scp("+xa", *flags)
        aborted = Recorder()
        assoc = await self.proposing(file).associate("127.0.0.1", port, evt_handlers=[(evt.EVT_ABORTED, aborted)])
        failures: list[BaseException | None] = []
        waiting: list[Deferred[Any]] = [assoc.send_c_store(file.path) for _ in range(3)]
        waiting += [assoc.send_c_echo(), assoc.release()]

        def failed(failure: Failure) -> None:
            failures.append(failure.value)

        for deferred in waiting:
            deferred.addErrback(failed)
        results = await DeferredList(waiting)
        self.assertEqual([result for _, result in results], [None] * 5)
        self.assertEqual(len(failures), 5)
        for error in failures:
            self.assertIsInstance(error, AssociationAborted | AssociationLost)
        await assoc.when_ended()
        self.assertEqual(len(aborted.events), 1)
        self.assertTrue(assoc.is_aborted)
        self.assertIs(assoc.end_reason, failures[0])
        await self.assert_fails(assoc.send_c_echo(), NotEstablished)

    async def test_abort_after(self) -> None:
        """
        The peer aborts instead of responding: each waiting operation fails once.
        """
        await self._fails_once("--abort-after")

    async def test_abort_during(self) -> None:
        """
        The peer aborts during the transfer of the data set.
        """
        await self._fails_once("--abort-during", "-pdu", 4096)

    async def test_our_abort(self) -> None:
        """
        Waiting operations fail with our own abort, and the peer is ready for the next association.
        """
        file = uncompressed("examples_overlay.dcm")
        port = await self.scp("+xa")
        ae = self.proposing(file)
        assoc = await ae.associate("127.0.0.1", port)
        store = assoc.send_c_store(file.path)
        assoc.abort("enough")
        error = await self.assert_fails(store, AssociationError, NotEstablished)
        self.assertIn("enough", f"{error} {error.__cause__}")
        await assoc.when_ended()
        async with await ae.associate("127.0.0.1", port) as second:
            self.assertEqual(await second.send_c_echo(), 0)

    async def test_killed_peer(self) -> None:
        """
        The connection is lost when the peer dies.
        """
        file = uncompressed("examples_overlay.dcm")
        port = free_port()
        peer = await start(self, dcmtk("storescp"), "--ignore", "--sleep-during", 30, port, ready=port)
        assoc = await self.proposing(file).associate("127.0.0.1", port)
        store = assoc.send_c_store(file.path)
        await peer.stop("KILL")
        error = await self.assert_fails(store, AssociationLost, AssociationAborted)
        self.assertIsInstance(error, AssociationError)
        self.assertTrue(assoc.is_aborted)

    async def test_nobody_listens(self) -> None:
        """
        If the TCP connection is refused, its error is that of the association.
        """
        await self.assert_fails(self.requestor().associate("127.0.0.1", free_port()), ConnectError)
