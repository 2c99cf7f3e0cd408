"""
The tables of docs/conformance.md, generated from the code: tests/test_conformance_page.py compares the page with them.

``python -m tests.conformance_page`` writes them into the page. :data:`SERVICES` describes each service class of ``twist dicom``
in words. A missing entry is an error, so that no service class is provided without a description.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pydicom.uid import UID

from dicomtwist import evt
from dicomtwist.archive.index.attributes import ATTRIBUTES, COMPUTED, Level
from dicomtwist.daemon.archive_service import ArchiveService
from dicomtwist.daemon.http import HTTPOptions
from dicomtwist.daemon.tap import Options, makeService
from dicomtwist.datasets.character_sets import TERMS
from dicomtwist.dimse.status import meaning
from dicomtwist.presentation import ALL_TRANSFER_SYNTAXES, DEFAULT_TRANSFER_SYNTAXES, PresentationContext
from dicomtwist.sop_class import ServiceClass, uid_to_service_class
from dicomtwist.tls import PROFILES
from dicomtwist.ul.items import APPLICATION_CONTEXT_NAME

PAGE = Path(__file__).parent.parent / "docs" / "conformance.md"

#: For each service class that twist dicom may provide, its annex of PS3.4 and words about how it is provided.
SERVICES: Final[dict[ServiceClass, tuple[str, str]]] = {
    ServiceClass.VERIFICATION: ("A", "C-ECHO is answered with Success"),
    ServiceClass.STORAGE: ("B", "see 7.1"),
    ServiceClass.STORAGE_COMMITMENT: (
        "J",
        "push model. Each instance is looked up and its file read; the report is sent on the same association if that is"
        " still established, else on one that the archive requests, see 3.2.3",
    ),
    ServiceClass.PROCEDURE_STEP: ("F", "steps are stored as files; N-GET with the retrieve SOP Class"),
    ServiceClass.QUERY_RETRIEVE: (
        "C",
        "hierarchical and, if negotiated, relational queries; keys of 7.3; C-MOVE to the peers of `--peer`, see 3.2.3",
    ),
    ServiceClass.BASIC_WORKLIST: ("K", "with `--worklist`: from the files of a folder"),
}

#: The statuses of a C-STORE in the archive.
STORE_STATUSES: Final = {
    0x0000: "file and index are on the disk (`--durability full`)",
    0x0111: "the instance is already stored (`--duplicates reject`)",
    0x0122: "the SOP Class is not that of the presentation context",
    0x0124: "no rule allows the peer to store, or to replace an instance that is stored and differs",
    0x0210: "an operation with this Message ID is pending",
    0x0213: "more requests at once than were negotiated, beyond those that may wait, during a C-GET",
    0xA700: "the disk is full, has less than `--min-free` left, or fails; the index fails; the instance is too large",
    0xA900: "SOP Class or Instance UID of data set and request differ, or Study or Series Instance UID are missing",
    0xC000: "the data set cannot be read, or a UID is invalid",
}

#: The statuses of the other services of the archive.
FIND_STATUSES: Final = {
    0x0000: "all matches were sent",
    0xFF00: "a match; all keys were matched",
    0xFF01: "a match; the archive does not know at least one key at this level",
    0xFE00: "C-CANCEL was received",
    0xA700: "the index cannot be read, or there are more matches than the limit for one query",
    0xA900: "the identifier cannot be read, its level is not in the model, a unique key is missing or has several values,"
    " or a value is invalid; the Error Comment says which",
}
RETRIEVE_STATUSES: Final = {
    0x0000: "all instances were stored, or there were none",
    0xFF00: "one more sub-operation is complete; with the counts",
    0xFE00: "C-CANCEL was received; with the counts",
    0xB000: "some instances were not stored, or were stored with a warning",
    0xA701: "the index cannot be read",
    0xA702: "no instance was stored: the destination could not be reached, refused all of them, or the files are missing",
    0xA801: "C-MOVE: `--peer` does not name the destination",
    0xA900: "as for C-FIND; also if the unique key of the level is missing",
}


@contextmanager
def archive(*options: str) -> Iterator[ArchiveService]:
    """Make the service of ``twist dicom`` without starting it."""
    with tempfile.TemporaryDirectory() as folder:
        parsed = Options()
        parsed.parseOptions(["--storage", f"{folder}/archive", *options])
        try:
            service = makeService(parsed)
            assert isinstance(service, ArchiveService)
            yield service
        finally:
            parsed.archive.close()


def table(head: str, rows: Iterable[Iterable[object]]) -> str:
    """Return a table of Markdown; *head* has its columns between bars."""
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _class_of(context: PresentationContext) -> ServiceClass:
    return uid_to_service_class(str(context.abstract_syntax))


def contexts() -> list[PresentationContext]:
    """Return all presentation contexts that twist dicom can support."""
    with archive("--worklist", ".") as service:
        return service.ae.supported_contexts


def overview() -> str:
    """Return the table of service classes (PS3.2 A.1)."""
    found = {_class_of(context) for context in contexts()}
    rows = []
    for service_class, (annex, words) in SERVICES.items():
        if service_class in found:
            rows.append((service_class.value, f"PS3.4 {annex}", "yes", words))
    return table("Service class | Clause | SCP | How", rows)


def services() -> str:
    """Return the table of all SOP Classes except those of storage."""
    rows = []
    for context in contexts():
        service_class = _class_of(context)
        assert service_class in SERVICES, f"tests/conformance_page.py does not describe {service_class}"
        if service_class is not ServiceClass.STORAGE:
            uid = UID(str(context.abstract_syntax))
            rows.append((service_class.value, uid.name, uid))
    return table("Service class | SOP Class | UID", sorted(rows))


def policies() -> str:
    """Return the association policies (PS3.2 A.4.2.1.2)."""
    with archive() as service:
        settings = service.ae.settings
        # Handlers are bound at the server, and at the AE above it.
        host = service.ae.acceptor_factory(evt_handlers=service._handlers).hosts[0]
        bound = {item[0] for item in (*host.handlers.bound(), *service.ae.get_handlers())}
        asynchronous = (
            "negotiated" if evt.EVT_ASYNC_OPS in bound else "not negotiated: one operation at a time each way"
        )
        granted = [each for each in service.ae.supported_contexts if each.scu_role is not None]
        roles = f"answered for {len(granted)} SOP Classes" if granted else "not answered: the default roles apply"
        identity = "ignored, whatever its type; verified if there are [rules](guides/access.md) about users"
        assert evt.EVT_USER_ID not in bound
        extended = "answered for Query/Retrieve, see 3.2.1" if evt.EVT_SOP_EXTENDED in bound else "not answered"
        rows = [
            ("Application context name", APPLICATION_CONTEXT_NAME),
            ("Maximum PDU size that is accepted (`--max-pdu`)", f"{settings.maximum_pdu_size} bytes"),
            ("Maximum PDU size that is sent", "the maximum of the peer, at most 131072 bytes"),
            ("Simultaneous associations (`--max-associations`)", settings.maximum_associations),
            ("Asynchronous operations", asynchronous),
            ("SCP/SCU role selection", roles),
            ("SOP Class extended negotiation", extended),
            ("User identity", identity),
            ("Implementation Class UID", settings.implementation_class_uid),
            ("Implementation Version Name", settings.implementation_version_name),
        ]
    return table("What | Value", rows)


def initiation() -> str:
    """Return the table of associations that the archive requests."""
    found = {_class_of(context) for context in contexts()}
    rows = []
    if ServiceClass.STORAGE_COMMITMENT in found:
        rows.append(
            (
                "Storage Commitment report (N-EVENT-REPORT)",
                "the requestor's AE title, at the address of `--peer`",
                "Storage Commitment Push Model, as SCP by role selection; default transfer syntaxes",
                "if the association of the request has ended; repeated until the report is accepted, for a day",
            )
        )
    if ServiceClass.QUERY_RETRIEVE in found:
        rows.append(
            (
                "C-STORE of a C-MOVE",
                "the Move Destination, at the address of `--peer`",
                "what the instances need: each SOP Class with its transfer syntax",
                "at a C-MOVE request; not repeated",
            )
        )
    to = "a destination of a rule of forwarding, at its address in `[peers]`"
    rows += [
        (
            "C-STORE of forwarding",
            to,
            "what the instances need: each SOP Class with its transfer syntax, and others to convert to",
            "when tasks are due; repeated until the instance is accepted or refused",
        ),
        (
            "Storage Commitment request (N-ACTION), search (C-FIND)",
            to,
            "Storage Commitment Push Model, Study Root Query/Retrieve Information Model - FIND; default transfer syntaxes",
            "after these, if the rule has `confirm`",
        ),
    ]
    return table("Activity | To | Presentation contexts | When", rows)


def store_statuses() -> str:
    """Return the statuses of C-STORE."""
    return _statuses(STORE_STATUSES, "C-STORE", ServiceClass.STORAGE)


def find_statuses() -> str:
    """Return the statuses of C-FIND."""
    return _statuses(FIND_STATUSES, "C-FIND", ServiceClass.QUERY_RETRIEVE)


def retrieve_statuses() -> str:
    """Return the statuses of C-GET and C-MOVE."""
    return _statuses(RETRIEVE_STATUSES, "C-MOVE", ServiceClass.QUERY_RETRIEVE)


def _statuses(told: dict[int, str], service: str, service_class: ServiceClass) -> str:
    return table(
        "Status | Meaning | When",
        ((f"0x{code:04X}", meaning(code, service, service_class), words) for code, words in told.items()),
    )


def _default(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def options() -> str:
    """Return the table of options of the command."""
    parameters: Any = Options.optParameters
    flags: Any = Options.optFlags
    rows = [(f"`--{name}`", _default(default), words) for name, _, default, words, *_ in parameters]
    rows += [(f"`--{name}`", "off", words) for name, _, words in flags]
    methods = {**vars(HTTPOptions), **vars(Options)}
    for name in sorted(methods):
        if name.startswith("opt_"):
            words = " ".join((methods[name].__doc__ or "").split())
            words, _, default = words.partition(" [default: ")
            rows.append((f"`--{name.removeprefix('opt_').replace('_', '-')}`", default.rstrip("]") or "none", words))
    return table("Option | Default | What", rows)


def character_sets() -> str:
    """Return the defined terms of character sets that are decoded."""
    return ", ".join(f"`{term}`" for term in TERMS) + "; and a missing value."


def security() -> str:
    """Return the table of TLS profiles."""
    return table(
        "`profile` | Clause | Cipher suites of TLS 1.2 | of TLS 1.3",
        ((f"`{name}`", each.clause, ", ".join(each.tls12), ", ".join(each.tls13)) for name, each in PROFILES.items()),
    )


def storage() -> str:
    """Return the table of Storage SOP Classes."""
    found = [UID(str(context.abstract_syntax)) for context in contexts() if _class_of(context) is ServiceClass.STORAGE]
    for context in contexts():
        if _class_of(context) is ServiceClass.STORAGE:
            assert set(context.transfer_syntax) == set(ALL_TRANSFER_SYNTAXES)
    return table("SOP Class | UID", sorted((uid.name, uid) for uid in found))


def transfer_syntaxes() -> str:
    """Return the table of transfer syntaxes."""
    default = set(DEFAULT_TRANSFER_SYNTAXES)
    rows = [(UID(syntax).name, syntax, "yes" if syntax in default else "") for syntax in ALL_TRANSFER_SYNTAXES]
    return table("Transfer syntax | UID | Other services", rows)


def attributes() -> str:
    """Return the table of attributes in the index."""
    rows = []
    for level in Level:
        kept = [attribute.keyword for attribute in ATTRIBUTES if attribute.level is level]
        computed = [attribute.keyword for attribute in COMPUTED if attribute.level is level]
        rows.append((level.name, ", ".join(kept), ", ".join(computed)))
    return table("Level | Taken from the instances | Computed", rows)


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
    """Return the page with its tables up to date."""
    return MARKED.sub(
        lambda found: f"<!-- begin: {found[1]} -->\n\n{TABLES[found[1]]()}\n\n<!-- end -->", PAGE.read_text()
    )


if __name__ == "__main__":
    PAGE.write_text(page())
