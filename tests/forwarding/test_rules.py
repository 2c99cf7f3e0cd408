"""Rules of forwarding: what they match, how they explain themselves, and what is wrong with their tables."""

from __future__ import annotations

import tomllib
import unittest
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.sequence import Sequence

from dicomtwist.access.rules import Requestor
from dicomtwist.forwarding.coercion import BY_PATIENT
from dicomtwist.forwarding.confidentiality import Option
from dicomtwist.forwarding.deidentification import Deidentification
from dicomtwist.forwarding.errors import ForwardingRuleError
from dicomtwist.forwarding.parsing import parse_forward
from dicomtwist.forwarding.paths import parse_path
from dicomtwist.forwarding.pseudonyms import Pseudonyms
from dicomtwist.forwarding.rules import DataSetAttributes, ForwardRules
from dicomtwist.forwarding.values import parse_duration, parse_hours, parse_rate

PSEUDONYMS = Pseudonyms(b"a secret of sixteen or more bytes")
CT = Requestor("DICOMTWIST", "CT1", "10.0.0.7")


def rules(text: str, **arguments: Any) -> ForwardRules:
    arguments.setdefault("pseudonyms", PSEUDONYMS)
    arguments.setdefault("read_table", lambda name: {"P1": f"from {name}"})
    return parse_forward(tomllib.loads(text).get("forward", []), **arguments)


def instance(**attributes: object) -> DataSetAttributes:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.Modality, dataset.StationName = "1.2.840.10008.5.1.4.1.1.2", "CT", "CT1-A"
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return DataSetAttributes(dataset)


#: The keys of a table.
KEYS = """
    name to calling from user certificate modality sop-class where hours study-quiet priority rate associations confirm keep
    set remove replace map hash shift-dates deidentify
""".split()  # noqa: SIM905


class Matching(unittest.TestCase):
    def test_all_conditions_have_to_hold(self) -> None:
        found = rules(
            """
            [[forward]]
            name = "to research"
            to = ["RESEARCH", ["A", "B"]]
            calling = "CT*"
            from = "10.0.0.0/8"
            modality = ["CT", "MR"]
            sop-class = "CTImageStorage"
            where = { StationName = "CT1*" }
            """
        )
        self.assertEqual([(rule.name, to) for rule, to in found.matches(instance(), CT)], [
            ("to research", (("RESEARCH",), ("A", "B")))
        ])  # fmt: skip
        explained = found.explain(instance(), CT)
        self.assertEqual(str(explained[0]), "to research: to RESEARCH, A, else B")
        for attributes, requestor, key in (
            (instance(), Requestor("DICOMTWIST", "MR1", "10.0.0.7"), "calling"),
            (instance(), Requestor("DICOMTWIST", "CT1", "192.0.2.1"), "from"),
            (instance(Modality="US"), CT, "modality"),
            (instance(SOPClassUID="1.2.3"), CT, "sop-class"),
            (instance(StationName="MR"), CT, "where.StationName"),
            (instance(StationName=""), CT, "where.StationName"),
        ):
            self.assertFalse(found.matches(attributes, requestor))
            self.assertEqual(found.explain(attributes, requestor)[0].key, key)
        self.assertIn("StationName is 'MR', not 'CT1*'", str(found.explain(instance(StationName="MR"), CT)[0]))

    def test_each_rule_that_matches_counts(self) -> None:
        found = rules('[[forward]]\nto = "A"\n[[forward]]\nto = "B"\nmodality = "MR"\n[[forward]]\nto = "C"\n')
        self.assertEqual([rule.name for rule, _ in found.matches(instance(), CT)], ["forward 1", "forward 3"])
        self.assertEqual(found.paths, {parse_path("Modality")})

    def test_where_looks_into_items_and_at_several_values(self) -> None:
        item = Dataset()
        item.RequestedProcedureID = "RP7"
        attributes = instance(RequestAttributesSequence=Sequence([Dataset(), item]), ImageType=["DERIVED", "AXIAL"])
        for text in (
            'where = { "RequestAttributesSequence.RequestedProcedureID" = "RP?" }',
            'where.RequestAttributesSequence.RequestedProcedureID = "RP7"',
            'where = { ImageType = "AXIAL" }',
            'where = { PatientComments = "" }',
            'where = { 00080060 = ["MR", "CT"] }',
        ):
            with self.subTest(text):
                self.assertTrue(rules(f'[[forward]]\nto = "A"\n{text}').matches(attributes, CT))

    @settings(max_examples=100, deadline=None)
    @given(st.text(min_size=1, max_size=20), st.text("ab*?.[", min_size=1, max_size=12))
    def test_explanation_agrees_with_the_match(self, value: str, pattern: str) -> None:
        found = parse_forward([{"to": "A", "where": {"StudyDescription": pattern}}])

        class Held:
            def values(self, path: object, /) -> list[str]:
                return [value]

        self.assertEqual(bool(found.matches(Held(), CT)), bool(found.explain(Held(), CT)[0].destinations))


