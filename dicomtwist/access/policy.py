"""
The policy of a server: its rules and users, and what they allow to one peer. Both DIMSE and HTTP decide by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from dicomtwist.access.rules import DEFAULT_RULES, Identity, Operation, Requestor, Rule, Rules
from dicomtwist.access.users import Users

__all__ = ["CheckedRequestor", "Policy"]


@dataclass(frozen=True, slots=True)
class Policy:
    """
    The rules and users that apply. A reload replaces the policy as a whole.

    :ivar rules: the access rules.
    :ivar users: the users with a passcode or a token, if there are any.
    :ivar unchecked: the types of user identity that are accepted without a check.
    """

    rules: Rules = DEFAULT_RULES
    users: Users | None = None
    unchecked: frozenset[Identity] = frozenset()

    @property
    def depends_on_user(self) -> bool:
        """Whether the policy depends on the user; if not, a user identity is ignored."""
        return self.users is not None or bool(self.unchecked) or self.rules.has_user_conditions

    def why_unconfirmed(self, kind: Identity) -> str:
        """Return in words why an identity of type *kind* is not confirmed."""
        if kind is Identity.PASSCODE and self.users is not None:
            return "the user is unknown, or the passcode is wrong"
        if kind is Identity.PASSCODE:
            return "access.users names no file of users"
        return f"access.accept-identity does not name {kind}"

    def confirms(self, requestor: Requestor) -> bool:
        """
        Return whether the identity of *requestor*, which an earlier policy has confirmed, is one that this policy can confirm.

        A user that is removed from the file has no rights from then on, whatever the rules say about other facts: a new
        association of the user would be rejected. A passcode or a token that is replaced is asked for at the next association
        or request.
        """
        identity = requestor.identity
        if identity is None or identity in self.unchecked or not self.depends_on_user:
            return True
        return identity in _OF_FILE and self.users is not None and requestor.user in self.users

    def explain_refusal(self, requestor: Requestor, operations: Iterable[Operation]) -> str:
        """Return in words for the log why *operations* are not allowed to *requestor*."""
        if not self.confirms(requestor):
            return f"the user {requestor.user!r} is not confirmed any more"
        return self.rules.explain_refusal(requestor, operations)

    def unknown_users(self) -> Iterator[tuple[Rule, str]]:
        """Yield each rule with each user that it names and that nothing confirms, in order."""
        if self.unchecked & {Identity.USERNAME, Identity.PASSCODE}:
            return
        for rule in self.rules.rules:
            for name in sorted(rule.users):
                if self.users is None or name not in self.users:
                    yield rule, name


#: The types of identity that the file of users confirms.
_OF_FILE: Final = frozenset((Identity.PASSCODE, Identity.TOKEN))


class CheckedRequestor:
    """
    A peer, with what the policy allows to it. The policy is asked again after a reload.

    :ivar requestor: the peer.
    :ivar logged: the refused operations that the log has a line about.
    """

    __slots__ = ("_decided", "logged", "requestor")

    def __init__(self, requestor: Requestor, policy: Policy) -> None:
        self.requestor = requestor
        self._decided = (policy, policy.rules.allowed(requestor))
        self.logged: set[Operation] = set()

    def may(self, operations: Iterable[Operation], policy: Policy) -> bool:
        """Return whether *policy*, the one that applies now, allows all *operations*; may be called from any thread."""
        decided, allowed = self._decided
        if policy is not decided:
            requestor = self.requestor
            allowed = policy.rules.allowed(requestor) if policy.confirms(requestor) else frozenset()
            self._decided = (policy, allowed)
        return not self.requestor.undecided and allowed.issuperset(operations)
