"""
Rules of forwarding: which instances go where, when, and how they are changed on the way. No I/O, no Twisted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Protocol

from pydicom import Dataset

from dicomtwist.access.rules import Requestor
from dicomtwist.access.rules import Rule as PeerRule
from dicomtwist.forwarding.coercion import Coercion
from dicomtwist.forwarding.header import PIXEL_GROUP
from dicomtwist.forwarding.paths import Path, parse_path, text_values
from dicomtwist.forwarding.values import Hours

__all__ = ["Attributes", "Condition", "DataSetAttributes", "Destination", "Explanation", "ForwardRule", "ForwardRules"]

#: The peers of one destination in the order of failover: the first, and the next one if it fails.
Destination = tuple[str, ...]

MODALITY: Final = parse_path("Modality")
SOP_CLASS: Final = parse_path("SOPClassUID")

#: The last group before those of a data set.
LAST_META_GROUP: Final = 0x0002

#: The most values of an attribute that an explanation quotes.
MAX_QUOTED: Final = 5


class Attributes(Protocol):
    """The attributes of an instance, of which a rule asks for a few."""

    def values(self, path: Path, /) -> Sequence[str]:
        """Return the values of an attribute as texts, none if it is absent or empty."""


class DataSetAttributes:
    """
    The attributes of a decoded header.

    :param dataset: the header.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def values(self, path: Path, /) -> Sequence[str]:
        """Return the values of an attribute as texts."""
        return text_values(self._dataset, path)


@dataclass(frozen=True, slots=True)
class Condition:
    """
    A condition on an attribute: one of its values matches one of the patterns.

    :ivar key: the key in the configuration, such as ``"where.StationName"``.
    :ivar path: the attribute.
    :ivar patterns: texts, in which ``*`` stands for any characters and ``?`` for one character. An empty one
        matches an attribute that is absent or empty.
    """

    key: str
    path: Path
    patterns: tuple[str, ...]

    def matches(self, attributes: Attributes) -> bool:
        """Whether it matches an instance."""
        values = [one for one in attributes.values(self.path) if one] or [""]
        return any(_expression(pattern).fullmatch(value) for pattern in self.patterns for value in values)

    def mismatch(self, attributes: Attributes) -> str:
        """Return in words why it does not match."""
        values = [one for one in attributes.values(self.path) if one]
        has = ", ".join(repr(one[:64]) for one in values[:MAX_QUOTED]) if values else "empty or absent"
        return f"{self.path} is {has}, not {', '.join(map(repr, self.patterns[:MAX_QUOTED]))}"


def check_condition(path: Path) -> None:
    """
    Check that a condition on an attribute can match.

    :raises ValueError: it cannot: the attribute has no text, or is not in the header of the data set.
    """
    first = (path.sequences[0] if path.sequences else path.last).tag >> 16
    if first >= PIXEL_GROUP or first <= LAST_META_GROUP:
        raise ValueError(f"{path} is not in the header of the data set, the part between groups 0004 and 7FE0")
    vr = path.vr
    if vr == "SQ":
        raise ValueError(f"{path} is a sequence: name an attribute of its items behind a dot")
    if vr[:2] in ("OB", "OD", "OF", "OL", "OV", "OW") or vr == "UN":
        raise ValueError(f"{path} has VR {vr}, which is no text")


@dataclass(frozen=True, slots=True)
class ForwardRule:
    """
    A rule of forwarding.

    :ivar name: its name, which tasks keep.
    :ivar to: the destinations.
    :ivar peer: the conditions on the peer that the instance came from.
    :ivar conditions: the conditions on the instance.
    :ivar hours: when instances are sent; ``None`` for always.
    :ivar study_quiet: for how many seconds nothing of the study may have arrived before it is sent.
    :ivar priority: 0 to 9; tasks of the higher one go first.
    :ivar rate: the most bytes a second to each of the destinations; ``None`` for no limit.
    :ivar associations: the most associations with each of the destinations.
    :ivar confirm: ``"commit"``, ``"query"`` or an empty text: how a destination confirms that it has the instance.
    :ivar keep: whether the instance stays in the archive once it is delivered.
    :ivar coercion: the changes on the way.
    :ivar where: where the rule is in the configuration, such as ``"forward 2"``.
    """

    name: str
    to: tuple[Destination, ...]
    peer: PeerRule = field(default_factory=PeerRule)
    conditions: tuple[Condition, ...] = ()
    hours: Hours | None = None
    study_quiet: float = 0.0
    priority: int = 5
    rate: float | None = None
    associations: int = 1
    confirm: str = ""
    keep: bool = True
    coercion: Coercion = field(default_factory=Coercion)
    where: str = field(default="", compare=False)

    def mismatch(self, attributes: Attributes, requestor: Requestor) -> tuple[str, str] | None:
        """Return the first condition that does not hold, as its key and words about it; ``None`` if all hold."""
        for missing in self.peer.mismatches(requestor):
            return missing.key, missing.words
        for condition in self.conditions:
            if not condition.matches(attributes):
                return condition.key, condition.mismatch(attributes)
        return None

    def matches(self, attributes: Attributes, requestor: Requestor) -> bool:
        """Whether all conditions hold for an instance that *requestor* has sent."""
        return self.peer.matches(requestor) and all(one.matches(attributes) for one in self.conditions)


@dataclass(frozen=True, slots=True)
class Explanation:
    """
    The outcome of a rule for an instance.

    :ivar rule: the rule.
    :ivar destinations: where the instance goes by it; none if a condition does not hold.
    :ivar key: the key of the first condition that does not hold, or an empty text.
    :ivar words: words about it.
    """

    rule: ForwardRule
    destinations: tuple[Destination, ...]
    key: str = ""
    words: str = ""

    def __str__(self) -> str:
        if self.destinations:
            places = ", ".join(", else ".join(one) for one in self.destinations)
            return f"{self.rule.name}: to {places}"
        return f"{self.rule.name}: no, {self.key}: {self.words}"


class ForwardRules:
    """
    All rules of forwarding.

    :param rules: the rules, in the order of the configuration. Each that matches makes tasks of its own.
    """

    def __init__(self, rules: Iterable[ForwardRule] = ()) -> None:
        self.rules = tuple(rules)

    def __len__(self) -> int:
        return len(self.rules)

    @property
    def paths(self) -> frozenset[Path]:
        """The attributes that the conditions ask for."""
        return frozenset(condition.path for rule in self.rules for condition in rule.conditions)

    def matches(
        self, attributes: Attributes, requestor: Requestor
    ) -> list[tuple[ForwardRule, tuple[Destination, ...]]]:
        """Return the rules that match an instance that *requestor* has sent, and the destinations of each."""
        return [(rule, rule.to) for rule in self.rules if rule.matches(attributes, requestor)]

    def explain(self, attributes: Attributes, requestor: Requestor) -> list[Explanation]:
        """Return what each rule says about an instance, in the order of the rules."""
        found = []
        for rule in self.rules:
            missing = rule.mismatch(attributes, requestor)
            found.append(Explanation(rule, rule.to) if missing is None else Explanation(rule, (), *missing))
        return found


@lru_cache(maxsize=4096)
def _expression(pattern: str) -> re.Pattern[str]:
    parts = (".*" if one == "*" else "." if one == "?" else re.escape(one) for one in re.sub(r"\*+", "*", pattern))
    return re.compile("".join(parts), re.DOTALL)
