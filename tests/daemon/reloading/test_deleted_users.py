"""``dicomtwist passwd --delete`` and SIGHUP: a removed user is refused, also on connections that are open."""

from __future__ import annotations

import subprocess
import sys
from base64 import b64encode
from http.client import HTTPConnection
from pathlib import Path

from pydicom import Dataset
from twisted.internet.threads import deferToThread

from dicomtwist import AE, Association, AssociationRejected, UserIdentity
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelFind
from tests import peers
from tests.daemon.test_workers import ServerTestCase

FIND = StudyRootQueryRetrieveInformationModelFind
POLICY = """
port = "tcp:{port}:interface=127.0.0.1"
http = "tcp:{http}:interface=127.0.0.1"

[access]
users = "{users}"
[[access.rule]]
user = ["alice", "bob"]
allow = "all"
"""


def _query() -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = "STUDY"
    query.StudyInstanceUID = ""
    return query


class DeletedUsers(ServerTestCase):
    async def passwd(self, *arguments: str, passcode: bytes = b"") -> str:
        """Run ``dicomtwist passwd`` with the file of users."""
        command = (sys.executable, "-m", "dicomtwist.tools", "passwd", "--users", str(self.users), *arguments)
        result = await deferToThread(
            subprocess.run, command, input=passcode + b"\n", capture_output=True, timeout=120, check=False
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        return bytes(result.stdout).decode()

    def get(self, connection: HTTPConnection, authorization: str) -> int:
        connection.request("GET", "/dicom-web/studies", headers={"Authorization": authorization})
        response = connection.getresponse()
        response.read()
        return response.status

    async def associate(self, port: int, passcode: str) -> Association:
        ae = AE("SCU")
        ae.add_requested_context(FIND)
        ae.add_requested_context("1.2.840.10008.1.1")
        return await ae.associate("127.0.0.1", port, ext_neg=[UserIdentity(2, b"alice", passcode.encode())])

    async def test_all(self) -> None:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        self.users = folder / "users"
        for user in ("alice", "bob"):
            await self.passwd(user, passcode=b"secret")
        token = next(line for line in (await self.passwd("--token", "alice")).splitlines() if len(line) > 30)
        port, http = peers.free_port(), peers.free_port()
        await self.start(POLICY.format(port=port, http=http, users=self.users), port=port)
        basic = {user: "Basic " + b64encode(f"{user}:secret".encode()).decode() for user in ("alice", "bob")}
        bearer = f"Bearer {token.strip()}"
        asked = (basic["alice"], bearer, basic["bob"])
        kept = [HTTPConnection("127.0.0.1", http, timeout=60) for _ in asked]

        async def statuses(connections: list[HTTPConnection]) -> list[int]:
            return [
                await deferToThread(self.get, connection, value)
                for connection, value in zip(connections, asked, strict=True)
            ]

        self.assertEqual(await statuses(kept), [200] * 3)
        sockets = [one.sock for one in kept]
        assoc = await self.associate(port, "secret")
        self.assertTrue((await assoc.send_c_echo()).is_success)
        self.assertEqual([int(status) async for status, _ in assoc.send_c_find(_query(), FIND)], [0])

        await self.passwd("--delete", "alice")
        # Until the reload the server goes on with what it has read.
        count = self.server.text.count("reloaded")
        self.server.signal("HUP")
        await self.until(lambda: self.server.text.count("reloaded") > count)

        self.assertEqual(await statuses(kept), [401, 401, 200])
        self.assertIs(kept[2].sock, sockets[2], "the connection of another user stays open")
        new = [HTTPConnection("127.0.0.1", http, timeout=60) for _ in asked]
        self.assertEqual(await statuses(new), [401, 401, 200])
        for connection in (*kept, *new):
            connection.close()
        self.assertEqual(int(await assoc.send_c_echo()), 0x0124)
        found = [int(status) async for status, _ in assoc.send_c_find(_query(), FIND)]
        self.assertEqual(len(found), 1)
        self.assertGreaterEqual(found[0], 0x0100)
        await assoc.release()
        with self.assertRaises(AssociationRejected):
            await self.associate(port, "secret")
        self.server.signal("TERM")
        self.assertEqual((await self.server.wait(60)).code, 0)
        self.assertNotIn("Traceback", self.server.text)
