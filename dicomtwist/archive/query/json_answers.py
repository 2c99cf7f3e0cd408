"""
The encoder of answers to a search of DICOMweb: a row of the index becomes an object of DICOM JSON (PS3.18 Annex F).

It takes about ten microseconds for an answer. Texts are UTF-8, whatever the character set of their data; bytes that have no
meaning in it become U+FFFD, as in the metadata of an instance.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from pydicom import Dataset

from dicomtwist.archive.index.attributes import Level
from dicomtwist.archive.query.answer_reader import MakeEncoder
from dicomtwist.archive.query.response_encoder import Field
from dicomtwist.dicomweb.json_values import attribute

__all__ = ["JSONAnswerEncoder", "json_answers"]

#: The number of encoded elements that are cached for each key of an answer.
MAX_MADE: Final = 512
#: The longest text whose element is cached, in characters.
MAX_TEXT: Final = 256

_CHARACTER_SET, _RETRIEVE_AE, _AVAILABILITY, _URL = 0x00080005, 0x00080054, 0x00080056, 0x00081190

#: A text that needs no escape in JSON, and is a single value.
_PLAIN: Final = re.compile(r"[0-9A-Za-z.:_+\-]+", re.ASCII)
_PATH: Final = re.compile(r"[0-9A-Za-z./]+", re.ASCII)
#: Bytes of a text that could not be decoded, and halves of characters; UTF-8 has no place for either.
_UNDECODED: Final = re.compile("[\U0010ff00-\U0010ffff\ud800-\udfff]")
_UNKNOWN: Final = "\ufffd"

#: The VRs whose values are texts in JSON, and have no character set.
_PLAIN_VRS: Final = frozenset(("AS", "CS", "DA", "DT", "TM", "UI"))

_Part: TypeAlias = Callable[[str], str]


def json_answers(base_url: str, ae_title: str = "") -> MakeEncoder:
    """
    Return the maker of the encoder for answers to a search of DICOMweb.

    :param base_url: the URL of the service, without a slash at the end; the Retrieve URLs (0008,1190) begin with it.
    :param ae_title: Retrieve AE Title (0008,0054); empty to leave it out.
    """

    def make(fields: Sequence[Field], character_sets: Mapping[Level, int], level: Level) -> JSONAnswerEncoder:
        return JSONAnswerEncoder(fields, level, base_url, ae_title)

    return make


class JSONAnswerEncoder:
    """
    Encodes the answers to one search.

    :param fields: the keys, in any order; among them are the unique keys of all levels from STUDY to *level*.
    :param level: the level of the answers.
    :param base_url: the URL of the service, without a slash at the end.
    :param ae_title: Retrieve AE Title (0008,0054); empty to leave it out.
    """

    def __init__(self, fields: Sequence[Field], level: Level, base_url: str, ae_title: str = "") -> None:
        constants = {
            _CHARACTER_SET: attribute(_CHARACTER_SET, "ISO_IR 192"),
            _AVAILABILITY: attribute(_AVAILABILITY, "ONLINE"),
        }
        if ae_title:
            constants[_RETRIEVE_AE] = attribute(_RETRIEVE_AE, ae_title)
        by_tag = {field.attribute.tag: field for field in fields}
        beginning = attribute(_URL, f"{base_url}/")
        #: The text of the Retrieve URL up to the first UID, and behind the last one.
        self._url_begins, self._url_ends = beginning[: -len('/"]}')], '"]}'
        #: The positions of the UIDs in a row, each with the name of its resource.
        self._uids: list[tuple[str, int]] = []
        for upper, resource in ((Level.STUDY, "/studies/"), (Level.SERIES, "/series/"), (Level.IMAGE, "/instances/")):
            if upper <= level:
                self._uids.append((resource, by_tag[upper.unique.tag].position))
        #: In the order of the tags: the position of the value in a row, the function that encodes it, and elements by value.
        #: Most values are those of the row before. Position 0 is for an element that is equal in all answers, -1 for the URL.
        self._parts: list[tuple[int, _Part, dict[str, str]]] = []
        for tag in sorted({*constants, *by_tag, _URL}):
            if tag == _URL:
                self._parts.append((-1, str, {}))
            elif tag in constants:
                self._parts.append((0, str, {"": constants[tag]}))
            else:
                self._parts.append((by_tag[tag].position, _part(by_tag[tag]), {}))

    def encode(self, row: Sequence[Any]) -> bytes:
        """Return the answer for *row*: a JSON object in UTF-8."""
        elements: list[str] = []
        append = elements.append
        for at, part, known in self._parts:
            if at <= 0:
                append(known[""] if at == 0 else self._url(row))
                continue
            text = row[at]
            element = known.get(text)
            if element is None:
                element = part(text)
                if len(text) <= MAX_TEXT:
                    if len(known) >= MAX_MADE:
                        known.clear()
                    known[text] = element
            append(element)
        return f"{{{','.join(elements)}}}".encode("utf-8", "replace")

    def _url(self, row: Sequence[Any]) -> str:
        path = "".join([f"{resource}{row[at]}" for resource, at in self._uids])
        if not _PATH.fullmatch(path):  # an invalid UID, which no instance of the storage has
            path = "".join([f"{resource}{quote(row[at], safe='', errors='replace')}" for resource, at in self._uids])
        return f"{self._url_begins}{path}{self._url_ends}"


def _part(field: Field) -> _Part:
    """Return the function that encodes the values of a key."""
    tag, vr = field.attribute.tag, field.attribute.vr
    head = f'"{tag:08X}":{{"vr":"{vr}"'
    if vr == "SQ":
        return _sequence(head, f"{tag:08X}", field.keys)
    if vr == "US":
        return lambda text: f'{head},"Value":[{int(text)}]}}' if text else f"{head}}}"
    if vr in _PLAIN_VRS:

        def plain(text: str) -> str:
            return f'{head},"Value":["{text}"]}}' if _PLAIN.fullmatch(text) else attribute(tag, text, vr)

        return plain
    # A byte that could not be decoded becomes one U+FFFD here; its encoding in UTF-8 would become four.
    return lambda text: attribute(tag, text if text.isascii() else _UNDECODED.sub(_UNKNOWN, text), vr)


def _sequence(head: str, tag: str, keys: Dataset | None) -> _Part:
    wanted = keys if keys is not None else Dataset()

    def sequence(text: str) -> str:
        if text:
            try:
                items = json.loads(text)[tag].get("Value", ())
                chosen = [_chosen(item, wanted) for item in items]
                written = json.dumps(chosen, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
                pass  # stored values that are not JSON: the answer goes without, as that to a C-FIND does
            else:
                if chosen:
                    return f'{head},"Value":{_UNDECODED.sub(_UNKNOWN, written)}}}'
        return f"{head}}}"

    return sequence


def _chosen(stored: dict[str, Any], wanted: Dataset) -> dict[str, Any]:
    """
    Return the part of the item *stored* that the item *wanted* of an identifier requests (PS3.4 C.2.2.2.6), as
    :func:`~dicomtwist.archive.query.sequences.answer_item` does for data sets.
    """
    if not len(wanted):
        return stored
    answer: dict[str, Any] = {}
    for element in wanted:
        name = f"{int(element.tag):08X}"
        if name not in stored:
            answer[name] = {"vr": str(element.VR)}
        elif element.VR == "SQ" and stored[name].get("vr") == "SQ":
            keys = element.value[0] if element.value else Dataset()
            items = [_chosen(item, keys) for item in stored[name].get("Value", ())]
            answer[name] = {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
        else:
            answer[name] = stored[name]
    return answer
