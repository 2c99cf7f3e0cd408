"""Keys of a query: their text, and the identifiers that they make."""

from __future__ import annotations

from pathlib import Path as FilePath
from tempfile import TemporaryDirectory
from unittest import TestCase

from click import UsageError
from hypothesis import given
from hypothesis import strategies as some
from pydicom import Dataset
from pydicom._dicom_dict import DicomDictionary
from pydicom.tag import Tag

from dicomtwist import DataSetError
from dicomtwist.datasets import decode_dataset
from dicomtwist.datasets.identifier import encode_identifier
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta
from dicomtwist.tools.query.attributes import attribute_name, vr_of
from dicomtwist.tools.query.keys import (
    MAX_ITEMS,
    MAX_VALUE,
    AttributePath,
    InvalidKey,
    Key,
    format_path,
    keys_of,
    make_identifier,
    merged,
    parse_key,
    parse_lines,
)
from dicomtwist.tools.query.query import MAX_KEYS_FILE, make_query, read_keys

EXPLICIT = "1.2.840.10008.1.2.1"
STEPS = "ScheduledProcedureStepSequence"


def identifier(*texts: str) -> Dataset:
    """Return the identifier of *texts* as a peer receives it."""
    encoded = encode_identifier(make_identifier(map(parse_key, texts)), EXPLICIT)
    return decode_dataset(encoded, EXPLICIT)


class Written(TestCase):
    def test_keywords_and_tags(self) -> None:
        for text in ("PatientID=A*", "(0010,0020)=A*", "0010,0020=A*", " ( 0010 , 0020 ) =A*"):
            key = parse_key(text)
            self.assertEqual((key.path, key.value), (((Tag(0x00100020), None),), "A*"), text)
            self.assertEqual(str(key), "PatientID=A*")
        self.assertEqual(parse_key("PatientID").value, "")
        self.assertEqual(parse_key("PatientComments=a=b").value, "a=b")

    def test_sequences(self) -> None:
        for text in (f"{STEPS}[0].Modality=CT", f"{STEPS}.Modality=CT", "(0040,0100)[0].(0008,0060)=CT"):
            self.assertEqual(str(parse_key(text)), f"{STEPS}[0].Modality=CT")
        dataset = identifier(
            f"{STEPS}[1].Modality=CT", f"{STEPS}[1].ScheduledStationAETitle", "RequestAttributesSequence"
        )
        self.assertEqual([len(item) for item in dataset.ScheduledProcedureStepSequence], [0, 2])
        self.assertEqual(len(dataset.RequestAttributesSequence), 0)

    def test_values(self) -> None:
        """Values of every VR arrive as they were given."""
        dataset = identifier(
            "StudyInstanceUID=1.2\\3.4",
            "StudyDate=20240101-20241231",
            "SOPInstanceUID=*",
            "Rows=512",
            "NumberOfFrames=3",
            "PatientName=Yamada^Tarou=山田^太郎",
            "PatientSize=1.75",
            "SelectorAttribute=(0010,0020)",
            "StudyComments=a\\b",
            "(0009,0010)=CREATOR",
            "SeriesDate",
        )
        self.assertEqual(list(dataset.StudyInstanceUID), ["1.2", "3.4"])
        self.assertEqual((dataset.StudyDate, dataset.SOPInstanceUID), ("20240101-20241231", "*"))
        self.assertEqual((dataset.Rows, dataset.NumberOfFrames, dataset.PatientSize), (512, 3, 1.75))
        self.assertEqual((dataset.SpecificCharacterSet, dataset.PatientName.ideographic), ("ISO_IR 192", "山田^太郎"))
        self.assertEqual((dataset.SelectorAttribute, dataset.StudyComments), (0x00100020, "a\\b"))
        self.assertEqual((dataset[0x00090010].value, dataset.SeriesDate), ("CREATOR", ""))
        self.assertNotIn("SpecificCharacterSet", identifier("PatientID=A"))

    def test_values_of_one_keyword_are_a_list(self) -> None:
        """Each value once, in their order; a key without a value removes none."""
        dataset = identifier(
            "PatientID=A", "PatientID=B", "PatientID", "(0010,0020)=A", f"{STEPS}[0].Modality=CT", f"{STEPS}"
        )
        self.assertEqual(list(dataset.PatientID), ["A", "B"])
        self.assertEqual(dataset.ScheduledProcedureStepSequence[0].Modality, "CT")
        uids = [f"1.2.826.0.1.{number}" for number in range(200)]
        dataset = identifier(*[f"StudyInstanceUID={uid}" for uid in uids])
        self.assertEqual(list(dataset.StudyInstanceUID), uids)
        dataset = identifier(f"{STEPS}.Modality=CT", f"{STEPS}[0].Modality=MR", "Rows=1", "Rows=2")
        self.assertEqual(list(dataset.ScheduledProcedureStepSequence[0].Modality), ["CT", "MR"])
        self.assertEqual(list(dataset.Rows), [1, 2])

    def test_a_later_source_takes_precedence(self) -> None:
        """The command line overrides a file, and a key without a value overrides nothing."""
        file = [parse_key(text) for text in ("PatientID=A", "PatientID=B", "StudyDate=20240101", "Modality")]
        line = [parse_key(text) for text in ("PatientID=C", "StudyDate", "Modality=CT")]
        self.assertEqual(list(map(str, merged(file, line))), ["PatientID=C", "StudyDate=20240101", "Modality=CT"])
        self.assertEqual(merged(), [])

    def test_no_list(self) -> None:
        for texts, words in (
            (("StudyComments=a", "StudyComments=b"), "takes one value only"),
            (("SpecificCharacterSet=ISO_IR 100", "SpecificCharacterSet=ISO_IR 192"), "takes one value only"),
            (("PatientID=" + "x" * 40_000, "PatientID=" + "y" * 40_000), "characters together"),
        ):
            with self.assertRaisesRegex(InvalidKey, words):
                merged(map(parse_key, texts))

    def test_mistakes(self) -> None:
        for text, words in (
            ("", "neither the keyword"),
            ("=x", "neither the keyword"),
            ("PatientId=1", "neither the keyword"),
            ("(0010,0020=1", "neither the keyword"),
            ("PatientID[0]=1", "is not a sequence"),
            ("PatientID.Modality=1", "is not a sequence"),
            (f"{STEPS}=1", "is a sequence"),
            (f"{STEPS}[{MAX_ITEMS}].Modality", "the number of an item is from 0 to"),
            (f"{STEPS}[-1].Modality", "neither the keyword"),
            (f"{STEPS}[999999999].Modality", "the number of an item is from 0 to"),
            ("Rows=many", "cannot be 'many'"),
            ("Rows=65536", "from 0 to 65535"),
            ("NumberOfFrames=x", "cannot be 'x'"),
            ("TransferSyntaxUID=1.2", "not an attribute that a query may contain"),
            ("(0010,0000)=1", "not an attribute that a query may contain"),
            ("PatientID=\udcff", "is not text"),
            ("SpecificCharacterSet=UTF-8", "not a DICOM character set"),
            ("PatientID=" + "x" * (MAX_VALUE + 1), "more than"),
            (".".join([STEPS] * 65), "nested deeper"),
        ):
            with self.assertRaises(InvalidKey, msg=text) as raised:
                parse_key(text)
            self.assertIn(words, str(raised.exception))

    def test_lines(self) -> None:
        keys = parse_lines(["# all of a day", "", "StudyDate=20240101", "  PatientName  "])
        self.assertEqual([str(key) for key in keys], ["StudyDate=20240101", "PatientName"])
        with self.assertRaisesRegex(InvalidKey, "line 2: 'Nonsense'"):
            parse_lines(["PatientID", "Nonsense"])


