"""
The changes at a reload of ``twist dicom``: the options that it applies, and those that need a restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["ALWAYS", "RELOADED", "RESTART", "Changes", "changes"]

#: The options that a reload applies.
RELOADED: Final = frozenset(
    (
        "acse-timeout",
        "allow-calling",
        "audit",
        "audit-source",
        "dimse-timeout",
        "duplicates",
        "executor-warning",
        "forward-history",
        "forward-key",
        "forward-warning",
        "grace",
        "http-body-timeout",
        "http-header-timeout",
        "http-idle-timeout",
        "http-max-body",
        "http-origin",
        "http-url",
        "lag-warning",
        "log-format",
        "log-level",
        "log-rate",
        "max-association-rate",
        "max-associations",
        "max-attribute-values",
        "max-attributes",
        "max-connections",
        "max-connections-per-peer",
        "max-identifier-elements",
        "max-identifier-size",
        "max-identifier-values",
        "max-object-size",
        "max-pdu",
        "max-refusals-logged",
        "max-request-memory",
        "min-free",
        "network-timeout",
        "pdu-timeout",
        "records",
        "records-size",
        "require-called-aet",
        "trace",
        "trusted-proxy",
        "worklist",
        "worklist-deadline",
        "write-timeout",
    )
)
#: The options that need a restart: ports, processes, and what the archive has on the disk.
RESTART: Final = frozenset(
    (
        "ae-title",
        "default-charset",
        "durability",
        "http",
        "image-processes",
        "import",
        "inbox",
        "port",
        "precedence",
        "storage",
        "viewer",
        "viewer-http",
        "workers",
    )
)
#: The options that each reload reads again, changed or not: files of peers may have other contents.
ALWAYS: Final = frozenset(("peer",))


@dataclass(frozen=True)
class Changes:
    """
    The changes in the options.

    :ivar applied: the names of options that a reload applies, sorted.
    :ivar restart: the names of options that need a restart, sorted.
    :ivar values: the values that are in force after the reload: those of *restart* are the former ones.
    """

    applied: tuple[str, ...]
    restart: tuple[str, ...]
    values: Mapping[str, Any]


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes:
    """
    Compare options.

    :param before: the values that are in force, by the names of the options.
    :param after: the values that are given now.
    """
    changed = {name for name in RELOADED | RESTART if before[name] != after[name]}
    restart = changed & RESTART
    if "worklist" in changed and None in (before["worklist"], after["worklist"]):
        # The SOP Class is offered from the start on, or not at all.
        restart |= {"worklist"}
    values = {**after, **{name: before[name] for name in restart}}
    return Changes(tuple(sorted(changed - restart)), tuple(sorted(restart)), values)
