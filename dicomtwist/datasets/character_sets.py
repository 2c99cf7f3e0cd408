"""
The character sets of text (PS3.3 C.12.1.1.2, PS3.5 6.1.2): text from bytes and bytes from text, without an exception.

A Specific Character Set (0008,0005) comes from a peer. Only the defined terms of the standard, and common misspellings of them,
are character sets here; every other value counts as absent, above all the names of Python's codecs.

A byte that has no meaning in its character set is not lost: it becomes one of the 256 last code points of Unicode
(private use), from which :func:`encode_text` makes the byte again. :func:`has_undecoded` tells that a text has such bytes.
"""

from __future__ import annotations

import re
from codecs import charmap_decode
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Final, NamedTuple

from pydicom import Dataset
from pydicom.charset import python_encoding
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.tag import BaseTag

__all__ = [
    "TERMS",
    "TEXT_VRS",
    "UNICODE",
    "canonical",
    "claimed_text",
    "decode_text",
    "decode_texts",
    "decode_values",
    "encode_answer",
    "encode_text",
    "encode_texts",
    "has_undecoded",
    "pydicom_terms",
    "unclaimed_text",
]

#: The term of UTF-8.
UNICODE: Final = "ISO_IR 192"
#: The VRs whose values depend on the character set (PS3.5 6.1.2.2), besides the sequences that hold them.
TEXT_VRS: Final = frozenset(("LO", "LT", "PN", "SH", "ST", "UC", "UT"))
#: Those of one value, in which a backslash is an ordinary character (PS3.5 6.2).
_LONG_TEXT_VRS: Final = frozenset(("LT", "ST", "UT"))

#: The longest Specific Character Set that is looked at, in characters, and the most values of it. There are 15 code
#: extensions.
MAX_LENGTH: Final = 512
MAX_TERMS: Final = 16
#: The longest text whose escape sequences are followed, and whose undecodable bytes are told from the others: a mebibyte of
#: them takes 2 seconds.
MAX_TEXT_LENGTH: Final = 128 * 1024
#: How deep the sequences are nested whose text is decoded.
MAX_DEPTH: Final = 64

_CHARACTER_SET: Final = 0x00080005

#: The first of the code points for bytes that have no meaning.
_KEPT: Final = 0x10FF00
_FIRST_KEPT: Final = chr(_KEPT)
_SURROGATES_TO_KEPT: Final = {0xDC00 + byte: _KEPT + byte for byte in range(0x80, 0x100)}
#: Bytes below 0x80 are those of an unknown escape sequence.
_KEPT_TO_SURROGATES: Final = {_KEPT + byte: 0xDC00 + byte if byte >= 0x80 else byte for byte in range(0x100)}
_KEEP_ALL: Final = {byte: _KEPT + byte for byte in range(0x100)}


class _Set(NamedTuple):
    """
    A coded character set that an escape sequence selects (PS3.3 tables C.12-3 and C.12-4).

    :ivar escape: the escape sequence.
    :ivar codec: Python's name of an 8-bit encoding that has these characters with the high bit set.
    :ivar width: the number of bytes of a character.
    :ivar prefix: the bytes that this encoding has before each character.
    :ivar low: whether its bytes are below 0x80 (it is designated to G0).
    """

    escape: bytes
    codec: str
    width: int = 1
    prefix: bytes = b""
    low: bool = False

    def decode(self, run: bytes) -> str:
        """Decode bytes that all have the high bit set."""
        if self.prefix:
            run = b"".join(self.prefix + run[at : at + self.width] for at in range(0, len(run), self.width))
        return _decoded(run, self.codec)

    def encode(self, char: str) -> bytes | None:
        """Return the bytes of one character; ``None`` if the set lacks it."""
        try:
            raw = char.encode(self.codec)
        except UnicodeError:
            return None
        raw = raw.removeprefix(self.prefix) if raw.startswith(self.prefix) else b""
        if len(raw) != self.width or min(raw) < 0xA0:
            return None
        return bytes(byte & 0x7F for byte in raw) if self.low else raw


