"""
The studies, series and instances that keys select, found with C-FIND unless they are named by their UIDs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pydicom import DataElement, Dataset
from pydicom.config import IGNORE
from pydicom.datadict import tag_for_keyword
from pydicom.multival import MultiValue

from dicomtwist import Association, Status, sop_class
from dicomtwist.archive.storage.types import is_uid
from dicomtwist.errors import NoPresentationContext
from dicomtwist.eventloop.coroutines import deferred_items
from dicomtwist.retrieval.results import Request
from dicomtwist.sop_class import SOPClass

__all__ = ["FindFailed", "Found", "Target", "direct_targets", "find_targets", "instances_of", "model_of", "models"]

#: The most SOP Instance UIDs in one request.
MAX_UIDS: Final = 64
#: The most matches of one request, and the most instances of one study that are compared with what is there.
MAX_MATCHES: Final = 100_000

_LEVELS: Final = ("STUDY", "SERIES", "IMAGE")
_UNIQUE: Final = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
#: The keys that only say how to read the others.
_FORM: Final = frozenset(("QueryRetrieveLevel", "SpecificCharacterSet", "TimezoneOffsetFromUTC"))


class FindFailed(Exception):
    """A C-FIND could not be sent, or ended with a failure; the text says how."""


@dataclass(frozen=True, slots=True)
class Target:
    """
    The selection of one C-GET.

    :ivar study: the Study Instance UID, ``""`` for all studies of the patient.
    :ivar series: the Series Instance UID, ``""`` for all of the study.
    :ivar instances: the SOP Instance UIDs, empty for all of the series.
    :ivar patient: the Patient ID if it is known, for the Patient Root model.
    """

    study: str
    series: str = ""
    instances: tuple[str, ...] = ()
    patient: str = ""

    def keys(self) -> Dataset:
        """Return the unique keys that the instances have."""
        keys = Dataset()
        if self.study:
            _put(keys, "StudyInstanceUID", self.study)
        else:
            _put(keys, "PatientID", self.patient)
        if self.series:
            _put(keys, "SeriesInstanceUID", self.series)
        if self.instances:
            _put(keys, "SOPInstanceUID", list(self.instances))
        return keys

    def identifier(self, *, patient_root: bool) -> Dataset:
        """Return the identifier of a C-GET or C-FIND that selects it."""
        identifier = self.keys()
        identifier.QueryRetrieveLevel = (
            "IMAGE" if self.instances else "SERIES" if self.series else "STUDY" if self.study else "PATIENT"
        )
        if patient_root and self.patient:
            _put(identifier, "PatientID", self.patient)
        if not self.patient.isascii():
            identifier.SpecificCharacterSet = "ISO_IR 192"
        return identifier


@dataclass(frozen=True, slots=True)
class Found:
    """An instance that the peer has."""

    study: str
    series: str
    instance: str
    sop_class: str

    @property
    def uids(self) -> tuple[str, str, str]:
        """Study, Series and SOP Instance UID."""
        return self.study, self.series, self.instance


def _put(dataset: Dataset, keyword: str, value: object) -> None:
    """Set an attribute; a query may have values that are valid in no data set, such as wildcards."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    vr = "LO" if keyword == "PatientID" else "UI"
    dataset[tag] = DataElement(tag, vr, value, validation_mode=IGNORE)


def texts(dataset: Dataset, keyword: str) -> list[str]:
    """Return the values of an attribute, without empty ones."""
    value = dataset.get(keyword)
    values = value if isinstance(value, list | MultiValue) else [value or ""]
    return [text for one in values if (text := str(one).strip(" \0"))]


# --- information models


def models(root: str | None) -> list[SOPClass]:
    """Return the information models to propose: those of *root*, or of both."""
    return [_model(one, service) for one in ((root,) if root else ("study", "patient")) for service in ("Find", "Get")]


def _model(root: str, service: str) -> SOPClass:
    uid: SOPClass = getattr(sop_class, f"{root.capitalize()}RootQueryRetrieveInformationModel{service}")
    return uid


def model_of(association: Association, service: str, *, patient: bool = False) -> tuple[SOPClass, bool] | None:
    """
    Return the information model to use, and whether it is Patient Root; ``None`` if the peer has accepted none.

    :param patient: whether only Patient Root will do.
    """
    accepted = {context.abstract_syntax for context in association.accepted_contexts}
    for root in ("patient",) if patient else ("study", "patient"):
        if _model(root, service) in accepted:
            return _model(root, service), root == "patient"
    return None


# --- the targets of a request


def _lowest(keys: Dataset) -> str:
    return next((level for level, name in zip(_LEVELS[::-1], _UNIQUE[::-1], strict=True) if texts(keys, name)), "STUDY")


def direct_targets(request: Request) -> list[Target] | None:
    """Return the targets that the UIDs of *request* name; ``None`` if they have to be found."""
    keys, level = request.keys, request.level or _lowest(request.keys)
    used = {element.keyword for element in keys if element.value} - _FORM
    if level not in _LEVELS or not used <= {*_UNIQUE[: _LEVELS.index(level) + 1], "PatientID"}:
        return None
    study, series, instances = (texts(keys, name) for name in _UNIQUE)
    patient = "\\".join(texts(keys, "PatientID"))
    if not study or not all(map(is_uid, (*study, *series, *instances))):
        return None
    if level == "STUDY":
        return [Target(one, patient=patient) for one in study]
    if len(study) > 1 or not series:
        return None
    if level == "SERIES":
        return [Target(study[0], one, patient=patient) for one in series]
    return list(_parts(study[0], series[0], instances, patient)) if len(series) == 1 and instances else None


