"""Why the sub-operations of C-GET and C-MOVE fail: the Error Comment for the requestor, and the lines of the log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from twisted.logger import ILogObserver, LogEvent, globalLogPublisher

from dicomtwist import Association, Status, evt
from dicomtwist.logs import association_of, text_lines
from tests.memory import instance
from tests.scp.test_retrieve import GET, GetTestCase, MoveTestCase, datasets, keys, to_archive, uid


class _Logged(MoveTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.logged: list[LogEvent] = []
        look = cast(ILogObserver, self.logged.append)
        globalLogPublisher.addObserver(look)
        self.addCleanup(globalLogPublisher.removeObserver, look)

    def line(self, words: str) -> str:
        """Return the one line of the log with *words*; it names the association of the C-MOVE."""
        (event,) = [one for one in self.logged if words in text_lines(one)[0]]
        association = association_of(event)
        assert association is not None
        self.assertIs(association.ae, self.scp)
        self.assertTrue(association.is_acceptor)
        return text_lines(event)[0]


class MoveReasons(_Logged):
    """C-MOVE"""

    def test_a_destination_that_is_not_reached(self) -> None:
        result = self.move(to_archive, 2)
        self.assertEqual(result.status, 0xA702)
        self.assertEqual(result.status.error_comment, "no association with the move destination")
        line = self.line("could not be reached")
        self.assertIn("the move destination 'ARCHIVE' at 127.0.0.1:11113 could not be reached: ", line)
        self.assertIn("C-MOVE of 'SCU' to 'ARCHIVE': 2 of 2 sub-operations failed: ", self.line("sub-operations"))

    def test_a_destination_that_rejects(self) -> None:
        self.archive.require_called_aet = True
        self.listening()
        result = self.move(to_archive, 1, destination="SOMEBODY")
        self.assertEqual(result.status.error_comment, "no association with the move destination")
        self.assertIn("'SOMEBODY' at 127.0.0.1:11113 could not be reached", self.line("could not be reached"))

    def test_a_destination_that_aborts(self) -> None:
        def handler(event: evt.StoreEvent) -> Any:
            event.assoc.abort()
            return 0

        self.store = handler  # type: ignore[method-assign]
        self.listening()
        result = self.move(to_archive, 1)
        self.assertEqual(result.status, 0xA702)
        self.assertEqual(result.status.error_comment, "the association with the move destination has ended")

    def test_the_answer_of_the_destination(self) -> None:
        """The log has its words; they are not for the requestor."""
        self.refuse = {uid(1): Status(0xA700, "C-STORE", "the disk of the ward is full")}
        self.listening()
        result = self.move(to_archive, 3)
        self.assertEqual((result.status, result.suboperations.failed), (0xB000, 1))
        self.assertEqual(result.status.error_comment, "an instance was answered with 0xA700")
        line = self.line("sub-operations failed")
        self.assertIn("an instance was answered with 0xA700: the disk of the ward is full", line)

    def test_an_unknown_destination(self) -> None:
        result = self.move(lambda event: [None, 1, instance()], destination="NOWHERE")
        self.assertEqual(result.status.error_comment, "the Move Destination is not known")
        self.assertIn("C-MOVE of 'SCU' to 'NOWHERE' ends with 0xA801", self.line("ends with"))

    def test_success_has_none(self) -> None:
        self.listening()
        result = self.move(to_archive, 3)
        self.assertEqual((result.status, result.status.error_comment), (0, None))


class GetReasons(GetTestCase):
    """C-GET"""

    def test_without_the_role(self) -> None:
        self.listen((evt.EVT_C_GET, datasets, [1]))
        association: Association = self.associate()
        result = self.ended(association.send_c_get(keys(), GET))
        self.assertEqual(result.status.error_comment, "no presentation context for an instance was accepted")

    def test_a_file_that_is_gone(self) -> None:
        """The requestor does not learn the path."""
        path = Path(self.mktemp())

        def handler(event: evt.IdentifierEvent) -> Iterator[Any]:
            yield 1
            yield path

        result = self.get(handler)
        self.assertEqual(result.status, 0xA702)
        self.assertEqual(result.status.error_comment, "an instance cannot be read or converted")

    def test_refused_without_words(self) -> None:
        self.refuse = {uid(0): 0xA700}
        result = self.get(datasets, 1)
        self.assertEqual(result.status.error_comment, "an instance was answered with 0xA700")
