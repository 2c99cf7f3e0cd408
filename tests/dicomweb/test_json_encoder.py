"""The DICOM JSON of an encoded data set equals that of pydicom, if pydicom follows the standard."""

from __future__ import annotations

import base64
import json
import logging
import math
import random
import struct
import time
import unittest
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pydicom
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset

from dicomtwist.datasets import encode_dataset
from dicomtwist.dicomweb import json_encoder
from dicomtwist.dicomweb.json_encoder import (
    MAX_DEPTH,
    WINDOW,
    JSONEncoder,
    attribute,
    encode_attributes,
    encode_json,
)
from dicomtwist.errors import DataSetError, DataSetTooLong
from dicomtwist.part10 import NotDicomFile, read_file_meta

IMPLICIT, EXPLICIT, DEFLATED, BIG = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".1.99", ".2"))
J2K = "1.2.840.10008.1.2.4.90"
FILES = Path(pydicom.__file__).parent / "data"

#: Files whose JSON pydicom cannot make, or that are cut off within a value.
OTHERS = {"badVR.dcm", "rtplan_truncated.dcm"}


def encoded(data: bytes, syntax: str = EXPLICIT, **options: Any) -> Any:
    return json.loads(encode_json(data, syntax, **options))


def explicit(tag: int, vr: str, value: bytes) -> bytes:
    """Encode one element in explicit VR little endian."""
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode("latin-1"))
    if vr in ("OB", "OW", "OF", "OD", "OL", "OV", "UN", "UT", "UC", "UR", "SQ", "SV", "UV"):
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


def value_of(vr: str, value: bytes, charset: bytes = b"") -> Any:
    """Return the JSON of one element."""
    data = explicit(0x00080005, "CS", charset) if charset else b""
    found = encoded(data + explicit(0x00191001, vr, value))["00191001"]
    assert found.pop("vr") == vr
    return found


def standard(model: Any) -> Any:
    """Return what pydicom has made, with ``null`` for empty values and without empty groups of names (PS3.18 F.2.5)."""
    if isinstance(model, list):
        return [standard(one) for one in model]
    if not isinstance(model, dict):
        return model
    found = {key: standard(value) for key, value in model.items()}
    if "vr" in found and "Value" in found:
        if found["vr"] == "PN":
            found["Value"] = [{group: one for group, one in name.items() if one} or None for name in found["Value"]]
        found["Value"] = [None if one == "" else one for one in found["Value"]]
        if not found["Value"]:
            del found["Value"]
    return found


def files() -> list[Path]:
    return sorted(path for path in FILES.rglob("*") if path.is_file() and path.suffix in ("", ".dcm"))


class Oracle(unittest.TestCase):
    def test_files_of_pydicom(self) -> None:
        """All files of pydicom's package, whole and read in pieces; bulk data aside."""
        logging.disable(logging.INFO)
        self.addCleanup(logging.disable, logging.NOTSET)
        compared = 0
        for path in files():
            whole = path.read_bytes()
            try:
                meta, start = read_file_meta(BytesIO(whole))
            except NotDicomFile:
                continue
            if path.name in OTHERS:
                continue
            data = whole[start:]
            with warnings.catch_warnings(), self.subTest(file=path.name):
                warnings.simplefilter("ignore")
                dataset = pydicom.dcmread(path)
                made = dataset.to_json_dict(bulk_data_threshold=1366, bulk_data_element_handler=lambda element: "X")
                expected = {tag: one for tag, one in standard(made).items() if tag[:4] != "0002" and tag != "7FE00010"}
                syntax = meta.transfer_syntax_uid
                found = encoded(data, syntax, bulk_data=lambda path, vr, offset, length: "X")
                pixels = found.pop("7FE00010", None)
                self.assertEqual(found, json.loads(json.dumps(expected)))
                if pixels:
                    # Without a transfer syntax pydicom guesses another one.
                    self.assertEqual(pixels["BulkDataURI"], "X")
                    self.assertIn(pixels["vr"], (dataset["PixelData"].VR, "OB" if not syntax else ""))
                repeated = JSONEncoder(syntax, lambda path, vr, offset, length: "X")
                once = {repeated.encode(data) for _ in range(3)}
                self.assertEqual(len(once), 1)
                if syntax != DEFLATED:
                    read = encode_json(lambda at, size, data=data: data[at : at + size], syntax)  # type: ignore[misc]
                    at_once = encoded(data, syntax)
                    self.assertEqual({**at_once, **json.loads(read)}, at_once)
                compared += 1
        self.assertGreater(compared, 100)

    def test_cut_files(self) -> None:
        """A file that ends anywhere gives what is before that."""
        whole = (FILES / "test_files" / "nested_priv_SQ.dcm").read_bytes()
        meta, start = read_file_meta(BytesIO(whole))
        data = whole[start:]
        before = 0
        for end in range(len(data)):
            found = encoded(data[:end], meta.transfer_syntax_uid)
            self.assertGreaterEqual(len(found), before)
            before = len(found)

    def test_truncated_sequence(self) -> None:
        whole = (FILES / "test_files" / "rtplan_truncated.dcm").read_bytes()
        meta, start = read_file_meta(BytesIO(whole))
        found = encoded(whole[start:], meta.transfer_syntax_uid)
        self.assertEqual(len(found["300A00B0"]["Value"][0]["300A0111"]["Value"]), 1)


