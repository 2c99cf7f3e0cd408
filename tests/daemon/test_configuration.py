"""The configuration file of ``twist dicom``: its keys, and the errors about mistakes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.access.rules import DEFAULT_RULES, Identity, Operation
from dicomtwist.access.users import hash_passcode
from dicomtwist.daemon.configuration import (
    MAX_FILE_LENGTH,
    Configuration,
    ConfigurationError,
    add_configuration,
    read_configuration,
)
from dicomtwist.daemon.tap import Options
from tests.documentation import DOCS, blocks


class ConfigurationTestCase(SynchronousTestCase):
    """A test that writes configuration files and reads them."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def read(self, text: str | bytes) -> Configuration:
        self.path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_configuration(self.path, Options())

    def options(self, text: str, *arguments: str) -> dict[str, Any]:
        """Parse a file and arguments, and return the options without opening anything."""

        class OnlyParsed(Options):
            def postOptions(self) -> None:
                """Open nothing."""

        self.path.write_text(text)
        options: Any = OnlyParsed()
        options.parseOptions(["--config", str(self.path), *arguments])
        return dict(options)


class OptionsInTheFile(ConfigurationTestCase):
    """Options in the file."""

    def test_each_kind(self) -> None:
        options = self.options(
            'ae-title = "ARCHIVE"\nmax-associations = 7\nacse-timeout = 2.5\npdu-timeout = "none"\nmin-free = "2G"\n'
            'require-called-aet = true\nport = [11112, "tcp6:11113"]\nallow-calling = "CT1"\npeer = "@peers.txt"\n'
            '[peers]\nCT1 = "ct1:104"\n'
        )
        self.assertEqual(options["ae-title"], "ARCHIVE")
        self.assertEqual(options["max-associations"], 7)
        self.assertEqual(options["acse-timeout"], 2.5)
        self.assertIsNone(options["pdu-timeout"])
        self.assertEqual(options["min-free"], 2 * 1024**3)
        self.assertTrue(options["require-called-aet"])
        self.assertEqual(options["ports"], ["11112", "tcp6:11113"])
        self.assertEqual(options["calling"], ["CT1"])
        self.assertEqual(options["peer"], ["@peers.txt", "CT1=ct1:104"])

    def test_a_flag_that_is_not(self) -> None:
        self.assertFalse(self.options("require-called-aet = false")["require-called-aet"])

    def test_the_command_line_goes_first(self) -> None:
        text = 'ae-title = "FILE"\ngrace = 7\nport = ["11112", "11113"]\nallow-calling = ["A"]\n[peers]\nA = "a:1"\n'
        options = self.options(text, "--ae-title", "LINE", "--port", "11114", "--allow-c", "B", "--peer", "B=b:2")
        self.assertEqual(options["ae-title"], "LINE")
        self.assertEqual(options["grace"], 7)
        self.assertEqual(options["ports"], ["11114"])
        self.assertEqual(options["calling"], ["B"], "an abbreviation is the option as well")
        self.assertEqual(options["peer"], ["A=a:1", "B=b:2"], "peers are those of both")

    def test_a_byte_order_mark(self) -> None:
        """Editors on Windows begin a file with one."""
        self.assertEqual(self.read(b"\xef\xbb\xbfgrace = 7\n").options["grace"], ("7",))

    def test_without(self) -> None:
        self.assertEqual(add_configuration(Options(), ["--grace", "3"]), (Configuration(), ["--grace", "3"]))

    def test_every_option_may_be_there(self) -> None:
        """A file with the default of each option has no effect."""
        parameters: Any = Options.optParameters
        lines = [
            f'{name} = "{default}"' for name, _, default, *_ in parameters if default is not None and name != "config"
        ]
        given = self.options("\n".join(lines))
        for name, _, default, *_ in parameters:
            if name != "config":
                self.assertEqual(given[name], default, name)


class Retention(ConfigurationTestCase):
    """The table [retention]."""

    def test_it(self) -> None:
        self.assertIsNone(self.read("").retention)
        policy = self.read('[retention]\nage = "2y"\n[[retention.rule]]\nmodality = "CT"\nkeep = true\n').retention
        assert policy is not None
        self.assertEqual((policy.age, len(policy.rules)), (2 * 31557600.0, 1))
        self.assertIn("studies older than 730.5 days", str(policy))
        error = self.assertRaises(ConfigurationError, self.read, "[retention]\nage = 3\n")
        self.assertRegex(str(error), r"retention: age is a time such as \"90d\"")

    def test_the_example_of_the_guide(self) -> None:
        (block,) = [one for one in blocks(DOCS / "guides" / "deletion.md") if one.language == "toml"]
        policy = self.read(block.text).retention
        assert policy is not None
        self.assertTrue(policy.dry_run)
        self.assertEqual([rule.name for rule in policy.rules], ["teaching files", "ultrasound", "research"])


