"""The pages of a site in memory: what they show, to whom, and what hostile values do there."""

from __future__ import annotations

import builtins
import re
import sys
from html.parser import HTMLParser
from typing import Any, Final
from urllib.parse import quote

from twisted.internet.defer import succeed

from dicomtwist.access.policy import Policy
from dicomtwist.access.rules import DEFAULT_RULES, parse_rules
from dicomtwist.web.pages import images, studies
from dicomtwist.web.root import make_site
from tests.web.site import Response
from tests.web.wado.sample import WADOTestCase, image

HOSTILE: Final = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
#: The attributes of an element that a browser runs, or that CSP forbids.
RUN: Final = re.compile(r"on\w+|style|hx-on.*")

SERIES: Final = "/studies/1.2/series/1.2.1"
INSTANCE: Final = f"{SERIES}/instances/1.2.1.1"
PATHS: Final = (
    *("/", "/studies/1.2", SERIES, INSTANCE, "/activity", "/server"),
    *("/api/state", "/api/figures", "/api/associations", "/api/requests", "/api/refusals"),
)


class Parsed(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, attribute: str) -> list[str]:
        return [str(attrs[attribute]) for name, attrs in self.elements if name == tag and attribute in attrs]


def hrefs(page: Parsed, rel: str) -> list[str]:
    """Return the URLs of the links of a kind."""
    return [str(attrs["href"]) for tag, attrs in page.elements if tag == "a" and attrs.get("rel") == rel]


class PagesTestCase(WADOTestCase):
    policy = Policy(DEFAULT_RULES)

    def setUp(self) -> None:
        super().setUp()
        self.services.pixels = None
        self.site = make_site(self.services)

    async def get(
        self, path: str, *headers: tuple[str, str], address: str = "127.0.0.1", status: int = 200
    ) -> Response:
        response = await self.client(address).request("GET", path, [("Accept", "text/html"), *headers])
        self.assertEqual(response.status, status, response.body)
        return response

    async def page(self, path: str, **more: Any) -> Parsed:
        """Return a page, in which nothing is run but the files of the pages, and nothing leads elsewhere."""
        response = await self.get(path, **more)
        self.assertEqual(response.headers["content-type"], "text/html; charset=utf-8")
        self.assertEqual(response.headers["cache-control"], "no-store")
        policy = response.headers["content-security-policy"]
        self.assertIn("default-src 'none'; script-src 'self'; style-src 'self'", policy)
        self.assertNotIn("unsafe", policy)
        found = Parsed(response.body.decode())
        for tag, attrs in found.elements:
            self.assertEqual([name for name in attrs if RUN.fullmatch(name)], [], tag)
            if tag == "script":
                self.assertTrue(str(attrs["src"]).startswith("/static/"), attrs)
        for attribute in ("src", "href", "action", "hx-get"):
            for tag in {tag for tag, _ in found.elements}:
                for url in found.all(tag, attribute):
                    self.assertRegex(url, r"\A(/(?!/)|#)", f"{tag} {attribute}")
        return found