_LATIN: Final = {
    "100": (b"-A", "latin_1"),
    "101": (b"-B", "iso8859_2"),
    "109": (b"-C", "iso8859_3"),
    "110": (b"-D", "iso8859_4"),
    "126": (b"-F", "iso8859_7"),
    "127": (b"-G", "iso8859_6"),
    "138": (b"-H", "iso8859_8"),
    "144": (b"-L", "iso8859_5"),
    "148": (b"-M", "iso8859_9"),
    "166": (b"-T", "tis_620"),
    "203": (b"-b", "iso8859_15"),
}
_SETS: Final = {
    **{number: _Set(b"\x1b" + final, codec) for number, (final, codec) in _LATIN.items()},
    "13": _Set(b"\x1b)I", "shift_jis"),
    "87": _Set(b"\x1b$B", "euc_jp", 2, low=True),
    "159": _Set(b"\x1b$(D", "euc_jp", 2, b"\x8f", low=True),
    "149": _Set(b"\x1b$)C", "euc_kr", 2),
    "58": _Set(b"\x1b$)A", "gb2312", 2),
}


def _in_g0(number: str) -> _Set:
    one = _SETS[number]
    return _Set(one.escape, one.codec, one.width, one.prefix, low=True)


_BY_ESCAPE: Final[dict[bytes, _Set | None]] = {
    **{one.escape: one for one in _SETS.values()},
    # ISO-IR 6, and ISO-IR 14, which differs in the backslash and the tilde alone.
    b"\x1b(B": None,
    b"\x1b(J": None,
    # Sequences that some senders write instead: JIS C 6226 of 1978, and sets in G0 that belong to G1.
    b"\x1b$@": _SETS["87"],
    b"\x1b$(B": _SETS["87"],
    b"\x1b$(C": _in_g0("149"),
    b"\x1b$(A": _in_g0("58"),
    b"\x1b$A": _in_g0("58"),
    b"\x1b(I": _in_g0("13"),
}
_ALL_EXTENSIONS: Final = "\\" + "\\".join(f"ISO 2022 IR {number}" for number in _SETS)
#: Encodings that need no code extensions and allow none.
_STAND_ALONE: Final = {UNICODE: "utf_8", "GB18030": "gb18030", "GBK": "gbk"}

#: All terms, as :func:`canonical` spells them.
TERMS: Final = tuple(
    sorted(
        [
            *_STAND_ALONE,
            "ISO_IR 6",
            "ISO 2022 IR 6",
            *(f"ISO 2022 IR {number}" for number in _SETS),
            *(f"ISO_IR {number}" for number, one in _SETS.items() if one.width == 1),
        ]
    )
)

_MISSPELLED: Final = {
    "UTF-8": UNICODE,
    "UTF8": UNICODE,
    "UTF 8": UNICODE,
    "GB 18030": "GB18030",
    "GB-18030": "GB18030",
    "ISO 2022 GBK": "GBK",
    "ISO 2022 GB18030": "GB18030",
    "ISO 2022 58": "ISO 2022 IR 58",
    "LATIN1": "ISO_IR 100",
    "LATIN-1": "ISO_IR 100",
}
_SPELLING: Final = re.compile(r"ISO[ _-]?(2022[ _-]?)?IR[ _-]?(\d{1,3})")


@lru_cache(maxsize=64)
def canonical(character_set: str) -> str:
    r"""
    Return a Specific Character Set as the standard spells it; it is empty if nothing in it is known.

    :param character_set: several values divided by ``\``. A first value that is not known counts as empty, a later one as
        absent, and so do the values behind a first one that allows no code extensions.
    """
    found: list[str] = []
    for number, value in enumerate(character_set[:MAX_LENGTH].split("\\")[:MAX_TERMS]):
        term = _term(value)
        if not number:
            found.append(term)
            if term in _STAND_ALONE:
                return term
        elif term and term not in _STAND_ALONE and term not in found:
            found.append(term)
    if not any(found):
        return ""
    if len(found) > 1:
        # A first value without code extensions in a list that has some.
        found[0] = found[0].replace("ISO_IR", "ISO 2022 IR")
        found = [term for at, term in enumerate(found) if not at or term != found[0]]
    return "\\".join(found)


