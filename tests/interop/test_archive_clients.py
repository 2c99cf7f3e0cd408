"""
Clients of other makers query ``twist dicom`` and retrieve from it: DCMTK's tools, Orthanc, pynetdicom, GDCM; with and
without TLS.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from pydicom import dcmread
from twisted.web.client import Agent, FileBodyProducer, readBody

from dicomtwist import evt
from tests import peers
from tests.interop.archives import MODELS, Received, fill, header, statuses, study
from tests.interop.scripts import PRELUDE, told
from tests.interop.test_query_retrieve_dcmtk_scu import GOT, MOVED, of_study, query
from tests.interop.twist import TwistTestCase
from tests.peers import DicomFile, Result, certificates, dataset_bytes, dcmtk, dicom_files, free_port, run

#: The line in which findscu prints the status of a response.
FOUND: Final = r"Find Response(?:: \d+)? \((.*)\)$"


def some_compressed() -> tuple[DicomFile, ...]:
    """Return an instance in each of a few compressed transfer syntaxes, all from different studies."""
    names = ("SC_rgb_jpeg_gdcm.dcm", "693_J2KI.dcm", "JPGExtended.dcm", "MR_small_RLE.dcm")
    found = tuple(file for file in dicom_files() if file.name.endswith(names))
    assert len({file.study for file in found}) == len(names)
    return found


class ClientTestCase(TwistTestCase):
    """An archive with two studies of CT, and peers as destinations of its C-MOVEs."""

    files: Sequence[DicomFile] = ()

    async def begin(self, *destinations: str, files: Sequence[DicomFile] | None = None) -> None:
        """
        Start the archive and store instances in it.

        :param destinations: ``TITLE=ADDRESS`` each.
        :param files: the instances to store.
        """
        self.files = [*study(7), *study(4)] if files is None else files
        self.tls_port = free_port()
        found = vars(certificates())
        own = f"privateKey={found['server_key']}:certKey={found['server_cert']}:trustRoots={found['ca']}"
        options = [word for destination in destinations for word in ("--peer", destination)]
        await self.twist("--port", f"dicomtls:{self.tls_port}:{own}:interface=127.0.0.1", *options)
        await peers.wait_listening(self.tls_port, process=self.process)
        await fill(self.port, "TWIST", self.files)

    def new_folder(self) -> Path:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        return folder

    def assert_files(self, paths: Sequence[Path], files: Sequence[DicomFile]) -> None:
        """Check that *paths* are *files*, each once, byte for byte."""
        datasets = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): dataset_bytes(path) for path in paths}
        self.assertEqual(len(paths), len(files))
        self.assert_bytes(datasets, files)


class DcmtkTests(ClientTestCase):
    """findscu, getscu, movescu."""

    async def tool(self, name: str, *flags: object, port: int = 0) -> Result:
        return await run(dcmtk(name), "-v", "-aec", "TWIST", *flags, "127.0.0.1", port or self.port)

    async def test_findscu(self) -> None:
        """Each model at each of its levels, in each transfer syntax, and queries that are refused."""
        await self.begin()
        first = self.files[0]
        unique = (
            f"PatientID={header(first).PatientID}",
            f"StudyInstanceUID={first.study}",
            f"SeriesInstanceUID={first.series}",
        )
        in_series = sum(file.series == first.series for file in self.files)
        for flag, levels in (
            ("-P", {"PATIENT": 2, "STUDY": 1, "SERIES": 2, "IMAGE": in_series}),
            ("-S", {"STUDY": 2, "SERIES": 2, "IMAGE": in_series}),
            ("-O", {"PATIENT": 2, "STUDY": 1}),
        ):
            for level, count in levels.items():
                above = [
                    key for key, name in zip(unique, ("PATIENT", "STUDY", "SERIES"), strict=True) if name in levels
                ]
                asked = query(level, *above[: list(levels).index(level)], "PatientName")
                for syntax in ("-xe", "-xb", "-xd", "-xi") if level == "IMAGE" else ("-xe",):
                    result = await self.tool("findscu", flag, syntax, *asked)
                    self.assertEqual(statuses(result, FOUND), ["Pending"] * count + ["Success"], result.text)
        result = await self.tool("findscu", "-S", "-k", "PatientName")
        self.assertEqual(statuses(result, FOUND), ["Error: DataSetDoesNotMatchSOPClass"], result.text)
        self.assertIn(
            "Query/Retrieve Level is missing", (await self.tool("findscu", "-d", "-S", "-k", "PatientName")).text
        )

    async def test_findscu_over_tls(self) -> None:
        await self.begin()
        found = certificates()
        shown = ("+tls", found.client_key, found.client_cert, "+cf", found.ca)
        result = await self.tool("findscu", *shown, "-S", *query("STUDY", "StudyInstanceUID"), port=self.tls_port)
        self.assertEqual(statuses(result, FOUND), ["Pending", "Pending", "Success"], result.text)
        result = await self.tool("findscu", "+tla", "-ic", "-S", *query("STUDY"), port=self.tls_port)
        self.assertEqual(statuses(result, FOUND), [], "without a certificate")

    async def test_getscu(self) -> None:
        """Each model; the bytes are those of the files, also for compressed instances."""
        compressed = some_compressed()
        await self.begin(files=[*study(7), *study(4), *compressed])
        for flag in MODELS:
            folder = self.new_folder()
            of_patient = ("-k", f"PatientID={header(study(7)[0]).PatientID}")
            result = await self.tool("getscu", flag, "+B", "-od", folder, *of_study(study(7)), *of_patient)
            self.assertEqual(statuses(result, GOT), ["Pending"] * 6 + ["Success"], result.text)
            self.assert_files([*folder.iterdir()], study(7))
        for syntax, flag in (
            ("1.2.840.10008.1.2.5", "+xr"),
            ("1.2.840.10008.1.2.4.51", "+xx"),
            ("1.2.840.10008.1.2.4.70", "+xs"),
            ("1.2.840.10008.1.2.4.91", "+xw"),
        ):
            (file,) = (file for file in compressed if file.transfer_syntax == syntax)
            folder = self.new_folder()
            result = await self.tool("getscu", "-S", flag, "+B", "-od", folder, *of_study([file]))
            self.assertEqual(statuses(result, GOT), ["Success"], result.text)
            self.assert_files([*folder.iterdir()], [file])

    async def test_movescu(self) -> None:
        """The destinations are movescu itself, for each model, another known AE, and an unknown one."""
        port, folder = free_port(), self.new_folder()
        storescp = await peers.dcmtk_storescp(self, folder, "+xa", "+B")
        await self.begin(
            f"MOVESCU=127.0.0.1:{port}",
            f"STORESCP=tcp:127.0.0.1:{storescp}",
            files=[*study(7), *study(4), *some_compressed()],
        )
        of_patient = ("-k", f"PatientID={header(study(7)[0]).PatientID}")
        for flag in MODELS:
            # In bit preserving mode it writes into its working directory.
            before = set(Path().iterdir())
            result = await self.tool("movescu", flag, "+B", "+P", port, *of_study(study(7)), *of_patient)
            came = set(Path().iterdir()) - before
            self.assertEqual(statuses(result, MOVED), ["Pending"] * 6 + ["Success"], result.text)
            self.assert_files([*came], study(7))
            for path in came:
                path.unlink()
        everything = query("STUDY", "StudyInstanceUID=" + "\\".join({file.study for file in self.files}))
        result = await self.tool("movescu", "-S", "-aem", "STORESCP", *everything)
        self.assertEqual(statuses(result, MOVED)[-1], "Success", result.text)
        self.assert_files([*folder.iterdir()], self.files)
        result = await self.tool("movescu", "-S", "-aem", "STRANGER", *of_study(study(7)))
        self.assertEqual(statuses(result, MOVED), ["Refused: MoveDestinationUnknown"], result.text)

    async def test_cancelled(self) -> None:
        """movescu cancels a move to itself: the counts in the final response match the instances it received."""
        port = free_port()
        await self.begin(f"MOVESCU=127.0.0.1:{port}", files=study(50))
        folder = self.new_folder()
        flags = ("-d", "-S", "--cancel", 3, "+P", port, "-od", folder)
        result = await self.tool("movescu", *flags, *of_study(study(50)))
        self.assertIn("0xfe00: Cancel", result.text)
        came = len([*folder.iterdir()])
        self.assertLess(came, 50)
        for name, count in (("Remaining", 50 - came), ("Completed", came), ("Failed", 0)):
            counts = statuses(result, rf"{name} Suboperations *: (\w+)")
            self.assertEqual(counts[-1], str(count), result.text)


# --- Orthanc


class OrthancTests(ClientTestCase):
    """Orthanc queries the archive, and has the matches moved to itself."""

    async def orthanc(self, tls: bool) -> None:
        """Start Orthanc, which is already a peer of the archive."""
        folder = self.new_folder()
        found = certificates()
        settings: dict[str, Any] = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.http,
            "DicomAet": "ORTHANC",
            "DicomPort": self.orthanc_port,
            "DicomModalities": {
                "twist": {
                    "AET": "TWIST",
                    "Host": "127.0.0.1",
                    "UseDicomTls": tls,
                    "Port": self.tls_port if tls else self.port,
                }
            },
            "DicomTlsEnabled": tls,
            "DicomTlsCertificate": found.server_cert,
            "DicomTlsPrivateKey": found.server_key,
            "DicomTlsTrustedCertificates": found.ca,
        }
        (folder / "orthanc.json").write_text(json.dumps(settings))
        process = await peers.start(self, peers.tool("Orthanc"), folder / "orthanc.json", ready=self.http, timeout=60)
        await process.wait_for("Orthanc has started", 60)

    async def rest(self, path: str, body: Any = None) -> bytes:
        """Call Orthanc's REST API; with a body it is a POST."""
        from twisted.internet import reactor

        producer = None if body is None else FileBodyProducer(BytesIO(json.dumps(body).encode()))
        agent: Any = Agent(reactor)
        url = f"http://127.0.0.1:{self.http}{path}".encode()
        response = await agent.request(b"GET" if body is None else b"POST", url, None, producer)
        content: bytes = await readBody(response)
        self.assertEqual(response.code, 200, content)
        return content

    async def answers(self, level: str, **wanted: str) -> tuple[str, list[dict[str, str]]]:
        """Query the archive; return the path of the query in Orthanc, and the matches."""
        asked = json.loads(await self.rest("/modalities/twist/query", {"Level": level, "Query": wanted}))
        found = json.loads(await self.rest(f"{asked['Path']}/answers?expand&simplify"))
        return asked["Path"], found

    async def query_and_retrieve(self, tls: bool) -> None:
        self.http, self.orthanc_port = free_port(), free_port()
        found = vars(certificates())
        shown = f"privateKey={found['client_key']}:certKey={found['client_cert']}:trustRoots={found['ca']}"
        address = f"dicomtls:127.0.0.1:{self.orthanc_port}:{shown}" if tls else f"127.0.0.1:{self.orthanc_port}"
        compressed = some_compressed()
        await self.begin(f"ORTHANC={address}", files=[*study(7), *study(4), *compressed])
        await self.orthanc(tls)
        patient_id = str(header(study(7)[0]).PatientID)
        _, patients = await self.answers("Patient", PatientID=patient_id, PatientName="")
        self.assertEqual([each["PatientName"] for each in patients], [str(header(study(7)[0]).PatientName)])
        _, series = await self.answers("Series", StudyInstanceUID=study(7)[0].study, Modality="")
        self.assertEqual({each["SeriesInstanceUID"] for each in series}, {file.series for file in study(7)})
        path, studies = await self.answers("Study", PatientID=patient_id, StudyInstanceUID="")
        self.assertEqual([each["StudyInstanceUID"] for each in studies], [study(7)[0].study])
        await self.rest(f"{path}/retrieve", {"TargetAet": "ORTHANC", "Synchronous": True})
        await self.check_instances(study(7))
        path, _ = await self.answers("Patient", PatientID=str(header(study(4)[0]).PatientID))
        await self.rest(f"{path}/retrieve", {"TargetAet": "ORTHANC", "Synchronous": True})
        await self.check_instances([*study(7), *study(4)])
        path, studies = await self.answers("Study", StudyInstanceUID="")
        self.assertEqual({each["StudyInstanceUID"] for each in studies}, {file.study for file in self.files})
        await self.rest(f"{path}/retrieve", {"TargetAet": "ORTHANC", "Synchronous": True})
        await self.check_instances(self.files)

    async def check_instances(self, files: Sequence[DicomFile]) -> None:
        """Check that Orthanc has *files*, which it encodes in its own way."""
        found = {}
        for name in json.loads(await self.rest("/instances")):
            one = dcmread(BytesIO(await self.rest(f"/instances/{name}/file")))
            found[str(one.SOPInstanceUID)] = one
        self.assertEqual(set(found), {file.sop_instance for file in files})
        for file in files:
            one, sent = found[file.sop_instance], dcmread(file.path)
            self.assertEqual(one.file_meta.TransferSyntaxUID, file.transfer_syntax)
            for dataset in (one, sent):
                for element in list(dataset):
                    if element.tag.element == 0 or element.keyword == "DataSetTrailingPadding":
                        del dataset[element.tag]
            if sent["PixelData"].is_undefined_length:
                sent["PixelData"].VR = "OB"  # as PS3.5 A.4 requires for compressed pixel data
            self.assertTrue(one == sent, file.name)

    async def test_query_and_retrieve(self) -> None:
        await self.query_and_retrieve(tls=False)

    async def test_over_tls(self) -> None:
        """TLS is used both for Orthanc's requests and for the associations of the archive with it."""
        await self.query_and_retrieve(tls=True)


