"""``twist dicom --check`` and ``--explain``: they print what holds, and open nothing."""

from __future__ import annotations

import io
import os
import socket
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase, TestCase

from dicomtwist.access.users import hash_passcode
from dicomtwist.archive.archive import Archive
from dicomtwist.daemon.tap import Options
from tests import peers
from tests.certificates import DAY, NOW, Authority
from tests.documentation import DOCS, blocks

RULES = """
[[access.rule]]
name = "modalities"
calling = ["CT*", "MR*"]
from = "10.1.0.0/16"
allow = ["echo", "store"]
[[access.rule]]
user = "alice"
called = "ARCHIVE"
allow = "find"
"""


@contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Give up the rights of root for a while, if the tests have them: root may write everywhere."""
    if os.getuid():
        yield
        return
    Options()  # what it imports may be where only root may read
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


class CheckTestCase(SynchronousTestCase):
    """A test that parses options in a folder of its own."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.path = self.folder / "archive.toml"

    def run_options(self, *arguments: str, text: str = "") -> tuple[int, str]:
        """Parse *text* and *arguments*; return the exit status, and what was printed."""
        (self.folder / "users").write_text(f"{hash_passcode('alice', b'secret', n=16)}\n")
        head = f'storage = "{self.folder}/storage"\n'
        self.path.write_text(head + text.replace("USERS", str(self.folder / "users")))
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            ended = self.assertRaises(
                SystemExit, Options().parseOptions, ["--config", str(self.path), *map(str, arguments)]
            )
        self.assertFalse((self.folder / "storage").exists(), "a check creates nothing")
        assert isinstance(ended.code, int)
        return ended.code, printed.getvalue()


