"""
``twist dicom`` with requestors that do as real peers do: they retrieve private classes, and propose syntaxes in any order.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from twisted.trial.unittest import TestCase

from dicomtwist import AE, Association, AsyncOperationsWindow, build_context, build_role, evt
from dicomtwist.datasets import encode_dataset
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta
from tests import peers

MR = "1.2.840.10008.5.1.4.1.1.4"
RETIRED = "1.2.840.10008.5.1.4.1.1.6"  # Ultrasound Image Storage (Retired)
PRIVATE = "1.2.840.113619.4.27"
STUDY_GET = "1.2.840.10008.5.1.4.1.2.2.3"
IMPLICIT, EXPLICIT = str(ImplicitVRLittleEndian), str(ExplicitVRLittleEndian)


def instance(sop_class: str, number: int) -> Dataset:
    """Return a small instance, the only one of its study."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = sop_class, f"1.2.3.{number}.1.1"
    made.StudyInstanceUID, made.SeriesInstanceUID = f"1.2.3.{number}", f"1.2.3.{number}.1"
    made.PatientID = "P"
    return made


def part10(sop_class: str, number: int, syntax: str) -> bytes:
    """Return it as a Part 10 file."""
    made = instance(sop_class, number)
    meta = FileMeta(sop_class, str(made.SOPInstanceUID), syntax, "1.2.3")
    return encode_preamble_and_meta(meta) + encode_dataset(made, syntax)


class PeersTests(TestCase):
    timeout = 120

    def setUp(self) -> None:
        self.received: list[tuple[str, str]] = []
        self.ae = AE("SCU")
        self.addCleanup(self.ae.shutdown)

    async def start(self, *options: str) -> int:
        """Start a server and return its port."""
        port = peers.free_port()
        where = ("--storage", str(Path(self.mktemp())), "--port", f"tcp:{port}:interface=127.0.0.1", *options)
        await peers.start(self, sys.executable, "-m", "twisted", "dicom", *where, ready=port)
        return port

    async def store(self, port: int, *files: tuple[str, int, str]) -> None:
        """Store instances, each as it is encoded."""
        contexts = [build_context(sop_class, syntax) for sop_class, _, syntax in files]
        async with await self.ae.associate("127.0.0.1", port, contexts=contexts) as assoc:
            for file in files:
                self.assertTrue((await assoc.send_c_store(part10(*file))).is_success)

    async def ask(self, port: int, sop_class: str, syntaxes: list[str]) -> Association:
        """Associate to get instances of a SOP Class."""

        def stored(event: evt.StoreEvent) -> int:
            self.received.append((str(event.request.affected_sop_instance_uid), str(event.context.transfer_syntax)))
            return 0

        return await self.ae.associate(
            "127.0.0.1",
            port,
            contexts=[build_context(STUDY_GET), build_context(sop_class, syntaxes)],
            ext_neg=[build_role(sop_class, scp_role=True)],
            evt_handlers=[(evt.EVT_C_STORE, stored)],
        )

    async def get(self, assoc: Association, number: int) -> tuple[int, int]:
        """Get a study; return the numbers of sub-operations that completed and failed."""
        keys = Dataset()
        keys.QueryRetrieveLevel, keys.StudyInstanceUID = "STUDY", f"1.2.3.{number}"
        done = assoc.send_c_get(keys, STUDY_GET)
        async for _ in done:
            pass
        return done.suboperations.completed, done.suboperations.failed

    async def test_retired_and_private_classes(self) -> None:
        """Instances of retired and private SOP Classes can be retrieved by C-GET."""
        port = await self.start()
        await self.store(port, (RETIRED, 1, IMPLICIT), (PRIVATE, 2, EXPLICIT))
        for number, sop_class in ((1, RETIRED), (2, PRIVATE)):
            async with await self.ask(port, sop_class, [IMPLICIT, EXPLICIT]) as assoc:
                self.assertEqual(await self.get(assoc, number), (1, 0))
        self.assertEqual([uid for uid, _ in self.received], ["1.2.3.1.1.1", "1.2.3.2.1.1"])

    async def test_as_it_is_stored(self) -> None:
        """An instance that is stored in Implicit VR is sent so to a requestor that proposes both, without a conversion."""
        port = await self.start()
        await self.store(port, (MR, 1, IMPLICIT))
        while True:
            # The counts of the index are read in a thread when somebody asks for a role.
            async with await self.ask(port, MR, [EXPLICIT, IMPLICIT]) as assoc:
                accepted = [each.transfer_syntax for each in assoc.accepted_contexts if each.abstract_syntax == MR]
                if accepted == [[IMPLICIT]]:
                    self.assertEqual(await self.get(assoc, 1), (1, 0))
                    break
        self.assertEqual(self.received, [("1.2.3.1.1.1", IMPLICIT)])

    async def test_explicit_is_preferred(self) -> None:
        """For storing, Explicit VR is accepted whatever the order, unless a compressed syntax comes first."""
        port = await self.start()
        jpeg = "1.2.840.10008.1.2.4.70"
        contexts = [
            build_context(MR, [IMPLICIT, EXPLICIT]),
            build_context(MR, [IMPLICIT, jpeg, EXPLICIT]),
            build_context(MR, [jpeg, IMPLICIT, EXPLICIT]),
            build_context(PRIVATE, [IMPLICIT, EXPLICIT]),
        ]
        async with await self.ae.associate("127.0.0.1", port, contexts=contexts) as assoc:
            accepted = [each.transfer_syntax for each in assoc.accepted_contexts]
        self.assertEqual(accepted, [[EXPLICIT], [EXPLICIT], [jpeg], [EXPLICIT]])

    async def test_window(self) -> None:
        """A proposed asynchronous operations window is answered, and bounded."""
        port = await self.start()
        for proposed, agreed in (((8, 4), (8, 4)), ((0, 0), (64, 0))):
            async with await self.ae.associate(
                "127.0.0.1", port, contexts=[build_context(MR)], ext_neg=[AsyncOperationsWindow(*proposed)]
            ) as assoc:
                self.assertEqual(assoc.acceptor.asynchronous_operations[::-1], agreed)