def _term(value: str) -> str:
    text = value.strip(" \0").upper()
    if text in _STAND_ALONE:
        return text
    if text in _MISSPELLED:
        return _MISSPELLED[text]
    match = _SPELLING.fullmatch(text)
    if match is None or not match[2].isascii():
        return ""
    number = match[2].lstrip("0")
    if number == "192":
        return UNICODE
    if number != "6" and number not in _SETS:
        return ""
    # The sets of two bytes are code extensions only.
    extended = match[1] or (number in _SETS and _SETS[number].width == 2)
    return f"ISO 2022 IR {number}" if extended else f"ISO_IR {number}"


class _Plan(NamedTuple):
    """
    How text in a Specific Character Set is read.

    :ivar codec: the encoding of text without escape sequences; empty if ISO 2022 decides.
    :ivar high: the set that bytes with the high bit belong to at first.
    :ivar declared: the sets that may be written.
    """

    codec: str
    high: _Set | None
    declared: tuple[_Set, ...]


@lru_cache(maxsize=64)
def _plan(character_set: str) -> _Plan:
    terms = canonical(character_set).split("\\")
    if terms[0] in _STAND_ALONE:
        return _Plan(_STAND_ALONE[terms[0]], None, ())
    sets = [_SETS.get(term.rpartition(" ")[2]) for term in terms]
    first = sets[0]
    declared = tuple(one for one in sets if one is not None)
    if len(terms) > 1:
        return _Plan("", first if first is not None and not first.low else None, declared)
    if first is None:
        # Without a character set each byte is the character with its number, so that no byte is lost.
        return _Plan("latin_1", None, ())
    return _Plan("" if first.low else first.codec, None if first.low else first, declared)


def decode_text(raw: bytes, character_set: str, vr: str = "PN") -> str:
    r"""
    Return a text as it is written in *character_set*.

    :param raw: the encoded value.
    :param character_set: the Specific Character Set (0008,0005), several terms divided by ``\``, as a peer has sent it.
    :param vr: the VR of the value, which decides what ends a code extension (PS3.5 6.1.2.5.3).
    :returns: the text without escape sequences and NUL characters. Undecodable bytes are kept, see the module.
    """
    escaped = b"\x1b" in raw
    if raw.isascii() and not escaped:
        text = raw.decode("ascii")
    else:
        plan = _plan(character_set)
        if len(raw) > MAX_TEXT_LENGTH:
            text = _decode_long(raw, "" if escaped else plan.codec)
        elif plan.codec and not (escaped and plan.codec not in _STAND_ALONE.values()):
            text = _decoded(raw, plan.codec)
            if escaped:
                text = text.replace("\x1b", chr(_KEPT + 0x1B))
        else:
            text = _decode_extended(raw, plan, vr)
    # Not a character of any text, and databases refuse it.
    return text.replace("\0", "") if "\0" in text else text


def _decode_long(raw: bytes, codec: str) -> str:
    """Decode a long text whole, or keep each byte of it that is not of ASCII."""
    if codec:
        try:
            text = raw.decode(codec)
        except UnicodeError:
            pass
        else:
            if max(text) < _FIRST_KEPT:
                return text
    return charmap_decode(raw, "strict", _KEEP_HIGH)[0]


def has_undecoded(text: str) -> bool:
    """Return whether a text of :func:`decode_text` has bytes that could not be decoded."""
    return not text.isascii() and max(text) >= _FIRST_KEPT


def _decoded(raw: bytes, codec: str) -> str:
    try:
        text = raw.decode(codec, "surrogateescape")
    except UnicodeError:
        return _kept(raw)  # a byte below 0x80 is not of this encoding
    if text.isascii():
        return text
    if max(text) >= _FIRST_KEPT:
        # Such code points in a text are taken for bytes that cannot be decoded; they come back as the same bytes.
        text = "".join([_kept(char.encode(codec)) if char >= _FIRST_KEPT else char for char in text])
    if codec not in ("latin_1", "iso8859_15"):
        text = text.translate(_SURROGATES_TO_KEPT)
    return text


