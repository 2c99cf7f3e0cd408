"""
The picture docs/terminal.svg: a terminal with commands of the README and what they really print.

``make picture`` (``python -m tests.terminal_picture``) writes it. tests/test_terminal_picture.py runs the commands again and
compares the texts, except for times.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
import time
from html import escape
from pathlib import Path
from typing import Final

from pydicom.data import get_testdata_file

from tests import peers, user_environment

PICTURE = Path(__file__).parent.parent / "docs" / "terminal.svg"

#: The server of the picture, which listens at its default port there and at a free one when the picture is made.
SERVER: Final = "twist dicom --storage received"
COMMANDS: Final = (
    "dicomtwist echo localhost:11112",
    "dicomtwist store localhost:11112 image.dcm",
    "dicomtwist find -k StudyDate -k 'PatientName=comp*' localhost:11112",
)

#: What differs from run to run.
_MEASURED: Final = re.compile(r"\d[\d.]* ?(?:[kM]?B/s|ms\b|s\b|instances/s)")

_COLUMNS: Final = 84
_CHARACTER: Final = 8.0
_LINE: Final = 19
_MARGIN: Final = 18
_BAR: Final = 34
_STYLE: Final = """
    .frame { fill: #1e1e2e }
    .bar { fill: #313244 }
    text { font: 13.3px "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #cdd6f4; white-space: pre }
    .command { fill: #a6e3a1; font-weight: bold }
    .title { fill: #a6adc8 }
"""


def session() -> list[str]:
    """Start the server, run the commands and return the lines of the terminal; blocks for some seconds."""
    scripts = user_environment.make_scripts()
    port = str(peers.free_port())
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(str(get_testdata_file("CT_small.dcm")), Path(folder, "image.dcm"))
        env = {"PATH": f"{scripts}:/usr/bin:/bin", "COLUMNS": str(_COLUMNS), "LANG": "C.UTF-8"}
        server = subprocess.Popen(
            ["twist", *SERVER.split()[1:], "--port", f"tcp:{port}:interface=127.0.0.1"],
            executable=scripts / "twist",
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait_for(int(port))
            lines: list[str] = []
            for command in COMMANDS:
                done = subprocess.run(
                    ["/bin/bash", "-c", command.replace("11112", port)],
                    cwd=folder,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    check=True,
                )
                lines += [f"$ {command}", *done.stdout.replace(port, "11112").rstrip().split("\n")]
            return lines
        finally:
            server.terminate()
            server.wait()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def comparable(lines: list[str]) -> list[str]:
    """Return *lines* without times and rates, and without the column widths that depend on them."""
    return [re.sub("  +", "  ", _MEASURED.sub("N", line)).rstrip() for line in lines]


def picture(lines: list[str]) -> str:
    """Return the SVG of a terminal with *lines*."""
    width = round(_COLUMNS * _CHARACTER + 2 * _MARGIN)
    height = _BAR + len(lines) * _LINE + 2 * _MARGIN - 8
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
        "<title>A terminal with commands of dicomtwist</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="frame" width="{width}" height="{height}" rx="8"/>',
        f'<path class="bar" d="M0 {_BAR}V8a8 8 0 0 1 8-8H{width - 8}a8 8 0 0 1 8 8V{_BAR}z"/>',
    ]
    drawn += [
        f'<circle cx="{20 + 18 * i}" cy="17" r="5.5" fill="{colour}"/>'
        for i, colour in enumerate(("#f38ba8", "#f9e2af", "#a6e3a1"))
    ]
    drawn.append(f'<text class="title" x="86" y="22">in another terminal: {escape(SERVER)}</text>')
    for number, line in enumerate(lines):
        y = _BAR + _MARGIN + 10 + number * _LINE
        kind = ' class="command line"' if line.startswith("$ ") else ' class="line"'
        drawn.append(f'<text{kind} xml:space="preserve" x="{_MARGIN}" y="{y}">{escape(line)}</text>')
    return "\n".join([*drawn, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture(session()))
