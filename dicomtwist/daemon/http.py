"""
The HTTP server of ``twist dicom``: its options, and how it is made of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from twisted.python import usage

from dicomtwist.daemon.option_values import origin as checked_origin
from dicomtwist.daemon.option_values import seconds, size, url
from dicomtwist.settings import Settings
from dicomtwist.web.http.limits import HTTPLimits

if TYPE_CHECKING:
    from dicomtwist.archive.server import ArchiveServer

__all__ = ["HTTP_PARAMETERS", "HTTPOptions", "change_http", "describe_http", "make_http"]

#: The port of a viewer without the option ``--viewer-http``.
DEFAULT_VIEWER_PORT: Final = "tcp:3000:interface=127.0.0.1"

_LIMITS: Final = HTTPLimits()

#: The options with a value, as ``usage.Options`` has them.
HTTP_PARAMETERS: Final[list[list[Any]]] = [
    [
        "http-url",
        None,
        None,
        "URL of DICOMweb as clients know it, such as https://pacs.example/dicom-web, for URLs in responses.",
        url,
    ],
    [
        "viewer",
        None,
        None,
        "Folder of a web viewer, such as dist of the package @ohif/app; it is served at --viewer-http.",
    ],
    [
        "http-max-body",
        None,
        _LIMITS.maximum_body,
        "Longest body of an HTTP request, in bytes (500M, 10G).",
        size("--http-max-body"),
    ],
    [
        "http-header-timeout",
        None,
        _LIMITS.header_timeout,
        "Seconds in which the header of an HTTP request must arrive completely.",
        seconds("--http-header-timeout"),
    ],
    [
        "http-body-timeout",
        None,
        _LIMITS.body_timeout,
        "Seconds in which the next 16 KiB of the body of an HTTP request must arrive.",
        seconds("--http-body-timeout"),
    ],
    [
        "http-idle-timeout",
        None,
        _LIMITS.idle_timeout,
        "Seconds that an HTTP connection may be idle between two requests.",
        seconds("--http-idle-timeout"),
    ],
]


class HTTPOptions(usage.Options):
    """The options that may be given more than once, and the checks."""

    def opt_http(self, description: str) -> None:
        """
        Port for DICOMweb, below /dicom-web: an endpoint string, or a number for tcp. May be given more than once.
        [default: none]
        """
        self["http"].append(description)

    def opt_http_origin(self, origin: str) -> None:
        """
        Origin of web pages that may use DICOMweb, such as https://viewer.example, or * for any. May be given more than once.
        """
        self["origins"].append(checked_origin(origin))

    def opt_viewer_http(self, description: str) -> None:
        """
        Port for the viewer, and for DICOMweb below /dicom-web: an endpoint string, or a number for tcp. May be given more than
        once. [default: tcp:3000:interface=127.0.0.1, with --viewer]
        """
        self["viewer-ports"].append(description)

    def check_viewer(self) -> None:
        """
        Check the options of the viewer, and set the default of its port.

        :raises usage.UsageError: the folder has no viewer, or there is a port without a viewer.
        """
        if self["viewer"] is None:
            if self["viewer-ports"]:
                raise usage.UsageError("--viewer-http needs --viewer, the folder of the viewer")
            return
        if not Path(self["viewer"], "index.html").is_file():
            raise usage.UsageError(f"--viewer: {self['viewer']} has no file index.html")
        self["viewer-ports"] = self["viewer-ports"] or [DEFAULT_VIEWER_PORT]

    @property
    def web_ports(self) -> list[str]:
        """The ports for HTTP: those for DICOMweb, then those for the viewer."""
        return [*self["http"], *self["viewer-ports"]]


def make_http(options: Any, server: ArchiveServer) -> Any:
    """
    Return the HTTP server, ``None`` without any port for it.

    :param options: the options of ``twist dicom``.
    """
    if not options.http_endpoints:
        return None
    # twisted.web takes a tenth of a second to import, which a server without HTTP need not wait for.
    from dicomtwist.web.http.server import HTTPServer
    from dicomtwist.web.root import make_site
    from dicomtwist.web.services import Services
    from dicomtwist.web.viewer.resource import ViewerRoot

    settings = options.ae.settings
    services = Services(
        *(server, options.ae.reactor),
        limits=_limits(options, settings),
        public_url=options["http-url"] or "",
        origins=frozenset(options["origins"]),
        trusted_proxies=options.networks,
        pixels=server.pixels,
    )
    site = make_site(services)
    count = len(options["http"])
    endpoints, of_viewer = options.http_endpoints[:count], options.http_endpoints[count:]
    entrances = []
    if of_viewer:
        entrance = site.entrance(ViewerRoot(services, Path(options["viewer"]).absolute()))
        entrances = [(endpoint, entrance) for endpoint in of_viewer]
    return HTTPServer(site, endpoints, options.ae.reactor, services, entrances)


def change_http(http: Any, options: Any, settings: Settings) -> None:
    """
    Have the HTTP server do as *options* say from its next request on: its limits, URL, origins and trusted proxies.

    :param settings: those of the AE.
    """
    services = http.services
    for name, value in asdict(_limits(options, settings)).items():
        setattr(services.limits, name, value)
    services.public_url = options["http-url"] or ""
    services.origins = frozenset(options["origins"])
    services.trusted_proxies = http.site.trusted_proxies = options.networks


def _limits(options: Any, settings: Settings) -> HTTPLimits:
    return HTTPLimits(
        maximum_connections=settings.maximum_connections,
        maximum_connections_per_peer=settings.maximum_connections_per_peer,
        maximum_body=options["http-max-body"],
        header_timeout=options["http-header-timeout"],
        body_timeout=options["http-body-timeout"],
        idle_timeout=options["http-idle-timeout"],
        write_timeout=settings.write_timeout,
    )


def describe_http(options: Any) -> Iterator[tuple[str, str, str]]:
    """Yield the ports for HTTP: a word, the endpoint string, and what is there."""
    for port in options["http"]:
        yield "http", str(port), "DICOMweb at /dicom-web"
    for port in options["viewer-ports"]:
        yield "viewer", str(port), f"{options['viewer']}, and DICOMweb at /dicom-web"
