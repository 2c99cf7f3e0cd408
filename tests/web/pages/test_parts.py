"""dicomtwist.web.pages: words, charts, elements, and the search, without a server."""

from __future__ import annotations

import json
import math
import unittest
from datetime import datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dicomtwist.dicomweb.parameters import parse_search
from dicomtwist.web.pages import charts, words
from dicomtwist.web.pages.images import MAX_FRAMES, instances_of, window_of
from dicomtwist.web.pages.studies import search_of, series_of, study_of
from dicomtwist.web.pages.tags import MAX_ROWS, MAX_VALUE, rows_of
from dicomtwist.web.pages.words import NOTHING


class Words(unittest.TestCase):
    def test_persons(self) -> None:
        for name, written in (
            ({"Alphabetic": "Doe^Jane^Q^Dr^III"}, "Doe, Jane Q (Dr, III)"),
            ({"Alphabetic": "Doe"}, "Doe"),
            ({"Alphabetic": "^Jane"}, "Jane"),
            ({"Alphabetic": "^^^Dr"}, "Dr"),
            ({"Alphabetic": "Yamada^Hanako", "Ideographic": "山田^花子"}, "Yamada, Hanako · 山田, 花子"),
            ({"Alphabetic": "a^b^c^d^e^f^g"}, "a, b c (d, e)"),
            ({"Alphabetic": None}, ""),
            ({}, ""),
        ):
            self.assertEqual(words.person(name), written)

    def test_dates_and_times(self) -> None:
        self.assertEqual([words.date(one) for one in ("20240131", "", "2024", "garbage!", " 20240131 ")],
                         ["2024-01-31", "", "2024", "garbage!", "2024-01-31"])  # fmt: skip
        times = ("083000.5", "0830", "08", "", "what", "08:30:15")
        self.assertEqual([words.time_of_day(one) for one in times], ["08:30", "08:30", "08:00", "", "what", "08:30"])
        now = datetime.now().astimezone()
        self.assertEqual(words.clock_time(now.isoformat()), now.strftime("%H:%M:%S"))
        self.assertRegex(words.clock_time("2001-02-03T12:00:00+00:00"), r"2001-02-0[34] \d\d:00:00|2001-02-0[34] ")

    def test_numbers(self) -> None:
        sizes = (None, 0, 999, 1000, 1234, 99_950, 999_499, 999_500, 5_000_000_000, 10**18)
        self.assertEqual(
            [words.size(one) for one in sizes],
            [NOTHING, "0 B", "999 B", "1.0 kB", "1.2 kB", "100 kB", "999 kB", "1.0 MB", "5.0 GB", "1000 PB"],
        )
        counts = (None, 0, 0.04, 0.4, 3, 3.25, 12.3, 12345)
        self.assertEqual(
            [words.count(one) for one in counts], [NOTHING, "0", "<0.1", "0.4", "3", "3.2", "12", "12,345"]
        )
        durations = (None, 0, 0.0004, 0.0351, 0.9994, 0.9996, 1.24, 59.96, 60, 200, 7500, 86400 * 3 + 3600 * 4)
        self.assertEqual(
            [words.duration(one) for one in durations],
            [NOTHING, "0 ms", "0.4 ms", "35 ms", "999 ms", "1.0 s", "1.2 s", "1 min", "1 min", "3 min 20 s", "2 h 5 min",
             "3 d 4 h"],
        )  # fmt: skip

    def test_short_paths(self) -> None:
        self.assertEqual(
            words.short_path("/studies/1.2.840.113619.2.55.3.604688/series/1.2"), "/studies/…3.604688/series/1.2"
        )
        self.assertEqual(words.short_path("/dicom-web/studies"), "/dicom-web/studies")


class Charts(unittest.TestCase):
    def test_gaps(self) -> None:
        drawn = charts.area([None, 1.0, 2.0, None, 4.0])
        self.assertEqual(drawn.count("M"), 3 + 2 + 2)  # the grid, two runs, and the areas under them
        self.assertNotIn("nan", drawn)

    def test_nothing(self) -> None:
        for values in ([], [None] * 5, [0.0], [0.0] * 5):
            self.assertIn('class="line"', charts.area(values))

    @given(st.lists(st.none() | st.floats(0, 1e12), max_size=200), st.floats(0, 1e6))
    def test_within_its_place(self, values: list[float | None], at_least: float) -> None:
        drawn = charts.area(values, at_least)
        paths = drawn.split('class="line" d="')[1].partition('"')[0]
        for point in paths.replace("M", " ").split():
            x, y = map(float, point.split(","))
            self.assertTrue(-0.1 <= x <= charts.WIDTH + 0.1 and -0.1 <= y <= charts.HEIGHT + 0.1, point)

    def test_tiny_values(self) -> None:
        """Beside the least of numbers, the height would be infinite as a factor."""
        self.assertNotIn("inf", charts.area([5e-324, 0.0, 5e-324]))

    def test_latest_and_peak(self) -> None:
        self.assertEqual(charts.latest([1.0, 2.0, None]), 2.0)
        self.assertIsNone(charts.latest([1.0, None, None, None]))
        self.assertEqual(charts.peak([1.0, None, 3.0, 2.0]), 3.0)
        self.assertIsNone(charts.peak([]))


