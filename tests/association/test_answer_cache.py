"""
Answers to proposals of presentation contexts that are kept: they are those that would be made, whatever has changed since.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.association import answer_cache
from dicomtwist.association.answer_cache import MAX_ANSWERS, MAX_PROPOSAL_LENGTH, AnswerCache
from dicomtwist.association.negotiation import ContextAnswers, answer_contexts
from dicomtwist.presentation import SupportedContexts, build_context
from dicomtwist.settings import Settings
from dicomtwist.sop_class import CTImageStorage, MRImageStorage, Verification
from dicomtwist.ul.items import ProposedContext, RoleSelection

IMPLICIT, EXPLICIT, JPEG = str(ImplicitVRLittleEndian), str(ExplicitVRLittleEndian), str(JPEGBaseline8Bit)
CT, MR, ECHO = str(CTImageStorage), str(MRImageStorage), str(Verification)
PRIVATE = "1.2.826.0.1.9.9"
CLASSES = [CT, MR, ECHO, PRIVATE]
SYNTAXES = [IMPLICIT, EXPLICIT, JPEG]

proposals = st.lists(
    st.tuples(st.sampled_from(CLASSES), st.lists(st.sampled_from(SYNTAXES), max_size=3)), min_size=1, max_size=4
).map(lambda some: tuple(ProposedContext(2 * at + 1, uid, tuple(found)) for at, (uid, found) in enumerate(some)))
roles = st.lists(st.builds(RoleSelection, st.sampled_from(CLASSES), st.booleans(), st.booleans()), max_size=3).map(
    tuple
)


class _Acceptor:
    """The state that an answer depends on, and the changes of it."""

    def __init__(self) -> None:
        self.supported = SupportedContexts()
        self.supported.add(CT, [EXPLICIT, IMPLICIT], True, True)
        self.supported.add(ECHO, [IMPLICIT])
        self.settings = Settings()
        self.stored: dict[str, list[str]] = {}
        self.sendable: Callable[[str], list[str]] | None = lambda uid: self.stored.get(uid, [])
        self.changes: list[Callable[[], Any]] = [
            lambda: None,
            lambda: self.supported.add(MR, [JPEG], False, True),
            lambda: self.supported.add(CT, [JPEG]),
            lambda: self.supported.remove(CT, [EXPLICIT]),
            lambda: self.supported.remove(ECHO),
            lambda: self.supported.replace([build_context(CT, [IMPLICIT]), build_context(PRIVATE, [JPEG])]),
            lambda: self.each("add_transfer_syntax", JPEG),
            lambda: self.each("remove_transfer_syntax", IMPLICIT),
            lambda: self.each("__setattr__", "transfer_syntax", [JPEG, IMPLICIT]),
            self.set_roles,
            lambda: setattr(self.settings, "promiscuous", not self.settings.promiscuous),
            lambda: setattr(self.settings, "keep_compression", not self.settings.keep_compression),
            lambda: setattr(self.settings, "requestor_order", not self.settings.requestor_order),
            lambda: self.stored.setdefault(CT, []).append(JPEG),
            lambda: self.stored.setdefault(CT, []).insert(0, IMPLICIT),
            lambda: setattr(self, "sendable", None),
        ]

    def each(self, method: str, *args: object) -> None:
        """Call *method* of each supported context."""
        for context in self.supported:
            getattr(context, method)(*args)

    def set_roles(self) -> None:
        """Make the roles those of a requestor that is SCU only."""
        self.each("__setattr__", "scu_role", True)
        self.each("__setattr__", "scp_role", False)

    def answer(self, proposed: tuple[ProposedContext, ...], asked: tuple[RoleSelection, ...]) -> ContextAnswers:
        """Return the answer that is made without a cache."""
        return answer_contexts(
            proposed,
            self.supported,
            asked,
            promiscuous=self.settings.promiscuous,
            keep_compression=self.settings.keep_compression,
            requestor_order=self.settings.requestor_order,
            sendable=self.sendable,
        )


class AnswerCacheTests(SynchronousTestCase):
    """
    :ivar made: the proposals that were answered without the help of an earlier answer.
    """

    def setUp(self) -> None:
        self.made: list[object] = []
        self.acceptor = _Acceptor()
        self.cache = AnswerCache(self.acceptor.supported)

        def answer(proposed: tuple[ProposedContext, ...], *args: Any, **options: Any) -> ContextAnswers:
            self.made.append(proposed)
            return answer_contexts(proposed, *args, **options)

        self.patch(answer_cache, "answer_contexts", answer)

    def answer(self, *proposed: ProposedContext) -> ContextAnswers:
        return self.cache.answer(proposed, (), self.acceptor.settings, self.acceptor.sendable)

    @settings(deadline=None)
    @given(
        st.lists(st.tuples(proposals, roles), min_size=1, max_size=3),
        st.lists(st.tuples(st.integers(0, 15), st.integers(0, 2))),
    )
    def test_any_change(self, asked: list[Any], steps: list[tuple[int, int]]) -> None:
        """
        After any change of the contexts, settings and stored instances the answer is the one without a cache.
        """
        acceptor = _Acceptor()
        cache = AnswerCache(acceptor.supported)
        for change, number in [(0, 0), *steps]:
            acceptor.changes[change]()
            proposed, wanted = asked[number % len(asked)]
            for _ in range(2):
                answers = cache.answer(proposed, wanted, acceptor.settings, acceptor.sendable)
                expected = acceptor.answer(proposed, wanted)
                self.assertEqual(answers.contexts, expected.contexts)
                self.assertEqual(answers.roles, expected.roles)
                self.assertEqual(answers.items(), expected.items())

    def test_made_once(self) -> None:
        """
        An equal proposal gets the kept answer until something has changed.
        """
        for _ in range(3):
            self.answer(ProposedContext(1, CT, (EXPLICIT,)))
        self.assertEqual(len(self.made), 1)
        self.acceptor.supported.add(CT, [JPEG])
        for _ in range(3):
            self.answer(ProposedContext(1, CT, (EXPLICIT,)))
        self.assertEqual(len(self.made), 2)

    def test_contexts_belong_to_the_caller(self) -> None:
        """
        A handler that changes the contexts of its association changes those of no other.
        """
        offer = ProposedContext(1, CT, (EXPLICIT,))
        for _ in range(3):
            (context,) = self.answer(offer).contexts
            self.assertEqual((context.result, context.transfer_syntax), (0, [EXPLICIT]))
            context.result = 3
            context.add_transfer_syntax(JPEG)
            context.as_scp = False

    def test_bounds(self) -> None:
        """
        The latest proposals alone are kept, and no long ones.
        """
        offers = [ProposedContext(1, f"1.2.{number}", (EXPLICIT,)) for number in range(MAX_ANSWERS + 1)]
        for offer in (*offers, *offers[1:]):
            self.answer(offer)
        self.assertEqual(len(self.made), MAX_ANSWERS + 1)
        self.answer(offers[0])
        self.assertEqual(len(self.made), MAX_ANSWERS + 2)
        long = ProposedContext(1, CT, ("1." * (MAX_PROPOSAL_LENGTH // 2),))
        self.answer(long)
        self.answer(long)
        self.assertEqual(len(self.made), MAX_ANSWERS + 4)
