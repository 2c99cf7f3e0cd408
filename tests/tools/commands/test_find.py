"""``dicomtwist find`` and ``dicomtwist worklist``, and their output."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest import mock

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import AE, Association, evt
from dicomtwist.retrieval.keyword_json import to_json
from dicomtwist.sop_class import ModalityWorklistInformationFind
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelFind as STUDY_FIND
from dicomtwist.tools.display.console import Output, printable
from dicomtwist.tools.display.result_table import (
    PAGE,
    CSVWriter,
    JSONWriter,
    ResultWriter,
    TableWriter,
    text_of,
)
from dicomtwist.tools.display.text_table import display_width
from dicomtwist.tools.query.keys import parse_key
from tests import peers
from tests.archive.services.worklists import items, write
from tests.interop.archives import dcmqrscp, orthanc, study, wlmscpfs
from tests.tools.common import ToolTestCase, reactor


def answer(**values: Any) -> Dataset:
    """Return a response at STUDY level."""
    dataset = Dataset()
    dataset.QueryRetrieveLevel = "STUDY"
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def patients() -> Iterator[tuple[int, Dataset]]:
    """Yield responses without end."""
    number = 0
    while True:
        number += 1
        yield 0xFF00, answer(PatientID=f"P{number}", PatientName="Doe^Jane")


class Lines(SynchronousTestCase):
    """The form of the output."""

    def printed(self, make: Any, *answers: Dataset, as_json: bool = False) -> str:
        stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        with mock.patch("sys.stdout", stream):
            rows: ResultWriter = make(Output(as_json=as_json))
            for each in answers:
                rows.add(each)
            rows.flush()
            if isinstance(rows, JSONWriter):
                rows.end({"count": len(answers)})
        stream.seek(0)
        return stream.read()

    columns = tuple(parse_key(text).path for text in ("PatientID", "PatientName", "ModalitiesInStudy"))

    def test_table(self) -> None:
        """The first page sets the widths, for wide letters too; a longer value on a later page is not cut."""
        rows = [answer(PatientID="1", PatientName="山田", ModalitiesInStudy=["CT", "MR"]), answer(PatientID="\x1b[2J")]
        rows += [answer(PatientID=str(number), PatientName="A") for number in range(PAGE)]
        rows.append(answer(PatientID="a very long one", PatientName="B"))
        lines = self.printed(lambda output: TableWriter(output, self.columns), *rows).splitlines()
        self.assertEqual(
            lines[:3],
            ["PatientID  PatientName  ModalitiesInStudy", "1          山田         CT\\MR", "\\x1b[2J"],
        )
        self.assertEqual((len(lines), lines[-1]), (len(rows) + 1, "a very long one  B"))

    def test_a_table_at_a_terminal(self) -> None:
        """Every line fits, on later pages too, and no character of a value is lost."""
        self.patch(os, "environ", {**os.environ, "COLUMNS": "40"})
        rows = [answer(PatientID="1" * 50, PatientName="山田" * 20, ModalitiesInStudy=["CT", "MR"])]
        rows += [answer(PatientID=str(number), PatientName="A") for number in range(PAGE)]
        rows.append(answer(PatientID="2" * 50, PatientName="B"))
        text = self.printed(lambda output: TableWriter(output, self.columns), *rows)
        self.assertTrue(all(display_width(line) <= 40 for line in text.splitlines()), text)
        self.assertEqual((text.count("山田"), text.count("1") >= 50, text.count("2") >= 50), (20, True, True))

    def test_too_many_columns_for_a_terminal(self) -> None:
        """Matches become blocks of lines, each with the name of the attribute and the value."""
        self.patch(os, "environ", {**os.environ, "COLUMNS": "30"})
        columns = self.columns * 3
        text = self.printed(lambda output: TableWriter(output, columns), answer(PatientID="12"), answer(PatientID="3"))
        self.assertTrue(all(len(line) <= 30 for line in text.splitlines()), text)
        self.assertEqual(text.count("\n\n"), 2)
        self.assertRegex(text, r"(?m)^PatientID.* +12$")

    def test_a_table_of_nothing(self) -> None:
        self.assertEqual(self.printed(lambda output: TableWriter(output, self.columns)), "")

    def test_csv(self) -> None:
        text = self.printed(
            lambda output: CSVWriter(output, self.columns), answer(PatientID='a,"b"', PatientName="X\nY"), answer()
        )
        self.assertEqual(
            list(csv.reader(io.StringIO(text))),
            [["PatientID", "PatientName", "ModalitiesInStudy"], ['a,"b"', "X\\nY", ""], ["", "", ""]],
        )

    def test_no_formula_in_csv(self) -> None:
        """A value that a spreadsheet would run gets an apostrophe in front, wherever it is; any other stays as it is."""
        formulas = (
            *("=1+1", "=cmd|' /C calc'!A0", "+1", "-1", "-2+3", "@SUM(A1)", "==", '="a,b"', "\uff1d1+1", "\ufe621"),
            *("\t=1", "\tx", "\rx", "\nx", "\r=1", " =1", "\u3000=1", "\ufeff=1", "\0-1", "\x1b+1"),
        )
        plain = ("1-1", "a=b", "Doe^John", "'t Hooft", "1.2.3", "", " x", "a@b", "\\-1", "\x1b[2J")
        for column in range(2):
            for value in (*formulas, *plain):
                values = {"PatientID": value} if column == 0 else {"PatientName": value}
                text = self.printed(lambda output: CSVWriter(output, self.columns), answer(**values))
                _, row = csv.reader(io.StringIO(text))
                shown = printable(text_of(answer(**values), self.columns[column]))
                self.assertEqual(row[column], f"'{shown}" if value in formulas and shown else shown, repr(value))
                self.assertEqual(row[1 - column], "")

    def test_json(self) -> None:
        """One document with any number of items; its strings have no control characters."""
        for count in range(3):
            text = self.printed(
                lambda output: JSONWriter(output, {"command": "find"}, "matches"),
                *[answer(PatientName="\x1b]0;x\x07")] * count,
                as_json=True,
            )
            self.assertTrue(text.isascii() and text[:-1].isprintable())
            document = json.loads(text)
            self.assertEqual((len(document["matches"]), document["count"]), (count, count))

    def test_values_of_each_kind(self) -> None:
        dataset = answer(Rows=3, PatientSize="1.5", OtherPatientIDsSequence=[answer(PatientID="x")])
        dataset.add_new(0x00091001, "UN", b"\x01")
        # A value that is not a number, as a peer may send it.
        dataset[0x00201208] = RawDataElement(Tag(0x00201208), "IS", 4, b"many", 0, False, True)
        self.assertEqual(
            to_json(dataset),
            {
                "QueryRetrieveLevel": "STUDY",
                "(0009,1001)": "AQ==",
                "OtherPatientIDsSequence": [{"PatientID": "x", "QueryRetrieveLevel": "STUDY"}],
                "PatientSize": 1.5,
                "Rows": 3,
                "NumberOfStudyRelatedInstances": "many",
            },
        )


class Archives(ToolTestCase):
    """Real archives, each queried for the same study of two series."""

    async def ask(self, peer: str) -> None:
        """Query in each format, for what the archive has and has not."""
        uid = study()[0].study
        result = await self.tool("find", peer, "-k", f"StudyInstanceUID={uid}", "-k", "PatientID")
        self.assertEqual(result.code, 0, result.text)
        heading, row = result.stdout.decode().splitlines()
        self.assertEqual(heading.split(), ["StudyInstanceUID", "PatientID"])
        self.assertTrue(row.startswith(f"{uid}  "), row)
        self.assertEqual(result.stderr, b"1 match\n")
        file = self.folder / "keys"
        file.write_text(f"# series\nStudyInstanceUID={uid}\nSeriesInstanceUID\n(0008,0060)\n")
        result = await self.tool("find", "--csv", "--level", "series", "-f", file, peer)
        self.assertEqual(result.code, 0, result.text)
        rows = list(csv.DictReader(io.StringIO(result.stdout.decode())))
        self.assertEqual({row["SeriesInstanceUID"] for row in rows}, {file.series for file in study()})
        self.assertEqual({row["Modality"] for row in rows}, {"CT"})
        document = await self.json(
            "find", peer, "--root", "patient", "--level", "PATIENT", "-k", "PatientID=NO*", code=0
        )
        self.assertEqual((document["matches"], document["status"]), ([], "0x0000"))

    async def test_twist_dicom(self) -> None:
        port, _ = await self.twist_dicom()
        peer = f"127.0.0.1:{port}"
        await self.tool("store", "-q", peer, *[file.path for file in study()])
        await self.ask(peer)
        document = await self.json("find", peer, "--level", "IMAGE", code=1)
        self.assertEqual(document["status"], "0xA900")
        self.assertIn("StudyInstanceUID is missing", document["error"])
        # The peer has no worklist.
        document = await self.json("worklist", peer, code=3)
        self.assertEqual(document["cause"]["code"], "no-common-context")

    async def test_dcmqrscp(self) -> None:
        port = await dcmqrscp(self, study())
        await self.ask(f"DCMQRSCP@127.0.0.1:{port}")
        self.assertEqual((await self.json("find", f"WRONG@127.0.0.1:{port}", code=3))["cause"]["code"], "called-title")

    async def test_orthanc(self) -> None:
        await self.ask(f"ORTHANC@127.0.0.1:{await orthanc(self, study())}")


class Worklists(ToolTestCase):
    """twist dicom and wlmscpfs return the same worklist items."""

    async def ask(self, peer: str) -> None:
        """Query the worklist with each option."""
        for options, expected in (
            (("--date", "2024-01-07-"), 4),
            (("--modality", "CT", "--station", "AA33"), 0),
            (("--patient", "VIVALDI*"), 2),
        ):
            document = await self.json("worklist", peer, *options, code=0)
            self.assertEqual(document["count"], expected, options)
        result = await self.tool("worklist", peer, "--station", "AA33", "-k", "PatientSex")
        self.assertEqual(result.code, 0, result.text)
        heading, row = result.stdout.decode().splitlines()
        self.assertEqual(heading.split()[::12], ["ScheduledProcedureStepStartDate"])
        self.assertTrue(heading.endswith("PatientSex"))
        self.assertIn("  AA32\\AA33  ", row)

    async def test_twist_dicom(self) -> None:
        folder = self.folder / "worklist"
        folder.mkdir()
        for number, item in enumerate(items()):
            write(folder / f"{number}.wl", item)
        port, _ = await self.twist_dicom("--worklist", str(folder))
        await self.ask(f"127.0.0.1:{port}")

    async def test_wlmscpfs(self) -> None:
        port = await wlmscpfs(self, items())
        await self.ask(f"WORKLIST@127.0.0.1:{port}")
        self.assertEqual((await self.tool("worklist", f"NOBODY@127.0.0.1:{port}")).code, 3)

    def test_mistakes(self) -> None:
        for options, words in (
            (["--date", "20240230"], "neither a date"),
            (["--date", "-"], "neither a date"),
            (["--date", "soon"], "neither a date"),
            (["-k", "Patient"], "neither the keyword"),
            (["-f", str(self.folder / "none")], "does not exist"),
            (["--csv", "--json"], "contradict"),
        ):
            result = self.misuse("worklist", "127.0.0.1:1", *options)
            self.assertEqual(result.code, 2)
            self.assertIn(words, result.text)


class Conduct(ToolTestCase):
    """Output to a terminal and into pipes, and interrupts."""

    async def serve_find(self, handler: Any, *more: Any) -> str:
        """Serve a C-FIND handler; return the peer."""
        ae = AE("SCP")
        ae.add_supported_context(STUDY_FIND)
        self.addCleanup(ae.shutdown)
        server = await ae.start_server(("127.0.0.1", 0), evt_handlers=[(evt.EVT_C_FIND, handler), *more])
        return f"127.0.0.1:{server.port}"

    async def test_what_a_peer_says_is_harmless(self) -> None:
        """No escape sequence from a peer reaches the terminal."""
        peer = await self.serve_find(lambda event: [(0xFF00, answer(PatientName="\x1b]0;owned\x07A\r\nB"))])
        process = self.terminal("find", peer, "-k", "PatientName")
        result = await process.wait(120)
        self.assertEqual(result.code, 0, result.text)
        self.assertEqual(
            result.stdout.decode().replace("\r\n", "\n"), "PatientName\n\\x1b]0;owned\\x07A\\r\\nB\n1 match\n"
        )

    async def test_quiet(self) -> None:
        """``-q`` drops notes, not the matches."""
        peer = await self.serve_find(lambda event: [(0xFF00, answer(PatientID="1"))])
        result = await self.tool("find", "-q", "--csv", peer, "-k", "PatientID")
        self.assertEqual((result.code, result.stdout, result.stderr), (0, b"PatientID\n1\n", b""))
        result = await self.tool("find", "-q", peer, "-k", "PatientID")
        self.assertEqual((result.code, result.stdout, result.stderr), (0, b"PatientID\n1\n", b""))

    async def test_limit(self) -> None:
        """At the limit the peer is stopped and the association released."""
        ended: Deferred[Association] = Deferred()
        cancelled: list[Any] = []
        peer = await self.serve_find(
            lambda event: patients(),
            (evt.EVT_C_CANCEL, lambda event: cancelled.append(event)),
            (evt.EVT_RELEASED, lambda event: ended.callback(event.assoc)),
        )
        result = await self.tool("find", "--limit", PAGE + 10, peer, "-k", "PatientID")
        self.assertEqual(result.code, 0, result.text)
        lines = result.stdout.decode().splitlines()
        self.assertEqual((lines[0], lines[-1], len(lines)), ("PatientID", f"P{PAGE + 10}", PAGE + 11))
        await ended
        self.assertEqual(len(cancelled), 1)

    async def test_a_reader_that_goes(self) -> None:
        """A reader that closes the pipe stops the peer, without a message."""
        peer = await self.serve_find(lambda event: patients())
        command = f'"{sys.executable}" -m dicomtwist.tools find {peer} -k PatientID -k PatientName=* | head -n 3'
        result = await peers.run("/bin/bash", "-c", f"set -o pipefail; {command}", timeout=120)
        self.assertEqual(len(result.stdout.splitlines()), 3)
        self.assertNotIn(b"Broken", result.stderr)
        self.assertEqual(result.code, 0, result.text)

    async def test_interrupted(self) -> None:
        """An interrupt sends C-CANCEL and releases; the JSON document is complete."""
        ended: Deferred[Association] = Deferred()
        asked: Deferred[None] = Deferred()
        count_next: Deferred[None] = Deferred()

        async def find(event: Any) -> AsyncIterator[Any]:
            yield 0xFF00, answer(PatientID="1")
            asked.callback(None)
            await count_next
            yield 0xFE00, None

        peer = await self.serve_find(
            find,
            (evt.EVT_C_CANCEL, lambda event: count_next.callback(None)),
            (evt.EVT_RELEASED, lambda event: ended.callback(event.assoc)),
        )
        process = await self.start_tool("find", "--json", peer)
        await asked.addTimeout(120, reactor)
        await process.wait_for('"PatientID": "1"', 120)
        process.signal("INT")
        result = await process.wait(120)
        self.assertEqual(result.code, 1, result.text)
        document = json.loads(result.stdout)
        self.assertEqual((document["count"], document["interrupted"]), (1, True))
        await ended

    async def test_a_worklist_interrupted(self) -> None:
        """SIGTERM acts as Ctrl-C does, here while a table is printed into a pipe."""
        ended: Deferred[Association] = Deferred()
        asked: Deferred[None] = Deferred()
        count_next: Deferred[None] = Deferred()

        async def find(event: Any) -> AsyncIterator[Any]:
            yield 0xFF00, answer(PatientID="1")
            asked.callback(None)
            await count_next
            yield 0xFE00, None

        ae = AE("SCP")
        ae.add_supported_context(ModalityWorklistInformationFind)
        self.addCleanup(ae.shutdown)
        handlers: list[Any] = [
            (evt.EVT_C_FIND, find),
            (evt.EVT_C_CANCEL, lambda event: count_next.callback(None)),
            (evt.EVT_RELEASED, lambda event: ended.callback(event.assoc)),
        ]
        server = await ae.start_server(("127.0.0.1", 0), evt_handlers=handlers)
        process = await self.start_tool("worklist", f"127.0.0.1:{server.port}")
        await asked.addTimeout(120, reactor)
        await process.wait_for("PatientID", 120)
        process.signal("TERM")
        result = await process.wait(120)
        self.assertEqual(result.code, 1, result.text)
        self.assertEqual(len(result.stdout.splitlines()), 2, result.text)
        await ended

    async def test_interrupted_twice(self) -> None:
        """A peer that ignores C-CANCEL: a second interrupt aborts."""
        asked: Deferred[Association] = Deferred()
        never: Deferred[None] = Deferred()

        async def find(event: Any) -> AsyncIterator[Any]:
            asked.callback(event.assoc)
            await never
            yield 0x0000, None

        peer = await self.serve_find(find)
        process = await self.start_tool("find", peer)
        association = await asked.addTimeout(120, reactor)
        process.signal("INT")
        await process.wait_for("once more to abort", 120)
        process.signal("INT")
        result = await process.wait(120)
        self.assertEqual(result.code, 1, result.text)
        self.assertIn("dicomtwist: interrupted\n", result.stderr.decode())
        await association.when_ended()
        self.assertTrue(association.is_aborted)

    def test_mistakes(self) -> None:
        for options, words in (
            (["--level", "PATIENT", "--root", "study"], "has no patient level"),
            (["--level", "FRAME"], "'FRAME' is not one of"),
            (["-k", "PatientId=1"], "neither the keyword"),
            (["-k", "SpecificCharacterSet=ISO_IR 100", "-k", "PatientName=山田"], "cannot be sent"),
            (["--limit", "0"], "--limit"),
        ):
            result = self.misuse("find", "127.0.0.1:1", *options)
            self.assertEqual(result.code, 2, result.text)
            self.assertIn(words, result.text)

    async def test_nobody_there(self) -> None:
        result = await self.tool("find", f"127.0.0.1:{peers.free_port()}")
        self.assertEqual((result.code, result.stdout), (3, b""), result.text)
        self.assertIn("nothing listens", result.stderr.decode())
