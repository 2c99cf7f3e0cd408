"""
Who may do what: rules about AE titles, addresses, users and certificates, each with the operations that it allows.

An operation is allowed where any rule that fits who asks allows it; what no rule allows is refused. No I/O, no Twisted.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

from dicomtwist.access.certificates import Certificate, CertificatePattern, parse_pattern
from dicomtwist.ul.ae_title import check_ae_title

__all__ = ["DEFAULT_RULES", "Asker", "Identity", "Operation", "Rejection", "Rule", "Rules", "nearest", "parse_rules"]

#: How many rules there may be.
MAX_RULES: Final = 1000

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class Operation(StrEnum):
    """What can be asked for."""

    ECHO = "echo"
    STORE = "store"
    FIND = "find"
    GET = "get"
    MOVE = "move"
    WORKLIST = "worklist"
    MPPS = "mpps"
    COMMIT = "commit"
    OTHER = "other"
    """A DIMSE-N service that is none of these."""


EVERYTHING: Final = frozenset(Operation)


class Identity(StrEnum):
    """The types of user identity (PS3.7 table D.3-14)."""

    USERNAME = "username"
    PASSCODE = "passcode"
    KERBEROS = "kerberos"
    SAML = "saml"
    JWT = "jwt"


#: The types by the number that they have on the wire.
IDENTITY_TYPES: Final = dict(enumerate(Identity, 1))

#: What stands for addresses besides networks.
LOOPBACK: Final = "loopback"
UNIX: Final = "unix"


@dataclass(frozen=True, slots=True)
class Asker:
    """
    Who asks.

    :ivar called: the AE title that is called.
    :ivar calling: the AE title that calls.
    :ivar address: the address as the transport tells it, of IPv4 or IPv6; :data:`UNIX` for a UNIX socket.
    :ivar user: the name of the user, where it was confirmed or is taken as it comes.
    :ivar identity: how the user was identified, where that was accepted.
    :ivar certificate: the certificate of the TLS connection, where there is one.
    :ivar undecided: whether there is an identity that was not looked at yet, so that user and identity may be any.
    """

    called: str
    calling: str
    address: str = ""
    user: str = ""
    identity: Identity | None = None
    certificate: Certificate | None = None
    undecided: bool = False


@dataclass(frozen=True, slots=True)
class Rejection:
    """
    Why an association is rejected: result, source and reason of the A-ASSOCIATE-RJ (PS3.8 9.3.4), and words for the log.
    """

    result: int
    source: int
    reason: int
    words: str


_CALLED_UNKNOWN: Final = Rejection(1, 1, 7, "no rule has this called AE title")
_CALLING_UNKNOWN: Final = Rejection(1, 1, 3, "no rule has this calling AE title")
_NOT_ALLOWED: Final = Rejection(1, 1, 1, "no rule allows anything to this address, certificate or user")


@dataclass(frozen=True, slots=True)
class Rule:
    """
    Who it is about, and what they may do. Where nothing is said about something, anything fits.

    :ivar name: for the log.
    :ivar called: called AE titles; ``*`` in one stands for any characters, ``?`` for one.
    :ivar calling: calling AE titles, likewise.
    :ivar networks: where they are; an address of IPv4 inside IPv6 counts as one of IPv4.
    :ivar unix: whether a UNIX socket counts as one of the networks.
    :ivar users: confirmed users.
    :ivar identities: how the user has to be identified.
    :ivar certificates: what the certificate has to be like.
    :ivar allow: what they may do.
    """

    name: str = ""
    called: tuple[str, ...] = ()
    calling: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    unix: bool = False
    users: frozenset[str] = frozenset()
    identities: frozenset[Identity] = frozenset()
    certificates: tuple[CertificatePattern, ...] = ()
    allow: frozenset[Operation] = EVERYTHING

    def fits(self, asker: Asker) -> bool:
        """Whether it is about *asker*."""
        return (
            _any_title(self.called, asker.called)
            and _any_title(self.calling, asker.calling)
            and self._from_here(asker.address)
            and (not self.certificates or any(one.matches(asker.certificate) for one in self.certificates))
            and self._has_user(asker)
        )

    def _from_here(self, address: str) -> bool:
        if not self.networks and not self.unix:
            return True
        parsed = _parsed(address)
        if parsed is None:
            return self.unix and address == UNIX
        return any(parsed in network for network in self.networks if network.version == parsed.version)

    def _has_user(self, asker: Asker) -> bool:
        if asker.undecided:
            return True
        if self.users and asker.user not in self.users:
            return False
        return not self.identities or asker.identity in self.identities


class Rules:
    """
    All rules of a server.

    :param rules: in any order.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)

    def __len__(self) -> int:
        return len(self.rules)

    @property
    def about_users(self) -> bool:
        """Whether any rule asks who the user is."""
        return any(rule.users or rule.identities for rule in self.rules)

    def allowed(self, asker: Asker) -> frozenset[Operation]:
        """Return what *asker* may do."""
        return frozenset().union(*(rule.allow for rule in self.rules if rule.fits(asker)))

    def rejection(self, asker: Asker) -> Rejection | None:
        """Return why an association of *asker* is rejected; ``None`` where it may do anything at all."""
        if self.allowed(asker):
            return None
        called = [rule for rule in self.rules if _any_title(rule.called, asker.called)]
        if not called:
            return _CALLED_UNKNOWN
        return _NOT_ALLOWED if any(_any_title(rule.calling, asker.calling) for rule in called) else _CALLING_UNKNOWN


