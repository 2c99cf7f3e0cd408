"""
The plugins that dicomtwist adds to Twisted: ``twist dicom`` and the endpoint prefix ``dicomtls:``.

Every ``twist`` command and every endpoint string imports this file, so it only names things; the modules
behind the names are imported when one of them is used.
"""

from __future__ import annotations

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


dicom = ServiceMaker(
    "dicomtwist",
    "dicomtwist.daemon.tap",
    "A DICOM Storage SCP: keeps what it receives as files.",
    "dicom",
)

dicomtls_server = _DICOMTLSServerParser()
dicomtls_client = _DICOMTLSClientParser()
