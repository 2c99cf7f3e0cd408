"""The sender of an instance, as an archive and its index know it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Sender"]


class Sender(Protocol):
    """Where an instance comes from: a peer, or an import. Used in any thread."""

    @property
    def may_replace(self) -> bool:
        """Whether it may replace stored instances, and values that the index has."""

    def log_replacement(self, message: str, /, **fields: object) -> None:
        """Log that its instance replaced another one, behind the name of the sender."""

    def log_conflict(self, message: str, /, **fields: object) -> None:
        """Log that its instance disagrees with the index, unless it has had its share of such lines."""
