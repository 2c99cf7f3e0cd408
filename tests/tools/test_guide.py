"""docs/guides/command.md: its commands run, and their output is as it says, except for times and ports."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from pydicom.data import get_testdata_file

from tests import peers
from tests.archive.services.worklists import items, write
from tests.tools.common import ToolTestCase

GUIDE = Path(__file__).parent.parent.parent / "docs" / "guides" / "command.md"
#: Commands, and their output if the guide shows it.
BLOCK = re.compile(r"```sh\n(.*?)```(?:\n\nprints\n\n```text\n(.*?)```)?", re.DOTALL)
#: Numbers that differ in each run.
MEASURED = re.compile(r"\d+\.\d+ (?=k?B|MB|ms|s)|\d+ (?=instances/s)")


def comparable(text: str) -> str:
    """Return *text* without measured numbers and without the column widths that depend on them."""
    return re.sub(r"  +", "  ", MEASURED.sub("N ", text))


class Guide(ToolTestCase):
    """Each block of commands, in a folder with the files that they name."""

    async def start_servers(self) -> dict[str, str]:
        """Start a server with a plain and a TLS port; return its ports by the ports in the guide."""
        certificates = peers.certificates()
        shutil.copy(certificates.ca, self.folder / "ca.pem")
        for name, source in (("ct1", "client"), ("ct2", "server")):
            shutil.copy(getattr(certificates, f"{source}_cert"), self.folder / f"{name}.pem")
            shutil.copy(getattr(certificates, f"{source}_key"), self.folder / f"{name}-key.pem")
        secure = peers.free_port()
        plain = peers.free_port()
        endpoints = (
            f"tcp:{plain}:interface=127.0.0.1",
            f"dicomtls:{secure}:interface=127.0.0.1:privateKey={certificates.server_key}"
            f":certKey={certificates.server_cert}:trustRoots={certificates.ca}",
        )
        storage = Path(self.mktemp()).absolute()
        options = [option for endpoint in endpoints for option in ("--port", endpoint)]
        back, secure_back = peers.free_port(), peers.free_port()
        worklist = Path(self.mktemp()).absolute()
        worklist.mkdir()
        write(worklist / "1.wl", items()[0])
        options += ["--peer", f"CT1=127.0.0.1:{back}", "--worklist", str(worklist)]
        files = f"privateKey={certificates.client_key}:certKey={certificates.client_cert}"
        options += ["--peer", f"CT2=dicomtls:127.0.0.1:{secure_back}:trustRoots={certificates.ca}:{files}"]
        web = peers.free_port()
        arguments = (
            "-m",
            "twisted",
            "dicom",
            "--storage",
            storage,
            "--http",
            f"tcp:{web}:interface=127.0.0.1",
            *options,
        )
        await peers.start(self, sys.executable, *arguments, ready=secure)
        nobody = peers.free_port()
        self.url = f"http://127.0.0.1:{web}/dicom-web"
        ports = {"11112": plain, "11113": nobody, "11114": back, "11115": secure_back, "2762": secure}
        return {name: str(port) for name, port in ports.items()}

    async def test_it_runs(self) -> None:
        blocks = BLOCK.findall(GUIDE.read_text())
        self.assertGreaterEqual(len(blocks), 15)
        ports = await self.start_servers()
        self.instances(20)
        (self.folder / "study" / "readme.txt").write_text("not DICOM")
        shutil.copy(str(get_testdata_file("CT_small.dcm")), self.folder / "image.dcm")
        command = self.folder / "bin" / "dicomtwist"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dicomtwist.tools "$@"\n')
        command.chmod(0o755)
        env = {"PATH": f"{command.parent}:{os.environ['PATH']}"}
        for commands, printed in blocks:
            for port, ours in ports.items():
                commands = re.sub(rf"\b{port}\b", ours, commands)
            commands = commands.replace("https://pacs.example.org/dicom-web", self.url)
            script = f"set -e\ncd '{self.folder}'\n{commands}"
            result = await peers.run("/bin/bash", "-c", script, env=env, timeout=90)
            self.assertEqual(result.code, 0, f"{commands}\n{result.text}")
            if printed:
                got = result.stdout.decode()
                for port, ours in ports.items():
                    got = re.sub(rf"\b{ours}\b", port, got)
                self.assertEqual(comparable(got), comparable(printed))
