"""A retrieval from a running ``twist dicom``, for tests that read its files from outside."""

from __future__ import annotations

from pydicom import Dataset

from dicomtwist import AE
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelGet as GET

__all__ = ["publish"]


async def publish(port: int, called: str = "ANY-SCP") -> None:
    """
    Wait until all instances that a server has acknowledged have their files: a retrieval answers only then.

    :param port: its port on this machine.
    :param called: its AE title.
    """
    ae = AE("PUBLISHER")
    ae.add_requested_context(GET)
    keys = Dataset()
    keys.QueryRetrieveLevel, keys.StudyInstanceUID = "STUDY", "1.2.826.0.1.3680043.10.999"
    async with await ae.associate("127.0.0.1", port, ae_title=called) as association:
        answer = await association.send_c_get(keys, GET).when_done()
    assert answer.status == 0, answer
