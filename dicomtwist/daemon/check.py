"""
``twist dicom --check`` and ``--explain``: print what the options mean, or what the access rules say, and serve nothing.

Nothing is opened for writing, and nothing listens. Files that the options name are read.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Final

from twisted.python import usage

from dicomtwist.access.enforcement import Policy
from dicomtwist.access.explanation import explain, parse_case
from dicomtwist.access.rules import EVERYTHING, Identity, Operation, Rule
from dicomtwist.archive.index.index import FOLDER as INDEX_FOLDER
from dicomtwist.archive.index.schema import SCHEMA_VERSION
from dicomtwist.archive.index.sqlite import why_unusable
from dicomtwist.daemon.configuration import Configuration
from dicomtwist.daemon.forwarding.options import describe_forwarding, warn_of_forwarding
from dicomtwist.daemon.http import describe_http
from dicomtwist.tls.files import read_validity

__all__ = ["report"]

#: The exit status of ``--explain`` if something is refused. A mistake has that of any other mistake in the options.
REFUSED: Final = 1
#: The most peers, users and values of a condition that a line names; further ones are counted.
MAX_NAMED: Final = 20
#: Matches endpoint strings whose peers may have certificates.
_HAS_TLS: Final = re.compile(r"(?:^|:)(?:dicomtls|ssl|tls):")
#: Matches endpoint strings with a certificate that dicomtwist reads.
_OWN_TLS: Final = re.compile(r"(?:^|:)dicomtls:")
#: Matches the names of its files, with their escapes.
_FILE_OPTION: Final = re.compile(r":(certKey|privateKey)=((?:[^:\\]|\\.)*)")
#: Options that are numbers of bytes on a disk.
_BYTES: Final = ("min-free", "records-size")
#: Options that have lines of their own, or do not concern the server.
_SHOWN: Final = ("config", "check", "explain", "ae-title", "storage", "import", "worklist", "viewer")


def report(options: Any) -> int:
    """
    Print the report that *options*, those of ``twist dicom``, ask for.

    :returns: the exit status: 0, or :data:`REFUSED` if the case of ``--explain`` is not allowed.
    :raises usage.UsageError: the case or the folder of the archive is wrong.
    """
    status = 0
    if options["check"]:
        _print(_check(options))
    if options["explain"] is not None:
        try:
            case = parse_case(options["explain"], options["ae-title"])
        except ValueError as error:
            raise usage.UsageError(f"--explain: {error}") from None
        found = explain(
            case,
            options.policy,
            called=[options["ae-title"]] if options["require-called-aet"] else [],
            calling=options["calling"],
            replaces=options["duplicates"].value == "replace",
        )
        _print(_fitting(found.lines))
        status = 0 if found.allowed else REFUSED
    return status


def _print(lines: Iterable[str]) -> None:
    """Print *lines*, as far as somebody reads them: ``| head`` stops after some."""
    try:
        for line in _printable(lines):
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more when it ends, and would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _printable(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        clean = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
        # A name of a file that the locale cannot encode must not end the report.
        encoding = sys.stdout.encoding or "utf-8"
        yield clean.encode(encoding, "backslashreplace").decode(encoding)


def _check(options: Any) -> Iterator[str]:
    configuration: Configuration = options.configuration
    path = configuration.path
    storage, room = _storage(Path(options["storage"]), options["min-free"])
    yield "The options are right." if path is None else f"{path} is right."
    yield from _item("AE title", options["ae-title"] + (", which a peer must call" * options["require-called-aet"]))
    if options["calling"]:
        yield from _item("calling", ", ".join(options["calling"]) + " only (allow-calling)")
    for name, port, words in (*(("port", str(port), "") for port in options["ports"]), *describe_http(options)):
        yield from _item(name, f"{port}, {words}" if words else port)
        for file, end, _ in _certificates(port):
            yield from _item("", f"certificate {file}, valid until {end:%Y-%m-%d}")
    yield from _item("storage", storage)
    for name in ("import", "worklist"):
        if options[name] is not None:
            yield from _item(name, options[name])
    yield from _item("peers", _counted(options.peers.names()))
    yield from _users(options.policy, configuration)
    if configuration.retention is not None:
        yield from _item("retention", str(configuration.retention))
    yield from _options(options, configuration)
    yield "Rules:"
    for rule in options.policy.rules.rules:
        yield from _wrapped(f"{_upper(str(rule))}: {_conditions(rule)} may {_operations(rule)}")
    if len(options.forwarding.rules):
        yield "Forwarding:"
        for line in describe_forwarding(options.forwarding, lambda rule: _conditions(rule.peer)):
            yield from _wrapped(line)
    warnings = [*filter(None, [room]), *_warnings(options), *warn_of_forwarding(options.forwarding, options)]
    if warnings:
        yield "Warnings:"
        for warning in warnings:
            yield from _wrapped(warning)


def _item(name: str, value: str) -> Iterator[str]:
    yield from _wrapped(f"{name:<10} {value}", 11)


def _wrapped(text: str, indent: int = 2) -> Iterator[str]:
    """Yield *text* as indented lines that fit the terminal."""
    yield from textwrap.wrap(
        text,
        _width(),
        initial_indent="  ",
        subsequent_indent=" " * (2 + indent),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _width() -> int:
    return max(40, shutil.get_terminal_size((100, 24)).columns)


def _fitting(lines: Iterable[str]) -> Iterator[str]:
    """Yield *lines* so that they fit the terminal. Elsewhere they stay whole, for programs that look for words in them."""
    if not (sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()):
        yield from lines
        return
    for line in lines:
        text = line.lstrip(" ")
        indent = len(line) - len(text)
        yield from textwrap.wrap(
            text,
            _width(),
            initial_indent=" " * indent,
            subsequent_indent=" " * (indent + 2),
            break_long_words=False,
            break_on_hyphens=False,
        )


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:] if not text.startswith("access.") else text


def _storage(folder: Path, min_free: int) -> tuple[str, str]:
    """
    Describe the folder of the archive.

    :returns: the description, and a warning if it has not enough room.
    :raises usage.UsageError: it cannot be used.
    """
    nearest = folder.absolute()
    try:
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
    except PermissionError:
        raise usage.UsageError(
            f"--storage: {nearest.parent} may not be entered by the user that runs this check"
        ) from None
    if not nearest.is_dir():
        raise usage.UsageError(f"--storage: {nearest} is not a folder")
    if not os.access(nearest, os.R_OK | os.W_OK | os.X_OK):
        raise usage.UsageError(f"--storage: {nearest} is not writable for the user that runs this check")
    why = why_unusable(folder / INDEX_FOLDER, SCHEMA_VERSION)
    if why is not None:
        raise usage.UsageError(f"--storage: the index cannot be used: {why}")
    free = shutil.disk_usage(nearest).free
    words = "" if nearest == folder.absolute() else ", which the start creates"
    enough = "" if free >= min_free else f", less than min-free ({_size(min_free)}): instances would be refused"
    return f"{folder}{words}, {_size(free)} free", f"{folder} has {_size(free)} free{enough}" if enough else ""


def _certificates(port: str) -> Iterator[tuple[str, datetime, str | None]]:
    """Yield the file of the server's certificate at *port*, an endpoint string that works, and what is known of its dates."""
    if _OWN_TLS.search(port):
        files = dict(_FILE_OPTION.findall(port))
        path = re.sub(r"\\(.)", r"\1", files.get("certKey") or files["privateKey"])
        yield path, *read_validity(path)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _counted(names: Iterable[str]) -> str:
    """Return the number of *names*, and the first of them."""
    values = list(names)
    more = len(values) - MAX_NAMED
    first = ", ".join(values[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{len(values)}: {first}" if values else "none"


def _users(policy: Policy, configuration: Configuration) -> Iterator[str]:
    if policy.users is not None:
        yield from _item("users", f"{len(policy.users)} in {configuration.users}")
    if policy.unchecked:
        yield from _item("users", f"accepted without a check: {', '.join(sorted(policy.unchecked))}")
    if not policy.depends_on_user:
        yield from _item("users", "none: user identities are ignored")


def _options(options: Any, configuration: Configuration) -> Iterator[str]:
    """Describe the options that are not the defaults."""
    for name, _, default, *_ in options.optParameters:
        value = options[name]
        if name not in _SHOWN and value != default:
            plain = value.value if isinstance(value, Enum) else "none" if value is None else value
            plain = _size(plain) if name in _BYTES and isinstance(plain, int) else plain
            where = f" ({configuration.path})" if name in configuration.options else ""
            yield from _item(name, f"{plain}{where}")


def _conditions(rule: Rule) -> str:
    parts = [
        (rule.called, "calling {} here"),
        (rule.calling, "{}"),
        (rule.networks.texts(), "at {}"),
        (sorted(rule.certificates, key=str), "with the certificate {}"),
        (sorted(rule.users), "with the user {}"),
        (sorted(rule.identities), "with an identity of type {}"),
    ]
    named = [words.format(_any(list(values))) for values, words in parts if values]
    if not rule.calling:
        named.insert(0, "anybody")
    elif rule.called:
        named[:2] = [named[1], named[0]]
    return " ".join(named)


def _any(values: list[Any]) -> str:
    more = len(values) - MAX_NAMED
    return " or ".join(map(str, values[:MAX_NAMED])) + (f" or {more} more" if more > 0 else "")


def _operations(rule: Rule) -> str:
    if rule.allow == EVERYTHING:
        return "do everything"
    return ", ".join(operation for operation in Operation if operation in rule.allow) or "do nothing"


def _warnings(options: Any) -> Iterator[str]:
    """Describe certificates that expire, and rules that cannot match or that allow less than they seem to."""
    policy: Policy = options.policy
    ports = [str(port) for port in (*options["ports"], *options.web_ports)]
    for file, doubt in dict.fromkeys((file, doubt) for port in ports for file, _, doubt in _certificates(port)):
        if doubt is not None:
            yield f"the certificate {file} {doubt}"
    has_tls = any(map(_HAS_TLS.search, ports))
    for rule, name in policy.unknown_users():
        yield f"{rule} names the user {name!r}, who is not in {options.configuration.users}"
    for rule in policy.rules.rules:
        if rule.certificates and not has_tls:
            yield f"{rule} never matches: it wants a certificate, and no port has TLS"
        if rule.identities and not rule.identities <= _possible(policy):
            names = ", ".join(sorted(rule.identities - _possible(policy)))
            yield f"{rule}: identities of type {names} are never confirmed: access.accept-identity or access.users is missing"
        if not rule.allow:
            yield f"{rule} allows nothing"
        if "replace" in rule.allow and "store" not in rule.allow:
            yield f"{rule} allows replace without store: a peer needs both to replace an instance"
        if options["require-called-aet"] and rule.called and not rule.has_called(options["ae-title"]):
            yield f"{rule} never matches: require-called-aet is on, and its called AE titles are others"
        titles = [title for title in options["calling"] if rule.has_calling(title)]
        if options["calling"] and rule.calling and not titles:
            yield f"{rule} never matches: allow-calling has none of its calling AE titles"
    if not any(rule.allow for rule in policy.rules.rules):
        yield "no rule allows anything: every association is rejected"


def _possible(policy: Policy) -> frozenset[Any]:
    return policy.unchecked | ({Identity.PASSCODE, Identity.TOKEN} if policy.users is not None else frozenset())
