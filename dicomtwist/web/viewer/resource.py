"""
The files of a web viewer as a resource of twisted.web.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from twisted.web.resource import Resource

from dicomtwist.web.handling import HandlingResource
from dicomtwist.web.http.compression import MIN_COMPRESSED, gzipped
from dicomtwist.web.http.conditions import matches_etag
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.resource import DICOMwebResource
from dicomtwist.web.services import Services
from dicomtwist.web.viewer.app_config import app_config
from dicomtwist.web.viewer.folder import NoSuchFile, StaticFile, StaticFolder
from dicomtwist.web.wado.pieces import ThreadPieces

__all__ = ["ViewerResource", "ViewerRoot"]

#: The path of the configuration, which is made here.
APP_CONFIG: Final = "/app-config.js"
#: The path of DICOMweb.
DICOM_WEB: Final = b"dicom-web"
#: The longest configuration in the folder, in bytes.
MAX_CONFIG: Final = 1024 * 1024

#: Fields of each response. A page has threads with common memory, in which OHIF decodes images, only if it is isolated from
#: those of other origins (COOP, COEP). The UIDs in its URL are told to no other site.
_FIELDS: Final = (
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Embedder-Policy", "require-corp"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "same-origin"),
)
_LASTING: Final = "public, max-age=31536000, immutable"
_CHECKED: Final = "no-cache"


class ViewerResource(HandlingResource):
    """
    The files of a viewer: public, with ``index.html`` for each path that is no file, and with ``app-config.js`` of OHIF pointed
    at the DICOMweb of this server.

    :param services: the services.
    :param folder: the folder, such as ``dist`` of the package ``@ohif/app``.
    """

    def __init__(self, services: Services, folder: Path) -> None:
        super().__init__(services)
        self.folder = StaticFolder(folder)

    async def handle(self, request: DICOMwebRequest) -> None:
        """Answer with a file."""
        if request.method not in ("GET", "HEAD"):
            raise Problem(405, "the methods here are GET, HEAD", [("Allow", "GET, HEAD")])
        for name, value in _FIELDS:
            request.set_header(name, value)
        path = unquote(request.http.path.decode("latin-1"), errors="replace")
        threads = self.services.archive_server.ae.executors.retrieval.share(request.peer)
        try:
            if path == APP_CONFIG:
                content = await threads.run(self._config)
                request.set_header("Cache-Control", _CHECKED)
                request.answer(content, "text/javascript; charset=utf-8")
                return
            file = await threads.run(self.folder.open_page, path)
        except NoSuchFile:
            raise Problem(404, "there is no such file") from None
        await self._send(request, file)

    async def _send(self, request: DICOMwebRequest, file: StaticFile) -> None:
        threads = self.services.archive_server.ae.executors.retrieval.share(request.peer)
        is_gzip = file.is_compressible and request.negotiate_gzip() and file.size >= MIN_COMPRESSED
        etag = f'"{file.version}-gzip"' if is_gzip else f'"{file.version}"'
        request.set_header("ETag", etag)
        request.set_header("Cache-Control", _LASTING if file.is_lasting else _CHECKED)
        if is_gzip:
            request.set_header("Content-Encoding", "gzip")
        if matches_etag(request.header("If-None-Match"), etag):
            threads.run_admitted(file.close).addErrback(lambda _: None)
            request.answer(status=304)
            return
        pieces = gzipped(file.pieces()) if is_gzip else file.pieces()
        await request.stream(
            ThreadPieces(threads, pieces, file.close), file.media_type, length=None if is_gzip else file.size
        )

    def _config(self) -> bytes:
        """Return the configuration, in a thread."""
        before = ""
        try:
            file = self.folder.open(APP_CONFIG)
        except NoSuchFile:
            pass
        else:
            before = file.file.read(MAX_CONFIG).decode("utf-8", "replace")
            file.close()
        name = self.services.archive_server.ae.ae_title
        return app_config(before, name, self.services.public_url.rstrip("/"), f"/{DICOM_WEB.decode()}").encode()


class ViewerRoot(Resource):
    """
    The root of the port of a viewer: DICOMweb below ``/dicom-web``, so that the page and its data have one origin, and the
    files of the viewer everywhere else.

    :param services: the services.
    :param folder: the folder of the viewer.
    """

    def __init__(self, services: Services, folder: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.putChild(DICOM_WEB, DICOMwebResource(services.archive_server, services))
        self._viewer = ViewerResource(services, folder)

    def getChild(self, path: bytes, request: Any) -> Any:
        """Return the files of the viewer for any other path."""
        return self._viewer
