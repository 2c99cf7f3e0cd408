"""
Sending instances: from a path, a Dataset or a file-like object to a C-STORE request (PS3.7 9.1.1).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomtwist.datasets.codec import UNCOMPRESSED, encode_dataset
from dicomtwist.datasets.sources import (
    BytesSource,
    DataSetSource,
    OpenedInstance,
    convert_file,
    open_file_like,
    open_instance,
    open_path,
)
from dicomtwist.dimse.messages import CStoreRQ, Response
from dicomtwist.dimse.status import Status
from dicomtwist.errors import AssociationError, DataSetError, NoPresentationContext, NotEstablished
from dicomtwist.presentation import PresentationContextTuple

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from dicomtwist.exchange.exchange import InvokingAssociation
    from dicomtwist.runtime.threads import WorkerThreads

#: What can be sent: the path of a Part 10 file, the bytes of one, an open one, or a Dataset.
Instance: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | Dataset"


class OutgoingInstance:
    """
    An instance that is going to be sent. It is open: to be encoded for a context, or to be closed.

    :param instance: what the user gave.
    :param source: the data set as it is in a file; of a Dataset there is none.
    :ivar sop_class_uid: its SOP Class UID.
    :ivar sop_instance_uid: its SOP Instance UID.
    :ivar transfer_syntax: the UID of the transfer syntax that it is in.
    :ivar held: how much of a file is in memory, in bytes.
    """

    __slots__ = ("_instance", "_source", "held", "sop_class_uid", "sop_instance_uid", "transfer_syntax")

    def __init__(
        self,
        instance: Instance,
        source: DataSetSource | None,
        sop_class_uid: str,
        sop_instance_uid: str,
        transfer_syntax: str,
        held: int = 0,
    ) -> None:
        self._instance = instance
        self._source = source
        self.held = held
        self.sop_class_uid = sop_class_uid
        self.sop_instance_uid = sop_instance_uid
        self.transfer_syntax = transfer_syntax

    async def encoded(self, transfer_syntax: str, threads: WorkerThreads) -> DataSetSource:
        """
        Return the data set in *transfer_syntax*, converted where it is in another one.

        :raises NoPresentationContext: it would have to be converted and cannot be read again.
        """
        instance = self._instance
        if isinstance(instance, Dataset):
            return BytesSource(encode_dataset(instance, transfer_syntax))
        source = self.as_it_is(transfer_syntax)
        if source is not None:
            return source
        self.close()
        if not isinstance(instance, str | os.PathLike):
            raise NoPresentationContext(
                f"the file is in {self.transfer_syntax} and only {transfer_syntax} was accepted:"
                " give a path or a Dataset, which can be converted"
            )
        return BytesSource(await threads.run(convert_file, instance, transfer_syntax))

    def as_it_is(self, transfer_syntax: str) -> DataSetSource | None:
        """Return the data set of a file that is in *transfer_syntax*; ``None`` where there is something to be done for it."""
        if transfer_syntax != self.transfer_syntax:
            return None
        source, self._source = self._source, None
        return source

    def close(self) -> None:
        """Close the file."""
        source, self._source = self._source, None
        if source is not None:
            source.close()


async def open_outgoing(instance: Instance, threads: WorkerThreads) -> OutgoingInstance:
    """
    Open what a user gave to be sent.

    :raises OSError: it cannot be read.
    :raises NotDicomFile: it is no Part 10 file.
    :raises DataSetError: a Dataset does not say what it is.
    :raises TypeError: it is none of what can be sent.
    """
    if isinstance(instance, Dataset):
        sop_class, sop_instance = instance.get("SOPClassUID"), instance.get("SOPInstanceUID")
        if not sop_class or not sop_instance:
            raise DataSetError("the Dataset has no SOPClassUID or no SOPInstanceUID, which C-STORE needs")
        return OutgoingInstance(instance, None, str(sop_class), str(sop_instance), _syntax_of(instance))
    if isinstance(instance, str | os.PathLike):
        opened = await open_instance(instance, threads)
    elif isinstance(instance, bytes):
        opened = await open_file_like(BytesIO(instance), threads)
    elif hasattr(instance, "read"):
        opened = await open_file_like(cast("BinaryIO", instance), threads)
    else:
        raise TypeError(f"a path, a Dataset or a binary file can be sent, not {type(instance).__name__}")
    return _of_file(instance, opened)


def open_paths(
    paths: Sequence[str | os.PathLike[str]], threads: WorkerThreads, enough: int
) -> list[OutgoingInstance | Exception]:
    """
    Open Part 10 files, one after the other in the thread that calls. Blocks.

    :param threads: where the rest of a large one is read.
    :param enough: where so many bytes of them are in memory, the others are left for another time.
    :returns: for each that was looked at what :func:`open_outgoing` gives, or raises.
    """
    results: list[OutgoingInstance | Exception] = []
    held = 0
    for path in paths:
        try:
            opened = open_path(path, threads)
        except Exception as error:
            results.append(error)
            continue
        results.append(_of_file(path, opened))
        held += opened.held
        if held >= enough:
            break
    return results


def _of_file(instance: Instance, opened: OpenedInstance) -> OutgoingInstance:
    meta = opened.meta
    return OutgoingInstance(
        instance,
        opened.source,
        meta.media_storage_sop_class_uid,
        meta.media_storage_sop_instance_uid,
        meta.transfer_syntax_uid,
        opened.held,
    )


def _syntax_of(dataset: Dataset) -> str:
    """Return the transfer syntax that *dataset* is in, as its File Meta Information or the way it was read says."""
    meta: Any = getattr(dataset, "file_meta", None)
    if meta is not None and meta.get("TransferSyntaxUID"):
        return str(meta.TransferSyntaxUID)
    # Without one it is not compressed, as far as anybody can tell: any uncompressed syntax will do.
    return str(ImplicitVRLittleEndian if dataset.original_encoding[0] else ExplicitVRLittleEndian)


class PreparedStore:
    """
    A C-STORE request that can be sent at once, or closed.

    :ivar assoc: the association that it is for.
    :ivar context: its presentation context.
    :ivar request: its command set.
    """

    __slots__ = ("_source", "assoc", "context", "request")

    def __init__(
        self, assoc: InvokingAssociation, context: PresentationContextTuple, request: CStoreRQ, source: DataSetSource
    ) -> None:
        self.assoc = assoc
        self.context = context
        self.request = request
        self._source = source

    def start(self) -> Deferred[tuple[Response, bytes | None]]:
        """Send it, in a place in the window that the caller has; the Deferred is that of :meth:`Exchange.start`."""
        return self.assoc.exchange.start(self.context.context_id, self.request, self._source)

    async def send(self) -> Status:
        """The same, and wait for the answer."""
        response, _ = await self.start()
        return self.assoc.status_of(response, str(self.context.abstract_syntax))

    def close(self) -> None:
        """Do not send it."""
        self._source.close()


async def prepare(
    assoc: InvokingAssociation,
    instance: OutgoingInstance,
    priority: int,
    originator_aet: str | None = None,
    originator_id: int | None = None,
) -> PreparedStore:
    """
    Choose the presentation context for *instance*, which is closed where that fails, and encode it for the context.

    :raises NoPresentationContext: none that was accepted fits.
    :raises DataSetError: it cannot be encoded.
    """
    try:
        assoc.exchange.check()
        context = _context(assoc, instance.sop_class_uid, instance.transfer_syntax)
        source = await instance.encoded(str(context.transfer_syntax), assoc.ae.threads)
    except BaseException:
        instance.close()
        raise
    return _prepared(assoc, context, instance, source, priority, originator_aet, originator_id)


def prepare_at_once(
    assoc: InvokingAssociation,
    instance: OutgoingInstance,
    priority: int,
    originator_aet: str | None = None,
    originator_id: int | None = None,
) -> PreparedStore | None:
    """Do the same for a file that goes as it is; return ``None``, and leave *instance*, where :func:`prepare` is needed."""
    try:
        assoc.exchange.check()
        context = assoc.context_for(instance.sop_class_uid, instance.transfer_syntax)
    except (AssociationError, NotEstablished, NoPresentationContext):
        return None
    source = instance.as_it_is(instance.transfer_syntax)
    if source is None:
        return None
    return _prepared(assoc, context, instance, source, priority, originator_aet, originator_id)


def _prepared(
    assoc: InvokingAssociation,
    context: PresentationContextTuple,
    instance: OutgoingInstance,
    source: DataSetSource,
    priority: int,
    originator_aet: str | None,
    originator_id: int | None,
) -> PreparedStore:
    request = CStoreRQ(
        affected_sop_class_uid=str(context.abstract_syntax),
        affected_sop_instance_uid=instance.sop_instance_uid,
        priority=priority,
        move_originator_application_entity_title=originator_aet,
        move_originator_message_id=originator_id,
    )
    return PreparedStore(assoc, context, request, source)


def _context(assoc: InvokingAssociation, sop_class: str, syntax: str) -> PresentationContextTuple:
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
