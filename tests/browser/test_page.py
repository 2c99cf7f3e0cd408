"""
The pages of ``twist dicom --http`` in Chromium: studies, images, what the server does; by mouse, by keyboard, on a telephone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, cast

from playwright.sync_api import Page, expect
from pydicom import dcmread
from pydicom.uid import generate_uid
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread

from dicomtwist import AE
from tests import peers
from tests.browser.chromium import TIMEOUT, Chromium, Window, browse
from tests.interop.archives import fill
from tests.interop.twist import TwistTestCase
from tests.peers import DicomFile, dicom_files

reactor = cast(Any, _reactor)

CT, FRAMES, REPORT = "CT_small.dcm", "examples_ybr_color.dcm", "test-SR.dcm"
#: A name that does something if a page does not escape it. An equals sign would divide the name.
HOSTILE = "<script>alert(1)</script>^<svg/onload>"

#: Returns the sum of the values of an image, as it is drawn.
_SUM = """
(image) => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 32;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, 32, 32);
  return context.getImageData(0, 0, 32, 32).data.reduce((sum, one) => sum + one, 0);
}
"""
_WIDTHS = "(images) => Promise.all(images.map(async (one) => { await one.decode(); return one.naturalWidth; }))"


#: The width of the smallest screens in pixels, at which a page has to be usable (WCAG 2.2, 1.4.10).
NARROW: Final = 320


def files(folder: Path) -> list[DicomFile]:
    """Return a few files of pydicom, and a series of five images of a patient with a hostile name, written into *folder*."""
    found = [file for file in dicom_files() if Path(file.path).name in (CT, FRAMES, REPORT)]
    template = next(file for file in found if file.path.endswith(CT))
    study, series = generate_uid(), generate_uid()
    for number in range(1, 6):
        one = dcmread(template.path)
        one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID = study, series, generate_uid()
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.PatientName, one.PatientID, one.InstanceNumber = HOSTILE, "H1", 6 - number
        one.StudyDescription = one.SeriesDescription = "<img src=x onerror=alert(2)> five"
        one.AccessionNumber, one.ReferringPhysicianName, one.BodyPartExamined = "A" * 300, "R" * 300, "B" * 300
        one.PixelData = bytes((number * 3 + at // 256) % 8 if at % 2 else 0 for at in range(len(one.PixelData)))
        path = folder / f"{number}.dcm"
        one.save_as(path, enforce_file_format=True)
        uids = (one.SOPClassUID, one.SOPInstanceUID, one.StudyInstanceUID, one.SeriesInstanceUID)
        found.append(DicomFile(str(path), str(one.file_meta.TransferSyntaxUID), *map(str, uids)))
    return found


class Pages(TwistTestCase):
    async def test_pages(self) -> None:
        peers.require("chromium")
        http = peers.free_port()
        self.url = f"http://127.0.0.1:{http}/"
        await self.twist("--http", f"tcp:{http}:interface=127.0.0.1")
        folder = Path(self.mktemp())
        folder.mkdir()
        await fill(self.port, "TWIST", files(folder))

        def use(chromium: Chromium) -> None:
            expect.set_options(timeout=TIMEOUT * 1000)
            for look in (self.search_and_open, self.by_keyboard, self.live, self.telephone):
                window = chromium.window(width=NARROW if look == self.telephone else 1280)
                window.page.on("dialog", lambda dialog: self.fail(f"a dialog: {dialog.message}"))
                look(window)
                self.assertEqual(window.problems, [], look.__name__)

        await browse(use)

    def search_and_open(self, window: Window) -> None:
        """A search while one types, a study, its thumbnails, its images by wheel and by dragging, the elements."""
        page = window.page
        page.goto(self.url)
        results = page.locator("#results")
        expect(results.get_by_role("link")).to_have_count(4)
        page.get_by_label("Patient name").fill("comp ct1")
        expect(results.get_by_role("link")).to_have_count(1)
        expect(page).to_have_url(re.compile(r"\?PatientName=comp(\+|%20)ct1$"))
        page.reload()
        expect(results.get_by_role("link")).to_have_count(1)
        page.get_by_role("link", name="Clear").click()
        page.get_by_label("Patient ID").fill("H1")
        results.get_by_role("link", name="<script>").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("<script>alert(1)</script>")
        self.assertTrue(all(page.locator(".thumb img").evaluate_all(_WIDTHS)))
        page.locator(".card").click()
        stage = page.locator("#stage")
        self.assertGreater(self.shown(page, "Image 3 of 5").evaluate("(one) => one.naturalWidth"), 100)
        stage.hover()
        page.mouse.wheel(0, 60)
        before = self.shown(page, "Image 4 of 5").evaluate(_SUM)
        box = stage.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down(button="right")
        page.mouse.move(x + 40, y + 90, steps=4)
        page.mouse.up(button="right")
        expect(page.locator("#shown-window")).to_have_text(re.compile("C .* W .*"))
        expect(page.locator("#image")).to_have_attribute("src", re.compile("window="))
        self.assertNotEqual(self.shown(page, "Image 4 of 5").evaluate(_SUM), before)
        page.get_by_role("button", name="Reset").click()
        expect(page.locator("#shown-window")).to_have_text("")
        page.get_by_role("link", name="Elements").click()
        page.get_by_label("Filter").fill("instance number")
        rows = page.locator("#tags tbody tr:visible")
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text("0020,0013")

    def shown(self, page: Page, text: str) -> Any:
        """Return an image when it is shown."""
        image = page.get_by_alt_text(text, exact=True)
        expect(image).to_be_visible()
        return image

    def by_keyboard(self, window: Window) -> None:
        """From the first key to an image of a series without a mouse."""
        page = window.page
        page.goto(self.url)
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        for _ in range(40):
            page.keyboard.press("Tab")
            name = page.evaluate("() => document.activeElement.textContent")
            if page.evaluate("() => document.activeElement.closest('#results') !== null") and "script" in name:
                break
        page.keyboard.press("Enter")
        page.locator(".card").focus()
        page.keyboard.press("Enter")
        self.shown(page, "Image 3 of 5")
        page.locator("#stage").focus()
        for key, text in (("ArrowDown", "4"), ("End", "5"), ("ArrowUp", "4"), ("Home", "1"), ("PageDown", "5")):
            page.keyboard.press(key)
            self.shown(page, f"Image {text} of 5")
        page.keyboard.press("Shift+ArrowUp")
        expect(page.locator("#image")).to_have_attribute("src", re.compile("window="))
        page.keyboard.press("r")
        expect(page.locator("#image")).not_to_have_attribute("src", re.compile("window="))
        unnamed = page.evaluate(
            "() => [...document.querySelectorAll('a, button, input, img')].filter((one) =>"
            " !(one.labels && one.labels.length) && !one.ariaLabel && !one.textContent.trim() && !one.alt).length"
        )
        self.assertEqual(unnamed, 0, "each control has a name")

    def live(self, window: Window) -> None:
        """An association appears while it is open, and then among those that have ended; the state has charts."""
        page = window.page
        page.goto(f"{self.url}activity")
        expect(page.get_by_text("No association is open.")).to_be_visible()
        ae = AE("PEER_X")
        ae.add_requested_context("1.2.840.10008.1.1")
        association: Any = blockingCallFromThread(
            reactor,
            lambda: Deferred.fromCoroutine(as_coroutine(ae.associate("127.0.0.1", self.port, ae_title="TWIST"))),
        )
        expect(page.locator("#open")).to_contain_text("PEER_X")
        blockingCallFromThread(reactor, lambda: Deferred.fromCoroutine(as_coroutine(association.send_c_echo())))
        expect(page.locator("#open")).to_contain_text("C-ECHO")
        blockingCallFromThread(reactor, lambda: Deferred.fromCoroutine(as_coroutine(association.release())))
        ended = page.locator("#ended tr", has_text="PEER_X")
        expect(ended).to_contain_text("released")
        page.get_by_role("button", name="Pause").click()
        expect(page.get_by_role("button", name="Paused")).to_have_attribute("aria-pressed", "true")
        page.get_by_role("link", name="Server").click()
        expect(page.get_by_text("Ready.")).to_be_visible()
        expect(page.locator("figure svg path.line")).to_have_count(8)
        expect(page.get_by_role("row", name="main")).to_contain_text("ready")

    def telephone(self, window: Window) -> None:
        """On a narrow screen nothing has to be moved sideways, and a finger goes through the images."""
        page = window.page
        page.goto(self.url)
        for path in ("", "activity", "server"):
            page.goto(f"{self.url}{path}")
            self.assertEqual(page.evaluate("() => document.documentElement.scrollWidth"), NARROW, path)
        page.goto(self.url)
        page.get_by_role("link", name="<script>").click()
        self.assertEqual(page.evaluate("() => document.documentElement.scrollWidth"), NARROW)
        page.locator(".card").click()
        self.shown(page, "Image 3 of 5")
        self.assertEqual(page.evaluate("() => document.documentElement.scrollWidth"), NARROW)
        page.locator("#stage").scroll_into_view_if_needed()
        box = page.locator("#stage").bounding_box()
        assert box is not None
        at = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.move(*at)
        page.mouse.down()
        page.mouse.move(at[0], at[1] + 24, steps=4)
        page.mouse.up()
        self.shown(page, "Image 4 of 5")
        page.get_by_label("Next image").click()
        self.shown(page, "Image 5 of 5")
        page.get_by_role("link", name="Elements").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("CT Image Storage")
        self.assertEqual(page.evaluate("() => document.documentElement.scrollWidth"), NARROW)


async def as_coroutine(awaitable: Any) -> Any:
    return await awaitable
