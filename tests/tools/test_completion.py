"""Completion in bash, zsh and fish, set up as in the guide, and through click's protocol."""

from __future__ import annotations

import os
import sys

from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.storage.types import Durability
from dicomtwist.endpoints import PROFILES
from dicomtwist.tools.cli import COMMANDS, dicomtwist, load_command
from dicomtwist.tools.commands.retrieve import DURABILITIES
from dicomtwist.tools.options import TLS_PROFILES, Command
from tests import peers
from tests.documentation import DOCS, blocks
from tests.tools.common import Terminal, ToolTestCase

#: The text before the Tab key, and the completed text.
COMPLETED = {
    "diag": "diagnose",
    "dump-": "dump-association",
    "find --roo": "find --root",
    "find --root pat": "find --root patient",
    "echo --tls-profile bcp195-": "echo --tls-profile bcp195-nd",
    "echo --password": "echo --password-file",  # what is refused on a command line is not offered
    "move --durability n": "move --durability none",
    "find -k AccessionN": "find -k AccessionNumber",
    "find -k ScheduledProcedureStepSequence[0].ScheduledProcedureStepI": (
        "find -k ScheduledProcedureStepSequence[0].ScheduledProcedureStepID"
    ),
    "diagnose --propose workl": "diagnose --propose worklist",
    "get --sop-class CTIm": "get --sop-class CTImageStorage",
    "echo --tls-roots a-cert": "echo --tls-roots a-certificate.pem",
    "store 127.0.0.1:104 a-st": "store 127.0.0.1:104 a-study",
}


def set_up(language: str) -> str:
    """Return the lines that the guide adds to the start-up file of a shell."""
    (found,) = [
        block.text
        for block in blocks(DOCS / "guides" / "command.md")
        if block.language == language and "_DICOMTWIST_COMPLETE" in block.text
    ]
    return found


class Shells(ToolTestCase):
    """Real shells, with the command on their path and a file and a folder to name."""

    def setUp(self) -> None:
        super().setUp()
        programs, here = self.folder / "bin", self.folder / "here"
        for folder in (programs, here, here / "a-study"):
            folder.mkdir()
        (here / "a-certificate.pem").touch()
        # The script completes as the command does; if it is run, it only prints its arguments.
        script = programs / "dicomtwist"
        script.write_text(
            f'#!/bin/sh\n[ -z "$_DICOMTWIST_COMPLETE" ] || exec "{sys.executable}" -m dicomtwist.tools "$@"\n'
            # Bash keeps the slash after the name of a folder, zsh removes it.
            'arguments="$*"; echo "ran: ${arguments%/}."\n'
        )
        script.chmod(0o755)
        self.env = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "ZDOTDIR": str(self.folder),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "XDG_DATA_HOME": str(self.folder / "data"),
            "HISTFILE": "",
            "INPUTRC": "/dev/null",
            "TERM": "dumb",
        }

    async def prompt(self, process: Terminal, number: int) -> None:
        """Wait for the prompt of the command with this number."""
        await process.until(lambda: process.text.count("ready> ") >= number, 60, "its prompt")

    async def complete(self, process: Terminal) -> None:
        """Type each line with Tab and Return; the command that runs then prints its completed arguments."""
        for number, (typed, completed) in enumerate(COMPLETED.items(), 1):
            await self.prompt(process, number)
            process.type(f"dicomtwist {typed}\t\r")
            try:
                await process.wait_for(f"ran: {completed}.\r\n", 60)
            except peers.PeerError as error:
                self.fail(f"{typed} is not completed to {completed}: {error}")
        process.type("exit\r")
        self.assertEqual((await process.wait()).code, 0, process.text)

    async def test_bash(self) -> None:
        profile = self.folder / "bashrc"
        profile.write_text(f"cd '{self.folder}/here'\nPS1='ready> '\n{set_up('sh')}")
        await self.complete(
            self.at_terminal([peers.tool("bash"), "--noprofile", "--rcfile", str(profile), "-i"], self.env)
        )

    async def test_zsh(self) -> None:
        # No other start-up files: those in /etc may ask questions.
        (self.folder / ".zshrc").write_text(f"cd '{self.folder}/here'\nPS1='ready> '\n{set_up('zsh')}")
        await self.complete(self.at_terminal([peers.tool("zsh"), "--no-globalrcs", "-i"], self.env))

    async def test_fish(self) -> None:
        """Ask fish for the completions that it offers."""
        completions = self.folder / "config" / "fish" / "completions" / "dicomtwist.fish"
        completions.parent.mkdir(parents=True)
        completions.write_text(set_up("fish"))
        script = "".join(f"complete --do-complete 'dicomtwist {typed}'; echo .;" for typed in COMPLETED)
        result = await peers.run(
            peers.tool("fish"), "-c", f"cd '{self.folder}/here'; {script}", env=self.env, timeout=120
        )
        self.assertEqual(result.code, 0, result.text)
        offered = [lines.strip("\n").split("\n") for lines in result.stdout.decode().split("\n.\n")[:-1]]
        self.assertEqual(len(offered), len(COMPLETED))
        for (typed, completed), words in zip(COMPLETED.items(), offered, strict=True):
            self.assertEqual([word.partition("\t")[0].rstrip("/") for word in words], [completed.split()[-1]], typed)


