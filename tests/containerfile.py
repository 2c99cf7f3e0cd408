"""
A reader of Containerfiles, and the rules that the project's own has to keep: :func:`mistakes`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: The instructions of the format, without ``MAINTAINER``, which is deprecated.
INSTRUCTIONS: Final = re.compile(
    "ADD|ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|FROM|HEALTHCHECK|LABEL|ONBUILD|RUN|SHELL|STOPSIGNAL|USER|VOLUME|WORKDIR"
)

#: A base image with its registry and a version: a tag with at least two numbers, or a digest.
_PINNED = re.compile(r"[\w.-]+\.[\w.-]+/[\w./-]+(:\d+\.\d[\w.-]*|@sha256:[0-9a-f]{64})( AS \w+)?", re.IGNORECASE)


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Containerfile in order, each with its arguments; continued lines are joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name.upper(), words.strip()) for name, _, words in (line.partition(" ") for line in joined.splitlines())]


def last(found: list[tuple[str, str]], name: str) -> str:
    """Return the arguments of the last instruction *name*, which is the one that applies; empty without any."""
    return next((words for each, words in reversed(found) if each == name), "")


def command(found: list[tuple[str, str]]) -> list[str]:
    """Return the command of the container: its entry point, and the arguments that ``podman run`` replaces."""
    arguments = [json.loads(last(found, name) or "[]") for name in ("ENTRYPOINT", "CMD")]
    return [str(word) for words in arguments for word in words]


def ports(arguments: list[str]) -> set[str]:
    """Return the TCP ports in the endpoint descriptions of a command line."""
    found = (re.match(r"[a-z:]*tcp:(?:port=)?(\d+)|tls:(\d+)|dicomtls:(\d+)", each) for each in arguments)
    return {number for match in found if match for number in match.groups() if number}


def mistakes(text: str, context: Path) -> list[str]:
    """
    Return what is wrong with a Containerfile, in words; nothing if it keeps all the rules.

    :param context: the folder that the build gets.
    """
    found = instructions(text)
    unknown = [f"{name} is not an instruction" for name, _ in found if not INSTRUCTIONS.fullmatch(name)]
    return unknown or list(_mistakes(found, context))


def _mistakes(found: list[tuple[str, str]], context: Path) -> Iterator[str]:
    if not found or found[0][0] != "FROM":
        yield "the first instruction is not FROM"
    for name, words in found:
        if name == "FROM" and not _PINNED.fullmatch(words):
            yield f"FROM {words}: the base image has no registry or no version"
        if name == "ADD":
            yield f"ADD {words}: use COPY, which never fetches or unpacks"
        if name == "COPY":
            yield from _sources(words, context)
    if last(found, "USER").partition(":")[0] in ("", "0", "root"):
        yield "the container runs as root"
    elif not last(found, "USER").partition(":")[0].isdigit():
        yield "USER is no number, so an orchestrator cannot tell that it is not root"
    for name in ("ENTRYPOINT", "CMD"):
        if not last(found, name).startswith("["):
            yield f"{name} is a shell command: the shell would get the signals"
            return
    exposed = set(last(found, "EXPOSE").split())
    if exposed != ports(command(found)):
        yield f"EXPOSE has the ports {sorted(exposed)}, the command {sorted(ports(command(found)))}"


def _sources(words: str, context: Path) -> Iterator[str]:
    *sources, _ = [word for word in words.split() if not word.startswith("--")]
    ignore = context / ".dockerignore"
    kept = re.findall(r"^!(.+)$", ignore.read_text(), re.MULTILINE) if ignore.exists() else sources
    for source in sources:
        if source.rstrip("/") in ("", "."):
            yield f"COPY {words}: it copies all that lies in the folder"
        elif not (context / source).exists():
            yield f"COPY {words}: there is no {source}"
        elif source not in kept:
            yield f"COPY {words}: .dockerignore leaves {source} out"
