"""
The pages of images: a series, whose images are looked through, and the elements of an instance.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from pydicom.uid import UID

from dicomtwist.access.rules import Operation
from dicomtwist.archive.reading.metadata import MetadataEncoder, with_base_url
from dicomtwist.archive.reading.stored_file import StoredFile
from dicomtwist.web.pages import words
from dicomtwist.web.pages.answers import show
from dicomtwist.web.pages.paging import offset_of, paging_of, part_of
from dicomtwist.web.pages.studies import answers, find_study, series_of
from dicomtwist.web.pages.tags import rows_of
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Route
from dicomtwist.web.services import Services
from dicomtwist.web.wado.delivery import open_stored

__all__ = ["ROUTES", "instances_of", "window_of"]

#: The instances of a series that are looked through on one page; those of a page are in the order of their numbers.
IMAGES_PAGE: Final = 10_000
#: The instances of one page if they have no images.
LIST_PAGE: Final = 500
#: The greatest width and height of an image that is shown at its size, in pixels; greater ones are made smaller by the server.
MAX_SIDE: Final = 1536

_SERIES_KEYS: Final = ("SeriesDescription", "BodyPartExamined")

#: The most frames of one instance that are looked through; a whole slide has some hundred thousand.
MAX_FRAMES: Final = 1_000_000
#: The greatest numbers of rows and columns, and of bits of a value, that the pages work with.
_MAX_ROWS: Final = 2**32 - 1
_MAX_BITS: Final = 64

#: The greatest distance of a window from the first one that the slider offers, in widths of that.
RANGE: Final = 8
#: Windows for CT images: name, centre, width.
CT_WINDOWS: Final = (
    ("Soft tissue", 40, 400),
    ("Lung", -600, 1500),
    ("Bone", 480, 2500),
    ("Brain", 40, 80),
    ("Liver", 60, 160),
)


def instances_of(encoded: Sequence[bytes]) -> list[dict[str, Any]]:
    """
    Return the instances of a series, in the order of their numbers.

    :param encoded: the answers of a search, each as JSON.
    """
    found = []
    for one in encoded:
        answer = json.loads(one)
        found.append(
            {
                "uid": words.value(answer, "00080018"),
                "number": words.number(answer, "00200013"),
                "frames": max(1, words.whole(answer, "00280008", MAX_FRAMES) or 1),
                "rows": words.whole(answer, "00280010", _MAX_ROWS),
                "columns": words.whole(answer, "00280011", _MAX_ROWS),
            }
        )
    found.sort(key=lambda one: (math.inf if one["number"] is None else one["number"], one["uid"]))
    return found


def window_of(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """
    Return the window that an image is first shown with, and the range of its values; ``None`` for a colour image.

    :param metadata: the metadata of the instance, as DICOM JSON.
    """
    if words.value(metadata, "00280004") not in ("MONOCHROME1", "MONOCHROME2"):
        return None
    places = [metadata]
    for shared in words.items(metadata, "52009229")[:1]:
        for tag in ("00289132", "00289145"):  # Frame VOI LUT, Pixel Value Transformation
            places += words.items(shared, tag)
    stored = (words.whole(metadata, tag, _MAX_BITS) for tag in ("00280101", "00280100"))
    bits = next(filter(None, stored), 8)
    lowest = -(1 << (bits - 1)) if words.number(metadata, "00280103") else 0
    slope, intercept = _number(places, "00281053", 1.0) or 1.0, _number(places, "00281052")
    ends = sorted((lowest * slope + intercept, (lowest + (1 << bits) - 1) * slope + intercept))
    center, width = _number(places, "00281050", (ends[0] + ends[1]) / 2), _number(places, "00281051", ends[1] - ends[0])
    width = max(1.0, width)
    # The pixels use a small part of the values that their bits allow; a slider for all of those could not be set.
    low, high = max(ends[0], center - RANGE * width), min(ends[1], center + RANGE * width)
    window = {
        "center": round(center, 2),
        "width": round(width, 2),
        "low": round(min(low, center - width), 2),
        "high": round(max(high, center + width), 2),
    }
    # Values that a peer has sent may be so large that no number is beside them.
    return window if all(map(math.isfinite, window.values())) else None


def _number(places: Sequence[Mapping[str, Any]], tag: str, default: float = 0.0) -> float:
    found = (words.number(place, tag) for place in places)
    return next((one for one in found if one is not None), default)


async def _metadata(
    request: DICOMwebRequest, services: Services, uids: tuple[str, str, str]
) -> tuple[dict[str, Any], str, int]:
    """Return the metadata of an instance, its transfer syntax, and the size of its file."""
    encoder = MetadataEncoder(services.archive_server.archive.default_charset)

    def read(stored: StoredFile) -> tuple[dict[str, Any], str, int]:
        encoded = with_base_url(encoder.encode(uids, stored), f"{request.client.prefix}/dicom-web")
        return json.loads(encoded), str(stored.meta.transfer_syntax_uid), stored.size

    stored, found = await open_stored(request, services, uids, read)
    stored.close()
    return found


async def show_series(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with a series, whose images are looked through."""
    uids = {name: values[name] for name in ("study", "series")}
    study = await find_study(request, services, values["study"])
    only = [("SeriesInstanceUID", values["series"])]
    _, encoded = await answers(request, services, "SERIES", only, _SERIES_KEYS, uids={"study": values["study"]})
    if not encoded:
        raise Problem(404, "there is no such series")
    series = series_of(json.loads(encoded[0]))
    query = dict(reversed(request.query))
    offset, length = offset_of(query), IMAGES_PAGE if series["has_images"] else LIST_PAGE
    found, encoded = await answers(request, services, "IMAGE", [], uids=uids, part=part_of(offset, length))
    threads = services.archive_server.ae.executors.querying.share(request.peer)
    instances = await threads.run(instances_of, encoded)
    path = "/".join(("/studies", quote(values["study"], safe=""), "series", quote(values["series"], safe="")))
    paging = paging_of(found, offset, length, path)
    if not instances:
        if not offset:
            raise Problem(404, "there is no such series")
        await show(request, services, "series_end.html", {"study": study, "series": series, "paging": paging})
        return
    if not series["has_images"]:
        for one in instances:
            one["frames"] = 1
    total = sum(one["frames"] for one in instances)
    at, shown, frame = _position(query, instances, total)
    metadata, _, _ = await _metadata(request, services, (values["study"], values["series"], shown["uid"]))
    is_image = bool(shown["rows"]) and series["has_images"]

    await show(
        request,
        services,
        "series.html",
        {
            "study": study,
            "series": series,
            "slices": [[one["uid"], one["frames"]] for one in instances],
            "total": total,
            "at": at,
            "frame": frame,
            "shown": shown,
            "is_image": is_image,
            "window": window_of(metadata) if is_image else None,
            "side": MAX_SIDE if max(shown["rows"] or 0, shown["columns"] or 0) > MAX_SIDE else 0,
            "presets": CT_WINDOWS if series["modality"] == "CT" else (),
            "offset": offset,
            "paging": paging,
        },
    )


