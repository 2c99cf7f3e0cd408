"""
The common parts of the tests in which Wireshark's dissector of DICOM decodes the bytes that dicomtwist writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dicomtwist import evt
from tests.interop.common import BIG_ENDIAN, EXPLICIT, IMPLICIT, InteropTestCase
from tests.peers import require, run, tool

#: The maximum length of a TCP segment in the capture, in bytes: IP has 16 bits for a length.
SEGMENT = 32768

#: The fields that the dissector adds for a wrong length.
COMPLAINTS = ("_ws.malformed", "_ws.expert", "dicom.pdv.len.invalid", "dicom.assoc.item.len.invalid")

#: The fields that the dissector adds for a rejection or an abort that is in order.
ENDINGS = ("dicom.assoc.reject", "dicom.assoc.abort")


@dataclass
class Transcript:
    """
    The bytes of one connection, as its requestor recorded them.

    :ivar pieces: (whether the requestor sent them, bytes), in order.
    """

    pieces: list[tuple[bool, bytes]] = field(default_factory=list)

    @property
    def handlers(self) -> list[Any]:
        """The handlers that record them."""
        return [
            (evt.EVT_DATA_SENT, lambda event: self.pieces.append((True, bytes(event.data)))),
            (evt.EVT_DATA_RECV, lambda event: self.pieces.append((False, bytes(event.data)))),
        ]

    @property
    def acceptor_handlers(self) -> list[Any]:
        """The handlers that record them at the acceptor."""
        return [
            (evt.EVT_DATA_SENT, lambda event: self.pieces.append((False, bytes(event.data)))),
            (evt.EVT_DATA_RECV, lambda event: self.pieces.append((True, bytes(event.data)))),
        ]

    def hexdump(self) -> Iterator[str]:
        """Yield the lines that text2pcap reads."""
        for sent, data in self.pieces:
            for start in range(0, len(data), SEGMENT):
                yield "O" if sent else "I"
                segment = data[start : start + SEGMENT]
                for offset in range(0, len(segment), 16):
                    yield f"{offset:06x} {segment[offset : offset + 16].hex(' ')}"


def walk(pairs: Any) -> Iterator[tuple[str, Any]]:
    """Yield all names and values in tshark's output, at any depth. A name may occur more than once."""
    if isinstance(pairs, list):
        for entry in pairs:
            if isinstance(entry, tuple):
                yield entry
                yield from walk(entry[1])
            else:
                yield from walk(entry)


#: The transfer syntaxes of the contexts in which the dissector decodes messages. In others it reports command sets as
#: malformed, even those of DCMTK.
READ = (IMPLICIT, EXPLICIT, BIG_ENDIAN)


class WireTestCase(InteropTestCase):
    """
    A test with transcripts for the dissector.
    """

    def setUp(self) -> None:
        require("tshark", "text2pcap")

    async def dissect(self, transcript: Transcript) -> list[tuple[str, Any]]:
        """Return the contents of the DICOM layers of all packets."""
        text, capture = Path(self.mktemp()), Path(self.mktemp())
        text.write_text("\n".join(transcript.hexdump()) + "\n")
        result = await run(tool("text2pcap"), "-q", "-D", "-4", "10.0.0.1,10.0.0.2", "-T", "40000,104", text, capture)
        self.assertEqual(result.code, 0, result.text)
        result = await run(tool("tshark"), "-r", capture, "-Y", "dicom", "-T", "json", timeout=120)
        self.assertEqual(result.code, 0, result.text)
        packets = json.loads(result.stdout, object_pairs_hook=lambda pairs: pairs)
        found: list[tuple[str, Any]] = []
        for name, layer in walk(packets):
            if name in ("dicom", "_ws.malformed"):
                found += [(name, layer), *walk(layer)]
        return found

    async def check(self, transcript: Transcript, *remarks: str) -> dict[str, list[str]]:
        """Check that nothing is wrong, besides some remarks; return the values of each name."""
        fields: dict[str, list[str]] = {}
        for name, value in await self.dissect(transcript):
            if name == "_ws.expert" and value[0][0] in remarks:
                continue
            if not name.startswith("_ws.expert."):
                self.assertFalse(name.startswith(COMPLAINTS), f"{name}: {value}")
            if isinstance(value, str):
                fields.setdefault(name, []).append(value)
        return fields
