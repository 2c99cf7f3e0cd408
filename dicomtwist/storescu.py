"""
Sending instances: from a path, a Dataset or a file-like object to a C-STORE request (PS3.7 9.1.1).
"""

from __future__ import annotations

import os
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomtwist.datasets import (
    UNCOMPRESSED,
    BytesSource,
    DataSetSource,
    convert_file,
    encode_dataset,
    open_file_like,
    open_instance,
)
from dicomtwist.dimse.messages import CStoreRQ
from dicomtwist.dimse.status import Status
from dicomtwist.errors import DataSetError, NoPresentationContext
from dicomtwist.exchange import WindowPlace
from dicomtwist.presentation import PresentationContextTuple

if TYPE_CHECKING:
    from dicomtwist.scu import ServiceClassUser


async def store(
    assoc: ServiceClassUser,
    dataset: str | os.PathLike[str] | Dataset | BinaryIO | bytes,
    priority: int,
    originator_aet: str | None,
    originator_id: int | None,
) -> Status:
    """Do what :meth:`dicomtwist.scu.ServiceClassUser.send_c_store` says."""
    assoc.check_established()
    if isinstance(dataset, bytes):
        dataset = BytesIO(dataset)
    async with WindowPlace(assoc.exchange):
        # The place comes first and the file second, so that a thousand calls do not open a thousand files.
        context, instance_uid, source = await _prepare(assoc, dataset)
        request = CStoreRQ(
            affected_sop_class_uid=str(context.abstract_syntax),
            affected_sop_instance_uid=instance_uid,
            priority=priority,
            move_originator_application_entity_title=originator_aet,
            move_originator_message_id=originator_id,
        )
        response, _ = await assoc.exchange.start(context.context_id, request, source)
    return assoc.status_of(response, str(context.abstract_syntax))


async def _prepare(
    assoc: ServiceClassUser, dataset: str | os.PathLike[str] | Dataset | BinaryIO
) -> tuple[PresentationContextTuple, str, DataSetSource]:
    """Return the presentation context to use, the SOP Instance UID, and the data set encoded for the context."""
    if isinstance(dataset, Dataset):
        return _from_dataset(assoc, dataset)
    threads = assoc.ae.threads
    if isinstance(dataset, str | os.PathLike):
        opened = await open_instance(dataset, threads)
    elif hasattr(dataset, "read"):
        opened = await open_file_like(cast("BinaryIO", dataset), threads)
    else:
        raise TypeError(f"a path, a Dataset or a binary file can be sent, not {type(dataset).__name__}")
    meta = opened.meta
    try:
        assoc.exchange.check()
        context = _context(assoc, meta.media_storage_sop_class_uid, meta.transfer_syntax_uid)
        if context.transfer_syntax == meta.transfer_syntax_uid:
            return context, meta.media_storage_sop_instance_uid, opened.source
        if not isinstance(dataset, str | os.PathLike):
            raise NoPresentationContext(
                f"the file is in {meta.transfer_syntax_uid} and only {context.transfer_syntax} was accepted:"
                " give a path or a Dataset, which can be converted"
            )
    except BaseException:
        opened.source.close()
        raise
    opened.source.close()
    encoded = await threads.run(convert_file, dataset, str(context.transfer_syntax))
    return context, meta.media_storage_sop_instance_uid, BytesSource(encoded)


def _from_dataset(assoc: ServiceClassUser, dataset: Dataset) -> tuple[PresentationContextTuple, str, DataSetSource]:
    sop_class, instance = dataset.get("SOPClassUID"), dataset.get("SOPInstanceUID")
    if not sop_class or not instance:
        raise DataSetError("the Dataset has no SOPClassUID or no SOPInstanceUID, which C-STORE needs")
    context = _context(assoc, str(sop_class), _syntax_of(dataset))
    return context, str(instance), BytesSource(encode_dataset(dataset, str(context.transfer_syntax)))


def _syntax_of(dataset: Dataset) -> str:
    """Return the transfer syntax that *dataset* is in, as its File Meta Information or the way it was read says."""
    meta: Any = getattr(dataset, "file_meta", None)
    if meta is not None and meta.get("TransferSyntaxUID"):
        return str(meta.TransferSyntaxUID)
    # Without one it is not compressed, as far as anybody can tell: any uncompressed syntax will do.
    return str(ImplicitVRLittleEndian if dataset.original_encoding[0] else ExplicitVRLittleEndian)


def _context(assoc: ServiceClassUser, sop_class: str, syntax: str) -> PresentationContextTuple:
    """
    Return the context with exactly *syntax*, else one that the data set can be converted for.

    :raises NoPresentationContext: there is neither.
    """
    try:
        return assoc.context_for(sop_class, syntax)
    except NoPresentationContext:
        if syntax not in UNCOMPRESSED:
            raise
    for other in UNCOMPRESSED_BY_PREFERENCE:
        try:
            return assoc.context_for(sop_class, other)
        except NoPresentationContext:
            continue
    return assoc.context_for(sop_class, syntax)


#: What to convert to, the least troublesome first: Explicit VR keeps the VRs, deflating costs time.
UNCOMPRESSED_BY_PREFERENCE = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    *sorted(UNCOMPRESSED - {ExplicitVRLittleEndian, ImplicitVRLittleEndian}, reverse=True),
)
