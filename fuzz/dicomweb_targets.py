"""Targets in DICOMweb: Accept header fields, multipart bodies, query parameters, DICOM JSON in both directions."""

from __future__ import annotations

import json
import zlib
from io import BytesIO
from typing import Any, NoReturn

from pydicom import Dataset

from dicomtwist.datasets import encode_dataset
from dicomtwist.datasets.codec import DecodingLimits
from dicomtwist.dicomweb.json_encoder import JSONEncoder
from dicomtwist.dicomweb.json_model import ArrayCutter, JSONModelError, dataset_json, decode_json
from dicomtwist.dicomweb.media_types import Accept, Category, MediaType, MediaTypeError
from dicomtwist.dicomweb.multipart import (
    MultipartCutter,
    MultipartError,
    MultipartWriter,
    PartBegins,
    PartData,
    boundary_of,
)
from dicomtwist.dicomweb.parameters import ParameterError, parse_query, parse_search
from dicomtwist.dicomweb.rendered import parse_frames, parse_rendering, parse_uri_request
from dicomtwist.errors import DataSetError

SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
BOUNDARY = "b"
LEVELS = ("STUDY", "SERIES", "IMAGE")
LIMITS = DecodingLimits(10_000, 500, 500)


def accept(data: bytes) -> None:
    """Negotiate what an Accept header field and a query parameter allow; the representation has a valid Content-Type."""
    text = data.decode("latin-1")
    header, _, query = text.partition("\n")
    parsed = Accept.parse([header], query)
    for category in Category:
        for single in (True, False):
            found = parsed.negotiate(
                category, stored=SYNTAXES[1], convertible=SYNTAXES[:1], single=single, offers=("image/jpeg",)
            )
            if found is not None:
                assert found.multipart or single or category is Category.METADATA or "zip" in found.media_type
                MediaType.parse(found.content_type("b"))
    try:
        media_type = MediaType.parse(header)
    except MediaTypeError:
        return
    assert MediaType.parse(str(media_type)) == media_type


def _parts(data: bytes, size: int) -> tuple[list[tuple[dict[str, str], bytes]], bool]:
    """Return the whole parts of a body, and whether it is valid."""
    cutter = MultipartCutter(boundary_of(BOUNDARY), max_parts=20, max_header_length=200)
    parts: list[tuple[dict[str, str], bytes]] = []
    headers: dict[str, str] | None = None
    content = bytearray()
    try:
        for at in range(0, len(data), size):
            for event in cutter.feed(data[at : at + size]):
                if isinstance(event, PartBegins):
                    assert headers is None
                    headers = event.headers
                elif isinstance(event, PartData):
                    assert headers is not None and event.data
                    content += event.data
                else:
                    assert headers is not None
                    parts.append((headers, bytes(content)))
                    headers, content = None, bytearray()
            assert len(cutter._header) + len(cutter._held) < 1000
        cutter.finish()
    except MultipartError:
        return parts, False
    return parts, True


def multipart(data: bytes) -> None:
    """Cut a multipart body. The result does not depend on the pieces, and the parts that are written again are the same."""
    whole, valid = _parts(data, max(1, len(data)))
    pieces, also_valid = _parts(data, 1 + len(data) % 7)
    assert valid == also_valid
    if not valid:
        return
    assert whole == pieces
    if any(b"--b" in content for _, content in whole):
        return  # content that begins with a boundary, or has one with other line ends
    writer = MultipartWriter(BOUNDARY)
    try:
        again = b"".join(writer.begin(headers.items()) + content for headers, content in whole) + writer.end()
    except ValueError:
        return  # a field has a carriage return
    assert _parts(again, len(again)) == (whole, True)


def parameters(data: bytes) -> None:
    """Parse the query of a search, of a rendered resource and of the URI service; the first byte chooses the level."""
    if not data:
        return
    level = LEVELS[data[0] % len(LEVELS)]
    query = data[1:]
    try:
        pairs = parse_query(query)
    except ParameterError:
        return
    try:
        search = parse_search(pairs, level)
        assert search.identifier.QueryRetrieveLevel == level
        encode_dataset(search.identifier, SYNTAXES[1])
        assert all(text.isascii() and text.isprintable() and '"' not in text for text in search.warnings)
    except (ParameterError, DataSetError):
        pass
    for parse in (parse_rendering, parse_uri_request):
        try:
            parse(pairs)
        except ParameterError:
            pass
    try:
        assert all(frame > 0 for frame in parse_frames(query.decode("latin-1")))
    except ParameterError:
        pass


