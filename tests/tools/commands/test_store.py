"""``dicomtwist store``."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import UID
from twisted.internet.defer import Deferred

from dicomtwist import Association, evt
from dicomtwist.interfaces import AssociationInterface
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta
from dicomtwist.sop_class import CTImageStorage, MRImageStorage
from tests import peers
from tests.tools.common import Stores, ToolTestCase

EXPLICIT = "1.2.840.10008.1.2.1"


class Peers(ToolTestCase):
    """C-STORE with real peers."""

    async def test_twist_dicom_takes_all_there_is(self) -> None:
        """Every transfer syntax byte for byte, among files that are not DICOM."""
        files = {file.sop_instance: file for file in peers.dicom_files()}
        study = self.folder / "study"
        (study / "deep" / "deeper").mkdir(parents=True)
        for number, file in enumerate(files.values()):
            target = study / ("deep/deeper" if number % 2 else "") / f"{number}"
            target.write_bytes(Path(file.path).read_bytes())
        (study / "readme.txt").write_text("not DICOM")
        (study / "empty").touch()
        port, storage = await self.twist_dicom()
        document = await self.json("store", f"127.0.0.1:{port}", study, code=0)
        self.assertEqual((document["stored"], document["failed"], document["skipped"]), (len(files), 0, 2))
        by_name = {path.stem: path for path in storage.rglob("*.dcm")}
        self.assertEqual(set(by_name), set(files))
        for uid, file in files.items():
            sent = peers.dataset_bytes(file.path)
            self.assertEqual(peers.dataset_bytes(by_name[uid]), sent + b"\0" * (len(sent) % 2), file.name)

    async def test_storescp(self) -> None:
        """DCMTK accepts uncompressed files; the others fail, and the summary has each reason once."""
        out = self.folder / "out"
        port = await peers.dcmtk_storescp(self, out)
        self.instances(5)
        compressed = Path(str(get_testdata_file("MR_small_RLE.dcm")))
        result = await self.tool("store", f"127.0.0.1:{port}", self.folder / "study", compressed)
        self.assertEqual(result.code, 1, result.text)
        self.assertEqual(len(list(out.iterdir())), 5)
        text = result.stdout.decode()
        self.assertRegex(text, r"(?m)^  stored  5$")
        self.assertRegex(text, r"(?m)^  failed  1 +the peer did not accept a presentation context for MR Image Storage")
        self.assertRegex(text, r"(?m)^\d.* in \d+\.\d s, .* over 1 association$")
        self.assertRegex(
            result.stderr.decode(), rf"^failed {re.escape(str(compressed))}: the peer did not accept .*\n$"
        )

    async def test_converted_where_the_peer_takes_one_syntax_alone(self) -> None:
        """A peer with Implicit VR only receives Explicit VR files converted to Implicit VR."""
        out = self.folder / "out"
        port = await peers.dcmtk_storescp(self, out, "+xi")
        self.instances(2)
        self.assertEqual((await self.json("store", f"127.0.0.1:{port}", self.folder / "study", code=0))["stored"], 2)
        dump = await peers.run(peers.dcmtk("dcmdump"), "+P", "TransferSyntaxUID", *out.iterdir())
        self.assertEqual(dump.text.count("=LittleEndianImplicit"), 2, dump.text)

    async def test_a_status_of_failure(self) -> None:
        """Warnings are counted by their status."""
        stores = Stores(0xA700)
        server = await self.serve((evt.EVT_C_STORE, stores))
        self.instances(3)
        document = await self.json("store", f"127.0.0.1:{server.port}", self.folder / "study", code=1)
        self.assertEqual(document["failures"], {"0xA700 Refused: out of resources": 3})
        self.assertEqual((document["stored"], document["bytes"]), (0, 0))

    async def test_each_failed_file_is_in_the_document(self) -> None:
        """With its reason, whether it was refused or could not be read, whatever its name."""
        server = await self.serve((evt.EVT_C_STORE, Stores(0xA700)))
        paths = self.instances(25)
        odd = os.fsencode(self.folder / "study") + b"/\xff\n"
        with open(odd, "wb") as file:
            file.write(bytes(128) + b"DICM" + b"x" * 20)
        document = await self.json("store", f"127.0.0.1:{server.port}", self.folder / "study", code=1)
        failed = {one["path"]: one["reason"] for one in document["failed_files"]}
        self.assertEqual(set(failed), {*map(str, paths), os.fsdecode(odd)})
        self.assertEqual(failed[str(paths[0])], "0xA700 Refused: out of resources")
        self.assertEqual(document["failed"], 26)

    async def test_no_failed_file(self) -> None:
        server = await self.serve((evt.EVT_C_STORE, Stores()))
        self.instances(1)
        document = await self.json("store", f"127.0.0.1:{server.port}", self.folder / "study", code=0)
        self.assertEqual(document["failed_files"], [])

    async def test_folders_are_sent_in_order(self) -> None:
        """By name, numbers by their value, through subfolders, and across SOP Classes."""
        stores = Stores()
        server = await self.serve((evt.EVT_C_STORE, stores))
        for number, series in enumerate(("series 10", "series 9")):
            paths = self.instances(300, self.folder / series)
            for path in paths[::3]:
                dataset = dcmread(path)
                dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(MRImageStorage)
                dataset.SOPInstanceUID = f"1.2.826.0.2.{number}.{path.stem}"
                dataset.save_as(path)
        await self.json("store", f"127.0.0.1:{server.port}", self.folder, code=0)
        numbers = [int(uid.rpartition(".")[2]) for uid in stores.uids]
        self.assertEqual(numbers, [*range(300), *range(300)])
        self.assertEqual(stores.uids[0], "1.2.826.0.2.1.0", "series 9 comes before series 10")

    async def test_a_warning_is_stored(self) -> None:
        stores = Stores(0xB000)
        server = await self.serve((evt.EVT_C_STORE, stores))
        self.instances(2)
        document = await self.json("store", f"127.0.0.1:{server.port}", self.folder / "study", code=0)
        self.assertEqual(document["stored"], 2)
        self.assertEqual(document["warnings"], {"0xB000 Coercion of data elements": 2})


class Negotiation(ToolTestCase):
    """The proposed presentation contexts."""

    def tiny(self, number: int, syntax: str = EXPLICIT) -> None:
        """A file with a private SOP Class."""
        meta = FileMeta(f"1.2.3.4.{number}", f"1.2.3.5.{number}", syntax, "1.2.3")
        (self.folder / "study").mkdir(exist_ok=True)
        uid = f"1.2.3.5.{number}".encode()
        dataset = b"\x08\x00\x18\x00UI" + (len(uid) + len(uid) % 2).to_bytes(2, "little") + uid + b"\0" * (len(uid) % 2)
        (self.folder / "study" / f"{number}").write_bytes(encode_preamble_and_meta(meta) + dataset)

    async def test_just_what_the_files_need(self) -> None:
        proposals: list[list[tuple[str, list[str]]]] = []

        def requested(event: Any) -> None:
            contexts = event.pdu.presentation_contexts
            proposals.append([(each.abstract_syntax, list(each.transfer_syntaxes)) for each in contexts])

        server = await self.serve((evt.EVT_REQUESTED, requested), (evt.EVT_C_STORE, Stores()))
        self.instances(2)
        await self.json("store", f"127.0.0.1:{server.port}", self.folder / "study", code=0)
        self.assertEqual(proposals, [[(CTImageStorage, [EXPLICIT]), (CTImageStorage, ["1.2.840.10008.1.2"])]])

    async def test_more_than_an_association_has_place_for(self) -> None:
        """150 SOP Classes with two transfer syntaxes each take three associations, one after the other."""
        counts: list[int] = []
        stores = Stores()
        server = await self.serve(
            (evt.EVT_REQUESTED, lambda event: counts.append(len(event.pdu.presentation_contexts))),
            (evt.EVT_C_STORE, stores),
            promiscuous=True,
        )
        for number in range(150):
            self.tiny(number)
        document = await self.json("store", f"127.0.0.1:{server.port}", self.folder / "study", code=0)
        self.assertEqual((document["stored"], document["associations"]), (150, 3))
        self.assertEqual(sorted(counts), [44, 128, 128])
        self.assertEqual(len(set(stores.uids)), 150)

    async def test_nothing_accepted(self) -> None:
        server = await self.serve((evt.EVT_C_STORE, Stores()))
        for number in range(3):
            self.tiny(number)
        document = await self.json("store", f"127.0.0.1:{server.port}", self.folder / "study", code=1)
        self.assertEqual((document["failed"], document["cause"]["code"]), (3, "no-common-context"))

    async def test_operations_at_once(self) -> None:
        """The outstanding operations do not exceed what the peer agrees to."""
        stores = Stores(holds=True)
        server = await self.serve(
            (evt.EVT_C_STORE, stores), (evt.EVT_ASYNC_OPS, lambda event: (3, 1)), maximum_operations=3
        )
        self.instances(9)
        process = await self.start_tool("store", "--async-ops", "8", f"127.0.0.1:{server.port}", self.folder / "study")
        await stores.wait(3)
        self.assertEqual(len(stores.uids), 3)
        stores.answer()
        result = await process.wait()
        self.assertEqual(result.code, 0, result.text)
        self.assertEqual(len(set(stores.uids)), 9)

    async def test_associations_at_once(self) -> None:
        """The number of associations is as requested; the transfer goes on without one that the peer rejects."""
        stores = Stores(holds=True)
        server = await self.serve((evt.EVT_C_STORE, stores), maximum_associations=3)
        self.instances(9)
        process = await self.start_tool(
            "store", "--associations", "4", f"127.0.0.1:{server.port}", self.folder / "study"
        )
        await stores.wait(3)
        self.assertEqual(len(server.active_associations), 3)
        stores.answer()
        result = await process.wait()
        self.assertEqual(result.code, 0, result.text)
        self.assertEqual(len(set(stores.uids)), 9)


class Failures(ToolTestCase):
    """Failures."""

    async def test_nobody_there(self) -> None:
        self.instances(2)
        port = peers.free_port()
        document = await self.json("store", f"127.0.0.1:{port}", self.folder / "study", code=3)
        self.assertEqual((document["stored"], document["not_sent"], document["associations"]), (0, 2, 0))
        self.assertEqual(document["not_sent_files"], sorted(map(str, (self.folder / "study").rglob("*.dcm"))))
        self.assertEqual(document["cause"]["code"], "refused")

    async def test_rejected(self) -> None:
        self.instances(1)
        server = await self.serve(require_called_aet=True)
        result = await self.tool("store", f"WRONG@127.0.0.1:{server.port}", self.folder / "study")
        self.assertEqual(result.code, 3, result.text)
        self.assertIn("does not answer to the AE title WRONG", result.stderr.decode())

    async def test_no_paths_and_no_dicom(self) -> None:
        (self.folder / "readme.txt").write_text("not DICOM")
        for args, code, words in (
            ([], 2, "Missing argument"),
            ([self.folder / "nowhere"], 2, "does not exist"),
            ([self.folder], 1, "none of the files is a DICOM file"),
        ):
            result = await self.tool("store", "127.0.0.1:1", *args)
            self.assertEqual(result.code, code, result.text)
            self.assertIn(words, result.stderr.decode())

    async def test_a_broken_file(self) -> None:
        """A truncated file with the prefix DICM is a failure, and not skipped."""
        (path,) = self.instances(1)
        broken = path.with_name("broken")
        broken.write_bytes(path.read_bytes()[:150])
        server = await self.serve((evt.EVT_C_STORE, Stores()))
        document = await self.json("store", f"127.0.0.1:{server.port}", self.folder / "study", code=1)
        self.assertEqual((document["stored"], document["failed"], document["skipped"]), (1, 1, 0))
        self.assertIn("File Meta Information", next(iter(document["failures"])))

    async def test_an_association_that_breaks(self) -> None:
        """The instances that were under way are sent again over another association."""
        stores = Stores()
        aborted: list[AssociationInterface] = []

        def abort_once(event: evt.StoreEvent) -> Any:
            if len(stores.uids) == 4 and not aborted:
                aborted.append(event.assoc)
                event.assoc.abort("for the test")
                return 0
            return stores(event)

        server = await self.serve((evt.EVT_C_STORE, abort_once))
        self.instances(10)
        document = await self.json("store", f"127.0.0.1:{server.port}", self.folder / "study", code=0)
        self.assertEqual((document["stored"], document["associations"]), (10, 2))
        self.assertEqual(len(set(stores.uids)), 10)

    async def test_a_peer_that_is_started_anew(self) -> None:
        """The sender reconnects to a restarted peer, and sends unanswered instances again."""
        stores, gone = Stores(), Deferred[None]()
        stopping: list[Deferred[None]] = []

        def store(event: evt.StoreEvent) -> Any:
            if len(stores.uids) < 3 or gone.called:
                return stores(event)
            if not stopping:  # there are two associations
                stopping.append(server.shutdown(0).chainDeferred(gone))
            return Deferred()

        server = await self.serve((evt.EVT_C_STORE, store))
        self.instances(10)
        port = server.port
        command = ("store", "--associations", "2", f"127.0.0.1:{port}", self.folder / "study")
        process = await self.start_tool(*command)
        await gone
        await process.wait_for("the next attempt is in")
        await self.serve((evt.EVT_C_STORE, stores), address=("127.0.0.1", port))
        result = await process.wait()
        self.assertEqual(result.code, 0, result.text)
        self.assertEqual(len(set(stores.uids)), 10)

    async def test_a_peer_that_aborts_each_time(self) -> None:
        """The sender gives up after a few associations without a stored instance, not after one for each file."""

        def abort(event: evt.StoreEvent) -> int:
            event.assoc.abort("for the test")
            return 0

        server = await self.serve((evt.EVT_C_STORE, abort))
        self.instances(20)
        document = await self.json("store", f"127.0.0.1:{server.port}", self.folder / "study", code=1)
        self.assertEqual((document["stored"], document["associations"]), (0, 3))
        self.assertEqual(document["cause"]["code"], "ended")
        self.assertEqual(document["failed"] + document["not_sent"], 20)
        self.assertEqual(len(document["not_sent_files"]), document["not_sent"])
        failed = {item["path"] for item in document["failed_files"]}
        self.assertEqual(len(failed | set(document["not_sent_files"])), 20)

    async def test_names_that_are_no_text(self) -> None:
        """Files whose names are not UTF-8 or contain escape sequences are sent, and their names are printed escaped."""
        (path,) = self.instances(1)
        data = path.read_bytes()
        path.unlink()
        folder = os.fsencode(path.parent)
        for name in (b"\xff\xfe", b"\x1b[31mred"):
            with open(os.path.join(folder, name), "wb") as file:
                file.write(data)
        server = await self.serve((evt.EVT_C_STORE, Stores()))
        journal = self.folder / "journal"
        peer = f"127.0.0.1:{server.port}"
        result = await self.tool("store", "-v", "--resume", journal, peer, path.parent, env={"LC_ALL": "C"})
        self.assertEqual(result.code, 0, result.text)
        self.assertNotIn(b"\x1b", result.stderr)
        self.assertIn("\\x1b[31mred", result.stderr.decode())
        self.assertEqual((await self.json("store", "--resume", journal, peer, path.parent, code=0))["stored_before"], 2)


class Interrupted(ToolTestCase):
    """Ctrl-C and continuing."""

    async def test_in_order_and_resumed(self) -> None:
        """The first Ctrl-C waits for responses and releases; the same command then sends the rest once."""
        stores = Stores(holds=True)
        ended: list[Association] = []
        server = await self.serve(
            (evt.EVT_C_STORE, stores), (evt.EVT_RELEASED, lambda event: ended.append(event.assoc))
        )
        self.instances(12)
        journal = self.folder / "journal"
        command = ("store", "--resume", journal, f"127.0.0.1:{server.port}", self.folder / "study")
        process = await self.start_tool(*command)
        await stores.wait(1)
        process.signal("INT")
        await process.wait_for(
            "the instances under way are answered first, and no others are sent; interrupt once more"
        )
        stores.answer()
        result = await process.wait()
        self.assertEqual(result.code, 1, result.text)
        self.assertIn("interrupted: run the same command again to continue", result.text)
        self.assertEqual((len(stores.uids), len(ended)), (1, 1))
        self.assertRegex(result.stdout.decode(), r"(?m)^  stored    1$")
        self.assertRegex(result.stdout.decode(), r"(?m)^  not sent  11")
        document = await self.json(*command, code=0)
        self.assertEqual((document["stored"], document["stored_before"]), (11, 1))
        self.assertEqual(len(set(stores.uids)), 12)
        self.assertEqual(len(stores.uids), 12)
        self.assertEqual((await self.json(*command, code=0))["stored_before"], 12)

    async def test_at_once(self) -> None:
        """The second Ctrl-C aborts, at a terminal."""
        stores = Stores(holds=True)
        server = await self.serve((evt.EVT_C_STORE, stores))
        self.instances(3)
        process = self.terminal("store", f"127.0.0.1:{server.port}", self.folder / "study")
        await stores.wait(1)
        (association,) = server.active_associations
        process.type("\x03")
        await process.wait_for("once more to abort")
        self.assertTrue(association.is_established)
        process.type("\x03")
        result = await process.wait()
        self.assertEqual(result.code, 1, result.text)
        await association.when_ended()
        self.assertTrue(association.is_aborted)
        self.assertIn("interrupted", result.text)

    async def test_killed(self) -> None:
        """Instances in the journal are not sent again."""
        stores = Stores()
        gate = Stores(holds=True)

        def store(event: evt.StoreEvent) -> Any:
            return stores(event) if len(stores.uids) < 200 else gate(event)

        server = await self.serve((evt.EVT_C_STORE, store))
        self.instances(300)
        journal = self.folder / "journal"
        command = ("store", "--resume", journal, f"127.0.0.1:{server.port}", self.folder / "study")
        process = await self.start_tool(*command)
        await gate.wait(1)
        process.signal("KILL")
        await process.wait()
        noted = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
        self.assertGreater(len(noted), 0)
        before = len(stores.uids)
        gate.answer()
        document = await self.json(*command, code=0)
        self.assertEqual(document["stored_before"], len(noted))
        self.assertEqual(document["stored"], 300 - len(noted))
        self.assertEqual(len(stores.uids) + len(gate.uids) - before - 1, 300 - len(noted))

    async def test_a_changed_file_is_sent_again(self) -> None:
        stores = Stores()
        server = await self.serve((evt.EVT_C_STORE, stores))
        paths = self.instances(2)
        command = ("store", "--resume", self.folder / "journal", f"127.0.0.1:{server.port}", self.folder / "study")
        await self.json(*command, code=0)
        os.utime(paths[0], ns=(1, 1))
        document = await self.json(*command, code=0)
        self.assertEqual((document["stored"], document["stored_before"]), (1, 1))

    async def test_a_journal_of_another_peer(self) -> None:
        server = await self.serve((evt.EVT_C_STORE, Stores()))
        self.instances(1)
        journal = self.folder / "journal"
        await self.json("store", "--resume", journal, f"A@127.0.0.1:{server.port}", self.folder / "study", code=0)
        result = await self.tool("store", "--resume", journal, f"B@127.0.0.1:{server.port}", self.folder / "study")
        self.assertEqual(result.code, 2)
        self.assertIn("is about A@127.0.0.1", result.text)


class Bar(ToolTestCase):
    """The progress bar."""

    async def test_at_a_terminal(self) -> None:
        """The bar shows the amount that is done, the total, the speed and the remaining time."""
        stores = Stores(holds=True)
        server = await self.serve((evt.EVT_C_STORE, stores))
        self.instances(40)
        process = self.terminal("store", f"127.0.0.1:{server.port}", self.folder / "study")
        await stores.wait(1)
        # A total in bytes: the survey is done, and the first instance is sent.
        await process.until(lambda: re.search(r"%\|.*\| *[\d.]+k?/1\.5", process.text) is not None, 60, "a bar")
        stores.answer()
        result = await process.wait()
        self.assertEqual(result.code, 0, result.text)
        self.assertRegex(result.text, r"100%\|█+\| 1\.5\dM/1\.5\dM \[\d\d:\d\d<00:00, .*B/s, 40 stored\]")
        self.assertRegex(result.text, r"(?m)^  stored  40\r$")

    async def test_not_in_a_pipe(self) -> None:
        server = await self.serve((evt.EVT_C_STORE, Stores()))
        self.instances(3)
        result = await self.tool("store", f"127.0.0.1:{server.port}", self.folder / "study")
        self.assertEqual((result.code, result.stderr), (0, b""), result.text)

    async def test_not_where_it_is_quiet(self) -> None:
        server = await self.serve((evt.EVT_C_STORE, Stores()))
        self.instances(3)
        result = await self.terminal("store", "-q", f"127.0.0.1:{server.port}", self.folder / "study").wait()
        self.assertEqual((result.code, result.text), (0, ""))
