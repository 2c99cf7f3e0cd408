"""Changes of a file of users: what stays, what is refused, and what a crash or another writer finds."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.access.users import MAX_USERS, UserEntry, Users, hash_passcode
from dicomtwist.access.users_file import Change, remove_user, set_user


def entry(name: str, passcode: bytes = b"secret") -> UserEntry:
    """Make an entry whose check is fast."""
    return hash_passcode(name, passcode, n=16)


class UsersFile(SynchronousTestCase):
    """A file of users in a folder of its own."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.path = self.folder / "users"

    def test_a_new_file(self) -> None:
        self.assertIs(set_user(self.path, entry("alice")), Change.ADDED)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertTrue(Users(self.path).verify("alice", b"secret"))
        self.assertEqual(os.listdir(self.folder), ["users"])

    def test_the_rest_stays(self) -> None:
        bob, text = entry("bob"), "# users\r\n\n# alice: not here\n{alice}\n  {bob}\n# \xff\x0c\u2028 end"
        self.path.write_bytes(text.format(alice=entry("alice"), bob=bob).encode("utf-8") + b"\xfe")
        self.path.chmod(0o640)
        before = self.path.read_bytes()
        new = entry("alice", b"other")
        self.assertIs(set_user(self.path, new), Change.REPLACED)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o640)
        lines, old = self.path.read_bytes().split(b"\n"), before.split(b"\n")
        self.assertEqual(lines, [*old[:3], str(new).encode(), *old[4:], b""])
        users = Users(self.path)
        self.assertTrue(users.verify("alice", b"other"))
        self.assertTrue(users.verify("bob", b"secret"))
        self.assertIs(set_user(self.path, entry("carol")), Change.ADDED)
        self.assertEqual(len(Users(self.path)), 3)
        self.assertIs(remove_user(self.path, "alice"), Change.REMOVED)
        self.assertNotIn("alice", Users(self.path))
        self.assertRaises(KeyError, remove_user, self.path, "alice")

    def test_a_user_with_several_lines(self) -> None:
        """The server takes the last one, so none of the others may come to life."""
        self.path.write_text(f"{entry('alice', b'1')}\n{entry('bob')}\n{entry('alice', b'2')}\n")
        set_user(self.path, entry("alice", b"3"))
        self.assertEqual(self.path.read_text().count("alice"), 1)
        self.assertTrue(Users(self.path).verify("alice", b"3"))

    def test_a_byte_order_mark(self) -> None:
        """An editor on Windows may have put one in front of the first name."""
        set_user(self.path, entry("alice"))
        self.path.write_bytes(b"\xef\xbb\xbf" + self.path.read_bytes())
        self.assertTrue(Users(self.path).verify("alice", b"secret"))
        self.assertIs(set_user(self.path, entry("alice", b"other")), Change.REPLACED)
        self.assertEqual(self.path.read_bytes().count(b"alice"), 1)
        self.assertTrue(Users(self.path).verify("alice", b"other"))

    def test_a_link(self) -> None:
        target = self.folder / "there"
        target.write_text("")
        self.path.symlink_to(target)
        set_user(self.path, entry("alice"))
        self.assertTrue(self.path.is_symlink())
        self.assertIn("alice", Users(target))

    def test_mistakes(self) -> None:
        """A mistake leaves the file as it is, and nothing beside it."""
        self.path.write_text("bob:secret\n")
        error = self.assertRaises(ValueError, set_user, self.path, entry("alice"))
        self.assertIn("line 1 is not a user entry", str(error))
        self.assertNotIn("secret", str(error))
        self.assertEqual(self.path.read_text(), "bob:secret\n")
        self.assertEqual(os.listdir(self.folder), ["users"])
        # The wrong line is that of the user.
        self.assertIs(set_user(self.path, entry("bob")), Change.REPLACED)
        self.assertRaises(ValueError, remove_user, self.path, "# x")
        self.assertRaises(OSError, set_user, self.folder / "nowhere" / "users", entry("alice"))
        os.mkfifo(self.folder / "fifo")
        self.assertRaises(OSError, set_user, self.folder / "fifo", entry("alice"))

    def test_too_many(self) -> None:
        line = str(entry("x")).partition(":")[2]
        self.path.write_text("".join(f"{number}:{line}\n" for number in range(MAX_USERS)))
        self.assertIs(set_user(self.path, entry("7")), Change.REPLACED)
        self.assertIn("would have more than", str(self.assertRaises(ValueError, set_user, self.path, entry("alice"))))

    def test_at_once(self) -> None:
        """Of changes at the same time none is lost, also among processes."""
        names = [f"user{number}" for number in range(20)]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda name: set_user(self.path, entry(name)), names))
        self.assertEqual(sorted(name for name in names if name in Users(self.path)), sorted(names))
        program = (
            "import sys; from pathlib import Path; from dicomtwist.access.users import hash_passcode;"
            "from dicomtwist.access.users_file import set_user\n"
            "for n in range(20): set_user(Path(sys.argv[1]), hash_passcode(sys.argv[2] + str(n), b'x', n=16))"
        )
        running = [subprocess.Popen([sys.executable, "-c", program, str(self.path), name]) for name in ("a", "b")]
        self.assertEqual([one.wait(120) for one in running], [0, 0])
        self.assertEqual(len(Users(self.path)), 60)
