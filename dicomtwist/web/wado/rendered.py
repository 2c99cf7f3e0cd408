"""
Rendered resources and thumbnails: images for display (PS3.18 10.4.1.1.3, 10.4.1.1.5).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from itertools import groupby
from typing import Final, TypeAlias

from twisted.logger import Logger

from dicomtwist.access.rules import Operation
from dicomtwist.archive.query.search import StoredInstance
from dicomtwist.archive.storage.types import InstanceUIDs
from dicomtwist.dicomweb.media_types import Category, Representation
from dicomtwist.dicomweb.multipart import MultipartWriter
from dicomtwist.dicomweb.rendered import Rendering, parse_frames, parse_rendering
from dicomtwist.errors import DataSetError, loggable
from dicomtwist.pixels.errors import NotEncoded, UnsupportedPixels
from dicomtwist.pixels.options import MEDIA_TYPES, RenderOptions, View, Window
from dicomtwist.pixels.pool import Pixels
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Route
from dicomtwist.web.services import Services
from dicomtwist.web.wado.alternatives import is_of_representation
from dicomtwist.web.wado.bulk_data import send_document
from dicomtwist.web.wado.delivery import (
    ELSEWHERE,
    NOT_ACCEPTABLE,
    is_unchanged,
    open_stored,
    problems_of_files,
    quoted,
)
from dicomtwist.web.wado.instances import find_instances

__all__ = ["ROUTES", "options_of", "pixels_of", "send_rendered"]

_log = Logger()

#: How an image is rendered, for each acceptable media type, the best first.
Options: TypeAlias = tuple[RenderOptions, ...]

#: The greatest width and height of a thumbnail, in pixels.
MAX_THUMBNAIL: Final = 256
#: The most instances of a study or a series that are tried for a thumbnail of it, since some have no image.
MAX_TRIED: Final = 8
#: The most frames or instances of one response; each is made and sent before the next one.
MAX_RENDERED: Final = 1000


async def retrieve_rendered(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """
    Answer with a rendered image of an instance, of some of its frames, or of a series or study.

    A multipart body has the images of all instances, one for each, or of all frames in a list. A single part is one image: of a
    series or a study that of an instance that stands for it, which is what viewers show in lists. An instance that has no
    image but is a document or a video is given as that.
    """
    try:
        await _retrieve_images(request, services, values)
    except (UnsupportedPixels, Problem) as error:
        has_no_image = isinstance(error, UnsupportedPixels) or error.status in (406, 501)
        if not has_no_image or request.is_answered or "instance" not in values or "frames" in values:
            raise
        uids = (values["study"], values["series"], values["instance"])
        if not await send_document(request, services, uids):
            raise


async def _retrieve_images(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with images, in the first of the acceptable forms that they can be given in."""
    rendering = parse_rendering(request.query)
    frames = parse_frames(values["frames"]) if "frames" in values else ()
    alternatives = request.accept.alternatives(Category.RENDERED, offers=MEDIA_TYPES)
    if not alternatives and len(frames) > 1 and any(one.multipart for one in request.accept.ranges):
        alternatives = (Representation(MEDIA_TYPES[0], True),)
    if not alternatives:
        raise Problem(406, NOT_ACCEPTABLE)
    every = options_of(request, rendering, [one.media_type for one in alternatives], is_animated=not frames)
    error: NotEncoded | None = None
    for is_multipart, group in groupby(zip(alternatives, every, strict=True), lambda one: one[0].multipart):
        options = tuple(one for _, one in group)
        try:
            await _send_images(request, services, _uids(values), frames, options, is_multipart=is_multipart)
            return
        except NotEncoded as problem:
            if request.is_answered:
                raise
            error = error or problem
    assert error is not None, "there is an alternative"
    raise error


async def _send_images(
    request: DICOMwebRequest,
    services: Services,
    uids: Sequence[str],
    frames: Sequence[int],
    options: Options,
    *,
    is_multipart: bool,
) -> None:
    """Answer with images in one form."""
    if len(frames) > 1 or (frames and is_multipart):
        await _send_frames(request, services, (uids[0], uids[1], uids[2]), frames, options)
    elif is_multipart:
        await _send_all(request, services, uids, options)
    elif len(uids) < 3:
        await _send_representative(request, services, uids, options)
    else:
        await send_rendered(request, services, (uids[0], uids[1], uids[2]), frames[0] if frames else 1, options)


