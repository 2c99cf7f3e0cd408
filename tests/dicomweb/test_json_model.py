"""DICOM JSON is decoded as pydicom decodes it, and nothing in a document does harm."""

from __future__ import annotations

import json
import math
import time
import unittest
import warnings
from struct import pack
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicomtwist.datasets.codec import DecodingLimits
from dicomtwist.dicomweb.json_encoder import encode_json
from dicomtwist.dicomweb.json_model import ArrayCutter, JSONModelError, dataset_json, decode_json


def decoded(**members: Any) -> Dataset:
    """Decode a data set with one element of each VR in *members*."""
    tags = {vr: f"0019{at:04X}" for at, vr in enumerate(members, 0x1001)}
    return decode_json(json.dumps({tags[vr]: {"vr": vr, **member} for vr, member in members.items()}))[0]


def only(vr: str, *values: Any) -> Any:
    return list(decoded(**{vr: {"Value": list(values)}}))[-1].value


class Values(unittest.TestCase):
    def test_values(self) -> None:
        for vr, value, expected in (
            ("CS", "A", "A"),
            ("LO", 5, "5"),
            ("DS", 1.5, 1.5),
            ("DS", 1, 1),
            ("DS", "1.50", 1.5),
            ("DS", 0.1 + 0.2, 0.3),
            ("IS", 7, 7),
            ("IS", "7", 7),
            ("IS", 7.0, 7),
            ("US", 65535, 65535),
            ("SS", -1, -1),
            ("UV", (1 << 64) - 1, (1 << 64) - 1),
            ("SV", "-5", -5),
            ("FD", 0.1, 0.1),
            ("FL", "inf", math.inf),
            ("FD", "-Infinity", -math.inf),
            ("AT", "00100020", 0x00100020),
            ("UI", "1.2", "1.2"),
            ("PN", {"Alphabetic": "A^B", "Phonetic": "C"}, "A^B==C"),
            ("PN", {"Ideographic": "B"}, "=B"),
            ("PN", {}, ""),
            ("PN", "A^B", "A^B"),
            ("LT", "a\\b", "a\\b"),
            ("UC", "\ud800", "\ufffd"),
        ):
            with self.subTest(vr=vr, value=value):
                self.assertEqual(only(vr, value), expected)
        self.assertTrue(math.isnan(only("FL", "NaN")))

    def test_several_values(self) -> None:
        self.assertEqual(only("CS", "A", None, "B"), ["A", "", "B"])
        self.assertEqual(only("US", 1, 2), [1, 2])
        self.assertEqual(only("DS", 1, "", 2), [1, "", 2])
        self.assertEqual(only("SQ", {}, None)[1], Dataset())

    def test_texts_in_place_of_numbers(self) -> None:
        """Files have them, so the metadata have; they come back as pydicom reads them from a file, and nothing is refused."""
        for vr in ("DS", "IS"):
            for text in (
                b"1A",
                b"1,5 ",
                b"N/A",
                b"1\\x\\",
                b" +7 ",
                b"1.0",
                b"1.5",
                b"-2e3",
                b"1e99",
                b"nan",
                b"-",
                b"\xfc\x00",
            ):
                with self.subTest(vr=vr, text=text), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    header = pack("<HH2sH", 0x0020, 0x1206, vr.encode(), len(text))
                    document = encode_json(header + text, ExplicitVRLittleEndian)
                    (found,) = decode_json(document)
                    again = json.loads(dataset_json(found))
                    self.assertEqual(again["00201206"], json.loads(document)["00201206"])

    def test_numbers_in_place_of_binary_values(self) -> None:
        """Orthanc writes them."""
        self.assertEqual(only("OF", 1.5, "inf", 0), pack("<3f", 1.5, math.inf, 0))
        self.assertEqual(only("OD", 0.1), pack("<d", 0.1))
        self.assertEqual(only("OL", 1, 0xFFFFFFFF), pack("<2I", 1, 0xFFFFFFFF))
        self.assertEqual(only("OV", (1 << 64) - 1), b"\xff" * 8)
        self.assertEqual(only("OF", 0), bytes(4))
        self.assertIsNone(only("OF", None))

    def test_empty_values(self) -> None:
        members: tuple[dict[str, Any], ...] = ({}, {"Value": []}, {"Value": None})
        for member in members:
            dataset = decoded(CS=member, US=member, PN=member, SQ=member, OB=member, UN=member, AT=member)
            self.assertTrue(all(element.is_empty for element in dataset))

    def test_binary_values(self) -> None:
        dataset = decoded(OB={"InlineBinary": "AQI="}, OW={"InlineBinary": ["AQI="]}, UN={"InlineBinary": "AQ=="})
        self.assertEqual([element.value for element in dataset], [b"\1\2", b"\1\2", b"\1"])

    def test_bulk_data(self) -> None:
        model = {"00409096": {"vr": "SQ", "Value": [{"00282000": {"vr": "OB", "BulkDataURI": "u"}}]}}
        model |= {"00080018": {"vr": "UI", "Value": ["1.2"]}, "0040A160": {"vr": "UT", "BulkDataURI": ["v"]}}
        seen = []

        def fetch(path: tuple[int, ...], vr: str, uri: str) -> bytes:
            seen.append((path, vr, uri))
            return "\u00fc ".encode()

        dataset = decode_json(json.dumps(model), bulk_data=fetch)[0]
        self.assertEqual(seen, [((0x00409096, 0, 0x00282000), "OB", "u"), ((0x0040A160,), "UT", "v")])
        self.assertEqual(dataset.RealWorldValueMappingSequence[0].ICCProfile, "\u00fc ".encode())
        self.assertEqual(dataset.TextValue, "\u00fc")
        self.assertIsNone(decode_json(json.dumps(model))[0].RealWorldValueMappingSequence[0].ICCProfile)

    def test_character_sets(self) -> None:
        name = {"vr": "PN", "Value": [{"Alphabetic": "Ü"}]}
        self.assertEqual(decode_json(json.dumps({"00100010": name}))[0].SpecificCharacterSet, "ISO_IR 192")
        with_own = {"00080005": {"vr": "CS", "Value": ["ISO_IR 100"]}, "00100010": name}
        self.assertEqual(decode_json(json.dumps(with_own))[0].SpecificCharacterSet, "ISO_IR 100")
        self.assertNotIn(
            "SpecificCharacterSet", decode_json('{"00100010":{"vr":"PN","Value":[{"Alphabetic":"U"}]}}')[0]
        )

    def test_elements_that_are_no_part_of_a_data_set(self) -> None:
        model = '{"00020010":{"vr":"UI","Value":["1.2"]},"00100020":{"Value":["X"]}}'
        self.assertEqual([int(tag) for tag in decode_json(model)[0].keys()], [0x00100020])  # noqa: SIM118

    def test_arrays(self) -> None:
        self.assertEqual(decode_json(b"[]"), [])
        self.assertEqual(decode_json(b"[{},{}]"), [Dataset(), Dataset()])


