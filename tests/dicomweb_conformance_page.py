"""
The tables of docs/conformance_dicomweb.md, generated from the code: tests/test_conformance_page.py compares the page with them.

``python -m tests.dicomweb_conformance_page`` writes them into the page. :data:`CONTENTS` describes the responses of each
resource in words. A missing entry is an error, so that there is no resource without a description.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pydicom.uid import UID

from dicomtwist.archive.index.attributes import ATTRIBUTES, COMPUTED, Level
from dicomtwist.archive.reading.conversion import convertible_to
from dicomtwist.dicomweb.media_types import frame_media_type
from dicomtwist.dicomweb.parameters import parse_search
from dicomtwist.pixels.options import MEDIA_TYPES
from dicomtwist.pixels.syntaxes import COMPRESSED, ENCODABLE, UNCOMPRESSED, can_transcode
from dicomtwist.web.resource import ROUTES
from tests.conformance_page import MARKED, table

PAGE = Path(__file__).parent.parent / "docs" / "conformance_dicomweb.md"

_IMAGES: Final = ", ".join(f"`{one}`" for one in MEDIA_TYPES)

#: What the resources give, by their methods and the ends of their paths; the first that fits counts.
CONTENTS: Final = (
    (r"POST .*", "10.5", "`application/dicom+json`"),
    (r"DELETE .*", "", "nothing, or `application/json`"),
    (r"GET (/studies|/series|/instances|.*\}/series|.*\}/instances)", "10.6", "`application/dicom+json`"),
    (r"GET .*/metadata", "10.4.1.1.2", "`application/dicom+json`"),
    (r"GET .*/rendered", "10.4.1.1.3", f"{_IMAGES}, also in `multipart/related`; documents and videos in their own"),
    (r"GET .*/thumbnail", "10.4.1.1.4", _IMAGES),
    (r"GET .*/frames/\{frames\}", "10.4.1.1.6", "see 4.3, in `multipart/related`; one frame also as a single part"),
    (
        r"GET .*/bulkdata/\{path\.\.\.\}",
        "10.4.1.1.5",
        "`application/octet-stream`, that of an encapsulated document; also in `multipart/related`",
    ),
    (r"GET .*/pixeldata", "10.4.1.1.7", "as frames, or as bulk data"),
    (
        r"GET .*/\{instance\}",
        "10.4.1.1.1",
        "`application/dicom`, also in `multipart/related`; `application/zip`",
    ),
    (r"GET .*\{(study|series)\}", "10.4.1.1.1", "`application/dicom` in `multipart/related`; `application/zip`"),
    (r"GET /wado", "9.4", f"{_IMAGES}, `application/dicom`"),
)


def resources() -> str:
    """Return the table of resources, with their operations in the access rules."""
    rows = []
    for route in ROUTES:
        key = f"{route.method} {route.path}"
        found = [(clause, content) for pattern, clause, content in CONTENTS if re.fullmatch(pattern, key)]
        assert found, f"tests/dicomweb_conformance_page.py does not describe {key}"
        assert route.words, f"{key} has no words"
        clause, content = found[0]
        methods = "GET, HEAD" if route.method == "GET" else route.method
        operations = ", ".join(sorted(str(one) for one in route.operations))
        rows.append(
            (methods, f"`{route.path}`", route.words, f"PS3.18 {clause}" if clause else "none", content, operations)
        )
    return table("Method | Path | What | Clause | Media types of the response | Operation", rows)


def keys() -> str:
    """Return the table of attributes that can be matched and returned at each level of a search."""
    rows = []
    for level in (Level.STUDY, Level.SERIES, Level.IMAGE):
        kept = [
            one.keyword
            for one in ATTRIBUTES
            if one.level <= level and (one.level is level or one.level is Level.PATIENT)
        ]
        computed = [one.keyword for one in COMPUTED if one.level is level]
        returned = [element.keyword for element in parse_search([], level.name).identifier]
        rows.append((level.name, ", ".join(kept), ", ".join(computed), ", ".join(returned)))
    return table(
        "Level | Matched and returned, besides those of the levels above | Computed | Returned without being asked for",
        rows,
    )


def conversions() -> str:
    """Return the table of transfer syntaxes that an instance can be given in besides its own."""
    rows = []
    for syntax in (*sorted(map(str, UNCOMPRESSED)), *sorted(map(str, COMPRESSED))):
        plain = convertible_to(syntax)
        decoded = [one for one in ENCODABLE if one not in plain and can_transcode(syntax, one)]
        name = UID(syntax).name
        rows.append((name, syntax, f"`{frame_media_type(syntax)}`", ", ".join(plain), ", ".join(map(str, decoded))))
    return table("Transfer syntax | UID | Media type of a frame | Converted to | With the extra `pixels` also to", rows)


#: Status codes, and when they are sent.
STATUSES: Final = {
    200: "the response is complete; an empty search is an empty array; all instances are stored",
    202: "some instances are stored",
    204: "the response to OPTIONS",
    206: "a part of an instance, a frame or bulk data, see `Range`",
    304: "the client has the representation (`If-None-Match`)",
    400: "the request is malformed: a UID, a parameter, a key or a body",
    401: "credentials are wrong, or a rule may allow a user what it does not allow everybody",
    403: "no rule allows the operation; a passcode without TLS; a change by a web page of another origin",
    404: "there is no such resource, study, series, instance, frame or value",
    405: "the resource does not have the method",
    406: "no media type or transfer syntax that is accepted can be given; the instance has no image, or one that is damaged",
    408: "the header or the body did not arrive in time",
    409: "no instance is stored; the response names a reason for each",
    413: "a body, a result or an image beyond a limit",
    414: "the URL is too long",
    415: "the body is neither `application/dicom` nor `multipart/related` with such parts, or is compressed",
    416: "the range is outside of the content",
    429: "too many checks of passcodes wait",
    431: "the header is too long",
    500: "the server has failed, or the stored file cannot be read; its log has the reason",
    501: "images are not rendered by this server; WADO-URI asks for an anonymized instance",
    503: "too much waits, or the server starts or stops; `Retry-After` says when to ask again",
    507: "the storage is full",
}


def statuses() -> str:
    """Return the table of status codes."""
    return table("Status | When", STATUSES.items())


TABLES: Final[dict[str, Callable[[], str]]] = {
    "resources": resources,
    "keys": keys,
    "conversions": conversions,
    "http statuses": statuses,
}


def page() -> str:
    """Return the page with its tables up to date."""
    return MARKED.sub(
        lambda found: f"<!-- begin: {found[1]} -->\n\n{TABLES[found[1]]()}\n\n<!-- end -->", PAGE.read_text()
    )


if __name__ == "__main__":
    PAGE.write_text(page())