class Values(unittest.TestCase):
    def test_values(self) -> None:
        for vr, value, expected in (
            ("CS", b"A ", ["A"]),
            ("CS", b"A\\\\B ", ["A", None, "B"]),
            ("AE", b" A  ", ["A"]),
            ("UI", b"1.2\0", ["1.2"]),
            ("LO", b' "\\\t\n\x01x ', [' "', "\t\n\x01x"]),
            ("LT", b" a\\b\r\n", [" a\\b\r\n"]),
            ("UR", b"http://x/y ", ["http://x/y"]),
            ("DS", b"1.50\\-0\\2e5\\0.0 ", [1.5, 0, 2e5, 0]),
            ("DS", b" +1.\\.5\\007\\ \\1e2", [1, 0.5, 7, None, 100]),
            ("DS", b"x\\1,5\\nan\\1e400\\1_0\\", ["x", "1,5", "nan", "1e400", "1_0", None]),
            ("DS", b"\xb2\\\xd9\xa1", ["\xb2", "\xd9\xa1"]),
            ("IS", b"1\\+2\\-03\\4.0\\x\\ ", [1, 2, -3, 4, "x", None]),
            ("IS", b"123456789012345678901234567890123456", [123456789012345678901234567890123456]),
            ("IS", b"1.5", [1.5]),
            ("US", b"\1\0\2\0", [1, 2]),
            ("SS", b"\xff\xff", [-1]),
            ("UL", b"\xff\xff\xff\xff", [0xFFFFFFFF]),
            ("SV", b"\xff" * 8, [-1]),
            ("UV", b"\xff" * 8, [(1 << 64) - 1]),
            ("FL", struct.pack("<f", 0.1), [0.10000000149011612]),
            ("FD", struct.pack("<4d", 0.1, math.inf, -math.inf, math.nan), [0.1, "inf", "-inf", "NaN"]),
            ("AT", b"\x10\0\x20\0\xfe\xff\0\xe0", ["00100020", "FFFEE000"]),
            ("PN", b"A^B", [{"Alphabetic": "A^B"}]),
            ("PN", b"A^B==C \\\\=D", [{"Alphabetic": "A^B", "Phonetic": "C "}, None, {"Ideographic": "D"}]),
        ):
            with self.subTest(vr=vr, value=value):
                self.assertEqual(value_of(vr, value), {"Value": expected})
        for vr in ("CS", "AE", "LO", "LT", "DS", "IS", "US", "FD", "AT", "PN", "OB", "SQ", "UN", "UI"):
            self.assertEqual(value_of(vr, b""), {}, vr)
        for vr in ("CS", "AE", "LO", "LT", "DS", "IS", "PN", "UI"):
            self.assertEqual(value_of(vr, b"  "), {}, vr)

    def test_binary_values(self) -> None:
        for vr in ("OB", "OW", "OF", "OD", "OL", "OV", "UN"):
            self.assertEqual(value_of(vr, b"\1\2\3\4"), {"InlineBinary": "AQIDBA=="})

    def test_lengths_that_a_vr_does_not_have(self) -> None:
        for vr in ("US", "FL", "AT", "SV"):
            data = explicit(0x00191001, vr, b"\1\2\3") + explicit(0x00191002, "CS", b"A ")
            self.assertEqual(
                encoded(data),
                {"00191001": {"vr": "UN", "InlineBinary": "AQID"}, "00191002": {"vr": "CS", "Value": ["A"]}},
            )

    def test_character_sets(self) -> None:
        for charset, raw, expected in (
            (b"ISO_IR 100", b"M\xfcller^", "Müller^"),
            (b"ISO_IR 192", "山田".encode(), "山田"),
            (b"GB18030 ", "王^小东".encode("gb18030"), "王^小东"),
            (b"ISO_IR 13 ", b"\xd4\xcf\xc0\xde", "ﾔﾏﾀﾞ"),
            (b"\\ISO 2022 IR 87", b"\x1b$B;3ED\x1b(B^a", "山田^a"),
            (b"ISO_IR 192", b"a\xff\xedb", "a\ufffd\ufffdb"),
            (b"unknown ", b"M\xfc", "Mü"),
        ):
            with self.subTest(charset=charset):
                self.assertEqual(value_of("PN", raw, charset), {"Value": [{"Alphabetic": expected}]})
                self.assertEqual(value_of("LO", raw, charset), {"Value": [expected]})
        item = struct.pack("<HHI", 0xFFFE, 0xE000, 10) + explicit(0x00080100, "SH", b"\xfc ")
        data = explicit(0x00080005, "CS", b"ISO_IR 100") + explicit(0x00081140, "SQ", item)
        self.assertEqual(encoded(data)["00081140"]["Value"], [{"00080100": {"vr": "SH", "Value": ["ü"]}}])
        self.assertEqual(
            encoded(explicit(0x00100010, "PN", b"\xd4"), default_charset="ISO_IR 144")["00100010"]["Value"],
            [{"Alphabetic": "д"}],
        )

    def test_values_whose_vr_is_not_known(self) -> None:
        for vr in ("XX", "??", "un"):
            data = (
                explicit(0x00191001, vr, b"AB")
                + explicit(0x00280010, vr, b"\5\0")
                + explicit(0x00280011, "US", b"\6\0")
            )
            found = encoded(data)
            self.assertEqual(found["00280011"]["Value"], [6], vr)
            self.assertEqual(found["00280010"], {"vr": "US", "Value": [5]})
            self.assertEqual(found["00191001"], {"vr": "UN", "InlineBinary": "QUI="})

    def test_unknown_vr_of_known_elements(self) -> None:
        data = explicit(0x00100020, "UN", b"A ") + explicit(0x00191001, "UN", b"B ")
        self.assertEqual(
            encoded(data),
            {"00100020": {"vr": "LO", "Value": ["A"]}, "00191001": {"vr": "UN", "InlineBinary": "QiA="}},
        )
        item = struct.pack("<HHI", 0xFFFE, 0xE000, 10) + struct.pack("<HHI", 8, 0x1155, 2) + b"1\0"
        for value, expected in ((item, [{"00081155": {"vr": "UI", "Value": ["1"]}}]), (b"no items", None)):
            found = encoded(explicit(0x00081140, "UN", value))["00081140"]
            self.assertEqual(found.get("Value"), expected)
            self.assertEqual(found["vr"], "SQ" if expected else "UN")

    def test_private_elements_without_vr(self) -> None:
        def implicit(tag: int, value: bytes) -> bytes:
            return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value

        data = implicit(0x00190010, b"GEMS_ACQU_01") + implicit(0x00191002, b"\5\0\0\0") + implicit(0x00191102, b"\5\0")
        found = encoded(data, IMPLICIT)
        self.assertEqual(found["00191002"], {"vr": "SL", "Value": [5]})
        self.assertEqual(found["00191102"]["vr"], "UN")

    def test_orders(self) -> None:
        """Elements come in the order of their tags, and the last of two counts."""
        data = explicit(0x00100020, "LO", b"A ") + explicit(0x00080060, "CS", b"CT") + explicit(0x00100020, "LO", b"B ")
        found = json.loads(encode_json(data, EXPLICIT), object_pairs_hook=list)
        self.assertEqual([tag for tag, _ in found], ["00080060", "00100020"])
        self.assertEqual(dict(found[1][1])["Value"], ["B"])

    def test_transfer_syntaxes(self) -> None:
        dataset = Dataset()
        dataset.PatientName, dataset.Rows, dataset.PixelRepresentation, dataset.SmallestImagePixelValue = "A", 5, 1, -3
        dataset["SmallestImagePixelValue"].VR = "SS"
        dataset.ReferencedImageSequence = [Dataset(), Dataset()]
        dataset.ReferencedImageSequence[1].ReferencedFrameNumber = [1, 2]
        dataset.add_new(0x00281201, "OW", b"\1\2\3\4")
        expected = standard(dataset.to_json_dict())
        for syntax in (IMPLICIT, EXPLICIT, DEFLATED, J2K):
            self.assertEqual(encoded(encode_dataset(dataset, syntax), syntax), expected)
        # Binary values are little endian in JSON.
        self.assertEqual(
            encoded(encode_dataset(dataset, BIG), BIG)["00281201"]["InlineBinary"],
            base64.b64encode(b"\2\1\4\3").decode(),
        )


