"""
The plugins that dicomtwist adds to Twisted: ``twist dicom`` and the endpoint prefix ``dicomtls:``.

Every ``twist`` command and every endpoint string imports this file, so it only names things; the modules
behind the names are imported when one of them is used.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from twisted.application.service import ServiceMaker
from twisted.internet.interfaces import (
    IStreamClientEndpointStringParserWithReactor,
    IStreamServerEndpointStringParser,
)
from twisted.plugin import IPlugin
from zope.interface import implementer

if TYPE_CHECKING:
    from twisted.internet.interfaces import IStreamClientEndpoint, IStreamServerEndpoint


@implementer(IPlugin, IStreamServerEndpointStringParser)
class _DICOMTLSServerParser:
    """
    Parser of ``dicomtls:`` as a server endpoint string.
    """

    prefix = "dicomtls"

    def parseStreamServer(self, reactor: Any, *args: Any, **kwargs: Any) -> IStreamServerEndpoint:
        from dicomtwist import endpoints

        return endpoints.parse_server(reactor, *args, **kwargs)


@implementer(IPlugin, IStreamClientEndpointStringParserWithReactor)
class _DICOMTLSClientParser:
    """
    Parser of ``dicomtls:`` as a client endpoint string.
    """

    prefix = "dicomtls"

    def parseStreamClient(self, reactor: Any, *args: Any, **kwargs: Any) -> IStreamClientEndpoint:
        from dicomtwist import endpoints

        return endpoints.parse_client(reactor, *args, **kwargs)


class _DICOMServiceMaker(ServiceMaker):
    """
    The maker of ``twist dicom``, which handles signals before it imports anything.

    The imports, the opening of an index and its comparison with the files take seconds to minutes, in which a supervisor may
    stop the program or a log rotation send it SIGHUP. The dispositions that Python leaves would kill it.
    """

    def __init__(self, *arguments: str) -> None:
        super().__init__(*arguments)  # type: ignore[no-untyped-call]
        self._received: list[int] = []

    @property
    def options(self) -> Any:
        self._hold_signals()
        return super().options

    @property
    def makeService(self) -> Callable[[Any], Any]:
        return partial(super().makeService, received=self._received)

    def _hold_signals(self) -> None:
        """Exit with status 0 at SIGTERM, and note SIGHUP and SIGUSR1 until the service handles them."""
        for number, handler in (
            (signal.SIGTERM, self._terminated),
            (signal.SIGHUP, self._noted),
            (signal.SIGUSR1, self._noted),
        ):
            if signal.getsignal(number) is signal.SIG_DFL:
                try:
                    signal.signal(number, handler)
                except ValueError:
                    return  # not the main thread: this is not the program

    def _noted(self, number: int, frame: object) -> None:
        if number not in self._received:
            self._received.append(number)

    def _terminated(self, number: int, frame: object) -> None:
        # An exception that is raised here can get lost, as in a destructor. So the signal is noted as well.
        self._noted(number, frame)
        os.write(2, b"twist dicom: SIGTERM during the start\n")
        raise SystemExit(0)


dicom = _DICOMServiceMaker(
    "dicomtwist",
    "dicomtwist.daemon.tap",
    "A DICOM archive (PACS): stores images, and lets peers query and retrieve them.",
    "dicom",
)

dicomtls_server = _DICOMTLSServerParser()
dicomtls_client = _DICOMTLSClientParser()
