"""
The text of docs/service_classes.md, generated from the code: tests/test_service_classes_page.py compares the page with it.

``python -m tests.service_classes_page > docs/service_classes.md`` writes the page again.
"""

from __future__ import annotations

from collections.abc import Iterator

from dicomtwist.dimse.status import category, status_tables
from dicomtwist.dimse.status_tables import ERROR_IDS, GENERAL, Row, StatusTable
from dicomtwist.sop_class import ServiceClass, SOPClass, UnifiedProcedureStepPush, sop_classes
from dicomtwist.sop_relations import ANNEXES, carriers, dimse_services, meta_members, well_known_instances

#: Service classes with so many SOP Classes that a sentence says more than a list.
TOLD_IN_WORDS = {
    ServiceClass.STORAGE: (
        "This service class has all SOP Classes whose keywords end in `Storage` (or in `StorageForPresentation` and the"
        " like), except those of Non-Patient Object Storage and Media Storage: `sop_classes(ServiceClass.STORAGE)` lists"
        " them. Retired SOP Classes and those of DICOS and DICONDE are included. Each is used with C-STORE."
    ),
}

#: The order in which DIMSE services are listed.
SERVICES = (
    "C-ECHO", "C-STORE", "C-FIND", "C-MOVE", "C-GET",
    "N-CREATE", "N-SET", "N-GET", "N-ACTION", "N-DELETE", "N-EVENT-REPORT",
)  # fmt: skip

INTRODUCTION = """\
# Service classes

This page lists each service class of PS3.4 with its SOP Classes, the DIMSE services that they are used with, the events to
bind a handler to, and the status codes that it defines. The page is generated from the code, and a test compares them.

An event has the name of its DIMSE service: `evt.EVT_N_CREATE` for N-CREATE. [Handlers](guides/handlers.md) describes what
handlers receive and return, and how a request is answered if no handler is bound to its event.

A status code can mean different things in different service classes. So a `Status` knows its DIMSE service and SOP Class, and
its text says what it means there:

```python
from dicomtwist.dimse.status import Status, code_to_category, meaning
from dicomtwist.sop_class import BasicFilmBox, BasicGrayscaleImageBox
from dicomtwist.sop_relations import carriers, dimse_services

print(meaning(0xC100, "C-FIND", "Relevant Patient Information Query"))
print(meaning(0xC100, "C-FIND", "Query/Retrieve"))
print(Status(0xC602, "N-ACTION", sop_class=BasicFilmBox))
print(code_to_category(0xB600))
print(dimse_services(BasicFilmBox))
print([of_it.keyword for of_it in carriers(BasicGrayscaleImageBox, "N-SET")])
```

prints

```text
More than one match found
Unable to process
0xC602 Unable to create a Print Job of the Film Box: the print queue is full
Warning
('N-CREATE', 'N-SET', 'N-DELETE', 'N-ACTION')
['BasicGrayscaleImageBox', 'BasicGrayscalePrintManagementMeta']
```

`register_uid(uid, keyword, service_class)` registers a private SOP Class. If the SOP Classes of the service class differ in
their DIMSE services, name the service: `dimse="C-FIND"`; for a private Meta SOP Class name its `members=`.
"""

GENERAL_INTRODUCTION = """\
## Status codes of all service classes

These codes are from PS3.7 Annex C. A service class may define its own meaning for one of them, see above. A code that is in
no table has only a class: 0xBxxx is a warning, any other a failure.
"""


