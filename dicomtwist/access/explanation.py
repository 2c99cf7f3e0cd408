"""
Explanations of access rules: what a peer may do under a policy, which rule allows it, or why none does.

``twist dicom --explain`` prints them. The decisions are those of :mod:`dicomtwist.access.enforcement`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cryptography import x509

from dicomtwist.access.certificates import Certificate, parse_pattern
from dicomtwist.access.enforcement import Policy
from dicomtwist.access.rules import MAX_NAMED, Identity, Operation, Rejection, Requestor, nearest
from dicomtwist.runtime.networks import LOOPBACK, UNIX, is_address
from dicomtwist.ul.ae_title import check_ae_title

__all__ = ["Case", "Explanation", "explain", "parse_case", "parse_sender"]

#: The keys of a case.
KEYS: Final = ("calling", "from", "operation", "called", "user", "identity", "certificate", "proxied")
#: The operations that must be allowed besides an operation.
_NEEDS: Final = {Operation.REPLACE: (Operation.STORE,)}
#: The longest file with a certificate, in bytes.
MAX_CERTIFICATE: Final = 1024 * 1024

_FIELD: Final = re.compile(rf"(?:^|,)\s*({'|'.join(KEYS)})\s*=", re.IGNORECASE)
_KEY: Final = re.compile(r"\s*([a-z_-]+)\s*=")
#: The services of C-STORE and so on, by which an operation may be named as well.
_SERVICES: Final = {f"c-{name}": name for name in ("echo", "store", "find", "get", "move")}


@dataclass(frozen=True, slots=True)
class Case:
    """
    A peer, and what it wants to do.

    :ivar requestor: the peer; its user is not confirmed yet.
    :ivar operations: the operations in question; empty for all of them.
    """

    requestor: Requestor
    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """
    The decision of the rules about a case, with its reasons.

    :ivar allowed: whether all operations of the case are allowed; for a case that names none, whether any is.
    :ivar lines: the reasons, for people.
    """

    allowed: bool
    lines: tuple[str, ...]


def parse_case(text: str, called: str) -> Case:
    """
    Return the case that *text* describes. A file with a certificate is read, which blocks.

    :param text: ``calling=CT1,from=10.1.2.3``, and ``operation=``, ``called=``, ``user=``, ``identity=``, ``certificate=``
        or ``proxied=yes`` if they matter. A certificate is a file in PEM form, or written as in a rule. Without an operation
        all of them are explained.
    :param called: the called AE title if the text has none.
    :raises ValueError: the text is wrong; the message says what to write.
    """
    fields = _fields(text)
    for key, example in (("calling", "CT1"), ("from", "10.1.2.3")):
        if not fields.get(key):
            raise ValueError(f"{key} is missing: write {key}={example}")
    identity = fields.get("identity", "")
    if identity and identity not in list(Identity):
        raise ValueError(f"identity {identity!r} is not known: {nearest(identity, list(Identity))}")
    proxied = fields.get("proxied", "no").lower()
    if proxied not in ("yes", "no", "true", "false"):
        raise ValueError(f"proxied is yes or no, not {proxied!r}")
    return Case(
        Requestor(
            check_ae_title(fields.get("called") or called),
            check_ae_title(fields["calling"]),
            _address(fields["from"]),
            proxied=proxied in ("yes", "true"),
            user=fields.get("user", ""),
            identity=Identity(identity) if identity else None,
            certificate=_certificate(fields["certificate"]) if fields.get("certificate") else None,
        ),
        _operations(fields.get("operation", "")),
    )


def parse_sender(fields: Mapping[str, str], called: str) -> Requestor:
    """
    Return the peer that *fields* describe. A file with a certificate is read, which blocks.

    :param fields: ``calling``, ``called``, ``from``, ``user`` and ``certificate`` as :func:`parse_case` has them; each may be
        missing. Its user counts as confirmed.
    :param called: the called AE title if there is none in *fields*.
    :raises ValueError: one of them is wrong.
    """
    calling, user = fields.get("calling", ""), fields.get("user", "")
    return Requestor(
        check_ae_title(fields.get("called") or called),
        check_ae_title(calling) if calling else "",
        _address(fields.get("from") or LOOPBACK),
        user=user,
        identity=Identity.PASSCODE if user else None,
        certificate=_certificate(fields["certificate"]) if fields.get("certificate") else None,
    )


def explain(
    case: Case, policy: Policy, *, called: Sequence[str] = (), calling: Sequence[str] = (), replaces: bool = True
) -> Explanation:
    """
    Explain what *policy* allows in *case*.

    :param called: the AE titles that may be called at all, if the server requires one of them.
    :param calling: the calling AE titles that may associate at all, if the server has such a list.
    :param replaces: whether the server replaces stored instances.
    """
    requestor, unconfirmed, notes = _confirmed(case.requestor, policy)
    place = requestor.address + " behind a proxy" * requestor.proxied
    head = f"{requestor.calling} at {place} calls {requestor.called}"
    rejection = policy.rules.rejection(replace(requestor, undecided=bool(unconfirmed)))
    if rejection is None and called and requestor.called not in called:
        rejection = Rejection(1, 1, 7, f"require-called-aet: the title is {', '.join(called)}")
    if rejection is None and calling and requestor.calling not in calling:
        rejection = Rejection(1, 1, 3, f"allow-calling has {', '.join(calling)} only")
    if rejection is None and unconfirmed:
        rejection = Rejection(2, 2, 1, unconfirmed)
    if rejection is not None:
        code = f"({rejection.result}, {rejection.source}, {rejection.reason})"
        lines = [f"  {rejection.words}"]
        for one in case.operations:
            near = policy.rules.explain_refusal(requestor, (one,))
            if near and near not in rejection.words:
                lines.append(f"  {one}: {near}")
        return Explanation(False, (f"{head}: the association is rejected with {code}", *notes, *lines))
    lines = []
    refused = 0
    for operation in case.operations or Operation:
        needs = (operation, *_NEEDS.get(operation, ()))
        allowed, reason = _decide(requestor, policy, needs)
        if operation is Operation.REPLACE and not replaces:
            allowed, reason = False, "--duplicates is keep or reject: nobody replaces anything"
        refused += not allowed
        lines.append(f"  {operation}: {'allowed' if allowed else 'refused with 0x0124'}; {reason}")
    return Explanation(not refused or not case.operations, (f"{head}: the association is accepted", *notes, *lines))


def _decide(requestor: Requestor, policy: Policy, operations: tuple[Operation, ...]) -> tuple[bool, str]:
    """Return whether *operations* are allowed together, and the rules that allow them, or the nearest ones."""
    if not policy.rules.allowed(requestor).issuperset(operations):
        return False, policy.rules.explain_refusal(requestor, operations)
    rules = [rule for rule in policy.rules.rules if rule.matches(requestor) and not rule.allow.isdisjoint(operations)]
    return True, " and ".join(map(str, rules[:MAX_NAMED])) + (" and others" if len(rules) > MAX_NAMED else "")


def _confirmed(requestor: Requestor, policy: Policy) -> tuple[Requestor, str, list[str]]:
    """
    Return *requestor* as the rules see it, why its user is not confirmed (empty if it is, or there is none), and remarks.
    """
    if not requestor.user and requestor.identity is None:
        return requestor, "", []
    if not policy.depends_on_user:
        note = "  the user identity is ignored: there is no file of users, no accepted identity and no rule about users"
        return replace(requestor, user="", identity=None), "", [note]
    kind = requestor.identity
    if kind is None:
        kind = Identity.PASSCODE if policy.users is not None else Identity.USERNAME
    confirmed = replace(requestor, identity=kind)
    if kind not in (Identity.USERNAME, Identity.PASSCODE):
        confirmed = replace(confirmed, user="")  # nobody reads the name in a ticket
    if kind in policy.unchecked:
        return confirmed, "", [f"  the user identity of type {kind} is accepted without a check"]
    if kind is Identity.PASSCODE and policy.users is not None and requestor.user in policy.users:
        return confirmed, "", [f"  the user {requestor.user!r} is confirmed if the passcode is right"]
    why = policy.why_unconfirmed(kind)
    if kind is Identity.PASSCODE and policy.users is not None:
        why = f"the file of users has no {requestor.user!r}"
    return confirmed, f"the user identity of type {kind} is not confirmed: {why}", []


def _fields(text: str) -> Mapping[str, str]:
    """Return the values of *text* by key. A value goes on to the next key, so that a certificate may have commas."""
    starts = list(_FIELD.finditer(text))
    first = text[: starts[0].start()] if starts else text
    _check_no_key(first.strip(" ,"))
    if first.strip(" ,") or not starts:
        raise ValueError(f"{first.strip()!r} has no key: write calling=CT1,from=10.1.2.3,operation=store")
    fields: dict[str, str] = {}
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        key = start[1].lower()
        value = text[start.end() : following.start() if following else None].strip(" ,")
        if key in fields:
            raise ValueError(f"{key} is there twice")
        if key != "certificate":
            for piece in value.split(",")[1:]:
                _check_no_key(piece)
        fields[key] = value
    return fields


def _check_no_key(piece: str) -> None:
    found = _KEY.match(piece)
    if found is not None:
        raise ValueError(f"{found[1]} is not a key: {nearest(found[1], KEYS)}")


def _address(text: str) -> str:
    address = text.removeprefix("[").removesuffix("]")
    if address.lower() == LOOPBACK:
        return "127.0.0.1"
    if address.lower() == UNIX:
        return UNIX
    if not is_address(address):
        raise ValueError(f"from {text!r} is not an address: write one such as 10.1.2.3 or 2001:db8::7, or unix")
    return address


def _operations(text: str) -> tuple[Operation, ...]:
    names = [name.strip().lower() for name in re.split(r"[,+ ]", text) if name.strip()]
    if "all" in names:
        return tuple(Operation)
    found = []
    for name in names:
        try:
            found.append(Operation(_SERVICES.get(name, name)))
        except ValueError:
            raise ValueError(f"operation {name!r} is not known: {nearest(name, list(Operation))}") from None
    return tuple(dict.fromkeys(found))


def _certificate(text: str) -> Certificate:
    path = Path(text)
    try:
        pattern = parse_pattern(text)
    except ValueError as error:
        if not path.is_file():
            raise ValueError(f"certificate: {error}, or a file in PEM form") from None
        return _read_certificate(path)
    return Certificate(pattern.subject, pattern.fingerprint)


def _read_certificate(path: Path) -> Certificate:
    try:
        with path.open("rb") as file:
            return Certificate.of(x509.load_pem_x509_certificate(file.read(MAX_CERTIFICATE)))
    except OSError as error:
        raise ValueError(f"cannot read the certificate in {str(path)!r}: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{str(path)!r} is not a certificate in PEM form") from None
