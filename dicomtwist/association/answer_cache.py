"""
The answers to the latest proposals of presentation contexts.

A peer proposes the same contexts each time, often 120 of them with as many roles. An answer that is kept takes 0.05 ms, a new
one 0.55 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from dicomtwist.association.negotiation import ContextAnswers, answer_contexts
from dicomtwist.presentation import SupportedContexts
from dicomtwist.settings import Settings
from dicomtwist.ul.items import ProposedContext, RoleSelection

__all__ = ["AnswerCache"]

#: The number of proposals that are kept with their answers.
MAX_ANSWERS: Final = 8
#: The longest proposal that is kept, in characters of its UIDs. A common one has 8,000.
MAX_PROPOSAL_LENGTH: Final = 32_768


class _Known(NamedTuple):
    proposed: tuple[ProposedContext, ...]
    roles: tuple[RoleSelection, ...]
    grounds: object
    answers: ContextAnswers


class AnswerCache:
    """
    Answers proposals as :func:`~dicomtwist.association.negotiation.answer_contexts` does, and keeps the latest answers.

    A kept answer is used only if everything that it depends on is unchanged: the supported contexts, the settings, and the
    transfer syntaxes that are preferred for sending.

    :param supported: the supported contexts, which may change at any time.
    """

    __slots__ = ("_known", "_supported")

    def __init__(self, supported: SupportedContexts) -> None:
        self._supported = supported
        self._known: list[_Known] = []  # the latest one first

    def answer(
        self,
        proposed: tuple[ProposedContext, ...],
        roles: tuple[RoleSelection, ...],
        settings: Settings,
        sendable: Callable[[str], Sequence[str]] | None,
    ) -> ContextAnswers:
        """
        Return the answer to the proposed contexts and roles; its contexts belong to the caller.

        :param settings: the settings of the association.
        :param sendable: see :func:`~dicomtwist.association.negotiation.answer_contexts`.
        """
        preferred: list[tuple[str, ...]] = []
        if sendable is not None:
            preferred = [tuple(sendable(role.sop_class_uid)) for role in roles if role.scp_role and not role.scu_role]
        options = settings.promiscuous, settings.keep_compression, settings.requestor_order, sendable is None
        grounds = self._supported.state(), preferred, options
        for at, known in enumerate(self._known):
            # Equal items of two requests are mostly the same object, see ``MAX_REMEMBERED`` of :mod:`dicomtwist.ul.items`.
            if known.proposed == proposed and known.roles == roles:
                del self._known[at]
                if known.grounds == grounds:
                    self._known.insert(0, known)
                    return known.answers.copy()
                break
        answers = answer_contexts(
            proposed,
            self._supported,
            roles,
            promiscuous=settings.promiscuous,
            keep_compression=settings.keep_compression,
            requestor_order=settings.requestor_order,
            sendable=sendable,
        )
        answers.items()  # which copies share
        if _length(proposed, roles) <= MAX_PROPOSAL_LENGTH:
            self._known.insert(0, _Known(proposed, roles, grounds, answers.copy()))
            del self._known[MAX_ANSWERS:]
        return answers


def _length(proposed: Sequence[ProposedContext], roles: Sequence[RoleSelection]) -> int:
    contexts = sum(len(offer.abstract_syntax) + sum(map(len, offer.transfer_syntaxes)) for offer in proposed)
    return contexts + sum(len(role.sop_class_uid) for role in roles)
