"""``dicomtwist passwd``: the passcode from a terminal or a pipe, and what becomes of the file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from dicomtwist.access.users import MAX_PASSCODE_LENGTH, Users
from tests.tools.common import Terminal, ToolTestCase


class Passwd(ToolTestCase):
    """The subcommand, which connects to nothing."""

    def passwd(self, *arguments: object, passcode: bytes = b"secret\n") -> subprocess.CompletedProcess[bytes]:
        """Run it with *passcode* as standard input."""
        command = [sys.executable, "-m", "dicomtwist.tools", "passwd", *map(str, arguments)]
        return subprocess.run(command, input=passcode, capture_output=True, timeout=120, cwd=self.folder)

    def right(self, name: str, passcode: bytes, users: str = "users") -> bool:
        return Users(self.folder / users).verify(name, passcode)

    def test_from_a_pipe(self) -> None:
        for given, passcode in (
            (b"secret\n", b"secret"),
            (b"secret\r\n", b"secret"),
            (b"no line feed", b"no line feed"),
            (" süß \n".encode(), " süß ".encode()),
            (b"one\ntwo\n", b"one"),
            (b"x" * MAX_PASSCODE_LENGTH + b"\n", b"x" * MAX_PASSCODE_LENGTH),
        ):
            made = self.passwd("--users", "users", "alice", passcode=given)
            self.assertEqual((made.returncode, made.stderr), (0, b""), given)
            self.assertTrue(self.right("alice", passcode), given)

    def test_a_line_without_a_file(self) -> None:
        made = self.passwd("alice")
        self.assertEqual((made.returncode, made.stderr), (0, b""))
        (self.folder / "users").write_bytes(made.stdout)
        self.assertTrue(self.right("alice", b"secret"))

    def test_tokens(self) -> None:
        """A token stands beside a passcode of the user; a new one replaces it, and the user is removed with both."""
        self.passwd("--users", "users", "alice")
        tokens = []
        for words in (b"alice is added to users", b"alice is replaced in users"):
            made = self.passwd("--users", "users", "--token", "alice")
            self.assertEqual((made.returncode, words in made.stderr), (0, True), made)
            tokens.append(made.stdout.decode().strip())
        users = Users(self.folder / "users")
        self.assertEqual([users.user_of(token) for token in (*tokens, "")], ["", "alice", ""])
        self.assertTrue(self.right("alice", b"secret"))
        self.assertNotIn(tokens[1], (self.folder / "users").read_text())
        self.assertEqual(self.passwd("--users", "users", "--delete", "alice").returncode, 0)
        self.assertEqual(len(Users(self.folder / "users")), 0)
        made = self.passwd("--token", "bob")
        token, line = made.stdout.decode().split()
        (self.folder / "users").write_text(line)
        self.assertEqual(Users(self.folder / "users").user_of(token), "bob")
        self.assertEqual(self.passwd("--users", "users", "--token", "--delete", "bob").returncode, 2)

    def test_the_configuration(self) -> None:
        (self.folder / "archive.toml").write_text(f'[access]\nusers = "{self.folder}/there"\n')
        made = self.passwd("--config", "archive.toml", "alice")
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertTrue(self.right("alice", b"secret", "there"))
        made = self.passwd("--config", "archive.toml", "--delete", "alice")
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertNotIn("alice", Users(self.folder / "there"))

    def test_rules_that_name_a_removed_user(self) -> None:
        rule = '[[access.rule]]\nuser = "{}"\nallow = "all"\n'
        (self.folder / "archive.toml").write_text(
            f'[access]\nusers = "{self.folder}/there"\n{rule.format("bob")}{rule.format("alice")}'
        )
        for name in ("alice", "carol"):
            self.passwd("--config", "archive.toml", name)
        made = self.passwd("--config", "archive.toml", "--delete", "alice")
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertEqual(made.stderr, b"dicomtwist: archive.toml still names alice in access.rule 2\n")
        made = self.passwd("--config", "archive.toml", "--delete", "carol")
        self.assertEqual((made.returncode, made.stderr), (0, b""))

    def test_mistakes(self) -> None:
        (self.folder / "empty.toml").write_text("")
        (self.folder / "wrong.toml").write_text("a = ")
        for arguments, passcode, code, words in (
            (("--users", "users", "alice"), b"", 1, "the passcode is empty"),
            (("--users", "users", "alice"), b"\n", 1, "the passcode is empty"),
            (("--users", "users", "alice"), b"x" * (MAX_PASSCODE_LENGTH + 1), 1, "more than"),
            (("--users", "nowhere/users", "alice"), b"x\n", 1, "No such file"),
            (("--users", "users", "--delete", "alice"), b"", 1, "has no user 'alice'"),
            (("--users", "users", "al:ice"), b"x\n", 2, "is not a user name"),
            (("--users", "users", "--config", "empty.toml", "alice"), b"x\n", 2, "contradict"),
            (("--config", "empty.toml", "alice"), b"x\n", 2, "names no file of users"),
            (("--config", "wrong.toml", "alice"), b"x\n", 2, "Invalid value"),
            (("--config", "nowhere.toml", "alice"), b"x\n", 2, "nowhere.toml"),
            (("--delete", "alice"), b"", 2, "--delete needs"),
            ((), b"", 2, "NAME"),
        ):
            made = self.passwd(*arguments, passcode=passcode)
            self.assertEqual(made.returncode, code, (arguments, made.stderr))
            self.assertIn(words, made.stderr.decode(), arguments)
            self.assertNotIn(b"Traceback", made.stderr)
            self.assertEqual(made.stdout, b"")
        self.assertFalse((self.folder / "users").exists())

    def at_the_terminal(self, users: Path) -> Terminal:
        return self.terminal("passwd", "--users", users, "alice")

    async def test_at_a_terminal(self) -> None:
        """The passcode is typed twice, and never shown."""
        users = self.folder / "users"
        for second, code in (("geheim", 0), ("gehiem", 1)):
            process = self.at_the_terminal(users)
            await process.wait_for("Passcode of alice: ")
            process.type("geheim\n")
            await process.wait_for("Again: ")
            process.type(f"{second}\n")
            result = await process.wait()
            self.assertEqual(result.code, code, result.text)
            self.assertNotIn("ge", result.text.replace("'kill -HUP'", ""))
        self.assertTrue(self.right("alice", b"geheim"))

    async def test_interrupted(self) -> None:
        users = self.folder / "users"
        process = self.at_the_terminal(users)
        await process.wait_for("Passcode of alice: ")
        process.type("\x03")
        result = await process.wait()
        self.assertEqual(result.code, 130, result.text)
        self.assertNotIn("Traceback", result.text)
        self.assertNotIn("Aborted", result.text)
        self.assertEqual(os.listdir(self.folder), [])
