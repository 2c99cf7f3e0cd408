"""
Data sets as pydicom Datasets and as bytes.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import MutableSequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from pydicom import DataElement, Dataset
from pydicom.charset import convert_encodings, default_encoding
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import correct_ambiguous_vr_element, write_dataset
from pydicom.hooks import raw_element_vr
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pydicom.valuerep import AMBIGUOUS_VR, STR_VR
from pydicom.values import convert_numbers

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
            data = inflate(data, limits)
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


def inflate(data: bytes, limits: DecodingLimits = NO_LIMITS) -> bytes:
    """
    Return a data set in Deflated Explicit VR Little Endian as Explicit VR Little Endian has it.

    :raises DataSetTooLong: it inflates to more bytes than *limits* allow.
    :raises DataSetError: it ends too early, or inflates to more than :data:`MAX_INFLATED`.
    """
    most = MAX_INFLATED if limits.length is None else min(limits.length, MAX_INFLATED)
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = decompressor.decompress(data, most)
    except zlib.error as error:
        raise DataSetError(f"the data set is not deflated: {error}") from error
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
        copy = Dataset({tag: dataset.get_item(tag) for tag in list(dataset.keys()) if tag.group > 2})
        implicit, little_endian = dataset.original_encoding
        if implicit is not None and little_endian is not None:
            # So pydicom writes what was read and not changed as it came, with its padding.
            copy.set_original_encoding(implicit, little_endian, dataset.original_character_set)
            if (implicit, little_endian) != (buffer.is_implicit_VR, buffer.is_little_endian):
                copy = _convert(copy, buffer.is_implicit_VR, buffer.is_little_endian)
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


#: The encodings of Python for the texts of a data set.
_Encodings: TypeAlias = str | MutableSequence[str]

#: The VRs whose bytes have no order (PS3.5 7.3): strings, and bytes.
_WITHOUT_ORDER: Final = frozenset(str(vr) for vr in STR_VR) | {"OB", "UN"}
#: The VRs of these that are padded with NUL and not with a space (PS3.5 6.2).
_PADDED_WITH_NUL: Final = frozenset(("OB", "UI", "UN"))
#: The array type codes of the VRs whose numbers pydicom keeps as bytes.
_UNIT_CODES: Final = {"OW": "H", "OF": "I", "OL": "I", "OD": "Q", "OV": "Q"}


def _convert(dataset: Dataset, implicit: bool, little_endian: bool) -> Dataset:
    """
    Return a copy of *dataset* that pydicom writes with other headers, or in the other byte order.

    Texts keep their bytes. pydicom would decode and encode them, which replaces each byte that is not of the Specific Character
    Set, such as Latin-1 in a data set that claims UTF-8, and writes names in Japanese with other escape sequences.

    :param dataset: a data set that was read, and its items with it. Those of its elements that have to be are decoded in it.
    :param implicit: whether the copy is for implicit VR.
    :param little_endian: whether the copy is for little endian.
    """
    was_little_endian = bool(dataset.original_encoding[1])
    swap = was_little_endian != little_endian
    # The decoding of an element may depend on others, so each that needs it is decoded before the first is copied.
    _decode(dataset, swap, default_encoding)
    _settle_vrs(dataset, was_little_endian, [dataset])
    return _copy(dataset, implicit, little_endian, swap, default_encoding)


def _decode(dataset: Dataset, swap: bool, inherited: _Encodings) -> None:
    """
    Decode the elements of *dataset* and its items, but those that keep their bytes.

    :param inherited: the encodings of the data set that *dataset* is an item of.
    """
    encodings = _encodings(dataset, inherited)
    is_same_set = dataset.original_character_set == encodings  # or a program has named another one
    for tag, element in list(dataset.items()):
        if isinstance(element, RawDataElement):
            vr = _vr(dataset, element)
            if is_same_set and len(vr) == 2 and vr != "SQ" and (vr in _WITHOUT_ORDER or not swap):
                if element.value is not None or not element.length:
                    continue
            element = _decoded(dataset, tag)
        if element.VR == "SQ":
            for item in element.value or ():
                _decode(item, swap, encodings)


#: The errors of pydicom if the element that a VR depends on is missing, empty, or of another VR.
_UNSETTLED: Final = (AttributeError, LookupError, TypeError)


def _decoded(dataset: Dataset, tag: BaseTag) -> DataElement:
    """Return an element, decoded; its VR may still be one of several."""
    try:
        return dataset[tag]
    except _UNSETTLED:
        return dataset[tag]  # it is decoded by now, or fails for another reason


def _settle_vrs(dataset: Dataset, little_endian: bool, around: list[Dataset]) -> None:
    """
    Give each decoded element of *dataset* and its items one VR, if the dictionary has several for it.

    pydicom leaves them to retired elements, such as Curve Data, and to elements without the one that their VR depends on, as
    LUT Data on a LUT Descriptor; and it cannot write any of these.

    :param around: *dataset*, and the data sets that it is an item of, the innermost first.
    """
    for element in list(dataset.values()):
        if isinstance(element, RawDataElement):
            continue
        if element.VR == "SQ":
            for item in element.value or ():
                _settle_vrs(item, little_endian, [item, *around])
        elif element.VR in AMBIGUOUS_VR:
            try:
                correct_ambiguous_vr_element(element, dataset, little_endian, around)
            except _UNSETTLED:
                pass
            if element.VR in AMBIGUOUS_VR:
                _settle_vr(element, little_endian, around)


def _settle_vr(element: DataElement, little_endian: bool, around: list[Dataset]) -> None:
    """Give *element* the VR of words; or of the pixels' numbers, if it may be no other one."""
    if "OW" in element.VR:
        element.VR = "OW"
        return
    signs = (one.get("PixelRepresentation") for one in around)
    element.VR = "SS" if next((sign for sign in signs if sign is not None), 0) else "US"
    if isinstance(element.value, bytes):
        element.value = convert_numbers(element.value, little_endian, "h" if element.VR == "SS" else "H")