# --- pynetdicom

PYNETDICOM: Final = (
    PRELUDE
    + """
import ssl
from pydicom import Dataset
from pynetdicom import build_role

options = json.loads(sys.argv[1])
tls = None
if options["tls"]:
    context = ssl.create_default_context(cafile=options["tls"]["ca"])
    context.load_cert_chain(options["tls"]["client_cert"], options["tls"]["client_key"])
    tls = (context, "127.0.0.1")
find, move, get = options["models"]
ae = AE("PYNETDICOM")
for model in (find, move, get):
    ae.add_requested_context(model)
roles = []
for sop_class, syntax in options["storage"]:
    ae.add_requested_context(sop_class, syntax)
    roles.append(build_role(sop_class, scp_role=True))
negotiation = SOPClassExtendedNegotiation()
negotiation.sop_class_uid = find
negotiation.service_class_application_information = bytes([1, 1, 1])

def stored(event):
    tell(stored=event.request.AffectedSOPInstanceUID, data=event.encoded_dataset(include_meta=False).hex())
    return 0

assoc = ae.associate("127.0.0.1", options["port"], ae_title="TWIST", tls_args=tls, ext_neg=[*roles, negotiation],
                     evt_handlers=[(evt.EVT_C_STORE, stored)])
assert assoc.is_established
tell(extended=assoc.acceptor.sop_class_extended[find].hex())
images = Dataset()
images.QueryRetrieveLevel, images.PatientName, images.SOPInstanceUID = "IMAGE", "DOE*", ""
for status, found in assoc.send_c_find(images, find):
    tell(find=status.Status, uid=found and found.SOPInstanceUID)
wanted = Dataset()
wanted.QueryRetrieveLevel, wanted.StudyInstanceUID = "STUDY", options["study"]
for status, _ in assoc.send_c_get(wanted, get):
    tell(get=status.Status, done=status.get("NumberOfCompletedSuboperations"))
for destination in ("TARGET", "STRANGER"):
    for status, _ in assoc.send_c_move(wanted, destination, move):
        tell(**{destination: status.Status}, done=status.get("NumberOfCompletedSuboperations"))
for number, (status, _) in enumerate(assoc.send_c_get(wanted, get, msg_id=77)):
    if number == 1:
        assoc.send_c_cancel(77, query_model=get)
tell(last=status.Status, rest=status.get("NumberOfRemainingSuboperations"))
assoc.release()
tell(released=assoc.is_released)
"""
)


