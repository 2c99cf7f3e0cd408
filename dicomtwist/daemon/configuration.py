"""
The configuration file of ``twist dicom``: options, peers and access rules in one TOML file.

A key is an option without the leading dashes. Command-line options override the file.
"""

from __future__ import annotations

import getopt
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from twisted.logger import Logger
from twisted.python import usage

from dicomtwist.access.enforcement import Policy
from dicomtwist.access.rules import DEFAULT_RULES, IDENTITY_TYPES, Identity, Rules, nearest, parse_rules
from dicomtwist.access.users import Users
from dicomtwist.archive.removal.policy import RetentionPolicy, parse_retention
from dicomtwist.dicomweb.urls import is_url
from dicomtwist.transport.dicomweb_peer import check_dicomweb_peer
from dicomtwist.transport.peer_address import parse_peer
from dicomtwist.ul.ae_title import check_ae_title

__all__ = ["Configuration", "ConfigurationError", "add_configuration", "given_options", "read_configuration"]

_log = Logger()

#: The longest configuration file, in bytes.
MAX_FILE_LENGTH: Final = 4 * 1024 * 1024

#: The options that may be given more than once.
LISTS: Final = ("port", "http", "http-origin", "viewer-http", "allow-calling", "peer", "trusted-proxy")
#: The keys whose values are tables; all other keys are options.
_TABLES: Final = ("peers", "access", "retention", "forward")
#: Matches the heading of a rule that is not one of several.
_SINGLE_RULE: Final = re.compile(r"^[ \t]*\[[ \t]*access[ \t]*\.[ \t]*rule[ \t]*\](?!\])", re.MULTILINE)
#: The options that are allowed on the command line only.
_COMMAND_LINE_ONLY: Final = ("config", "check", "explain", "help", "version")


class ConfigurationError(ValueError):
    """A mistake in a configuration; the message names the file and the key."""


@dataclass(frozen=True)
class Configuration:
    """
    The content of a configuration file.

    :ivar path: the file, ``None`` if there is none.
    :ivar options: the options as they would be on the command line: the values of each, an empty tuple for a flag.
    :ivar peers: the peers, each as ``TITLE=ADDRESS``.
    :ivar rules: the access rules.
    :ivar users: the file of users, ``None`` if there is none.
    :ivar unchecked: the types of user identity that are accepted without a check.
    :ivar retention: the retention policy, ``None`` without one.
    :ivar forward: the tables ``[[forward]]``, the rules of forwarding, unchecked.
    """

    path: Path | None = None
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    peers: tuple[str, ...] = ()
    rules: Rules = DEFAULT_RULES
    users: Path | None = None
    unchecked: frozenset[Identity] = frozenset()
    retention: RetentionPolicy | None = None
    forward: tuple[Mapping[str, Any], ...] = ()

    def arguments(self, given: Collection[str]) -> list[str]:
        """Return the options as command-line arguments, except those that are *given* on the command line already."""
        return [*self.options_except(given), *self.peer_arguments]

    def options_except(self, given: Collection[str]) -> list[str]:
        """Return the options as command-line arguments, except the peers and those that are *given*."""
        arguments = []
        for name, values in self.options.items():
            if name not in given and name != "peer":
                arguments += [f"--{name}={value}" for value in values] if values else [f"--{name}"]
        return arguments

    @property
    def peer_arguments(self) -> list[str]:
        """The peers as command-line arguments."""
        return [f"--peer={peer}" for peer in (*self.options.get("peer", ()), *self.peers)]

    def policy(self) -> Policy:
        """
        Return the access policy. Reading the file of users blocks.

        A rule that names a user who is not in the file is a warning in the log, not an error: when a user is removed, the
        removal has to take effect whether the rules are changed as well or not.

        :raises ConfigurationError: the file is wrong, or a rule names a user, and there is no file of users.
        """
        try:
            policy = Policy(self.rules, None if self.users is None else Users(self.users), self.unchecked)
            for rule, name in policy.unknown_users():
                if self.users is None:
                    raise ValueError(
                        f"a rule names the user {name!r}, who is unknown because access.users names no file"
                    )
                _log.warn(
                    "{rule} names the user {user!r}, who is not in {users}",
                    rule=str(rule),
                    user=name,
                    users=str(self.users),
                )
        except ValueError as error:
            raise ConfigurationError(f"{self.path}: access: {error}") from None
        return policy

    def located(self, message: str) -> str:
        """Return *message*, which is about an option, with the name of this file if the option comes from it."""
        found = re.match(r"--([a-z-]+)", message)
        if self.path is None or found is None or found[1] not in self.options:
            return message
        return f"{self.path}: {message.removeprefix('--')}"


