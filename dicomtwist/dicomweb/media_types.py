"""
Media types and their negotiation in DICOMweb (PS3.18 8.7).

A request says what it accepts in its Accept header fields, and may say it in the query parameter ``accept`` (PS3.18
8.3.3.1). The server answers with the representation that :meth:`Accept.negotiate` selects, or with 406 if there is none.

Clients deviate from the syntax of the standard, so the parser takes what can have one meaning only: media types in ``type``
without quotes, ``image/`` for ``image/*``, parameters of the parts within the quotes of ``type``.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter
from typing import Final

from dicomtwist.datasets.element_headers import (
    DEFLATED_LITTLE_ENDIAN,
    EXPLICIT_BIG_ENDIAN,
    EXPLICIT_LITTLE_ENDIAN,
    IMPLICIT,
)

__all__ = [
    "DICOM",
    "DICOM_JSON",
    "JPEG",
    "JSON",
    "OCTET_STREAM",
    "ZIP",
    "Accept",
    "Category",
    "MediaRange",
    "MediaType",
    "MediaTypeError",
    "Representation",
    "frame_media_type",
    "parse_ranges",
]

DICOM: Final = "application/dicom"
DICOM_JSON: Final = "application/dicom+json"
JSON: Final = "application/json"
OCTET_STREAM: Final = "application/octet-stream"
ZIP: Final = "application/zip"
JPEG: Final = "image/jpeg"
RELATED: Final = "multipart/related"

#: The longest header field that is parsed, in characters, and the most media ranges of a request. A browser sends eight, a
#: client that lists all transfer syntaxes sixteen.
MAX_LENGTH: Final = 8 * 1024
MAX_RANGES: Final = 64

#: The media types of compressed frames, with their transfer syntaxes; the first is the default (PS3.18 Table 8.7.3-5).
_COMPRESSED: Final = {
    JPEG: ("70", "50", "51", "57"),
    "image/jls": ("80", "81"),
    "image/jp2": ("90", "91"),
    "image/jpx": ("92", "93"),
    "image/jphc": ("201", "202", "203"),
    "image/jxl": ("110", "111", "112"),
    "video/mpeg": ("100", "100.1", "101", "101.1"),
    "video/mp4": (*("102", "102.1", "103", "103.1", "104", "104.1"), *("105", "105.1", "106", "106.1")),
    "video/h265": ("107", "108"),
}
_SYNTAXES: Final[dict[str, tuple[str, ...]]] = {
    **{name: tuple(f"1.2.840.10008.1.2.4.{end}" for end in ends) for name, ends in _COMPRESSED.items()},
    "image/dicom-rle": ("1.2.840.10008.1.2.5",),
    "application/x-deflate": ("1.2.840.10008.1.2.8.1",),
}
#: The retired and unregistered names of these media types, which clients and viewers send.
_ALIASES: Final = {
    "image/dicom+jpeg": JPEG,
    "image/jpg": JPEG,
    "image/jll": JPEG,
    "image/x-dicom-rle": "image/dicom-rle",
    "image/dicom+rle": "image/dicom-rle",
    "image/x-jls": "image/jls",
    "image/dicom+jpeg-ls": "image/jls",
    "image/dicom+jp2": "image/jp2",
    "image/dicom+jpx": "image/jpx",
    "image/jph": "image/jphc",
    "image/x-jphc": "image/jphc",
    "video/mpeg2": "video/mpeg",
    JSON: DICOM_JSON,
}
_MEDIA_TYPES: Final = {syntax: name for name, syntaxes in _SYNTAXES.items() for syntax in syntaxes}
#: The JPEG processes that are retired have no row in Table 8.7.3-5, but frames in them are there and are JPEG.
_RETIRED_JPEG: Final = frozenset(f"1.2.840.10008.1.2.4.{end}" for end in (*range(52, 57), *range(58, 67)))
_UNCOMPRESSED: Final = IMPLICIT | {EXPLICIT_LITTLE_ENDIAN, EXPLICIT_BIG_ENDIAN, DEFLATED_LITTLE_ENDIAN}

_PIECES: Final = re.compile(r'[^,;"]+|"(?:\\.|[^"\\])*"?|[,;]')
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_QUALITY: Final = re.compile(r"(?:0(?:\.\d*)?|1(?:\.0*)?|\.\d+)")
_UID: Final = re.compile(r"[0-9.]{1,64}")


class MediaTypeError(ValueError):
    """A Content-Type is not a media type (RFC 9110 8.3.1); the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class MediaType:
    """
    A media type with its parameters.

    :ivar name: type and subtype in lower case, such as ``application/dicom``.
    :ivar parameters: the parameters, by their names in lower case; the first counts if a name is repeated.
    """

    name: str
    parameters: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> MediaType:
        """
        Parse the value of a Content-Type header field.

        :raises MediaTypeError: it is not one media type, or is longer than :data:`MAX_LENGTH`.
        """
        if len(text) > MAX_LENGTH:
            raise MediaTypeError(f"a media type of more than {MAX_LENGTH} characters")
        found = list(_media_types(text))
        if len(found) != 1:
            raise MediaTypeError("no media type" if not found else "more than one media type")
        name, parameters = found[0]
        kind, slash, subtype = name.partition("/")
        if not (slash and _TOKEN.fullmatch(kind) and _TOKEN.fullmatch(subtype)):
            raise MediaTypeError("a media type has the form type/subtype")
        return cls(name, parameters)

    @property
    def transfer_syntax(self) -> str:
        """The UID in the parameter ``transfer-syntax``; empty without one, or if it is not a UID (PS3.18 8.7.3.5.2)."""
        value = self.parameters.get("transfer-syntax", "")
        return value if _UID.fullmatch(value) else ""

    def __str__(self) -> str:
        return "; ".join([self.name, *(f"{name}={_quoted(value)}" for name, value in self.parameters.items())])