class Protocol(ToolTestCase):
    """The protocol between click and the shells, whichever are installed."""

    async def ask(self, shell: str, line: str) -> list[str]:
        """Return the lines that *shell* receives with the cursor at the end of *line*."""
        words = line.split(" ")
        env = {"_DICOMTWIST_COMPLETE": f"{shell}_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        if shell == "fish":
            env["COMP_CWORD"] = words[-1]
        result = await self.tool(env=env)
        self.assertEqual((result.code, result.stderr), (0, b""), result.text)
        return [line for line in result.stdout.decode().splitlines() if line]

    async def test_scripts(self) -> None:
        for shell, words in (("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete --no-files")):
            script = await self.tool(env={"_DICOMTWIST_COMPLETE": f"{shell}_source"})
            self.assertEqual((script.code, script.stderr), (0, b""), script.text)
            self.assertIn(words, script.stdout.decode())

    async def test_each_shell(self) -> None:
        self.assertEqual(await self.ask("bash", "dicomtwist echo --tls-r"), ["plain,--tls-roots"])
        self.assertEqual(
            await self.ask("zsh", "dicomtwist dia"), ["plain", "diagnose", "Find out why a connection to a peer fails."]
        )
        self.assertEqual(await self.ask("fish", "dicomtwist find --root p"), ["plain,patient"])

    async def test_all_there_is(self) -> None:
        commands = sorted(COMMANDS)
        self.assertEqual(await self.ask("bash", "dicomtwist "), [f"plain,{name}" for name in commands])
        told = await self.ask("bash", "dicomtwist find --")
        self.assertIn("plain,--limit", told)
        self.assertNotIn("plain,--password", told)
        self.assertEqual(
            await self.ask("bash", "dicomtwist find --level "),
            [f"plain,{level}" for level in ("patient", "study", "series", "image")],
        )

    async def test_what_cannot_be_completed(self) -> None:
        """Without a completion there is no output and no error, even after a wrong value."""
        for line in ("echo 127.0.0.1", "find -k ", "find -k Nonsense", "echo --async-ops x --tls-hostname "):
            self.assertEqual(await self.ask("bash", f"dicomtwist {line}"), [], line)


#: Completes a line and prints which of the slow packages it has imported; argv: the line.
COMPLETE = """
import os, sys
line = sys.argv[1]
os.environ.update(_DICOMTWIST_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=str(line.count(" ")))
from dicomtwist.tools import main
try:
    main()
except SystemExit:
    print("imported:", *sorted({"OpenSSL", "pydicom", "twisted"} & {*sys.modules}))
"""


class Imports(ToolTestCase):
    """A press of the Tab key imports no more than it needs, since imports take most of its time."""

    async def test_completion_is_light(self) -> None:
        for line, imported in (
            ("dicomtwist ", ""),
            ("dicomtwist st", ""),
            ("dicomtwist --h", ""),
            *((f"dicomtwist {name} --", "") for name in COMMANDS),
            ("dicomtwist echo PACS@pacs:104 --tls-", ""),
            ("dicomtwist find -k PatientID=1 --level ", ""),
            ("dicomtwist commit --listen 104 --wait 1 ", ""),
            ("dicomtwist worklist --date today --mod", ""),
            ("dicomtwist find -k AccessionN", "pydicom"),
            ("dicomtwist get --sop-class CTIm", "pydicom"),
        ):
            result = await peers.run(sys.executable, "-c", COMPLETE, line, timeout=120)
            self.assertEqual((result.code, result.stderr), (0, b""), result.text)
            self.assertEqual(result.stdout.decode().splitlines()[-1].split()[1:], imported.split(), line)


class Names(SynchronousTestCase):
    """The names that completion and help show without an import are the real ones."""

    def test_subcommands(self) -> None:
        self.assertEqual(list(COMMANDS), sorted(COMMANDS))
        for name, (_, words) in COMMANDS.items():
            command = load_command(name)
            self.assertIsInstance(command, Command)
            self.assertEqual(command.name, name)
            self.assertEqual(dicomtwist.commands[name].get_short_help_str(100), words)
        self.assertEqual(set(dicomtwist.commands), set(COMMANDS))

    def test_values(self) -> None:
        self.assertEqual(TLS_PROFILES, tuple(PROFILES))
        self.assertEqual(DURABILITIES, tuple(str(durability) for durability in Durability))
