"""AssociationPool and DCMTK's storescp, which is killed and restarted meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from twisted.internet.defer import DeferredList

from dicomtwist import AssociationPool, evt
from dicomtwist.dimse.messages import CStoreRQ, CStoreRSP
from tests.interop.common import CT, EXPLICIT, VERIFICATION, InteropTestCase, Recorder
from tests.peers import PeerError, Process, dcmtk, free_port, start

COUNT = 40
#: The requests at which the peer is killed, counted from the first.
KILLED_AT = (11, 25)


class Restarted(InteropTestCase):
    """
    A storescp that restarts at the same port, with the same folder.

    :ivar pool: a pool of ours for it.
    :ivar log: the requests and responses in order: (association, Message ID, SOP Instance UID or status).
    """

    timeout = 120

    async def launch(self) -> None:
        """Start storescp."""
        self.process: Process = await start(
            self, dcmtk("storescp"), "-od", self.folder, "+B", self.port, ready=self.port, timeout=60
        )

    async def prepare(self, **options: Any) -> None:
        """Create a pool, and start the peer."""
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        for attempt in range(3):
            self.port = free_port()
            try:
                await self.launch()
                break
            except PeerError:
                if attempt == 2:
                    raise
        self.log: list[tuple[int, int, str | int]] = []
        self.requests = 0
        self.restarts = Recorder()
        ae = self.requestor(VERIFICATION, (CT, EXPLICIT))
        self.pool = AssociationPool(
            ae,
            "127.0.0.1",
            self.port,
            evt_handlers=[(evt.EVT_DIMSE_SENT, self.sent), (evt.EVT_DIMSE_RECV, self.received)],
            retry_policy=lambda failures: 0.2 * failures,
            attempts=100,
            timeout=100,
            **options,
        )
        self.addCleanup(self.pool.stopService)

    def sent(self, event: evt.Event) -> None:
        """Record a request before it is written."""
        if isinstance(event.message, CStoreRQ):
            self.requests += 1
            self.log.append((id(event.assoc), event.message.message_id, event.message.affected_sop_instance_uid))
            if self.requests in KILLED_AT:
                self.process.signal("KILL")
                self.restarts(event)

    def received(self, event: evt.Event) -> None:
        """Record a response."""
        if isinstance(event.message, CStoreRSP):
            self.log.append((id(event.assoc), event.message.message_id_being_responded_to, event.message.status))

    def files(self) -> dict[str, Path]:
        """Return files of one image by their different SOP Instance UIDs."""
        folder = Path(self.mktemp())
        folder.mkdir()
        image = dcmread(get_testdata_file("CT_small.dcm", download=False))  # type: ignore[arg-type]
        found = {}
        for number in range(COUNT):
            uid = image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid(None)
            image.InstanceNumber = number
            found[str(uid)] = folder / f"{number}.dcm"
            image.save_as(found[str(uid)])
        return found

    async def test_nothing_is_lost_and_nothing_answered_is_sent_again(self) -> None:
        await self.prepare(size=2)
        files = self.files()
        sending = DeferredList([self.pool.send_c_store(path) for path in files.values()])
        for number in range(len(KILLED_AT)):
            await self.restarts.wait(number + 1)
            result = await self.process.wait()
            self.assertEqual(result.signal, 9)
            await self.launch()
        self.assertEqual([(ok, int(status)) for ok, status in await sending], [(True, 0)] * COUNT)
        self.assertGreaterEqual(self.pool.retried, len(KILLED_AT))
        answered: dict[str, int] = {}
        asked: dict[tuple[int, int], str] = {}
        for association, message_id, what in self.log:
            if isinstance(what, str):
                self.assertNotIn(what, answered, "it was sent again though it was answered")
                asked[association, message_id] = what
            else:
                answered[asked[association, message_id]] = what
        self.assertEqual(answered, dict.fromkeys(files, 0))
        self.assertGreaterEqual(self.requests, COUNT + len(KILLED_AT))
        await self.pool.stopService()
        self.assertEqual((self.pool.open, self.pool.waiting), (0, 0))
        stored = {str(dataset.SOPInstanceUID): dataset for dataset in map(dcmread, self.folder.iterdir())}
        self.assertEqual(set(stored), set(files))
        for uid, path in files.items():
            self.assertEqual(stored[uid], dcmread(path))

    async def test_an_idle_association_is_noticed_to_be_gone(self) -> None:
        """
        After a restart the first operation succeeds at once: the pool has noticed that the previous association was closed.
        """
        await self.prepare()
        self.assertTrue((await self.pool.send_c_echo()).is_success)
        (slot,) = self.pool._slots
        ended = slot.association.when_ended()
        await self.process.stop("KILL")
        await ended
        self.assertEqual(self.pool.open, 0)
        await self.launch()
        self.assertTrue((await self.pool.send_c_echo()).is_success)
        self.assertEqual((self.pool.established, self.pool.failed, self.pool.retried), (2, 0, 0))
        await self.pool.stopService()