class Elements(unittest.TestCase):
    def test_rows(self) -> None:
        rows, is_cut = rows_of(
            {
                "00100010": {"vr": "PN", "Value": [{"Alphabetic": "<script>^x"}]},
                "00081140": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2"]}}, {}]},
                "7FE00010": {"vr": "OW", "BulkDataURI": "/dicom-web/x"},
                "00280030": {"vr": "DS", "Value": [0.5, 0.5]},
                "00091001": {"vr": "LO", "Value": [None]},
                "00090010": {"vr": "LO", "Value": ["GEMS_IDEN_01"]},
                "00091002": {"vr": "UN", "InlineBinary": "AAAA"},
                "garbage": 1,
            }
        )
        self.assertFalse(is_cut)
        self.assertEqual(
            [(row.depth, row.tag, row.name, row.vr, row.value) for row in rows],
            [
                (0, "0008,1140", "Referenced Image Sequence", "SQ", "2 items"),
                (1, "", "Item 1", "", ""),
                (2, "0008,1155", "Referenced SOP Instance UID", "UI", "1.2"),
                (1, "", "Item 2", "", ""),
                (0, "0009,0010", "Private Creator", "LO", "GEMS_IDEN_01"),
                (0, "0009,1001", "Full fidelity", "LO", ""),
                (0, "0009,1002", "Suite id", "UN", "AAAA"),
                (0, "0010,0010", "Patient's Name", "PN", "<script>, x"),
                (0, "0028,0030", "Pixel Spacing", "DS", "0.5 \\ 0.5"),
                (0, "7FE0,0010", "Pixel Data", "OW", ""),
            ],
        )
        self.assertEqual(rows[-1].url, "/dicom-web/x")

    def test_bounds(self) -> None:
        rows, _ = rows_of({"00080005": {"vr": "LT", "Value": ["x" * 5000]}})
        self.assertEqual((len(rows[0].value), rows[0].is_cut), (MAX_VALUE, True))
        many = {f"{0x00110000 + number:08X}": {"vr": "IS", "Value": [number]} for number in range(MAX_ROWS + 5)}
        rows, is_cut = rows_of(many)
        self.assertEqual((len(rows), is_cut), (MAX_ROWS, True))
        deep: dict[str, object] = {}
        for _ in range(200):
            deep = {"00081140": {"vr": "SQ", "Value": [deep]}}
        self.assertLess(len(rows_of(deep)[0]), 40)


class Search(unittest.TestCase):
    def test_what_is_entered(self) -> None:
        for entered, parameters in (
            ({}, []),
            ({"PatientName": "doe"}, [("PatientName", "doe*")]),
            ({"PatientName": "Doe, Jane Q"}, [("PatientName", "Doe*Jane*Q*")]),
            ({"PatientName": "?oe*"}, [("PatientName", "?oe*")]),
            ({"PatientID": " 12 "}, [("PatientID", "12*")]),
            ({"StudyDescription": "head"}, [("StudyDescription", "*head*")]),
            ({"ModalitiesInStudy": "CT"}, [("ModalitiesInStudy", "CT")]),
            ({"from": "2024-01-02"}, [("StudyDate", "20240102-")]),
            ({"to": "2024-01-02"}, [("StudyDate", "-20240102")]),
            ({"from": "2024-01-02", "to": "20240102"}, [("StudyDate", "20240102")]),
            ({"PatientBirthDate": "1950-01-01"}, [("PatientBirthDate", "19500101")]),
            ({"fuzzymatching": "true", "other": "x"}, [("fuzzymatching", "true")]),
        ):
            found = search_of(entered)
            self.assertEqual(found, parameters)
            self.assertEqual(parse_search(found, "STUDY").warnings, ())


