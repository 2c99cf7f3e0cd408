"""
Modality Performed Procedure Step: modalities report the procedure steps that they perform (PS3.4 F.7, F.8).

Each step is a DICOM file in the folder ``.mpps`` of the archive, named by its UID. It is written as instances are: completely
or not at all, and with durability full it is on the medium before the request is acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from typing import Any, Final, TypeAlias

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.multival import MultiValue
from pydicom.uid import ExplicitVRLittleEndian
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist import evt
from dicomtwist.archive.index.normal_forms import normal_date, time_key
from dicomtwist.archive.services.no_room import NoRoomLog, refusal_words
from dicomtwist.archive.services.turns import Turns
from dicomtwist.archive.storage.file_store import file_name
from dicomtwist.archive.storage.interfaces import Storage
from dicomtwist.archive.storage.types import InvalidUID, StoreError, check_uids, lacks_room
from dicomtwist.datasets.character_sets import (
    TEXT_VRS,
    UNICODE,
    decode_texts,
    decode_values,
    encode_texts,
    unclaimed_text,
)
from dicomtwist.datasets.codec import decode_dataset
from dicomtwist.datasets.identifier import encode_with_character_set
from dicomtwist.datasets.nesting import ElementCount, check_nesting
from dicomtwist.dimse import status as codes
from dicomtwist.dimse.status import Status
from dicomtwist.errors import DataSetError, DataSetTooLong, ExecutorFull, Refused, loggable
from dicomtwist.part10 import FileMeta, NotDicomFile, encode_preamble_and_meta, read_file_meta
from dicomtwist.runtime.executors import Executor
from dicomtwist.runtime.networks import host_of
from dicomtwist.scp.dispatch import Route
from dicomtwist.sop_class import ModalityPerformedProcedureStep, ModalityPerformedProcedureStepRetrieve

__all__ = ["FOLDER", "PerformedProcedureSteps"]

#: The folder of the files, in that of the archive.
FOLDER: Final = ".mpps"
#: The maximum length of an attribute list in a request, and of the file of a step, in bytes.
MAX_STEP_LENGTH: Final = 16 * 1024 * 1024

IN_PROGRESS, COMPLETED, DISCONTINUED = "IN PROGRESS", "COMPLETED", "DISCONTINUED"
#: Error ID (0000,0903): the Performed Procedure Step Object may no longer be updated (PS3.4 F.7.2.2.4).
NO_LONGER_UPDATED: Final = 0xA710
#: Some of the requested attributes are missing (PS3.4 F.8.2.1.4).
OPTIONAL_ATTRIBUTES_NOT_SUPPORTED: Final = 0x0001

# PS3.4 table F.7.2-1: the attributes that N-CREATE must contain, with a value (type 1) or possibly empty (type 2).
_SCHEDULED: Final = "ScheduledStepAttributesSequence"
_TYPE_1: Final = (
    _SCHEDULED,
    *("PerformedProcedureStepID", "PerformedStationAETitle", "PerformedProcedureStepStartDate"),
    *("PerformedProcedureStepStartTime", "PerformedProcedureStepStatus", "Modality"),
)
_TYPE_2: Final = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "ReferencedPatientSequence"),
    *("PerformedStationName", "PerformedLocation", "PerformedProcedureStepDescription"),
    *("PerformedProcedureTypeDescription", "ProcedureCodeSequence", "PerformedProcedureStepEndDate"),
    *("PerformedProcedureStepEndTime", "StudyID", "PerformedProtocolCodeSequence", "PerformedSeriesSequence"),
)
_SCHEDULED_TYPE_1: Final = ("StudyInstanceUID",)
_SCHEDULED_TYPE_2: Final = (
    *("ReferencedStudySequence", "AccessionNumber", "RequestedProcedureID", "RequestedProcedureDescription"),
    *("ScheduledProcedureStepID", "ScheduledProcedureStepDescription", "ScheduledProtocolCodeSequence"),
)
_SERIES_TYPE_1: Final = ("ProtocolName", "SeriesInstanceUID")
#: The attributes that N-SET may not change.
_FIXED: Final = (
    _SCHEDULED,
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "ReferencedPatientSequence"),
    *("PerformedProcedureStepID", "PerformedStationAETitle", "PerformedStationName", "PerformedLocation"),
    *("PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "Modality", "StudyID"),
)
#: The attributes that must have a value before a step ends.
_FINAL: Final = ("PerformedProcedureStepEndDate", "PerformedProcedureStepEndTime")

#: A status, and an attribute list if there is one, encoded.
_Answer: TypeAlias = tuple[Status, bytes | None]


class PerformedProcedureSteps:
    """
    Stores performed procedure steps: an SCP of the SOP Classes Modality Performed Procedure Step and Modality Performed
    Procedure Step Retrieve.

    :param store: the storage that holds the steps, prepared.
    :param executor: the threads that read and write files; the caller holds it while the object is used.
    :param default_charset: the character set of text without one, see :class:`dicomtwist.archive.archive.Archive`.
    :param no_room: the log of what is refused without room, if the service shares one with others.

    :ivar routes: the requests that it performs.
    """

    log = Logger()

    def __init__(
        self, store: Storage, executor: Executor, *, default_charset: str = "", no_room: NoRoomLog | None = None
    ) -> None:
        self._files = store.side_folder(FOLDER)
        self._executor = executor
        self._default_charset = default_charset
        self._no_room = no_room or NoRoomLog(store, executor)
        # A request reads the file before it writes it, so requests run one after the other, in this process and among all. Its
        # data set is decoded then, so that those that wait take the memory of their bytes only.
        self._turns = Turns()
        self.routes = (
            Route(evt.EVT_N_CREATE, ModalityPerformedProcedureStep, self.handle_create),
            Route(evt.EVT_N_SET, ModalityPerformedProcedureStep, self.handle_set),
            Route(evt.EVT_N_GET, ModalityPerformedProcedureStepRetrieve, self.handle_get),
        )

    def start(self) -> None:
        """Do nothing: the service has no state of its own."""

    def stop(self) -> Deferred[None]:
        """Wait for the requests that are under way."""
        return self._turns.idle()

    # --- handlers

    @evt.decoding
    def handle_create(self, event: evt.CreateEvent) -> Deferred[_Answer]:
        """
        Store a step that has begun.

        :returns: a Deferred with the status and no attribute list: success after the step is stored; 0x0111 if it exists
            already, 0x0120 if an attribute is missing, 0x0121 if its value is missing, 0x0106 if a value is invalid or the
            status is not IN PROGRESS, 0x0110 if the storage refuses, 0x0213 if there is no room.
        """
        return self._one_by_one(event, self._create)

    @evt.decoding
    def handle_set(self, event: evt.SetEvent) -> Deferred[_Answer]:
        """
        Change a step that is in progress.

        :returns: a Deferred with the status and no attribute list: success after the change is stored; 0x0112 if there is no
            such step, 0x0110 with Error ID 0xA710 if it has ended, 0x0106 if a value is invalid or may not change, 0x0121
            if the step is to end and lacks a value that it needs then, 0x0213 if there is no room.
        """
        return self._one_by_one(event, self._set)

    def handle_get(self, event: evt.GetEvent) -> Deferred[_Answer]:
        """
        Return the attributes of a step.

        :returns: a Deferred with the status and the encoded attribute list: success, or 0x0001 if requested attributes are
            missing; 0x0112 if there is no such step.
        """
        share = self._executor.share(host_of(event.assoc.remote.address))
        return self._answered(event, share.run(self._get, event))

    def _one_by_one(self, event: evt.CreateEvent | evt.SetEvent, function: Callable[[Any], None]) -> Deferred[_Answer]:
        if len(event.encoded_dataset) > MAX_STEP_LENGTH:
            status = Status(codes.RESOURCE_LIMITATION, "", f"more than {MAX_STEP_LENGTH} bytes")
            return succeed((status, None))

        def perform() -> Deferred[None]:
            if not event.assoc.is_established:
                return succeed(None)  # the peer has gone while it waited
            return self._executor.run(self._exclusively, function, event)

        return self._answered(event, self._turns.run(host_of(event.assoc.remote.address), perform))

    def _answered(self, event: evt.DIMSEEvent, result: Deferred[Any]) -> Deferred[_Answer]:
        def answer(value: Any) -> _Answer:
            if isinstance(value, tuple):
                return value
            return Status.SUCCESS, None

        def refuse(reason: Failure) -> Any:
            status = _status_for(reason.value)
            if status is None:
                return reason
            if reason.value is not None and self._no_room.takes(reason.value, "performed procedure step"):
                return status, None
            event.assoc.log_refusal(
                self.log.warn,
                "{service} of {peer!r}: a performed procedure step was refused with 0x{status:04X}: {why}",
                service=event.request.SERVICE,
                peer=event.assoc.remote.ae_title,
                status=int(status),
                why=loggable(reason.value),
            )
            return status, None

        return result.addCallback(answer).addErrback(refuse)

    # --- in a worker thread

    def _exclusively(self, function: Callable[[Any], None], event: evt.CreateEvent | evt.SetEvent) -> None:
        """Call *function* under the lock that excludes other processes; the thread blocks until it has the lock."""
        with self._files.locked():
            function(event)

    def _create(self, event: evt.CreateEvent) -> None:
        uid = event.sop_instance_uid
        if file_name(uid) in self._files:
            raise Refused(codes.DUPLICATE_SOP_INSTANCE, "the step exists already")
        step, character_set = _decoded(event.attribute_list, self._default_charset)
        _check_new(step)
        self._write(step, character_set, uid, event)

    def _set(self, event: evt.SetEvent) -> None:
        uid = event.sop_instance_uid
        step, own = self._read(uid)
        if _text(step, "PerformedProcedureStepStatus") != IN_PROGRESS:
            comment = "Performed Procedure Step Object may no longer be updated"
            raise Refused(Status(codes.PROCESSING_FAILURE, "", comment, error_id=NO_LONGER_UPDATED), comment)
        changes, theirs = _decoded(event.modification_list, self._default_charset)
        _check_changes(step, changes)
        step, changes, character_set = _in_one_character_set(step, own, changes, theirs)
        step.update(changes)
        if _text(step, "PerformedProcedureStepStatus") != IN_PROGRESS:
            _check_final(step)
        self._write(step, character_set, uid, event)

    def _get(self, event: evt.GetEvent) -> tuple[Status, bytes]:
        step, character_set = self._read(event.sop_instance_uid)
        wanted = event.attribute_identifiers
        syntax = str(event.context.transfer_syntax)
        if not wanted:
            return Status.SUCCESS, encode_with_character_set(step, character_set, syntax)
        found = Dataset({tag: step[tag] for tag in wanted if tag in step})
        missing = tuple(int(tag) for tag in wanted if tag not in step)
        status = Status.SUCCESS
        if missing:
            status = Status(OPTIONAL_ATTRIBUTES_NOT_SUPPORTED, "N-GET", attribute_identifier_list=missing)
        return status, encode_with_character_set(found, character_set, syntax)

    def _read(self, uid: str) -> tuple[Dataset, str]:
        try:
            content = self._files.read(file_name(uid), MAX_STEP_LENGTH + 1)
        except FileNotFoundError:
            raise Refused(codes.NO_SUCH_SOP_INSTANCE, "there is no such step") from None
        if len(content) > MAX_STEP_LENGTH:
            raise StoreError(f"the file of the step {uid} is longer than {MAX_STEP_LENGTH} bytes")
        meta, start = read_file_meta(BytesIO(content))
        return _decoded(decode_dataset(content[start:], meta.transfer_syntax_uid), self._default_charset)

    def _write(self, step: Dataset, character_set: str, uid: str, event: evt.NormalisedEvent) -> None:
        step.SOPClassUID, step.SOPInstanceUID = ModalityPerformedProcedureStep, uid
        settings = event.assoc.settings
        # Each N-SET may add to the step, so the limits of a request hold for the whole step.
        try:
            check_nesting(step, ElementCount(settings.maximum_attributes + 2, settings.maximum_attribute_values))
        except DataSetTooLong as error:
            raise Refused(codes.RESOURCE_LIMITATION, f"the step would be {error}"[:64]) from None
        meta = FileMeta(
            media_storage_sop_class_uid=str(ModalityPerformedProcedureStep),
            media_storage_sop_instance_uid=uid,
            transfer_syntax_uid=str(ExplicitVRLittleEndian),
            implementation_class_uid=settings.implementation_class_uid,
            implementation_version_name=settings.implementation_version_name or "",
            source_ae_title=event.assoc.remote.ae_title,
        )
        content = [
            encode_preamble_and_meta(meta),
            encode_with_character_set(step, character_set, str(ExplicitVRLittleEndian)),
        ]
        if sum(map(len, content)) > MAX_STEP_LENGTH:
            raise Refused(codes.RESOURCE_LIMITATION, f"the step has more than {MAX_STEP_LENGTH} bytes")
        self._files.put(content, file_name(uid))


# --- the requirements on a step


def _check_new(step: Dataset) -> None:
    """
    Check the attributes of an N-CREATE against table F.7.2-1.

    :raises Refused: an attribute or a value is missing or invalid.
    """
    _check_types(step, _TYPE_1, _TYPE_2)
    for item in step[_SCHEDULED].value:
        _check_types(item, _SCHEDULED_TYPE_1, _SCHEDULED_TYPE_2)
    status = _text(step, "PerformedProcedureStepStatus")
    if status != IN_PROGRESS:
        raise _invalid("PerformedProcedureStepStatus", f"a new step is {IN_PROGRESS}")
    _check_values(step)


def _check_changes(step: Dataset, changes: Dataset) -> None:
    """
    Check the attributes of an N-SET, and remove those from *changes* that must not change.

    :raises Refused: an attribute may not change, or its new value is invalid.
    """
    status = _text(changes, "PerformedProcedureStepStatus")
    if "PerformedProcedureStepStatus" in changes and status not in (IN_PROGRESS, COMPLETED, DISCONTINUED):
        raise _invalid("PerformedProcedureStepStatus", f"an invalid status of {len(status)} characters")
    for keyword in _FIXED:
        # A modality may repeat the stored value, which changes nothing.
        if keyword in changes and changes.get(keyword) != step.get(keyword) and not _is_empty(changes, keyword):
            raise _invalid(keyword, f"{keyword} may not change")
    for keyword in _FIXED:
        if keyword in changes:
            del changes[keyword]
    for keyword in ("SOPClassUID", "SOPInstanceUID"):
        if keyword in changes:
            del changes[keyword]
    _check_values(changes)


def _check_final(step: Dataset) -> None:
    """
    Check that a step may end.

    A discontinued step may have no series, although the standard requires one: it may have produced no image.

    :raises Refused: a value is missing.
    """
    needed = [*_FINAL]
    if _text(step, "PerformedProcedureStepStatus") == COMPLETED:
        needed.append("PerformedSeriesSequence")
    missing = [keyword for keyword in needed if _is_empty(step, keyword)]
    if missing:
        raise _refused(codes.MISSING_ATTRIBUTE_VALUE, f"without a value: {', '.join(missing)}", missing)
    for item in _items(step, "PerformedSeriesSequence"):
        _check_types(item, _SERIES_TYPE_1, ())


def _check_types(dataset: Dataset, type_1: Iterable[str], type_2: Iterable[str]) -> None:
    type_1 = tuple(type_1)
    missing = [keyword for keyword in (*type_1, *type_2) if keyword not in dataset]
    if missing:
        raise _refused(codes.MISSING_ATTRIBUTE, f"missing: {', '.join(missing)}", missing)
    empty = [keyword for keyword in type_1 if _is_empty(dataset, keyword)]
    if empty:
        raise _refused(codes.MISSING_ATTRIBUTE_VALUE, f"without a value: {', '.join(empty)}", empty)


def _check_values(step: Dataset) -> None:
    """
    Check the dates, times and UIDs of a step.

    :raises Refused: one of them is invalid.
    """
    for end in ("Start", "End"):
        for kind, normal in (("Date", normal_date), ("Time", time_key)):
            keyword = f"PerformedProcedureStep{end}{kind}"
            if not _is_empty(step, keyword) and not normal(_text(step, keyword)):
                raise _invalid(keyword, f"{keyword} is invalid")
    uids = [
        (item, keyword)
        for sequence, keyword in ((_SCHEDULED, "StudyInstanceUID"), ("PerformedSeriesSequence", "SeriesInstanceUID"))
        for item in _items(step, sequence)
    ]
    for item, keyword in uids:
        try:
            if not _is_empty(item, keyword):
                check_uids(_text(item, keyword))
        except InvalidUID:
            raise _invalid(keyword, f"{keyword} is not a UID") from None


def _invalid(keyword: str, comment: str) -> Refused:
    return _refused(codes.INVALID_ATTRIBUTE_VALUE, comment, [keyword])


def _refused(status: int, comment: str, keywords: Iterable[str]) -> Refused:
    """Return a refusal because of the attributes *keywords*."""
    tags = tuple(tag for keyword in keywords if (tag := tag_for_keyword(keyword)) is not None) or None
    return Refused(Status(status, "", comment[:64], attribute_identifier_list=tags), comment)


def _items(dataset: Dataset, keyword: str) -> Iterator[Dataset]:
    return iter(dataset.get(keyword) or ())


def _is_empty(dataset: Dataset, keyword: str) -> bool:
    return keyword not in dataset or dataset[keyword].is_empty


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()


def _in_one_character_set(step: Dataset, own: str, changes: Dataset, theirs: str) -> tuple[Dataset, Dataset, str]:
    """
    Return a step and its changes so that one Specific Character Set holds for the texts of both, and that character set.

    It is Unicode if both are known. If one is not, its texts are a guess that nothing may be claimed for: then all texts are
    the bytes that they came as, and the character set is empty.

    :param own: the character set of *step*; empty if it is unknown.
    :param theirs: that of *changes*.
    """
    if own == theirs:
        return step, changes, own
    if not _has_letters(step):
        return step, changes, theirs if _has_letters(changes) else own or theirs
    if not _has_letters(changes):
        return step, changes, own
    if own and theirs:
        return step, changes, UNICODE
    return _as_it_came(step, own), _as_it_came(changes, theirs), ""


def _as_it_came(dataset: Dataset, character_set: str) -> Dataset:
    found = encode_texts(dataset, lambda text, vr: unclaimed_text(text, character_set, vr))
    assert found is not None
    return found


def _has_letters(dataset: Dataset) -> bool:
    """Return whether a text of *dataset* depends on the character set: it is not ASCII."""
    return any(
        not str(value).isascii()
        for element in dataset.iterall()
        if element.VR in TEXT_VRS
        for value in (element.value if isinstance(element.value, MultiValue | list) else (element.value,))
    )


def _decoded(dataset: Dataset, default_charset: str) -> tuple[Dataset, str]:
    """
    Return *dataset* with all values decoded, and its Specific Character Set; empty if that is unknown.

    :raises DataSetError: a value cannot be decoded.
    """
    try:
        character_set = decode_texts(dataset, default_charset)
        decode_values(dataset)
    except Exception as error:
        # pydicom may raise anything, depending on the value.
        raise DataSetError(f"a value cannot be decoded: {error}") from error
    return dataset, character_set


def _status_for(error: BaseException | None) -> Status | None:
    """Return the status for *error*; ``None`` if the error is a defect of this program."""
    if isinstance(error, Refused):
        return error.status
    if isinstance(error, InvalidUID):
        return Status(codes.INVALID_SOP_INSTANCE, "", "the SOP Instance UID is invalid")
    if isinstance(error, DataSetTooLong):
        return Status(codes.RESOURCE_LIMITATION, "", str(error)[:64])
    if isinstance(error, DataSetError):
        return Status(codes.PROCESSING_FAILURE, "", "the attributes cannot be read")
    if isinstance(error, OSError):
        code = codes.RESOURCE_LIMITATION if lacks_room(error) else codes.PROCESSING_FAILURE
        return Status(code, "", refusal_words(error))
    if isinstance(error, ExecutorFull):
        return Status(codes.RESOURCE_LIMITATION, "", "too many requests wait")
    if isinstance(error, StoreError | NotDicomFile):
        return Status(codes.PROCESSING_FAILURE, "", "the storage failed")
    return None
