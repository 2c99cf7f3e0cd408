"""
The pictures docs/page-*.png: the pages of an archive with some made studies, on a laptop and on a telephone.

``make picture`` (``python -m tests.page_pictures``) writes them; a folder as its argument is written to instead.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

import dicomtwist.sync
from dicomtwist.sop_class import Verification
from tests import peers
from tests.browser.chromium import FLAGS

DOCS = Path(__file__).parent.parent / "docs"
ROOT: Final = "1.2.826.0.1.3680043.10.1.77"

#: The studies: patient, ID, date of birth, sex, date and time, description, accession number; of each series the modality, its
#: description and the number of its images.
STUDIES: Final = (
    (
        *("Lindqvist^Astrid", "10442", "19510823", "F", "20260911", "0812", "Chest", "A-2291"),
        (("CR", "PA", 1), ("CR", "LAT", 1)),
    ),
    (
        *("Okafor^Chidi", "10481", "19880214", "M", "20260911", "0835", "Knee left", "A-2294"),
        (("MR", "PD FS sag", 22), ("MR", "T1 cor", 18)),
    ),
    (
        *("Moreau^Élise^^Dr", "10310", "19791130", "F", "20260911", "0850", "Mammography screening", "A-2297"),
        (("MG", "R CC", 1), ("MG", "R MLO", 1), ("MG", "L CC", 1), ("MG", "L MLO", 1)),
    ),
    (
        *("Yamada^Hanako", "10502", "19800229", "F", "20260911", "0905", "Abdomen", "A-2301"),
        (("US", "Liver", 6),),
    ),
    (
        *("Doe^Jane", "10377", "19630504", "F", "20260911", "0921", "Head and neck", "A-2303"),
        (("CT", "Scout", 1), ("CT", "Head 3 mm", 48), ("CT", "Bone 1 mm", 30), ("SR", "Dose report", 1)),
    ),
)


def phantom(at: float, size: int, modality: str) -> np.ndarray:
    """Return an image that looks a little like a head: ellipses of different densities."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    image = np.full((size, size), -1000.0)
    narrow = np.sqrt(max(0.05, 1 - (2 * at - 1) ** 2 * 0.7))

    def ellipse(cx: float, cy: float, rx: float, ry: float, value: float) -> None:
        image[((x - cx) / (rx * narrow)) ** 2 + ((y - cy) / (ry * narrow)) ** 2 < 1] = value

    ellipse(0, 0, 0.72, 0.86, 60)
    ellipse(0, 0, 0.68, 0.82, 1100)
    ellipse(0, 0, 0.62, 0.76, 34)
    ellipse(-0.18, -0.08, 0.1, 0.3 * (0.5 + at / 2), 4)
    ellipse(0.18, -0.08, 0.1, 0.3 * (0.5 + at / 2), 4)
    ellipse(0.3, 0.3, 0.13 * at + 0.02, 0.11 * at + 0.02, 72)
    ellipse(0, 0.55, 0.16, 0.1, 42)
    random = np.random.default_rng(round(at * 1000))
    image += random.normal(0, 9 if modality == "CT" else 20, image.shape)
    rings = 14 * np.sin(18 * np.hypot(x + 0.1, y)) + 9 * np.sin(25 * x * y)
    return np.where(image > -500, image + rings, image)


def instances(folder: Path) -> Iterator[Path]:
    """Write the instances of :data:`STUDIES`, and yield their paths."""
    for study, (name, patient, birth, sex, date, at, words, accession, series) in enumerate(STUDIES, 1):
        for number, (modality, description, count) in enumerate(series, 1):
            for image in range(1, count + 1):
                one = Dataset()
                one.SpecificCharacterSet = "ISO_IR 192"
                one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = name, patient, birth, sex
                one.StudyDate = one.SeriesDate = date
                one.StudyTime, one.StudyDescription, one.AccessionNumber = at, words, accession
                one.ReferringPhysicianName, one.Modality, one.SeriesDescription = "House^Gregory", modality, description
                one.SeriesNumber, one.InstanceNumber = number, image
                one.StudyInstanceUID = f"{ROOT}.{study}"
                one.SeriesInstanceUID = f"{ROOT}.{study}.{number}"
                one.SOPInstanceUID = f"{ROOT}.{study}.{number}.{image}"
                one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.22" if modality == "SR" else "1.2.840.10008.5.1.4.1.1.2"
                if modality != "SR":
                    add_pixels(one, image / (count + 1), modality)
                one.file_meta = FileMetaDataset()
                one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
                path = folder / f"{one.SOPInstanceUID}.dcm"
                one.save_as(path, enforce_file_format=True)
                yield path


