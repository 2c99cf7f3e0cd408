"""The output of ``twist dicom`` has no data of patients, passcodes or tickets from peers, whether they are valid or not."""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Awaitable, Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from dicomtwist import AE, Association, AssociationRejected, UserIdentity
from dicomtwist.access.users import hash_passcode
from dicomtwist.datasets import BytesSource, encode_dataset
from dicomtwist.dimse.messages import NCreateRQ
from dicomtwist.errors import OperationFailed
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta
from dicomtwist.sop_class import (
    CTImageStorage,
    ModalityPerformedProcedureStep,
    ModalityWorklistInformationFind,
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)
from dicomtwist.ul.items import encode_item
from tests import peers
from tests.archive.services import test_mpps, worklists
from tests.daemon import test_twist_dicom
from tests.hostile.test_negotiation import context
from tests.hostile.test_wire import APPLICATION, associate_rq

EXPLICIT = "1.2.840.10008.1.2.1"
#: The beginning of every secret.
MARK = "S3cret"

#: Elements by tag: a VR and a value.
Elements = dict[int, tuple[bytes, bytes]]

#: Elements with data of a patient, one for each VR that can hold some.
PATIENT: Elements = {
    0x00080020: (b"DA", b"20240101"),
    0x00080050: (b"SH", b"S3cretAccession"),
    0x00080090: (b"PN", b"S3cret^Physician"),
    0x00081030: (b"LO", b"S3cretStudy"),
    0x00100010: (b"PN", b"S3cret^Name"),
    0x00100020: (b"LO", b"S3cretId"),
    0x00100030: (b"DA", b"19500101"),
    0x00101040: (b"LO", b"S3cretStreet"),
    0x00104000: (b"LT", b"S3cretComment"),
    0x0020000D: (b"UI", b"1.2.3"),
    0x0020000E: (b"UI", b"1.2.3.1"),
}
#: Invalid values, in VRs that pydicom and the index decode.
WRONG: Elements = {
    0x00080005: (b"CS", b"S3cretSet"),
    0x00080020: (b"DA", b"S3cretDate"),
    0x00080030: (b"TM", b"S3cretTime"),
    0x0008002A: (b"DT", b"S3cretMoment"),
    0x00080050: (b"SH", b"S3cretAccession" * 20),
    0x00080090: (b"PN", b"S3cret=" * 9),
    0x00100010: (b"PN", b"S3cret\x1b$B\xff\xff^\x80"),
    0x00100020: (b"LO", b"S3cretId\xff\n\0" * 30),
    0x00100030: (b"DA", b"S3cretBirth"),
    0x00101010: (b"AS", b"S3cretAge"),
    0x00101030: (b"DS", b"S3cretWeight"),
    0x0020000D: (b"UI", b"S3cret^Name"),
    0x00200013: (b"IS", b"S3cretNumber"),
    0x00280010: (b"US", b"S3cret0"),
    0x00189074: (b"UL", b"S3cret"),  # pydicom quotes a value with an impossible length
    0x00400275: (b"SQ", b"S3cretSequence"),
}
#: Invalid UIDs and levels: names.
UIDS = ("S3cret^Name", "S3cret\x1b[2J", "S3cret\r\n2026 all is well", "1.2.S3cret" * 30)


def encode(elements: Elements) -> bytes:
    """Return a data set in Explicit VR Little Endian, valid or not."""
    parts = []
    for tag, (vr, value) in sorted(elements.items()):
        value += b" " * (len(value) % 2)
        head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
        parts.append(head + struct.pack("<2xL" if vr in (b"SQ", b"UN", b"OW") else "<H", len(value)) + value)
    return b"".join(parts)


def variants(more: Elements) -> list[bytes]:
    """Return data sets that contain *more*: a valid one, one for each invalid value, and some that are truncated."""
    right = {**PATIENT, **more}
    whole = encode(right)
    made = [whole, *(encode({**right, tag: element}) for tag, element in WRONG.items())]
    made += [whole[:-1], whole[:-7], whole.replace(b"PN", b"??"), whole[1:], encode({**right, **WRONG})]
    return [data + b"\0" * (len(data) % 2) for data in made]


def performed() -> bytes:
    """Return a performed procedure step that is accepted and has data of a patient."""
    made = test_mpps.step(PatientName="S3cret^Name", PatientID="S3cretId", PatientBirthDate="", PatientSex="")
    made["PatientBirthDate"]._value, made["PatientSex"]._value = "S3cretBirth", "S3cretSex"
    return encode_dataset(made, EXPLICIT)


