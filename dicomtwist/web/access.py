"""
Authentication of HTTP clients: the facts that the access rules are matched against.

A user is confirmed by a token or by a passcode, both of the file of users; a program also by the certificate of its
connection. The rules are those of DIMSE. A client without AE titles matches no rule that has a condition on them.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import replace
from typing import Final

from twisted.logger import Logger

from dicomtwist.access.enforcement import Access
from dicomtwist.access.passcode_checks import TooManyChecks
from dicomtwist.access.policy import CheckedRequestor, Policy
from dicomtwist.access.refusals import Refusal
from dicomtwist.access.rules import Identity, Requestor
from dicomtwist.access.users import MAX_PASSCODE_LENGTH
from dicomtwist.web.http.client import Client
from dicomtwist.web.problems import RETRY_AFTER, Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.services import Services

__all__ = ["authenticate", "refusal"]

#: The longest field Authorization that is looked at, in characters: a passcode in base 64, and a name.
MAX_AUTHORIZATION: Final = 2 * MAX_PASSCODE_LENGTH + 4096

_log = Logger()


async def authenticate(request: DICOMwebRequest, services: Services) -> CheckedRequestor:
    """
    Return the requestor of *request*.

    Credentials are ignored if the policy does not depend on users, as the user identity of an association is.

    :raises Problem: the credentials are wrong (401), or must not be sent like this (403); too many checks wait (429); the
        request comes through a proxy that is not trusted (403).
    """
    client = request.client
    if client.is_refused:
        raise Problem(403, "the proxy is not trusted")
    requestor = Requestor("", "", client.address, proxied=client.proxied, certificate=client.certificate)
    access = services.archive_server.access
    if access is None:
        return CheckedRequestor(requestor, Policy())
    policy = access.policy
    authorization = request.header("Authorization")
    if authorization and policy.depends_on_user:
        identity, user = await _confirm(authorization, client, access, policy)
        requestor = replace(requestor, user=user, identity=identity)
    return CheckedRequestor(requestor, policy)


def refusal(request: DICOMwebRequest, services: Services, what: str) -> Problem:
    """
    Return the response to a client that may not do *what*: 401 if a user might, else 403.

    :param what: the operations in words.
    """
    access = services.archive_server.access
    words = f"no rule allows {what}"
    if access is not None and access.policy.users is not None and request.requestor.identity is None:
        return _challenge(words, request.client)
    return Problem(403, words)


async def _confirm(authorization: str, client: Client, access: Access, policy: Policy) -> tuple[Identity, str]:
    """Return the type of an identity and the name of its user, if the credentials are right."""
    if len(authorization) > MAX_AUTHORIZATION:
        raise Problem(400, "the field Authorization is too long")
    scheme, _, credentials = authorization.partition(" ")
    scheme, credentials = scheme.lower(), credentials.strip()
    if scheme == "bearer":
        user = "" if policy.users is None else policy.users.user_of(credentials)
        if user:
            return Identity.TOKEN, user
        if Identity.JWT in policy.unchecked and credentials.count(".") == 2:
            return Identity.JWT, ""
    elif scheme == "basic":
        if not client.is_secure:
            raise Problem(403, "a passcode must not be sent without TLS")
        if await _is_passcode(credentials, client, access, policy):
            return Identity.PASSCODE, _name_and_passcode(credentials)[0]
    access.refusals.add(("http", "user"))
    access.refusals.report(
        Refusal(
            protocol="http",
            what="user",
            peer="",
            address=client.address,
            words=f"credentials of the scheme {scheme[:16]!r} were not confirmed",
        )
    )
    _log.info(
        "{address}: credentials of HTTP, scheme {scheme!r}, were not confirmed",
        address=client.address,
        scheme=scheme[:16],
    )
    raise _challenge("the credentials are wrong", client)


async def _is_passcode(credentials: str, client: Client, access: Access, policy: Policy) -> bool:
    name, passcode = _name_and_passcode(credentials)
    if Identity.PASSCODE in policy.unchecked:
        return True
    if policy.users is None or not name or len(passcode) > MAX_PASSCODE_LENGTH:
        return False
    try:
        return await access.checks.verify(client.address, policy.users, name, passcode)
    except TooManyChecks as error:
        raise Problem(429, str(error), [("Retry-After", str(RETRY_AFTER))]) from None


def _name_and_passcode(credentials: str) -> tuple[str, bytes]:
    """Return name and passcode (RFC 7617); ``""`` if they cannot be read."""
    try:
        name, colon, passcode = base64.b64decode(credentials, validate=True).partition(b":")
        return (name.decode("utf-8"), passcode) if colon else ("", b"")
    except (binascii.Error, ValueError):
        return "", b""


def _challenge(words: str, client: Client) -> Problem:
    """Return a 401 that names the schemes that the client may use (RFC 9110 11.6.1)."""
    schemes = [("WWW-Authenticate", 'Bearer realm="dicomtwist"')]
    if client.is_secure:
        schemes.append(("WWW-Authenticate", 'Basic realm="dicomtwist", charset="UTF-8"'))
    return Problem(401, words, schemes)