class Tables(unittest.TestCase):
    def test_every_key(self) -> None:
        rule = rules(
            """
            [[forward]]
            name = "trial"
            to = ["CLOUD"]
            hours = ["22:00-06:00", "12:00-13:00"]
            study-quiet = "2m"
            priority = 9
            rate = "2MB/s"
            associations = 4
            confirm = "commit"
            keep = false
            set = { InstitutionName = "X", Rows = 7, ImageType = ["DERIVED", "SECONDARY"] }
            remove = ["PatientComments", "0029[SIEMENS CSA HEADER]10"]
            replace = { StudyDescription = { pattern = "^CT (.*)", with = '\\1' } }
            map = { PatientID = { file = "ids.csv", missing = "remove" } }
            hash = ["AccessionNumber"]
            deidentify = ["retain-uids", "retain-modified-dates"]
            """,
            peers={"CLOUD"},
        ).rules[0]
        assert rule.hours is not None
        self.assertEqual([rule.hours.has(60 * hour) for hour in (23, 5, 6, 12, 13)], [True, True, False, True, False])
        self.assertEqual(rule.hours.wait(60 * 21), 60)
        self.assertEqual((rule.study_quiet, rule.priority, rule.rate, rule.associations), (120.0, 9, 2_000_000.0, 4))
        self.assertEqual((rule.confirm, rule.keep), ("commit", False))
        self.assertEqual(rule.coercion.set[parse_path("ImageType")], ("DERIVED", "SECONDARY"))
        mapped = rule.coercion.map[parse_path("PatientID")]
        self.assertEqual((mapped.table, mapped.missing), ({"P1": "from ids.csv"}, "remove"))
        assert isinstance(rule.coercion.deidentify, Deidentification)
        self.assertEqual(rule.coercion.deidentify.options, {Option.RETAIN_UIDS, Option.RETAIN_MODIFIED_DATES})
        self.assertEqual(
            rules('[[forward]]\nto = "A"\nshift-dates = "patient"').rules[0].coercion.shift_dates, BY_PATIENT
        )
        self.assertFalse(rules('[[forward]]\nto = "A"').rules[0].coercion)

    def test_errors_name_table_and_key(self) -> None:
        for text, key in (
            ('too = "A"', "too"),
            ("", "to"),
            ("to = []", "to"),
            ('to = "NOWHERE"', "to"),
            ('to = [["A", "A"]]', "to"),
            ('to = "A"\ncalling = ""', "calling"),
            ('to = "A"\nfrom = "nowhere"', "from"),
            ('to = "A"\nsop-class = "NoStorage"', "sop-class"),
            ('to = "A"\nwhere = { PatientId = "1" }', "where.PatientId"),
            ('to = "A"\nwhere = { RequestAttributesSequence = "1" }', "where.RequestAttributesSequence"),
            ('to = "A"\nwhere = { PixelData = "" }', "where.PixelData"),
            ('to = "A"\nwhere = { TransferSyntaxUID = "1.2*" }', "where.TransferSyntaxUID"),
            ('to = "A"\nwhere = { EncapsulatedDocument = "%PDF*" }', "where.EncapsulatedDocument"),
            ('to = "A"\nhours = "25:00-01:00"', "hours"),
            ('to = "A"\nstudy-quiet = "soon"', "study-quiet"),
            ('to = "A"\npriority = 10', "priority"),
            ('to = "A"\nrate = 0', "rate"),
            ('to = "A"\nconfirm = "maybe"', "confirm"),
            ('to = "A"\nkeep = "no"', "keep"),
            ('to = "A"\nset = { SOPInstanceUID = "1" }', "set.SOPInstanceUID"),
            ('to = "A"\nset = { PatientSex = "much too long for a code" }', "set.PatientSex"),
            ('to = "A"\nset = { Rows = "seven" }', "set.Rows"),
            ('to = "A"\nremove = ["PixelData"]', "remove.PixelData"),
            ('to = "A"\nremove = ["PatientID"]\nset = { PatientID = "X" }', "remove.PatientID"),
            ('to = "A"\nreplace = { PatientID = { pattern = "(", with = "" } }', "replace.PatientID"),
            ('to = "A"\nreplace = { PatientID = { pattern = "a", with = "\\\\7" } }', "replace.PatientID"),
            ('to = "A"\nmap = { PatientID = 7 }', "map.PatientID"),
            ('to = "A"\nhash = ["StudyDate"]', "hash.StudyDate"),
            ('to = "A"\ndeidentify = ["retain-everything"]', "deidentify"),
            ('to = "A"\ndeidentify = ["retain-full-dates", "retain-modified-dates"]', "deidentify"),
            ('to = "A"\ndeidentify = true\nshift-dates = 3', "shift-dates"),
        ):
            with self.subTest(text), self.assertRaises(ForwardingRuleError) as caught:
                rules(f"[[forward]]\n{text}", peers={"A"})
            self.assertEqual((caught.exception.table, caught.exception.key), ("forward 1", key))

    def test_pseudonyms_need_a_key(self) -> None:
        for text in ("deidentify = true", 'hash = ["PatientID"]', 'shift-dates = "patient"'):
            with self.assertRaisesRegex(ForwardingRuleError, "needs a key"):
                rules(f'[[forward]]\nto = "A"\n{text}', pseudonyms=None)
        with self.assertRaises(ValueError):
            Pseudonyms(b"short")

    def test_names_are_unique(self) -> None:
        with self.assertRaises(ForwardingRuleError):
            rules('[[forward]]\nname = "x"\nto = "A"\n[[forward]]\nname = "x"\nto = "B"')
        wrong: tuple[object, ...] = ("forward", [1], {})
        for tables in wrong:
            with self.assertRaises(ForwardingRuleError):
                parse_forward(tables)

    @settings(max_examples=200, deadline=None)
    @given(
        st.dictionaries(
            st.sampled_from(sorted(KEYS)),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just("PatientID"),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(max_size=6) | st.just("PatientID"), inner, max_size=3)
                ),
                max_leaves=6,
            ),
            max_size=5,
        )
    )
    def test_any_table_raises_nothing_else(self, table: dict[str, Any]) -> None:
        try:
            parse_forward([{"to": "A", **table}], pseudonyms=PSEUDONYMS, read_table=lambda name: {})
        except ForwardingRuleError:
            pass

    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, 1439), st.integers(0, 1439), st.integers(0, 1439))
    def test_hours_open_after_the_wait(self, begin: int, end: int, now: int) -> None:
        if begin == end:
            return
        hours = parse_hours([f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"])
        self.assertTrue(hours.has((now + hours.wait(now)) % 1440))

    def test_values(self) -> None:
        self.assertEqual([parse_duration(one) for one in (5, "60s", "1.5m", "2h", "250ms")], [5, 60, 90, 7200, 0.25])
        self.assertEqual([parse_rate(one) for one in (5, "2MB", "1MiB/s")], [5, 2_000_000, 1 << 20])
