"""
The gateway of gateway.py, tested in memory with a modality before it and an archive behind it.

    trial ./test_gateway.py

The network is the gateway's reactor, so that its service listens, connects and waits there: no sockets, no sleeping.
"""

import json
import sys
from pathlib import Path

from pydicom import Dataset
from pydicom.uid import generate_uid
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import Agent, readBody

from dicomtwist import AE, evt
from dicomtwist.sop_class import CTImageStorage
from dicomtwist.testing import MemoryNetwork

sys.path.insert(0, str(Path(__file__).parent))
from gateway import make_service


def image():
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.PatientName = "Doe^Jane"
    return dataset


class GatewayTest(SynchronousTestCase):
    def setUp(self):
        self.network = MemoryNetwork()
        self.archived = []
        self.gateway = make_service(self.network, "tcp:11112", "tcp:8080", "archive.example.org", "11113")
        self.gateway.startService()
        self.network.flush()
        self.modality = AE("CT1", reactor=self.network)
        self.modality.add_requested_context(CTImageStorage)

    def tearDown(self):
        stopping = self.gateway.stopService()
        self.network.advance(60)  # the grace for associations that are left
        self.successResultOf(stopping)

    def start_archive(self):
        archive = AE("ARCHIVE", reactor=self.network)
        archive.add_supported_context(CTImageStorage)
        self.network.result_of(archive.start_server(11113, evt_handlers=[(evt.EVT_C_STORE, self.archive)]))

    def archive(self, event):
        self.archived.append(event.dataset.SOPInstanceUID)
        return 0x0000

    def send(self, dataset):
        """Send an image to the gateway and return the status; time passes, as the gateway tries again after a delay."""
        assoc = self.network.result_of(self.modality.associate("gateway.example.org", 11112))
        sending = assoc.send_c_store(dataset)
        self.network.advance(20)
        status = self.successResultOf(sending)
        self.network.result_of(assoc.release())
        return status

    async def page(self):
        """Return what the gateway's page shows; the agent of twisted.web connects in memory as well."""
        response = await Agent(self.network).request(b"GET", b"http://gateway.example.org:8080/")
        return json.loads(await readBody(response))

    def test_forwarded(self):
        self.start_archive()
        dataset = image()
        self.assertEqual(self.send(dataset), 0x0000)
        self.assertEqual(self.archived, [dataset.SOPInstanceUID])
        self.assertEqual(self.network.result_of(self.page())["forwarded"], 1)

    def test_archive_is_down(self):
        """The modality learns that the image is not stored, and can send it again."""
        dataset = image()
        self.assertEqual(self.send(dataset), 0xA700)
        self.start_archive()
        self.assertEqual(self.send(dataset), 0x0000)
        self.assertEqual(len(self.archived), 1)
