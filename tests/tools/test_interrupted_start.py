"""Ctrl-C while the command starts: it ends without a traceback, and a shell sees that it was interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.tools.cli import LazyGroup

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