class Bulk(unittest.TestCase):
    def test_values_that_are_asked_for(self) -> None:
        asked: list[tuple[tuple[int, ...], str, int, int | None]] = []

        def bulk(path: tuple[int, ...], vr: str, offset: int, length: int | None) -> str | None:
            asked.append((path, vr, offset, length))
            return None if vr == "UT" else f"../{path[-1]:08X}"

        inner = explicit(0x00282000, "OB", bytes(1026))
        item = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
        data = (
            explicit(0x00080018, "UI", b"1.2\0")
            + explicit(0x00409096, "SQ", item)
            + explicit(0x0040A160, "UT", b"x" * 70_000)
            + explicit(0x00420011, "OB", bytes(2000))
            + explicit(0x60003000, "OW", bytes(10))
            + explicit(0x7FE00010, "OW", b"\1\2")
        )
        found = encoded(data, bulk_data=bulk)
        self.assertEqual(
            [(path, vr, length) for path, vr, _, length in asked],
            [
                ((0x00409096, 0, 0x00282000), "OB", 1026),
                ((0x0040A160,), "UT", 70_000),
                ((0x00420011,), "OB", 2000),
                ((0x7FE00010,), "OW", 2),
            ],
        )
        self.assertEqual(data[asked[3][2] :][: asked[3][3]], b"\1\2")
        self.assertEqual(found["00409096"]["Value"], [{"00282000": {"vr": "OB", "BulkDataURI": "../00282000"}}])
        self.assertEqual(len(found["0040A160"]["Value"][0]), 70_000)
        self.assertEqual(found["60003000"]["InlineBinary"], base64.b64encode(bytes(10)).decode())
        self.assertEqual(found["7FE00010"], {"vr": "OW", "BulkDataURI": "../7FE00010"})
        # Without bulk data all is inline, but pixel data is left out.
        found = encoded(data)
        self.assertEqual(len(base64.b64decode(found["00420011"]["InlineBinary"])), 2000)
        self.assertEqual(found["7FE00010"], {"vr": "OW"})

    def test_fragments(self) -> None:
        fragments = struct.pack("<HHI", 0xFFFE, 0xE000, 0) + struct.pack("<HHI", 0xFFFE, 0xE000, 4) + b"JPEG"
        pixels = (
            struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF)
            + fragments
            + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        )
        data = explicit(0x00280010, "US", b"\1\0") + pixels + explicit(0xFFFCFFFC, "OB", b"\0\0")
        asked: list[Any] = []

        def bulk(*arguments: Any) -> str:
            asked.append(arguments)
            return "u"

        found = encoded(data, J2K, bulk_data=bulk)
        self.assertEqual(asked, [((0x7FE00010,), "OB", 22, None)])
        self.assertEqual(found["7FE00010"], {"vr": "OB", "BulkDataURI": "u"})
        self.assertIn("FFFCFFFC", found)
        self.assertEqual(encoded(data[:-30], J2K)["7FE00010"], {"vr": "OB"})

    def test_bulk_data_is_not_read(self) -> None:
        """Of an instance of 1 GiB, the metadata and what follows the pixels are read."""
        front = b"".join(explicit(0x00191000 + number, "LO", b"x" * 100) for number in range(2000))
        head = struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, 1 << 30)
        after = explicit(0xFFFCFFFC, "OB", b"\0\0")
        total = 0

        def read(at: int, size: int) -> bytes:
            nonlocal total
            total += size
            before = (front + head)[at : at + size]
            return before or after[at - len(front + head) - (1 << 30) :][:size]

        found = encoded(read, EXPLICIT, bulk_data=lambda *args: "u")  # type: ignore[arg-type]
        self.assertEqual(len(found), 2002)
        self.assertLess(total, len(front) + 6 * WINDOW)

    def test_long_sequences(self) -> None:
        """A sequence of undefined length that is longer than a read."""
        inner = b"".join(explicit(0x00191000 + number, "LO", b"x" * 100) for number in range(100))
        item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + inner + struct.pack("<HHI", 0xFFFE, 0xE00D, 0)
        head = struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF)
        data = explicit(0x00080018, "UI", b"1.2\0") + head + item * 50 + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
        data += explicit(0x00100020, "LO", b"A ")
        found = encoded(lambda at, size: data[at : at + size])  # type: ignore[arg-type]
        self.assertEqual(found, encoded(data))
        self.assertEqual((len(found), len(found["00081140"]["Value"])), (3, 50))


