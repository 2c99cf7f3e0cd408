"""
A test of a handler in memory: no sockets, no threads, and time passes when the test says so.

    trial ./test_in_memory.py
"""

from pydicom import Dataset
from pydicom.uid import generate_uid
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import AE, AssociationTimeout, evt
from dicomtwist.sop_class import CTImageStorage, Verification
from dicomtwist.testing import MemoryNetwork


class Filter:
    """The code under test: a handler that accepts images of its own hospital only."""

    def __init__(self, institution):
        self.institution = institution

    def store(self, event):
        return 0x0000 if event.dataset.get("InstitutionName") == self.institution else 0xA700


def image(institution):
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.InstitutionName = institution
    return dataset


class FilterTest(SynchronousTestCase):
    def setUp(self):
        self.network = MemoryNetwork()
        self.scp = AE("SCP", reactor=self.network)
        self.scp.add_supported_context(CTImageStorage)
        self.scp.add_supported_context(Verification)
        handlers = [(evt.EVT_C_STORE, Filter("St. Elsewhere").store)]
        self.network.result_of(self.scp.start_server(11112, evt_handlers=handlers))
        self.scu = AE("SCU", reactor=self.network)
        self.scu.add_requested_context(CTImageStorage)

    def test_own_and_foreign_images(self):
        assoc = self.network.result_of(self.scu.associate("127.0.0.1", 11112))
        self.assertEqual(self.network.result_of(assoc.send_c_store(image("St. Elsewhere"))), 0x0000)
        self.assertEqual(self.network.result_of(assoc.send_c_store(image("Elsewhere"))), 0xA700)
        self.network.result_of(assoc.release())

    def test_an_idle_association_ends(self):
        assoc = self.network.result_of(self.scu.associate("127.0.0.1", 11112))
        self.network.advance(61)  # the network timeout is 60 seconds
        self.assertIsInstance(assoc.end_reason, AssociationTimeout)