def add_configuration(
    options: usage.Options, arguments: Sequence[str], in_force: Sequence[str] | None = None
) -> tuple[Configuration, list[str]]:
    """
    Read the configuration file that *arguments* name with ``--config``.

    :param in_force: arguments in place of the options of the file, except its peers; ``None`` for those of the file.
    :returns: its content, and the arguments with the options of the file in front.

    :raises ConfigurationError: the file is wrong.
    """
    given = given_options(options, arguments)
    if "config" not in given:
        return Configuration(), list(arguments)
    found = read_configuration(Path(given["config"]), options)
    of_file = found.options_except(given) if in_force is None else in_force
    return found, [*of_file, *found.peer_arguments, *arguments]


def given_options(options: usage.Options, arguments: Sequence[str]) -> dict[str, str]:
    """Return the options in *arguments* by their names; nothing if they are wrong, which the parser of the options reports."""
    parser: Any = options
    try:
        pairs, _ = getopt.getopt(list(arguments), parser.shortOpt, parser.longOpt)
    except getopt.GetoptError:
        return {}
    return {name.removeprefix("--"): value for name, value in pairs}


def read_configuration(path: Path, options: usage.Options) -> Configuration:
    """
    Read a configuration file. Blocks.

    :param options: the options that exist.
    :raises ConfigurationError: the file cannot be read, is not TOML, or has an unknown key or a value of a wrong type.
    """
    content = _load(path)
    known: Any = options
    parameters = [parameter[0] for parameter in known.optParameters if parameter[0] not in _COMMAND_LINE_ONLY]
    try:
        flags = [flag[0] for flag in known.optFlags if flag[0] not in _COMMAND_LINE_ONLY]
        return _understand(path, content, parameters, flags)
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def _load(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_LENGTH + 1)
        if len(data) > MAX_FILE_LENGTH:
            raise ConfigurationError(f"{path} has more than {MAX_FILE_LENGTH} bytes")
        text = data.decode("utf-8-sig")  # editors on Windows begin a file with a byte order mark
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        # The words of Python's parser about tables that are there twice do not say what to write.
        advice = ": write each rule as [[access.rule]]" if _SINGLE_RULE.search(text) else ""
        raise ConfigurationError(f"{path}: {error}{advice}") from None


def _understand(path: Path, content: dict[str, Any], parameters: list[str], flags: list[str]) -> Configuration:
    options: dict[str, tuple[str, ...]] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and key not in _TABLES:
            raise ValueError(f"{key} is not a table: {nearest(key, _TABLES)}")
        if key in flags:
            if not isinstance(value, bool):
                raise ValueError(f"{key} is true or false, not {value!r}")
            if value:
                options[key] = ()
        elif key in LISTS:
            options[key] = tuple(_text(key, one) for one in (value if isinstance(value, list) else [value]))
        elif key in parameters:
            options[key] = (_text(key, value),)
        elif key not in _TABLES:
            raise ValueError(f"{key} is not an option: {nearest(key, [*parameters, *LISTS, *flags, *_TABLES])}")
    access = _table(content, "access")
    for key in access:
        if key not in ("rule", "users", "accept-identity"):
            raise ValueError(f"access.{key} is not a key: {nearest(key, ('rule', 'users', 'accept-identity'))}")
    return Configuration(
        path,
        {name: values for name, values in options.items() if values or name in flags},
        tuple(_peer(title, address) for title, address in _table(content, "peers").items()),
        parse_rules(access["rule"], "access.rule") if "rule" in access else DEFAULT_RULES,
        Path(_text("access.users", access["users"])) if "users" in access else None,
        frozenset(_identities(access.get("accept-identity", []))),
        parse_retention(_table(content, "retention")) if "retention" in content else None,
        _forward(content.get("forward", [])),
    )


def _forward(value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list) or not all(isinstance(table, Mapping) for table in value):
        raise ValueError("forward: write each rule as a table, [[forward]]")
    return tuple(value)


def _table(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = content.get(key, {})
    if not isinstance(value, Mapping):
        raise ValueError(f"{key} is a table: write [{key}]")
    return value


def _peer(title: str, address: Any) -> str:
    """Return the description of a peer, checked as far as it can be without the files that it names."""
    key = f"peers.{title}"
    text = _text(key, address)
    try:
        check_ae_title(title)
        if is_url(text):
            check_dicomweb_peer(text)
        else:
            parse_peer(text)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    return f"{title}={text}"


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{key} is a text or a number, not {value!r}")
    if value == "":
        raise ValueError(f"{key} is empty: leave it out")
    return str(value)


def _identities(value: Any) -> Iterable[Identity]:
    for one in value if isinstance(value, list) else [value]:
        if one not in IDENTITY_TYPES.values():  # a token is always checked
            hint = nearest(str(one), IDENTITY_TYPES.values())
            raise ValueError(f"access.accept-identity: {one!r} is not known: {hint}")
        yield Identity(one)