def add_pixels(one: Dataset, at: float, modality: str) -> None:
    """Add an image to *one*."""
    size = 256 if modality == "CT" else 160
    one.Rows = one.Columns = size
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated = one.BitsStored = 16
    one.HighBit, one.PixelRepresentation = 15, 1
    one.RescaleIntercept, one.RescaleSlope = 0, 1
    one.WindowCenter, one.WindowWidth = (40, 110) if modality == "CT" else (150, 900)
    one.KVP, one.SliceThickness, one.PixelSpacing = 120, 3, [0.9, 0.9]
    one.PixelData = phantom(at, size, modality).astype("<i2").tobytes()


def take(browser: Browser, url: str, port: int, folder: Path) -> None:
    """Take the pictures."""
    page = window(browser, 1280, 800)
    page.goto(url)
    save(page, folder / "page-studies.png")
    page.get_by_role("link", name="Doe, Jane").click()
    page.get_by_role("link", name="Head 3 mm").click()
    page.locator("#stage").focus()
    page.keyboard.press("End")
    page.get_by_alt_text("Image 48 of 48").wait_for()
    for _ in range(18):
        page.keyboard.press("ArrowUp")
    page.get_by_alt_text("Image 30 of 48").wait_for()
    save(page, folder / "page-series.png")
    with dicomtwist.sync.connect("127.0.0.1", port, ae_title="ARCHIVE", ae="CT_3", contexts=[Verification]) as assoc:
        assoc.echo()
        page.goto(f"{url}activity")
        page.locator("#open").wait_for()
        save(page, folder / "page-activity.png")
    dark = window(browser, 1280, 800, dark=True)
    dark.goto(f"{url}server")
    save(dark, folder / "page-server.png")
    small = window(browser, 400, 800, dark=True)
    small.goto(url)
    small.get_by_role("link", name="Doe, Jane").click()
    for image in small.locator(".thumb img").all():
        image.evaluate("async (one) => { await one.decode(); }")
    save(small, folder / "page-telephone.png")


def save(page: Page, path: Path) -> None:
    """Save a picture of *page* with at most 256 colours, which makes it a third as long."""
    with Image.open(BytesIO(page.screenshot())) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def window(browser: Browser, width: int, height: int, *, dark: bool = False) -> Page:
    return browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        locale="en-GB",
        http_credentials={"username": USER[0], "password": USER[1]},
    ).new_page()


def work(scripts: Path, port: int, files: list[Path]) -> None:
    """Store the files, and do something else that the pages show."""
    tool, peer = scripts / "dicomtwist", f"ARCHIVE@127.0.0.1:{port}"

    def run(*arguments: object) -> None:
        subprocess.run([tool, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    for number, title in enumerate(("CR_1", "MR_2", "MAMMO", "US_4", "CT_3"), 1):
        of_study = [path for path in files if path.name.startswith(f"{ROOT}.{number}.")]
        run("store", "--calling", title, peer, *of_study)
    run("echo", "--calling", "WORKSTATION", peer)
    run("find", "--calling", "WORKSTATION", "-k", "PatientName=Doe*", peer)
    run("find", "--calling", "GUEST", "-k", "PatientName", peer)


#: The name and the passcode of a user.
USER: Final = ("anna", "open sesame")

#: A rule keeps GUEST from searching.
CONFIGURATION: Final = """
[access]
users = "users"

[[access.rule]]
name = "modalities and workstations"
calling = ["CR_1", "MR_2", "MAMMO", "US_4", "CT_3", "WORKSTATION"]
allow = "all"

[[access.rule]]
name = "administrators"
user = "anna"
allow = "all"

[[access.rule]]
name = "others"
from = "127.0.0.1"
allow = "echo"
"""


def main(folder: Path) -> None:
    """Start an archive, fill it, and write the pictures into *folder*; takes some twenty seconds."""
    scripts = Path(sys.executable).parent
    port, http = peers.free_port(), peers.free_port()
    url = f"http://127.0.0.1:{http}/"
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "files").mkdir()
        files = list(instances(place / "files"))
        (place / "archive.toml").write_text(CONFIGURATION)
        subprocess.run(
            [scripts / "dicomtwist", "passwd", "--users", place / "users", USER[0]], input=USER[1].encode(), check=True
        )
        server = subprocess.Popen(
            [scripts / "twist", "dicom", "--ae-title", "ARCHIVE", "--storage", place / "archive",
             "--config", place / "archive.toml", "--port", f"tcp:{port}:interface=127.0.0.1",
             "--http", f"tcp:{http}:interface=127.0.0.1"],
            cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_for(f"{url}health/ready")
            work(scripts, port, files)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=peers.tool("chromium"), args=list(FLAGS))
                take(browser, url, port, folder)
                browser.close()
        finally:
            server.terminate()
            server.wait()


def wait_for(url: str) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS)