class Check(CheckTestCase):
    """``--check``"""

    def test_viewer(self) -> None:
        """The port of a viewer has a default, and names the folder; a viewer has a page."""
        dist = self.folder / "dist"
        dist.mkdir()
        code, printed = self.run_options("--check", "--viewer", str(dist))
        self.assertEqual(code, 64)
        self.assertIn(f"--viewer: {dist} has no file index.html", printed)
        (dist / "index.html").write_text("")
        code, printed = self.run_options("--check", "--http", "8080", text=f'viewer = "{dist}"')
        self.assertEqual(code, 0, printed)
        printed = " ".join(printed.split())
        self.assertIn("http 8080, DICOMweb at /dicom-web", printed)
        self.assertIn(f"viewer tcp:3000:interface=127.0.0.1, {dist}, and DICOMweb at /dicom-web", printed)
        text = f'viewer = "{dist}"\nviewer-http = ["tcp:3001", "tcp:3002"]'
        printed = " ".join(self.run_options("--check", text=text)[1].split())
        self.assertNotIn("tcp:3000", printed)
        self.assertIn(f"viewer tcp:3002, {dist}", printed)
        code, printed = self.run_options("--check", "--viewer-http", "3000")
        self.assertEqual(code, 64)
        self.assertIn("--viewer-http needs --viewer", printed)
        code, printed = self.run_options("--check", text=f'viewer = "{dist}"\nviewer-http = "nonsense:1"')
        self.assertEqual(code, 64)
        self.assertIn("--port or --viewer-http: ", printed)

    def test_everything_is_right(self) -> None:
        text = f'grace = 3\nae-title = "ARCHIVE"\n[peers]\nWS = "ws:104"\n[access]\nusers = "USERS"\n{RULES}'
        code, printed = self.run_options("--check", "--max-pdu", "4096", text=text)
        self.assertEqual(code, 0, printed)
        printed = " ".join(printed.split())
        for words in (
            f"{self.path} is right.",
            "AE title ARCHIVE",
            "port tcp:11112:interface=127.0.0.1",
            "storage, which the start creates,",
            "peers 1: WS",
            f"users 1 in {self.folder}/users",
            f"grace 3.0 ({self.path})",
            "max-pdu 4096 access.rule",
            "access.rule 1 'modalities': CT* or MR* at 10.1.0.0/16 may echo, store",
            "access.rule 2: anybody calling ARCHIVE here with the user alice may find",
        ):
            self.assertIn(words.replace(" access.rule", ""), printed)
        self.assertNotIn("Warnings", printed)

    def test_sockets_of_systemd(self) -> None:
        """They exist only in a process that systemd starts, so a check passes without them."""
        for port in ("systemd:domain=INET:index=0", "haproxy:systemd:domain=INET:index=0"):
            code, printed = self.run_options("--check", "--port", port)
            self.assertEqual(code, 0, printed)
            self.assertIn(port, printed)

    def test_without_rules(self) -> None:
        code, printed = self.run_options("--check")
        self.assertEqual(code, 0, printed)
        self.assertIn("The default rule 'everybody': anybody may echo, store", printed)
        self.assertIn("peers      none", printed)

    def test_the_file_of_the_guide(self) -> None:
        page = blocks(DOCS / "guides" / "configuration.md")
        text = next(one.text for one in page if one.language == "toml" and "[[access.rule]]" in one.text)
        path = self.folder / "guide.toml"
        path.write_text(text.replace("/srv/dicom", str(self.folder / "storage")))
        with redirect_stdout(io.StringIO()) as printed:
            ended = self.assertRaises(SystemExit, Options().parseOptions, ["--config", str(path), "--check"])
        self.assertEqual(ended.code, 0, printed.getvalue())

    def test_warnings(self) -> None:
        text = """
require-called-aet = true
allow-calling = ["MR1"]
[[access.rule]]
certificate = "CN=gateway"
allow = "store"
[[access.rule]]
identity = "kerberos"
allow = "replace"
[[access.rule]]
called = "OTHER"
calling = "CT*"
allow = []
"""
        code, printed = self.run_options("--check", text=text)
        self.assertEqual(code, 0, printed)
        printed = " ".join(printed.split())
        for words in (
            "access.rule 1 never matches: it wants a certificate, and no port has TLS",
            "access.rule 2: identities of type kerberos are never confirmed",
            "access.rule 2 allows replace without store",
            "access.rule 3 allows nothing",
            "access.rule 3 never matches: require-called-aet is on",
            "access.rule 3 never matches: allow-calling has none",
        ):
            self.assertIn(words, printed)

    def test_users_who_are_removed(self) -> None:
        """A start and a reload go on without them, so that the removal takes effect."""
        text = "[access]\nusers = 'USERS'\n[[access.rule]]\nuser = ['alice', 'bob']\nallow = 'all'\n"
        code, printed = self.run_options("--check", text=text)
        self.assertEqual(code, 0, printed)
        warning = " ".join(printed[printed.index("Warnings:") :].split())
        self.assertEqual(warning, f"Warnings: access.rule 1 names the user 'bob', who is not in {self.folder}/users")

    def test_min_free(self) -> None:
        """It is listed like any other option, and too little room is a warning."""
        code, printed = self.run_options("--check", text='min-free = "64M"\n')
        self.assertEqual(code, 0, printed)
        self.assertRegex(" ".join(printed.split()), r" min-free 64\.0 MiB \(.*archive\.toml\)")
        self.assertNotIn("Warnings", printed)
        code, printed = self.run_options("--check", "--min-free", "900000G")
        self.assertEqual(code, 0, printed)
        warning = " ".join(printed[printed.index("Warnings:") :].split())
        self.assertRegex(warning, r"storage has .* free, less than min-free \(.*TiB\): instances would be refused")

    def test_certificates(self) -> None:
        """The certificates of the ports are listed; those that peers refuse, or will refuse soon, are warnings."""
        authority = Authority(str(self.folder), "test")
        for name, begin, end, words in (
            ("sound", -1, 365, ""),
            ("near: it", -1, 3, "in 2 days: renew it"),
            ("gone", -9, -1, "peers refuse it; renew it"),
            ("coming", 1, 365, "peers refuse it until then; is the clock right?"),
        ):
            path = authority.issue(name, "localhost", not_before=NOW + begin * DAY, not_after=NOW + end * DAY)
            escaped = path.replace(":", "\\:")
            port = f"haproxy:dicomtls:2762:privateKey={escaped}:clientCertificate=none"
            with patch.dict(os.environ, COLUMNS="1000"):
                code, printed = self.run_options("--check", "--port", port)
            self.assertEqual(code, 0, printed)
            self.assertIn(f"certificate {path}, valid until {NOW + end * DAY:%Y-%m-%d}\n", printed)
            warnings = printed.partition("Warnings:\n")[2]
            self.assertIn(words, warnings)
            self.assertEqual(f"the certificate {path} " in warnings, bool(words), printed)

    def test_mistakes(self) -> None:
        """A mistake has the words and the exit status that it has at a start."""
        (self.folder / "file").write_text("")
        for arguments, text, words in (
            (("--check",), "max-asociations = 3", "did you mean max-associations?"),
            (("--check",), "[[access.rule]]\nallow = 'ecko'", "did you mean echo?"),
            (("--check",), "[[access.rule]]\nuser = 'bob'\nallow = 'all'", "the user 'bob'"),
            (("--check",), "check = true", "check is not an option"),
            (("--check",), "explain = 'x'", "explain is not an option"),
            (("--check", "--storage", str(self.folder / "file" / "x")), "", "is not a folder"),
            (("--check", "--port", "tcp:x"), "", "--port"),
            (("--check", "--port", "dicomtls:2762:privateKey=nowhere:certKey=nowhere"), "", "nowhere"),
            (("--explain", "calling=X"), "", "--explain: from is missing"),
        ):
            code, printed = self.run_options(*arguments, text=text)
            self.assertEqual(code, 64, printed)
            self.assertIn(words, printed)
            self.assertEqual(printed.count("\n"), 1, printed)

    def test_permissions(self) -> None:
        """The user that runs the check has to be able to write the folder above, the folder of the index, and its files."""
        for locked, mode, words in (
            ("", 0o555, "is not writable for the user"),
            ("", 0o000, "may not be entered by the user"),
            ("archive", 0o555, "is not writable for the user"),
            ("archive/.index", 0o555, ".index is not writable for this user"),
            (
                "archive/.index/lock",
                0o444,
                "lock is not readable and writable for this user: was a server run as another",
            ),
        ):
            folder = self.open_folder()
            path = folder / locked
            if locked:
                (folder / "archive" / ".index").mkdir(parents=True)
                (folder / "archive" / ".index" / "lock").touch()
                for one in (folder, *folder.rglob("*")):
                    one.chmod(0o666 if one.is_file() else 0o777)
            path.chmod(mode)
            with as_ordinary_user():
                code, printed = self.check(folder / "archive")
            path.chmod(0o700)
            self.assertEqual(code, 64, printed)
            self.assertIn(words, printed)
            self.assertEqual(printed.count("\n"), 1, printed)

    def open_folder(self) -> Path:
        """Make a folder that every user can reach, wherever the tests run."""
        folder = Path(mkdtemp(prefix="dicomtwist-check-"))
        folder.chmod(0o755)
        self.addCleanup(rmtree, folder)
        return folder

    def check(self, storage: Path) -> tuple[int, str]:
        """Check the folder; return the exit status, and what was printed."""
        with redirect_stdout(io.StringIO()) as printed, redirect_stderr(printed):
            ended = self.assertRaises(SystemExit, Options().parseOptions, ["--check", "--storage", str(storage)])
        assert isinstance(ended.code, int)
        return ended.code, printed.getvalue()

    def test_index(self) -> None:
        """An index that a start could not use is a mistake, and the check makes and changes no file."""
        storage = self.folder / "archive"
        archive = Archive(storage)
        archive.open()
        archive.close()
        file = storage / ".index" / "index.sqlite"
        sound = file.read_bytes()
        newer = self.folder / "newer.sqlite"
        newer.write_bytes(sound)
        with closing(sqlite3.connect(newer)) as connection, connection:
            connection.execute("UPDATE about SET value = '99' WHERE name = 'version'")
        middle = len(sound) // 2
        for content, words in (
            (sound, ""),
            (b"", ""),
            (b"this is no database, whatever its name says" * 100, "file is not a database; if it is damaged, move it"),
            (sound[:middle], "move it away: it is rebuilt from the files"),
            (sound[:4096] + b"\xff" * (len(sound) - 4096), "move it away: it is rebuilt from the files"),
            (newer.read_bytes(), "has version 99"),
        ):
            file.write_bytes(content)
            before = {path: path.read_bytes() for path in storage.rglob("*") if path.is_file()}
            code, printed = self.check(storage)
            self.assertEqual(code, 64 if words else 0, printed)
            self.assertIn(words and f"--storage: the index cannot be used: {file}", printed)
            self.assertIn(words, printed)
            self.assertEqual({path: path.read_bytes() for path in storage.rglob("*") if path.is_file()}, before)

    def test_index_beside_a_running_server(self) -> None:
        """SQLite's log is there then, and not looked into."""
        storage = self.folder / "archive"
        archive = Archive(storage)
        archive.open()
        self.addCleanup(archive.close)
        code, printed = self.check(storage)
        self.assertEqual(code, 0, printed)


