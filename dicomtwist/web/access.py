"""
Authentication of HTTP clients: the facts that the access rules are matched against.
"""

from __future__ import annotations

from dicomtwist.access.policy import CheckedRequestor
from dicomtwist.access.rules import DEFAULT_RULES, Requestor
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.services import Services

__all__ = ["authenticate"]


async def authenticate(request: DICOMwebRequest, services: Services) -> CheckedRequestor:
    """
    Return the requestor of *request*.

    :raises Problem: the credentials are wrong (401), or the request comes through a proxy that is not trusted (403).
    """
    client = request.client
    if client.is_refused:
        raise Problem(403, "the proxy is not trusted")
    access = services.archive_server.access
    requestor = Requestor("", "", client.address, proxied=client.proxied, certificate=client.certificate)
    return CheckedRequestor(requestor, DEFAULT_RULES if access is None else access.policy.rules)
