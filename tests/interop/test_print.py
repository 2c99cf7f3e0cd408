"""
Print Management (PS3.4 Annex H) with DCMTK: its printer dcmprscp, its client dcmprscu.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread

from dicomtwist import build_context, evt
from dicomtwist.sop_class import (
    BasicFilmBox,
    BasicFilmSession,
    BasicGrayscaleImageBox,
    BasicGrayscalePrintManagementMeta,
    PresentationLUT,
    Printer,
    PrinterInstance,
)
from tests.interop.common import InteropTestCase
from tests.peers import Process, dcmtk, free_port, run, start

META = BasicGrayscalePrintManagementMeta
ROWS = COLUMNS = 64
PIXELS = bytes(range(64)) * 64

# DCMTK accepts no relative paths here.
GENERAL = r"""
[[GENERAL]]
[APPLICATION]
LogDirectory = {folder}
LogLevel = WARN
[PRINT]
Spooler = dcmprscu
Server = dcmprscp
Directory = {folder}
Sleep = 1
MinPrintResolution = 1024\1024
MaxPrintResolution = 8192\8192
[DATABASE]
Directory = {folder}
[NETWORK]
Aetitle = DCMPSTATE
[[COMMUNICATION]]
"""

# dcmprscp is a printer of the type LOCALPRINTER in DCMTK's configuration; other printers have the type PRINTER.
PRINTER_SECTION = r"""
[{title}]
Aetitle = {title}
Description = {title}
Hostname = localhost
Port = {port}
Type = {type}
DisableNewVRs = false
DisplayFormat=1,1\1,2\2,2
FilmDestination = MAGAZINE\PROCESSOR
FilmSizeID = 8INX10IN\14INX17IN
ImplicitOnly = {implicit}
MagnificationType = REPLICATE\BILINEAR\CUBIC\NONE
MaxPDU = 32768
MediumType = PAPER\CLEAR FILM\BLUE FILM
ResolutionID = STANDARD\HIGH
Supports12Bit = true
SupportsPresentationLUT = true
PresentationLUTMatchRequired = false
"""


def attributes(**values: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def reference(sop_class: str, uid: str | None) -> Dataset:
    return attributes(ReferencedSOPClassUID=sop_class, ReferencedSOPInstanceUID=uid)


def image() -> Dataset:
    """An item of the Basic Grayscale Image Sequence."""
    dataset = attributes(
        SamplesPerPixel=1,
        PhotometricInterpretation="MONOCHROME2",
        Rows=ROWS,
        Columns=COLUMNS,
        PixelAspectRatio=[1, 1],
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelRepresentation=0,
    )
    dataset.PixelData = PIXELS
    return dataset


class PrintTestCase(InteropTestCase):
    """
    :ivar folder: the working folder of DCMTK.
    """

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir(parents=True)

    def config(self, **printers: tuple[int, str, bool]) -> Path:
        """
        Write a configuration file.

        :param printers: by their titles: port, type, and whether they accept only Implicit VR Little Endian.
        """
        path = self.folder / "dcmpstat.cfg"
        path.write_text(
            GENERAL.format(folder=self.folder)
            + "".join(
                PRINTER_SECTION.format(title=title, port=port, type=kind, implicit=str(implicit).lower())
                for title, (port, kind, implicit) in printers.items()
            )
        )
        return path

    async def printer(self, implicit: bool = False) -> tuple[Process, int]:
        """Start dcmprscp."""
        port = free_port()
        config = self.config(PRINTER=(port, "LOCALPRINTER", implicit))
        process = await start(self, dcmtk("dcmprscp"), "-v", "-c", config, "-p", "PRINTER", ready=port)
        return process, port

    async def print_to(self, port: int) -> Dataset:
        """Print one film at a printer; return its attributes."""
        scu = self.requestor(META, PresentationLUT)
        async with await scu.associate("127.0.0.1", port, ae_title="PRINTER") as assoc:
            status, about = await assoc.send_n_get(["PrinterStatus"], Printer, PrinterInstance)
            self.assertEqual((status, status.service), (0, "N-GET"))
            assert about is not None

            # The printer assigns the UIDs of the instances.
            wish = attributes(NumberOfCopies=1, PrintPriority="LOW", MediumType="PAPER", FilmDestination="PROCESSOR")
            status, made = await assoc.send_n_create(wish, BasicFilmSession)
            self.assertEqual(status, 0)
            session = status.affected_sop_instance_uid
            assert made is not None and session is not None
            self.assertEqual(made.MediumType, "PAPER")

            wish = attributes(
                ImageDisplayFormat="STANDARD\\1,1",
                FilmOrientation="PORTRAIT",
                FilmSizeID="8INX10IN",
                ReferencedFilmSessionSequence=[reference(BasicFilmSession, session)],
            )
            status, made = await assoc.send_n_create(wish, BasicFilmBox, meta_uid=META)
            self.assertEqual(status, 0)
            film = status.affected_sop_instance_uid
            assert made is not None and film is not None
            (box,) = made.ReferencedImageBoxSequence
            self.assertEqual(box.ReferencedSOPClassUID, BasicGrayscaleImageBox)

            wish = attributes(ImageBoxPosition=1, BasicGrayscaleImageSequence=[image()])
            status, _ = await assoc.send_n_set(wish, BasicGrayscaleImageBox, box.ReferencedSOPInstanceUID)
            self.assertEqual(status, 0)
            status, _ = await assoc.send_n_action(None, 1, BasicFilmBox, film)
            self.assertEqual(status, 0)
            self.assertEqual(await assoc.send_n_delete(BasicFilmBox, film), 0)
            self.assertEqual(await assoc.send_n_delete(BasicFilmSession, session), 0)

            gone = await assoc.send_n_delete(BasicFilmSession, session)
            self.assertEqual((gone, gone.meaning), (0x0112, "No such SOP Instance"))
        return about


class ScuTests(PrintTestCase):
    """
    Our SCU prints.
    """

    async def test_print(self) -> None:
        """A complete session, and the film that the printer has stored."""
        _, port = await self.printer()
        about = await self.print_to(port)
        self.assertEqual(about.PrinterStatus, "NORMAL")
        (stored,) = self.folder.glob("SP_*.dcm")
        film = dcmread(stored)
        self.assertEqual(film.FilmBoxContentSequence[0].ImageDisplayFormat, "STANDARD\\1,1")
        (hardcopy,) = self.folder.glob("HG_*.dcm")
        self.assertEqual(dcmread(hardcopy).PixelData, PIXELS)

    async def test_print_implicit(self) -> None:
        """The printer accepts only Implicit VR Little Endian."""
        _, port = await self.printer(implicit=True)
        await self.print_to(port)
        (hardcopy,) = self.folder.glob("HG_*.dcm")
        # OW is an array of words, which are unchanged.
        self.assertEqual(dcmread(hardcopy).PixelData, PIXELS)


class ScpTests(PrintTestCase):
    """
    Our printer.
    """

    async def test_dcmprscu(self) -> None:
        """dcmprscu prints at our printer a film that dcmprscp has stored; our printer assigns all UIDs."""
        seen: list[tuple[str, str]] = []
        printed: list[Dataset] = []

        def create(event: evt.CreateEvent) -> Any:
            seen.append((event.event.name, event.sop_class_uid))
            self.assertIsNone(event.request.AffectedSOPInstanceUID)  # type: ignore[union-attr]
            made = event.attribute_list
            if event.sop_class_uid == BasicFilmBox:
                made.ReferencedImageBoxSequence = [reference(BasicGrayscaleImageBox, event.sop_instance_uid + ".1")]
            return 0x0000, made

        def change(event: evt.SetEvent) -> int:
            seen.append((event.event.name, event.sop_class_uid))
            self.assertTrue(event.sop_instance_uid.endswith(".1"))
            printed.extend(event.modification_list.BasicGrayscaleImageSequence)
            return 0x0000

        def get(event: evt.GetEvent) -> Any:
            seen.append((event.event.name, event.sop_class_uid))
            self.assertEqual(event.sop_instance_uid, PrinterInstance)
            return 0x0000, attributes(PrinterStatus="NORMAL", PrinterStatusInfo="NORMAL", PrinterName="TWIST")

        def act(event: evt.ActionEvent) -> int:
            seen.append((event.event.name, event.sop_class_uid))
            self.assertEqual(event.action_type, 1)
            return 0x0000

        def delete(event: evt.NormalisedEvent) -> int:
            seen.append((event.event.name, event.sop_class_uid))
            return 0x0000

        ended: list[Any] = []
        server = await self.serve(
            (evt.EVT_N_CREATE, create),
            (evt.EVT_N_SET, change),
            (evt.EVT_N_GET, get),
            (evt.EVT_N_ACTION, act),
            (evt.EVT_N_DELETE, delete),
            (evt.EVT_RELEASED, ended.append),
            contexts=[build_context(META), build_context(PresentationLUT)],
        )
        process, port = await self.printer()
        await self.print_to(port)
        await process.stop("KILL")
        (stored,) = self.folder.glob("SP_*.dcm")
        config = self.config(TWIST=(server.port, "PRINTER", False))
        result = await run(dcmtk("dcmprscu"), "-v", "-c", config, "-p", "TWIST", stored)
        self.assertEqual(result.code, 0, result.text)
        self.assertEqual(
            seen,
            [
                ("EVT_N_GET", Printer),
                ("EVT_N_CREATE", PresentationLUT),
                ("EVT_N_CREATE", BasicFilmSession),
                ("EVT_N_CREATE", BasicFilmBox),
                ("EVT_N_SET", BasicGrayscaleImageBox),
                ("EVT_N_ACTION", BasicFilmBox),
                ("EVT_N_DELETE", BasicFilmBox),
                ("EVT_N_DELETE", BasicFilmSession),
                ("EVT_N_DELETE", PresentationLUT),
            ],
        )
        (picture,) = printed
        self.assertEqual((picture.Rows, picture.Columns), (ROWS, COLUMNS))
        self.assertEqual(len(ended), 1)
