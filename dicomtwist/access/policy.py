"""
The policy of a server: its rules and users, and what they allow to one peer. Both DIMSE and HTTP decide by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dicomtwist.access.rules import DEFAULT_RULES, Identity, Operation, Requestor, Rules
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


class CheckedRequestor:
    """
    A peer, with what the rules allow to it. The rules are asked again after a reload.

    :ivar requestor: the peer.
    :ivar logged: the refused operations that the log has a line about.
    """

    __slots__ = ("_allowed", "_rules", "logged", "requestor")

    def __init__(self, requestor: Requestor, rules: Rules) -> None:
        self.requestor = requestor
        self._rules = rules
        self._allowed = rules.allowed(requestor)
        self.logged: set[Operation] = set()

    def may(self, operations: Iterable[Operation], rules: Rules) -> bool:
        """Return whether *rules*, those that apply now, allow all *operations*; may be called from any thread."""
        if rules is not self._rules:
            self._rules, self._allowed = rules, rules.allowed(self.requestor)
        return not self.requestor.undecided and self._allowed.issuperset(operations)
