"""A query to a running ``twist dicom``, for tests that read its files from outside."""

from __future__ import annotations

from pydicom import Dataset

from dicomtwist import AE
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelFind as FIND

__all__ = ["publish"]


async def publish(port: int, called: str = "ANY-SCP") -> None:
    """
    Wait until all instances that a server has acknowledged have their files: a query answers only then.

    :param port: its port on this machine.
    :param called: its AE title.
    """
    ae = AE("PUBLISHER")
    ae.add_requested_context(FIND)
    keys = Dataset()
    keys.QueryRetrieveLevel, keys.StudyInstanceUID = "STUDY", "1.2.826.0.1.3680043.10.999"
    async with await ae.associate("127.0.0.1", port, ae_title=called) as association:
        statuses = [int(status) async for status, _ in association.send_c_find(keys, FIND)]
    assert statuses == [0], statuses