async def retrieve_thumbnail(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Answer with a small image of a study, a series, an instance, or a frame."""
    rendering = parse_rendering(request.query, thumbnail=True)
    alternatives = request.accept.alternatives(Category.RENDERED, offers=MEDIA_TYPES)
    if not alternatives:
        raise Problem(406, NOT_ACCEPTABLE)
    options = options_of(request, rendering, [one.media_type for one in alternatives], is_thumbnail=True)
    uids = _uids(values)
    frames = parse_frames(values["frames"]) if "frames" in values else ()
    if len(frames) > 1:
        raise Problem(400, "a thumbnail shows one frame")
    if len(uids) < 3:
        await _send_representative(request, services, uids, options)
    else:
        frame = frames[0] if frames else None
        await send_rendered(request, services, (uids[0], uids[1], uids[2]), frame, options)


def options_of(
    request: DICOMwebRequest,
    rendering: Rendering,
    media_types: Iterable[str],
    *,
    is_animated: bool = False,
    is_thumbnail: bool = False,
) -> Options:
    """
    Return how an image is rendered, for each media type, and warn of what is ignored.

    :param rendering: the parameters of the request.
    :param media_types: the media types that are acceptable, the best first.
    :param is_animated: whether a GIF has all frames.
    :param is_thumbnail: whether it is a thumbnail, which is not larger than :data:`MAX_THUMBNAIL`.
    """
    for words in rendering.warnings:
        request.warn(words)
    if rendering.annotations:
        request.warn("annotation is ignored: images are rendered without text")
    if rendering.icc_profile not in (None, "no"):
        request.warn("iccprofile is ignored: images are rendered without a profile")
    viewport, window = rendering.viewport, rendering.window
    view = None
    if viewport is not None:
        view = View(**asdict(viewport))
    elif rendering.region is not None:
        view = View(fractions=rendering.region)
    if viewport is not None and rendering.region is not None:
        view = View(viewport.width, viewport.height, fractions=rendering.region)
    if is_thumbnail:
        width, height = (MAX_THUMBNAIL, MAX_THUMBNAIL) if view is None else (view.width, view.height)
        view = View(
            min(width or MAX_THUMBNAIL, MAX_THUMBNAIL), min(height or MAX_THUMBNAIL, MAX_THUMBNAIL), enlarge=False
        )
    chosen = None if window is None else Window(window.center, window.width, window.function)
    return tuple(
        RenderOptions(media_type, view, chosen, rendering.quality, is_animated and media_type == "image/gif")
        for media_type in media_types
    )


def pixels_of(services: Services) -> Pixels:
    """
    Return the processes that render images.

    :raises Problem: there are none (501).
    """
    if services.pixels is None:
        raise Problem(501, 'this server renders no images: it needs the extra "pixels", and --image-processes')
    return services.pixels


async def send_rendered(
    request: DICOMwebRequest, services: Services, uids: InstanceUIDs, frame: int | None, options: Options
) -> None:
    """
    Answer with a rendered frame, or with 304.

    :param uids: the UIDs of the instance.
    :param frame: the number of the frame, from 1; ``None`` for the one in the middle.
    """
    pixels_of(services)
    stored, _ = await open_stored(request, services, uids, lambda _: None)
    stored.close()
    key = quoted(stored.version, _digest(frame, options))
    if is_unchanged(request, key):
        return
    image, media_type = await _render(request, services, uids, key, frame, options)
    request.answer(image, media_type)


async def _render(
    request: DICOMwebRequest,
    services: Services,
    uids: InstanceUIDs,
    key: str,
    frame: int | None,
    options: Options,
) -> tuple[bytes, str]:
    """
    Return a rendered frame, from the cache if it has it, and its media type: the first that it can be encoded in.

    :raises PixelsFailed: the error of the first media type, if there is none.
    """
    path = services.archive_server.archive.store.locate(*uids)
    error: NotEncoded | None = None
    for one in dict.fromkeys(options):
        name = f"{'/'.join(uids)}{key}{one.media_type}"
        image = services.rendered.get(name)
        if image is None:
            try:
                with problems_of_files():
                    image = await pixels_of(services).render(path, frame, one, peer=request.peer)
            except NotEncoded as problem:
                # An image that cannot be decoded has no other media type.
                error = error or problem
                continue
            services.rendered.put(name, image)
        return image, one.media_type
    assert error is not None, "there is a media type"
    raise error


def _digest(frame: int | None, options: Options) -> str:
    """Return a short text that is another one for every other frame and other options."""
    return blake2b(repr((frame, options)).encode(), digest_size=12).hexdigest()


async def _send_frames(
    request: DICOMwebRequest,
    services: Services,
    uids: InstanceUIDs,
    frames: Sequence[int],
    options: Options,
) -> None:
    """Answer with several frames, each a part of a multipart body."""
    if len(frames) > MAX_RENDERED:
        raise Problem(413, f"more than {MAX_RENDERED} frames")
    pixels_of(services)
    stored, _ = await open_stored(request, services, uids, lambda _: None)
    stored.close()
    url = f"{request.base_url}/studies/{uids[0]}/series/{uids[1]}/instances/{uids[2]}/frames"
    writer = MultipartWriter()

    async def pieces() -> AsyncIterator[bytes]:
        for frame in frames:
            key = quoted(stored.version, _digest(frame, options))
            image, media_type = await _render(request, services, uids, key, frame, options)
            headers = (("Content-Type", media_type), ("Content-Location", f"{url}/{frame}/rendered"))
            yield writer.begin(headers)
            yield image
        yield writer.end()

    content_type = Representation(options[0].media_type, True).content_type(writer.boundary)
    await request.stream(pieces(), content_type)


async def _send_all(request: DICOMwebRequest, services: Services, uids: Sequence[str], options: Options) -> None:
    """
    Answer with an image of each instance of a study or a series, each a part of a multipart body. It is made when the client
    takes it. Instances without an image are left out, and so are those whose image cannot be made.

    :raises Problem: there is no such study or series (404), none of its instances has an image (406), or it has more than
        :data:`MAX_RENDERED` instances (413).
    """
    pixels_of(services)
    found = await find_instances(request, services, uids)
    if found.total > MAX_RENDERED:
        raise Problem(413, f"more than {MAX_RENDERED} instances")
    writer = MultipartWriter()

    async def pieces() -> AsyncIterator[bytes]:
        error: Exception | None = None
        is_empty = True
        async for page in found.pages():
            for instance in page:
                try:
                    image, media_type = await _image_of(request, services, instance.uids, options)
                except (Problem, DataSetError, OSError) as problem:
                    if not _is_of_instance(problem):
                        raise
                    error = error or problem
                    if not isinstance(problem, UnsupportedPixels):
                        _log.info(
                            "instance {instance} is left out of rendered images: {reason}",
                            instance=instance.sop_instance_uid,
                            reason=loggable(problem),
                        )
                    continue
                is_empty = False
                study, series, one = instance.uids
                url = f"{request.base_url}/studies/{study}/series/{series}/instances/{one}/rendered"
                yield writer.begin((("Content-Type", media_type), ("Content-Location", url)))
                yield image
        if is_empty and error is not None:
            raise error
        yield writer.end()

    await request.stream(pieces(), Representation(options[0].media_type, True).content_type(writer.boundary))


async def _image_of(
    request: DICOMwebRequest, services: Services, uids: InstanceUIDs, options: Options
) -> tuple[bytes, str]:
    """Return the image of an instance, and its media type."""
    stored, _ = await open_stored(request, services, uids, lambda _: None)
    stored.close()
    return await _render(request, services, uids, quoted(stored.version, _digest(1, options)), 1, options)


async def _send_representative(
    request: DICOMwebRequest, services: Services, uids: Sequence[str], options: Options
) -> None:
    """
    Answer with an image of an instance that stands for a study or a series: of the first one from the middle on that has one.

    :raises Problem: there is no such study or series (404), or no image in it (406).
    """
    pixels_of(services)
    found = await find_instances(request, services, uids)
    middle, at = found.total // 2, 0
    tried: list[StoredInstance] = []
    earlier: list[StoredInstance] = []
    async for page in found.pages():
        for instance in page:
            if at >= middle:
                tried.append(instance)
            else:
                earlier.append(instance)
            at += 1
        del earlier[:-MAX_TRIED]
        if len(tried) >= MAX_TRIED:
            break
    error: Exception | None = None
    for instance in (*tried, *reversed(earlier))[:MAX_TRIED]:
        try:
            await send_rendered(request, services, instance.uids, None, options)
            return
        except (Problem, DataSetError, OSError) as problem:
            # It has no image, or cannot be read: another one stands for its study or series.
            if request.is_answered or not _is_of_instance(problem):
                raise
            error = error or problem
    raise error or Problem(404, "there is no instance")


def _is_of_instance(error: Exception) -> bool:
    """Return whether an image of another instance may be possible in spite of *error*."""
    if isinstance(error, Problem):
        return error.status in (404, 406, 500)
    if isinstance(error, OSError):
        return error.errno not in ELSEWHERE
    return is_of_representation(error)


def _uids(values: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(values[name] for name in ("study", "series", "instance") if name in values)


_GET: Final = frozenset((Operation.GET,))
_STUDY: Final = "/studies/{study}"
_SERIES: Final = "/studies/{study}/series/{series}"
_INSTANCE: Final = "/studies/{study}/series/{series}/instances/{instance}"
_FRAMES: Final = "/studies/{study}/series/{series}/instances/{instance}/frames/{frames}"

ROUTES: Final = (
    Route(
        "GET", f"{_STUDY}/rendered", _GET, retrieve_rendered, "the instances of a study, rendered, or one image for all"
    ),
    Route(
        "GET",
        f"{_SERIES}/rendered",
        _GET,
        retrieve_rendered,
        "the instances of a series, rendered, or one image for all",
    ),
    Route("GET", f"{_INSTANCE}/rendered", _GET, retrieve_rendered, "an instance, rendered"),
    Route("GET", f"{_FRAMES}/rendered", _GET, retrieve_rendered, "frames of an instance, rendered"),
    Route("GET", f"{_STUDY}/thumbnail", _GET, retrieve_thumbnail, "a thumbnail of a study"),
    Route("GET", f"{_SERIES}/thumbnail", _GET, retrieve_thumbnail, "a thumbnail of a series"),
    Route("GET", f"{_INSTANCE}/thumbnail", _GET, retrieve_thumbnail, "a thumbnail of an instance"),
    Route("GET", f"{_FRAMES}/thumbnail", _GET, retrieve_thumbnail, "a thumbnail of a frame"),
)
