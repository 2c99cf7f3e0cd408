"""The names of retrieved files."""

from __future__ import annotations

from unittest import TestCase

from hypothesis import given
from hypothesis import strategies as some

from dicomtwist.retrieval.layout import (
    MAX_COMPONENT,
    UID_LAYOUT,
    InvalidLayout,
    Layout,
    aside,
    safe,
)

EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
PATIENT_ID, PATIENT_NAME, DATE, NUMBER, ROWS = 0x00100020, 0x00100010, 0x00080020, 0x00200013, 0x00280010


def named(text: str, values: dict[int, bytes], syntax: str = EXPLICIT) -> str:
    return Layout(text).path(values, syntax)


class Names(TestCase):
    def test_attributes(self) -> None:
        values = {PATIENT_ID: b"P1 ", DATE: b"20240131", NUMBER: b"7 ", ROWS: b"\x00\x02"}
        self.assertEqual(named("{PatientID}/{StudyDate}/{InstanceNumber}.dcm", values), "P1/20240131/7.dcm")
        self.assertEqual(named("{0010,0020}-{00080020}/IMG{InstanceNumber:05}", values), "P1-20240131/IMG00007")
        self.assertEqual(named("{InstanceNumber:05d}{{x}}", values), "00007{x}")
        self.assertEqual((named("{Rows}", values), named("{Rows}", values, BIG_ENDIAN)), ("512", "2"))
        self.assertEqual(named("{SeriesNumber}/{Modality}.dcm", values), "unknown/unknown.dcm")
        self.assertEqual(str(Layout()), UID_LAYOUT)
        self.assertTrue(Layout().is_unique)
        self.assertFalse(Layout("{PatientID}.dcm").is_unique)

    def test_letters_of_all_languages(self) -> None:
        values = {0x00080005: b"ISO_IR 192", PATIENT_NAME: "Müller^Jörg".encode()}
        self.assertEqual(named("{PatientName}.dcm", values), "Müller^Jörg.dcm")
        values = {0x00080005: b"\\ISO 2022 IR 87", PATIENT_NAME: b"Yamada^Tarou=\033$B;3ED\033(B^\033$BB@O:\033(B"}
        self.assertEqual(named("{PatientName}.dcm", values), "Yamada^Tarou=山田^太郎.dcm")

    def test_hostile_values(self) -> None:
        """No value leads elsewhere, is a device, hides a file, controls a terminal; different values stay different."""
        for value in (
            *(b"../../etc/passwd", b"/etc/passwd", b"..", b".", b"...", b".ssh", b"a/b", b"a\\b", b"C:\\x", b"a:b"),
            *(b"a\nb", b"a\r\nb", b"\x1b[2J", b"a?", b"*", b"<a>|", b'"', b"a.", b"a..", b"\xe2\x80\xae"),
        ):
            name = named("{PatientID}/x.dcm", {PATIENT_ID: value, 0x00080005: b"ISO_IR 192"})
            self.assertEqual(name.count("/"), 1, value)
            self.assertTrue(name.isprintable() and "\\" not in name and ":" not in name, value)
            self.assertNotIn(name[0], ". ", value)
            self.assertNotIn(name.partition("/")[0][-1], ". ", value)
            self.assertIn("~", name, value)
        self.assertNotEqual(safe("a/b"), safe("a_b"))
        self.assertNotEqual(safe("a/b"), safe("a:b"))

    def test_devices_of_windows(self) -> None:
        for value, name in (
            ("CON", "CON_"),
            ("nul", "nul_"),
            ("com1", "com1_"),
            ("LPT9", "LPT9_"),
            ("console", "console"),
        ):
            self.assertEqual(named("{PatientID}/x", {PATIENT_ID: value.encode()}), f"{name}/x")
            self.assertEqual(named("{PatientID}.dcm", {PATIENT_ID: value.encode()}), f"{name}.dcm")
        self.assertEqual(named("{PatientID}/x", {PATIENT_ID: b"aux.1"}), "aux_.1/x")

    def test_long_values(self) -> None:
        """A long value is cut between letters, and two long values stay different."""
        names = set()
        for end in "ab":
            value = ("日本語" * 1000 + end).encode()
            values = {0x00080005: b"ISO_IR 192", PATIENT_NAME: value, PATIENT_ID: b"x" * 64}
            name = named("{PatientName}" * 3 + "{PatientID}" * 3 + ".dcm", values)
            self.assertLessEqual(len(name.encode()), MAX_COMPONENT)
            self.assertTrue(name.endswith(".dcm"))
            names.add(name)
        self.assertEqual(len(names), 2)

    def test_aside(self) -> None:
        path = aside("P1/2024/7.dcm", "1.2.3")
        self.assertRegex(path, r"\AP1/2024/7~[0-9a-f]{12}\.dcm\Z")
        self.assertNotEqual(path, aside("P1/2024/7.dcm", "1.2.4"))
        self.assertRegex(aside("name", "1.2.3"), r"\Aname~[0-9a-f]{12}\Z")
        self.assertRegex(aside("1.2.840/1.2.840113619", "1.2.3"), r"\A1.2.840/1.2.840113619~[0-9a-f]{12}\Z")

    def test_mistakes(self) -> None:
        for text, words in (
            ("", "empty name"),
            ("/{PatientID}.dcm", "empty name"),
            ("{PatientID}//x", "empty name"),
            ("{PatientID}/", "empty name"),
            ("../{PatientID}", "begin with a dot"),
            ("a/../{PatientID}", "begin with a dot"),
            (".hidden/{PatientID}", "begin with a dot"),
            ("a\\{PatientID}", "does not contain"),
            ("a\n{PatientID}", "does not contain"),
            ("C:{PatientID}", "does not contain"),
            ("con/{PatientID}", "no name on some platforms"),
            ("{PatientId}", "neither the keyword"),
            ("{}", "neither the keyword"),
            ("{PatientID.x}", "neither the keyword"),
            ("{TransferSyntaxUID}", "not an attribute of a data set"),
            ("{PixelData}", "does not fit into a name"),
            ("{RequestAttributesSequence}", "does not fit into a name"),
            ("{0009,1001}", "not known"),
            ("{PatientID!r}", "nothing else"),
            ("{InstanceNumber:>5}", "nothing else"),
            ("{InstanceNumber:99}", "nothing else"),
            ("{PatientID", "expected"),
            ("PatientID}", "Single"),
            ("a/" * 20 + "b", "more than"),
        ):
            with self.assertRaisesRegex(InvalidLayout, words, msg=text):
                Layout(text)

    @given(some.binary(max_size=300), some.sampled_from((b"", b"ISO_IR 192", b"ISO_IR 100", b"\\ISO 2022 IR 87")))
    def test_any_value(self, value: bytes, charset: bytes) -> None:
        layout = Layout("{PatientID}/{PatientName}{StudyDate}/{SOPInstanceUID}{Rows}{InstanceNumber:3}.dcm")
        values = dict.fromkeys(layout.wanted, value) | {0x00080005: charset}
        for path in (layout.path(values, EXPLICIT), layout.path({}, EXPLICIT)):
            parts = path.split("/")
            self.assertEqual(len(parts), 3)
            for part in parts:
                self.assertTrue(0 < len(part.encode()) <= MAX_COMPONENT and part.isprintable() and part[0] != ".", path)
                self.assertFalse(set(part) & set('/\\:*?"<>|'), path)
