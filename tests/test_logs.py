"""The observers of dicomtwist.logs."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import termios
from typing import Any

from twisted.logger import Logger, LogLevel, LogPublisher, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import AE, logs
from dicomtwist.logs import JSONLog, LimitedByPeer, TextLog, one_line, wrapped
from dicomtwist.sop_class import Verification
from dicomtwist.testing import MemoryNetwork


class Disk(io.RawIOBase):
    """A file on a disk that may be full."""

    def __init__(self) -> None:
        self.content = b""
        self.is_full = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.content += bytes(data)
        return len(data)


class LogTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.file = io.StringIO()

    def log(self, observer: Any, level: LogLevel = LogLevel.info, message: str = "{text}", **fields: Any) -> None:
        publisher = LogPublisher(observer)
        Logger("dicomtwist.test", observer=publisher).emit(level, message, **fields)


class JSON(LogTestCase):
    def event(self, level: Any = LogLevel.info, message: str = "{text}", **fields: Any) -> dict[str, Any]:
        """Return the object of one event, after a check that it is one line of printable ASCII."""
        self.file.seek(0)
        self.file.truncate()
        self.log(JSONLog(self.file), level, message, **fields)
        text = self.file.getvalue()
        self.assertTrue(text.endswith("\n"))
        self.assertTrue(text[:-1].isascii() and text[:-1].isprintable())
        found: dict[str, Any] = json.loads(text)
        return found

    def test_keys(self) -> None:
        found = self.event(LogLevel.warn, "{peer!r} at {address}: {count}", peer="CT1", address="10.1.2.3", count=3)
        self.assertEqual(found["message"], "'CT1' at 10.1.2.3: 3")
        self.assertEqual((found["level"], found["peer"], found["address"]), ("warn", "CT1", "10.1.2.3"))
        self.assertEqual((found["association"], found["count"], found["process"]), (None, 3, os.getpid()))
        self.assertEqual(found["logger"], "dicomtwist.test")
        self.assertRegex(found["time"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")

    def test_nothing_of_a_peer_gets_through(self) -> None:
        """Control characters, terminal escapes, lone surrogates, bidirectional overrides and line separators are escaped."""
        for hostile in (
            *(
                "a\nb",
                "a\r\n{}",
                "\x1b[2J\x1b]0;x\x07",
                "\0",
                "\x7f",
                "\x9b31m",
                "\ud800",
                "\u2028",
                "\u202e",
                "\u200b",
            ),
            *("{", "}", "{0}", "{text}", "\t", "\ufeff", "\U000e0001", "%s", '"}', "\\"),
        ):
            found = self.event(text=hostile, peer=hostile, address=hostile, key=hostile)
            for key in ("message", "peer", "address", "key"):
                self.assertTrue(found[key].isprintable(), (key, hostile))
            if hostile.isprintable():
                self.assertEqual(found["message"], hostile)

    def test_names_of_fields(self) -> None:
        """No field of an event replaces one of the log, and the name of a field may be anything."""
        others: dict[str, Any] = {"time": 1, "process": 0, "traceback": "c", "x\ny": 1, "logger": 2}
        found = self.event(text="a", **others)
        self.assertEqual((found["message"], found["level"], found["logger"]), ("a", "info", "dicomtwist.test"))
        self.assertNotIn("traceback", found)
        self.assertEqual(found["x\\ny"], 1)

    def test_long_texts(self) -> None:
        """A text of 16 MiB is cut, with its length; so are lists, and what is nested."""
        found = self.event(
            text="x" * (16 << 20), items=list(range(1000)), deep=[[[["a"]]]], many={n: n for n in range(999)}
        )
        self.assertLess(len(found["message"]), logs.MAX_MESSAGE + 40)
        self.assertTrue(found["message"].endswith("... (16777216 characters)"))
        self.assertEqual(len(found["items"]), logs.MAX_ITEMS)
        self.assertEqual(len(found["many"]), logs.MAX_ITEMS)
        self.assertEqual(found["deep"], [[["['a']"]]])
        self.assertLess(len(self.event(text="\n" * 5000)["message"]), logs.MAX_MESSAGE + 40)

    def test_values(self) -> None:
        class Broken:
            def __str__(self) -> str:
                raise RuntimeError("no")

        found = self.event(
            text="a",
            n=float("nan"),
            i=float("inf"),
            x=1.5,
            b=b"\xff",
            t=True,
            none=None,
            o=Broken(),
            level_=LogLevel.warn,
        )
        self.assertEqual(
            (found["n"], found["i"], found["x"], found["t"], found["none"]), ("nan", "inf", 1.5, True, None)
        )
        self.assertEqual((found["b"], found["o"]), ("b'\\xff'", "Broken"))

    def test_what_cannot_be_formatted(self) -> None:
        self.assertIn("nable to format event", self.event(message="{missing}")["message"])

    def test_traceback(self) -> None:
        try:
            raise ValueError("a\nb\x1b")
        except ValueError:
            found = self.event(LogLevel.critical, "it failed", log_failure=Failure())
        self.assertEqual(found["message"], "it failed: ValueError: a\\nb\\x1b")
        self.assertTrue(any("test_logs.py" in line for line in found["traceback"]))
        self.assertTrue(all(line.isprintable() for line in found["traceback"]))

    def test_long_traceback(self) -> None:
        def deeper(depth: int) -> None:
            if not depth:
                raise ValueError("x" * 100_000)
            deeper(depth - 1)

        try:
            deeper(200)
        except ValueError:
            found = self.event(LogLevel.critical, "it failed", log_failure=Failure())
        self.assertLessEqual(len(found["traceback"]), logs.MAX_TRACEBACK)
        self.assertLess(len(self.file.getvalue()), 60_000)

    def test_association(self) -> None:
        """An event of an association has its number, and the title and address of the peer, however it names it."""
        network = MemoryNetwork()
        ae = AE("SCP", reactor=network)
        ae.add_supported_context(Verification)
        server = network.result_of(ae.start_server(104))
        client = AE("CT1", reactor=network)
        client.add_requested_context(Verification)
        network.result_of(client.associate("127.0.0.1", 104))
        (assoc,) = server.active_associations

        class Holder:
            log = Logger("dicomtwist.test", observer=JSONLog(self.file))
            assoc: Any = None

        holder = Holder()
        holder.assoc = assoc
        holder.log.info("one")
        Holder.log.info("two", association=assoc)
        for line in self.file.getvalue().splitlines():
            found = json.loads(line)
            self.assertEqual((found["association"], found["peer"]), (assoc.number, "CT1"))
            self.assertEqual(found["address"], assoc.remote.address)


class Text(LogTestCase):
    def test_in_a_file(self) -> None:
        """An event is one line with date and time, however long it is; the level is named unless it is info."""
        self.log(TextLog(self.file), text="x " * 200)
        self.log(TextLog(self.file), LogLevel.error, text="a\nb")
        first, second = self.file.getvalue().splitlines()
        self.assertRegex(first, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d (x )+")
        self.assertTrue(second.endswith(" error: a\\nb"))

    def test_on_a_terminal(self) -> None:
        """Lines fit the terminal, with wide characters too, and have the time of day alone."""
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        self.patch(os, "environ", {**os.environ, "COLUMNS": "60"})
        with open(theirs, "w", encoding="utf-8") as terminal:
            self.log(TextLog(terminal), text="word " * 40 + "検査" * 40 + "x" * 130)
            text = os.read(ours, 65536).decode()
        lines = text.split("\r\n")[:-1]
        self.assertRegex(lines[0], r"^\d\d:\d\d:\d\d\.\d{3} word")
        self.assertGreater(len(lines), 8)
        for line in lines:
            self.assertLessEqual(sum(2 if ord(one) > 0x2000 else 1 for one in line), 60)
        self.assertTrue(all(line.startswith("  ") for line in lines[1:]))

    def test_widths(self) -> None:
        """The width is that of COLUMNS, else that of the terminal, else 80; a file has none."""
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        with open(theirs, "w", encoding="utf-8") as terminal:
            for columns, width in (("100", 100), ("5", 16), ("", 80), ("x", 80), ("0", 80), ("9" * 30, 80)):
                self.patch(os, "environ", {**os.environ, "COLUMNS": columns})
                self.assertEqual(logs.terminal_width(terminal), width)
            self.patch(os, "environ", {key: value for key, value in os.environ.items() if key != "COLUMNS"})
            termios.tcsetwinsize(theirs, (24, 33))
            self.assertEqual(logs.terminal_width(terminal), 33)
        self.assertIsNone(logs.terminal_width(terminal))
        self.assertIsNone(logs.terminal_width(io.StringIO()))

    def test_encoding(self) -> None:
        """A character that the encoding of the file does not have is escaped."""
        raw = io.BytesIO()
        with io.TextIOWrapper(raw, encoding="ascii") as file:
            self.log(TextLog(file), text="Müller")
            self.assertIn(b"M\\xfcller", raw.getvalue())

    def test_a_full_disk(self) -> None:
        """Nothing is raised, and when there is room again the log says how many events it lacks."""
        for kind, lacks in ((TextLog, "events that are missing before this line: 998"), (JSONLog, '"count": 998')):
            disk = Disk()
            observer = kind(io.TextIOWrapper(io.BufferedWriter(disk)))
            self.log(observer, text="first")
            for count in (1, 999):
                disk.is_full = True
                for number in range(count):
                    self.log(observer, text=f"number {number} of {count}")
                disk.is_full = False
                self.log(observer, text=f"after {count}")
            lines = disk.content.decode().splitlines()
            wanted = ["first", "number 0 of 1", "after 1", "number 0 of 999", lacks, "after 999"]
            self.assertEqual(len(lines), len(wanted))
            for line, words in zip(lines, wanted, strict=True):
                self.assertIn(words, line)
            self.assertIn("No space left on device", lines[4])
            self.assertNotIn("missing", lines[5])

    def test_wrapping(self) -> None:
        self.assertEqual(list(wrapped("a b", 40)), ["a b"])
        self.assertEqual(list(wrapped("", 40)), [""])
        self.assertEqual(list(wrapped("aaa bbb ccc", 8)), ["aaa bbb", "  ccc"])
        self.assertEqual(list(wrapped("  aaa bbb", 8)), ["  aaa", "    bbb"])
        self.assertEqual("".join(line.strip() for line in wrapped("x" * 100, 40)), "x" * 100)

    def test_one_line(self) -> None:
        self.assertEqual(one_line("abc", 3), "abc")
        self.assertEqual(one_line("abcd", 3), "abc... (4 characters)")
        self.assertEqual(one_line("\n\n", 3), "\\n\\... (2 characters)")


class Limited(LogTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.events: list[Any] = []
        self.now = 6_000.0

    def send(self, limited: LimitedByPeer, address: str | None = "10.1.2.3", **fields: Any) -> None:
        event = {"log_time": self.now, "log_format": "x", "log_level": LogLevel.info, **fields}
        if address is not None:
            event["address"] = address
        limited(event)

    def lines(self) -> list[str]:
        return [formatEvent(event) for event in self.events]

    def test_a_minute(self) -> None:
        limited = LimitedByPeer(self.events.append, 3)  # type: ignore[arg-type]
        for _ in range(10):
            self.send(limited)
            self.send(limited, None)
        self.send(limited, "10.1.2.4")
        self.send(limited, log_always=True)
        self.assertEqual(len([line for line in self.lines() if line == "x"]), 3 + 10 + 2)
        (told,) = [line for line in self.lines() if line != "x"]
        self.assertEqual(told, "10.1.2.3: more than 3 lines in a minute; further ones of this minute are left out")
        self.events.clear()
        self.now += 60
        self.send(limited)
        self.assertEqual(self.lines(), ["10.1.2.3: 7 lines of a minute were left out", "x"])

    def test_networks(self) -> None:
        """The addresses of one host in IPv6 share a count."""
        limited = LimitedByPeer(self.events.append, 3)  # type: ignore[arg-type]
        for number in range(10):
            self.send(limited, f"2001:db8:1:2::{number:x}")
        self.send(limited, "2001:db8:1:3::1")
        self.assertEqual(len([line for line in self.lines() if line == "x"]), 3 + 1)

    def test_no_bound(self) -> None:
        limited = LimitedByPeer(self.events.append, None)  # type: ignore[arg-type]
        for _ in range(1000):
            self.send(limited)
            self.now += 1
        self.assertEqual(len(self.events), 1000)

    def test_many_addresses(self) -> None:
        """The number of counted addresses is bounded; those beyond the bound share one count."""
        self.patch(LimitedByPeer, "MAX_ADDRESSES", 5)
        limited = LimitedByPeer(self.events.append, 2)  # type: ignore[arg-type]
        for number in range(100):
            self.send(limited, f"10.0.0.{number}")
        self.assertEqual(len([line for line in self.lines() if line == "x"]), 5 + 2)
