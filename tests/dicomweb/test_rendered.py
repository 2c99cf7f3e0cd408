"""Parameters of rendered images, lists of frames, and the parameters of the URI service."""

from __future__ import annotations

import unittest

from hypothesis import given
from hypothesis import strategies as st

from dicomtwist.dicomweb.media_types import Category, Representation
from dicomtwist.dicomweb.parameters import ParameterError
from dicomtwist.dicomweb.rendered import (
    MAX_FRAMES,
    Rendering,
    Viewport,
    Window,
    parse_frames,
    parse_rendering,
    parse_uri_request,
)

WADO = "requestType=WADO&studyUID=1.2&seriesUID=1.3&objectUID=1.4"


class Rendered(unittest.TestCase):
    def test_parameters(self) -> None:
        for query, expected in (
            ("", Rendering()),
            ("viewport=512,256", Rendering(viewport=Viewport(512, 256))),
            ("viewport=512%2C256", Rendering(viewport=Viewport(512, 256))),
            ("viewport=512,256,10,20,100.5,50", Rendering(viewport=Viewport(512, 256, 10, 20, 100.5, 50))),
            ("viewport=512,256,,,-100,-50", Rendering(viewport=Viewport(512, 256, 0, 0, 100, 50, True, True))),
            ("viewport=512,256,5", Rendering(viewport=Viewport(512, 256, 5))),
            ("window=40,400,linear", Rendering(window=Window(40, 400))),
            ("window=-500.5,1500", Rendering(window=Window(-500.5, 1500))),
            ("window=0,0.5,sigmoid", Rendering(window=Window(0, 0.5, "SIGMOID"))),
            ("window=1e3,0.5,LINEAR_EXACT", Rendering(window=Window(1000, 0.5, "LINEAR_EXACT"))),
            ("quality=1&iccprofile=sRGB", Rendering(quality=1, icc_profile="srgb")),
            ("annotation=patient,technique", Rendering(annotations=("patient", "technique"))),
            ("accept=image/png&charset=utf-8", Rendering()),
        ):
            with self.subTest(query=query):
                found = parse_rendering(query)
                self.assertEqual(found, expected)
                self.assertEqual(found.warnings, ())

    def test_warnings(self) -> None:
        found = parse_rendering("annotation=patient,x&rotate=90")
        self.assertEqual(found.annotations, ("patient",))
        self.assertEqual([text.split()[0] for text in found.warnings], ["rotate", "annotation=x"])

    def test_invalid_values(self) -> None:
        for query in (
            *("viewport=", "viewport=1", "viewport=0,1", "viewport=1,x", "viewport=9000,1", "viewport=1.5,1"),
            *(
                "viewport=1,1,-1",
                "viewport=1,1,0,0,0,1",
                "viewport=1,1,1,1,1,1,1",
                "viewport=nan,1",
                "viewport=1e300,1",
            ),
            *("window=", "window=1", "window=1,0,linear", "window=1,0.5", "window=1,0,sigmoid", "window=1,1,cubic"),
            *("window=inf,1", "window=1,1e999", "window=_1,1", "window=1,2,linear,3"),
            *("quality=0", "quality=101", "quality=x", "quality=1.5", "quality=", "iccprofile=x"),
        ):
            with self.subTest(query=query), self.assertRaises(ParameterError):
                parse_rendering(query)

    def test_thumbnails(self) -> None:
        self.assertEqual(parse_rendering("viewport=64,64", thumbnail=True).viewport, Viewport(64, 64))
        with self.assertRaises(ParameterError):
            parse_rendering("viewport=64,64,0,0,10,10", thumbnail=True)

    @given(st.sampled_from(["viewport", "window", "quality"]), st.text(alphabet="0123456789,.-+eE naif_x", max_size=20))
    def test_any_value(self, name: str, value: str) -> None:
        try:
            parse_rendering([(name, value)])
        except ParameterError:
            pass


class Frames(unittest.TestCase):
    def test_lists(self) -> None:
        self.assertEqual(parse_frames("1"), (1,))
        self.assertEqual(parse_frames("3,1,2,1"), (3, 1, 2, 1))
        self.assertEqual(parse_frames("1%2C2"), (1, 2))
        for text in (
            "",
            "0",
            "-1",
            "x",
            "1,",
            "1;2",
            "1-3",
            "99999999999",
            "\u0661",
            ",".join(["1"] * (MAX_FRAMES + 1)),
        ):
            with self.subTest(text=text[:20]), self.assertRaises(ParameterError):
                parse_frames(text)


class URIService(unittest.TestCase):
    def test_parameters(self) -> None:
        request = parse_uri_request(
            WADO + "&contentType=image%2Fpng&rows=100&columns=200&windowCenter=40&windowWidth=400&frameNumber=3"
            "&imageQuality=90&region=0,0.5,1,1&annotation=patient&charset=UTF-8&anonymize=yes"
        )
        self.assertEqual((request.study, request.series, request.instance), ("1.2", "1.3", "1.4"))
        self.assertEqual(
            request.rendering,
            Rendering(
                viewport=Viewport(200, 100),
                window=Window(40, 400),
                quality=90,
                region=(0, 0.5, 1, 1),
                annotations=("patient",),
                frame=3,
            ),
        )
        self.assertTrue(request.anonymize)
        offers = ("image/jpeg", "image/png", "application/dicom")
        found = request.accept.negotiate(Category.RENDERED, offers=offers)
        self.assertEqual(found, Representation("image/png", False))

    def test_names_in_any_case(self) -> None:
        request = parse_uri_request(
            "requesttype=wado&StudyUID=1.2&SERIESUID=1.3&objectuid=1.4&contenttype=application%2Fdicom"
        )
        self.assertEqual(request.instance, "1.4")
        self.assertEqual(request.rendering.warnings, ())

    def test_transfer_syntaxes(self) -> None:
        query = WADO + "&contentType=application/dicom&transferSyntax="
        for syntax in ("1.2.840.10008.1.2.4.90", "*", ""):
            self.assertEqual(parse_uri_request(query + syntax).transfer_syntax, syntax)

    def test_warnings(self) -> None:
        request = parse_uri_request(WADO + "&x=1&presentationUID=1.5")
        self.assertEqual([text.split()[0] for text in request.rendering.warnings], ["x", "presentationUID"])

    def test_invalid_values(self) -> None:
        for query in (
            "",
            WADO.replace("WADO", "X"),
            WADO.replace("1.3", ""),
            WADO.replace("1.4", "1.4%2F..%2F"),
            WADO.replace("1.4", "1" * 65),
            *(
                f"{WADO}&{one}"
                for one in (
                    *("rows=0", "columns=x", "rows=100000", "frameNumber=0", "frameNumber=-1", "imageQuality=0"),
                    *(
                        "windowCenter=1",
                        "windowWidth=1",
                        "windowCenter=1&windowWidth=0",
                        "windowCenter=x&windowWidth=1",
                    ),
                    *("region=0,0,1", "region=0,0,1,2", "region=1,0,0,1", "region=a,0,1,1"),
                    *("transferSyntax=x", "anonymize=maybe"),
                )
            ),
        ):
            with self.subTest(query=query), self.assertRaises(ParameterError):
                parse_uri_request(query)