_LOOPBACK_NETWORKS: Final = (ip_network("127.0.0.0/8"), ip_network("::1/128"))

#: What holds where nothing else is said: this machine may do anything, others may echo and store.
DEFAULT_RULES: Final = Rules(
    (
        Rule("this machine", networks=_LOOPBACK_NETWORKS, unix=True),
        Rule("everybody", allow=frozenset((Operation.ECHO, Operation.STORE))),
    )
)


def parse_rules(tables: Any, where: str = "rule") -> Rules:
    """
    Return the rules that a configuration says.

    :param tables: a list of tables with the keys ``name``, ``called``, ``calling``, ``from``, ``user``, ``identity``,
        ``certificate`` and ``allow``; a text or a list of texts each.
    :param where: what they are called in errors.
    :raises ValueError: something is wrong; the text names the key.
    """
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        raise ValueError(f"{where}: write each rule as a table, [[{where}]]")
    if len(tables) > MAX_RULES:
        raise ValueError(f"{where}: there are more than {MAX_RULES} rules")
    return Rules(_parse_rule(table, f"{where} {number}") for number, table in enumerate(tables, 1))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return words about what may have been meant by *name*."""
    names = list(known)
    close = difflib.get_close_matches(name, names, 1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"


def _parse_rule(table: Mapping[str, Any], where: str) -> Rule:
    known = ("name", "called", "calling", "from", "user", "identity", "certificate", "allow")
    for key in table:
        if key not in known:
            raise ValueError(f"{where}: {key} is not a key: {nearest(key, known)}")
    if "allow" not in table:
        raise ValueError(f"{where}: allow is missing: say what it allows, such as allow = ['echo', 'store']")

    def texts(key: str) -> list[str]:
        value = table.get(key, [])
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
            raise ValueError(f"{where}: {key} is a text or a list of texts")
        if key in table and key != "allow" and not (values and all(values)):
            # An empty list would fit anything, which is the opposite of what it looks like.
            raise ValueError(f"{where}: {key} is empty: leave it out where anything fits")
        return values

    try:
        networks, unix = _parse_networks(texts("from"))
        return Rule(
            name=" ".join(texts("name")),
            called=tuple(_title_pattern(one) for one in texts("called")),
            calling=tuple(_title_pattern(one) for one in texts("calling")),
            networks=networks,
            unix=unix,
            users=frozenset(texts("user")),
            identities=frozenset(_member(Identity, one) for one in texts("identity")),
            certificates=tuple(parse_pattern(one) for one in texts("certificate")),
            allow=_parse_operations(texts("allow")),
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


def _parse_networks(texts: Iterable[str]) -> tuple[tuple[Network, ...], bool]:
    networks: list[Network] = []
    unix = False
    for text in texts:
        if text == UNIX:
            unix = True
        elif text == LOOPBACK:
            networks += _LOOPBACK_NETWORKS
        else:
            try:
                networks.append(ip_network(text))
            except ValueError as error:
                hint = "write an address, a network such as 10.1.0.0/16, loopback or unix"
                raise ValueError(f"from: {error}: {hint}") from None
    return tuple(networks), unix


def _title_pattern(text: str) -> str:
    # A pattern is a title itself, as "*" and "?" may be in one.
    return check_ae_title(text)


@lru_cache(maxsize=4096)
def _expression(pattern: str) -> re.Pattern[str]:
    return re.compile(
        "".join(".*" if one == "*" else "." if one == "?" else re.escape(one) for one in pattern), re.DOTALL
    )


def _any_title(patterns: Sequence[str], title: str) -> bool:
    return not patterns or any(_expression(pattern).fullmatch(title) for pattern in patterns)


def _parsed(address: str) -> Address | None:
    try:
        parsed = ip_address(address)
    except ValueError:
        return None
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return parsed.ipv4_mapped
        if parsed.scope_id is not None:
            return IPv6Address(int(parsed))
    return parsed
