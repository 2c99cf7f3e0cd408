"""``twist dicom`` forwards what it receives: to ``storescp`` and to another ``twist dicom``, through a crash and a stop."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from pydicom import dcmread

from dicomtwist.forwarding.pseudonyms import Pseudonyms
from tests import peers
from tests.daemon.test_workers import ServerTestCase, instance

RULES = """
forward-key = "{key}"
http = ["tcp:{http}:interface=127.0.0.1"]
port = "tcp:{port}:interface=127.0.0.1"
[peers]
STORESCP = "127.0.0.1:{storescp}"
OTHER = "127.0.0.1:{other}"
[[forward]]
name = "all"
to = "STORESCP"
[[forward]]
name = "CT of one scanner"
modality = "CT"
calling = "CT*"
to = "OTHER"
deidentify = true
[[access.rule]]
from = "loopback"
allow = "all"
"""


class ForwardingTestCase(ServerTestCase):
    """A server with two destinations, which do not run at first."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir(parents=True)
        self.ports = {name: peers.free_port() for name in ("port", "http", "storescp", "other")}
        self.key = self.folder / "key"
        self.key.write_text("0123456789abcdef0123456789abcdef\n")
        self.text = RULES.format(key=self.key, **self.ports)

    async def begin(self, *options: str, ready: str = "reloaded|listens at") -> None:
        await self.start(self.text, *options, port=self.ports["port"], ready=ready)

    async def storescp(self) -> Path:
        """Start ``storescp``; return its folder."""
        folder = self.folder / "storescp"
        folder.mkdir()
        port = self.ports["storescp"]
        await peers.start(self, peers.dcmtk("storescp"), "-od", folder, "+xa", "+B", port, ready=port)
        return folder

    async def other(self) -> Path:
        """Start another server; return its folder."""
        storage, port = self.folder / "other", self.ports["other"]
        command = ("-m", "twisted", "--log-format", "text", "dicom", "--ae-title", "OTHER", "--storage", storage)
        await peers.start(self, sys.executable, *command, "--port", f"tcp:{port}:interface=127.0.0.1", ready=port)
        return storage

    async def send(self, first: int, count: int, title: str = "CT1") -> None:
        assoc = await self.scu(title).associate("127.0.0.1", self.ports["port"])
        for number in range(first, first + count):
            status = await assoc.send_c_store(instance(f"1.2.{number % 3}", f"1.2.9.{number}"))
            self.assertEqual(status, 0x0000)
        await assoc.release()

    async def queue(self, *arguments: object, code: int = 0) -> list[dict[str, Any]]:
        """Run ``dicomtwist queue``; return what it prints."""
        url = f"http://127.0.0.1:{self.ports['http']}"
        command = ("-m", "dicomtwist.tools", "queue", *arguments, "--url", url, "--json")
        result = await peers.run(sys.executable, *command, timeout=60)
        self.assertEqual(result.code, code, result.text)
        return [json.loads(line) for line in result.stdout.splitlines()]

    async def until_state(self, state: str, count: int, *arguments: object) -> list[dict[str, Any]]:
        """Wait until so many tasks are in a state; return them."""
        while True:
            found = await self.queue("list", "--state", state, *arguments)
            if len(found) >= count:
                return found
            failed = await self.queue("list", "--state", "failed")
            self.assertEqual(failed, [])
            self.assertTrue(self.server.running, self.server.text)