def _parts(study: str, series: str, instances: Sequence[str], patient: str) -> Iterator[Target]:
    for start in range(0, len(instances), MAX_UIDS):
        yield Target(study, series, tuple(instances[start : start + MAX_UIDS]), patient)


def parts_of(found: Iterable[Found], patient: str) -> list[Target]:
    """Return targets for instances that were found."""
    series: dict[tuple[str, str], list[str]] = {}
    for each in found:
        series.setdefault((each.study, each.series), []).append(each.instance)
    return [part for uids, instances in series.items() for part in _parts(*uids, instances, patient)]


async def find_targets(association: Association, request: Request) -> tuple[list[Target], Status]:
    """
    Find what the keys of *request* select, each target once.

    :returns: the targets, and the status of the C-FIND.
    :raises FindFailed: the peer does not perform it, or it failed.
    """
    level = request.level if request.level in _LEVELS else _lowest(request.keys)
    names = _UNIQUE[: _LEVELS.index(level) + 1]
    identifier = Dataset()
    identifier.update(request.keys)
    identifier.QueryRetrieveLevel = level
    for keyword in (*names, "PatientID"):
        if keyword not in identifier:
            _put(identifier, keyword, "")
    studies: dict[Target, None] = {}
    images: dict[tuple[str, str, str], dict[str, None]] = {}
    given = [texts(request.keys, name) for name in _UNIQUE]
    last = [Status(0xFF00, "C-FIND")]
    async for match in _matches(association, identifier, last):
        uids = [texts(match, name) or (own if len(own) == 1 else []) for name, own in zip(names, given, strict=False)]
        patient = "\\".join(texts(match, "PatientID"))
        if not all(len(each) == 1 and is_uid(each[0]) for each in uids):
            raise FindFailed(f"the peer has a match without a valid {names[-1]} or without those above it")
        one = [each[0] for each in uids]
        if level == "IMAGE":
            images.setdefault((one[0], one[1], patient), {})[one[2]] = None
        else:
            studies[Target(one[0], one[1] if level == "SERIES" else "", (), patient)] = None
    targets = list(studies)
    for (study, series, patient), instances in images.items():
        targets += _parts(study, series, list(instances), patient)
    return targets, last[0]


async def instances_of(association: Association, target: Target) -> list[Found] | None:
    """Return the instances of a target that the peer has, with their SOP Classes; ``None`` if it cannot say."""
    if not target.study:
        return None
    found: list[Found] = []
    last = [Status(0xFF00, "C-FIND")]
    series = [target.series] if target.series else []
    try:
        if not series:
            identifier = _listing(Target(target.study, patient=target.patient), "SERIES", ("SeriesInstanceUID",))
            async for match in _matches(association, identifier, last):
                series += texts(match, "SeriesInstanceUID")[:1]
        for uid in dict.fromkeys(series):
            identifier = _listing(
                Target(target.study, uid, target.instances, target.patient), "IMAGE", ("SOPInstanceUID", "SOPClassUID")
            )
            async for match in _matches(association, identifier, last):
                instance = texts(match, "SOPInstanceUID")
                if len(instance) != 1 or not is_uid(instance[0]) or not is_uid(uid):
                    return None
                found.append(Found(target.study, uid, instance[0], "".join(texts(match, "SOPClassUID")[:1])))
                if len(found) > MAX_MATCHES:
                    return None
    except FindFailed:
        return None
    return list({each.instance: each for each in found}.values())


def _listing(target: Target, level: str, returned: Iterable[str]) -> Dataset:
    identifier = target.identifier(patient_root=False)
    if target.patient:
        _put(identifier, "PatientID", target.patient)
    identifier.QueryRetrieveLevel = level
    for keyword in returned:
        if keyword not in identifier:
            _put(identifier, keyword, "")
    return identifier


@deferred_items
async def _matches(association: Association, identifier: Dataset, last: list[Status]) -> AsyncGenerator[Dataset, None]:
    """
    Yield the matches of a C-FIND; the only item of *last* becomes its final status.

    :raises FindFailed: the peer does not perform it, it failed, or it has too many matches.
    """
    chosen = model_of(association, "Find")
    if chosen is None:
        raise FindFailed("the peer performs no C-FIND")
    model, _ = chosen
    count = 0
    try:
        async with association.send_c_find(identifier, model) as answers:
            async for status, match in answers:
                last[0] = status
                if match is not None and status.is_pending:
                    count += 1
                    if count > MAX_MATCHES:
                        raise FindFailed(f"more than {MAX_MATCHES} matches: narrow the keys")
                    yield match
            if answers.lost:
                raise FindFailed(str(answers.lost))
    except NoPresentationContext as error:
        raise FindFailed(str(error)) from None
    if not (last[0].is_success or last[0].is_warning):
        raise FindFailed(f"the peer answered the C-FIND: {last[0]}")
