"""
The retention policy: which studies may be deleted, and when. Pure: no I/O, no clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from dicomtwist.access.certificates import CertificatePattern, parse_pattern
from dicomtwist.archive.index.study_times import Order, StudyFacts
from dicomtwist.runtime.networks import ANYWHERE, Networks, parse_networks

__all__ = ["RetentionPolicy", "RetentionRule", "parse_retention"]

#: The largest number of rules.
MAX_RULES: Final = 100
#: The time between two looks, in seconds.
DEFAULT_INTERVAL: Final = 60.0

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "y": 31557600.0}
_SIZES: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}


@dataclass(frozen=True, slots=True)
class RetentionRule:
    """
    Conditions on a study, and what applies to it. A condition that is empty matches any study. Those on the sender are about
    the one of its last instance.

    :ivar name: a name for the log.
    :ivar calling: calling AE titles, with ``*`` and ``?``.
    :ivar called: called AE titles, likewise.
    :ivar modality: modalities; all series of the study have one of them.
    :ivar users: names of confirmed users.
    :ivar networks: addresses of senders.
    :ivar certificates: patterns, of which the certificate of the sender must match one.
    :ivar age: the age in seconds from which on it is deleted; ``None`` for no limit.
    :ivar size: the bytes that the studies to which the rule applies may have together; ``None`` for no limit.
    :ivar keep: whether it is never deleted.
    """

    name: str
    calling: tuple[str, ...] = ()
    called: tuple[str, ...] = ()
    modality: tuple[str, ...] = ()
    users: frozenset[str] = frozenset()
    networks: Networks = ANYWHERE
    certificates: tuple[CertificatePattern, ...] = ()
    age: float | None = None
    size: int | None = None
    keep: bool = False

    def __str__(self) -> str:
        """The limits in words."""
        if self.keep:
            return "kept"
        words = [] if self.age is None else [f"{self.age / _UNITS['d']:g} days"]
        if self.size is not None:
            words.append(f"the oldest beyond {self.size} bytes")
        return " and ".join(words)

    def matches(self, study: StudyFacts) -> bool | None:
        """Whether all conditions match; ``None`` if that depends on the sender, who is not known."""
        if self.modality and not (
            study.modalities and all(any(fnmatchcase(one, each) for each in self.modality) for one in study.modalities)
        ):
            return False
        found = [*self._sender_matches(study)]
        if False in found:
            return False
        return None if None in found else True

    def _sender_matches(self, study: StudyFacts) -> Iterator[bool | None]:
        """Yield whether each condition on the sender matches; ``None`` for one on what is not known."""
        sender = study.sender
        if self.calling or self.called:
            is_known = bool(study.calling)
            yield _any(self.calling, study.calling) and _any(self.called, study.called) if is_known else None
        if self.users:
            yield None if sender is None else sender.user in self.users
        if self.networks:
            yield None if sender is None else self.networks.has(sender.address, proxied=sender.proxied)
        if self.certificates:
            yield None if sender is None else any(one.matches(sender.certificate) for one in self.certificates)


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """
    The retention policy of an archive.

    :ivar age: the age in seconds from which on a study is deleted that no rule matches; ``None`` for no limit.
    :ivar size: the bytes that all instances may have together; ``None`` for no limit.
    :ivar order: the times that count.
    :ivar rules: rules; the first that matches a study applies.
    :ivar dry_run: whether nothing is deleted, and the log tells what would be.
    :ivar interval: the time between two looks, in seconds.
    """

    age: float | None = None
    size: int | None = None
    order: Order = Order.RECEIVED
    rules: tuple[RetentionRule, ...] = ()
    dry_run: bool = False
    interval: float = DEFAULT_INTERVAL

    def __str__(self) -> str:
        """The policy in words, on one line."""
        words = []
        if self.age is not None:
            words.append(f"studies older than {self.age / _UNITS['d']:g} days")
        words += [f"{rule.name}: {rule}" for rule in self.rules]
        if self.size is not None:
            words.append(f"the oldest beyond {self.size} bytes")
        which = ", ".join(words) or "nothing"
        return f"{'dry run, ' * self.dry_run}deletes {which}, by the time {self.order}"

    @property
    def deletes(self) -> bool:
        """Whether the policy ever deletes anything."""
        return self.size is not None or self.youngest is not None or self.has_sizes

    @property
    def has_sizes(self) -> bool:
        """Whether a rule has a size."""
        return any(rule.size is not None for rule in self.rules)

    @property
    def youngest(self) -> float | None:
        """The least age at which a study may be deleted for its age; ``None`` if there is none."""
        return min((age for age in (self.age, *(rule.age for rule in self.rules)) if age is not None), default=None)

    def rule_for(self, study: StudyFacts) -> RetentionRule | None:
        """
        Return what applies to a study, ``None`` if it stays: its sender is not known, and a rule about senders might keep it.
        """
        for rule in self.rules:
            matches = rule.matches(study)
            if matches is None:
                return None
            if matches:
                return rule
        return RetentionRule("", age=self.age)

    def is_too_old(self, study: StudyFacts, now: float) -> bool:
        """Whether a study is to be deleted for its age."""
        rule = self.rule_for(study)
        if rule is None or rule.keep or rule.age is None:
            return False
        return now - study.time(self.order) >= rule.age

    def is_spare(self, study: StudyFacts) -> bool:
        """Whether a study may be deleted to make room."""
        rule = self.rule_for(study)
        return rule is not None and not rule.keep


def parse_retention(table: Mapping[str, Any]) -> RetentionPolicy:
    """
    Return the policy of the table ``[retention]`` of a configuration.

    :raises ValueError: it is wrong; the message names the key.
    """
    _check_keys(table, ("age", "size", "order", "dry-run", "every", "rule"), "retention")
    rules = table.get("rule", [])
    if not isinstance(rules, list) or not all(isinstance(one, Mapping) for one in rules):
        raise ValueError("retention.rule: write each rule as a table, [[retention.rule]]")
    if len(rules) > MAX_RULES:
        raise ValueError(f"retention.rule: there are more than {MAX_RULES} rules")
    interval = _age(table, "every", "retention")
    if interval is not None and interval < 1:
        raise ValueError("retention.every: a second at least")
    order = table.get("order", Order.RECEIVED)
    if order not in list(Order):
        raise ValueError(f"retention.order is received or accessed, not {order!r}")
    return RetentionPolicy(
        _age(table, "age", "retention"),
        _size(table, "retention"),
        Order(order),
        tuple(_rule(one, f"retention.rule {number}") for number, one in enumerate(rules, 1)),
        _flag(table, "dry-run", "retention"),
        DEFAULT_INTERVAL if interval is None else interval,
    )


def _rule(table: Mapping[str, Any], where: str) -> RetentionRule:
    known = ("name", "calling", "called", "modality", "user", "from", "certificate", "age", "size", "keep")
    _check_keys(table, known, where)
    age, size, keep = _age(table, "age", where), _size(table, where), _flag(table, "keep", where)
    if keep == (age is not None or size is not None):
        raise ValueError(f"{where}: give either age, size or both, or keep = true")
    name = table.get("name", where)
    if not isinstance(name, str):
        raise ValueError(f"{where}: name is a text")
    calling, called, modality = (_texts(table, key, where) for key in ("calling", "called", "modality"))
    try:
        networks = parse_networks(_texts(table, "from", where))
        certificates = tuple(parse_pattern(one) for one in _texts(table, "certificate", where))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    users = frozenset(_texts(table, "user", where))
    return RetentionRule(name, calling, called, modality, users, networks, certificates, age, size, keep)


def _check_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise ValueError(f"{where}: {key} is not a key: there are {', '.join(known)}")


def _texts(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = table.get(key, [])
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(one, str) and one for one in values):
        raise ValueError(f"{where}: {key} is a text or a list of texts")
    if key in table and not values:
        raise ValueError(f"{where}: {key} is empty: leave it out to match anything")
    return tuple(values)


def _flag(table: Mapping[str, Any], key: str, where: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise ValueError(f"{where}: {key} is true or false, not {value!r}")
    return value


def _age(table: Mapping[str, Any], key: str, where: str) -> float | None:
    if key not in table:
        return None
    value = table[key]
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smhdwy])", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f'{where}: {key} is a time such as "90d", with s, m, h, d, w or y, not {value!r}')
    return float(found[1]) * _UNITS[found[2]]


def _size(table: Mapping[str, Any], where: str) -> int | None:
    if "size" not in table:
        return None
    value = table["size"]
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGTP]?)(?:i?B)?", text)
    if found is None:
        raise ValueError(f'{where}: size is a number of bytes such as "500G", with K, M, G, T or P, not {value!r}')
    return int(float(found[1]) * _SIZES[found[2]])


def _any(patterns: Sequence[str], title: str) -> bool:
    return not patterns or any(fnmatchcase(title, one) for one in patterns)
