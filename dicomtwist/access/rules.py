"""
Access rules: conditions on AE titles, addresses, users and certificates, each with the operations that it allows.

An operation is allowed if at least one rule that matches the peer allows it; everything else is refused. No I/O, no Twisted.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

from dicomtwist.access.certificates import Certificate, CertificatePattern, parse_pattern
from dicomtwist.runtime.networks import ANYWHERE, UNIX, Networks, parse_networks
from dicomtwist.ul.ae_title import check_ae_title

__all__ = [
    "DEFAULT_RULES",
    "UNIX",
    "Requestor",
    "Identity",
    "Mismatch",
    "Operation",
    "Rejection",
    "Rule",
    "Rules",
    "nearest",
    "parse_rules",
]

#: The largest number of rules.
MAX_RULES: Final = 1000
#: The most rules, and AE titles of a rule, whose spelling is compared with that of a peer.
MAX_COMPARED: Final = 20
#: The most values of a condition that a text about it names; further ones are counted.
MAX_NAMED: Final = 5


class Operation(StrEnum):
    """An operation that a peer can request."""

    ECHO = "echo"
    STORE = "store"
    REPLACE = "replace"
    """C-STORE of an instance that is stored already, with other bytes, or with other attributes of its patient or study."""
    FIND = "find"
    GET = "get"
    MOVE = "move"
    DELETE = "delete"
    """Removal of stored instances, by HTTP."""
    WORKLIST = "worklist"
    MPPS = "mpps"
    COMMIT = "commit"
    OTHER = "other"
    """Any other DIMSE-N service."""
    ADMIN = "admin"
    """The view and the tools of an operator, by HTTP: metrics, records of associations, the state of the server."""


EVERYTHING: Final = frozenset(Operation)


class Identity(StrEnum):
    """The types of user identity (PS3.7 table D.3-14), and that of HTTP."""

    USERNAME = "username"
    PASSCODE = "passcode"
    KERBEROS = "kerberos"
    SAML = "saml"
    JWT = "jwt"
    TOKEN = "token"
    """A token of HTTP, which belongs to a user of the file."""


#: The types of user identity by their number on the wire.
IDENTITY_TYPES: Final = dict(enumerate((one for one in Identity if one != "token"), 1))


@dataclass(frozen=True, slots=True)
class Requestor:
    """
    The facts about a requesting peer that rules are matched against.

    :ivar called: the called AE title.
    :ivar calling: the calling AE title.
    :ivar address: the IPv4 or IPv6 address that the transport reports; :data:`UNIX` for a UNIX socket.
    :ivar proxied: whether the address comes from the PROXY header of a proxy.
    :ivar user: the name of the user, if it was confirmed or is accepted without a check.
    :ivar identity: the type of user identity, if it was accepted.
    :ivar certificate: the certificate of the TLS connection, if there is one.
    :ivar undecided: whether there is an identity that is not checked yet, so that rules match any user and identity.
    """

    called: str
    calling: str
    address: str = ""
    proxied: bool = False
    user: str = ""
    identity: Identity | None = None
    certificate: Certificate | None = None
    undecided: bool = False


@dataclass(frozen=True, slots=True)
class Rejection:
    """
    The reason to reject an association: result, source and reason of the A-ASSOCIATE-RJ (PS3.8 9.3.4), and words for the log.
    """

    result: int
    source: int
    reason: int
    words: str


#: The source and reason of a rejection by the condition that does not match; any other condition has none of its own.
_REASONS: Final = {"called": 7, "calling": 3}


@dataclass(frozen=True, slots=True)
class Mismatch:
    """
    A condition of a rule that does not match a peer.

    :ivar key: the key of the condition in the configuration, such as ``"calling"``.
    :ivar words: the value of the peer and those of the rule, on one line without control characters.
    """

    key: str
    words: str


@dataclass(frozen=True, slots=True)
class Rule:
    """
    Conditions on a peer, and the operations that it may request. A condition that is empty matches any peer.

    :ivar name: a name for the log.
    :ivar where: where the rule is in its configuration, such as ``"access.rule 2"``, for texts about it.
    :ivar called: called AE titles; ``*`` in one stands for any characters, ``?`` for one character.
    :ivar calling: calling AE titles, with the same wildcards.
    :ivar networks: the networks of the peer. Loopback addresses and UNIX sockets are those of this machine: an address in
        the PROXY header of a proxy never counts as one of them.
    :ivar users: names of confirmed users.
    :ivar identities: the types of user identity.
    :ivar certificates: patterns, of which the certificate must match one.
    :ivar allow: the allowed operations.
    """

    name: str = ""
    called: tuple[str, ...] = ()
    calling: tuple[str, ...] = ()
    networks: Networks = ANYWHERE
    users: frozenset[str] = frozenset()
    identities: frozenset[Identity] = frozenset()
    certificates: tuple[CertificatePattern, ...] = ()
    allow: frozenset[Operation] = EVERYTHING
    where: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.where or 'the rule'} {self.name!r}" if self.name else self.where or "a rule without a name"

    def matches(self, requestor: Requestor) -> bool:
        """Whether all conditions match *requestor*."""
        return (
            _any_title(self.called, requestor.called)
            and _any_title(self.calling, requestor.calling)
            and (not self.networks or self.networks.has(requestor.address, proxied=requestor.proxied))
            and (not self.certificates or any(one.matches(requestor.certificate) for one in self.certificates))
            and self._has_user(requestor)
        )

    def has_called(self, title: str) -> bool:
        """Whether the condition on called AE titles matches *title*."""
        return _any_title(self.called, title)

    def has_calling(self, title: str) -> bool:
        """Whether the condition on calling AE titles matches *title*."""
        return _any_title(self.calling, title)

    def _has_user(self, requestor: Requestor) -> bool:
        if requestor.undecided:
            return True
        if self.users and requestor.user not in self.users:
            return False
        return not self.identities or requestor.identity in self.identities

    def mismatches(self, requestor: Requestor) -> list[Mismatch]:
        """Return the conditions that do not match *requestor*, in the order in which the server learns what they are about."""
        found = []
        if not _any_title(self.called, requestor.called):
            found.append(Mismatch("called", f"the called AE title is {requestor.called!r}, not {_one_of(self.called)}"))
        if not _any_title(self.calling, requestor.calling):
            found.append(
                Mismatch("calling", f"the calling AE title is {requestor.calling!r}, not {_one_of(self.calling)}")
            )
        if self.networks and not self.networks.has(requestor.address, proxied=requestor.proxied):
            place = f"the address is {requestor.address!r}{' from a proxy' if requestor.proxied else ''}"
            found.append(Mismatch("from", f"{place}, not in {_one_of(self.networks.texts())}"))
        if self.certificates and not any(one.matches(requestor.certificate) for one in self.certificates):
            has = (
                "there is no certificate, and it needs"
                if requestor.certificate is None
                else f"the certificate is {requestor.certificate}, not"
            )
            found.append(Mismatch("certificate", f"{has} {_one_of([str(one) for one in self.certificates])}"))
        if not requestor.undecided:
            if self.users and requestor.user not in self.users:
                has = f"the user is {requestor.user!r}, not" if requestor.user else "there is no user, and it needs"
                found.append(Mismatch("user", f"{has} {_one_of(sorted(self.users))}"))
            if self.identities and requestor.identity not in self.identities:
                has = (
                    f"the user identity is of type {requestor.identity}, not"
                    if requestor.identity
                    else "there is no user identity, and it needs"
                )
                found.append(Mismatch("identity", f"{has} {_one_of(sorted(self.identities))}"))
        return found

    def recognizes(self, requestor: Requestor) -> int:
        """
        Return how many conditions say that the rule is about *requestor*: its AE title, its certificate, its user.

        An address says less: all peers of a network share a condition on it. A pattern of wildcards alone says nothing.
        """
        named = [pattern for pattern in self.calling if pattern.strip("*?")]
        return sum(
            (
                bool(named) and _any_title(named, requestor.calling),
                any(one.matches(requestor.certificate) for one in self.certificates),
                bool(requestor.user) and requestor.user in self.users,
            )
        )

    @property
    def conditions(self) -> int:
        """The number of conditions."""
        return sum(
            map(bool, (self.called, self.calling, self.networks, self.certificates, self.users, self.identities))
        )


class Rules:
    """
    All access rules of a server.

    :param rules: the rules, in any order.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)

    def __len__(self) -> int:
        return len(self.rules)

    @property
    def has_user_conditions(self) -> bool:
        """Whether any rule has a condition on the user."""
        return any(rule.users or rule.identities for rule in self.rules)

    def allowed(self, requestor: Requestor) -> frozenset[Operation]:
        """Return the operations that *requestor* may request."""
        return frozenset().union(*(rule.allow for rule in self.rules if rule.matches(requestor)))

    def rejection(self, requestor: Requestor) -> Rejection | None:
        """
        Return the reason to reject an association of *requestor*; ``None`` if it may request any operation.

        The reason is that of the nearest rule, but it is an AE title if no rule has that at all.
        """
        if self.allowed(requestor):
            return None
        if not any(rule.has_called(requestor.called) for rule in self.rules):
            key, what = "called", "no rule has this called AE title"
        elif not any(rule.has_calling(requestor.calling) for rule in self.rules):
            key, what = "calling", "no rule has this calling AE title"
        else:
            key, what = "", "no rule that allows anything matches"
        rule = self.nearest_rule(requestor)
        if rule is None:
            return Rejection(1, 1, _REASONS[key or "called"], what)
        missing = rule.mismatches(requestor)
        if not key:
            key = next((one.key for one in missing if one.key in _REASONS), "")
            if not key:
                what = "no rule allows anything to this address, certificate or user"
        return Rejection(1, 1, _REASONS.get(key, 1), f"{what}; {_nearest_in_words(rule, missing)}")

    def nearest_rule(self, requestor: Requestor, *operations: Operation) -> Rule | None:
        """
        Return the rule that comes nearest to allowing all *operations* to *requestor*, ``None`` if no rule allows them.

        That is the rule that recognizes most of the peer (:meth:`Rule.recognizes`), then the one with the most conditions that
        match and the fewest that do not. Among equals it is one that has both AE titles, then the one whose AE titles are
        spelled most like those of the peer. A rule for this machine alone is the nearest of a remote peer only if there is no
        other.

        :param operations: the operations; without them any rule counts that allows something, or else any rule.
        """
        rules = [rule for rule in self.rules if rule.allow.issuperset(operations) and (rule.allow or not operations)]
        if not operations:
            rules = [rule for rule in rules if rule.allow] or rules
        ranked = [(_rank(rule, requestor), rule) for rule in rules]
        if not ranked:
            return None
        best = max(rank for rank, _ in ranked)
        equals = [rule for rank, rule in ranked if rank == best][:MAX_COMPARED]
        return max(equals, key=lambda rule: _likeness(rule, requestor))

    def explain_refusal(self, requestor: Requestor, operations: Iterable[Operation]) -> str:
        """Return in words for the log why *operations* are not allowed to *requestor*: the nearest rules that allow them."""
        parts = []
        for operation in sorted(set(operations) - self.allowed(requestor)):
            rule = self.nearest_rule(requestor, operation)
            parts.append(
                f"there is no rule with {operation}"
                if rule is None
                else _nearest_in_words(rule, rule.mismatches(requestor))
            )
        return "; ".join(parts)