class Refusals(unittest.TestCase):
    def test_documents(self) -> None:
        for document in (
            b"",
            b"\xff",
            b"{",
            b"null",
            b"[1]",
            b'"x"',
            b'{"x":{}}',
            b'{"0010001O":{}}',
            b'{"00100010":1}',
            b'{"00100010":{"vr":"XX"}}',
            b'{"00100010":{"vr":["PN"]}}',
            b'{"00100010":{"vr":"PN","Value":"A"}}',
            b'{"00100010":{"vr":"PN","Value":[1]}}',
            b'{"00100010":{"vr":"PN","Value":[{"Alphabetic":1}]}}',
            b'{"00280010":{"vr":"US","Value":[65536]}}',
            b'{"00280010":{"vr":"US","Value":[1.5]}}',
            b'{"00280010":{"vr":"US","Value":[true]}}',
            b'{"00280010":{"vr":"US","Value":["x"]}}',
            b'{"00280010":{"vr":"US","Value":[{}]}}',
            b'{"00280030":{"vr":"DS","Value":[[]]}}',
            b'{"00280030":{"vr":"DS","Value":["x",{}]}}',
            b'{"00280030":{"vr":"DS","Value":[1e999]}}',
            b'{"00200013":{"vr":"IS","Value":[true]}}',
            b'{"00200013":{"vr":"IS","Value":[1e999]}}',
            b'{"00200013":{"vr":"IS","Value":["x",null,true]}}',
            b'{"00720065":{"vr":"OF","Value":[1e300]}}',
            b'{"00720065":{"vr":"OF","Value":["x"]}}',
            b'{"00720075":{"vr":"OL","Value":[-1]}}',
            b'{"00720081":{"vr":"OV","Value":[1.5]}}',
            b'{"00280009":{"vr":"AT","Value":["0010"]}}',
            b'{"00280009":{"vr":"AT","Value":[5]}}',
            b'{"00080008":{"vr":"CS","Value":[{}]}}',
            b'{"00080060":{"vr":"SQ","Value":["x"]}}',
            b'{"7FE00010":{"vr":"OW","InlineBinary":"x"}}',
            b'{"7FE00010":{"vr":"OW","InlineBinary":1}}',
            b'{"7FE00010":{"vr":"OW","InlineBinary":"\\u00fc"}}',
            b'{"7FE00010":{"vr":"OW","BulkDataURI":1}}',
            b'{"7FE00010":{"vr":"OW","Value":[1]}}',
        ):
            with self.subTest(document=document), self.assertRaises(JSONModelError):
                decode_json(document)

    def test_nesting(self) -> None:
        for depth in (65, 2000, 200_000):
            inner = '{"00081140":{"vr":"SQ","Value":[' * depth + "{}" + "]}}" * depth
            begin = time.process_time()
            with self.assertRaises(JSONModelError):
                decode_json(inner)
            with self.assertRaises(JSONModelError):
                decode_json("[" * depth)
            self.assertLess(time.process_time() - begin, 1)
        fine = '{"00081140":{"vr":"SQ","Value":[' * 60 + "{}" + "]}}" * 60
        self.assertEqual(len(decode_json(fine)), 1)

    def test_limits(self) -> None:
        element = '{"00100010":{"vr":"PN","Value":[]}}'
        limits = DecodingLimits(1000, 10, 10)
        for document in (
            " " * 1001,
            "[" + ",".join([element] * 6) + "]",
            '{"00280010":{"vr":"US","Value":[' + ",".join("1" * 12) + "]}}",
        ):
            with self.subTest(document=document[:50]), self.assertRaisesRegex(JSONModelError, "more than"):
                decode_json(document, limits=limits)
        begin = time.process_time()
        for document in ("[" + "[]," * 5_000_000 + "[]]", "[" + "0," * 9_000_000 + "0]"):
            with self.assertRaisesRegex(JSONModelError, "more than"):
                decode_json(document)
        self.assertLess(time.process_time() - begin, 2)

    @given(
        st.recursive(
            st.one_of(
                st.none(),
                st.booleans(),
                st.integers(),
                st.floats(),
                st.text(max_size=5),
                st.sampled_from(["SQ", "PN", "DS", "UN"]),
            ),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(
                    st.sampled_from(
                        ["00100010", "00081140", "7FE00010", "00280030", "00080005", "vr", "Value", "InlineBinary"]
                    ),
                    inner,
                    max_size=3,
                ),
            ),
            max_leaves=12,
        )
    )
    def test_any_document(self, document: Any) -> None:
        try:
            for dataset in decode_json(json.dumps(document)):
                str(dataset)
        except JSONModelError:
            pass


