"""
Each subcommand with each kind of peer: successes at a terminal, failures in a pipe and at a terminal.

The tests of the subcommands examine successes in a pipe more closely.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from tests import peers
from tests.archive.services.worklists import items, write
from tests.interop.archives import dcmqrscp, orthanc, study, wlmscpfs
from tests.tools.common import ToolTestCase

STUDY: Final = f"StudyInstanceUID={study()[0].study}"
NO_STUDY: Final = "StudyInstanceUID=1.2.3"
LOCAL: Final = "127.0.0.1"


class Everywhere(ToolTestCase):
    """The base of the tests of one kind of peer."""

    async def works(self, words: str, *args: object) -> None:
        """Run a command that succeeds, at a terminal; *words* match its output."""
        result = await self.terminal(*args).wait(120)
        self.assertEqual(result.code, 0, f"{args}: {result.text}")
        self.assertRegex(result.text.replace("\r\n", "\n"), words, str(args))
        self.assertNotIn("Traceback", result.text)

    async def fails(self, code: int, words: str, *args: object) -> None:
        """Run a command that fails, in a pipe; *words* match its JSON document."""
        document = await self.json(*args, code=code)
        self.assertRegex(str(document), words)

    async def fails_at_a_terminal(self, code: int, words: str, *args: object) -> None:
        """Run a command that fails, at a terminal; *words* match its output."""
        result = await self.terminal(*args).wait(120)
        self.assertEqual(result.code, code, f"{args}: {result.text}")
        self.assertRegex(result.text.replace("\r\n", "\n"), words, str(args))
        self.assertNotIn("Traceback", result.text)

    def receives(self, back: int, folder: str) -> tuple[object, ...]:
        """Return the options to receive the instances that are moved to CT1."""
        listen = f"tcp:{back}:interface={LOCAL}"
        return ("--calling", "CT1", "--receive", self.folder / folder, "--listen", listen)

    def files(self) -> list[str]:
        """Return the paths of the files of the study."""
        return [file.path for file in study()]

    async def query_and_retrieve(self, peer: str, back: int) -> None:
        """Run the operations that succeed with each archive that has the study."""
        count = len(study())
        await self.works(rf"{re.escape(peer)} answered: 0x0000 Success\nin ", "echo", peer)
        await self.works(rf"100%.*{count} stored\]\n(?s:.*)  stored  {count}\n", "store", peer, *self.files())
        await self.works(
            r"^StudyInstanceUID +PatientID\n\S+  \S+\n1 match\n", "find", peer, "-k", STUDY, "-k", "PatientID"
        )
        await self.works(rf"  stored     {count}  in ", "get", peer, self.folder / "got", "-k", STUDY)
        await self.works(rf"  stored     {count}  in ", "move", *self.receives(back, "moved"), peer, "-k", STUDY)
        await self.works(
            r"1 of 1 presentation context accepted\n", "dump-association", "--propose", "verification", peer
        )
        await self.works(r"\nIt works\.\n", "diagnose", peer)


class TwistDicom(Everywhere):
    """``twist dicom`` with a study, a worklist and a peer."""

    async def start_archive(self) -> tuple[str, int]:
        """Start the server; return the peer and the port that it knows for CT1."""
        folder, back = self.folder / "worklist", peers.free_port()
        folder.mkdir()
        for number, item in enumerate(items()):
            write(folder / f"{number}.wl", item)
        port, _ = await self.twist_dicom(
            *("--ae-title", "ARCHIVE", "--require-called-aet"),
            *("--peer", f"CT1={LOCAL}:{back}", "--worklist", str(folder)),
        )
        return f"ARCHIVE@{LOCAL}:{port}", back

    async def test_works(self) -> None:
        peer, back = await self.start_archive()
        await self.query_and_retrieve(peer, back)
        await self.works(r"\d matches\n", "worklist", peer)
        count = len(study())
        await self.works(
            rf"^committed (?s:.*)\n{count} instances committed, 0 not committed\n", "commit", peer, *self.files()
        )

    async def test_fails(self) -> None:
        """Each failure in a pipe and at a terminal."""
        peer, _ = await self.start_archive()
        wrong = peer.replace("ARCHIVE", "WRONG")
        # The Study Instance UID is none.
        torn = self.folder / "torn.dcm"
        content = Path(study()[0].path).read_bytes()
        start = content.index(b"\x20\x00\x0d\x00UI")
        torn.write_bytes(content[:start] + content[start:].replace(b"1.3.6.1", b"x.3.6.1", 1))
        for code, words, args in (
            (3, "does not answer to the AE title WRONG", ("echo", wrong)),
            (1, "0xC000", ("store", peer, torn)),
            (1, "StudyInstanceUID is missing", ("find", "--level", "IMAGE", peer)),
            (1, "sent nothing", ("get", peer, self.folder / "none", "-k", NO_STUDY)),
            (1, "0xA801", ("move", "--to", "NOBODY", peer, "-k", STUDY)),
            (3, "does not answer to the AE title WRONG", ("worklist", wrong)),
            (1, "No such SOP Instance", ("commit", peer, *self.files())),
            (1, "Abstract Syntax Not Supported", ("dump-association", "--propose", "unifiedprocedure", peer)),
            (3, "does not answer to the AE title WRONG", ("diagnose", wrong)),
        ):
            await self.fails(code, words, *args)
            await self.fails_at_a_terminal(code, words, *args)


class DCMTK(Everywhere):
    """DCMTK: dcmqrscp, wlmscpfs and storescp."""

    async def test_works(self) -> None:
        back = peers.free_port()
        port = await dcmqrscp(self, study(), {"CT1": back})
        await self.query_and_retrieve(f"DCMQRSCP@{LOCAL}:{port}", back)
        port = await wlmscpfs(self, items())
        await self.works(r"\d matches\n", "worklist", f"WORKLIST@{LOCAL}:{port}")

    async def test_fails(self) -> None:
        refusing = f"{LOCAL}:{await peers.dcmtk_storescp(self, self.folder / 'refused', '--refuse')}"
        aborting = f"{LOCAL}:{await peers.dcmtk_storescp(self, self.folder / 'aborted', '--abort-after')}"
        archive = f"{LOCAL}:{await dcmqrscp(self, study())}"
        for code, words, args in (
            (3, "'rejected'|'limit'", ("echo", refusing)),
            (1, "aborted by the peer", ("store", "--retries", 0, aborting, *self.files())),
            (3, "'called-title'", ("find", f"WRONG@{archive}")),
            (1, "sent nothing", ("get", f"DCMQRSCP@{archive}", self.folder / "none", "-k", NO_STUDY)),
            (1, "0xA801", ("move", "--to", "NOBODY", f"DCMQRSCP@{archive}", "-k", STUDY)),
            (3, "'no-common-context'", ("worklist", f"DCMQRSCP@{archive}")),
            (3, "'no-common-context'", ("commit", f"DCMQRSCP@{archive}", *self.files())),
            (1, "Abstract Syntax Not Supported", ("dump-association", "--propose", "worklist", f"DCMQRSCP@{archive}")),
            (3, "'rejected'|'limit'", ("diagnose", refusing)),
        ):
            await self.fails(code, words, *args)


class Orthanc(Everywhere):
    """Orthanc, with its plugin for worklists."""

    async def start_archive(self) -> tuple[str, int]:
        """Start Orthanc with the study; return the peer and the port that it knows for CT1."""
        folder, back = self.folder / "worklist", peers.free_port()
        folder.mkdir()
        for number, item in enumerate(items()):
            write(folder / f"{number}.wl", item)
        more = {
            "Plugins": ["/usr/share/orthanc/plugins/libModalityWorklists.so"],
            "Worklists": {"Enable": True, "Database": str(folder)},
            "DicomCheckCalledAet": True,
        }
        return f"ORTHANC@{LOCAL}:{await orthanc(self, study(), {'CT1': back}, **more)}", back

    async def test_works(self) -> None:
        peer, back = await self.start_archive()
        await self.query_and_retrieve(peer, back)
        await self.works(r"\d matches\n", "worklist", "--calling", "CT1", peer)
        listen = ("--calling", "CT1", "--listen", f"tcp:{back}:interface={LOCAL}")
        await self.works(
            rf"\n{len(study())} instances committed, 0 not committed\n", "commit", *listen, peer, *self.files()
        )

    async def test_fails(self) -> None:
        peer, back = await self.start_archive()
        wrong = peer.replace("ORTHANC", "WRONG")
        others = self.instances(1)
        listen = ("--calling", "CT1", "--listen", f"tcp:{back}:interface={LOCAL}")
        for code, words, args in (
            (3, "'called-title'", ("echo", wrong)),
            (3, "'called-title'", ("store", wrong, *self.files())),
            (3, "'called-title'", ("find", wrong)),
            (1, "sent nothing|0x[AC]", ("get", peer, self.folder / "none", "-k", NO_STUDY)),
            (1, "0x[AC]", ("move", "--to", "NOBODY", peer, "-k", STUDY)),
            (3, "'called-title'", ("worklist", wrong)),
            (1, "'committed': False", ("commit", *listen, peer, *others)),
            (1, "Abstract Syntax Not Supported", ("dump-association", "--propose", "unifiedprocedure", peer)),
            (3, "'called-title'", ("diagnose", wrong)),
        ):
            await self.fails(code, words, *args)