class Studies(PagesTestCase):
    async def test_from_the_search_to_an_element(self) -> None:
        for number in (2, 1):
            await self.store(
                image(number, PatientName="Doe^Jane", PatientID="P1", StudyDescription="Head", Modality="CT")
            )
        await self.store(image(7, study="1.3", series="1.3.1", PatientName="Other", NumberOfFrames=3))
        found = await self.page("/")
        self.assertIn("/studies/1.2", found.all("a", "href"))
        self.assertIn("1\N{EN DASH}2 of 2 studies", found.text)
        for query, count in (
            ("PatientName=doe", 1),
            ("PatientName=x", 0),
            ("ModalitiesInStudy=CT", 1),
            ("PatientID=P", 1),
        ):
            links = (await self.page(f"/?{query}&from=&StudyID=")).all("a", "href")
            self.assertEqual(len([one for one in links if one.startswith("/studies/")]), count, query)
        study = await self.page("/studies/1.2")
        self.assertIn("Doe, Jane", study.text)
        self.assertIn("/studies/1.2/series/1.2.1", study.all("a", "href"))
        self.services.pixels = object()  # type: ignore[assignment]
        series = await self.page("/studies/1.3/series/1.3.1")
        self.assertEqual(series.all("section", "data-slices"), ['[["1.3.1.7", 3]]'], "an instance with three frames")
        self.assertTrue(series.all("img", "src")[0].endswith("/instances/1.3.1.7/frames/2/rendered"))
        ordered = await self.page("/studies/1.2/series/1.2.1?at=2")
        self.assertEqual(ordered.all("section", "data-slices"), ['[["1.2.1.1", 1], ["1.2.1.2", 1]]'])
        self.assertTrue(ordered.all("img", "src")[0].endswith("/instances/1.2.1.2/frames/1/rendered"))
        by_uid = await self.page("/studies/1.2/series/1.2.1?instance=1.2.1.1")
        self.assertEqual(by_uid.all("section", "data-at"), ["1"])
        instance = await self.page("/studies/1.2/series/1.2.1/instances/1.2.1.1")
        self.assertIn("Patient's Name", instance.text)
        self.assertIn("Doe, Jane", instance.text)

    async def test_hostile_values(self) -> None:
        await self.store(
            image(
                1, PatientName=HOSTILE, PatientID=HOSTILE[:60], StudyDescription=HOSTILE[:60], SeriesDescription=HOSTILE[:60],
                AccessionNumber="<b>'\"", Modality="<i>", ReferringPhysicianName=HOSTILE, StudyID="<a href=x>",
            )
        )  # fmt: skip
        for path in (
            *("/", "/studies/1.2", "/studies/1.2/series/1.2.1", "/studies/1.2/series/1.2.1/instances/1.2.1.1"),
            *("/activity", "/server"),
        ):
            for has_pixels in (False, True):
                self.services.pixels = object() if has_pixels else None  # type: ignore[assignment]
                found = await self.page(path)
                self.assertEqual(len(found.all("img", "onerror")), 0, path)
                self.assertEqual({tag for tag, _ in found.elements} & {"i", "iframe", "object"}, set(), path)
        reflected = await self.page(f"/?PatientName={quote(HOSTILE)}&from={quote(HOSTILE)}&offset={quote(HOSTILE)}")
        self.assertIn(HOSTILE, reflected.all("input", "value"))

    async def test_pages_of_a_search(self) -> None:
        for number in range(52):
            await self.store(image(1, study=f"1.{number}", series=f"1.{number}.1", PatientName=f"N{number}"))
        first = await self.page("/?PatientName=N")
        self.assertIn("1\N{EN DASH}50 of 52 studies", first.text)
        self.assertEqual([one for one in first.all("a", "href") if "offset" in one], ["/?PatientName=N&offset=50"])
        second = await self.page("/?PatientName=N&offset=50")
        self.assertIn("51\N{EN DASH}52 of 52 studies", second.text)
        self.assertEqual(len([one for one in second.all("a", "href") if one.startswith("/studies/")]), 2)

    async def test_pages_of_a_study(self) -> None:
        """Each series has its place on a page."""
        self.patch(studies, "SERIES_PAGE", 2)
        for number in range(5):
            await self.store(image(1, series=f"1.2.{number}", SeriesNumber=9 - number))
        seen = []
        path, spans = "/studies/1.2", []
        while path:
            found = await self.page(path)
            seen += [one.rpartition(".")[2] for one in found.all("a", "href") if "/series/" in one]
            spans += [line.strip() for line in found.text.splitlines() if " series" in line]
            path = next(iter(hrefs(found, "next")), "")
        self.assertEqual("".join(seen), "10324", "each page in the order of the numbers")
        self.assertEqual(spans, [f"{one} of 5 series" for one in ("1\N{EN DASH}2", "3\N{EN DASH}4", "5\N{EN DASH}5")])
        self.assertEqual(hrefs(found, "prev"), ["/studies/1.2?offset=2"])

    async def test_pages_of_a_series(self) -> None:
        """Each instance has its place on a page, with images and without, and links stay on that page."""
        self.services.pixels = object()  # type: ignore[assignment]
        self.patch(images, "IMAGES_PAGE", 2)
        self.patch(images, "LIST_PAGE", 2)
        for number in (1, 2, 3):
            await self.store(image(number))
            await self.store(image(number, series="1.2.2", Modality="SR"))
        first = await self.page(SERIES)
        self.assertEqual(first.all("section", "data-slices"), ['[["1.2.1.1", 1], ["1.2.1.2", 1]]'])
        self.assertIn("instances 1\N{EN DASH}2 of 3", first.text)
        second = await self.page(hrefs(first, "next")[-1])
        self.assertEqual(second.all("section", "data-slices"), ['[["1.2.1.3", 1]]'])
        self.assertEqual(second.all("section", "data-offset"), ["2"])
        self.assertIn(f"{SERIES}?offset=2&at=1", hrefs(second, "next"))
        self.assertIn(SERIES, hrefs(second, "prev"))
        element = f"{SERIES}/instances/1.2.1.3?offset=2"
        self.assertIn(element, second.all("a", "href"))
        self.assertIn(f"{SERIES}?offset=2&instance=1.2.1.3", (await self.page(element)).all("a", "href"))
        listed = await self.page("/studies/1.2/series/1.2.2?offset=2")
        self.assertIn("Instance 3", listed.text)
        self.assertIn("/studies/1.2/series/1.2.2/instances/1.2.2.3?offset=2", listed.all("a", "href"))

    async def test_behind_the_last_page(self) -> None:
        await self.store(image(1))
        for path, words in (
            ("/?offset=50", "There are fewer than 51 studies."),
            ("/?PatientName=Y&offset=1050", "There are fewer than 1,051 studies that match."),
            ("/studies/1.2?offset=500", "There are fewer than 501 series."),
            (f"{SERIES}?offset=10000", "There are fewer than 10,001 instances."),
        ):
            found = await self.page(path)
            self.assertIn(words, found.text)
            self.assertNotIn("yet", found.text)
            (first,) = hrefs(found, "first")
            self.assertEqual(first, path.replace("&offset=1050", "").partition("?offset")[0])
            self.assertNotIn("fewer", (await self.page(first)).text)

    async def test_wrong_values(self) -> None:
        for query in ("from=yesterday", "StudyInstanceUID=x", "PatientBirthDate=*a"):
            found = await self.page(f"/?{query}")
            self.assertEqual(len(found.all("form", "role")), 1)
        await self.page("/studies/1.9", status=404)
        await self.page("/studies/1.9/series/1.9.1", status=404)
        await self.page("/studies/1.9/series/1.9.1/instances/1.9.1.1", status=404)
        await self.page("/studies/x", status=400)
        await self.page("/nothing", status=404)

    async def test_a_fragment(self) -> None:
        """A script of the page asks for a part of it."""
        response = await self.get("/", ("HX-Request", "true"))
        self.assertNotIn(b"<html", response.body)
        self.assertIn(b'id="results"', response.body)