class Hostile(unittest.TestCase):
    def test_nesting(self) -> None:
        head = struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
        for depth in (MAX_DEPTH + 1, 100_000):
            with self.assertRaises(DataSetTooLong):
                encode_json(head * depth, EXPLICIT)

    def test_no_data_sets(self) -> None:
        for data in (struct.pack("<HHI", 0xFFFE, 0xE000, 0), b"\xfe\xff\xdd\xe0" + bytes(4)):
            with self.assertRaises(DataSetError):
                encode_json(data, EXPLICIT)
        with self.assertRaises(DataSetError):
            encode_json(b"not deflated", DEFLATED)

    def test_many_elements(self) -> None:
        item = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
        for data in (
            explicit(0x00191001, "LO", b"") * 101,
            explicit(0x00081140, "SQ", item * 101),
            explicit(0x00081140, "SQ", (item[:4] + b"\x08\0\0\0" + explicit(0x00191001, "LO", b"")) * 51),
        ):
            with patch.object(json_encoder, "MAX_ELEMENTS", 100), self.assertRaisesRegex(DataSetTooLong, "more than"):
                encode_json(data, EXPLICIT)

    def test_bombs(self) -> None:
        with patch.object(json_encoder, "MAX_ELEMENT", 10_000), self.assertRaises(DataSetError):
            encode_json(zlib.compress(bytes(1_000_000), 1)[2:-4], DEFLATED)

    @given(st.binary(max_size=200), st.sampled_from([IMPLICIT, EXPLICIT, BIG, J2K]))
    def test_any_bytes(self, data: bytes, syntax: str) -> None:
        try:
            found = encode_json(data, syntax)
        except DataSetError:
            return
        json.loads(found.decode("utf-8"), parse_constant=self.fail)

    def test_damaged_files(self) -> None:
        source = random.Random(15)
        for name in ("CT_small.dcm", "rtplan.dcm", "reportsi.dcm", "nested_priv_SQ.dcm", "ExplVR_BigEnd.dcm"):
            whole = (FILES / "test_files" / name).read_bytes()
            meta, start = read_file_meta(BytesIO(whole))
            for _ in range(60):
                data = bytearray(whole[start : start + 8000])
                for _ in range(source.randrange(1, 8)):
                    data[source.randrange(len(data))] = source.choice((0, 1, 0xFF, 0xFE, 0x53, 0x51))
                try:
                    found = encode_json(bytes(data), meta.transfer_syntax_uid)
                except DataSetError:
                    continue
                json.loads(found.decode("utf-8"), parse_constant=self.fail)

    def test_hostile_data_takes_little_time(self) -> None:
        begin = time.process_time()
        for data in (
            explicit(0x00100020, "UT", b"\\" * 500_000),
            explicit(0x00191001, "UT", b"\x1b" * 100_000),
            b"".join(explicit(0x00100000 + number % 0xFFF0, "DS", b"1" * 40) for number in range(20_000)),
            explicit(0x00200032, "DS", b"1.1.1" * 10_000),
            explicit(0x00200032, "DS", b"1" * 65_000),
        ):
            encode_json(data, EXPLICIT)
        self.assertLess(time.process_time() - begin, 5)


