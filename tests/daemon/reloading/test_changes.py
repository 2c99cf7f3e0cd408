"""The comparison of options at a reload."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.daemon.configuration import LISTS
from dicomtwist.daemon.options import Options
from dicomtwist.daemon.reloading.changes import ALWAYS, RELOADED, RESTART, changes

#: Options of one run, which no reload concerns.
OF_ONE_RUN = {"config", "check", "explain"}


class ChangesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.before: dict[str, Any] = dict.fromkeys(RELOADED | RESTART)

    def test_every_option_is_in_one_table(self) -> None:
        known: Any = Options()
        names = {one[0] for one in (*known.optParameters, *known.optFlags)} | set(LISTS)
        self.assertEqual(names - OF_ONE_RUN, RELOADED | RESTART | ALWAYS)
        self.assertEqual(len(RELOADED) + len(RESTART) + len(ALWAYS), len(RELOADED | RESTART | ALWAYS))

    def test_nothing(self) -> None:
        found = changes(self.before, dict(self.before))
        self.assertEqual((found.applied, found.restart, found.values), ((), (), self.before))

    def test_both(self) -> None:
        found = changes(self.before, {**self.before, "storage": "b", "port": ["1"], "grace": 3.0, "http-url": "u"})
        self.assertEqual(found.applied, ("grace", "http-url"))
        self.assertEqual(found.restart, ("port", "storage"))

    def test_what_needs_a_restart_stays_as_it_is(self) -> None:
        """It is told at each reload, until the file has the former value again."""
        after = {**self.before, "storage": "b", "grace": 3.0}
        found = changes(self.before, after)
        self.assertEqual(found.values, {**self.before, "grace": 3.0})
        self.assertEqual(
            (changes(found.values, after).applied, changes(found.values, after).restart), ((), ("storage",))
        )
        self.assertEqual(changes(found.values, {**after, "storage": None}).restart, ())

    def test_worklist(self) -> None:
        """Its folder may be another one; the SOP Class comes and goes with a restart."""
        for one, other, applied in (("a", "b", True), (None, "b", False), ("a", None, False)):
            found = changes({**self.before, "worklist": one}, {**self.before, "worklist": other})
            self.assertEqual((found.applied, found.restart), (("worklist",), ()) if applied else ((), ("worklist",)))
            self.assertEqual(found.values["worklist"], other if applied else one)