def anchor(title: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return "".join(letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter == "-")


def table(*rows: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of a table, whose first row is its heading."""
    for number, row in enumerate(rows):
        yield f"| {' | '.join(row)} |"
        if number == 0:
            yield "|" + "---|" * len(row)


def in_order(services: set[str]) -> list[str]:
    """Return DIMSE services in the order in which they are listed."""
    return sorted(services, key=SERVICES.index)


def hooks(services: list[str]) -> str:
    """Return the events of DIMSE services."""
    return ", ".join(f"`EVT_{service.replace('-', '_')}`" for service in services)


def services_of(service_class: ServiceClass) -> list[str]:
    """Return the DIMSE services of all SOP Classes of a service class."""
    return in_order({service for uid in sop_classes(service_class) for service in dimse_services(uid)})


def code_range(row: Row) -> str:
    """Return the codes of a row."""
    first, last, _ = row
    return f"0x{first:04X}" if first == last else f"0x{first:04X} to 0x{last:04X}"


def overview() -> Iterator[str]:
    """Yield the overview, with one row for each service class."""
    rows = [("Service class", "PS3.4", "DIMSE services", "Events")]
    for service_class in ANNEXES:
        services = services_of(service_class)
        title = f"[{service_class.value}](#{anchor(service_class.value)})"
        rows.append((title, ANNEXES[service_class], ", ".join(services) or "none: files only", hooks(services)))
    yield from table(*rows)


def sop_class_rows(service_class: ServiceClass) -> Iterator[str]:
    """Yield the SOP Classes of a service class."""
    if service_class in TOLD_IN_WORDS:
        yield TOLD_IN_WORDS[service_class]
        return
    rows = [("SOP Class", "UID", "DIMSE services")]
    for uid in sop_classes(service_class):
        rows.append((f"`{uid.keyword}`", str(uid), ", ".join(in_order(set(dimse_services(uid))))))
    yield from table(*rows)
    for uid in sop_classes(service_class):
        yield from remarks(uid)


def remarks(uid: SOPClass) -> Iterator[str]:
    """Yield further sentences about a SOP Class."""
    if meta_members(uid):
        yield ""
        yield f"`{uid.keyword}` stands for {', '.join(f'`{member.keyword}`' for member in meta_members(uid))}."
    if well_known_instances(uid):
        instances = (f"`{instance.keyword}` ({instance})" for instance in well_known_instances(uid))
        yield ""
        yield f"Well-known instances of `{uid.keyword}`: {', '.join(instances)}."


def ups_contexts() -> Iterator[str]:
    """Yield the table of operations on a UPS and their contexts."""
    yield ""
    yield "All instances belong to UPS Push. An operation on an instance uses one of these presentation contexts (PS3.4 CC.2):"
    yield ""
    actions = ("Change UPS State", "Request UPS Cancel", "Subscribe", "Unsubscribe", "Suspend Global Subscription")
    operations: list[tuple[str, str, int | None]] = []
    for service in services_of(ServiceClass.UNIFIED_PROCEDURE_STEP):
        if service == "N-ACTION":
            operations += [(f"N-ACTION {number}, {words}", service, number) for number, words in enumerate(actions, 1)]
        else:
            operations.append((service, service, None))
    rows = [("Operation", "Contexts")]
    for words, service, action in operations:
        contexts = carriers(UnifiedProcedureStepPush, service, action)
        rows.append((words, ", ".join(f"`{uid.keyword}`" for uid in contexts)))
    yield from table(*rows)


def statuses(of_it: StatusTable) -> Iterator[str]:
    """Yield the statuses of a service class for one DIMSE service."""
    yield ""
    told = f"Statuses of {of_it.service} (PS3.4 {of_it.clause})"
    usual = status_tables("Query/Retrieve", of_it.service)
    if usual and usual[0] is not of_it and set(of_it.rows) <= set(usual[0].rows):
        missing = [code_range(row) for row in usual[0].rows if row not in of_it.rows]
        yield f"{told}: those of [Query/Retrieve](#queryretrieve) without {', '.join(missing)}."
        return
    yield f"{told}:"
    yield ""
    rows = [("Code", "Class", "Meaning")]
    rows += [(code_range(row), category(row[0]).value, row[2]) for row in sorted(of_it.rows)]
    yield from table(*rows)


def section(service_class: ServiceClass) -> Iterator[str]:
    """Yield the section about a service class."""
    yield f"## {service_class.value}"
    yield ""
    yield from sop_class_rows(service_class)
    if service_class is ServiceClass.STORAGE_COMMITMENT:
        yield ""
        yield "`status.failure_reason(code)` puts a Failure Reason (0008,1197) into words (PS3.3 C.14.1.1)."
    if service_class is ServiceClass.UNIFIED_PROCEDURE_STEP:
        yield from ups_contexts()
    for of_it in status_tables(service_class.value):
        yield from statuses(of_it)
    for (name, code, error_id), words in ERROR_IDS.items():
        if name == service_class.value:
            yield ""
            yield f"0x{code:04X} with Error ID 0x{error_id:04X}: {words}."
    yield ""


def page() -> str:
    """Return the whole page."""
    lines = [INTRODUCTION, *overview(), ""]
    for service_class in ANNEXES:
        lines += section(service_class)
    lines.append(GENERAL_INTRODUCTION)
    rows = [(f"0x{code:04X}", category(code).value, words) for code, words in GENERAL.items()]
    lines += table(("Code", "Class", "Meaning"), *rows)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
