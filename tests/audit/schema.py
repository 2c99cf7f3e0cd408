"""The schema of audit messages (PS3.15 A.5.1), for tests."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

#: It has no annotations.
etree: Any = importlib.import_module("lxml.etree")

SCHEMA: Final = etree.RelaxNG(etree.parse(str(Path(__file__).with_name("audit-message.rng"))))


def parsed(message: bytes) -> Any:
    """Return a message as a tree. It fails if the message is not valid."""
    root = etree.fromstring(message)
    SCHEMA.assertValid(root)
    return root


def code_of(root: Any, name: str = "EventIdentification/EventID") -> str:
    """Return a code of a message, ``""`` without it."""
    found = root.find(name)
    return "" if found is None else str(found.get("csd-code"))


def objects_of(root: Any, kind: str) -> dict[str, Any]:
    """Return the objects of a message whose IDs are of a kind, by these IDs: ``"110180"`` for studies, ``"2"`` for patients."""
    return {
        one.get("ParticipantObjectID"): one
        for one in root.findall("ParticipantObjectIdentification")
        if code_of(one, "ParticipantObjectIDTypeCode") == kind
    }
