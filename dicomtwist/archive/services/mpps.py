"""
Modality Performed Procedure Step: what modalities tell of the procedure steps that they perform (PS3.4 F.7, F.8).

Each step is a DICOM file in the folder ``.mpps`` of the archive, named by its UID and written as instances are: whole or
not there, and on the medium before the peer is told of success.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from typing import Any, Final, TypeVar

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.uid import ExplicitVRLittleEndian
from twisted.internet.defer import Deferred, DeferredLock, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist import evt
from dicomtwist.archive.index.normal_forms import normal_date, time_key
from dicomtwist.archive.storage.file_store import file_name
from dicomtwist.archive.storage.interfaces import Storage
from dicomtwist.archive.storage.types import InvalidUID, StoreError, check_uids
from dicomtwist.datasets.codec import decode_dataset, encode_dataset
from dicomtwist.dimse import status as codes
from dicomtwist.dimse.status import Status
from dicomtwist.errors import DataSetError, ExecutorFull, Refused, loggable
from dicomtwist.part10 import FileMeta, NotDicomFile, encode_preamble_and_meta, read_file_meta
from dicomtwist.runtime.executors import Executor
from dicomtwist.scp.dispatch import Route
from dicomtwist.sop_class import ModalityPerformedProcedureStep, ModalityPerformedProcedureStepRetrieve

__all__ = ["FOLDER", "PerformedProcedureSteps"]

#: The folder of the files, in that of the archive.
FOLDER: Final = ".mpps"
#: The longest attribute list that is taken, and the longest file of a step, in bytes.
MAX_STEP_LENGTH: Final = 16 * 1024 * 1024

IN_PROGRESS, COMPLETED, DISCONTINUED = "IN PROGRESS", "COMPLETED", "DISCONTINUED"
#: Error ID (0000,0903): the Performed Procedure Step Object may no longer be updated (PS3.4 F.7.2.2.4).
NO_LONGER_UPDATED: Final = 0xA710
#: Some of the attributes that were asked for are not there (PS3.4 F.8.2.1.4).
OPTIONAL_ATTRIBUTES_NOT_SUPPORTED: Final = 0x0001

# PS3.4 table F.7.2-1: what N-CREATE has to bring, with a value (type 1) or maybe without (type 2).
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
#: What N-SET may not change.
_FIXED: Final = (
    _SCHEDULED,
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "ReferencedPatientSequence"),
    *("PerformedProcedureStepID", "PerformedStationAETitle", "PerformedStationName", "PerformedLocation"),
    *("PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "Modality", "StudyID"),
)
#: What has to have a value before the step is over.
_FINAL: Final = ("PerformedProcedureStepEndDate", "PerformedProcedureStepEndTime")

T = TypeVar("T")


class PerformedProcedureSteps:
    """
    Keeps performed procedure steps: an SCP of the SOP Classes Modality Performed Procedure Step and Modality Performed
    Procedure Step Retrieve.

    :param store: where they are kept; prepared.
    :param executor: where files are read and written; the caller holds it while this is used.

    :ivar routes: what it answers.
    """

    log = Logger()

    def __init__(self, store: Storage, executor: Executor) -> None:
        self._files = store.side_folder(FOLDER)
        self._executor = executor
        # A request looks at the file before it writes it: one after the other, in this process and in all.
        self._lock = DeferredLock()
        self.routes = (
            Route(evt.EVT_N_CREATE, ModalityPerformedProcedureStep, self.handle_create),
            Route(evt.EVT_N_SET, ModalityPerformedProcedureStep, self.handle_set),
            Route(evt.EVT_N_GET, ModalityPerformedProcedureStepRetrieve, self.handle_get),
        )

    def start(self) -> None:
        """Nothing to do."""

    def stop(self) -> Deferred[None]:
        """Wait for what is being written."""
        waiting: Deferred[None] = self._lock.run(lambda: None)
        return waiting

    # --- handlers

    def handle_create(self, event: evt.CreateEvent) -> Deferred[tuple[Status, Dataset | None]]:
        """
        Keep a step that has begun.

        :returns: a Deferred with the status and no attribute list: success once it is kept; 0x0111 where it is there
            already, 0x0120 and 0x0121 where an attribute or its value is missing, 0x0106 where a value is none or the
            status is not IN PROGRESS, 0x0110 where the storage refuses, 0x0213 where there is no room.
        """
        return self._one_by_one(event, self._create)

    def handle_set(self, event: evt.SetEvent) -> Deferred[tuple[Status, Dataset | None]]:
        """
        Change a step that is in progress.

        :returns: a Deferred with the status and no attribute list: success once the change is kept; 0x0112 where the step
            is not known, 0x0110 with Error ID 0xA710 where it is over, 0x0106 where a value is none or may not change,
            0x0121 where it is to be over and lacks what it needs for that, 0x0213 where there is no room.
        """
        return self._one_by_one(event, self._set)

    def handle_get(self, event: evt.GetEvent) -> Deferred[tuple[Status, Dataset | None]]:
        """
        Tell of a step.

        :returns: a Deferred with success, or 0x0001 where attributes that were asked for are not there, and the attribute
            list; 0x0112 where the step is not known.
        """
        return self._answered(event, self._executor.run(self._get, event))

    def _one_by_one(
        self, event: evt.CreateEvent | evt.SetEvent, function: Callable[[Any], None]
    ) -> Deferred[tuple[Status, Dataset | None]]:
        if len(event.encoded_dataset) > MAX_STEP_LENGTH:
            status = Status(codes.RESOURCE_LIMITATION, "", f"more than {MAX_STEP_LENGTH} bytes")
            return succeed((status, None))
        return self._answered(event, self._lock.run(self._executor.run, self._exclusively, function, event))

    def _answered(self, event: evt.DIMSEEvent, result: Deferred[Any]) -> Deferred[tuple[Status, Dataset | None]]:
        def answer(value: Any) -> tuple[Status, Dataset | None]:
            if isinstance(value, tuple):
                return value
            return Status.SUCCESS, None

        def refuse(reason: Failure) -> Any:
            status = _status_for(reason.value)
            if status is None:
                return reason
            event.assoc.log_refusal(
                self.log.warn,
                "a performed procedure step was refused, status 0x{status:04X}: {why}",
                status=int(status),
                why=loggable(reason.value),
            )
            return status, None

        return result.addCallback(answer).addErrback(refuse)

    # --- in a worker thread

    def _exclusively(self, function: Callable[[Any], None], event: evt.CreateEvent | evt.SetEvent) -> None:
        """Call *function* while no other process that shares the storage is at it; for so long the thread waits."""
        with self._files.locked():
            function(event)

    def _create(self, event: evt.CreateEvent) -> None:
        uid = event.sop_instance_uid
        if file_name(uid) in self._files:
            raise Refused(codes.DUPLICATE_SOP_INSTANCE, "the step is here already")
        step = _decoded(event.attribute_list)
        _check_new(step)
        self._write(step, uid, event)

    def _set(self, event: evt.SetEvent) -> None:
        uid = event.sop_instance_uid
        step = self._read(uid)
        if _text(step, "PerformedProcedureStepStatus") != IN_PROGRESS:
            comment = "Performed Procedure Step Object may no longer be updated"
            raise Refused(Status(codes.PROCESSING_FAILURE, "", comment, error_id=NO_LONGER_UPDATED), comment)
        changes = _decoded(event.modification_list)
        _check_changes(step, changes)
        if step.get("SpecificCharacterSet") != changes.get("SpecificCharacterSet"):
            # What both hold can be written in this one alone.
            changes.SpecificCharacterSet = "ISO_IR 192"
        step.update(changes)
        if _text(step, "PerformedProcedureStepStatus") != IN_PROGRESS:
            _check_final(step)
        self._write(step, uid, event)

    def _get(self, event: evt.GetEvent) -> tuple[Status, Dataset]:
        step = self._read(event.sop_instance_uid)
        wanted = event.attribute_identifiers
        if not wanted:
            return Status.SUCCESS, step
        found = Dataset({tag: step[tag] for tag in wanted if tag in step})
        missing = tuple(int(tag) for tag in wanted if tag not in step)
        if "SpecificCharacterSet" in step:
            found["SpecificCharacterSet"] = step["SpecificCharacterSet"]
        status = Status.SUCCESS
        if missing:
            status = Status(OPTIONAL_ATTRIBUTES_NOT_SUPPORTED, "N-GET", attribute_identifier_list=missing)
        return status, found

    def _read(self, uid: str) -> Dataset:
        try:
            content = self._files.read(file_name(uid), MAX_STEP_LENGTH + 1)
        except FileNotFoundError:
            raise Refused(codes.NO_SUCH_SOP_INSTANCE, "there is no such step") from None
        if len(content) > MAX_STEP_LENGTH:
            raise StoreError(f"the file of the step {uid} is longer than {MAX_STEP_LENGTH} bytes")
        meta, start = read_file_meta(BytesIO(content))
        return _decoded(decode_dataset(content[start:], meta.transfer_syntax_uid))

    def _write(self, step: Dataset, uid: str, event: evt.NormalisedEvent) -> None:
        step.SOPClassUID, step.SOPInstanceUID = ModalityPerformedProcedureStep, uid
        settings = event.assoc.settings
        meta = FileMeta(
            media_storage_sop_class_uid=str(ModalityPerformedProcedureStep),
            media_storage_sop_instance_uid=uid,
            transfer_syntax_uid=str(ExplicitVRLittleEndian),
            implementation_class_uid=settings.implementation_class_uid,
            implementation_version_name=settings.implementation_version_name or "",
            source_ae_title=event.assoc.remote.ae_title,
        )
        content = [encode_preamble_and_meta(meta), encode_dataset(step, ExplicitVRLittleEndian)]
        if sum(map(len, content)) > MAX_STEP_LENGTH:
            raise Refused(codes.RESOURCE_LIMITATION, f"the step has more than {MAX_STEP_LENGTH} bytes")
        self._files.put(content, file_name(uid))


# --- what a step has to have


def _check_new(step: Dataset) -> None:
    """:raises Refused: an N-CREATE does not bring what table F.7.2-1 asks for."""
    _check_types(step, _TYPE_1, _TYPE_2)
    for item in step[_SCHEDULED].value:
        _check_types(item, _SCHEDULED_TYPE_1, _SCHEDULED_TYPE_2)
    status = _text(step, "PerformedProcedureStepStatus")
    if status != IN_PROGRESS:
        raise _invalid("PerformedProcedureStepStatus", f"a new step is {IN_PROGRESS}")
    _check_values(step)


def _check_changes(step: Dataset, changes: Dataset) -> None:
    """:raises Refused: an N-SET changes what it may not, or to what it may not."""
    status = _text(changes, "PerformedProcedureStepStatus")
    if "PerformedProcedureStepStatus" in changes and status not in (IN_PROGRESS, COMPLETED, DISCONTINUED):
        raise _invalid("PerformedProcedureStepStatus", f"{len(status)} characters that are no status of a step")
    for keyword in _FIXED:
        # Repeating what is known changes nothing, and modalities do it.
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
    :raises Refused: the step cannot be over yet.

    A step that was discontinued may have no series, though the standard wants one: there was nothing to make one of.
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
    """:raises Refused: a value is not one of its kind."""
    for end in ("Start", "End"):
        for kind, normal in (("Date", normal_date), ("Time", time_key)):
            keyword = f"PerformedProcedureStep{end}{kind}"
            if not _is_empty(step, keyword) and not normal(_text(step, keyword)):
                raise _invalid(keyword, f"{keyword} is none")
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
            raise _invalid(keyword, f"{keyword} is no UID") from None


def _invalid(keyword: str, comment: str) -> Refused:
    return _refused(codes.INVALID_ATTRIBUTE_VALUE, comment, [keyword])


def _refused(status: int, comment: str, keywords: Iterable[str]) -> Refused:
    """Return a refusal that is about the attributes *keywords*."""
    tags = tuple(tag for keyword in keywords if (tag := tag_for_keyword(keyword)) is not None) or None
    return Refused(Status(status, "", comment[:64], attribute_identifier_list=tags), comment)


def _items(dataset: Dataset, keyword: str) -> Iterator[Dataset]:
    return iter(dataset.get(keyword) or ())


def _is_empty(dataset: Dataset, keyword: str) -> bool:
    return keyword not in dataset or dataset[keyword].is_empty


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip()


def _decoded(dataset: Dataset) -> Dataset:
    """
    Return *dataset* with all values decoded.

    :raises DataSetError: one of them cannot be.
    """
    try:
        dataset.decode()
    except Exception as error:
        # pydicom raises whatever a value makes it raise.
        raise DataSetError(f"a value cannot be decoded: {error}") from error
    return dataset


def _status_for(error: BaseException | None) -> Status | None:
    """What the peer is told of *error*; ``None`` where it is a mistake of ours."""
    if isinstance(error, Refused):
        return error.status
    if isinstance(error, InvalidUID):
        return Status(codes.INVALID_SOP_INSTANCE, "", "the SOP Instance UID is none")
    if isinstance(error, DataSetError):
        return Status(codes.PROCESSING_FAILURE, "", "the attributes cannot be read")
    if isinstance(error, OSError):
        code = codes.RESOURCE_LIMITATION if error.errno in (errno.ENOSPC, errno.EDQUOT) else codes.PROCESSING_FAILURE
        return Status(code, "", f"storage: {errno.errorcode.get(error.errno or 0, 'error')}")
    if isinstance(error, ExecutorFull):
        return Status(codes.RESOURCE_LIMITATION, "", "too many requests wait")
    if isinstance(error, StoreError | NotDicomFile):
        return Status(codes.PROCESSING_FAILURE, "", "the storage failed")
    return None