class Series(unittest.TestCase):
    """An encoder remembers elements of earlier data sets."""

    def test_character_sets(self) -> None:
        encoder = JSONEncoder(EXPLICIT)
        name = explicit(0x00100010, "PN", b"\xd4 ")
        for _ in range(3):
            for charset, expected in (
                (b"ISO_IR 100", "Ô"),
                (b"ISO_IR 144", "д"),
                (b"ISO_IR 192", "\ufffd"),
                (b"", "Ô"),
            ):
                found = json.loads(encoder.encode(explicit(0x00080005, "CS", charset) + name))
                self.assertEqual(found["00100010"]["Value"], [{"Alphabetic": expected}])

    def test_elements_with_other_encodings(self) -> None:
        """An element that is without a VR in a sequence, too."""
        encoder = JSONEncoder(EXPLICIT)
        inner = struct.pack("<HHI", 0x10, 0x20, 4) + b"LO\2\0"
        item = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
        data = explicit(0x00100020, "LO", b"A ") + explicit(0x00081140, "UN", item)
        for _ in range(3):
            found = json.loads(encoder.encode(data))
            self.assertEqual(found["00100020"]["Value"], ["A"])
            self.assertEqual(found["00081140"]["Value"], [{"00100020": {"vr": "LO", "Value": ["LO\x02"]}}])

    def test_many_values(self) -> None:
        encoder = JSONEncoder(EXPLICIT)
        for number in range(0, 10_000, 50):
            data = b"".join(explicit(0x00191000 + at, "LO", b"%06d" % (number + at)) for at in range(50))
            self.assertEqual(json.loads(encoder.encode(data))["00191031"]["Value"], [f"{number + 49:06}"])
        self.assertEqual(sum(map(len, encoder._known.values())), json_encoder.MAX_KNOWN)


