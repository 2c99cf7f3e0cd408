"""
Storing instances: the bodies of STOW-RS requests, made from files while they are sent, and the results in the responses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from io import BytesIO
from typing import BinaryIO, Final

from pydicom import Dataset

from dicomtwist.datasets.codec import encode_dataset
from dicomtwist.datasets.identity import read_identity
from dicomtwist.dicomweb.json_model import JSONModelError, decode_json
from dicomtwist.dicomweb.media_types import DICOM
from dicomtwist.dicomweb.multipart import MultipartWriter
from dicomtwist.errors import DataSetError
from dicomtwist.part10 import FileMeta, NotDicomFile, encode_preamble_and_meta
from dicomtwist.runtime.regular_files import open_regular
from dicomtwist.settings import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

__all__ = ["Outgoing", "Source", "StoreOutcome", "StoredInstance", "prepare", "results_in", "unsent"]

#: An instance to store: the path of a file, a file in memory, or a Dataset.
Source = str | os.PathLike[str] | bytes | Dataset

#: The bytes that are read or copied at a time.
PIECE: Final = 512 * 1024
_EXPLICIT: Final = "1.2.840.10008.1.2.1"

#: The meanings of failure and warning reasons (PS3.18 Table I.2-2, PS3.4 B.2.3).
REASONS: Final = {
    0x0110: "processing failure",
    0x0111: "the server has the instance already",
    0x0117: "the SOP Instance UID is invalid",
    0x0122: "the server does not support the SOP Class",
    0x0124: "not authorised",
    0xA700: "out of resources",
    0xA900: "the data set does not match its SOP Class",
    0xB000: "elements were changed",
    0xB006: "elements were discarded",
    0xB007: "the data set does not match its SOP Class",
    0xC000: "the server cannot understand the data set",
    0xC122: "the server does not support the transfer syntax",
}


class StoreOutcome(StrEnum):
    """The outcome of storing one instance."""

    STORED = "stored"
    """The server has stored it, or has it already."""
    FAILED = "failed"
    """It is not stored."""


@dataclass(slots=True)
class StoredInstance:
    """
    The result of storing one instance.

    :ivar source: the argument that it was given as.
    :ivar sop_class: its SOP Class UID; empty if it could not be read.
    :ivar sop_instance: its SOP Instance UID, likewise.
    :ivar outcome: whether it is stored.
    :ivar reason: the failure or warning reason (0008,1197), (0008,1196); 0 without one.
    :ivar words: why it failed, or what the warning is; empty if neither.
    :ivar retrieve_url: the URL at which the server has it; empty if it did not say.
    """

    source: Source
    sop_class: str = ""
    sop_instance: str = ""
    outcome: StoreOutcome = StoreOutcome.FAILED
    reason: int = 0
    words: str = ""
    retrieve_url: str = ""


@dataclass(slots=True)
class Outgoing:
    """
    An instance that can be sent.

    :ivar source: the argument that it was given as.
    :ivar meta: its File Meta Information, with the UIDs of the data set.
    :ivar size: its size as a PS3.10 file, in bytes.
    :ivar content: its bytes; ``None`` for a file.
    """

    source: Source
    meta: FileMeta
    size: int
    content: bytes | None = field(default=None, repr=False)

    def result(
        self, outcome: StoreOutcome = StoreOutcome.FAILED, words: str = "", reason: int = 0, url: str = ""
    ) -> StoredInstance:
        """Return the result of storing it."""
        meta = self.meta
        return StoredInstance(
            self.source,
            meta.media_storage_sop_class_uid,
            meta.media_storage_sop_instance_uid,
            outcome,
            reason,
            words,
            url,
        )

    def open(self) -> BinaryIO:
        """
        Open it at its beginning.

        :raises OSError: the file cannot be read, or has another size by now.
        """
        if self.content is not None:
            return BytesIO(self.content)
        assert isinstance(self.source, str | os.PathLike)
        file = open_regular(os.fspath(self.source), buffering=0)
        if os.fstat(file.fileno()).st_size != self.size:
            file.close()
            raise OSError("the file has changed while it was being sent")
        return file


def prepare(source: Source) -> Outgoing | StoredInstance:
    """
    Return an instance to send, or the result that says why it cannot be sent. Blocks.

    :param source: a path, the bytes of a PS3.10 file, or a Dataset, which needs the attributes of its SOP Common Module.
    """
    try:
        if isinstance(source, Dataset):
            return _encoded(source)
        if isinstance(source, bytes):
            content, file = source, BytesIO(source)
            return _checked(Outgoing(source, read_identity(file), len(content), content))
        with open_regular(os.fspath(source), buffering=0) as opened:
            return _checked(Outgoing(source, read_identity(opened), os.fstat(opened.fileno()).st_size))
    except OSError as error:
        return StoredInstance(source, words=error.strerror or str(error))
    except (NotDicomFile, DataSetError, ValueError) as error:
        return StoredInstance(source, words=str(error))


def _checked(outgoing: Outgoing) -> Outgoing:
    meta = outgoing.meta
    if not meta.media_storage_sop_class_uid or not meta.media_storage_sop_instance_uid:
        raise ValueError("it has no SOP Class or SOP Instance UID")
    return outgoing


def _encoded(dataset: Dataset) -> Outgoing:
    file_meta = getattr(dataset, "file_meta", None)
    syntax = str(getattr(file_meta, "TransferSyntaxUID", "") or _EXPLICIT)
    meta = FileMeta(
        str(dataset.get("SOPClassUID") or ""),
        str(dataset.get("SOPInstanceUID") or ""),
        syntax,
        IMPLEMENTATION_CLASS_UID,
        IMPLEMENTATION_VERSION_NAME,
    )
    head = encode_preamble_and_meta(meta)
    content = head + encode_dataset(dataset, syntax)
    return _checked(Outgoing(dataset, meta, len(content), content))


_HEADERS: Final = (("Content-Type", DICOM),)


def body_length(boundary: str, batch: Sequence[Outgoing]) -> int:
    """Return the length of the body of a batch, in bytes."""
    return MultipartWriter.length(boundary, [(_HEADERS, one.size) for one in batch])


def body_pieces(
    boundary: str, batch: Sequence[Outgoing], failed: Callable[[Outgoing, OSError], object]
) -> Generator[bytes, None, None]:
    """
    Yield the body of a batch. Each step blocks; small instances are joined.

    :param failed: called with an instance whose file cannot be read, before the error is raised.
    :raises OSError: a file cannot be read.
    """
    writer = MultipartWriter(boundary)
    piece = bytearray()
    for outgoing in batch:
        piece += writer.begin(_HEADERS)
        try:
            with outgoing.open() as file:
                left = outgoing.size
                while left:
                    data = file.read(min(PIECE, left))
                    if not data:
                        raise OSError("the file has changed while it was being sent")
                    left -= len(data)
                    piece += data
                    if len(piece) >= PIECE:
                        yield bytes(piece)
                        piece.clear()
        except OSError as error:
            failed(outgoing, error)
            raise
    piece += writer.end()
    yield bytes(piece)


# --- the response


def results_in(status: int, document: bytes, is_json: bool, batch: Sequence[Outgoing]) -> list[StoredInstance] | None:
    """
    Return the results of the instances of a batch, in its order (PS3.18 10.5.3 and Annex I).

    :param status: the status code of the response.
    :param document: its body.
    :param is_json: whether that is DICOM JSON.
    :returns: ``None`` if the response does not say which instances are stored.
    """
    found = _decoded(document) if is_json and document.strip() else None
    if found is None:
        # A server that answers 200 in another way has stored all (PS3.18 Table 10.5.3-1).
        return [one.result(StoreOutcome.STORED) for one in batch] if status in (200, 201, 204) else None
    stored = _items(found, "ReferencedSOPSequence")
    failed = {**_items(found, "FailedSOPSequence"), **_items(found, "OtherFailuresSequence")}
    if not stored and not failed and status not in (200, 201, 204):
        return None
    results: list[StoredInstance] = []
    for one in batch:
        uid = one.meta.media_storage_sop_instance_uid
        if uid in failed and uid not in stored:
            reason = _number(failed[uid], "FailureReason")
            results.append(one.result(StoreOutcome.FAILED, _meaning(reason), reason))
        elif uid in stored:
            item = stored[uid]
            reason = _number(item, "WarningReason")
            url = str(item.get("RetrieveURL") or "")
            results.append(one.result(StoreOutcome.STORED, _meaning(reason) if reason else "", reason, url))
        elif failed or stored:
            results.append(one.result(words="the response of the server does not mention it"))
        else:
            results.append(one.result(StoreOutcome.STORED))
    return results


def _decoded(document: bytes) -> Dataset | None:
    try:
        found = decode_json(document)
    except JSONModelError:
        return None
    return found[0] if len(found) == 1 else None


def _items(dataset: Dataset, keyword: str) -> dict[str, Dataset]:
    items = dataset.get(keyword)
    if not isinstance(items, Sequence):
        return {}  # the server gives the element another VR
    return {str(item.get("ReferencedSOPInstanceUID") or ""): item for item in items if isinstance(item, Dataset)}


def _number(dataset: Dataset, keyword: str) -> int:
    value = dataset.get(keyword)
    return value if isinstance(value, int) else 0


def _meaning(reason: int) -> str:
    for code in (reason, reason & 0xFF00, reason & 0xF000):
        if code in REASONS:
            return f"{REASONS[code]} (0x{reason:04X})"
    return f"reason 0x{reason:04X}" if reason else "the server gave no reason"


def unsent(batch: Iterable[Outgoing], words: str) -> list[StoredInstance]:
    """Return the results of instances that were not stored, for the same reason."""
    return [one.result(words=words) for one in batch]