#: The characters of bytes that are kept, by number.
_KEEP_HIGH: Final = "".join(chr(byte) if byte < 0x80 and byte != 0x1B else chr(_KEPT + byte) for byte in range(0x100))


def _kept(raw: bytes) -> str:
    return raw.decode("latin_1").translate(_KEEP_ALL)


_ESCAPE: Final = re.compile(rb"\x1b[\x20-\x2f]*[\x30-\x7e]?")
_LOW: Final = re.compile(rb"[\x00-\x1a\x1c-\x7f]+")
_CONTROL: Final = re.compile(rb"[\x00-\x1a\x1c-\x20\x7f]")
_LOW_PAIRS: Final = re.compile(rb"[\x21-\x7e]+")
_HIGH: Final = re.compile(rb"[\x80-\xff]+")
_LINE_ENDS: Final = frozenset(b"\t\n\f\r")


@lru_cache(maxsize=32)
def _delimiters(vr: str) -> frozenset[int]:
    """Return the characters behind which the first character set holds again (PS3.5 6.1.2.5.3)."""
    if vr == "PN":
        return _LINE_ENDS | frozenset(b"\\^=")
    return _LINE_ENDS if vr in _LONG_TEXT_VRS else _LINE_ENDS | frozenset(b"\\")


def _decode_extended(raw: bytes, plan: _Plan, vr: str) -> str:
    """Decode text with code extensions (ISO 2022); every escape sequence of the standard is followed, declared or not."""
    delimiters = _delimiters(vr)
    # Without a designation, bytes with the high bit belong to the set that was designated last, or may be.
    fallback = plan.high or next((one for one in plan.declared if not one.low), None)
    low: _Set | None = None
    high = fallback
    pieces: list[str] = []
    at, size = 0, len(raw)
    while at < size:
        byte = raw[at]
        if byte == 0x1B:
            match = _ESCAPE.match(raw, at)
            assert match is not None
            sequence, at = match[0], match.end()
            if sequence not in _BY_ESCAPE:
                pieces.append(_kept(sequence))
                continue
            found = _BY_ESCAPE[sequence]
            if found is None or found.low:
                low = found
            else:
                high = found
                fallback = plan.high or found
            continue
        if byte >= 0x80:
            match = _HIGH.match(raw, at)
        elif low is None or not 0x21 <= byte <= 0x7E:
            match = (_LOW if low is None else _CONTROL).match(raw, at)
        else:
            match = _LOW_PAIRS.match(raw, at)
        assert match is not None
        run, at = match[0], match.end()
        if byte >= 0x80:
            pieces.append(high.decode(run) if high is not None else _kept(run))
        elif low is not None and 0x21 <= byte <= 0x7E:
            whole = len(run) - len(run) % low.width
            pieces.append(low.decode(bytes(byte | 0x80 for byte in run[:whole])) + _kept(run[whole:]))
        else:
            pieces.append(run.decode("ascii"))
            if not delimiters.isdisjoint(run):
                low, high = None, fallback
    return "".join(pieces)


def encode_text(text: str, character_set: str, vr: str = "PN") -> bytes | None:
    r"""
    Return *text* as it is written in *character_set*, so that :func:`decode_text` gives it again.

    :param character_set: a Specific Character Set (0008,0005); several terms divided by ``\``.
    :returns: the bytes, those that could not be decoded as they came; ``None`` if the character set lacks a character.
    """
    if text.isascii():
        return text.encode("ascii")
    plan = _plan(character_set)
    raw: bytes | None
    if len(text) > MAX_TEXT_LENGTH:
        raw = _encode_long(text, plan.codec)
    elif plan.codec and (len(plan.declared) < 2):
        try:
            raw = text.translate(_KEPT_TO_SURROGATES).encode(plan.codec, "surrogateescape")
        except UnicodeError:
            return None
    else:
        raw = _encode_extended(text, plan, vr)
    return raw if raw is not None and decode_text(raw, character_set, vr) == text else None


def _encode_long(text: str, codec: str) -> bytes | None:
    if has_undecoded(text):
        # The last byte of each code point is the byte that was kept, or that of ASCII; the caller checks the others.
        return text.encode("utf-32-be", "replace")[3::4]
    try:
        return text.encode(codec) if codec else None
    except UnicodeError:
        return None