class Access(ConfigurationTestCase):
    """Rules and users in the file."""

    def test_nothing(self) -> None:
        policy = self.read("").policy()
        self.assertIs(policy.rules, DEFAULT_RULES)
        self.assertIsNone(policy.users)

    def test_all(self) -> None:
        users = Path(self.mktemp())
        users.write_text(f"{hash_passcode('alice', b'secret', n=16)}\n")
        configuration = self.read(
            f'[access]\nusers = "{users}"\naccept-identity = ["kerberos"]\n'
            '[[access.rule]]\ncalling = "CT*"\nallow = ["store"]\n'
            '[[access.rule]]\nuser = "alice"\nallow = "all"\n'
        )
        policy = configuration.policy()
        self.assertEqual(policy.rules.rules[0].allow, {Operation.STORE})
        self.assertEqual(policy.unchecked, {Identity.KERBEROS})
        assert policy.users is not None
        self.assertIn("alice", policy.users)

    def test_users_who_cannot_be(self) -> None:
        rule = '[[access.rule]]\nuser = "bob"\nallow = "all"\n'
        error = self.assertRaises(ConfigurationError, self.read(rule).policy)
        self.assertIn("'bob', who is unknown because access.users names no file", str(error))
        self.read(f'[access]\naccept-identity = "username"\n{rule}').policy()
        users = Path(self.mktemp())
        users.write_text("")
        with capturedLogs() as events:
            policy = self.read(f'[access]\nusers = "{users}"\n{rule}').policy()
        self.assertEqual([name for _, name in policy.unknown_users()], ["bob"])
        (event,) = events
        self.assertEqual(formatEvent(event), f"access.rule 1 names the user 'bob', who is not in {users}")
        error = self.assertRaises(ConfigurationError, self.read('[access]\nusers = "nowhere"\n').policy)
        self.assertIn("cannot read the users", str(error))


class Mistakes(ConfigurationTestCase):
    """An error names the file, the key, and the nearest key that exists."""

    def test_each(self) -> None:
        for text, words in (
            ("max-asociations = 3", "max-asociations is not an option: did you mean max-associations?"),
            ("zzz = 3", "zzz is not an option: there are workers, ae-title,"),
            ("config = 'x'", "config is not an option"),
            ("require-called-aet = 1", "require-called-aet is true or false, not 1"),
            ("grace = true", "grace is a text or a number, not True"),
            ("grace = [1]", "grace is a text or a number"),
            ("storage = ''", "storage is empty: leave it out"),
            ("port = [[1]]", "port is a text or a number"),
            ("peers = ['A=b:1']", "peers is a table: write [peers]"),
            ("[peers]\nA = 2026-01-01", "peers.A is a text or a number"),
            ("access = 3", "access is a table"),
            ("[peer]\nWS = 'ws:104'", "peer is not a table: did you mean peers?"),
            ("[axess]", "axess is not a table: did you mean access?"),
            ("[grace]", "grace is not a table: there are peers, access"),
            ("[peers]\nWS = 'ws'", "peers.WS: 'ws' has no port: write ws:104"),
            ("[peers]\nA_TITLE_THAT_IS_TOO_LONG = 'ws:104'", "peers.A_TITLE_THAT_IS_TOO_LONG: AE title"),
            ("[access]\nrules = []", "access.rules is not a key: did you mean rule?"),
            ("[access]\naccept-identity = 'kerberus'", "did you mean kerberos?"),
            ("[[access.rule]]\nalow = 'all'", "access.rule 1: alow is not a key: did you mean allow?"),
            ("[access.rule]\nallow = 'all'", "access.rule: write each rule as a table, [[access.rule]]"),
            ("a = ", "Invalid value"),
            ("a = 1\na = 2", "Cannot overwrite"),
            (b"a = '\xff'", "is not in UTF-8"),
            ("[access.rule]\nallow = 'all'\n[access.rule]\nallow = 'echo'", "13): write each rule as [[access.rule]]"),
            ("[ access.rule ]\n[[access.rule]]\nallow = 'echo'", ": write each rule as [[access.rule]]"),
            (b"#" * (MAX_FILE_LENGTH + 1), f"more than {MAX_FILE_LENGTH} bytes"),
        ):
            error = self.assertRaises(ConfigurationError, self.read, text)
            self.assertIn(words, str(error))
            self.assertIn(str(self.path), str(error))
        error = self.assertRaises(ConfigurationError, read_configuration, Path("nowhere"), Options())
        self.assertEqual(str(error), "cannot read nowhere: No such file or directory")

    def test_values_of_options(self) -> None:
        """An error about the value of an option names the file if the option comes from it."""
        configuration = self.read("grace = -1")
        self.assertEqual(configuration.located("--grace '-1' is not a time"), f"{self.path}: grace '-1' is not a time")
        self.assertEqual(configuration.located("--max-pdu 'x'"), "--max-pdu 'x'")
        self.assertEqual(Configuration().located("--grace x"), "--grace x")


class Example(ConfigurationTestCase):
    """The example of docs/guides/configuration.md."""

    def setUp(self) -> None:
        super().setUp()
        (block,) = [one for one in blocks(DOCS / "guides" / "configuration.md") if one.language == "toml"]
        self.text = block.text

    def test_it_is_read(self) -> None:
        configuration = self.read(self.text)
        self.assertGreater(len(configuration.rules), 3)
        self.assertGreater(len(configuration.peers), 1)

    def test_those_of_access(self) -> None:
        """The examples of docs/guides/access.md are read as well."""
        texts = [one.text for one in blocks(DOCS / "guides" / "access.md") if one.language == "toml"]
        self.assertGreater(len(texts), 2)
        for text in texts:
            self.assertGreater(len(self.read(text).rules), 0)

    def test_it_has_every_option(self) -> None:
        """The example has each option, set or commented out with its default."""
        parameters: Any = Options.optParameters
        flags: Any = Options.optFlags
        told = set(re.findall(r"^#? ?([a-z-]+) = ", self.text, re.MULTILINE))
        known = {one[0] for one in (*parameters, *flags)} - {"config", "check", "explain"} | {
            "port",
            "allow-calling",
            "peer",
            "http",
            "http-origin",
            "viewer-http",
        }
        self.assertEqual(known - told, set())

    def test_commented_out(self) -> None:
        """The lines that are commented out are valid as well."""
        lines = [re.sub(r"^# ([a-z-]+ = )", r"\1", line) for line in self.text.splitlines() if line.strip() != "#"]
        self.read("\n".join(lines))