def _rank(rule: Rule, requestor: Requestor) -> tuple[bool, int, int, int, bool]:
    missing = rule.mismatches(requestor)
    keys = {one.key for one in missing}
    is_foreign = "from" in keys and not rule.networks.networks
    matching = rule.conditions - len(missing)
    recognized = rule.recognizes(requestor)
    return not is_foreign, recognized, matching - len(missing), matching, not keys & _REASONS.keys()


def _likeness(rule: Rule, requestor: Requestor) -> float:
    """
    Return how alike a rule and a peer are that differ: their AE titles in spelling, whatever their case, and whether a rule
    about users or certificates meets a peer that has one.
    """
    alike = float(bool(rule.users and requestor.user)) + bool(rule.certificates and requestor.certificate)
    for patterns, title in ((rule.called, requestor.called), (rule.calling, requestor.calling)):
        ratios = (difflib.SequenceMatcher(None, title.lower(), one.lower()).ratio() for one in patterns[:MAX_COMPARED])
        alike += max(ratios, default=1.0)
    return alike


def _nearest_in_words(rule: Rule, missing: Sequence[Mismatch]) -> str:
    why = "; ".join(one.words for one in missing) or "it allows nothing"
    return f"the nearest is {rule}: {why}"


def _one_of(values: Sequence[str]) -> str:
    """Return *values* in words, the first ones by name."""
    more = len(values) - MAX_NAMED
    return ", ".join(map(str, values[:MAX_NAMED])) + (f" or {more} more" if more > 0 else "")


