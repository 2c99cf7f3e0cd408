"""Character sets: the defined terms, code extensions, and whatever else a peer writes in (0008,0005)."""

from __future__ import annotations

import encodings.aliases
import warnings
from typing import Literal
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.charset import python_encoding
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.datasets import character_sets, decode_dataset, encode_dataset
from dicomtwist.datasets.character_sets import (
    TERMS,
    UNICODE,
    canonical,
    claimed_text,
    decode_text,
    decode_texts,
    decode_values,
    encode_text,
    has_undecoded,
    unclaimed_text,
)
from dicomtwist.datasets.conversion.files import convert_file
from dicomtwist.datasets.identifier import encode_with_character_set
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta

#: The names of all codecs of Python, and others that look like them.
CODECS = sorted(
    {
        *encodings.aliases.aliases,
        *encodings.aliases.aliases.values(),
        *("undefined", "idna", "punycode", "hex", "rot13", "rot_13", "base64", "zip", "bz2", "uu", "quopri"),
        *(
            "unicode_escape",
            "raw_unicode_escape",
            "mbcs",
            "oem",
            "utf_16",
            "utf-7",
            "a\0b",
            "\0",
            "ISO_IR",
            "ISO_IR 999",
        ),
    }
)
#: Values of 8 bit that no encoding takes all of.
JUNK = b"M\xfcller^\xff\xfe\x80\xa4=\xc3\xb6\\\x1b$B;3\x1b(Z"


class Terms(SynchronousTestCase):
    """The terms that are character sets, and those that are not."""

    def test_defined_terms(self) -> None:
        """All that pydicom knows but its names of GBK, and Latin-9, which it does not know."""
        known = {term for term in python_encoding if term} - {"ISO 2022 58", "ISO 2022 GBK"}
        self.assertEqual(set(TERMS), known | {"ISO_IR 203", "ISO 2022 IR 203"})
        for term in TERMS:
            self.assertEqual(canonical(term), term)

    def test_no_codec_of_python(self) -> None:
        for name in CODECS:
            if name.upper() in ("GBK", "GB18030", "UTF8", "LATIN1") or name.startswith("iso_ir_"):
                continue
            self.assertEqual(canonical(name), "", name)
            for value in (name, f"{name}\\{name}", f"\\{name}", f"ISO_IR 100\\{name}", f"{name}\\ISO 2022 IR 87"):
                decode_text(JUNK, value).encode()

    def test_spellings(self) -> None:
        for value, term in {
            "ISO IR 100": "ISO_IR 100",
            "iso-ir-144": "ISO_IR 144",
            "ISO_IR_192": UNICODE,
            "utf-8": UNICODE,
            " ISO_IR 100 \0": "ISO_IR 100",
            "ISO-2022-IR-87": "ISO 2022 IR 87",
            "ISO 2022 58": "ISO 2022 IR 58",
            "ISO_IR 87": "ISO 2022 IR 87",
        }.items():
            self.assertEqual(canonical(value), term, value)

    def test_several_values(self) -> None:
        for value, expected in {
            "\\ISO 2022 IR 149": "\\ISO 2022 IR 149",
            "hex\\ISO 2022 IR 149\\zip": "\\ISO 2022 IR 149",
            "ISO_IR 192\\ISO 2022 IR 87": UNICODE,
            "ISO 2022 IR 100\\GB18030\\ISO 2022 IR 144": "ISO 2022 IR 100\\ISO 2022 IR 144",
            "\\\\\\": "",
            "ISO_IR 100\\ISO_IR 100": "ISO_IR 100",
        }.items():
            self.assertEqual(canonical(value), expected, value)

    def test_long_values(self) -> None:
        for value in ("x" * 65534, "\\" * 65534, "\\ISO 2022 IR 87" * 4000, "ISO_IR 100\\" * 4000):
            self.assertLess(len(canonical(value)), 64)
            decode_text(JUNK, value).encode()


