"""Values are found in a data set by the path in their BulkDataURI."""

from __future__ import annotations

import unittest

from pydicom import Dataset
from pydicom.encaps import encapsulate

from dicomtwist.datasets import encode_dataset
from dicomtwist.datasets.codec import inflate
from dicomtwist.dicomweb.bulk_data import BulkValue, find_value, parse_path, path_text
from dicomtwist.dicomweb.json_encoder import encode_json
from dicomtwist.errors import DataSetError

IMPLICIT, EXPLICIT, DEFLATED, BIG = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".1.99", ".2"))
J2K = "1.2.840.10008.1.2.4.90"


def instance() -> Dataset:
    dataset = Dataset()
    dataset.PatientID = "A"
    dataset.BitsAllocated, dataset.PixelRepresentation, dataset.SmallestImagePixelValue = 16, 1, -3
    dataset["SmallestImagePixelValue"].VR = "SS"
    inner = Dataset()
    inner.ICCProfile = b"profile "
    dataset.OpticalPathSequence = [Dataset(), inner]
    dataset.TextValue = "text"
    dataset.EncapsulatedDocument = b"%PDF" * 1000
    dataset.add_new(0x7FE00010, "OW", b"\1\2\3\4")
    return dataset


class Paths(unittest.TestCase):
    def test_texts(self) -> None:
        for path, text in (((0x7FE00010,), "7FE00010"), ((0x00480105, 1, 0x00282000), "00480105/1/00282000")):
            self.assertEqual(path_text(path), text)
            self.assertEqual(parse_path(text), path)
        self.assertEqual(parse_path("7fe00010"), (0x7FE00010,))
        for text in (
            *("", "7FE0001", "7FE00010/", "7FE00010/0", "7FE00010/x/7FE00010", "/7FE00010", "..", "1/2/3"),
            "/".join(["00480105/0"] * 65 + ["00282000"]),
            "00480105/\u0661/00282000",
        ):
            with self.subTest(text=text[:30]):
                self.assertIsNone(parse_path(text))


class Values(unittest.TestCase):
    def test_transfer_syntaxes(self) -> None:
        for syntax in (IMPLICIT, EXPLICIT, DEFLATED, BIG):
            data = encode_dataset(instance(), syntax)
            plain = inflate(data) if syntax == DEFLATED else data
            for path, vr, expected in (
                ((0x00100020,), "LO", b"A "),
                ((0x00280106,), "SS", b"\xff\xfd" if syntax == BIG else b"\xfd\xff"),
                ((0x00480105, 1, 0x00282000), "OB", b"profile "),
                ((0x0040A160,), "UT", b"text"),
                ((0x00420011,), "OB", b"%PDF" * 1000),
                ((0x7FE00010,), "OW", b"\1\2\3\4"),
            ):
                with self.subTest(syntax=syntax, path=path):
                    found = find_value(data, syntax, path)
                    assert found is not None
                    self.assertEqual((found.vr, plain[found.offset :][: found.length]), (vr, expected))
                    if syntax != DEFLATED:
                        self.assertEqual(find_value(lambda at, size: data[at : at + size], syntax, path), found)  # noqa: B023

    def test_fragments(self) -> None:
        dataset = instance()
        dataset.PixelData = encapsulate([b"frame1", b"frame2"])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        data = encode_dataset(dataset, J2K)
        found = find_value(data, J2K, (0x7FE00010,))
        assert found is not None
        self.assertEqual(found, BulkValue("OB", found.offset, None))
        self.assertEqual(data[found.offset :][:4], b"\xfe\xff\0\xe0")

    def test_every_uri_leads_to_its_value(self) -> None:
        data = encode_dataset(instance(), EXPLICIT)
        paths: dict[str, tuple[int, int | None]] = {}

        def bulk(path: tuple[int, ...], vr: str, offset: int, length: int | None) -> str | None:
            paths[path_text(path)] = (offset, length)
            return path_text(path)

        encode_json(data, EXPLICIT, bulk)
        self.assertEqual(list(paths), ["00420011", "7FE00010"])
        for text, place in paths.items():
            path = parse_path(text)
            assert path is not None
            found = find_value(data, EXPLICIT, path)
            assert found is not None
            self.assertEqual(found[1:], place)

    def test_values_that_are_not_there(self) -> None:
        data = encode_dataset(instance(), EXPLICIT)
        for path in ((0x00100010,), (0x00480105,), (0x00480105, 0, 0x00282000), (0x00480105, 2, 0x00282000)):
            self.assertIsNone(find_value(data, EXPLICIT, path))
        with self.assertRaises(DataSetError):
            find_value(b"\xfe\xff\0\xe0" + bytes(8), EXPLICIT, (0x00100020,))