class TwistDicomLog(TestCase):
    """A server with all services."""

    timeout = 240

    async def start(self) -> None:
        """Start the server with folders that also hold data of patients."""
        folder = Path(self.mktemp()).absolute()
        for name in ("import", "worklist"):
            (folder / name).mkdir(parents=True)
            for number, data in enumerate(variants({0x00080016: (b"UI", CTImageStorage.encode())})):
                (folder / name / f"{number}.wl").write_bytes(self.file(data, "1.2.3.4"))
        scheduled = worklists.item(1, PatientName="S3cret^Name", PatientID="S3cretId", PatientWeight="0")
        scheduled["PatientWeight"]._value = "S3cretWeight"
        worklists.write(folder / "worklist" / "scheduled.wl", scheduled)
        users, configuration = folder / "users", folder / "configuration.toml"
        users.write_text(f"{hash_passcode('alice', b'S3cretWord', n=16)}\n")
        configuration.write_text(
            f'[access]\nusers = "{users}"\n'
            '[[access.rule]]\nuser = "alice"\nallow = "all"\n'
            '[[access.rule]]\ncalling = "MODALITY"\nallow = "all"\n'
        )
        self.port = peers.free_port()
        self.server = await peers.start(
            self,
            sys.executable,
            *("-m", "twisted", "--log-format", "text", "dicom", "--storage", folder / "storage"),
            *("--port", f"tcp:{self.port}:interface=127.0.0.1", "--config", configuration),
            *(
                "--worklist",
                folder / "worklist",
                "--import",
                folder / "import",
                "--max-refusals-logged",
                10_000,
                "--log-rate",
                "none",
            ),
            *("--peer", f"GONE=127.0.0.1:{peers.free_port()}"),
            ready=self.port,
            timeout=90,
        )

    def file(self, data: bytes, uid: str) -> bytes:
        return encode_preamble_and_meta(FileMeta(CTImageStorage, uid, EXPLICIT, "1.2.3")) + data

    def associate(self, title: str = "MODALITY", *extended: Any) -> Deferred[Association]:
        ae = AE(title)
        for sop_class in (
            *(Verification, CTImageStorage, ModalityPerformedProcedureStep, ModalityWorklistInformationFind),
            *(PatientRootQueryRetrieveInformationModelFind, StorageCommitmentPushModel),
            *(StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelGet),
            *(PatientRootQueryRetrieveInformationModelGet, PatientRootQueryRetrieveInformationModelMove),
            StudyRootQueryRetrieveInformationModelMove,
        ):
            ae.add_requested_context(sop_class, EXPLICIT)
        return ae.associate("127.0.0.1", self.port, ext_neg=list(extended))

    def is_clean(self) -> None:
        """Check that no secret and no traceback was printed."""
        text = self.server.text
        lines = [line for line in text.splitlines() if MARK.lower() in line.lower() or MARK.encode().hex() in line]
        self.assertEqual(lines, [])
        self.assertNotIn("Traceback", text)
        self.assertEqual([line for line in text.splitlines() if not line.isprintable() or len(line) > 500], [])

    async def test_patients(self) -> None:
        """Instances are stored, queried, retrieved, scheduled and performed, with every invalid value."""
        await self.start()
        await self.server.wait_for("import of")
        assoc = await self.associate()
        refused = failed = 0
        for number, data in enumerate(variants({})):
            uid = f"1.2.3.4.{number}"
            which = encode({0x00080016: (b"UI", CTImageStorage.encode()), 0x00080018: (b"UI", uid.encode())})
            for padding in (b"", struct.pack("<HH2s2xL", 0x7FE0, 0x10, b"OW", 1_200_000) + bytes(1_200_000)):
                status = await assoc.send_c_store(BytesIO(self.file(which + data + padding, uid)))
                refused += status.is_failure
            for work in self.operations(assoc, data, number):
                try:
                    await work()
                except OperationFailed:
                    failed += 1
        for uid in UIDS:
            ids: Elements = {0x00080016: (b"UI", CTImageStorage.encode()), 0x00080018: (b"UI", uid[:64].encode())}
            status = await assoc.send_c_store(BytesIO(self.file(encode({**PATIENT, **ids}), uid[:64])))
            self.assertTrue(status.is_failure)
            refused += 1
            self.assertEqual(await self.create(assoc, uid), 0x0117)
        self.assertGreater(failed, 5)
        # These requests had effects.
        found = await assoc.send_c_find(worklists.query(), ModalityWorklistInformationFind).collect()
        self.assertIn("S3cret^Name", [str(answer.PatientName) for answer in found])
        asked = assoc.send_n_create(performed(), ModalityPerformedProcedureStep, "1.2.9")
        self.assertTrue((await asked)[0].is_success)
        self.assertGreater(refused, 5)
        self.assertEqual(self.server.text.count("was not stored"), refused)
        await assoc.release()
        # An association that is lost during an operation.
        assoc = await self.associate()
        large = encode(PATIENT) + struct.pack("<HH2s2xL", 0x7FE0, 0x10, b"OW", 9_000_000) + bytes(9_000_000)
        storing = assoc.send_c_store(BytesIO(self.file(large, "1.2.3.4")))
        assoc.abort()
        await self.assertFailure(storing, Exception)
        await self.server.wait_for("aborted by the peer")
        self.server.signal("TERM")
        await self.server.wait(60)
        self.is_clean()

    async def create(self, assoc: Association, uid: str) -> int:
        """Return the status of an N-CREATE with any text as its UID."""
        sop_class = str(ModalityPerformedProcedureStep)
        request = NCreateRQ(affected_sop_class_uid=sop_class, affected_sop_instance_uid=uid)
        context = assoc.context_for(sop_class)
        response, _ = await assoc.exchange.start(context.context_id, request, BytesSource(performed()))
        return response.status

    def operations(self, assoc: Association, data: bytes, number: int) -> list[Callable[[], Awaitable[Any]]]:
        """Return all operations that can be invoked with a data set."""
        steps, uid = ModalityPerformedProcedureStep, f"1.2.9.{number}"
        asked: list[Callable[[], Awaitable[Any]]] = [
            lambda: assoc.send_c_find(data, ModalityWorklistInformationFind).collect(),
            lambda: assoc.send_n_create(data, steps, uid),
            lambda: assoc.send_n_create(encode_dataset(test_mpps.step(), EXPLICIT) + data, steps, f"{uid}.1"),
            lambda: assoc.send_n_create(performed(), steps, f"{uid}.2"),
            lambda: assoc.send_n_set(data, steps, f"{uid}.2"),
            lambda: assoc.send_n_set(encode({0x00400252: (b"CS", b"S3cret^Name")}), steps, f"{uid}.2"),
            lambda: assoc.send_n_action(data, 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance),
        ]
        study, patient = StudyRootQueryRetrieveInformationModelFind, PatientRootQueryRetrieveInformationModelFind
        gets = StudyRootQueryRetrieveInformationModelGet, PatientRootQueryRetrieveInformationModelGet
        moves = StudyRootQueryRetrieveInformationModelMove, PatientRootQueryRetrieveInformationModelMove
        for level in (b"PATIENT", b"STUDY", b"SERIES", b"IMAGE", b"S3cret^Name", b"S3cret\x1b[2J"):
            keys = encode({0x00080052: (b"CS", level)}) + data
            for model in (study, patient):
                asked.append(lambda keys=keys, model=model: assoc.send_c_find(keys, model).collect())  # type: ignore[misc]
            for model in gets:
                asked.append(lambda keys=keys, model=model: assoc.send_c_get(keys, model).when_done())  # type: ignore[misc]
            for model in moves:
                for title in ("GONE", "NOBODY"):
                    asked.append(
                        lambda keys=keys, model=model, title=title: (  # type: ignore[misc]
                            assoc.send_c_move(keys, title, model).when_done()
                        )
                    )
        return asked

    async def test_identities(self) -> None:
        """User identities of every type: valid, invalid and malformed."""
        await self.start()
        assoc = await self.associate("ELSE", UserIdentity(2, b"alice", b"S3cretWord"))
        self.assertTrue((await assoc.send_c_echo()).is_success)
        await assoc.release()
        for identity in (
            UserIdentity(2, b"alice", b"S3cretWrong"),
            UserIdentity(2, b"S3cretUser", b"S3cretWord"),
            *(UserIdentity(kind, b"S3cretTicket", response_requested=True) for kind in (3, 4, 5)),
        ):
            await self.assertFailure(self.associate("ELSE", identity), AssociationRejected)
        for item in (b"\2\1\0\5alice\xff\xffS3cretWord", b"\x09\1\0\6S3cret\0\0", b"\2\0\0\x0aS3cretWord", b"\3S3cret"):
            user = encode_item(0x50, encode_item(0x58, item))
            peer = await test_twist_dicom.connect(self.port, associate_rq(APPLICATION, context(1), user))
            await peer.answered
            assert peer.transport is not None
            peer.transport.loseConnection()
            await peer.closed
        self.server.signal("TERM")
        await self.server.wait(60)
        self.assertGreater(len(re.findall("requested|no association", self.server.text)), 5)
        self.is_clean()
