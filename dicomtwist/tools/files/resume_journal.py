"""
The journal of ``dicomtwist store --resume``: the instances that the peer has acknowledged.
"""

from __future__ import annotations

import os
from typing import Any

from dicomtwist.retrieval.journal import Journal, JournalError, digest
from dicomtwist.runtime.executors import Executor
from dicomtwist.tools.files.file_scanner import ScannedInstance

__all__ = ["JournalError", "ResumeJournal"]


class ResumeJournal(Journal):
    """The journal of ``dicomtwist store``: the instances that the peer has acknowledged."""

    format = "dicomtwist store"

    def key(self, entry: dict[str, Any]) -> bytes | None:
        """Return the digest of a path, size and modification time."""
        if not isinstance(entry.get("path"), str):
            return None
        return digest(f"{entry.get('size')} {entry.get('changed')} {entry['path']}")

    def contains(self, instance: ScannedInstance) -> bool:
        """Whether an instance was acknowledged and its file has not changed since; safe in any thread."""
        return self.holds(_entry(instance))

    def add(self, instance: ScannedInstance, executor: Executor) -> None:
        """Record that the peer has stored an instance."""
        self.record(_entry(instance), executor)


def _entry(instance: ScannedInstance) -> dict[str, Any]:
    return {"path": os.path.abspath(instance.path), "size": instance.size, "changed": instance.changed}
