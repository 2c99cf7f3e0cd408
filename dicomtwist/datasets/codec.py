"""
Data sets as pydicom Datasets and as bytes.
"""

from __future__ import annotations

import zlib
from array import array
from dataclasses import dataclass

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from dicomtwist.datasets.nesting import CountedFile, ElementCount, check_depth, check_nesting
from dicomtwist.errors import DataSetError, DataSetTooLong
from dicomtwist.part10 import FileMeta

#: The most bytes that :func:`decode_dataset` inflates a deflated data set to.
MAX_INFLATED = 1024 * 1024 * 1024

#: The transfer syntaxes that a data set can be converted between: they differ only in how elements are written (PS3.5 A.1 to
#: A.5).
UNCOMPRESSED = frozenset(
    (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
)


#: The length of the header of an element, in bytes: the shortest element.
_HEADER = 8


@dataclass(frozen=True, slots=True)
class DecodingLimits:
    """
    Limits on a data set that is decoded; ``None`` for no limit.

    :ivar length: the most bytes, after a deflated data set is inflated.
    :ivar elements: the most elements and items of sequences together, in all levels.
    :ivar values: the most further values of elements, each after a backslash in a VR with several values, or a tag.
    """

    length: int | None = None
    elements: int | None = None
    values: int | None = None

    def check_length(self, length: int) -> None:
        """:raises DataSetTooLong: *length* is more bytes than the limit."""
        if self.length is not None and length > self.length:
            raise DataSetTooLong(f"a data set of more than {self.length} bytes")


NO_LIMITS = DecodingLimits()


def decode_dataset(data: bytes, transfer_syntax: str, limits: DecodingLimits = NO_LIMITS) -> Dataset:
    """
    Decode a whole data set, with all its sequences. Padding behind its last element, up to 7 NULs or spaces, is skipped.

    :param data: the bytes as the network carries them, without File Meta Information.
    :param transfer_syntax: the UID of their transfer syntax.
    :param limits: the limits on the data set; the decoding ends as soon as it exceeds one.
    :raises DataSetTooLong: the data set exceeds one of *limits*.
    :raises DataSetError: the bytes cannot be decoded, end inside an element, inflate to more than :data:`MAX_INFLATED`, or
        have sequences nested deeper than :data:`~dicomtwist.datasets.nesting.MAX_NESTED`.
    """
    syntax = UID(transfer_syntax)
    count = ElementCount(limits.elements, limits.values)
    limits.check_length(len(data))
    try:
        if syntax == DeflatedExplicitVRLittleEndian:
            data = _inflate(data, limits)
        dataset, file = _read(data, syntax, count)
        padding = len(file.tail) if file.cut_off and len(file.tail) < _HEADER and not file.tail.strip(b"\0 ") else 0
        if padding:
            # Whether these bytes are padding, or belong to a last element that is cut off, shows without them.
            data = data[:-padding]
            dataset, file = _read(data, syntax, count)
    except DataSetError:
        raise
    except Exception as error:
        count.check()
        raise DataSetError(f"the data set cannot be decoded as {syntax.name}: {error}") from error
    if file.cut_off or file.tell() != len(data):
        raise DataSetError(f"the data set cannot be decoded as {syntax.name}: it ends inside an element")
    check_nesting(dataset, count)
    return dataset


def _read(data: bytes, syntax: UID, count: ElementCount) -> tuple[Dataset, CountedFile]:
    file = CountedFile(data, count)
    implicit, little_endian = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    return read_dataset(file, implicit, little_endian, bytelength=len(data)), file


def _inflate(data: bytes, limits: DecodingLimits) -> bytes:
    most = MAX_INFLATED if limits.length is None else min(limits.length, MAX_INFLATED)
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = decompressor.decompress(data, most)
    if decompressor.unconsumed_tail:
        if most < MAX_INFLATED:
            raise DataSetTooLong(f"a data set of more than {most} bytes")
        raise DataSetError(f"the deflated data set inflates to more than {MAX_INFLATED} bytes")
    if not decompressor.eof:
        raise DataSetError("the deflated data set ends too early")
    return inflated


def encode_dataset(dataset: Dataset, transfer_syntax: str) -> bytes:
    """
    Encode *dataset* for the network, without File Meta Information and command set elements.

    :param transfer_syntax: the UID of the transfer syntax to encode in. Pixel data is not compressed or
        decompressed; its bytes are swapped if the byte order changes.
    :raises DataSetError: an element cannot be encoded, or sequences are nested too deep.
    """
    check_depth(dataset)
    syntax = UID(transfer_syntax)
    buffer = DicomBytesIO()
    buffer.is_implicit_VR = syntax == ImplicitVRLittleEndian
    buffer.is_little_endian = syntax != ExplicitVRBigEndian
    try:
        was_little_endian = dataset.original_encoding[1]
        source = dataset
        if was_little_endian is not None and was_little_endian != buffer.is_little_endian:
            source = _swapped(dataset)
        elif dataset.original_encoding[0] not in (None, buffer.is_implicit_VR):
            _decode_all(dataset)
        copy = Dataset({tag: source.get_item(tag) for tag in list(source.keys()) if tag.group > 2})
        implicit, little_endian = source.original_encoding
        if implicit is not None and little_endian is not None:
            # So pydicom writes what was read and not changed as it came, with its padding.
            copy.set_original_encoding(implicit, little_endian, source.original_character_set)
        write_dataset(buffer, copy)
    except Exception as error:
        raise DataSetError(f"the data set cannot be encoded as {syntax.name}: {error}") from error
    encoded = buffer.getvalue()
    if syntax == DeflatedExplicitVRLittleEndian:
        return deflate(encoded)
    return encoded


def deflate(data: bytes) -> bytes:
    """Return an encoded data set as Deflated Explicit VR Little Endian has it (PS3.5 A.5), with an even length."""
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    encoded = compressor.compress(data) + compressor.flush()
    return encoded + b"\0" * (len(encoded) & 1)


def _decode_all(dataset: Dataset) -> None:
    """Decode the value of every element, so that none is written as the raw bytes that were read."""
    for _ in dataset.iterall():
        pass


#: The array type codes of the VRs whose numbers pydicom keeps as bytes (PS3.5 7.3).
_UNIT_CODES = {"OW": "H", "OF": "I", "OL": "I", "OD": "Q", "OV": "Q"}


def _swapped(dataset: Dataset) -> Dataset:
    """Return a copy of *dataset* in the other byte order, for the numbers that pydicom keeps as bytes."""
    import copy

    _decode_all(dataset)
    swapped = copy.deepcopy(dataset)
    for element in swapped.iterall():
        code = _UNIT_CODES.get(element.VR)
        if code is not None and isinstance(element.value, bytes):
            units = array(code, element.value)
            units.byteswap()
            element.value = units.tobytes()
    return swapped


def file_meta_dataset(meta: FileMeta) -> FileMetaDataset:
    """Return *meta* as the File Meta Information of pydicom."""
    dataset = FileMetaDataset()
    dataset.MediaStorageSOPClassUID = UID(meta.media_storage_sop_class_uid)
    dataset.MediaStorageSOPInstanceUID = UID(meta.media_storage_sop_instance_uid)
    dataset.TransferSyntaxUID = UID(meta.transfer_syntax_uid)
    if meta.implementation_class_uid:
        dataset.ImplementationClassUID = UID(meta.implementation_class_uid)
    if meta.implementation_version_name:
        dataset.ImplementationVersionName = meta.implementation_version_name
    if meta.source_ae_title:
        dataset.SourceApplicationEntityTitle = meta.source_ae_title
    return dataset