def _encode_extended(text: str, plan: _Plan, vr: str) -> bytes | None:
    delimiters = _delimiters(vr)
    low: _Set | None = None
    high = plan.high
    out = bytearray()
    for char in text:
        if char < "\x80":
            if low is not None:
                out += b"\x1b(B"
                low = None
            byte = ord(char)
            out.append(byte)
            if byte in delimiters:
                high = plan.high
            continue
        if char >= _FIRST_KEPT:
            out.append(ord(char) - _KEPT)
            continue
        for one in dict.fromkeys((*((low,) if low else ()), *((high,) if high else ()), *plan.declared)):
            raw = one.encode(char)
            if raw is not None:
                break
        else:
            return None
        if one.low and one is not low:
            out += one.escape
            low = one
        elif not one.low and one is not high:
            out += one.escape
            high = one
        out += raw
    if low is not None:
        out += b"\x1b(B"
    return bytes(out)


# --- Datasets of pydicom

#: The sets that pydicom does not take as the first one: it cannot write an empty component of a name then.
_NOT_FIRST: Final = ("ISO 2022 IR 87", "ISO 2022 IR 159")


def pydicom_terms(value: bytes) -> bytes:
    """
    Return a Specific Character Set for pydicom: that of a peer, with known terms only.

    :param value: the value of the element, as the peer has sent it.
    """
    character_set = canonical(value[: MAX_LENGTH + 1].decode("latin-1"))
    if character_set.startswith(_NOT_FIRST):
        # They are code extensions, for which the first value may be empty (PS3.3 C.12.1.1.2).
        character_set = "\\" + character_set
    known = character_set.encode("ascii")
    return value if value.rstrip(b" \0") == known else known + b" " * (len(known) & 1)


def decode_texts(dataset: Dataset, inherited: str = "") -> str:
    """
    Decode every text of *dataset* and of its items, so that pydicom decodes none.

    pydicom takes the name of any codec of Python for a character set, and raises what such a codec raises. Each Specific
    Character Set in *dataset* becomes one that pydicom writes its texts in.

    :param inherited: the Specific Character Set of a data set that has none.
    :returns: that of *dataset* as it came, with known terms only.
    :raises Exception: pydicom raises whatever a value makes it raise.
    """
    return _decode_texts(dataset, inherited, MAX_DEPTH, not _character_set_of(dataset, inherited))


def decode_values(dataset: Dataset) -> None:
    """
    Decode every value of *dataset* and of its items, behind :func:`decode_texts`.

    ``Dataset.decode`` of pydicom would encode names that are decoded once more, in a character set that they are not in.

    :raises Exception: pydicom raises whatever a value makes it raise.
    """
    for _ in dataset.iterall():
        pass


def _decode_texts(dataset: Dataset, inherited: str, depth: int, may_guess: bool) -> str:
    """
    Decode the texts of *dataset*.

    :param may_guess: whether the text of an unknown character set is read byte by byte. In an item of a data set whose own
        character set is known it is not: its letters would be claimed to be in that one, so its bytes are kept undecoded.
    """
    if not depth:
        raise ValueError(f"sequences are nested more than {MAX_DEPTH} deep")
    character_set = _character_set_of(dataset, inherited)
    # The values that are left to pydicom, such as one of an unknown VR, are decoded byte by byte.
    implicit, little = dataset.original_encoding
    if implicit is not None and little is not None:
        dataset.set_original_encoding(implicit, little, ["iso8859"])
    for tag in list(dataset.keys()):
        element = dataset.get_item(tag)
        vr = element.VR if element.VR not in (None, "UN") else _vr_of(tag)
        if vr == "SQ":
            element = dataset[tag]
            for item in (element.value or ()) if element.VR == "SQ" else ():
                _decode_texts(item, character_set, depth - 1, may_guess)
        elif vr in TEXT_VRS and isinstance(element, RawDataElement) and element.value is not None:
            if character_set or may_guess:
                text = decode_text(element.value, character_set, vr).rstrip(" \0")
            else:
                text = element.value.decode("ascii", "surrogateescape").translate(_SURROGATES_TO_KEPT).rstrip(" \0")
            values = [text] if vr in _LONG_TEXT_VRS else text.split("\\")
            value = values[0] if len(values) == 1 else values
            dataset[tag] = DataElement(tag, vr, value, validation_mode=IGNORE)
    declared = character_set.split("\\")
    pydicom_knows = all(not term or term in python_encoding for term in declared) and "58" not in character_set
    if _CHARACTER_SET in dataset:
        if not character_set:
            del dataset[_CHARACTER_SET]
        else:
            dataset.SpecificCharacterSet = (
                (declared if len(declared) > 1 else character_set) if pydicom_knows else UNICODE
            )
    return character_set