def _no_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} in JSON")


def json_encoder(data: bytes) -> None:
    """
    Encode a data set as DICOM JSON; the first byte chooses the transfer syntax. The result is JSON in UTF-8, and is the same if
    the data set is read in pieces.
    """
    if not data:
        return
    syntax = SYNTAXES[data[0] % len(SYNTAXES)]

    def bulk(path: tuple[int, ...], vr: str, offset: int, length: int | None) -> str | None:
        assert offset <= len(data) or syntax == SYNTAXES[2]
        return None if path[-1] & 1 else "u"

    encoder = JSONEncoder(syntax, bulk, max_inline=8, max_inline_text=64)
    source = BytesIO(data[1:])

    def read(at: int, size: int) -> bytes:
        source.seek(at)
        return source.read(size)

    results: list[Any] = []
    for one in (data[1:], read):
        try:
            results.append(json.loads(encoder.encode(one).decode("utf-8"), parse_constant=_no_constant))
        except DataSetError:
            results.append(None)
    assert results[0] == results[1]


def json_decoder(data: bytes) -> None:
    """Decode DICOM JSON, whole and cut into the objects of an array. A decoded data set can be encoded, and decoded again."""
    try:
        datasets = decode_json(data, limits=LIMITS)
    except JSONModelError:
        datasets = None
    cutter = ArrayCutter(max_object=5000)
    try:
        objects = [one for at in range(0, len(data), 5) for one in cutter.feed(data[at : at + 5])]
        cutter.finish()
    except JSONModelError:
        pass
    else:
        if datasets is not None and data.lstrip()[:1] == b"[":
            assert [decode_json(one, limits=LIMITS)[0] for one in objects] == datasets
    for dataset in datasets or ():
        try:
            again = dataset_json(dataset)
        except DataSetError:
            continue
        decode_json(again)


DICOMWEB_TARGETS = {target.__name__: target for target in (accept, multipart, parameters, json_encoder, json_decoder)}


def dicomweb_seeds(dataset: Dataset) -> dict[str, list[bytes]]:
    """
    Return the seeds of the targets.

    :param dataset: a data set with the elements that the encoder treats specially.
    """
    encoded = [encode_dataset(dataset, syntax) for syntax in SYNTAXES]
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    writer = MultipartWriter(BOUNDARY)
    body = b"".join(writer.begin([("Content-Type", "application/dicom")]) + content for content in (b"x", b"", b"\r\n"))
    body += writer.end()
    return {
        "accept": [
            b'multipart/related; type="application/octet-stream"; transfer-syntax=*, image/*;q=0.5\naccept/x',
            b"application/dicom+json;q=0, */*\napplication/dicom json,image/jpeg;q=0.1",
            b'multipart/related; type="application/dicom; transfer-syntax=1.2"; boundary=**\n ',
            b'a/b; c"d"=e; f="g\\"h"i',
        ],
        "multipart": [body, b"preamble\r\n" + body, body.replace(b"\r\n", b"\n"), body[:-5], b"--b--"],
        "parameters": [
            b"\0PatientName=A%2A&StudyInstanceUID=1.2,1.3&includefield=all&limit=5&offset=1&fuzzymatching=true",
            b"\1RequestAttributesSequence.RequestedProcedureID=A&00100020=B+C&emptyvaluematching=true&x=1",
            b"\2viewport=1,2,3,4,-5,6&window=1,2.5,sigmoid&quality=90&annotation=patient&iccprofile=no",
            b"\0requestType=WADO&studyUID=1.2&seriesUID=1.3&objectUID=1.4&rows=5&region=0,0,1,1&windowCenter=1&windowWidth=2",
            b"\0001,2,3",
        ],
        "json_encoder": [bytes((number,)) + data for number, data in enumerate(encoded)]
        + [b"\2" + bomb.compress(bytes(1 << 14)) + bomb.flush()],
        "json_decoder": [
            dataset_json(dataset),
            b"[" + dataset_json(dataset) + b", {}]",
            b'[{"00100010":{"vr":"PN","Value":[{"Alphabetic":"A"},null]},"7FE00010":{"vr":"OW","BulkDataURI":"u"}}]',
            b'{"00189073":{"vr":"FD","Value":["NaN","inf"]},"00280009":{"vr":"AT","Value":["00181063"]}}',
        ],
    }
