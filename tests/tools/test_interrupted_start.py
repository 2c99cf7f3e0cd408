"""Signals that end the command while it starts, or while it has left something behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.archive import Archive
from dicomtwist.tools.cli import LazyGroup
from tests.archive.samples import dataset, keep

#: The command, which sends itself SIGINT when a module is imported or a function is called.
PROGRAM = """
import importlib.abc, os, signal, sys

place, *sys.argv[1:] = sys.argv[1:]

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == place:
            sys.meta_path.remove(self)
            interrupt()
        return None

sys.meta_path.insert(0, Finder())

if place == "parsing":
    import click
    original = click.Option.process_value
    click.Option.process_value = lambda *args: (interrupt(), original(*args))[1]
elif place == "react":
    from twisted.internet import task
    original = task.react
    task.react = lambda *args: (interrupt(), original(*args))[1]
elif place == "reactor":
    from twisted.internet import reactor
    original = reactor.startRunning
    reactor.startRunning = lambda *args, **kwargs: (interrupt(), original(*args, **kwargs))[1]

from dicomtwist.tools import main
main()
"""


#: An export from a folder, which sends itself a signal while it copies a file.
EXPORT = """
import os, shutil, sys

number, *sys.argv[1:] = sys.argv[1:]
original = shutil.copyfileobj

def interrupted(source, target, length):
    target.write(source.read(10))
    os.kill(os.getpid(), int(number))
    original(source, target, length)

shutil.copyfileobj = interrupted

from dicomtwist.tools import main
main()
"""


class Interrupted(SynchronousTestCase):
    def test_places(self) -> None:
        """While modules are imported and options are parsed it is killed by the signal, as a shell expects."""
        command = (sys.executable, "-c", PROGRAM)
        arguments = ("echo", "127.0.0.1:1")
        running = {
            place: subprocess.Popen((*command, place, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for place in ("click", "dicomtwist.tools.cli", "dicomtwist.tools.commands.echo", "parsing", "react")
        }
        for place, process in running.items():
            printed, error = process.communicate(timeout=120)
            self.assertEqual((process.returncode, printed, error), (-signal.SIGINT, b"", b""), place)

    def test_the_reactor_starts(self) -> None:
        """From here on the subcommand handles the signal, in its own words."""
        command = (sys.executable, "-c", PROGRAM, "reactor", "echo", "127.0.0.1:1")
        ended = subprocess.run(command, capture_output=True, timeout=120, check=False)
        self.assertNotIn(b"Traceback", ended.stderr)
        self.assertNotIn(b"Aborted", ended.stderr)
        self.assertIn(b"interrupted", ended.stderr)
        self.assertEqual(ended.returncode, 1)

    def test_a_prompt(self) -> None:
        """A prompt turns the signal into an exception, which restores the terminal: status 130, and no words of click."""

        def interrupted() -> None:
            raise KeyboardInterrupt

        group = LazyGroup("dicomtwist", callback=interrupted, invoke_without_command=True)
        result = CliRunner().invoke(group, [])
        self.assertEqual((result.exit_code, result.output.strip()), (130, ""))

    def test_an_export(self) -> None:
        """A file that is not complete is removed, and the exit status names the signal."""
        folder = Path(self.mktemp()).absolute()
        archive = Archive(folder)
        archive.open()
        keep(archive, dataset())
        archive.close()
        for number, code in (
            (signal.SIGTERM, -signal.SIGTERM),
            (signal.SIGHUP, -signal.SIGHUP),
            (signal.SIGINT, 128 + signal.SIGINT),
        ):
            out = folder.with_name(f"out-{number}")
            ended = subprocess.run(
                (
                    sys.executable,
                    "-c",
                    EXPORT,
                    str(int(number)),
                    "archive",
                    "export",
                    "--storage",
                    folder,
                    "--to",
                    out,
                    "1.2.1",
                ),
                capture_output=True,
                timeout=120,
                check=False,
            )
            self.assertNotIn(b"Traceback", ended.stderr)
            self.assertEqual(ended.returncode, code, ended.stderr)
            self.assertTrue(out.is_dir())
            self.assertEqual([path for path in out.rglob("*") if path.is_file()], [])