class CodeExtensions(SynchronousTestCase):
    """ISO 2022: the examples of PS3.5 H, I and K, and what senders make of them."""

    EXAMPLES = (
        ("ISO_IR 13", b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3", "ﾔﾏﾀﾞ^ﾀﾛｳ"),
        (
            "\\ISO 2022 IR 87",
            b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
            "Yamada^Tarou=山田^太郎=やまだ^たろう",
        ),
        (
            "ISO 2022 IR 13\\ISO 2022 IR 87",
            b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J",
            "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎",
        ),
        (
            "\\ISO 2022 IR 149",
            b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
            "Hong^Gildong=洪^吉洞=홍^길동",
        ),
        (
            "\\ISO 2022 IR 58",
            b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab=",
            "Zhang^XiaoDong=张^小东=",
        ),
        ("\\ISO 2022 IR 159", b"\x1b$(D0!\x1b(B^A", "丂^A"),
        ("\\ISO 2022 IR 203", b"\x1b-b\xa4^A", "€^A"),
        ("ISO_IR 203", b"\xa4\xa6", "€Š"),
        ("ISO 2022 IR 100\\ISO 2022 IR 144", b"\xe9\x1b-L\xb6^\xe9", "éЖ^é"),
    )

    def test_examples(self) -> None:
        for term, raw, text in self.EXAMPLES:
            self.assertEqual(decode_text(raw, term), text, term)
            encoded = encode_text(text, term)
            assert encoded is not None
            self.assertEqual(decode_text(encoded, term), text, term)

    def test_undeclared_extensions(self) -> None:
        """An escape sequence says what follows, whether it is declared or not."""
        for term, raw, text in self.EXAMPLES:
            if b"\x1b" in raw and not raw[0] & 0x80:
                for other in ("", "undefined", "ISO 2022 IR 6"):
                    self.assertEqual(decode_text(raw, other), text, (term, other))

    def test_extensions_without_escape_sequences(self) -> None:
        for term, text in (("ISO 2022 IR 58", "张小东"), ("\\ISO 2022 IR 58", "张"), ("\\ISO 2022 IR 149", "홍")):
            raw = text.encode("gb2312" if "58" in term else "euc_kr")
            self.assertEqual(decode_text(raw, term), text, term)

    def test_lines(self) -> None:
        """The end of a line takes the first character set back, a delimiter of names does so in names alone."""
        raw = b"\x1b$)C\xc8\xab^\xb1\xe6\r\n\xe9"
        self.assertEqual(decode_text(raw, "ISO 2022 IR 100\\ISO 2022 IR 149", "LT"), "홍^길\r\né")
        self.assertEqual(decode_text(raw, "ISO 2022 IR 100\\ISO 2022 IR 149", "PN"), "홍^±æ\r\né")

    @given(
        st.sampled_from(("", *TERMS, "\\ISO 2022 IR 58\\ISO 2022 IR 149", "ISO 2022 IR 13\\ISO 2022 IR 159")), st.data()
    )
    def test_no_escape_is_left(self, term: str, data: st.DataObject) -> None:
        pieces = [b"\x1b", b"$", b")", b"A", b"\x1b$)A", b"\x1b$B", b"\x1b(B", b"\xb0\xa1", b"\xff", b"^", b"\n", b"!"]
        raw = b"".join(data.draw(st.lists(st.sampled_from(pieces), max_size=8)))
        for vr in ("PN", "LO", "LT"):
            text = decode_text(raw, term, vr)
            self.assertNotIn("\x1b", text)
            text.encode()
            unclaimed_text(text, term, vr)
            self.assertTrue(has_undecoded(text) or claimed_text(text, UNICODE, UNICODE, vr) is not None)


class Bytes(SynchronousTestCase):
    """Bytes that mean nothing come back as they came."""

    @given(st.sampled_from([term for term in TERMS if "2022" not in term] + ["", "hex", "x\\y"]), st.binary())
    def test_they_come_back(self, term: str, raw: bytes) -> None:
        raw = raw.replace(b"\0", b"").replace(b"\x1b", b"")
        text = decode_text(raw, term)
        text.encode()
        self.assertEqual(unclaimed_text(text, term), raw)
        if has_undecoded(text):
            self.assertIsNone(claimed_text(text, UNICODE, term))

    @given(st.sampled_from([*TERMS, "", "\\ISO 2022 IR 87", "ISO 2022 IR 13\\ISO 2022 IR 159"]), st.binary(), st.text())
    def test_long_texts(self, term: str, raw: bytes, text: str) -> None:
        """A text that is too long to follow its escape sequences is decoded whole, or its bytes are kept."""
        long = raw.replace(b"\0", b"") + b"\x80\xff\x1b$B" + text.encode("utf-8", "replace").replace(b"\0", b"")
        with mock.patch.object(character_sets, "MAX_TEXT_LENGTH", 0):
            for each in (long, text.replace("\0", "").replace("\x1b", "").encode("utf-8", "replace")):
                decoded = decode_text(each, term)
                decoded.encode()
                self.assertEqual(unclaimed_text(decoded, term), each)
            self.assertTrue(has_undecoded(decode_text(long, term)))

    def test_time_of_long_texts(self) -> None:
        """The escape sequences of a long text are not followed, and its bytes come back."""
        for term, part in (
            ("\\ISO 2022 IR 87", b"\x1b$B;3\x1b(B"),
            ("\\ISO 2022 IR 149", b"a\xc0\xc0"),
            ("GB18030", b"\xff"),
        ):
            raw = part * (4 * character_sets.MAX_TEXT_LENGTH // len(part))
            with mock.patch.object(character_sets, "_decode_extended", side_effect=AssertionError):
                text = decode_text(raw, term, "UT")
                self.assertEqual(encode_text(text, term, "UT"), raw)

    def test_private_use(self) -> None:
        """The code points that stand for bytes are bytes themselves in the text of a peer."""
        for term, codec in ((UNICODE, "utf-8"), ("GB18030", "gb18030")):
            raw = "a\U0010ff80\U0010ffff".encode(codec)
            self.assertEqual(unclaimed_text(decode_text(raw, term), term), raw)

    def test_unknown_letters_are_not_claimed(self) -> None:
        text = decode_text("Müller".encode(), "")
        self.assertIsNone(claimed_text(text, UNICODE, ""))
        self.assertEqual(unclaimed_text(text, ""), "Müller".encode())


class Datasets(SynchronousTestCase):
    """Datasets of pydicom, whose own decoder takes any codec."""

    def decoded(self, charset: str, syntax: str = ExplicitVRLittleEndian) -> Dataset:
        inner, made = Dataset(), Dataset()
        for one in (inner, made):
            one.SpecificCharacterSet = "ISO_IR 100"
            one.PatientName, one.StudyDescription = "Müller", "Fuß"
        made.ReferencedStudySequence = [inner]
        data = encode_dataset(made, syntax)
        order: Literal["big", "little"] = "big" if syntax == ExplicitVRBigEndian else "little"
        length = 4 if syntax == ImplicitVRLittleEndian else 2
        value = charset.encode()
        value += b" " * (len(value) & 1)
        # The sequence has another length then, so that only values of ten bytes fit.
        self.assertEqual(len(value), 10)
        old = len(value).to_bytes(length, order) + b"ISO_IR 100"
        self.assertEqual(data.count(old), 2)
        return decode_dataset(data.replace(old, len(value).to_bytes(length, order) + value), syntax)

    def test_every_codec(self) -> None:
        for name in ("undefined", "idna", "punycode", "hex", "rot13", "base64", "zip", "a\\hex", "utf_16"):
            for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = self.decoded(f"{name:10}", syntax)
                    self.assertEqual(str(found.PatientName), "Müller", name)
                    found = self.decoded(f"{name:10}", syntax)
                    self.assertEqual(decode_texts(found), "")
                    decode_values(found)
                    (item,) = found.ReferencedStudySequence
                    self.assertEqual((str(item.PatientName), item.StudyDescription), ("Müller", "Fuß"))
                    answer = encode_with_character_set(found, "", ExplicitVRLittleEndian)
                    self.assertEqual(answer.count(b"M\xfcller"), 2)
                    self.assertNotIn(b"ISO_IR", answer)

    def test_a_file_is_converted(self) -> None:
        """For a peer that takes another uncompressed transfer syntax only."""
        meta = encode_preamble_and_meta(FileMeta("1.2.3", "1.2.3.4", str(ExplicitVRLittleEndian), "1.2.3"))
        for name in ("undefined", "idna", "hex", "rot13", "zip"):
            charset = b"\x08\x00\x05\x00CS\x0a\x00" + f"{name:10}".encode()
            path = self.mktemp()
            with open(path, "wb") as file:
                file.write(meta + charset + b"\x10\x00\x10\x00PN\x06\x00M\xfc\xc3^A ")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                converted = convert_file(path, ImplicitVRLittleEndian)
            self.assertIn(b"\x10\x00\x10\x00\x06\0\0\0M\xfc\xc3^A ", converted)

    def test_answers_claim_what_is_true(self) -> None:
        made = Dataset()
        made.SpecificCharacterSet, made.PatientName = UNICODE, "张"
        made.ReferencedStudySequence = [Dataset()]
        made.ReferencedStudySequence[0].StudyDescription = "Fuß"
        for own in ("\\ISO 2022 IR 149", UNICODE, "ISO_IR 100"):
            for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian):
                answer = decode_dataset(encode_with_character_set(made, own, syntax), syntax)
                self.assertEqual((answer.SpecificCharacterSet, str(answer.PatientName)), (UNICODE, "张"))
                self.assertEqual(answer.ReferencedStudySequence[0].StudyDescription, "Fuß")
        self.assertEqual(str(made.PatientName), "张")  # it may be shared
