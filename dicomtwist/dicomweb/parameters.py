"""
Query parameters of a search (PS3.18 8.3.4 and 10.6) as the identifier of a C-FIND, and identifiers as query parameters.

A search is then answered by the code that answers a C-FIND. A parameter that cannot be used is ignored, with a text for the
Warning header field, as the standard says (PS3.18 8.3.4.1); a value that is malformed is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, unquote_plus

from pydicom import DataElement, Dataset
from pydicom._dicom_dict import DicomDictionary
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

__all__ = [
    "NO_WARNINGS",
    "RETURN_KEYS",
    "ParameterError",
    "Search",
    "Warnings",
    "parse_query",
    "parse_search",
    "search_query",
    "tag_of",
]

#: The longest query of a URL, in characters, and the most parameters in it.
MAX_QUERY_LENGTH: Final = 256 * 1024
MAX_PARAMETERS: Final = 4096
#: How deep an attribute may be nested.
MAX_NESTED: Final = 8
#: The highest ``limit`` and ``offset``; greater ones count as this.
MAX_RESULTS: Final = 2**31 - 1
#: The most warnings of a request, and the longest name in one, in characters.
MAX_WARNINGS: Final = 16
MAX_NAME_LENGTH: Final = 64

_TAG: Final = re.compile("[0-9A-Fa-f]{8}", re.ASCII)
_NUMBER: Final = re.compile(r"\d{1,20}", re.ASCII)
_UID: Final = re.compile(r"[0-9]+(\.[0-9]+)*", re.ASCII)
#: The VRs of several values that cannot have a comma in a value, so a comma divides values.
_COMMA_VRS: Final = frozenset(("AS", "AT", "CS", "DA", "DS", "DT", "IS", "TM", "UI"))
#: The VRs of numbers, which have no wildcards, so that ``*`` is for any value.
_NUMERIC: Final = frozenset(("DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"))
_INTEGERS: Final = _NUMERIC - {"DS", "FD", "FL", "IS"}
_BINARY: Final = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "UN"))

_CHARACTER_SET: Final = 0x00080005
_LEVEL: Final = 0x00080052
_STUDY_UID: Final = 0x0020000D
_SERIES_UID: Final = 0x0020000E

#: The attributes that an answer has, by level (PS3.18 Tables 10.6.3-3 to 10.6.3-5), besides those that the web service adds:
#: Specific Character Set, Instance Availability, Retrieve URL.
RETURN_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "STUDY": (
        *("StudyDate", "StudyTime", "AccessionNumber", "ModalitiesInStudy", "ReferringPhysicianName"),
        *("TimezoneOffsetFromUTC", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID"),
        *("StudyID", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
    ),
    "SERIES": (
        *("Modality", "TimezoneOffsetFromUTC", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber"),
        *("NumberOfSeriesRelatedInstances", "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime"),
        *("RequestAttributesSequence.ScheduledProcedureStepID", "RequestAttributesSequence.RequestedProcedureID"),
    ),
    "IMAGE": (
        *("SOPClassUID", "SOPInstanceUID", "TimezoneOffsetFromUTC", "InstanceNumber", "Rows", "Columns"),
        *("BitsAllocated", "NumberOfFrames"),
    ),
}
#: The attributes that the web service adds to each answer; they are no keys.
_ADDED: Final = frozenset((_CHARACTER_SET, _LEVEL, 0x00080054, 0x00080056, 0x00081190))


class ParameterError(ValueError):
    """A query parameter has an invalid value. The text names it, for the response 400."""


class Warnings(tuple[str, ...]):
    """The texts of the Warning header field of a response: printable ASCII without quotation marks, and few."""

    __slots__ = ()

    def with_ignored(self, name: str, why: str = "is not known") -> Warnings:
        """Return these and one more: that the parameter *name* of the request is ignored."""
        if len(self) >= MAX_WARNINGS:
            return self
        shown = "".join(one if " " < one <= "~" and one not in '"\\' else "?" for one in name[:MAX_NAME_LENGTH])
        return Warnings((*self, f"{shown} {why}, and is ignored"))

    def fields(self, service: str) -> list[str]:
        """
        Return the values of the Warning header fields (PS3.18 8.3.4.1).

        :param service: the base URL of the service, or its host.
        """
        return [f'299 {service} "{text}"' for text in self]


NO_WARNINGS: Final = Warnings()


@dataclass(slots=True)
class Search:
    """
    A search for studies, series or instances.

    :ivar identifier: the identifier of a C-FIND, with the matching keys and the return keys.
    :ivar level: its Query/Retrieve Level: STUDY, SERIES or IMAGE.
    :ivar fuzzy: whether names that sound alike match.
    :ivar empty_values: whether a key of two quotation marks matches an empty value.
    :ivar all_fields: whether all attributes of the level are wanted (``includefield=all``).
    :ivar limit: the most answers; ``None`` for all.
    :ivar offset: the number of answers to leave out.
    :ivar is_contradictory: whether nothing can match, as the URL names one study or series, and a key others.
    :ivar warnings: the parameters and values that are ignored.
    """

    identifier: Dataset
    level: str
    fuzzy: bool = False
    empty_values: bool = False
    all_fields: bool = False
    limit: int | None = None
    offset: int = 0
    is_contradictory: bool = False
    warnings: Warnings = NO_WARNINGS

    def add_return_keys(self, attributes: Iterable[int | str]) -> None:
        """
        Add return keys, where the identifier has no key yet.

        :param attributes: tags, keywords, or several of these divided by dots for an attribute of an item.
        """
        for attribute in attributes:
            path = (attribute,) if isinstance(attribute, int) else _path(attribute)
            if path is not None and path[0] not in _ADDED:
                _add_key(self.identifier, path, [])


def parse_query(query: str | bytes) -> list[tuple[str, str]]:
    """
    Return the names and values of the query of a URL, decoded.

    A plus sign is a space, as browsers and most clients write it.

    :raises ParameterError: it is too long, or not in UTF-8.
    """
    if len(query) > MAX_QUERY_LENGTH:
        raise ParameterError(f"a query of more than {MAX_QUERY_LENGTH} characters")
    try:
        text = query if isinstance(query, str) else query.decode("ascii")
        pieces = [piece for piece in text.split("&") if piece]
        if len(pieces) > MAX_PARAMETERS:
            raise ParameterError(f"a query of more than {MAX_PARAMETERS} parameters")
        found = []
        for piece in pieces:
            name, _, value = piece.partition("=")
            found.append((unquote_plus(name, errors="strict").strip(), unquote_plus(value, errors="strict")))
    except UnicodeError:
        raise ParameterError("a query that is not in UTF-8") from None
    if any("\0" in name or "\0" in value for name, value in found):
        raise ParameterError("a query with a NUL character")
    return found


def parse_search(
    query: str | bytes | Iterable[tuple[str, str]],
    level: str,
    *,
    study: str = "",
    series: str = "",
) -> Search:
    """
    Parse the query of a search.

    :param query: the query of the URL; or its parameters, decoded.
    :param level: the level that is searched: STUDY, SERIES or IMAGE.
    :param study: the Study Instance UID in the path of the URL, if there is one.
    :param series: the Series Instance UID in it.
    :raises ParameterError: a value is invalid.
    """
    parameters = parse_query(query) if isinstance(query, str | bytes) else list(query)
    search = Search(Dataset(), level)
    keys: dict[tuple[int, ...], list[str]] = {}
    included: list[str] = []
    multiple = any(name.lower() == "multiplevaluematching" and _is_true(name, value) for name, value in parameters)
    for name, value in parameters:
        option = name.lower()
        if option == "includefield":
            included += [one.strip() for one in value.split(",")]
        elif option == "fuzzymatching":
            search.fuzzy = _is_true(name, value)
        elif option == "emptyvaluematching":
            search.empty_values = _is_true(name, value)
        elif option == "limit":
            search.limit = _unsigned(name, value)
        elif option == "offset":
            search.offset = _unsigned(name, value)
        elif option in ("accept", "charset", "multiplevaluematching"):
            continue  # for the negotiation
        else:
            path = _path(name)
            if path is None or path[0] in _ADDED:
                search.warnings = search.warnings.with_ignored(name)
                continue
            keys[path] = keys.get(path, []) + _values(path[-1], value, multiple=multiple)
    for path, values in keys.items():
        _add_key(search.identifier, path, values, _name(path))
    for tag, uid in ((_STUDY_UID, study), (_SERIES_UID, series)):
        if uid:
            asked = keys.get((tag,))
            search.is_contradictory |= bool(asked) and uid not in (asked or ())
            search.identifier[tag] = DataElement(tag, "UI", uid, validation_mode=IGNORE)
    _add_returned(search, included, study, series)
    search.identifier.QueryRetrieveLevel = level
    if not all(value.isascii() for values in keys.values() for value in values):
        search.identifier.SpecificCharacterSet = "ISO_IR 192"
    return search


def _add_returned(search: Search, included: list[str], study: str, series: str) -> None:
    level = search.level
    search.add_return_keys(RETURN_KEYS[level])
    # A search in all studies has the attributes of the levels above as well (PS3.18 10.6.3.3).
    if level != "STUDY":
        search.add_return_keys(() if study else RETURN_KEYS["STUDY"])
        search.add_return_keys(("StudyInstanceUID",))
    if level == "IMAGE":
        search.add_return_keys(() if series else RETURN_KEYS["SERIES"])
        search.add_return_keys(("SeriesInstanceUID",))
    for name in included:
        if name.lower() == "all":
            search.all_fields = True
        elif name:
            path = _path(name)
            if path is None:
                search.warnings = search.warnings.with_ignored(f"includefield={name}")
            elif path[0] not in _ADDED:
                _add_key(search.identifier, path, [])


def _is_true(name: str, value: str) -> bool:
    text = value.strip().lower()
    if text not in ("true", "false"):
        raise ParameterError(f"{name} has to be true or false")
    return text == "true"


def _unsigned(name: str, value: str) -> int:
    if not _NUMBER.fullmatch(value.strip()):
        raise ParameterError(f"{name.lower()} has to be a number that is not negative")
    return min(int(value), MAX_RESULTS)


@lru_cache(maxsize=1)
def _keywords() -> dict[str, int]:
    """Return the tags of all keywords, which are in lower case: some clients write them so."""
    return {entry[4].lower(): tag for tag, entry in DicomDictionary.items() if entry[4]}


def tag_of(name: str) -> int | None:
    """Return the tag of a keyword, whatever its case, or of eight hexadecimal digits; ``None`` if it is neither."""
    if _TAG.fullmatch(name):
        return int(name, 16)
    return _keywords().get(name.lower())


def _path(name: str) -> tuple[int, ...] | None:
    """Return the tags of an attribute and of the sequences that it is in; ``None`` if one is not known."""
    names = name.split(".") if len(name) < MAX_QUERY_LENGTH else []
    if not 0 < len(names) <= MAX_NESTED:
        return None
    path: list[int] = []
    for one in names:
        tag = tag_of(one.strip())
        if tag is None or tag >> 16 <= 2 or not _vr(tag) or (path and _vr(path[-1]) != "SQ"):
            return None
        path.append(tag)
    return tuple(path)


def _vr(tag: int) -> str:
    """Return the VR of an attribute that can be a key; empty if it cannot."""
    try:
        vr = dictionary_VR(tag).partition(" or ")[0]
    except KeyError:
        return ""
    return "" if vr in _BINARY or vr == "NONE" else vr


def _name(path: tuple[int, ...]) -> str:
    return ".".join(keyword_for_tag(tag) or f"{tag:08X}" for tag in path)


def _values(tag: int, value: str, *, multiple: bool) -> list[str]:
    """Return the values in one parameter."""
    vr = _vr(tag)
    value = value.strip(" ")
    if vr == "DT" or vr == "TM":
        value = value.replace(" ", "+")  # that of a time zone, which its writer did not encode
    divided = value.replace(",", "\\") if multiple or vr in _COMMA_VRS else value
    found = [one.strip(" ") for one in divided.split("\\")]
    found = [one for one in found if one]
    return [] if vr in _NUMERIC and "*" in found else found


def _add_key(dataset: Dataset, path: tuple[int, ...], values: list[str], name: str = "") -> None:
    """
    Add a key to an identifier; a return key only if it has none yet.

    A sequence without items is returned as a whole, whatever attributes of its items are return keys besides.

    :raises ParameterError: its VR does not allow a value.
    """
    for tag in path[:-1]:
        if tag not in dataset or not dataset[tag].value:
            if tag in dataset and not values:
                return
            dataset[tag] = DataElement(tag, "SQ", Sequence([Dataset()]))
        dataset = dataset[tag].value[0]
    tag = path[-1]
    if tag in dataset and not values and not _has_return_keys_only(dataset[tag]):
        return
    vr = _vr(tag)
    if vr == "SQ":
        if values:
            raise ParameterError(f"{name} is a sequence, whose attributes have values")
        dataset[tag] = DataElement(tag, "SQ", Sequence())
        return
    found: Any = values
    try:
        if vr in _INTEGERS:
            found = [int(one) for one in values]
        elif vr in ("FD", "FL"):
            found = [float(one) for one in values]
        elif vr == "AT":
            found = [int(one, 16) for one in values]
        elif vr == "UI" and not all(_UID.fullmatch(one) for one in values if one not in ('""', "*")):
            raise ValueError("an invalid UID")
        dataset[tag] = DataElement(
            tag, vr, (found[0] if len(found) == 1 else found) if found else None, validation_mode=IGNORE
        )
    except (ValueError, OverflowError):
        raise ParameterError(f"{name} has an invalid value") from None


def _has_return_keys_only(element: DataElement) -> bool:
    """Whether a key is a sequence whose attributes have no values."""
    return element.VR == "SQ" and all(
        _has_return_keys_only(one) if one.VR == "SQ" else one.is_empty for item in element.value for one in item
    )


def search_query(
    identifier: Dataset | Mapping[str, Any] | None = None,
    *,
    include: Iterable[str | int] = (),
    fuzzy: bool = False,
    limit: int | None = None,
    offset: int = 0,
) -> str:
    """
    Return the query of a search, for a URL.

    :param identifier: the matching keys, by keyword or tag; or a Dataset, whose empty elements are return keys.
    :param include: further attributes to return: keywords, tags, or ``"all"``.
    :param limit: the most answers.
    :param offset: the number of answers to leave out.
    :raises ParameterError: a name is not that of an attribute.
    """
    pairs: list[tuple[str, str]] = []
    fields: list[str] = []
    if isinstance(identifier, Dataset):
        _write_keys(identifier, "", pairs, fields)
    else:
        for name, value in (identifier or {}).items():
            if _path(name) is None:
                raise ParameterError(f"{name[:MAX_NAME_LENGTH]} is not an attribute that can be a key")
            pairs.append((name, _key_text(value)))
    fields += [f"{one:08X}" if isinstance(one, int) else one for one in include]
    if fields:
        pairs.append(("includefield", ",".join(fields)))
    if fuzzy:
        pairs.append(("fuzzymatching", "true"))
    if limit is not None:
        pairs.append(("limit", str(limit)))
    if offset:
        pairs.append(("offset", str(offset)))
    return "&".join(f"{quote(name, safe='')}={quote(value, safe=',*')}" for name, value in pairs)


def _write_keys(dataset: Dataset, prefix: str, pairs: list[tuple[str, str]], fields: list[str]) -> None:
    for element in dataset:
        tag = int(element.tag)
        if not prefix and tag in _ADDED:
            continue
        name = f"{prefix}{tag:08X}"
        if element.VR == "SQ" and element.value:
            _write_keys(element.value[0], f"{name}.", pairs, fields)
        elif element.is_empty:
            fields.append(name)
        elif element.VR == "AT":
            tags = element.value if isinstance(element.value, MultiValue | list) else [element.value]
            pairs.append((name, ",".join(f"{int(one):08X}" for one in tags)))
        else:
            pairs.append((name, _key_text(element.value, comma=element.VR == "UI")))


def _key_text(value: Any, *, comma: bool = False) -> str:
    if isinstance(value, list | tuple | MultiValue):
        # The standard has a comma in lists of UIDs (PS3.18 8.3.4.1), and a backslash in PS3.4.
        is_uids = comma or all(_UID.fullmatch(str(one)) for one in value)
        return ("," if is_uids else "\\").join(map(str, value))
    return "" if value is None else str(value)
