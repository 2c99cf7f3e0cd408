"""
The picture docs/rooms.svg, drawn from the rooms of tests/test_layers.py and from the imports of the code.

``make picture`` (``python -m tests.rooms_picture``) writes it, and tests/test_rooms_picture.py compares the file with it.
The SVG is written directly, without Graphviz: a room is a box, the rooms of one storey share a colour, and an arc leads
from a room down to each room that it imports. An import that follows from others is left out (the transitive reduction): if A
imports B and B imports C, no arc leads from A to C.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Final, NamedTuple

from tests.test_layers import EXCEPTIONS, MODULES, ROOMS, own_imports, position

PICTURE = Path(__file__).parent.parent / "docs" / "rooms.svg"


class Storey(NamedTuple):
    """
    Adjacent rooms with one purpose.

    :ivar title: its name in the picture.
    :ivar lowest: an entry of its lowest room; the storey reaches up to the next one.
    :ivar light: the colour of its boxes on a light background.
    :ivar dark: the colour on a dark one.
    """

    title: str
    lowest: str
    light: str
    dark: str


#: From the bottom to the top, as in ROOMS.
STOREYS: Final = (
    Storey("Protocol", "errors.py", "#0b7285", "#3bc9db"),
    Storey("Data", "sop_class.py", "#2b8a3e", "#69db7c"),
    Storey("Network", "tls/", "#5f6b0e", "#c0ca33"),
    Storey("Association", "exchange/", "#a8510a", "#ffa94d"),
    Storey("Application", "ae/", "#b02a37", "#ff8787"),
    Storey("Archive", "pixels/", "#7b2d8b", "#da77f2"),
    Storey("Commands", "daemon/", "#364fc7", "#91a7ff"),
)

#: Name and contents of each room in the picture, by an entry of the room in ROOMS.
TEXTS: Final[Mapping[str, tuple[str, str]]] = {
    "errors.py": ("errors, part10, dimse/status", "exceptions; File Meta Information; status codes"),
    "ul/": ("ul/", "PS3.8: PDUs, framing, the state machine"),
    "dimse/": ("dimse/", "PS3.7: command sets, messages"),
    "runtime/": ("runtime/, eventloop/", "threads, memory, the clock; asyncio's event loop"),
    "sop_class.py": ("sop_class, presentation, settings", "SOP Classes, contexts, the settings of an AE"),
    "datasets/": ("datasets/", "data sets as bytes and streams, sinks, sources"),
    "dicomweb/": ("dicomweb/", "PS3.18: media types, multipart, DICOM JSON"),
    "interfaces.py": ("interfaces, evt", "Protocols between rooms; events and handlers"),
    "tls/": ("tls/, endpoints", "TLS contexts, endpoint strings"),
    "dicomweb/client/": ("dicomweb/client/", "a client of DICOMweb over HTTP"),
    "transport/": ("transport/", "sockets below the association, back-pressure"),
    "exchange/": ("exchange/", "messages of one association, window, queue"),
    "scu/": ("scu/", "operations that a peer performs for us"),
    "scp/": ("scp/", "operations that we perform for a peer"),
    "association/": ("association/", "negotiation, both roles, timeouts, record"),
    "ae/": ("ae/, service", "Application Entity, servers, Twisted service"),
    "pool/": ("pool/", "associations that are kept and reused"),
    "faces/": ("sync/, asyncio/", "the library for scripts, and for asyncio"),
    "testing/": ("testing/", "a network in memory, a scripted peer"),
    "pixels/": ("pixels/", "decode, transcode, render: in child processes"),
    "access/": ("access/", "rules, users, certificates: who may do what"),
    "forwarding/": ("forwarding/", "rules, changed headers, de-identification"),
    "archive/storage/": ("archive/storage/", "files of instances, durability, locks"),
    "archive/inbox/": ("archive/inbox/", "small instances with one sync, before they are files"),
    "forwarding/tasks/": ("forwarding/tasks/", "which instance is still to go where"),
    "archive/index/": ("archive/index/", "attributes of instances in a database"),
    "archive/": ("archive/, query/, reading/", "ingest, group commit, recovery; queries"),
    "archive/services/": ("archive/services/", "storage, query, commitment, MPPS, worklist"),
    "forwarding/receipt/": ("forwarding/receipt/", "tasks that follow from what is received"),
    "forwarding/delivery/": ("forwarding/delivery/, forwarder", "instances sent to their destinations"),
    "web/": ("web/, web/http/", "DICOMweb over twisted.web: the site, its routes"),
    "audit/": ("audit/", "who did what: messages, syslog, a spool on the disk"),
    "retrieval/": ("retrieval/", "studies retrieved into a folder"),
    "daemon/": ("daemon/", "twist dicom: options, workers, reload"),
    "tools/": ("tools/", "the dicomtwist command and its subcommands"),
}

# Measures of the picture. It is narrow, so that its text stays legible on a telephone; at least the text fits if the font is
# DejaVu Sans, the widest of the usual ones.
WIDTH: Final = 480
MARGIN: Final = 12
TOP: Final = 92
BAR: Final = 26
BOX: Final = 318
HEIGHT: Final = 40
GAP: Final = 6
STOREY_GAP: Final = 12

STYLE: Final = """
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
.paper { fill: #ffffff; stroke: #d0d7de; }
.box { fill: #ffffff; stroke-width: 1.5; }
.title { font-size: 21px; font-weight: 700; fill: #1f2328; }
.note { font-size: 11.5px; fill: #59636e; }
.name { font-size: 13.5px; font-weight: 700; fill: #1f2328; }
.contents { font-size: 11.5px; fill: #424a53; }
.storey { font-size: 11.5px; font-weight: 700; letter-spacing: 0.4px; fill: #ffffff; }
.arc { fill: none; stroke-width: 1.5; stroke-opacity: 0.85; }
"""

DARK_STYLE: Final = """
.paper { fill: #0d1117; stroke: #3d444d; }
.box { fill: #161b22; }
.title, .name { fill: #f0f6fc; }
.note, .contents { fill: #b7c0c9; }
.storey { fill: #0d1117; }
"""


def imports() -> dict[int, set[int]]:
    """Return the rooms that each room imports, both as positions in ROOMS; imports for type checkers count."""
    found: dict[int, set[int]] = {row: set() for row in range(len(ROOMS))}
    for file in MODULES.values():
        row = position(file)[0]
        for imported in own_imports(file):
            if (file, imported) not in EXCEPTIONS:
                found[row].add(position(imported)[0])
    return {row: rows - {row} for row, rows in found.items()}


def reduced(graph: Mapping[int, set[int]]) -> dict[int, set[int]]:
    """Return *graph* without the edges that follow from others. A row has edges to earlier rows only."""
    reachable: dict[int, set[int]] = {}
    for row in sorted(graph):
        reachable[row] = graph[row].union(*(reachable[other] for other in graph[row]))
    return {row: rows - set().union(*(reachable[other] for other in rows)) for row, rows in graph.items()}


def storeys() -> list[int]:
    """Return the storey of each room."""
    found: list[int] = []
    for room in ROOMS:
        starts = [number for number, storey in enumerate(STOREYS) if storey.lowest in room.modules]
        found.append(starts[0] if starts or not found else found[-1])
    if found != sorted(found) or set(found) != set(range(len(STOREYS))):
        raise LookupError("STOREYS here does not follow the order of ROOMS in tests/test_layers.py")
    return found


def texts(row: int) -> tuple[str, str]:
    """Return name and contents of a room."""
    found = [TEXTS[name] for name in ROOMS[row].modules if name in TEXTS]
    if len(found) != 1:
        raise LookupError(f"TEXTS here needs one entry for the room {ROOMS[row].modules}")
    return found[0]


def places(of_rooms: list[int]) -> tuple[list[int], int]:
    """Return the upper edge of each room's box, and the lower edge of the house. The last of ROOMS is on top."""
    tops = [0] * len(of_rooms)
    y = TOP
    for row in reversed(range(len(of_rooms))):
        if row + 1 < len(of_rooms):
            y += HEIGHT + (GAP if of_rooms[row] == of_rooms[row + 1] else STOREY_GAP)
        tops[row] = y
    return tops, y + HEIGHT


def boxes(of_rooms: list[int], tops: list[int]) -> Iterator[str]:
    """Yield the boxes of the rooms, and the bar of each storey."""
    for number, storey in enumerate(STOREYS):
        rows = [row for row, other in enumerate(of_rooms) if other == number]
        upper, lower = tops[rows[-1]], tops[rows[0]] + HEIGHT
        middle = (upper + lower) / 2
        x = MARGIN + BAR / 2
        yield f'<rect class="f{number}" x="{MARGIN}" y="{upper}" width="{BAR}" height="{lower - upper}" rx="5"/>'
        yield (
            f'<text class="storey" text-anchor="middle" dominant-baseline="central"'
            f' transform="translate({x:g} {middle:g}) rotate(-90)">{storey.title}</text>'
        )
    left = MARGIN + BAR + GAP
    for row in reversed(range(len(ROOMS))):
        name, contents = texts(row)
        y = tops[row]
        yield f'<rect class="box s{of_rooms[row]}" x="{left}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="5"/>'
        yield f'<text class="name" x="{left + 10}" y="{y + 17}">{escape(name)}</text>'
        yield f'<text class="contents" x="{left + 10}" y="{y + 33}">{escape(contents)}</text>'


def arcs(of_rooms: list[int], tops: list[int], graph: Mapping[int, set[int]]) -> Iterator[str]:
    """Yield the arcs, the longest first. They leave a box in its lower half and enter one in its upper half."""
    x = MARGIN + BAR + GAP + BOX + 1
    widest = WIDTH - MARGIN - x - 4
    farthest = tops[0] - tops[-1]
    edges = [(row, other) for row, others in graph.items() for other in others]
    incoming = {row: sorted(upper for upper, lower in edges if lower == row) for row in graph}
    for upper, lower in sorted(edges, key=lambda edge: (edge[1] - edge[0], edge)):
        outgoing = sorted(graph[upper])
        # Nearer rooms get the lower starts and the upper ends, so that arcs of one box do not cross.
        start = tops[upper] + HEIGHT * (0.55 + 0.35 * (outgoing.index(lower) + 1) / (len(outgoing) + 1))
        end = tops[lower] + HEIGHT * (
            0.08 + 0.42 * (len(incoming[lower]) - incoming[lower].index(upper)) / (len(incoming[lower]) + 1)
        )
        # The control points of a cubic curve are a third farther out than the curve.
        reach = (16 + (widest - 16) * ((end - start) / farthest) ** 0.6) * 4 / 3
        yield (
            f'<path class="arc s{of_rooms[upper]}" marker-end="url(#h{of_rooms[upper]})"'
            f' d="M{x} {start:.1f} C{x + reach:.1f} {start:.1f} {x + reach:.1f} {end:.1f} {x + 2} {end:.1f}"/>'
        )


def picture() -> str:
    """Return the SVG."""
    of_rooms = storeys()
    tops, bottom = places(of_rooms)
    height = bottom + MARGIN
    light = "".join(f".f{n} {{ fill: {s.light}; }} .s{n} {{ stroke: {s.light}; }}\n" for n, s in enumerate(STOREYS))
    dark = "".join(f".f{n} {{ fill: {s.dark}; }} .s{n} {{ stroke: {s.dark}; }}\n" for n, s in enumerate(STOREYS))
    heads = "".join(
        f'<marker id="h{number}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="5.5" markerHeight="5.5" orient="auto">'
        f'<path class="f{number}" d="M0 0.5 L8 4 L0 7.5 z"/></marker>'
        for number in range(len(STOREYS))
    )
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
            ' role="img" aria-labelledby="title description">',
            '<title id="title">The rooms of dicomtwist</title>',
            '<desc id="description">The folders and modules of the package in storeys, the commands on top and the protocol at'
            " the bottom. An arc leads from a room down to each room that it imports.</desc>",
            f"<style>{STYLE}{light}@media screen and (prefers-color-scheme: dark) {{{DARK_STYLE}{dark}}}\n</style>",
            f"<defs>{heads}</defs>",
            f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
            f'<text class="title" x="{MARGIN}" y="34">The rooms of dicomtwist</text>',
            f'<text class="note" x="{MARGIN}" y="55">A room imports only rooms below it. An arc leads to each room that</text>',
            f'<text class="note" x="{MARGIN}" y="71">it imports; arcs that follow from others are left out.</text>',
            *arcs(of_rooms, tops, reduced(imports())),
            *boxes(of_rooms, tops),
            "</svg>\n",
        )
    )


if __name__ == "__main__":
    PICTURE.write_text(picture())
