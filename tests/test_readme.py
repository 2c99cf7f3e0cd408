"""README.md: its programs run and print what it says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from twisted.trial.unittest import TestCase

from tests import peers

README = Path(__file__).parent.parent / "README.md"


class Readme(TestCase):
    """The code blocks as they are printed, except for the port."""

    timeout = 60

    def blocks(self) -> dict[str, str]:
        """Return the Python blocks by the file name in their first line."""
        found = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
        return {block.split("\n", 1)[0].removeprefix("# "): block for block in found}

    async def run_pair(self, server_source: str, client_source: str) -> tuple[str, str]:
        """Run the server, then the client, on a free port; return what they print."""
        port = peers.free_port()
        folder = Path(self.mktemp())
        folder.mkdir()
        for name, source in (("server.py", server_source), ("client.py", client_source)):
            self.assertIn("11113", source)
            (folder / name).write_text(source.replace("11113", str(port)))
        server = await peers.start(self, sys.executable, folder / "server.py", ready=port)
        client = await peers.run(sys.executable, folder / "client.py")
        self.assertEqual(client.code, 0, client.text)
        return server.text, client.text

    async def test_server_and_client(self) -> None:
        """The server and the client in ten lines each."""
        blocks = self.blocks()
        printed, answers = await self.run_pair(blocks["server.py"], blocks["client.py"])
        self.assertEqual(answers.split("\n")[:2], ["0x0000 Success"] * 2)
        self.assertIn("1CT1 1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322", printed)

    async def test_streaming_handler(self) -> None:
        """The streaming handler replaces the other handler."""
        blocks = self.blocks()
        streaming = blocks["@evt.streaming"]
        start = blocks["server.py"].index("def handle_store")
        end = blocks["server.py"].index("async def main")
        server = blocks["server.py"][:start] + streaming + "\n" + blocks["server.py"][end:]
        _, answers = await self.run_pair(server, blocks["client.py"])
        self.assertEqual(answers.split("\n")[:2], ["0x0000 Success"] * 2)