class PynetdicomTests(ClientTestCase):
    """pynetdicom's client: a relational query, C-GET, C-MOVE to a server of dicomtwist, C-CANCEL."""

    async def ask(self, tls: bool) -> None:
        received = Received()
        server = await self.serve((evt.EVT_C_STORE, received))
        files = study(50)
        await self.begin(f"TARGET=127.0.0.1:{server.port}", files=[*files, *study(7), *study(4)])
        storage = sorted({(file.sop_class, file.transfer_syntax) for file in files})
        options: dict[str, Any] = {"models": MODELS["-S"], "storage": storage, "study": files[0].study}
        options |= {"tls": vars(certificates()) if tls else None, "port": self.tls_port if tls else self.port}
        process = await peers.pynetdicom_script(self, PYNETDICOM, json.dumps(options))
        result = await process.wait()
        self.assertEqual(result.code, 0, result.text)
        lines = told(process)
        self.assertEqual(lines[0], {"extended": "010101"})
        doe = [file.sop_instance for file in self.files if str(header(file).PatientName).startswith("Doe")]
        found = [line for line in lines if "find" in line]
        self.assertEqual([line["find"] for line in found], [0xFF00] * len(doe) + [0])
        self.assertCountEqual([line["uid"] for line in found[:-1]], doe)
        got = [(line["get"], line["done"]) for line in lines if "get" in line]
        self.assertEqual(got, [(0xFF00, number) for number in range(1, 50)] + [(0, 50)])
        first = next(at for at, line in enumerate(lines) if line.get("get") == 0)
        stored = {line["stored"]: bytes.fromhex(line["data"]) for line in lines[:first] if "stored" in line}
        self.assert_bytes(stored, files)
        moved = [(line["TARGET"], line["done"]) for line in lines if "TARGET" in line]
        self.assertEqual(moved, got)
        self.assert_received(received, files)
        self.assertEqual(received.originators, {("PYNETDICOM", received.requests[0].move_originator_message_id)})
        self.assertEqual([line["STRANGER"] for line in lines if "STRANGER" in line], [0xA801])
        (last,) = (line for line in lines if "last" in line)
        self.assertEqual(last["last"], 0xFE00)
        self.assertGreater(last["rest"], 0)
        self.assertEqual(lines[-1], {"released": True})

    async def test_plain(self) -> None:
        await self.ask(tls=False)

    async def test_over_tls(self) -> None:
        await self.ask(tls=True)


