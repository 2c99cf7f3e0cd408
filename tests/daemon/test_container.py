"""The Containerfile: it keeps the rules of tests/containerfile.py, and an engine that answers builds and runs it."""

from __future__ import annotations

import io
import shutil
import subprocess
from configparser import ConfigParser
from contextlib import redirect_stdout
from pathlib import Path
from uuid import uuid4

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from dicomtwist.daemon.tap import Options
from tests import peers
from tests.containerfile import command, instructions, last, mistakes
from tests.documentation import PROJECT

TEXT = (PROJECT / "Containerfile").read_text()

#: What is done to the Containerfile, and a part of what is said about it.
BROKEN = {
    ("FROM docker.io/library/python:3.13-slim-trixie", "FROM python"): "no version",
    ("python:3.13-slim-trixie", "python:latest"): "no version",
    ("COPY twisted twisted", "ADD https://example.org/x.tar.gz ."): "use COPY",
    ("COPY twisted twisted", "COPY . ."): "all that lies",
    ("COPY twisted twisted", "COPY twistd twisted"): "there is no twistd",
    ("COPY twisted twisted", "COPY tests tests"): "leaves tests out",
    ("USER 10001", "USER root"): "as root",
    ("USER 10001\n", ""): "as root",
    ("USER 10001", "USER dicom"): "is no number",
    ("EXPOSE 11112", "EXPOSE 104"): "the ports",
    ('CMD ["--ae-title", "ARCHIVE", "--grace", "8"]', "CMD --grace 8"): "a shell command",
    ("STOPSIGNAL", "STOP"): "not an instruction",
}


class Rules(SynchronousTestCase):
    def test_the_file_keeps_them(self) -> None:
        self.assertEqual(mistakes(TEXT, PROJECT), [])

    def test_each_is_noticed(self) -> None:
        """The rules find a mistake that is made on purpose."""
        for (old, new), words in BROKEN.items():
            self.assertIn(old, TEXT)
            self.assertIn(words, "; ".join(mistakes(TEXT.replace(old, new), PROJECT)), new)

    def test_options(self) -> None:
        """The server accepts the options of the command."""
        arguments = command(instructions(TEXT))
        self.assertEqual(arguments[:2], ["twist", "dicom"])
        place = arguments.index("--storage") + 1
        self.assertEqual(arguments[place], last(instructions(TEXT), "VOLUME"))
        arguments[place] = str(Path(self.mktemp()).absolute())
        arguments[arguments.index("tcp:11112")] = "tcp:0"
        with redirect_stdout(io.StringIO()):
            ended = self.assertRaises(SystemExit, Options().parseOptions, [*arguments[2:], "--check"])
        self.assertEqual(ended.code, 0)

    def test_extras(self) -> None:
        """The extras that it installs exist."""
        setup = ConfigParser()
        setup.read(PROJECT / "setup.cfg")
        names = last(instructions(TEXT), "RUN").partition("[")[2].partition("]")[0].split(",")
        self.assertIn("archive", names)
        self.assertEqual(set(names) - set(setup["options.extras_require"]), set())


class Linter(TestCase):
    async def test_hadolint(self) -> None:
        """hadolint finds nothing; DL3013 asks for the version of a package, and the package is the folder itself."""
        tool = shutil.which("hadolint")
        if tool is None:
            raise SkipTest("hadolint is not installed")
        result = await peers.run(tool, "--ignore", "DL3013", PROJECT / "Containerfile")
        self.assertEqual((result.code, result.text), (0, ""))


def engine() -> str:
    """Return the container engine of this machine that answers; skips the test if there is none."""
    for name in ("podman", "docker"):
        path = shutil.which(name)
        if path is not None and subprocess.run([path, "info"], capture_output=True, timeout=60).returncode == 0:
            return path
    raise SkipTest("no container engine answers")


class Build(TestCase):
    timeout = 900

    async def call(self, *arguments: object, timeout: float = 60) -> str:
        """Run the engine, which must succeed; return what it prints."""
        result = await peers.run(self.engine, *arguments, timeout=timeout)
        self.assertEqual(result.code, 0, result.text)
        return result.text.strip()

    async def test_build_and_run(self) -> None:
        """The image is built; its container answers as another user than root, and stops in order at SIGTERM."""
        self.engine = await deferToThread(engine)
        base = last(instructions(TEXT), "FROM")
        if (await peers.run(self.engine, "pull", "--quiet", base, timeout=300)).code != 0:
            raise SkipTest(f"the registry of {base} is out of reach")
        name = f"dicomtwist-test-{uuid4().hex}"
        file = PROJECT / "Containerfile"
        await self.call("build", "--quiet", "--tag", name, "--file", file, PROJECT, timeout=420)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.call("rmi", name)))
        await self.call("run", "--detach", "--name", name, name)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.call("rm", "--force", "--volumes", name)))
        until = "until dicomtwist echo --quiet 127.0.0.1:11112 2>/dev/null; do :; done"
        await self.call("exec", name, "timeout", 60, "sh", "-c", until, timeout=120)
        self.assertEqual(await self.call("exec", name, "id", "-u"), "10001")
        await self.call("stop", name)
        self.assertNotIn("Unable to write", await self.call("logs", name))
        self.assertEqual(await self.call("inspect", "--format", "{{.State.ExitCode}}", name), "0")
