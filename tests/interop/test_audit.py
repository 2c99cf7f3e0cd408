"""rsyslog receives the audit trail of ``twist dicom`` over TLS, as hospitals collect it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests import peers
from tests.audit.schema import code_of, parsed
from tests.daemon.test_audit import counts_of
from tests.daemon.test_workers import ServerTestCase, instance

CONFIGURATION = """
global(workDirectory="{folder}" defaultNetstreamDriver="gtls" defaultNetstreamDriverCAFile="{ca}"
       defaultNetstreamDriverCertFile="{cert}" defaultNetstreamDriverKeyFile="{key}" maxMessageSize="64k")
module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="anon")
input(type="imtcp" port="{port}" address="127.0.0.1")
template(name="audit" type="string" string="%pri% %app-name% %msgid% %msg:1:$%\\n")
action(type="omfile" file="{folder}/audit" template="audit")
"""


class Rsyslog(ServerTestCase):
    def setUp(self) -> None:
        super().setUp()
        peers.require("rsyslogd")

    async def test_received(self) -> None:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir(parents=True)
        found = peers.certificates()
        syslog, port = peers.free_port(), peers.free_port()
        configuration = folder / "rsyslog.conf"
        configuration.write_text(
            CONFIGURATION.format(folder=folder, ca=found.ca, cert=found.server_cert, key=found.server_key, port=syslog)
        )
        receiver = await peers.start(
            self, peers.tool("rsyslogd"), "-n", "-f", configuration, "-i", folder / "pid", ready=syslog, timeout=30
        )
        await self.start(
            f'audit = "dicomtls:127.0.0.1:{syslog}:trustRoots={found.ca}"\n', "--port", f"tcp:{port}:interface=127.0.0.1",
            port=port, ready="Starting reactor",
        )  # fmt: skip
        assoc = await self.scu("CT1").associate("127.0.0.1", port)
        for _ in range(20):
            await assoc.send_c_store(instance("1.2.3"))
        await assoc.release()
        self.assertEqual((await self.server.stop()).code, 0)
        path = folder / "audit"
        await receiver.poll(lambda: path.exists() and path.read_bytes().count(b"AuditMessage>\n") == 3)
        messages: list[Any] = []
        for line in path.read_bytes().splitlines():
            priority, application, kind, content = line.split(b" ", 3)
            self.assertEqual((priority, application, kind), (b"85", b"dicomtwist", b"DICOM+RFC3881"))
            messages.append(parsed(content.removeprefix(b"\xef\xbb\xbf")))
        self.assertEqual([code_of(one) for one in messages], ["110100", "110104", "110100"])
        self.assertEqual(counts_of(messages[1]), {"1.2.3": 20})