class TwistDicom(ForwardingTestCase):
    async def test_everything_arrives(self) -> None:
        """The server is killed between two halves, and stopped before the second destination is there."""
        peers.dcmtk("storescp")
        await self.begin()
        await self.send(0, 10)
        self.server.signal("KILL")
        await self.server.wait()
        await self.begin()
        await self.send(10, 10)
        await self.send(20, 5, title="MR1")
        stored = await self.storescp()
        await self.queue("retry", "--all")
        done = await self.until_state("done", 25, "--rule", "all")
        self.assertEqual({one["destination"] for one in done}, {"STORESCP"})
        uids = {f"1.2.9.{number}" for number in range(25)}
        received = {str(dcmread(path).SOPInstanceUID): path for path in stored.iterdir()}
        self.assertEqual(received.keys(), uids)
        await self.server.stop()
        await self.begin()
        # One of them at a time is being sent, until the peer turns out to be down.
        waiting = await self.until_state("waiting", 20, "--to", "OTHER")
        self.assertEqual({one["rule"] for one in waiting}, {"CT of one scanner"})
        other = await self.other()
        await self.queue("retry", "--all")
        await self.until_state("done", 20, "--to", "OTHER")
        await self.see_what_other_has(other)
        await self.see_the_figures()
        await self.server.stop()

    async def see_what_other_has(self, folder: Path) -> None:
        """The instances of CT1 are there, without the names of patients."""
        pseudonyms = Pseudonyms(self.key.read_bytes().strip())
        await self.until(lambda: len(list(folder.glob("*/*/*.dcm"))) == 20)
        found = {path.stem for path in folder.glob("*/*/*.dcm")}
        self.assertEqual(found, {pseudonyms.uid(f"1.2.9.{number}") for number in range(20)})
        for path in folder.glob("*/*/*.dcm"):
            self.assertEqual(dcmread(path).PatientIdentityRemoved, "YES")

    async def see_the_figures(self) -> None:
        found = {one["destination"]: one for one in await self.queue("show")}
        self.assertEqual((found["STORESCP"]["done"], found["OTHER"]["done"]), (25, 20))
        (peer,) = found["OTHER"]["peers"]
        self.assertEqual((peer["name"], peer["breaker"], peer["sent"]), ("OTHER", "closed", 20))

    async def test_reload_and_queue(self) -> None:
        """Waiting tasks keep their rule, new instances follow the new ones; an operator holds, drops and explains."""
        await self.begin()
        await self.send(0, 2)
        await self.until_state("waiting", 4)
        held = 0
        while held < 2:  # one that is being sent just now is held when it waits again
            (answer,) = await self.queue("hold", "--to", "OTHER")
            held += answer["tasks"]
        self.configuration.write_text(self.text.replace('modality = "CT"', 'modality = "MR"'))
        self.server.signal("HUP")
        await self.until(lambda: "reloaded" in self.server.text)
        await self.send(2, 1)
        tasks = await self.until_state("waiting", 3)
        self.assertEqual({one["destination"] for one in tasks}, {"STORESCP"})
        self.assertEqual(len(await self.queue("list", "--state", "held")), 2)
        path = next(self.storage.glob("*/*/1.2.9.2.dcm"))
        first, second = await self.queue("explain", path, "--calling", "CT7")
        self.assertEqual((first["destinations"], second["sends"], second["key"]), (["STORESCP"], False, "modality"))
        self.assertEqual(await self.queue("drop", "--state", "held"), [{"tasks": 2}])
        self.assertEqual(await self.queue("drop", "--state", "held"), [{"tasks": 0}])
        await self.server.stop()

    async def test_web_and_commitment(self) -> None:
        """One destination takes STOW-RS and is searched, another one commits itself to the instances."""
        web, storage, found = peers.free_port(), self.folder / "web", peers.certificates()
        users, policy = self.folder / "users", self.folder / "web.toml"
        command: tuple[object, ...] = ("-m", "dicomtwist.tools", "passwd", "--users", users, "--token", "router")
        made = await peers.run(sys.executable, *command)
        token = self.folder / "token"
        token.write_text(next(line for line in made.stdout.decode().splitlines() if len(line) > 30).strip() + "\n")
        policy.write_text(
            f'[access]\nusers = "{users}"\n[[access.rule]]\nuser = "router"\nallow = ["store", "replace", "find"]\n'
            '[[access.rule]]\ncalling = "DICOMTWIST"\nallow = ["store", "replace", "commit"]\n'
        )
        command = ("-m", "twisted", "--log-format", "text", "dicom", "--ae-title", "WEB", "--storage", storage)
        other, at = self.ports["other"], "interface=127.0.0.1"
        options = (
            "--port",
            f"tcp:{other}:{at}",
            "--http",
            f"dicomtls:{web}:{at}:privateKey={found.server_key}:certKey={found.server_cert}:clientCertificate=none",
            "--config",
            policy,
            "--peer",
            f"DICOMTWIST=127.0.0.1:{self.ports['port']}",
        )
        await peers.start(self, sys.executable, *command, *options, ready=web)
        url = f"https://localhost:{web}/dicom-web tokenFile={token} trustRoots={found.ca}"
        text = self.text.replace('"127.0.0.1:{storescp}"'.format(**self.ports), f'"{url}"')
        text = text.replace('to = "STORESCP"', 'to = "STORESCP"\nconfirm = "query"')
        self.text = text.replace("deidentify = true", 'confirm = "commit"\nset.InstitutionName = "X"')
        trail = self.folder / "trail"
        await self.begin("--audit", str(trail))
        await self.send(0, 3)
        done = await self.until_state("done", 6)
        self.assertEqual({one["destination"] for one in done}, {"STORESCP", "OTHER"})
        await self.until(lambda: len(list(storage.glob("*/*/*.dcm"))) == 3)
        await self.server.stop()
        messages = [line for line in trail.read_text().splitlines() if 'UserID="STORESCP"' in line]
        for code in ("110102", "110104"):
            text = "".join(line for line in messages if f'csd-code="{code}"' in line)
            self.assertEqual(set(re.findall(r"\b1\.2\.[012]\b(?!\.)", text)), {"1.2.0", "1.2.1", "1.2.2"})

    async def test_workers(self) -> None:
        """Workers make tasks, and the supervisor delivers them."""
        peers.dcmtk("storescp")
        stored = await self.storescp()
        await self.begin("--workers", "2", ready="all 2 workers are ready")
        await self.until(lambda: "all 2 workers are ready" in self.server.text)
        await self.send(0, 4, title="MR1")
        await self.until_state("done", 4)
        self.assertEqual(len(list(stored.iterdir())), 4)
        (found,) = [one for one in await self.queue("show") if one["destination"] == "STORESCP"]
        self.assertEqual(found["peers"][0]["sent"], 4)
        await self.server.stop()
