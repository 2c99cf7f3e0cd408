"""
The directory of AE titles and their addresses. The archive uses it for the associations that it requests itself, such as
those for the instances of a C-MOVE and for the results of a storage commitment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from twisted.internet.interfaces import IStreamClientEndpoint

from dicomtwist.dicomweb.urls import is_url
from dicomtwist.transport.dicomweb_peer import DICOMwebPeer, read_dicomweb_peer
from dicomtwist.transport.peer_address import parse_peer
from dicomtwist.ul.ae_title import check_ae_title

__all__ = ["MAX_PEERS", "Destination", "Peers"]

#: The maximum number of peers.
MAX_PEERS: Final = 10_000
#: The maximum length of a file of peers, in bytes.
MAX_FILE_LENGTH: Final = 4 * 1024 * 1024

#: The address of a peer, as a handler of ``EVT_C_MOVE`` yields it: (host, port), or an endpoint.
Destination = tuple[str, int] | IStreamClientEndpoint


class Peers:
    """
    The known peers by AE title. One whose address is a URL speaks DICOMweb: it has a name, and no association is requested.

    :param reactor: for the endpoints.
    :param descriptions: each ``TITLE=ADDRESS``, where ADDRESS is ``host:port``, ``[::1]:port`` or an endpoint string such
        as ``tls:host:port`` or ``dicomtls:...``, or the base URL of DICOMweb such as ``https://pacs.example/dicom-web``,
        perhaps with settings behind it (:func:`~dicomtwist.transport.dicomweb_peer.check_dicomweb_peer`); or ``@FILE``, whose
        lines are such descriptions. Empty lines and lines that begin with ``#`` are ignored. Later descriptions override
        earlier ones.
    :raises ValueError: a description is wrong; the text says which and why. Files are read, including those that an
        endpoint string names, which blocks.
    """

    def __init__(self, reactor: Any, descriptions: Iterable[str] = ()) -> None:
        self._reactor = reactor
        self._descriptions = list(descriptions)
        self._destinations: dict[str, Destination] = {}
        self._web: dict[str, DICOMwebPeer] = {}
        self.reload()

    def reload(self, descriptions: Iterable[str] | None = None) -> None:
        """
        Read all descriptions again, with their files and certificates. Work in progress is not affected. It blocks.

        :param descriptions: replace those that were given at first.
        :raises ValueError: a description is wrong; then nothing has changed.
        """
        found: dict[str, Destination] = {}
        web: dict[str, DICOMwebPeer] = {}
        given = self._descriptions if descriptions is None else list(descriptions)
        for description in given:
            for source, line in _lines(description):
                try:
                    title, destination = self._parse(line)
                except ValueError as error:
                    raise ValueError(f"{source}{error}") from None
                found.pop(title, None)
                web.pop(title, None)
                if isinstance(destination, DICOMwebPeer):
                    web[title] = destination
                else:
                    found[title] = destination
                if len(found) + len(web) > MAX_PEERS:
                    raise ValueError(f"there are more than {MAX_PEERS} peers")
        self._descriptions, self._destinations, self._web = given, found, web

    def change(self, others: Peers) -> None:
        """Have the peers of *others* in place of the former ones."""
        self._descriptions, self._destinations, self._web = others._descriptions, others._destinations, others._web

    def destination(self, title: str) -> Destination | None:
        """Return the address of the AE *title*, ``None`` if it is not known."""
        return self._destinations.get(title.strip(" "))

    def web(self, name: str) -> DICOMwebPeer | None:
        """Return a peer that speaks DICOMweb, ``None`` if there is no such peer."""
        return self._web.get(name)

    def names(self) -> list[str]:
        """Return the names of all peers, those that speak DICOMweb among them."""
        return [*self._destinations, *self._web]

    def __contains__(self, title: object) -> bool:
        return isinstance(title, str) and self.destination(title) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._destinations)

    def __len__(self) -> int:
        return len(self._destinations)

    def _parse(self, description: str) -> tuple[str, Destination | DICOMwebPeer]:
        name, equals, address = description.partition("=")
        if not equals:
            raise ValueError(f"{description!r} is not a peer: write TITLE=host:port or TITLE=tls:host:port")
        title = check_ae_title(name)
        if is_url(address):
            return title, read_dicomweb_peer(address)
        peer = parse_peer(address)
        return title, peer.endpoint(self._reactor) or (peer.host, peer.port)


def _lines(description: str) -> Iterator[tuple[str, str]]:
    """Yield the descriptions in *description*, each with a prefix for errors that names the file and the line."""
    if not description.startswith("@"):
        yield "", description
        return
    path = Path(description[1:])
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_LENGTH + 1)
    except OSError as error:
        raise ValueError(f"cannot read the peers of {str(path)!r}: {error.strerror}") from None
    if len(content) > MAX_FILE_LENGTH:
        raise ValueError(f"{str(path)!r} has more than {MAX_FILE_LENGTH} bytes")
    for number, line in enumerate(content.decode("utf-8-sig", "replace").splitlines(), 1):
        text = line.strip()
        if text and not text.startswith("#"):
            yield f"{path}, line {number}: ", text
