"""dicomtwist.web.access and .http.client: who a client is, and what it may do."""

from __future__ import annotations

import base64
import unittest
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.web.http_headers import Headers

from dicomtwist.access.passcode_checks import TooManyChecks
from dicomtwist.access.policy import Policy
from dicomtwist.access.rules import EVERYTHING, Identity, Operation, parse_rules
from dicomtwist.access.users import TokenEntry, UserEntry, Users, hash_passcode, make_token
from dicomtwist.runtime.networks import Networks, parse_networks
from dicomtwist.web.http.client import Client
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.routes import Route, Router
from dicomtwist.web.services import Services
from tests.web.site import Response, SiteTestCase

LOCAL = Networks(loopback=True, unix=True)


async def who(request: DICOMwebRequest, services: Services, values: Mapping[str, str]) -> None:
    """Tell who the client is, and what it may do."""
    requestor = request.requestor
    request.answer_json(
        {
            "user": requestor.user,
            "identity": requestor.identity,
            "address": requestor.address,
            "proxied": requestor.proxied,
            "base": request.base_url,
            "may": sorted(one for one in Operation if request.may(one)),
        }
    )


def basic(name: str, passcode: str) -> tuple[str, str]:
    return "Authorization", f"Basic {base64.b64encode(f'{name}:{passcode}'.encode()).decode()}"


class AccessTestCase(SiteTestCase):
    policy = Policy()

    def setUp(self) -> None:
        super().setUp()
        find = frozenset((Operation.FIND,))
        self.resource.router = Router((Route("GET", "/find", find, who), Route("DELETE", "/find", find, who)))

    def set_policy(
        self, *rules: dict[str, Any], entries: Sequence[UserEntry | TokenEntry] | None = None, **more: Any
    ) -> None:
        users = None
        if entries is not None:
            path = Path(self.mktemp())
            path.write_text("".join(f"{entry}\n" for entry in entries))
            users = Users(path)
        assert self.server.access is not None
        self.server.access.policy = Policy(parse_rules(list(rules)), users, **more)

    async def find(self, *headers: tuple[str, str], address: str = "127.0.0.1", method: str = "GET") -> Response:
        return await self.client(address).request(method, "/dicom-web/find", headers)


class Defaults(AccessTestCase):
    async def test_this_machine_and_strangers(self) -> None:
        self.assertEqual((await self.find()).json["may"], sorted(EVERYTHING))
        response = await self.find(address="10.1.2.3")
        self.assertEqual((response.status, response.json["words"]), (403, "no rule allows find"))
        self.assertNotIn("www-authenticate", response.headers)

    async def test_a_name_that_leads_here(self) -> None:
        """A web page of another server, whose name leads to this machine, is no program of this machine."""
        for host, status in (
            ("127.0.0.1", 200),
            ("localhost:8042", 200),
            ("[::1]:8042", 200),
            ("evil.example", 403),
            ("evil.example:8042", 403),
            ("127.0.0.1.evil.example", 403),
            ("", 403),
        ):
            self.assertEqual((await self.find(("Host", host))).status, status, host)

    async def test_proxies(self) -> None:
        forwarded = ("X-Forwarded-For", "10.1.2.3")
        self.assertEqual((await self.find(forwarded)).status, 403)
        self.set_policy({"from": "10.1.0.0/16", "allow": ["find"]})
        response = await self.find(forwarded, ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "pacs.example"))
        self.assertEqual((response.json["address"], response.json["proxied"]), ("10.1.2.3", True))
        self.assertEqual(response.json["base"], "https://pacs.example/dicom-web")
        # A stranger is no proxy, so that what it says counts for nothing.
        self.assertEqual((await self.find(forwarded, address="10.2.2.2")).status, 403)
        self.assertEqual((await self.find(("X-Forwarded-For", "10.2.2.2"), address="10.1.2.3")).status, 200)

    async def test_base_url(self) -> None:
        for host, base in (
            ("127.0.0.1", "http://127.0.0.1:8042/dicom-web"),  # dicomweb-client leaves the port out
            ("127.0.0.1:8042", "http://127.0.0.1:8042/dicom-web"),
            ("localhost:9999", "/dicom-web"),
        ):
            self.assertEqual((await self.find(("Host", host))).json["base"], base)
        self.services.public_url = "https://pacs.example/x/"
        self.assertEqual((await self.find()).json["base"], "https://pacs.example/x")