#: The rules of a server without configured rules: this machine may do anything, others may echo and store, but replace nothing.
DEFAULT_RULES: Final = Rules(
    (
        Rule("this machine", where="the default rule", networks=Networks(loopback=True, unix=True)),
        Rule("everybody", where="the default rule", allow=frozenset((Operation.ECHO, Operation.STORE))),
    )
)


def parse_rules(tables: Any, where: str = "rule") -> Rules:
    """
    Return the rules of a configuration.

    :param tables: a list of tables with the keys ``name``, ``called``, ``calling``, ``from``, ``user``, ``identity``,
        ``certificate`` and ``allow``; the value of each is a text or a list of texts.
    :param where: the name of the list in error messages.
    :raises ValueError: a table is wrong; the message names the key.
    """
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        raise ValueError(f"{where}: write each rule as a table, [[{where}]]")
    if len(tables) > MAX_RULES:
        raise ValueError(f"{where}: there are more than {MAX_RULES} rules")
    return Rules(_parse_rule(table, f"{where} {number}") for number, table in enumerate(tables, 1))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for the unknown *name*: the nearest of the *known* names, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, 1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"


def _parse_rule(table: Mapping[str, Any], where: str) -> Rule:
    known = ("name", "called", "calling", "from", "user", "identity", "certificate", "allow")
    for key in table:
        if key not in known:
            raise ValueError(f"{where}: {key} is not a key: {nearest(key, known)}")
    if "allow" not in table:
        raise ValueError(f"{where}: allow is missing: name the allowed operations, such as allow = ['echo', 'store']")

    def texts(key: str) -> list[str]:
        value = table.get(key, [])
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
            raise ValueError(f"{where}: {key} is a text or a list of texts")
        if key in table and key != "allow" and not (values and all(values)):
            # An empty list would match anything, although it looks as if it matched nothing.
            raise ValueError(f"{where}: {key} is empty: leave it out to match anything")
        return values

    try:
        return Rule(
            name=" ".join(texts("name")),
            called=tuple(_title_pattern(one) for one in texts("called")),
            calling=tuple(_title_pattern(one) for one in texts("calling")),
            networks=_networks(texts("from")),
            users=frozenset(texts("user")),
            identities=frozenset(_member(Identity, one) for one in texts("identity")),
            certificates=tuple(parse_pattern(one) for one in texts("certificate")),
            allow=_parse_operations(texts("allow")),
            where=where,
        )
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def _parse_operations(names: Sequence[str]) -> frozenset[Operation]:
    return EVERYTHING if "all" in names else frozenset(_member(Operation, name, "all") for name in names)


def _member(kind: Any, name: str, *others: str) -> Any:
    try:
        return kind(name)
    except ValueError:
        raise ValueError(f"{name!r} is not known: {nearest(name, [*kind, *others])}") from None


def _networks(texts: Sequence[str]) -> Networks:
    try:
        return parse_networks(texts)
    except ValueError as error:
        raise ValueError(f"from: {error}") from None


def _title_pattern(text: str) -> str:
    # A pattern has the syntax of an AE title, in which "*" and "?" are allowed characters.
    return check_ae_title(text)


@lru_cache(maxsize=4096)
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(
        "".join(".*" if one == "*" else "." if one == "?" else re.escape(one) for one in pattern), re.DOTALL
    )


def _any_title(patterns: Sequence[str], title: str) -> bool:
    return not patterns or any(_expression(pattern).fullmatch(title) for pattern in patterns)
