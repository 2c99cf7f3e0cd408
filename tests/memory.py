"""The parts that the tests on a network in memory share: two AEs, scripted peers, instances to send."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import AE, Association, AsyncOperationsWindow, Server, build_context, evt
from dicomtwist.datasets import encode_dataset
from dicomtwist.dimse.messages import CEchoRQ, CStoreRQ
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta
from dicomtwist.testing import MemoryNetwork, ScriptedPeer

VERIFICATION = "1.2.840.10008.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
CONTEXTS = [build_context(VERIFICATION), build_context(CT, ExplicitVRLittleEndian)]


def instance(size: int = 100, uid: str = "1.2.3.4") -> Dataset:
    """Return an instance with *size* bytes of pixels."""
    dataset = Dataset()
    dataset.SOPClassUID = CT
    dataset.SOPInstanceUID = uid
    dataset.PatientName = "Nobody"
    dataset.add_new(0x7FE00010, "OW", b"\1\2" * (size // 2))
    return dataset


def part10(size: int = 100, uid: str = "1.2.3.4") -> bytes:
    """Return such an instance as a Part 10 file."""
    return encode_preamble_and_meta(FileMeta(CT, uid, str(ExplicitVRLittleEndian), "1.2.3")) + encoded(size, uid)


def encoded(size: int = 100, uid: str = "1.2.3.4") -> bytes:
    """Return such an instance as it is encoded on the network."""
    return encode_dataset(instance(size, uid), ExplicitVRLittleEndian)


def echo(message_id: int = 1) -> CEchoRQ:
    return CEchoRQ(message_id=message_id)


def store(message_id: int = 1) -> CStoreRQ:
    return CStoreRQ(message_id=message_id, affected_sop_class_uid=CT, affected_sop_instance_uid="1.2.3.4")


class FailingFile(BytesIO):
    """A file that cannot be read to its end."""

    def __init__(self, data: bytes, good: int) -> None:
        super().__init__(data)
        self.good = good

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() >= self.good:
            raise OSError(5, "Input/output error")
        return super().read(size)


class MemoryTestCase(SynchronousTestCase):
    """
    A test with two AEs on a network in memory.

    :ivar scp: an AE that supports Verification and CT Image Storage.
    :ivar scu: another AE, which requests both.
    """

    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.scp = AE("SCP", reactor=self.network)
        self.scu = AE("SCU", reactor=self.network)
        self.scp.supported_contexts = CONTEXTS
        self.scu.requested_contexts = CONTEXTS

    def tearDown(self) -> None:
        for connection in self.network.connections:
            connection.cut()
        self.network.works = True
        self.network.flush()
        self.assert_clean()

    def assert_clean(self) -> None:
        """Assert that nothing is left of any association: no timer, no thread, no connection."""
        self.assertEqual(self.network.getDelayedCalls(), [])
        self.assertEqual(self.network.pools, [])
        self.assertEqual([connection for connection in self.network.connections if connection.is_open], [])
        self.assertEqual(self.scp._associations | self.scu._associations, set())

    def listen(self, *handlers: Any, **options: Any) -> Server:
        """Start the SCP at 104."""
        return self.network.result_of(self.scp.start_server(104, evt_handlers=list(handlers), **options))

    def asking(self, port: int = 104, **options: Any) -> Deferred[Association]:
        """Let the SCU request an association at *port*; return its Deferred."""
        asking = self.scu.associate("127.0.0.1", port, **options)
        self.network.flush()
        return asking

    def associate(self, port: int = 104, **options: Any) -> Association:
        """Let the SCU request an association, and return it when it is established."""
        return self.successResultOf(self.asking(port, **options))

    def both(self, *handlers: Any, **options: Any) -> tuple[Association, Association]:
        """Return both ends of an association between the two: the requestor's and the acceptor's."""
        server = self.listen(*handlers)
        association = self.associate(**options)
        (accepted,) = server.factory.associations
        return association, accepted

    def windowed(self, *handlers: Any, size: int = 4) -> tuple[Association, Association]:
        """Return both ends of an association with a window of *size* operations."""
        offer = (evt.EVT_ASYNC_OPS, lambda event: (size, size))
        return self.both(offer, *handlers, ext_neg=[AsyncOperationsWindow(size, size)])

    def scripted_scp(self, **options: Any) -> tuple[Association, ScriptedPeer]:
        """Return an association of the SCU with a scripted acceptor."""
        peer = self.network.scripted_server(105)
        asking = self.asking(105, **options)
        peer.accept()
        peer.take()
        return self.successResultOf(asking), peer

    def scripted_scu(self, *handlers: Any, **options: Any) -> tuple[Association, ScriptedPeer]:
        """Return an association of the SCP with a scripted requestor: context 1 is for Verification, 3 for CT."""
        server = self.listen(*handlers)
        peer = self.network.scripted_client(104)
        peer.request((1, VERIFICATION), (3, CT), **options)
        peer.take()
        (association,) = server.factory.associations
        return association, peer