class Users_(AccessTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.token, entry = make_token("viewer")
        entries: list[UserEntry | TokenEntry] = [hash_passcode("alice", b"geheim", n=16), entry]
        rules = {"user": ["alice", "viewer"], "allow": ["find"]}, {"from": "10.9.0.0/16", "allow": "all"}
        self.set_policy(*rules, entries=entries)

    async def test_token(self) -> None:
        for address in ("127.0.0.1", "10.1.2.3"):
            response = await self.find(("Authorization", f"Bearer {self.token}"), address=address)
            self.assertEqual((response.json["user"], response.json["identity"]), ("viewer", "token"))
            self.assertEqual(response.json["may"], ["find"])
        response = await self.find(("Authorization", f"bearer {self.token[:-1]}"))
        self.assertEqual((response.status, response.json["words"]), (401, "the credentials are wrong"))

    async def test_passcode(self) -> None:
        self.assertEqual((await self.find(basic("alice", "geheim"))).json["user"], "alice")
        for wrong in (
            basic("alice", "wrong"),
            basic("bob", "geheim"),
            basic("viewer", ""),
            ("Authorization", "Basic !"),
            ("Authorization", "Basic"),
            ("Authorization", "Digest x"),
        ):
            with mock.patch("dicomtwist.access.passcode_checks.FIRST_DELAY", 0.0):
                assert self.server.access is not None
                self.server.access.checks = type(self.server.access.checks)(self.ae.executors.passcodes)
                response = await self.find(wrong)
            self.assertEqual(response.status, 401, wrong)
            self.assertIn("Basic", response.headers["www-authenticate"])

    async def test_passcodes_need_tls(self) -> None:
        """From another machine a passcode is not looked at without TLS; a proxy says whether there was any."""
        response = await self.find(basic("alice", "geheim"), address="10.1.2.3")
        self.assertEqual((response.status, response.json["words"]), (403, "a passcode must not be sent without TLS"))
        forwarded = ("X-Forwarded-For", "10.1.2.3")
        for scheme, status in (("http", 403), ("https", 200)):
            response = await self.find(basic("alice", "geheim"), forwarded, ("X-Forwarded-Proto", scheme))
            self.assertEqual(response.status, status)

    async def test_without_credentials(self) -> None:
        response = await self.find(address="10.1.2.3")
        self.assertEqual((response.status, response.headers["www-authenticate"]), (401, 'Bearer realm="dicomtwist"'))
        self.assertEqual((await self.find(address="10.9.2.3")).status, 200)
        # Wrong credentials are refused even if none are needed: the client would not notice otherwise.
        self.assertEqual((await self.find(("Authorization", "Bearer x"), address="10.9.2.3")).status, 401)

    async def test_too_many_checks(self) -> None:
        assert self.server.access is not None
        with mock.patch.object(self.server.access.checks, "verify", side_effect=TooManyChecks("16 wait")):
            response = await self.find(basic("alice", "other"))
        self.assertEqual((response.status, response.headers["retry-after"]), (429, "5"))

    async def test_reload(self) -> None:
        """A user that a reload removes is refused on an open connection."""
        client = self.client()
        headers = [("Authorization", f"Bearer {self.token}")]
        self.assertEqual((await client.request("GET", "/dicom-web/find", headers)).status, 200)
        self.set_policy({"user": "alice", "allow": ["find"]}, entries=[hash_passcode("alice", b"geheim", n=16)])
        self.assertEqual((await client.request("GET", "/dicom-web/find", headers)).status, 401)

    async def test_unchecked(self) -> None:
        self.set_policy({"identity": "jwt", "allow": ["find"]}, unchecked=frozenset((Identity.JWT,)))
        self.assertEqual((await self.find(("Authorization", "Bearer a.b.c"))).json["identity"], "jwt")
        self.assertEqual((await self.find(("Authorization", "Bearer abc"))).status, 401)

    async def test_no_users(self) -> None:
        """Credentials are ignored if nothing depends on them."""
        self.set_policy({"allow": ["find"]})
        self.assertEqual((await self.find(("Authorization", "Bearer x"))).json["user"], "")


class Origins(AccessTestCase):
    async def test_others(self) -> None:
        """A page of another origin reads nothing, and changes nothing."""
        origin = ("Origin", "https://evil.example")
        response = await self.find(origin)
        self.assertNotIn("access-control-allow-origin", response.headers)
        self.assertEqual((await self.find(origin, method="DELETE")).status, 403)
        self.assertEqual((await self.find(("Origin", "null"), method="DELETE")).status, 403)
        self.assertEqual((await self.find(("Origin", "http://127.0.0.1:8042"), method="DELETE")).status, 200)

    async def test_allowed(self) -> None:
        self.services.origins = frozenset(("https://viewer.example",))
        origin = ("Origin", "https://viewer.example")
        response = await self.find(origin, method="OPTIONS")
        self.assertEqual(response.status, 204)
        self.assertEqual(response.headers["access-control-allow-origin"], "https://viewer.example")
        self.assertEqual(response.headers["access-control-allow-methods"], "DELETE, GET, HEAD, OPTIONS")
        self.assertIn("Authorization", response.headers["access-control-allow-headers"])
        self.assertIn("Origin", response.headers["vary"])
        self.assertEqual((await self.find(origin, method="DELETE")).status, 200)
        # An error can be read, too.
        response = await self.client("10.1.2.3").request("GET", "/dicom-web/find", [origin])
        self.assertEqual((response.status, response.headers["access-control-allow-origin"]), (403, origin[1]))
        self.services.origins = frozenset("*")
        response = await self.find(("Origin", "https://any.example"))
        self.assertEqual(response.headers["access-control-allow-origin"], "https://any.example")
        self.assertNotIn("access-control-allow-credentials", response.headers)


class Request:
    """A request with a transport that has addresses only."""

    def __init__(self, peer: Any, headers: Mapping[str, str], host: Any = None) -> None:
        self.requestHeaders = Headers({name: [value] for name, value in headers.items()})
        self.transport = mock.Mock(spec=("getPeer", "getHost"))
        self.transport.getPeer.return_value = peer
        self.transport.getHost.return_value = host or IPv4Address("TCP", "10.0.0.1", 80)

    def getHeader(self, name: bytes) -> Any:
        return self.requestHeaders.getRawHeaders(name, [None])[0]


class Clients(unittest.TestCase):
    def client(self, peer: str, trusted: Networks = LOCAL, **headers: str) -> Client:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return Client.of(Request(IPv4Address("TCP", peer, 1), fields), trusted)

    def test_chains(self) -> None:
        trusted = parse_networks(["10.0.0.0/8", "loopback"])
        for value, address in (
            ("1.2.3.4", "1.2.3.4"),
            ("9.9.9.9, 1.2.3.4", "1.2.3.4"),  # the first is what the client says
            ("1.2.3.4, 10.0.0.7", "1.2.3.4"),
            ("127.0.0.1", "127.0.0.1"),
            ("1.2.3.4:5678", "1.2.3.4"),
            ("[2001:db8::1]:5678", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("unknown", ""),
            ("1.2.3.4, junk", ""),
            (", ".join(["10.0.0.7"] * 50), "10.0.0.7"),
        ):
            found = self.client("10.0.0.5", trusted, X_Forwarded_For=value)
            self.assertEqual((found.address, found.proxied), (address, True), value)

    def test_a_proxy_that_tells_no_address(self) -> None:
        """A request through a proxy is never that of a program of this machine, even if the proxy tells no address."""
        found = self.client("127.0.0.1", Via="1.1 proxy", Host="127.0.0.1")
        self.assertEqual((found.address, found.proxied), ("127.0.0.1", True))

    def test_urls(self) -> None:
        headers = {"X_Forwarded_For": "1.2.3.4", "Host": "pacs.example"}
        for more, origin, prefix in (
            ({}, "http://pacs.example", ""),
            ({"X_Forwarded_Proto": "https"}, "https://pacs.example", ""),
            ({"X_Forwarded_Proto": "https", "X_Forwarded_Port": "8443"}, "https://pacs.example:8443", ""),
            ({"X_Forwarded_Proto": "javascript"}, "http://pacs.example", ""),
            ({"X_Forwarded_Host": "a.example:81"}, "http://a.example:81", ""),
            ({"X_Forwarded_Host": "a b"}, "", ""),
            ({"X_Forwarded_Prefix": "/pacs/"}, "http://pacs.example", "/pacs"),
            ({"X_Forwarded_Prefix": '/"><script>'}, "http://pacs.example", ""),
        ):
            found = self.client("127.0.0.1", LOCAL, **{**headers, **more})
            self.assertEqual((found.origin, found.prefix), (origin, prefix), more)

    def test_unix_sockets(self) -> None:
        found = Client.of(Request(UNIXAddress(b""), {"Host": "localhost"}, UNIXAddress(b"/s")), LOCAL)
        self.assertEqual((found.address, found.proxied, found.is_secure), ("unix", False, True))