def _character_set_of(dataset: Dataset, inherited: str) -> str:
    if _CHARACTER_SET not in dataset:
        return inherited
    element = dataset.get_item(_CHARACTER_SET)
    value = element.value
    if isinstance(value, bytes):
        text = value.decode("latin-1")
    elif isinstance(value, str) or value is None:
        text = value or ""
    else:
        text = "\\".join(map(str, value))
    return canonical(text)


def _vr_of(tag: BaseTag) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


def encode_answer(dataset: Dataset, character_set: str) -> tuple[str, Dataset]:
    """
    Return the Specific Character Set of an answer, and a copy of *dataset* with its texts encoded (:func:`encode_texts`).

    If a byte could not be decoded, or the character set is unknown, all texts have their bytes as they came, and the
    Specific Character Set is empty, since none can be claimed for them.

    :param character_set: the Specific Character Set that the texts came in, as :func:`decode_texts` returns it.
    """
    for term in dict.fromkeys((character_set, UNICODE)):
        found = encode_texts(dataset, partial(_claimed, term, character_set))
        if found is not None:
            return term, found
    found = encode_texts(dataset, lambda text, vr: unclaimed_text(text, character_set, vr))
    assert found is not None
    return "", found


def _claimed(term: str, own: str, text: str, vr: str) -> bytes | None:
    return claimed_text(text, term, own, vr)


def claimed_text(text: str, term: str, own: str, vr: str = "PN") -> bytes | None:
    """
    Return *text* as it is written in the character set *term*; ``None`` if it cannot be said to be in that one.

    :param own: the Specific Character Set that the text came in.
    """
    if text.isascii():
        return text.encode("ascii")
    if not term or has_undecoded(text):
        return None
    if not canonical(own) and max(text) <= "\xff":
        return None  # its letters are a guess
    return encode_text(text, term, vr)


def unclaimed_text(text: str, own: str, vr: str = "PN") -> bytes:
    """
    Return the bytes of *text* as they came.

    :param own: the Specific Character Set that the text came in.
    """
    for term in (own, _ALL_EXTENSIONS):
        raw = encode_text(text, term, vr)
        if raw is not None:
            return raw
    return text.translate(_KEPT_TO_SURROGATES).encode("utf-8", "surrogateescape")


def encode_texts(dataset: Dataset, encode: Callable[[str, str], bytes | None]) -> Dataset | None:
    """
    Return a copy of *dataset* and of its items without any Specific Character Set, in which each byte of a text is a character.

    pydicom writes such a character as the byte, so that it encodes no text, and replaces no character that it does not know.

    :param encode: returns the bytes of a text of a VR, or ``None``.
    :returns: the copy; ``None`` if a text has no bytes.
    """
    found = Dataset()
    for tag in list(dataset.keys()):
        element = dataset[tag]
        if tag == _CHARACTER_SET:
            continue
        if element.VR == "SQ":
            items = []
            for item in element.value or ():
                copy = encode_texts(item, encode)
                if copy is None:
                    return None
                items.append(copy)
            found[tag] = DataElement(tag, "SQ", items)
        elif element.VR in TEXT_VRS and element.value:
            value = element.value
            text = "\\".join(map(str, value)) if not isinstance(value, str) and element.VM > 1 else str(value)
            raw = encode(text, element.VR)
            if raw is None:
                return None
            found[tag] = DataElement(tag, element.VR, raw.decode("latin_1"), validation_mode=IGNORE)
        else:
            found[tag] = element
    return found