class Rows(unittest.TestCase):
    def test_attributes(self) -> None:
        row = {
            0x00200013: 7,
            0x00100010: "Müller^A=\\B",
            0x00080061: ["CT", "MR"],
            0x00280010: 512,
            0x00080020: "",
            0x00201208: "12",
            0x00080030: None,
            0x00400275: [b'{"00400009":{"vr":"SH","Value":["\xc3\xbc"]}}'],
            0x00081115: [],
            0x00081190: "http://x/y\\z",
            0x00280030: "0.5\\0.25",
            0x00101010: "\ud800",
        }
        found = json.loads(encode_attributes(row))
        self.assertEqual(list(found), sorted(found))
        self.assertEqual(
            found,
            {
                "00080020": {"vr": "DA"},
                "00080030": {"vr": "TM"},
                "00080061": {"vr": "CS", "Value": ["CT", "MR"]},
                "00081115": {"vr": "SQ"},
                "00081190": {"vr": "UR", "Value": ["http://x/y\\z"]},
                "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Müller^A"}, {"Alphabetic": "B"}]},
                "00101010": {"vr": "AS", "Value": ["?"]},
                "00200013": {"vr": "IS", "Value": [7]},
                "00201208": {"vr": "IS", "Value": [12]},
                "00280010": {"vr": "US", "Value": [512]},
                "00280030": {"vr": "DS", "Value": [0.5, 0.25]},
                "00400275": {"vr": "SQ", "Value": [{"00400009": {"vr": "SH", "Value": ["ü"]}}]},
            },
        )

    def test_added_attributes(self) -> None:
        data = explicit(0x00080018, "UI", b"1.2\0") + explicit(0x00100020, "LO", b"A ")
        added = {0x00083002: attribute(0x00083002, [J2K, EXPLICIT]), 0x00100020: attribute(0x00100020, "B")}
        found = json.loads(encode_json(data, EXPLICIT, added=added))
        self.assertEqual(list(found), ["00080018", "00083002", "00100020"])
        self.assertEqual(found["00083002"]["Value"], [J2K, EXPLICIT])
        self.assertEqual(found["00100020"]["Value"], ["B"])


class Speed(unittest.TestCase):
    def test_time_of_a_ct(self) -> None:
        """An image of 258 elements takes a twentieth of the time of pydicom; a sixth is the bound on a busy machine."""
        whole = (FILES / "test_files" / "CT_small.dcm").read_bytes()
        meta, start = read_file_meta(BytesIO(whole))
        data = whole[start:]
        encoder = JSONEncoder(meta.transfer_syntax_uid, lambda path, vr, offset, length: "u")
        times = []
        for _ in range(2):
            encoder.encode(data)
            begin = time.process_time()
            for _ in range(10):
                encoder.encode(data)
            ours = time.process_time() - begin
            begin = time.process_time()
            for _ in range(10):
                pydicom.dcmread(BytesIO(whole)).to_json(bulk_data_element_handler=lambda element: "u")
            times.append((time.process_time() - begin) / ours)
        self.assertGreater(max(times), 6)