class Access(PagesTestCase):
    async def test_strangers(self) -> None:
        for path in ("/", "/studies/1.2", "/activity", "/server", "/studies/1.2/series/1.2.1"):
            found = await self.page(path, address="10.0.0.1", status=403)
            self.assertEqual(found.all("nav", "aria-label"), ["Main"])
            self.assertNotIn("/activity", found.all("a", "href"))
        for path in ("/api/state", "/api/associations", "/api/refusals"):
            response = await self.client("10.0.0.1").request("GET", path)
            self.assertEqual((response.status, response.json["status"]), (403, 403))
        await self.get("/static/page.css", address="10.0.0.1")

    async def test_the_rules(self) -> None:
        rules = ({"from": "10.0.0.1", "allow": "find"}, {"from": "10.0.0.2", "allow": ["find", "get"]},
                 {"from": "10.0.0.3", "allow": "admin"})  # fmt: skip
        assert self.server.access is not None
        self.server.access.policy = Policy(parse_rules([*rules]))
        await self.store(image(1))
        for address, seen in (
            ("10.0.0.1", {"/", "/studies/1.2"}),
            ("10.0.0.2", {"/", "/studies/1.2", SERIES, INSTANCE}),
            ("10.0.0.4", set()),
            ("10.0.0.3", set(PATHS[4:])),
        ):
            for path in PATHS:
                await self.get(path, address=address, status=200 if path in seen else 403)
        refusals = (await self.get("/api/refusals", address="10.0.0.3")).json
        words = " ".join(one["words"] for one in refusals if one["address"] == "10.0.0.4")
        self.assertIn("no rule allows admin", words)

    async def test_caches(self) -> None:
        """No cache for several people keeps data of patients, and that of a browser asks before it shows them again."""
        await self.store(image(1))
        web = ("/studies", "/studies/1.2", "/studies/1.2/series", "/instances", "/studies/1.2/metadata", "/studies/9")
        for path in (*PATHS, "/api/archive", "/api/archive/studies", *(f"/dicom-web{one}" for one in web)):
            response = await self.client().request("GET", path, [])
            wanted = "private, no-cache" if path.startswith("/dicom-web") else "no-store"
            self.assertEqual(response.headers["cache-control"], wanted, path)

    async def test_other_sites(self) -> None:
        """A host name of somebody else leads to this machine: the page gets no rights of a program here."""
        for path in ("/", "/activity", "/api/state"):
            await self.get(path, ("Host", "evil.example:8042"), status=403)

    async def test_other_origins(self) -> None:
        self.services.origins = frozenset(("*", "https://viewer.example"))
        for path in ("/", "/api/state"):
            response = await self.get(path, ("Origin", "https://viewer.example"))
            self.assertNotIn("access-control-allow-origin", response.headers)
            self.assertEqual(response.headers["cross-origin-resource-policy"], "same-origin")
        for fields, status in (
            ([("Sec-Fetch-Site", "cross-site")], 403),
            ([("Sec-Fetch-Site", "same-site"), ("Origin", "http://127.0.0.1:8042")], 403),
            ([("Origin", "https://viewer.example")], 403),
            ([("Origin", "null")], 403),
            ([("Sec-Fetch-Site", "same-origin"), ("Origin", "https://pacs.example")], 405),
            ([("Origin", "http://127.0.0.1:8042")], 405),
            ([], 405),
        ):
            response = await self.client().request("POST", "/api/state", fields, b"")
            self.assertEqual(response.status, status, fields)

    async def test_without_the_extra(self) -> None:
        real = builtins.__import__

        def without(name: str, *arguments: Any) -> Any:
            if name.partition(".")[0] == "jinja2":
                raise ModuleNotFoundError("No module named 'jinja2'", name="jinja2")
            return real(name, *arguments)

        loaded = sys.modules.pop("dicomtwist.web.pages.rendering", None)
        if loaded is not None:
            self.addCleanup(sys.modules.__setitem__, loaded.__name__, loaded)
        self.patch(builtins, "__import__", without)
        response = await self.get("/", status=501)
        self.assertEqual(response.headers["content-type"], "text/plain; charset=utf-8")
        self.assertEqual(response.body, b'the pages need Jinja2: pip install "dicomtwist[page]"\n')
        await self.get("/api/state")