class Explain(CheckTestCase):
    """``--explain``"""

    def test_exit_statuses(self) -> None:
        text = f'ae-title = "ARCHIVE"\n[access]\nusers = "USERS"\n{RULES}'
        for case, code, words in (
            ("calling=CT1,from=10.1.2.3,operation=store", 0, "store: allowed; access.rule 1 'modalities'"),
            ("calling=CT1,from=10.1.2.3,operation=find", 1, "the nearest is access.rule 2"),
            ("calling=X,from=10.1.2.3,user=alice,operation=find", 0, "access.rule 2"),
            ("calling=X,from=10.1.2.3,called=Y,user=alice,operation=find", 1, "(1, 1, 7)"),
        ):
            found, printed = self.run_options("--explain", case, text=text)
            self.assertEqual(found, code, printed)
            self.assertIn(words, printed)

    def test_lines_that_fit_a_terminal(self) -> None:
        text = f'[access]\nusers = "USERS"\n{RULES}'
        case = "calling=X,from=10.1.2.3,called=Y"
        with patch.dict(os.environ, COLUMNS="60"):
            code, printed = self.run_options("--explain", case, text=text)
        self.assertEqual(code, 1)
        self.assertLessEqual(max(map(len, printed.splitlines())), 60)
        with patch.dict(os.environ, COLUMNS=""):
            _, whole = self.run_options("--explain", case, text=text)
        self.assertEqual(" ".join(printed.split()), " ".join(whole.split()))
        self.assertEqual(len(whole.splitlines()), 2)

    def test_both(self) -> None:
        code, printed = self.run_options("--check", "--explain", "calling=X,from=10.1.2.3,operation=find")
        self.assertEqual(code, 1)
        self.assertIn("is right.", printed)
        self.assertIn("find: refused with 0x0124", printed)

    def test_options_count(self) -> None:
        case = "calling=X,from=127.0.0.1,operation=replace"
        self.assertEqual(self.run_options("--explain", case)[0], 0)
        self.assertEqual(self.run_options("--explain", case, "--duplicates", "keep")[0], 1)
        self.assertEqual(self.run_options("--explain", case, "--allow-calling", "Y")[0], 1)
        self.assertEqual(self.run_options("--explain", f"{case},called=Z", "--require-called-aet")[0], 1)


class AsCommand(TestCase):
    """The command itself, beside a server that uses the port."""

    timeout = 120

    async def test_a_check_beside_a_server(self) -> None:
        folder = Path(self.mktemp()).absolute()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            command = (sys.executable, "-m", "twisted", "dicom", "--storage", str(folder), "--port", str(port))
            result = await peers.run(*command, "--check")
            self.assertEqual(result.code, 0, result.text)
            self.assertIn("The options are right.", result.text)
            result = await peers.run(*command, "--explain", "calling=CT1,from=10.1.2.3,operation=find")
            self.assertEqual(result.code, 1, result.text)
        self.assertFalse(folder.exists())

    async def test_a_reader_that_stops(self) -> None:
        """``--check | head`` prints no traceback."""
        code = "import sys, subprocess as s; p = s.Popen(sys.argv[1:], stdout=s.PIPE); p.stdout.close(); sys.exit(p.wait())"
        command = (sys.executable, "-m", "twisted", "dicom", "--storage", self.mktemp(), "--check")
        result = await peers.run(sys.executable, "-c", code, *command)
        self.assertEqual((result.code, result.text), (0, ""))
