"""dicomtwist.archive.reading.series_document: documents of metadata, made, extended and damaged."""

from __future__ import annotations

import json
import random
import unittest

from hypothesis import given
from hypothesis import strategies as st

from dicomtwist.archive.reading import series_document
from dicomtwist.archive.reading.metadata import with_base_url
from dicomtwist.archive.reading.series_document import InvalidDocument, SeriesDocument, SeriesDocumentWriter

VERSIONS = st.dictionaries(st.integers(1, 400).map(lambda one: f"1.2.{one}"), st.sampled_from("abc"), max_size=60)


def text(uid: str, version: str) -> bytes:
    """Return the metadata of one version of an instance; some cannot be read."""
    if uid.endswith("7"):
        return b""
    return json.dumps({"uid": uid, "version": version, "more": uid * random.Random(uid).randrange(400)}).encode()


def extended(versions: dict[str, str], earlier: SeriesDocument | None = None) -> tuple[SeriesDocument, int]:
    """Return a document, decoded again, and the number of instances that were read for it."""
    writer = SeriesDocumentWriter(versions, earlier)
    for uid in writer.missing:
        writer.add(uid, versions[uid], text(uid, versions[uid]))
    document = writer.finish()
    return SeriesDocument.decode(b"".join(document.encode())), len(writer.missing)


class Documents(unittest.TestCase):
    def check(self, document: SeriesDocument, versions: dict[str, str]) -> None:
        self.assertEqual(document.versions, versions)
        found = json.loads(b"[" + b"".join(document.pieces()) + b"]")
        expected = [json.loads(text(*one)) for one in versions.items() if text(*one)]
        self.assertEqual(sorted(found, key=str), sorted(expected, key=str))
        self.assertEqual(document.unread, len(versions) - len(expected))

    @given(st.lists(VERSIONS, min_size=1, max_size=4))
    def test_extended(self, steps: list[dict[str, str]]) -> None:
        """The document has the metadata of the instances that are there after each change, and reads none twice."""
        before, series_document.CHUNK = series_document.CHUNK, 4096  # type: ignore[misc]
        try:
            document: SeriesDocument | None = None
            for versions in steps:
                known: dict[str, str] = document.versions if document is not None else {}
                document, read = extended(versions, document)
                self.check(document, versions)
                self.assertEqual(read, len(versions.items() - known.items()))
        finally:
            series_document.CHUNK = before  # type: ignore[misc]

    def test_order(self) -> None:
        writer = SeriesDocumentWriter(dict.fromkeys(("1.2.10", "1.2.9", "1.10.1"), "a"))
        self.assertEqual(writer.missing, ["1.2.9", "1.2.10", "1.10.1"])

    def test_damaged(self) -> None:
        """A document with any byte changed, or cut off, is refused."""
        document, _ = extended({f"1.2.{number}": "a" for number in range(1, 50)})
        content = b"".join(document.encode())
        chance = random.Random(1)
        for _ in range(300):
            at = chance.randrange(len(content))
            for damaged in (
                content[:at],
                content[:at] + bytes([content[at] ^ 1 << chance.randrange(8)]) + content[at + 1 :],
            ):
                with self.assertRaises(InvalidDocument):
                    SeriesDocument.decode(damaged)

    def test_urls(self) -> None:
        """Only the beginning of a BulkDataURI is replaced, not a text that looks like it."""
        lookalike = json.dumps('"BulkDataURI":"\x01/x').encode()
        metadata = b'{"a":' + lookalike + b',"b":{"vr":"OW","BulkDataURI":"\\u0001/studies/1"}}'
        found = json.loads(with_base_url(metadata, 'http://h"/d'))
        self.assertEqual(found["b"]["BulkDataURI"], 'http://h"/d/studies/1')
        self.assertEqual(found["a"], '"BulkDataURI":"\x01/x')