def _quoted(value: str) -> str:
    if _TOKEN.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _media_types(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield name and parameters of each media type of a comma list; the names are lower case, and may be anything."""
    item: list[str] = []
    piece = ""
    for found in [*_PIECES.findall(text), ","]:
        if found not in (",", ";"):
            piece += found
            continue
        item.append(piece.strip())
        piece = ""
        if found == ",":
            if item[0]:
                yield item[0].lower(), _parameters(item[1:])
            item = []


def _parameters(items: Sequence[str]) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for one in items:
        name, equals, value = one.partition("=")
        name = name.strip()
        if equals and _TOKEN.fullmatch(name):
            value = value.strip()
            if value[:1] == '"':
                value = re.sub(r"\\(.)", r"\1", value[1:-1] if len(value) > 1 and value[-1] == '"' else value[1:])
            parameters.setdefault(name.lower(), value.strip())
    return parameters


@dataclass(frozen=True, slots=True)
class MediaRange:
    """
    A media range of an Accept header field (RFC 9110 12.5.1), or of the query parameter ``accept``.

    :ivar media_type: the media type of the response, or of its parts if it is multipart; with ``*`` for any.
    :ivar multipart: whether the response is multipart/related; ``None`` if it may be.
    :ivar transfer_syntax: a UID, ``"*"`` for any, or empty for the default.
    :ivar quality: from 0, not acceptable, to 1.
    """

    media_type: str
    multipart: bool | None = False
    transfer_syntax: str = ""
    quality: float = 1.0

    @property
    def wildcards(self) -> int:
        """2 for ``*/*``, 1 for ``image/*``, 0 for a media type."""
        return 2 if self.media_type[0] == "*" else int(self.media_type.endswith("/*"))

    def covers(self, media_type: str) -> bool:
        """Return whether *media_type*, without wildcards, is in the range."""
        own = self.media_type
        return own == "*/*" or own == media_type or (own.endswith("/*") and media_type.startswith(own[:-1]))

    def matches(self, media_type: str) -> bool:
        """Return whether *media_type* is in the range, or the range is a retired name of it."""
        return self.covers(media_type) or _ALIASES.get(self.media_type) == media_type


def parse_ranges(texts: Iterable[str], *, default_syntax: str = "") -> tuple[MediaRange, ...]:
    """
    Parse Accept header fields, or one query parameter ``accept``.

    A range that cannot be parsed matches nothing, so it is left out; so are those after :data:`MAX_RANGES`, and whatever
    follows the first :data:`MAX_LENGTH` characters.

    :param texts: the values of all fields.
    :param default_syntax: the transfer syntax of ranges that name none, from the query parameter ``transferSyntax``.
    """
    ranges: list[MediaRange] = []
    for name, parameters in _media_types(", ".join(texts)[:MAX_LENGTH]):
        multipart: bool | None = False
        if name == "multipart/*" or name == RELATED:
            multipart = True
            # Some clients put the parameters of the parts within the quotes of the type.
            inner = next(_media_types(parameters.get("type", "")), ("*/*", {}))
            name, parameters = inner[0], {**inner[1], **parameters}
        elif name in ("*/*", "*"):
            name, multipart = "*/*", None
        if name.endswith("/") and len(name) > 1:
            name += "*"
        kind, slash, subtype = name.partition("/")
        if not (slash and _TOKEN.fullmatch(kind) and _TOKEN.fullmatch(subtype)) or (kind == "*" and subtype != "*"):
            continue
        syntax = parameters.get("transfer-syntax", "") or default_syntax
        if syntax not in ("", "*") and not _UID.fullmatch(syntax):
            continue
        quality = parameters.get("q", "1")
        ranges.append(
            MediaRange(name, multipart, syntax, float(quality) if _QUALITY.fullmatch(quality) else 1.0),
        )
        if len(ranges) == MAX_RANGES:
            break
    return tuple(ranges)


class Category(enum.Enum):
    """A kind of resource, which decides about its media types (PS3.18 8.7.2 and Table 10.4.4-1)."""

    #: Instances as PS3.10 files: a study, a series, an instance.
    INSTANCES = "instances"
    #: Metadata, search results, responses to storage: DICOM JSON.
    METADATA = "metadata"
    #: Values of elements besides pixel data.
    BULKDATA = "bulkdata"
    #: Frames, and pixel data as bulk data.
    FRAMES = "frames"
    #: Rendered images, thumbnails, and every resource of the URI service (PS3.18 9).
    RENDERED = "rendered"


@dataclass(frozen=True, slots=True)
class Representation:
    """
    The selected form of a response, or of one of its parts.

    :ivar media_type: the media type of the response, or of the part if it is multipart.
    :ivar multipart: whether the response is multipart/related.
    :ivar transfer_syntax: the UID of the transfer syntax to convert to; ``None`` to leave it as it is stored, or if the media
        type has none.
    """

    media_type: str
    multipart: bool
    transfer_syntax: str | None = None

    def content_type(self, boundary: str = "", transfer_syntax: str = "") -> str:
        """
        Return the Content-Type of the response.

        :param boundary: the boundary, if the response is multipart.
        :param transfer_syntax: the transfer syntax of a response that is one part, if its media type has one.
        """
        if self.multipart:
            return f'{RELATED}; type="{self.media_type}"; boundary={_quoted(boundary)}'
        return self.part_type(transfer_syntax)

    def part_type(self, transfer_syntax: str = "") -> str:
        """Return the Content-Type of a part, with its actual *transfer_syntax* if it has one (PS3.18 8.7.9)."""
        return f"{self.media_type}; transfer-syntax={transfer_syntax}" if transfer_syntax else self.media_type


def frame_media_type(transfer_syntax: str) -> str:
    """
    Return the media type of frames in *transfer_syntax* (PS3.18 Table 8.7.3-5).

    :returns: ``application/octet-stream`` for uncompressed ones, and for a transfer syntax that has no media type.
    """
    if transfer_syntax in _RETIRED_JPEG:
        return JPEG
    return _MEDIA_TYPES.get(transfer_syntax, OCTET_STREAM)


@dataclass(frozen=True, slots=True)
class Accept:
    """
    The media ranges that a request accepts.

    :ivar ranges: those of its Accept header fields; ``*/*`` if it has none.
    :ivar query: those of its query parameter ``accept``, which take precedence (PS3.18 8.7.8.1).
    """

    ranges: tuple[MediaRange, ...] = (MediaRange("*/*", None),)
    query: tuple[MediaRange, ...] = ()

    @classmethod
    def parse(cls, headers: Iterable[str] = (), query: str = "", transfer_syntax: str = "") -> Accept:
        """
        Parse what a request accepts.

        :param headers: the values of all its Accept header fields.
        :param query: the value of its query parameter ``accept``, decoded. ``+`` may have become a space.
        :param transfer_syntax: the value of its query parameter ``transferSyntax`` (PS3.18 8.7.3.6).
        """
        texts = tuple(text for text in headers if text.strip())
        queried = parse_ranges((re.sub(r"(?<=[a-z]) (?=[a-z])", "+", query),), default_syntax=transfer_syntax)
        if not texts:
            return cls(query=queried) if not query.strip() else cls((), queried)
        return cls(parse_ranges(texts), queried)

    def negotiate(
        self,
        category: Category,
        *,
        stored: str = "",
        convertible: Collection[str] = (),
        single: bool = True,
        offers: Sequence[str] = (),
    ) -> Representation | None:
        """
        Select the representation of a resource, or of one part of it (PS3.18 8.7.8): the first of :meth:`alternatives`.

        A response of several parts is negotiated once for all, without *stored*, which tells whether it is multipart; then for
        each part.

        :param stored: the UID of the transfer syntax of what is stored; if empty, every transfer syntax is taken as possible.
        :param convertible: the UIDs of other transfer syntaxes that it can be converted to, the preferred first.
        :param single: whether the resource is one item, such as an instance or a frame, so that it may be a single part.
        :param offers: the media types of the category that can be given, the default first. For :attr:`Category.RENDERED`
            they are needed; for :attr:`Category.INSTANCES`, ``application/zip`` may be added; for
            :attr:`Category.BULKDATA`, the media type of an encapsulated document.
        :returns: ``None`` if the response is 406.
        """
        found = self.alternatives(category, stored=stored, convertible=convertible, single=single, offers=offers)
        return found[0] if found else None

    def alternatives(
        self,
        category: Category,
        *,
        stored: str = "",
        convertible: Collection[str] = (),
        single: bool = True,
        offers: Sequence[str] = (),
    ) -> tuple[Representation, ...]:
        """
        Return all acceptable representations of a resource, the best first.

        A stored instance may be damaged, or have a form that a codec does not encode. A server that cannot make the best
        representation gives the next one, and answers with 406 if it can make none. The last are those that apply if the
        resource cannot be converted: the default transfer syntax is not demanded then (PS3.18 8.7.3).

        The parameters are those of :meth:`negotiate`.
        """
        return _alternatives(self, _Resource(category, stored, tuple(convertible), single, tuple(offers)))


@dataclass(frozen=True, slots=True)
class _Resource:
    """The arguments of :meth:`Accept.negotiate`."""

    category: Category
    stored: str
    convertible: tuple[str, ...]
    single: bool
    offers: tuple[str, ...]

    def may_be(self, syntax: str) -> bool:
        return not self.stored or syntax in self.convertible


#: A response of several parts negotiates for each, with few different arguments.
@lru_cache(maxsize=1024)
def _alternatives(accept: Accept, resource: _Resource) -> tuple[Representation, ...]:
    found = [*_ranked(accept.query, resource), *_ranked(accept.ranges, resource)]
    if resource.convertible:
        kept = replace(resource, convertible=())
        found += (*_ranked(accept.query, kept), *_ranked(accept.ranges, kept))
    return tuple(dict.fromkeys(found))


def _ranked(ranges: tuple[MediaRange, ...], resource: _Resource) -> list[Representation]:
    """Return the representations of *resource* in *ranges*, the best first."""
    found: list[tuple[tuple[float, int, bool, int, int], Representation]] = []
    for position, one in enumerate(ranges):
        if not one.quality:
            continue
        for preference, candidate in enumerate(_candidates(one, resource)):
            if _is_excluded(candidate, one, ranges):
                continue
            # If the client prefers none, what needs no conversion comes first, then the order of the client.
            converts = candidate.transfer_syntax is not None and candidate.transfer_syntax != resource.stored
            found.append(((-one.quality, one.wildcards, converts, position, preference), candidate))
    return [candidate for _, candidate in sorted(found, key=itemgetter(0))]


def _is_excluded(candidate: Representation, by: MediaRange, ranges: tuple[MediaRange, ...]) -> bool:
    """Return whether a range of quality 0 takes precedence over the range *by*, as it is more specific (RFC 9110 12.5.1)."""
    return any(
        not one.quality
        and one.multipart in (None, candidate.multipart)
        and (one.wildcards, not one.transfer_syntax) <= (by.wildcards, not by.transfer_syntax)
        and one.transfer_syntax in ("", "*", candidate.transfer_syntax)
        and one.covers(candidate.media_type)
        for one in ranges
    )


def _candidates(one: MediaRange, resource: _Resource) -> Iterator[Representation]:
    """Yield the representations of *resource* in the range *one*, the preferred first."""
    category = resource.category
    if category is Category.METADATA:
        # The metadata of several instances are one array (PS3.18 F.2.1).
        if one.multipart is not True and one.matches(DICOM_JSON):
            yield Representation(one.media_type if one.media_type == JSON else DICOM_JSON, False)
        return
    for multipart in _forms(one, resource):
        if category is Category.INSTANCES:
            yield from _instances(one, resource, multipart)
        elif category is Category.FRAMES:
            yield from _frames(one, resource, multipart)
        else:
            offers = resource.offers or (OCTET_STREAM,)
            for name in (*offers, OCTET_STREAM) if category is Category.BULKDATA else offers:
                if one.matches(name):
                    yield Representation(name, multipart)


def _forms(one: MediaRange, resource: _Resource) -> tuple[bool, ...]:
    """Return whether the response may be multipart, the default first (PS3.18 Table 10.4.4-1)."""
    if one.multipart is None:
        if not resource.single:
            return (True,)
        return (False,) if resource.category is Category.RENDERED else (True, False)
    if one.multipart or resource.single or (resource.category is Category.INSTANCES and one.media_type == ZIP):
        return (one.multipart,)
    return ()  # a single part is ignored if the resource may have several items (PS3.18 10.4.4 note 3)


def _instances(one: MediaRange, resource: _Resource, multipart: bool) -> Iterator[Representation]:
    if one.matches(DICOM):
        name = DICOM
    elif one.media_type == ZIP and ZIP in resource.offers and not multipart:
        name = ZIP
    else:
        return
    syntax = one.transfer_syntax
    if syntax == "*" or (not syntax and (one.wildcards or name == ZIP)):
        yield Representation(name, multipart)
    elif not syntax:
        # The default is Explicit VR Little Endian, unless the server has no other form (PS3.18 8.7.3).
        converts = resource.stored != EXPLICIT_LITTLE_ENDIAN and resource.may_be(EXPLICIT_LITTLE_ENDIAN)
        yield Representation(name, multipart, EXPLICIT_LITTLE_ENDIAN if converts else None)
    elif syntax == resource.stored:
        yield Representation(name, multipart)
    elif resource.may_be(syntax):
        yield Representation(name, multipart, syntax)


def _frames(one: MediaRange, resource: _Resource, multipart: bool) -> Iterator[Representation]:
    """
    Yield the representations of frames.

    Uncompressed frames are always in Explicit VR Little Endian (PS3.18 8.7.3); in the other uncompressed transfer syntaxes, but
    Big Endian, they are the same bytes. None is given in Big Endian, which is retired.
    """
    if one.transfer_syntax == EXPLICIT_BIG_ENDIAN:
        return
    stored = resource.stored
    uncompressed = stored in _UNCOMPRESSED
    native = frame_media_type(stored)
    syntax = EXPLICIT_LITTLE_ENDIAN if one.transfer_syntax in _UNCOMPRESSED else one.transfer_syntax
    kept = EXPLICIT_LITTLE_ENDIAN if uncompressed else None
    if one.wildcards:
        if syntax in ("", "*"):
            if not stored:
                yield Representation(OCTET_STREAM if one.matches(OCTET_STREAM) else JPEG, multipart)
            elif one.matches(native):
                yield Representation(native, multipart, kept)
        for other in (syntax,) if syntax not in ("", "*") else resource.convertible:
            name = frame_media_type(other)
            if one.matches(name) and other != EXPLICIT_BIG_ENDIAN:
                if other == stored or (uncompressed and other == EXPLICIT_LITTLE_ENDIAN):
                    yield Representation(name, multipart, kept)
                elif resource.may_be(other):
                    yield Representation(name, multipart, other)
        return
    canonical = _ALIASES.get(one.media_type, one.media_type)
    if canonical != OCTET_STREAM and canonical not in _SYNTAXES:
        return
    if syntax not in ("", "*"):
        if syntax == (kept or stored):
            yield Representation(one.media_type, multipart, kept)
        elif resource.may_be(syntax):
            yield Representation(one.media_type, multipart, syntax)
    elif canonical == OCTET_STREAM:
        # Viewers ask for application/octet-stream with any transfer syntax, and read that of the part.
        if syntax or uncompressed:
            yield Representation(OCTET_STREAM, multipart, kept)
        elif resource.may_be(EXPLICIT_LITTLE_ENDIAN):
            yield Representation(OCTET_STREAM, multipart, EXPLICIT_LITTLE_ENDIAN)
    elif canonical == native:
        yield Representation(one.media_type, multipart)
    else:
        for other in _SYNTAXES[canonical]:
            if resource.may_be(other):
                yield Representation(one.media_type, multipart, other)