class Files(TestCase):
    """The files of ``-f``."""

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = FilePath(folder.name, "keys")

    def test_a_dicom_file(self) -> None:
        """Each attribute of a DICOM file is a key with its value."""
        asked = make_identifier(
            map(
                parse_key,
                ("PatientName=Müller*", "StudyInstanceUID=1.2\\3.4", f"{STEPS}[1].Modality", "(0009,1001)=\xff"),
            )
        )
        meta = FileMeta("1.2.840.10008.5.1.4.31", "1.2.3", EXPLICIT, "1.2.4")
        self.path.write_bytes(encode_preamble_and_meta(meta) + encode_identifier(asked, EXPLICIT))
        keys = read_keys([str(self.path)])
        self.assertEqual(keys, keys_of(asked))
        self.assertEqual(encode_identifier(make_identifier(keys), EXPLICIT), encode_identifier(asked, EXPLICIT))

    def test_200_values_of_one_keyword(self) -> None:
        """In lines of their own or in one, they are a list that can be sent."""
        uids = [f"1.2.826.0.1.3680043.8.498.{number:038}"[:64] for number in range(200)]
        for content in ("".join(f"StudyInstanceUID={uid}\n" for uid in uids), "StudyInstanceUID=" + "\\".join(uids)):
            self.path.write_text(content)
            query = make_query((), (str(self.path),), None, "study", "Get", add_defaults=False)
            self.assertEqual(list(query.identifier.StudyInstanceUID), uids)
            self.assertEqual(query.identifier.QueryRetrieveLevel, "STUDY")

    def test_what_is_none(self) -> None:
        for content, words in (
            (b"PatientID\nNonsense", "line 2: 'Nonsense' is neither"),
            (b"\xff\xfe", "neither DICOM nor text"),
            (bytes(128) + b"DICM", "the file has no key"),
            (bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00", "the file cannot be read|the file has no key"),
            (b"#" * (MAX_KEYS_FILE + 1), "more than"),
        ):
            self.path.write_bytes(content)
            with self.assertRaisesRegex(UsageError, words):
                read_keys([str(self.path)])


TAGS = some.sampled_from([Tag(tag) for tag in sorted(DicomDictionary) if 0x0008 <= tag >> 16 < 0x6000 and tag & 0xFFFF])
SEQUENCES = TAGS.filter(lambda tag: vr_of(tag) == "SQ")
PATHS = some.tuples(
    some.lists(some.tuples(SEQUENCES, some.integers(0, MAX_ITEMS - 1)), max_size=3),
    TAGS.map(lambda tag: (tag, None)),
).map(lambda parts: (*parts[0], parts[1]))


class Any(TestCase):
    """Properties for generated inputs."""

    @given(PATHS)
    def test_what_is_written_is_read(self, path: AttributePath) -> None:
        key = Key(path)
        self.assertEqual(parse_key(str(key)), key)
        self.assertEqual(parse_key(format_path(key.path)), key)
        self.assertIn(key, keys_of(make_identifier([key])))

    @given(some.text(max_size=200) | some.builds("{}={}".format, TAGS.map(attribute_name), some.text(max_size=50)))
    def test_nothing_but_a_key_or_a_mistake(self, text: str) -> None:
        try:
            key = parse_key(text)
        except InvalidKey as error:
            self.assertTrue(str(error))
            return
        self.assertEqual(parse_key(str(key)), key)
        identifier = make_identifier([key])
        self.assertIn(key.path[0][0], identifier)
        try:
            self.assertTrue(encode_identifier(identifier, EXPLICIT))
        except DataSetError:
            # The requested character set lacks letters of the value.
            self.assertFalse(text.isascii())
