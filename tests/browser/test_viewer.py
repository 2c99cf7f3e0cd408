"""
OHIF in Chromium, served by ``twist dicom --viewer``: it lists the studies of the archive, and draws their images.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from playwright.sync_api import Route
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from dicomtwist import AE
from dicomtwist.access.users import hash_passcode
from tests import peers
from tests.browser.chromium import Chromium, Drawn, Window, browse
from tests.interop.archives import fill, header
from tests.interop.twist import TwistTestCase
from tests.peers import DicomFile, dicom_files

#: The unpacked package, which ``make peers`` puts there.
DIST: Final = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    / "dicomtwist"
    / "ohif-app-3.12.10"
    / "package"
    / "dist"
)

#: The images: a CT image, a JPEG 2000 one, a colour one, and one in colour with 30 frames in JPEG.
CT: Final = "CT_small.dcm"
JPEG_2000: Final = "MR_small_jp2klossless.dcm"
COLOUR: Final = "examples_rgb_color.dcm"
FRAMES: Final = "examples_ybr_color.dcm"

#: A bundle of OHIF 3.12.10 that needs ``document.currentScript``, and else ``__filename``, which no browser has; and the files
#: that are loaded together with it. It runs when the last of all has arrived, which may be a style sheet.
BUNDLE: Final = "/7431.bundle."
SHEETS: Final = re.compile(r"/\d+\.css$")

#: A document of one empty page.
PDF: Final = b"""%PDF-1.4
1 0 obj <</Type /Catalog /Pages 2 0 R>> endobj
2 0 obj <</Type /Pages /Kids [3 0 R] /Count 1>> endobj
3 0 obj <</Type /Page /Parent 2 0 R /MediaBox [0 0 200 200]>> endobj
trailer <</Root 1 0 R /Size 4>>
%%EOF
"""

VIEWPORT: Final = "canvas.cornerstone-canvas"


def study(name: str) -> str:
    """Return the Study Instance UID of one of the files."""
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    return str(dcmread(path, stop_before_pixels=True).StudyInstanceUID)


def files() -> list[DicomFile]:
    return [file for file in dicom_files() if Path(file.path).name in (CT, JPEG_2000, COLOUR, FRAMES)]


def problems(window: Window) -> list[str]:
    """Return what went wrong, without the complaints of OHIF about its own tour of the page, which begins too early."""
    return [one for one in window.problems if "supplied to advanceOn" not in one and "Shepherd step" not in one]


class Viewer(TwistTestCase):
    async def started(self, *options: object) -> None:
        """Start an archive with the images, and with the viewer."""
        if not (DIST / "index.html").is_file():
            raise peers.missing_error(f"not there: {DIST} (make peers)")
        peers.require("chromium")
        port = peers.free_port()
        self.viewer = f"http://127.0.0.1:{port}"
        options = ("--viewer-http", f"tcp:{port}:interface=127.0.0.1", "--http-origin", self.viewer, *options)
        await self.twist("--viewer", DIST, *options)
        await fill(self.port, "TWIST", files())

    def opened(self, window: Window, name: str) -> Drawn:
        """Open the study of a file by its URL, and return what is drawn."""
        window.page.goto(f"{self.viewer}/viewer?StudyInstanceUIDs={study(name)}")
        return window.drawn(VIEWPORT)

    async def test_images(self) -> None:
        """The list of studies, a search in it, a study that is opened from it, and images of all kinds."""
        await self.started()

        def use(chromium: Chromium) -> None:
            window = chromium.window()
            page = window.page
            page.goto(self.viewer)
            rows = page.locator("[data-cy^=studyRow]")
            rows.nth(3).wait_for()
            self.assertTrue(page.evaluate("crossOriginIsolated"), "the page has threads with common memory")
            page.locator("[data-cy=input-mrn]").fill("1CT1")
            rows.nth(1).wait_for(state="detached")
            rows.first.click()
            page.locator("[data-cy^=mode-viewer]").click()
            page.wait_for_url(f"**/viewer?*{study(CT)}*")
            self.assertGreater(window.drawn(VIEWPORT).greys, 30)
            self.assertGreater(self.opened(window, JPEG_2000).greys, 30)
            self.assertGreater(self.opened(window, COLOUR).colour, 60)
            self.assertGreater(self.opened(window, FRAMES).greys, 30)
            page.wait_for_function(
                "() => performance.getEntriesByType('resource').some((one) => one.name.endsWith('/frames/30'))"
            )
            self.assertEqual(problems(window), [])

        await browse(use)

    async def test_documents(self) -> None:
        """A document has a frame of its own in the page, which the browser loads from the archive."""
        await self.started()
        dataset = header(files()[0])
        dataset.SOPClassUID = EncapsulatedPDFStorage
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = "1.2.3", "1.2.3.1", "1.2.3.1.1"
        dataset.Modality, dataset.SeriesDescription = "DOC", "Letter"
        dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
        # Longer than what metadata have in themselves.
        dataset.EncapsulatedDocument = PDF + b"%" + b" " * 2001
        ae = AE("SCU")
        ae.add_requested_context(EncapsulatedPDFStorage, str(ExplicitVRLittleEndian))
        async with await ae.associate("127.0.0.1", self.port) as assoc:
            self.assertTrue((await assoc.send_c_store(dataset)).is_success)

        def use(chromium: Chromium) -> None:
            window = chromium.window()
            page = window.page
            # Chromium shows a document in a page of its own extension, in a frame.
            with page.expect_response(lambda response: response.url.startswith("chrome-extension:")):
                page.goto(f"{self.viewer}/viewer?StudyInstanceUIDs=1.2.3")
            (url, *_) = window.urls("/rendered")
            self.assertTrue(url.endswith("/instances/1.2.3.1.1/rendered"))
            (response, *_) = [one for one in window.responses if one.url == url]
            self.assertEqual((response.status, response.headers["content-type"]), (200, "application/pdf"))
            shown = page.locator("object[type='application/pdf']")
            shown.wait_for(state="attached")
            self.assertEqual(shown.get_attribute("data"), url)
            self.assertEqual(problems(window), [])

        await browse(use)

    async def test_late_style_sheets(self) -> None:
        """OHIF starts whichever of its files arrives last."""
        await self.started()

        def use(chromium: Chromium) -> None:
            window = chromium.window()
            page = window.page
            held: list[Route] = []
            is_held = True

            def arrives(route: Route) -> None:
                if is_held:
                    held.append(route)
                else:
                    route.continue_()

            page.route(SHEETS, arrives)
            page.goto(f"{self.viewer}/viewer?StudyInstanceUIDs={study(CT)}", wait_until="commit")

            def waits_for_sheets(_: object) -> bool:
                return bool(window.urls(BUNDLE)) and all(map(SHEETS.search, window.pending))

            page.wait_for_event("requestfinished", waits_for_sheets)
            is_held = False
            self.assertTrue(held)
            for route in held:
                route.continue_()
            self.assertGreater(window.drawn(VIEWPORT).greys, 30)
            self.assertEqual(problems(window), [])

        await browse(use)

    async def test_other_origin(self) -> None:
        """DICOMweb has another origin than the page, which it allows."""
        http = peers.free_port()
        await self.started(
            *("--http", f"tcp:{http}:interface=127.0.0.1", "--http-url", f"http://127.0.0.1:{http}/dicom-web")
        )

        def use(chromium: Chromium) -> None:
            window = chromium.window()
            self.assertGreater(self.opened(window, CT).greys, 30)
            asked = window.urls("/dicom-web/")
            self.assertTrue(asked)
            self.assertEqual([url for url in asked if not url.startswith(f"http://127.0.0.1:{http}/")], [])
            self.assertEqual(problems(window), [])

        await browse(use)

    async def test_users(self) -> None:
        """By TLS, the browser asks for a name and a passcode, with which rules allow what they do not allow to others."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        (folder / "users").write_text(f"{hash_passcode('alice', b'secret', n=16)}\n")
        (folder / "archive.toml").write_text(
            f"""
            [access]
            users = "{folder}/users"
            [[access.rule]]
            allow = ["store"]
            [[access.rule]]
            user = "alice"
            allow = ["find", "get"]
            """
        )
        port, pems = peers.free_port(), peers.certificates()
        tls = f"dicomtls:{port}:interface=127.0.0.1:privateKey={pems.server_key}:certKey={pems.server_cert}"
        await self.started("--config", folder / "archive.toml", "--viewer-http", f"{tls}:clientCertificate=none")
        self.viewer = f"https://127.0.0.1:{port}"

        def use(chromium: Chromium) -> None:
            window = chromium.window(user=("alice", "secret"))
            self.assertGreater(self.opened(window, CT).greys, 30)
            self.assertEqual(problems(window), [])

        await browse(use)