# --- GDCM


class GdcmTests(ClientTestCase):
    """
    gdcmscu, a fourth implementation. Debian's build aborts after the release, with every peer; its work is complete by
    then.
    """

    async def gdcmscu(self, *flags: object) -> Result:
        return await run(
            peers.tool("gdcmscu"), "-D", "--aetitle", "GDCMSCU", "--call", "TWIST", "127.0.0.1", self.port, *flags
        )

    async def test_find(self) -> None:
        """It would print the matches after the release; before that it prints the command set of each response."""
        await self.begin()
        of_study = f"20,d={study(7)[0].study}"
        series = {file.series for file in study(7)}
        for flags, expected in (
            (("--patientroot", "--patient", "--key", "10,10=DOE*", "--key", "10,20="), 2),
            (("--patientroot", "--patient", "--key", "10,10=NOBODY", "--key", "10,20="), 0),
            (("--studyroot", "--study", "--key", "10,10=", "--key", "20,d="), 2),
            (("--studyroot", "--study", "--key", of_study), 1),
            (("--studyroot", "--series", "--key", of_study, "--key", "20,e="), len(series)),
        ):
            result = await self.gdcmscu("--find", *flags)
            self.assertIn("C-Find was successful", result.text)
            self.assertEqual(result.text.count("MessageHeader: 3"), expected + 1, result.text)

    async def test_move(self) -> None:
        """The destination is gdcmscu itself."""
        port = free_port()
        await self.begin(f"GDCMSCU=127.0.0.1:{port}")
        folder = self.new_folder()
        flags = ("--studyroot", "--study", "--key", f"20,d={study(7)[0].study}")
        result = await self.gdcmscu("--move", *flags, "--port-scp", port, "-o", folder)
        came = [path for path in folder.rglob("*") if path.is_file()]
        uids = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in came}
        self.assertEqual(uids, {file.sop_instance for file in study(7)}, result.text)

    async def test_move_several_syntaxes(self) -> None:
        """
        The instances are in four uncompressed transfer syntaxes, of which gdcmscu reads one on an association.
        """
        port, sources = free_port(), self.new_folder()
        await self.begin(f"GDCMSCU=127.0.0.1:{port}")
        (first, *_) = study(7)
        for number, flag in enumerate(("+ti", "+te", "+tb", "+td")):
            path = sources / f"{number}.dcm"
            await run(dcmtk("dcmconv"), flag, first.path, path)
            await run(dcmtk("dcmodify"), "-nb", "-m", f"(0008,0018)=1.2.3.{number}", path)
            proposed = ("-xi", "-xe", "-xb", "-xd")[number]
            result = await run(dcmtk("storescu"), proposed, "-aec", "TWIST", "127.0.0.1", self.port, path)
            self.assertEqual(result.code, 0, result.text)
        folder = self.new_folder()
        flags = ("--studyroot", "--study", "--key", f"20,d={first.study}")
        result = await self.gdcmscu("--move", *flags, "--port-scp", port, "-o", folder)
        came = {str(dcmread(path).SOPInstanceUID): dcmread(path) for path in folder.rglob("*") if path.is_file()}
        self.assertEqual(
            set(came), {file.sop_instance for file in study(7)} | {f"1.2.3.{number}" for number in range(4)}
        )
        sent = dcmread(first.path)
        for number in range(4):
            one = came[f"1.2.3.{number}"]
            self.assertEqual((one.PatientName, one.Rows), (sent.PatientName, sent.Rows))
