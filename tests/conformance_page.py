"""
The tables of docs/conformance.md, written from the code: tests/test_conformance_page.py holds the page to them.

``python -m tests.conformance_page`` writes them into the page. What a service class of ``twist dicom`` does is told in words
in :data:`SERVICES`: one that is not there is an error, so that none is provided and not told of.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pydicom.charset import python_encoding
from pydicom.uid import UID

from dicomtwist import evt
from dicomtwist.archive.index.attributes import ATTRIBUTES, COMPUTED, Level
from dicomtwist.daemon.archive_service import ArchiveService
from dicomtwist.daemon.tap import Options, makeService
from dicomtwist.dimse.status import meaning
from dicomtwist.presentation import ALL_TRANSFER_SYNTAXES, DEFAULT_TRANSFER_SYNTAXES, PresentationContext
from dicomtwist.sop_class import ServiceClass, uid_to_service_class
from dicomtwist.tls import PROFILES
from dicomtwist.ul.items import APPLICATION_CONTEXT_NAME

PAGE = Path(__file__).parent.parent / "docs" / "conformance.md"

#: What is said of each service class that twist dicom may provide: its clause, how it is provided, and what for.
SERVICES: Final[dict[ServiceClass, tuple[str, str]]] = {
    ServiceClass.VERIFICATION: ("A", "C-ECHO is answered with Success"),
    ServiceClass.STORAGE: ("B", "see 7.1"),
    ServiceClass.STORAGE_COMMITMENT: (
        "J",
        "push model. Each instance is looked for and its file read; the report comes on the same association where that is"
        " there, else on one of ours, see 3.2.3",
    ),
    ServiceClass.PROCEDURE_STEP: ("F", "steps are kept as files; N-GET by the retrieve SOP Class"),
    ServiceClass.QUERY_RETRIEVE: (
        "C",
        "hierarchical and, where negotiated, relational queries; keys of 7.3; C-MOVE to the peers of `--peer`, see 3.2.3",
    ),
    ServiceClass.BASIC_WORKLIST: ("K", "with `--worklist`: from the files of a folder"),
}

#: The statuses of a C-STORE in the archive.
STORE_STATUSES: Final = {
    0x0000: "file and index are on the disk (`--durability full`)",
    0x0111: "the instance is there already (`--duplicates reject`)",
    0x0122: "the SOP Class is not that of the presentation context",
    0x0210: "an operation with this Message ID is under way",
    0x0213: "more operations at once than were negotiated",
    0xA700: "the disk is full, below `--min-free`, or fails; the index fails; it is too large",
    0xA900: "SOP Class or Instance UID of data set and request differ, or Study or Series Instance UID are missing",
    0xC000: "the data set cannot be read, or a UID is none",
}

#: The statuses of the other services of the archive.
FIND_STATUSES: Final = {
    0x0000: "all matches were answered",
    0xFF00: "a match; all keys were looked at",
    0xFF01: "a match; at least one key is none that the archive knows at this level",
    0xFE00: "C-CANCEL came",
    0xA700: "the index cannot be read, or more match than one query may have answers",
    0xA900: "the identifier cannot be read, its level is not one of the model, a unique key is missing or has several values,"
    " or a value makes no sense; the Error Comment says which",
}
RETRIEVE_STATUSES: Final = {
    0x0000: "all instances were stored, or there are none",
    0xFF00: "one more is over; with the counts",
    0xFE00: "C-CANCEL came; with the counts",
    0xB000: "some were not stored, or with a warning",
    0xA701: "the index cannot be read",
    0xA702: "none was stored: the destination could not be reached, takes none of them, or the files are gone",
    0xA801: "C-MOVE: the destination is none of `--peer`",
    0xA900: "as with C-FIND; also where there is no unique key of the level",
}


@contextmanager
def archive(*options: str) -> Iterator[ArchiveService]:
    """The service of ``twist dicom``, not started."""
    with tempfile.TemporaryDirectory() as folder:
        parsed = Options()
        parsed.parseOptions(["--storage", f"{folder}/archive", *options])
        try:
            service = makeService(parsed)
            assert isinstance(service, ArchiveService)
            yield service
        finally:
            parsed["archive"].close()


def table(head: str, rows: Iterable[Iterable[object]]) -> str:
    """A table of Markdown; *head* has its columns between bars."""
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _class_of(context: PresentationContext) -> ServiceClass:
    return uid_to_service_class(str(context.abstract_syntax))


def contexts() -> list[PresentationContext]:
    """All presentation contexts that twist dicom can be made to support."""
    with archive("--worklist", ".") as service:
        return service.ae.supported_contexts


def overview() -> str:
    """The service classes, as PS3.2 A.1 has them."""
    found = {_class_of(context) for context in contexts()}
    rows = []
    for service_class, (annex, words) in SERVICES.items():
        if service_class in found:
            rows.append((service_class.value, f"PS3.4 {annex}", "yes", words))
    return table("Service class | Clause | SCP | How", rows)


def services() -> str:
    """The SOP Classes beside those of storage."""
    rows = []
    for context in contexts():
        service_class = _class_of(context)
        assert service_class in SERVICES, f"tests/conformance_page.py has no words for {service_class}"
        if service_class is not ServiceClass.STORAGE:
            uid = UID(str(context.abstract_syntax))
            rows.append((service_class.value, uid.name, uid))
    return table("Service class | SOP Class | UID", sorted(rows))


def policies() -> str:
    """What PS3.2 A.4.2.1.2 asks for."""
    with archive() as service:
        settings = service.ae.settings
        # At the server, and at the AE above it.
        host = service.ae.acceptor_factory(evt_handlers=service._handlers).hosts[0]
        bound = {item[0] for item in (*host.handlers.bound(), *service.ae.get_handlers())}
        asynchronous = (
            "negotiated" if evt.EVT_ASYNC_OPS in bound else "not negotiated: one operation at a time each way"
        )
        granted = [each for each in service.ae.supported_contexts if each.scu_role is not None]
        roles = f"answered for {len(granted)} SOP Classes" if granted else "not answered: the default roles hold"
        identity = "passed over, of whatever type; verified where there are [rules](guides/access.md) about users"
        assert evt.EVT_USER_ID not in bound
        extended = "answered for Query/Retrieve, see 3.2.1" if evt.EVT_SOP_EXTENDED in bound else "not answered"
        rows = [
            ("Application context name", APPLICATION_CONTEXT_NAME),
            ("Maximum PDU size that is received (`--max-pdu`)", f"{settings.maximum_pdu_size} bytes"),
            ("Maximum PDU size that is sent", "what the peer takes, at most 131072 bytes"),
            ("Associations at once (`--max-associations`)", settings.maximum_associations),
            ("Asynchronous operations", asynchronous),
            ("SCP/SCU role selection", roles),
            ("SOP Class extended negotiation", extended),
            ("User identity", identity),
            ("Implementation Class UID", settings.implementation_class_uid),
            ("Implementation Version Name", settings.implementation_version_name),
        ]
    return table("What | Value", rows)


def initiation() -> str:
    """The associations that the archive asks for."""
    found = {_class_of(context) for context in contexts()}
    rows = []
    if ServiceClass.STORAGE_COMMITMENT in found:
        rows.append(
            (
                "Storage Commitment report (N-EVENT-REPORT)",
                "the requestor's AE title, at the address of `--peer`",
                "Storage Commitment Push Model, as SCP by role selection; default transfer syntaxes",
                "the association that asked is gone; tried again until it is taken, for a day",
            )
        )
    if ServiceClass.QUERY_RETRIEVE in found:
        rows.append(
            (
                "C-STORE of a C-MOVE",
                "the Move Destination, at the address of `--peer`",
                "what the instances need, each SOP Class in its transfer syntax",
                "at a C-MOVE request; not tried again",
            )
        )
    return table("Activity | To | Presentation contexts | When", rows)


def store_statuses() -> str:
    """The statuses of C-STORE."""
    return _statuses(STORE_STATUSES, "C-STORE", ServiceClass.STORAGE)


def find_statuses() -> str:
    """The statuses of C-FIND."""
    return _statuses(FIND_STATUSES, "C-FIND", ServiceClass.QUERY_RETRIEVE)


def retrieve_statuses() -> str:
    """The statuses of C-GET and C-MOVE."""
    return _statuses(RETRIEVE_STATUSES, "C-MOVE", ServiceClass.QUERY_RETRIEVE)


def _statuses(told: dict[int, str], service: str, service_class: ServiceClass) -> str:
    return table(
        "Status | Meaning | When",
        ((f"0x{code:04X}", meaning(code, service, service_class), words) for code, words in told.items()),
    )


def _default(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def options() -> str:
    """The options of the command."""
    parameters: Any = Options.optParameters
    flags: Any = Options.optFlags
    rows = [(f"`--{name}`", _default(default), words) for name, _, default, words, *_ in parameters]
    rows += [(f"`--{name}`", "off", words) for name, _, words in flags]
    for name in sorted(vars(Options)):
        if name.startswith("opt_"):
            words = " ".join((vars(Options)[name].__doc__ or "").split())
            words, _, default = words.partition(" [default: ")
            rows.append((f"`--{name.removeprefix('opt_').replace('_', '-')}`", default.rstrip("]") or "none", words))
    return table("Option | Default | What", rows)


def character_sets() -> str:
    """The defined terms that are decoded."""
    return ", ".join(f"`{term}`" for term in sorted(python_encoding) if term) + "; and none, which is ISO 646."


def security() -> str:
    """The profiles of TLS."""
    return table(
        "`profile` | Clause | Cipher suites of TLS 1.2 | of TLS 1.3",
        ((f"`{name}`", each.clause, ", ".join(each.tls12), ", ".join(each.tls13)) for name, each in PROFILES.items()),
    )


def storage() -> str:
    """The Storage SOP Classes."""
    found = [UID(str(context.abstract_syntax)) for context in contexts() if _class_of(context) is ServiceClass.STORAGE]
    for context in contexts():
        if _class_of(context) is ServiceClass.STORAGE:
            assert set(context.transfer_syntax) == set(ALL_TRANSFER_SYNTAXES)
    return table("SOP Class | UID", sorted((uid.name, uid) for uid in found))


def transfer_syntaxes() -> str:
    """The transfer syntaxes."""
    default = set(DEFAULT_TRANSFER_SYNTAXES)
    rows = [(UID(syntax).name, syntax, "yes" if syntax in default else "") for syntax in ALL_TRANSFER_SYNTAXES]
    return table("Transfer syntax | UID | Other services", rows)


def attributes() -> str:
    """The attributes of the index."""
    rows = []
    for level in Level:
        kept = [attribute.keyword for attribute in ATTRIBUTES if attribute.level is level]
        computed = [attribute.keyword for attribute in COMPUTED if attribute.level is level]
        rows.append((level.name, ", ".join(kept), ", ".join(computed)))
    return table("Level | Taken from the instances | Counted", rows)


TABLES: Final[dict[str, Callable[[], str]]] = {
    "overview": overview,
    "services": services,
    "policies": policies,
    "initiation": initiation,
    "store statuses": store_statuses,
    "find statuses": find_statuses,
    "retrieve statuses": retrieve_statuses,
    "options": options,
    "character sets": character_sets,
    "security": security,
    "storage": storage,
    "transfer syntaxes": transfer_syntaxes,
    "attributes": attributes,
}

#: A table of the page between its marks.
MARKED = re.compile(r"<!-- begin: (.*?) -->\n(.*?)<!-- end -->", re.DOTALL)


def page() -> str:
    """The page with its tables as they should be."""
    return MARKED.sub(
        lambda found: f"<!-- begin: {found[1]} -->\n\n{TABLES[found[1]]()}\n\n<!-- end -->", PAGE.read_text()
    )


if __name__ == "__main__":
    PAGE.write_text(page())
