"""AEs that talk to each other over loopback."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from twisted.trial.unittest import TestCase

from dicomtwist import AE
from dicomtwist.ae import Server
from dicomtwist.sop_class import CTImageStorage, Verification


def ct_image(instance: str = "1.2.3.4") -> Dataset:
    """Return a small data set whose SOP Class is CT Image Storage."""
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = instance
    dataset.PatientName = "Test^Case"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


class LoopbackTestCase(TestCase):
    """A test that starts servers and requests associations; all of them are closed at its end."""

    def scu(self, title: str = "SCU") -> AE:
        """Return an AE that requests Verification and CT Image Storage."""
        ae = AE(title)
        ae.add_requested_context(Verification)
        ae.add_requested_context(CTImageStorage)
        self.addCleanup(ae.shutdown)
        return ae

    def scp(self, title: str = "SCP") -> AE:
        """Return an AE that supports Verification and CT Image Storage."""
        ae = AE(title)
        ae.add_supported_context(Verification)
        ae.add_supported_context(CTImageStorage)
        self.addCleanup(ae.shutdown)
        return ae

    async def serve(self, ae: AE, address: Any = ("127.0.0.1", 0), **kwargs: Any) -> Server:
        """Start a server of *ae*."""
        self.addCleanup(ae.shutdown)
        return await ae.start_server(address, **kwargs)

    async def failure(self, awaitable: Awaitable[Any], *expected: type[BaseException]) -> Any:
        """Return the exception that *awaitable* fails with, one of *expected*."""
        try:
            await awaitable
        except expected as error:
            return error
        return self.fail(f"it did not fail with {expected}")