class Server(PagesTestCase):
    async def test_files(self) -> None:
        found = await self.page("/")
        paths = [one for tag, attribute in (("script", "src"), ("link", "href")) for one in found.all(tag, attribute)]
        self.assertEqual(len(paths), 4)
        for path in paths:
            response = await self.get(path)
            self.assertIn("immutable", response.headers["cache-control"])
            again = await self.get(path, ("If-None-Match", response.headers["etag"]), status=304)
            self.assertEqual(again.body, b"")
            await self.get(path, ("Accept-Encoding", "gzip"))
            self.assertEqual((await self.get(path.partition("?")[0])).headers["cache-control"], "no-cache")
        self.assertIn(b"Zero-Clause BSD", (await self.get("/static/htmx.LICENSE")).body)
        for name in ("nothing", "..%2Fwords.py", "../words.py", "base.html"):
            await self.get(f"/static/{name}", status=404)

    async def test_all_processes(self) -> None:
        """The process that is asked asks the others, and is not stopped by one that does not answer."""
        overview, monitor = self.services.overview, self.services.monitor
        assert overview is not None and monitor is not None
        other = {
            "open": [], "requests": [], "associations": [],
            "refusals": [{"protocol": "dimse", "what": "association", "peer": "EVIL", "address": "10.9.9.9", "request": "",
                          "words": "<b>no", "at": "2030-01-01T00:00:00+00:00", "count": 7}],
        }  # fmt: skip
        samples = overview.history.snapshot()
        answers = {"recent": other, "history": samples, "metrics": {"dicomtwist_process_up": [[1]]}}
        monitor.ask_others = lambda what: succeed({"worker-2": answers[what], "worker-3": None})
        found = await self.page("/activity?show=refusals")
        self.assertIn("EVIL", found.text)
        self.assertIn("10.9.9.9", found.text)
        state = (await self.get("/api/state")).json
        self.assertEqual([(one["name"], one["answers"]) for one in state["processes"]],
                         [("main", True), ("worker-2", True), ("worker-3", False)])  # fmt: skip
        self.assertIn("does not answer", (await self.page("/server")).text)
        self.assertEqual(state["index"]["instances"], 0)

    async def test_requests(self) -> None:
        await self.client().request("GET", "/dicom-web/studies?PatientName=Secret")
        await self.get("/api/state")
        requests = (await self.get("/api/requests")).json
        self.assertEqual(
            [(one["method"], one["path"], one["status"]) for one in requests], [("GET", "/dicom-web/studies", 200)]
        )
        found = await self.page("/activity")
        self.assertIn("/dicom-web/studies", found.text)
        self.assertNotIn("Secret", found.text)