class Datasets(unittest.TestCase):
    def test_round_trip(self) -> None:
        dataset = Dataset()
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.PatientName = "Müller^Ä=山田"
        dataset.Rows, dataset.PixelSpacing = 5, ["0.5", "0.25"]
        dataset.ReferencedImageSequence = [Dataset()]
        dataset.ReferencedImageSequence[0].ReferencedFrameNumber = ["1", "2"]
        self.assertEqual(decode_json(dataset_json(dataset)), [dataset])
        self.assertEqual(decode_json(b"[" + dataset_json(dataset) + b"]")[0].to_json_dict(), dataset.to_json_dict())


class Arrays(unittest.TestCase):
    def cut(self, data: bytes, way: int, max_object: int = 2000) -> list[bytes]:
        cutter = ArrayCutter(max_object=max_object)
        found = [one for at in range(0, len(data), way) for one in cutter.feed(data[at : at + way])]
        cutter.finish()
        return found

    def test_arrays(self) -> None:
        for data, expected in (
            (b"", []),
            (b" [ ] \n", []),
            (b"[{}]", [b"{}"]),
            (b' [ {"a":"}\\"]{\\\\"} ,\n{"b":[{},[{}]]}]', [b'{"a":"}\\"]{\\\\"}', b'{"b":[{},[{}]]}']),
        ):
            for way in (1, 2, 3, 100):
                with self.subTest(data=data, way=way):
                    self.assertEqual(self.cut(data, way), expected)

    @given(
        st.lists(
            st.dictionaries(
                st.text(max_size=8),
                st.one_of(
                    st.text(max_size=8),
                    st.lists(st.text(max_size=8), max_size=3),
                    st.dictionaries(st.text(max_size=8), st.integers()),
                ),
            )
        ),
        st.integers(1, 30),
    )
    def test_any_array(self, objects: list[Any], way: int) -> None:
        assert [json.loads(one) for one in self.cut(json.dumps(objects).encode(), way, 100_000)] == objects

    def test_refusals(self) -> None:
        for data in (
            b"{}",
            b"[[]]",
            b'["x"]',
            b"[1,{}]",
            b"[{}",
            b"[",
            b"x",
            b"[}",
            b"]",
            b"[{}]{}",
            b'[{"',
            b'[{"a":"' + b"x" * 2100,
        ):
            for way in (1, 3, 5000):
                with self.subTest(data=data[:20], way=way), self.assertRaises(JSONModelError):
                    self.cut(data, way)