#: The attributes that the pages of images calculate with.
_IMAGE_TAGS = (
    *("00080018", "00080061", "00100010", "00200011", "00200013", "00201206", "00201208", "00201209", "00280004"),
    *("00280008", "00280010", "00280011", "00280100", "00280101", "00280103", "00281050", "00281051", "00281052"),
    *("00281053", "52009229", "00289132", "00289145"),
)
_VALUES = st.recursive(
    st.none() | st.text(max_size=5) | st.integers(-(2**40), 2**40) | st.floats() | st.just("9" * 400),
    lambda values: st.dictionaries(
        st.sampled_from(_IMAGE_TAGS),
        st.fixed_dictionaries({"vr": st.just("SQ"), "Value": st.lists(values, max_size=2)}),
    ),
    max_leaves=5,
)
_ELEMENTS = st.fixed_dictionaries(
    {"vr": st.sampled_from(("SQ", "LO", "FD"))}, optional={"Value": st.lists(_VALUES, max_size=3)}
)


class Images(unittest.TestCase):
    def test_order(self) -> None:
        def answer(uid: str, number: int | None, frames: int | None = None) -> bytes:
            found: dict[str, object] = {"00080018": {"vr": "UI", "Value": [uid]}}
            if number is not None:
                found["00200013"] = {"vr": "IS", "Value": [number]}
            if frames is not None:
                found["00280008"] = {"vr": "IS", "Value": [frames]}
            return json.dumps(found).encode()

        found = instances_of([answer("1.3", None), answer("1.2", 10), answer("1.1", 9, 30), answer("1.4", 10, 0)])
        self.assertEqual(
            [(one["uid"], one["frames"]) for one in found], [("1.1", 30), ("1.2", 1), ("1.4", 1), ("1.3", 1)]
        )

    @given(st.dictionaries(st.sampled_from(_IMAGE_TAGS), _ELEMENTS))
    def test_any_values(self, answer: dict[str, Any]) -> None:
        """A peer chooses the VR of an element, so that any values may be in it."""
        (found,) = instances_of([json.dumps(answer).encode()])
        self.assertTrue(1 <= found["frames"] <= MAX_FRAMES)
        for name in ("rows", "columns"):
            self.assertIsInstance(found[name] or 0, int)
        window = window_of({**answer, "00280004": {"Value": ["MONOCHROME2"]}})
        self.assertTrue(all(map(math.isfinite, (window or {}).values())))
        for make in (study_of, series_of):
            json.dumps(make(answer))
        rows_of(answer)

    def test_windows_of_any_values(self) -> None:
        """A number of bits that no image has would make a number of as many bits."""
        grey = {"00280004": {"Value": ["MONOCHROME2"]}, "00280100": {"Value": [16]}}
        usual = window_of({**grey, "00280101": {"Value": [16]}})
        any_bits: tuple[Any, ...] = (2**32 - 1, 65535, 65, -5, 0, "abc", None, {})
        for bits in any_bits:
            self.assertEqual(window_of({**grey, "00280101": {"Value": [bits]}}), usual, bits)
        self.assertIsNone(window_of({**grey, "00281053": {"Value": [1e308]}}))
        for name in ("inf", "nan", "1e999", "x"):
            self.assertEqual(window_of({**grey, "00281053": {"Value": [name]}}), usual, name)
        text = {"52009229": {"vr": "LO", "Value": ["x"]}}
        self.assertEqual(window_of({**grey, **text}), usual)

    def test_windows(self) -> None:
        grey = {"00280004": {"Value": ["MONOCHROME2"]}, "00280101": {"Value": [12]}, "00280103": {"Value": [0]}}
        self.assertIsNone(window_of({"00280004": {"Value": ["RGB"]}}))
        self.assertIsNone(window_of({}))
        self.assertEqual(window_of(grey), {"center": 2047.5, "width": 4095.0, "low": -2047.5, "high": 6142.5})
        rescaled = {**grey, "00281052": {"Value": [-1024]}, "00281053": {"Value": [1]}}
        own = {**rescaled, "00281050": {"Value": [40, 400]}, "00281051": {"Value": [400, 2000]}}
        self.assertEqual(window_of(own), {"center": 40, "width": 400, "low": -1024, "high": 3071})
        frames = {"00289132": {"Value": [{"00281050": {"Value": [50]}, "00281051": {"Value": [0]}}]}}
        self.assertEqual((window_of({**grey, "52009229": {"Value": [frames]}}) or {})["width"], 1.0)
