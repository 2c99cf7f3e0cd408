"""The totals of the operations of a peer, for the line of the log about the end of an association."""

from __future__ import annotations

from typing import Final

#: The most studies of one association that are counted; a greater number is given as more than this.
MAX_STUDIES: Final = 10_000
#: The most move destinations of one association that are named.
MAX_DESTINATIONS: Final = 8


class Totals:
    """
    The totals of one association.

    :ivar matches: the number of matches that were sent for C-FINDs.
    :ivar sent: the number of instances that were sent for C-GETs and C-MOVEs.
    :ivar studies: the Study Instance UIDs of instances that were stored, and of what was retrieved.
    :ivar destinations: the move destinations, in the order of the requests; the values of the dict mean nothing.
    """

    __slots__ = ("destinations", "matches", "sent", "studies")

    def __init__(self) -> None:
        self.matches = 0
        self.sent = 0
        self.studies: set[str] = set()
        self.destinations: dict[str, None] = {}

    def note_study(self, uid: str) -> None:
        """Count the study *uid*."""
        if len(self.studies) <= MAX_STUDIES:
            self.studies.add(uid)

    def note_destination(self, title: str) -> None:
        """Note the move destination *title*."""
        if len(self.destinations) < MAX_DESTINATIONS:
            self.destinations[title] = None

    def words(self, stored: int) -> list[str]:
        """
        Return the totals in words, those that are not 0.

        :param stored: the number of instances that were stored.
        """
        found = [_number(self.matches, "match", "matches")] if self.matches else []
        if stored:
            found.append(f"{_number(stored, 'instance', 'instances')} stored")
        if self.sent:
            found.append(f"{_number(self.sent, 'instance', 'instances')} sent")
        if len(self.studies) > MAX_STUDIES:
            found.append(f"more than {MAX_STUDIES} studies")
        elif self.studies:
            found.append(_number(len(self.studies), "study", "studies"))
        if self.destinations:
            found.append(f"to {', '.join(map(repr, self.destinations))}")
        return found


def _number(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