def _position(
    query: Mapping[str, str], instances: Sequence[dict[str, Any]], total: int
) -> tuple[int, dict[str, Any], int]:
    """
    Return an image: its number in the series from 1, its instance, and the number of its frame.

    It is the one that is asked for, by its number or by its instance, else that in the middle.
    """
    text, uid = query.get("at", ""), query.get("instance", "")
    at = min(max(int(text), 1), total) if text.isascii() and text.isdigit() and len(text) < 9 else 0
    before = 0
    for one in instances:
        if not at and one["uid"] == uid:
            return before + 1, one, 1
        before += one["frames"]
    at = at or (1 if total < 3 else 1 + total // 2)
    before = 0
    for one in instances:
        if at <= before + one["frames"]:
            return at, one, at - before
        before += one["frames"]
    raise AssertionError("a series without instances")


async def show_instance(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with the elements of an instance."""
    uids = (values["study"], values["series"], values["instance"])
    metadata, syntax, size = await _metadata(request, services, uids)

    def page() -> dict[str, Any]:
        rows, is_cut = rows_of(metadata)
        return {
            "study_uid": uids[0],
            "series_uid": uids[1],
            "uid": uids[2],
            "rows": rows,
            "is_cut": is_cut,
            "name": words.value(metadata, "00100010"),
            "description": words.value(metadata, "0008103E") or words.value(metadata, "00081030"),
            "modality": words.value(metadata, "00080060"),
            "number": words.value(metadata, "00200013"),
            "sop_class": _uid_name(words.value(metadata, "00080016")),
            "syntax": _uid_name(syntax),
            "size": size,
            "offset": offset_of(dict(reversed(request.query))),
            "is_image": bool(words.whole(metadata, "00280010", _MAX_ROWS)),
        }

    await show(request, services, "instance.html", page)


def _uid_name(uid: str) -> str:
    return UID(uid).name


_VIEW: Final = frozenset((Operation.FIND, Operation.GET))

ROUTES: Final = (
    Route("GET", "/studies/{study}/series/{series}", _VIEW, show_series, "the images of a series"),
    Route(
        "GET",
        "/studies/{study}/series/{series}/instances/{instance}",
        _VIEW,
        show_instance,
        "the elements of an instance",
    ),
)
