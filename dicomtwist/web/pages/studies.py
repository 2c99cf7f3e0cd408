"""
The pages of studies: the search, and a study with its series.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from dicomtwist.access.rules import Operation
from dicomtwist.archive.query.compiler import InvalidIdentifier, Model, Negotiated
from dicomtwist.archive.query.json_answers import json_answers
from dicomtwist.archive.query.search import Found, Part, TooManyMatches
from dicomtwist.dicomweb.parameters import ParameterError, parse_search
from dicomtwist.web.pages import words
from dicomtwist.web.pages.answers import show
from dicomtwist.web.pages.paging import offset_of, paging_of, part_of
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Route
from dicomtwist.web.services import Services

__all__ = ["FIELDS", "NO_IMAGES", "ROUTES", "answers", "search_of"]

#: The studies on one page.
PAGE: Final = 50
#: The series on one page of a study. Those of one page are in the order of their numbers, the pages in that of the receipt: so
#: a page never takes more than the rows that it shows.
SERIES_PAGE: Final = 500
#: The longest value of a field, in characters.
MAX_VALUE: Final = 128

#: The fields of the form: the key of the archive, its words, and how its value is matched: ``begins`` with what is entered,
#: ``contains`` it, or is ``equal``. A value with a wildcard is taken as it is.
FIELDS: Final = (
    ("PatientName", "Patient name", "name"),
    ("PatientID", "Patient ID", "begins"),
    ("PatientBirthDate", "Date of birth", "date"),
    ("AccessionNumber", "Accession number", "begins"),
    ("ModalitiesInStudy", "Modality", "equal"),
    ("StudyDescription", "Description", "contains"),
    ("ReferringPhysicianName", "Referring physician", "name"),
    ("StudyID", "Study ID", "begins"),
    ("StudyInstanceUID", "Study Instance UID", "equal"),
)
#: The modalities that the form offers; the field takes any other one as well.
MODALITIES: Final = (
    *("CR", "CT", "DX", "ES", "IO", "MG", "MR", "NM", "OT", "PR", "PT", "PX", "RF", "RTDOSE", "RTPLAN", "RTSTRUCT"),
    *("SC", "SEG", "SM", "SR", "US", "XA", "XC"),
)
#: The modalities of instances without an image.
NO_IMAGES: Final = frozenset(
    (
        *("ANN", "AU", "DOC", "ECG", "EEG", "EPS", "FID", "HD", "KO", "M3D", "PLAN", "PR", "REG", "RESP", "RTPLAN"),
        *("RTRECORD", "RTSTRUCT", "RWV", "SMR", "SR", "STAIN", "TG"),
    )
)

_SERIES_KEYS: Final = ("SeriesDescription", "BodyPartExamined", "SeriesDate", "SeriesTime")
_STUDY_KEYS: Final = ("StudyDescription",)


def search_of(query: Mapping[str, str]) -> list[tuple[str, str]]:
    """
    Return the query parameters of a search in DICOMweb for what was entered into the form.

    :param query: the values of the fields of :data:`FIELDS`, ``from`` and ``to``, and ``fuzzymatching``.
    """
    found = []
    for key, _, matching in FIELDS:
        text = query.get(key, "").strip()[:MAX_VALUE]
        if text:
            found.append((key, _pattern(text, matching)))
    dates = [_date(query.get(name, "")) for name in ("from", "to")]
    if any(dates):
        found.append(("StudyDate", dates[0] if dates[0] == dates[1] else "-".join(dates)))
    if query.get("fuzzymatching") == "true":
        found.append(("fuzzymatching", "true"))
    return found


def _date(text: str) -> str:
    """Return a date of the form, or one of DICOM, as DICOM has it."""
    return text.strip().replace("-", "")


def _pattern(text: str, matching: str) -> str:
    if matching == "date":
        return _date(text)
    if matching == "equal" or "*" in text or "?" in text:
        return text
    if matching == "name":
        # "Doe, Jane" and "Doe Jane" are "Doe^Jane" in the archive.
        return re.sub(r"[\s,^]+", "*", text.strip(" ,^")) + "*"
    return f"*{text}*" if matching == "contains" else f"{text}*"


async def answers(
    request: DICOMwebRequest,
    services: Services,
    level: str,
    parameters: list[tuple[str, str]],
    more: tuple[str, ...] = (),
    *,
    uids: Mapping[str, str] | None = None,
    part: Part = Part(),  # noqa: B008
) -> tuple[Found[bytes] | None, list[bytes]]:
    """
    Return what a search in DICOMweb finds, as JSON, each answer for itself.

    :param level: the level: STUDY, SERIES or IMAGE.
    :param parameters: the query parameters.
    :param more: further attributes of the answers.
    :param uids: the UIDs of the study, and of the series, that is searched.
    :param part: the part of the answers that is wanted.
    :raises Problem: a value is invalid (400), or too much matches (413).
    """
    try:
        search = parse_search(parameters, level, **(uids or {}))
    except ParameterError as error:
        raise Problem(400, str(error)) from None
    if search.is_contradictory:
        return None, []
    search.add_return_keys(more)
    try:
        found = await services.finder.search(
            search.identifier,
            Model.STUDY_ROOT,
            json_answers(""),
            Negotiated(relational=True, fuzzy=search.fuzzy),
            part=part,
            peer=request.peer,
        )
    except TooManyMatches as error:
        raise Problem(413, str(error)) from None
    return found, [one async for page in found.pages() for one in page]


async def show_search(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the form of the search, and with what it finds."""
    request.http.noted.route = "/"
    query = dict(reversed(request.query))
    offset = offset_of(query)
    entered = {name: query[name].strip()[:MAX_VALUE] for name in _ENTERED if query.get(name, "").strip()}
    error, found = "", None
    encoded: list[bytes] = []
    try:
        part = part_of(offset, PAGE, newest_first=True)
        found, encoded = await answers(request, services, "STUDY", search_of(entered), _STUDY_KEYS, part=part)
    except Exception as problem:
        # A value that is no date, say: the form stays, with what was entered.
        error = _words(problem)

    def page() -> dict[str, Any]:
        return {
            "fields": FIELDS,
            "modalities": MODALITIES,
            "entered": entered,
            "has_more_fields": any(name in entered for name in _FURTHER),
            "error": error,
            "studies": [study_of(json.loads(one)) for one in encoded],
            "paging": paging_of(found, offset, PAGE, "/", entered),
        }

    await show(request, services, "studies.html", page)