def _encodings(dataset: Dataset, inherited: _Encodings) -> _Encodings:
    """Return the encodings of Python for the texts of *dataset*."""
    return convert_encodings(dataset.SpecificCharacterSet) if "SpecificCharacterSet" in dataset else inherited


def _vr(dataset: Dataset, element: RawDataElement) -> str:
    """Return the VR that pydicom would decode *element* as."""
    found: dict[str, Any] = {}
    raw_element_vr(element, found, ds=dataset)
    return str(found["VR"])


def _padded(vr: str, value: bytes) -> bytes:
    return value + (b"\0" if vr in _PADDED_WITH_NUL else b" ") if len(value) & 1 else value


def _copy(dataset: Dataset, implicit: bool, little_endian: bool, swap: bool, inherited: _Encodings) -> Dataset:
    encodings = _encodings(dataset, inherited)
    elements: dict[BaseTag, DataElement | RawDataElement] = {}
    for tag, element in dataset.items():
        if isinstance(element, RawDataElement):
            vr = _vr(dataset, element)
            element = RawDataElement(tag, vr, element.length, _padded(vr, element.value or b""), *element[4:])
        elif element.VR == "SQ":
            items = [_copy(item, implicit, little_endian, swap, encodings) for item in element.value or ()]
            element = DataElement(tag, "SQ", items, is_undefined_length=element.is_undefined_length)
        elif swap and element.VR in _UNIT_CODES and isinstance(element.value, bytes):
            element = DataElement(tag, element.VR, _swapped(element.value, _UNIT_CODES[element.VR]))
        elements[tag] = element
    copy = Dataset(elements, parent_encoding=inherited)
    copy.is_undefined_length_sequence_item = dataset.is_undefined_length_sequence_item
    # As if it had been read so: pydicom writes its raw elements as they are.
    copy.set_original_encoding(implicit, little_endian, encodings)
    return copy


def _swapped(value: bytes, code: str) -> bytes:
    units = array(code, value)
    units.byteswap()
    return units.tobytes()


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
