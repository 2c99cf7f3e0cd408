"""docs/conformance.md agrees with the code, and has the sections of PS3.2 Annex A."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import dicomtwist
from dicomtwist import evt
from dicomtwist.dimse.status import StatusCategory, code_to_category
from dicomtwist.errors import REJECT_REASONS, REJECT_RESULTS
from dicomtwist.sop_relations import dimse_services
from tests import dicomweb_conformance_page as dicomweb
from tests.conformance_page import MARKED, PAGE, STORE_STATUSES, TABLES, archive, contexts, page

#: The headings of PS3.2 A.3 to A.8, in their order.
SECTIONS = (
    "Overview",
    "Introduction",
    "Networking",
    "Implementation model",
    "Application data flow",
    "Functional definition",
    "Sequencing",
    "AE specifications",
    "SOP Classes",
    "Association policies",
    "Association initiation policy",
    "Association acceptance policy",
    "Network interfaces",
    "Configuration",
    "Media interchange",
    "Support of character sets",
    "Security",
    "Annexes",
)


class PageTests(SynchronousTestCase):
    maxDiff = None

    def setUp(self) -> None:
        self.text = PAGE.read_text()

    def test_written_from_the_code(self) -> None:
        """If not, ``python -m tests.conformance_page`` writes the tables again."""
        told = dict(MARKED.findall(self.text))
        self.assertEqual(set(told), set(TABLES))
        for name, is_so in MARKED.findall(page()):
            self.assertEqual(told[name], is_so, f"{name}: run python -m tests.conformance_page")

    def test_sections(self) -> None:
        headings = re.findall(r"^#+ [\d.]* ?(.+)$", self.text, re.MULTILINE)
        places = []
        for section in SECTIONS:
            (place, *_) = [number for number, heading in enumerate(headings) if heading.startswith(section)]
            places.append(place)
        self.assertEqual(places, sorted(places))

    def test_rejections(self) -> None:
        """Each rejection on the page has a text in the standard."""
        rows = re.findall(r"^\| (\d), (\d), (\d) \|", self.text, re.MULTILINE)
        self.assertGreaterEqual(len(rows), 8)
        for result, source, reason in rows:
            self.assertIn(int(result), REJECT_RESULTS)
            self.assertIn((int(source), int(reason)), REJECT_REASONS)

    def test_statuses(self) -> None:
        """The statuses of C-STORE are success and failures, because the archive returns no warnings."""
        kinds = {code_to_category(code) for code in STORE_STATUSES}
        self.assertEqual(kinds, {StatusCategory.SUCCESS, StatusCategory.FAILURE})

    def test_every_context_has_a_handler(self) -> None:
        """Every supported SOP Class has handlers: each of its interventions is bound."""
        with archive("--worklist", ".") as service:
            bound = {item[0] for item in service._handlers}
            for context in contexts():
                for name in dimse_services(str(context.abstract_syntax)):
                    event = getattr(evt, f"EVT_{name.replace('-', '_')}")
                    if name not in ("C-ECHO", "N-EVENT-REPORT"):  # answered without a handler; sent by the SCP
                        self.assertIn(event, bound, context.abstract_syntax)


class DICOMwebTests(SynchronousTestCase):
    maxDiff = None

    def test_written_from_the_code(self) -> None:
        """If not, ``python -m tests.dicomweb_conformance_page`` writes the tables again."""
        told = dict(MARKED.findall(dicomweb.PAGE.read_text()))
        self.assertEqual(set(told), set(dicomweb.TABLES))
        for name, is_so in MARKED.findall(dicomweb.page()):
            self.assertEqual(told[name], is_so, f"{name}: run python -m tests.dicomweb_conformance_page")

    def test_statuses(self) -> None:
        """Each status that the code names is in the table."""
        folder = Path(dicomtwist.__file__).parent / "web"
        named = set()
        for path in [*(folder / "stow").glob("*.py"), *(folder / "wado").glob("*.py"), *folder.glob("*.py")]:
            named |= {int(code) for code in re.findall(r"(?:Problem\(|status=)(\d{3})\b", path.read_text())}
        self.assertGreater(len(named), 10)
        self.assertEqual(named - set(dicomweb.STATUSES), set())