def _words(problem: Exception) -> str:
    """
    Return the words about a value that was entered.

    :raises Exception: it is another problem.
    """
    if isinstance(problem, InvalidIdentifier) or (isinstance(problem, Problem) and problem.status < 500):
        return str(problem)
    raise problem


def study_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study as the pages show it."""
    text = words.value
    return {
        "uid": text(answer, "0020000D"),
        "name": text(answer, "00100010"),
        "id": text(answer, "00100020"),
        "birth": words.birth(answer),
        "date": words.date(text(answer, "00080020")),
        "time": words.time_of_day(text(answer, "00080030")),
        "description": text(answer, "00081030"),
        "modalities": [str(one) for one in answer.get("00080061", {}).get("Value", ())],
        "accession": text(answer, "00080050"),
        "physician": text(answer, "00080090"),
        "study_id": text(answer, "00200010"),
        "series": words.first(answer, "00201206"),
        "instances": words.first(answer, "00201208"),
    }


def series_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a series as the pages show it."""
    text = words.value
    modality = text(answer, "00080060")
    return {
        "uid": text(answer, "0020000E"),
        "modality": modality,
        "number": text(answer, "00200011"),
        "description": text(answer, "0008103E"),
        "part": text(answer, "00180015"),
        "instances": words.first(answer, "00201209"),
        "has_images": modality not in NO_IMAGES,
    }


async def find_study(request: DICOMwebRequest, services: Services, uid: str) -> dict[str, Any]:
    """
    Return a study as the pages show it.

    :raises Problem: there is none (404).
    """
    _, encoded = await answers(request, services, "STUDY", [("StudyInstanceUID", uid)], _STUDY_KEYS)
    if not encoded:
        raise Problem(404, "there is no such study")
    return study_of(json.loads(encoded[0]))


async def show_study(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with a study and its series."""
    study = await find_study(request, services, values["study"])
    offset = offset_of(dict(reversed(request.query)))
    uids = {"study": values["study"]}
    part = part_of(offset, SERIES_PAGE)
    found, encoded = await answers(request, services, "SERIES", [], _SERIES_KEYS, uids=uids, part=part)

    def page() -> dict[str, Any]:
        series = [series_of(json.loads(one)) for one in encoded]
        series.sort(key=lambda one: (_number(one["number"]), one["uid"]))
        path = f"/studies/{quote(values['study'], safe='')}"
        return {"study": study, "series": series, "paging": paging_of(found, offset, SERIES_PAGE, path)}

    await show(request, services, "study.html", page)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("inf")


_ENTERED: Final = (*(name for name, _, _ in FIELDS), "from", "to", "fuzzymatching")
#: The fields that the form shows when it is unfolded.
_FURTHER: Final = ("PatientBirthDate", "ReferringPhysicianName", "StudyID", "StudyInstanceUID", "fuzzymatching")

_FIND: Final = frozenset((Operation.FIND,))

ROUTES: Final = (
    Route("GET", "", _FIND, show_search, "the search for studies"),
    Route("GET", "/studies/{study}", _FIND, show_study, "a study with its series"),
)
