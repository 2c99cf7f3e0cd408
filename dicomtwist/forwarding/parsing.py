"""
The tables ``[[forward]]`` of a configuration, checked and made rules. No I/O: tables of values are read by the caller.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Final

from pydicom._uid_dict import UID_dictionary

from dicomtwist.access.rules import Rule as PeerRule
from dicomtwist.access.rules import nearest, parse_rules
from dicomtwist.forwarding.coercion import BY_PATIENT, Coercion, Mapped, Replacement, check_target, check_values
from dicomtwist.forwarding.confidentiality import Option
from dicomtwist.forwarding.deidentification import Deidentification
from dicomtwist.forwarding.errors import ForwardingRuleError
from dicomtwist.forwarding.paths import Path, parse_path
from dicomtwist.forwarding.pseudonyms import Pseudonyms
from dicomtwist.forwarding.rules import (
    MODALITY,
    SOP_CLASS,
    Condition,
    Destination,
    ForwardRule,
    ForwardRules,
    check_condition,
)
from dicomtwist.forwarding.values import parse_duration, parse_hours, parse_rate

__all__ = ["parse_forward"]

#: The most rules of forwarding.
MAX_FORWARD_RULES: Final = 1000
#: The most associations with one destination.
MAX_FORWARD_ASSOCIATIONS: Final = 64

_PEER_KEYS: Final = ("called", "calling", "from", "user", "certificate")
_COERCIONS: Final = ("set", "remove", "replace", "map", "hash")
_KEYS: Final = (
    *("name", "to", *_PEER_KEYS, "modality", "sop-class", "where", "hours", "study-quiet", "priority", "rate"),
    *("associations", "confirm", "keep", *_COERCIONS, "shift-dates", "deidentify"),
)
_UID_KEYWORDS: Final = {entry[4]: uid for uid, entry in UID_dictionary.items() if entry[4]}

#: Returns the table of values that a rule names, such as that in a CSV file.
ReadTable = Callable[[str], Mapping[str, str]]


def parse_forward(
    tables: Any,
    *,
    peers: Collection[str] | None = None,
    pseudonyms: Pseudonyms | None = None,
    read_table: ReadTable | None = None,
) -> ForwardRules:
    """
    Return the rules of a configuration.

    :param tables: the list of tables ``[[forward]]``.
    :param peers: the names in ``[peers]``; ``None`` to allow any destination.
    :param pseudonyms: the key, which ``hash``, ``deidentify`` and ``shift-dates = "patient"`` need.
    :param read_table: reads the table of values that ``map`` names; it raises ``ValueError`` or ``OSError``.
    :raises ForwardingRuleError: a table is wrong; it names the table and the key.
    """
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        raise ForwardingRuleError("forward", "", "write each rule as a table, [[forward]]")
    if len(tables) > MAX_FORWARD_RULES:
        raise ForwardingRuleError("forward", "", f"there are more than {MAX_FORWARD_RULES} rules")
    rules: list[ForwardRule] = []
    for number, table in enumerate(tables, 1):
        rule = _Table(table, f"forward {number}", peers, pseudonyms, read_table).rule()
        if any(one.name == rule.name for one in rules):
            raise ForwardingRuleError(rule.where, "name", f"another rule has the name {rule.name!r}")
        rules.append(rule)
    return ForwardRules(rules)


class _Table:
    """One table while it is parsed."""

    def __init__(
        self,
        table: Mapping[str, Any],
        where: str,
        peers: Collection[str] | None,
        pseudonyms: Pseudonyms | None,
        read_table: ReadTable | None,
    ) -> None:
        self.table, self.where, self.peers = table, where, peers
        self.pseudonyms, self.read_table = pseudonyms, read_table

    def rule(self) -> ForwardRule:
        for key in self.table:
            if key not in _KEYS:
                raise self.error(str(key), f"it is not a key: {nearest(str(key), _KEYS)}")
        return ForwardRule(
            name=self.get("name", _text, self.where),
            to=self.destinations(),
            peer=self.peer(),
            conditions=self.conditions(),
            hours=self.get("hours", lambda value: parse_hours(_texts(value)), None),
            study_quiet=self.get("study-quiet", parse_duration, 0.0),
            priority=self.get("priority", lambda value: _integer(value, 0, 9), 5),
            rate=self.get("rate", parse_rate, None),
            associations=self.get("associations", lambda value: _integer(value, 1, MAX_FORWARD_ASSOCIATIONS), 1),
            confirm=self.get("confirm", _confirmation, ""),
            keep=self.get("keep", _boolean, True),
            coercion=self.coercion(),
            where=self.where,
        )

    def error(self, key: str, words: object) -> ForwardingRuleError:
        return ForwardingRuleError(self.where, key, str(words))

    def get(self, key: str, parse: Callable[[Any], Any], default: Any) -> Any:
        """Return a value as *parse* makes it."""
        if key not in self.table:
            return default
        return self.parsed(key, parse, self.table[key])

    def parsed(self, key: str, parse: Callable[[Any], Any], value: Any) -> Any:
        try:
            return parse(value)
        except (ValueError, OSError) as error:
            raise self.error(key, error) from None

    def destinations(self) -> tuple[Destination, ...]:
        if "to" not in self.table:
            raise self.error("to", 'it is missing: name the peers to send to, such as to = ["RESEARCH"]')
        value = self.table["to"]
        entries = [value] if isinstance(value, str) else value
        if not isinstance(entries, list) or not entries:
            raise self.error("to", "it is a list of peers, and of lists of peers for failover")
        found = [self.parsed("to", lambda one: tuple(_texts(one)), entry) for entry in entries]
        for destination in found:
            for peer in destination:
                if self.peers is not None and peer not in self.peers:
                    raise self.error("to", f"{peer!r} is not in [peers]")
            if len(set(destination)) < len(destination):
                raise self.error("to", f"{destination[0]!r} is its own failover")
        if len(set(found)) < len(found):
            raise self.error("to", "it names a destination twice")
        return tuple(found)

    def peer(self) -> PeerRule:
        table: dict[str, Any] = {key: self.table[key] for key in _PEER_KEYS if key in self.table}
        for key in table:
            # One by one, so that the error names the key.
            self.parsed(key, parse_rules, [{key: table[key], "allow": "all"}])
        return parse_rules([{**table, "allow": "all"}]).rules[0]

    def conditions(self) -> tuple[Condition, ...]:
        found = []
        if "modality" in self.table:
            found.append(Condition("modality", MODALITY, self.get("modality", lambda value: tuple(_texts(value)), ())))
        if "sop-class" in self.table:
            uids = self.get("sop-class", lambda value: tuple(map(_uid, _texts(value))), ())
            found.append(Condition("sop-class", SOP_CLASS, uids))
        for path, value in self.attributes("where").items():
            key = f"where.{path}"
            self.parsed(key, check_condition, path)
            found.append(Condition(key, path, self.parsed(key, lambda one: tuple(_patterns(one)), value)))
        return tuple(found)

    def attributes(self, key: str) -> dict[Path, Any]:
        """Return the content of a table whose keys are attributes."""
        value = self.table.get(key, {})
        if not isinstance(value, Mapping):
            raise self.error(key, "it is a table of attributes")
        found: dict[Path, Any] = {}
        for name, one in _flat(value, key):
            path = self.parsed(f"{key}.{name}", parse_path, name)
            if path in found:
                raise self.error(f"{key}.{name}", "the attribute is there twice")
            found[path] = one
        return found

    def paths(self, key: str) -> tuple[Path, ...]:
        return tuple(self.parsed(key, parse_path, one) for one in self.get(key, _texts, []))

    def coercion(self) -> Coercion:
        kinds: dict[str, dict[Path, Any]] = {
            **{key: self.attributes(key) for key in ("set", "replace", "map")},
            **{key: dict.fromkeys(self.paths(key)) for key in ("remove", "hash")},
        }
        seen: dict[Path, str] = {}
        for kind, content in kinds.items():
            for path in content:
                self.parsed(f"{kind}.{path}", partial(check_target, rule=kind), path)
                if path in seen:
                    raise self.error(f"{kind}.{path}", f"{seen[path]} changes the attribute as well")
                seen[path] = kind
        return Coercion(
            set={path: self.constants(path, value) for path, value in kinds["set"].items()},
            remove=tuple(kinds["remove"]),
            replace={
                path: self.parsed(f"replace.{path}", _replacements, value) for path, value in kinds["replace"].items()
            },
            map={path: self.parsed(f"map.{path}", self.mapped, value) for path, value in kinds["map"].items()},
            hash=tuple(kinds["hash"]),
            shift_dates=self.shift(),
            pseudonyms=self.key("hash") if kinds["hash"] else self.pseudonyms,
            deidentify=self.deidentification(),
        )

    def constants(self, path: Path, value: Any) -> tuple[str | int | float, ...]:
        values = tuple(value) if isinstance(value, list) else (value,)
        if not all(isinstance(one, str | int | float) for one in values):
            raise self.error(f"set.{path}", "it is a text, a number, or a list of these")
        self.parsed(f"set.{path}", lambda one: check_values(path, one), values)
        return values

    def mapped(self, value: Any) -> Mapped:
        table = {"file": value} if isinstance(value, str) else value
        if not isinstance(table, Mapping) or not {"file"} <= table.keys() <= {"file", "missing"}:
            raise ValueError('it is the name of a CSV file, or { file = "ids.csv", missing = "keep" }')
        missing = table.get("missing", "fail")
        if missing not in ("fail", "keep", "remove"):
            raise ValueError(f"missing is fail, keep or remove, not {missing!r}")
        if self.read_table is None:
            raise ValueError("tables of values cannot be read here")
        return Mapped(dict(self.read_table(_text(table["file"]))), missing)

    def shift(self) -> int | str:
        value = self.table.get("shift-dates", 0)
        if "shift-dates" in self.table and self.table.get("deidentify"):
            raise self.error("shift-dates", "deidentify moves dates itself, with the option retain-modified-dates")
        if value == BY_PATIENT and isinstance(value, str):
            self.key("shift-dates")
            return BY_PATIENT
        return int(self.get("shift-dates", lambda one: _integer(one, -100_000, 100_000), 0))

    def key(self, key: str) -> Pseudonyms:
        if self.pseudonyms is None:
            raise self.error(key, "it needs a key, and none is configured")
        return self.pseudonyms

    def deidentification(self) -> Deidentification | None:
        value = self.table.get("deidentify", False)
        if value is False:
            return None
        names = [] if value is True else self.get("deidentify", _texts, [])
        options = [self.parsed("deidentify", _option, name) for name in names]
        pseudonyms = self.key("deidentify")
        return self.parsed("deidentify", lambda one: Deidentification(pseudonyms, one), options)  # type: ignore[no-any-return]


def _flat(table: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    """Return the entries of *table*. A dotted key without quotes is a table in TOML, so a table of attributes is a path."""
    found: list[tuple[str, Any]] = []
    for name, value in table.items():
        own = {"pattern", "with"} if key == "replace" else {"file", "missing"} if key == "map" else set()
        if isinstance(value, Mapping) and not (own and value.keys() & own):
            found += [(f"{name}.{inner}", one) for inner, one in _flat(value, key)]
        else:
            found.append((str(name), value))
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError("it is a text")
    return value


def _texts(value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values or not all(isinstance(one, str) and one for one in values):
        raise ValueError("it is a text or a list of texts, and none is empty")
    return values


def _patterns(value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values or not all(isinstance(one, str) for one in values):
        raise ValueError("it is a text or a list of texts")
    return values


def _integer(value: Any, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"it is a number from {least} to {most}")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it is true or false")
    return value


def _confirmation(value: Any) -> str:
    if value not in ("commit", "query"):
        raise ValueError("it is commit or query")
    return str(value)


def _uid(text: str) -> str:
    """Return a SOP Class UID, which may have wildcards, from it or from its keyword."""
    if re.fullmatch(r"[0-9.*?]+", text):
        return text
    if text in _UID_KEYWORDS:
        return _UID_KEYWORDS[text]
    raise ValueError(f"{text!r} is no UID and no keyword of one: {nearest(text, _UID_KEYWORDS)[:100]}")


def _option(name: str) -> Option:
    try:
        return Option(name)
    except ValueError:
        raise ValueError(f"{name!r} is not an option: {nearest(name, list(Option))}") from None


def _replacements(value: Any) -> tuple[Replacement, ...]:
    tables = value if isinstance(value, list) else [value]
    if not tables or not all(isinstance(one, Mapping) and one.keys() == {"pattern", "with"} for one in tables):
        raise ValueError('it is { pattern = "...", with = "..." }, or a list of these')
    found = []
    for one in tables:
        if not all(isinstance(text, str) for text in one.values()):
            raise ValueError("pattern and with are texts")
        try:
            pattern = re.compile(one["pattern"])
            re.sub(f"(?:{one['pattern']})|", one["with"], "")
        except (re.error, IndexError) as error:
            raise ValueError(f"it is no regular expression, or no text in its place: {error}") from None
        found.append(Replacement(pattern, one["with"]))
    return tuple(found)
