"""Tables of keys, as people and spreadsheets write them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import TestCase

from dicomtwist.tools.query.key_table import InvalidTable, KeyTable, Row, keyword_of
from dicomtwist.tools.query.keys import parse_key


class Tables(TestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "table.csv")

    def table(self, content: str | bytes, *columns: str, keys: tuple[str, ...] = ()) -> KeyTable:
        self.path.write_bytes(content if isinstance(content, bytes) else content.encode())
        table = KeyTable(str(self.path), columns, [parse_key(key) for key in keys])
        self.addCleanup(table.close)
        return table

    def rows(self, content: str | bytes, *columns: str, keys: tuple[str, ...] = ()) -> list[Row]:
        return list(self.table(content, *columns, keys=keys).rows())

    def values(self, content: str | bytes, *columns: str) -> list[dict[str, str]]:
        return [row.values for row in self.rows(content, *columns)]

    def test_mixed_rows(self) -> None:
        """A row without UIDs is found by its Accession Number; its Patient ID counts only if the caller says so."""
        text = 'Accession,MRN,Study UID,Series UID\nA1,P1,,\nA2,P2,1.2.3,1.2.3.4\n,P3, ,\n,,1.2.3,\n\'=A,,"=""""",\n,,,x\nA7\n'
        table = self.table(text)
        self.assertEqual(str(table), "StudyInstanceUID, SeriesInstanceUID, or else AccessionNumber")
        self.assertEqual(
            [(row.values, row.error) for row in table.rows()],
            [
                ({"AccessionNumber": "A1"}, ""),
                ({"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4"}, ""),
                (
                    {},
                    "StudyInstanceUID and AccessionNumber are empty;"
                    " --column StudyInstanceUID/AccessionNumber/PatientID takes all studies of the patient then",
                ),
                ({"StudyInstanceUID": "1.2.3"}, "SeriesInstanceUID is empty"),
                ({"AccessionNumber": "=A"}, ""),
                ({}, "StudyInstanceUID is empty"),
                ({"AccessionNumber": "A7"}, ""),
            ],
        )
        table = self.table(text, "StudyInstanceUID/Accession/MRN")
        self.assertEqual(str(table), "StudyInstanceUID, or else AccessionNumber, or else PatientID")
        rows = list(table.rows())
        self.assertEqual(rows[2].values, {"PatientID": "P3"})
        self.assertEqual(rows[4].error, "StudyInstanceUID and AccessionNumber and PatientID are empty")
        self.assertEqual(table.count(), 7)

    def test_a_heading_with_a_slash(self) -> None:
        for column in ("Case/No=AccessionNumber", "Patient/ID"):
            self.assertEqual(len(self.values("Case/No,Patient/ID\nA1,P1\n", column)), 1)
        self.assertEqual(
            self.values("Case,MRN\nA1,P1\n,P2\n", "Case=AccessionNumber/MRN"),
            [{"AccessionNumber": "A1"}, {"PatientID": "P2"}],
        )

    def test_headings(self) -> None:
        for heading in (
            *("AccessionNumber", "accessionnumber", "ACCESSION NUMBER", "Accession_Number", " accession-number "),
            *("(0008,0050)", "00080050", "Accession", "\ufeffAccessionNumber"),
        ):
            self.assertEqual(keyword_of(heading), "AccessionNumber", heading)
        for heading, keyword in (
            ("0008,0050", "AccessionNumber"),
            ("Patient ID", "PatientID"),
            ("Patient's Name", "PatientName"),
            ("MRN", "PatientID"),
            ("Study UID", "StudyInstanceUID"),
            ("SOP Instance UID", "SOPInstanceUID"),
            ("study date", "StudyDate"),
            ("Comment", None),
            ("", None),
            ("TransferSyntaxUID", None),
            ("(0002,0010)", None),
        ):
            self.assertEqual(keyword_of(heading), keyword, heading)

    def test_forms(self) -> None:
        """BOM, quotation marks, semicolons, tabs, UTF-16, line ends, and lines about the delimiter."""
        expected = [{"AccessionNumber": "A1"}, {"AccessionNumber": "A;2"}]
        for content in (
            "AccessionNumber\nA1\nA;2\n",
            '\ufeffAccessionNumber,Name\r\nA1,x\r\n"A;2",\r\n',
            'accession number;Name\n"A1";Ä\n"A;2";\n',
            "Name\taccession_number\nx\tA1\ny\tA;2",
            'sep=;\r\nNo;Accession Number\r\n1;A1\r\n2;"A;2"\r\n',
            '"sep=\t"\nNo\tAccession Number\n1\tA1\n2\tA;2\n',
            "\n\nAccessionNumber|Name\nA1|\n\nA;2|x\n|\n",
            '"(0008,0050)",x\nA1,1\nA;2,2\n',
            "AccessionNumber\rA1\rA;2\r",
            'AccessionNumber,x\n"=""A1""",1\n A;2 ,"a\nb"\n',
        ):
            self.assertEqual(self.values(content), expected, content)
            self.assertEqual(self.values(content.removeprefix("\ufeff").encode("utf-16")), expected, content)

    def test_which_columns(self) -> None:
        """UIDs if there are any, else the Accession Number, else the patient and the date."""
        head = "PatientName,PatientID,StudyDate,AccessionNumber,StudyInstanceUID\nX,P,2024-01-31,A,1.2\n"
        self.assertEqual(self.values(head), [{"StudyInstanceUID": "1.2"}])
        self.assertEqual(self.values("PatientID,AccessionNumber\nP,A\n"), [{"AccessionNumber": "A"}])
        found = self.values("Name,StudyDate,MRN\nX,2024/1/5,P\n")
        self.assertEqual(found, [{"PatientID": "P", "StudyDate": "20240105"}])
        found = self.values("SeriesInstanceUID,StudyInstanceUID\n1.2.3,1.2\n")
        self.assertEqual(found, [{"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.3"}])
        self.assertEqual(self.values(head, "accessionnumber"), [{"AccessionNumber": "A"}])
        self.assertEqual(self.values(head, "Patient ID", "StudyDate"), [{"PatientID": "P", "StudyDate": "20240131"}])
        self.assertEqual(self.values("Fall,Nr\nx,A1\n", "Nr=AccessionNumber"), [{"AccessionNumber": "A1"}])
        self.assertEqual(self.values("病歴番号\nP1\n", "病歴番号=PatientID"), [{"PatientID": "P1"}])

    def test_keys(self) -> None:
        """A row makes an identifier, with the keys of the command line."""
        (row,) = self.rows("PatientID\nJörg\n", keys=("Modality=CT", "PatientID=X"))
        assert row.keys is not None
        self.assertEqual((row.keys.PatientID, row.keys.Modality), ("Jörg", "CT"))
        self.assertEqual(row.keys.SpecificCharacterSet, "ISO_IR 192")
        self.assertEqual(str(row), "line 2: PatientID=Jörg")

    def test_rows_without_keys(self) -> None:
        """An empty row counts as none; any other that selects nothing, or more than one thing, fails alone."""
        rows = self.rows("AccessionNumber,Note\nA1,\n,\n\n,forgotten\nA*,\nA\\B,\n?,\nA1,again\n=1+1,\n'-5,\nA2\n")
        self.assertEqual(
            [(row.line, row.values.get("AccessionNumber"), row.error[:24]) for row in rows],
            [
                (2, "A1", ""),
                (5, None, "AccessionNumber is empty"),
                (6, None, "AccessionNumber is 'A*':"),
                (7, None, "AccessionNumber is 'A\\\\B"),
                (8, None, "AccessionNumber is '?': "),
                (10, "=1+1", ""),
                (11, "-5", ""),
                (12, "A2", ""),
            ],
        )
        (row,) = self.rows("StudyInstanceUID\n1.2E+20\n")
        self.assertIn("not a UID", row.error)
        (row,) = self.rows("PatientID,StudyDate\nP,31.1.2024\n")
        self.assertIn("20240131", row.error)
        (row,) = self.rows("PatientID,StudyDate\nP\n")
        self.assertEqual(row.error, "StudyDate is empty")

    def test_bad_bytes(self) -> None:
        """A cell that is not UTF-8 fails if it is a key, and matters not otherwise."""
        rows = self.rows("AccessionNumber,Name\nA1,M\xfcller\n\xfc,x\nA2,\0\n".encode("latin-1"))
        self.assertEqual([row.values.get("AccessionNumber") for row in rows], ["A1", None, "A2"])
        self.assertIn("not text in UTF-8", rows[1].error)
        rows = self.rows('AccessionNumber,Name\nA1,x\n"A2,' + "y\n" * 100_000)
        self.assertEqual(rows[0].values, {"AccessionNumber": "A1"})
        self.assertIn("quotation mark", rows[1].error)
        rows = self.rows("AccessionNumber\nA1\n".encode("utf-16") + b"\x00")
        self.assertEqual(rows[0].values, {"AccessionNumber": "A1"})

    def test_duplicates(self) -> None:
        table = self.table("AccessionNumber,x\n" + "A1,1\nA2,2\n" * 10)
        self.assertEqual(len(list(table.rows())), 2)
        self.assertEqual((table.duplicates, table.count()), (18, 20))

    def test_many_rows(self) -> None:
        """A row takes some 100 bytes of memory, for the note that it was there."""
        count = 10_000
        table = self.table("Comment,StudyInstanceUID\n" + "".join(f"{'c' * 50},1.2.826.{n}\n" for n in range(count)))
        self.assertEqual(table.count(), count)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.assertEqual(sum(row.keys is not None for row in table.rows()), count)
        self.assertLess(tracemalloc.get_traced_memory()[1], 200 * count)

    def test_mistakes(self) -> None:
        for content, columns, words in (
            ("", (), "it is empty"),
            ("\n\n", (), "it is empty"),
            ("1.2.3\n1.2.4\n", (), "already, put a line such as AccessionNumber before it"),
            ("Name,Modality\nx,CT\n", (), "has 'Name', 'Modality'"),
            ("Name,PatientID\nx,1\n", ("Nr",), "there is no such column; there are Name, PatientID"),
            ("Name,PatientID\nx,1\n", ("Name",), "write HEADING=KEYWORD, as in Name=AccessionNumber"),
            ("Name,PatientID\nx,1\n", ("PatientID/Nr",), "--column Nr: there is no such column"),
            (b"II*\0\xe8\x05\x08" + bytes(120) + b"DICM", (), "it is not a CSV file"),
            (b"PatientID\xe4;Name\n1;x\n", (), "it is not a CSV file in UTF-8"),
            ("Name,PatientID\nx,1\n", ("StudyDate",), "there is no such column"),
            ("Name,PatientID\nx,1\n", ("Nr=PatientID",), "there is no such column"),
            ("Name,PatientID\nx,1\n", ("Name=Nothing",), "'Nothing' is not an attribute"),
        ):
            with self.assertRaisesRegex(InvalidTable, words, msg=content):
                self.table(content, *columns)
        with self.assertRaisesRegex(InvalidTable, "Is a directory"):
            KeyTable(str(self.path.parent))
