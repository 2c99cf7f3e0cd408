"""
Negotiation: AE titles, presentation contexts and their results, roles, windows, extended negotiation items.
"""

from __future__ import annotations

from itertools import permutations, product

from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import UserIdentity, build_context, build_role
from dicomtwist.association import ServiceUser
from dicomtwist.association.negotiation import (
    accept_window,
    answer_contexts,
    check_request,
    merge_items,
    propose_contexts,
    resolve_answer,
)
from dicomtwist.presentation import PresentationContext, SupportedContexts, number_contexts
from dicomtwist.sop_class import (
    CTImageStorage,
    MRImageStorage,
    PatientRootQueryRetrieveInformationModelFind,
    Verification,
)
from dicomtwist.ul.ae_title import check_ae_title, is_ae_title
from dicomtwist.ul.items import (
    AnsweredContext,
    AsyncOperationsWindow,
    ProposedContext,
    RoleSelection,
    SOPClassCommonExtended,
    SOPClassExtended,
    UserInformation,
)
from dicomtwist.ul.pdu import AAssociateAC, AAssociateRQ

IMPLICIT, EXPLICIT = str(ImplicitVRLittleEndian), str(ExplicitVRLittleEndian)
CT, MR = str(CTImageStorage), str(MRImageStorage)


class TitleTests(SynchronousTestCase):
    """
    AE titles (PS3.5 6.2, VR AE).
    """

    def test_taken(self) -> None:
        """
        1 to 16 characters of ASCII; the spaces around them do not count; bytes are taken too.
        """
        for value, title in (
            ("A", "A"),
            ("ABCDEFGHIJKLMNOP", "ABCDEFGHIJKLMNOP"),
            ("  ABCDEFGHIJKLMNOP  ", "ABCDEFGHIJKLMNOP"),
            (" A B ", "A B"),
            (b"PACS            ", "PACS"),
            ("~!/", "~!/"),
        ):
            self.assertEqual(check_ae_title(value), title)
            self.assertTrue(is_ae_title(title))

    def test_refused(self) -> None:
        """
        Empty, all spaces, too long, backslash, control characters, what is not ASCII: each error names the value and what
        it was for.
        """
        values: tuple[str | bytes, ...] = (
            "",
            " ",
            " " * 16,
            b"    ",
            "A" * 17,
            "A\\B",
            "A\nB",
            "\tA",
            "A\0",
            "A\x7f",
            "Ä",
        )
        for value in (*values, b"A\\B", b"\xc4"):
            error = self.assertRaises(ValueError, check_ae_title, value, "the title")
            self.assertTrue(str(error).startswith("the title "), str(error))
            self.assertFalse(is_ae_title(value.decode("latin-1") if isinstance(value, bytes) else value))

    def test_types(self) -> None:
        """
        Anything else is a TypeError.
        """
        for value in (None, 3, ["A"]):
            self.assertRaises(TypeError, check_ae_title, value)

    @given(st.text())
    def test_any_text(self, text: str) -> None:
        """
        An accepted title has the form of the standard, and is accepted again unchanged.
        """
        try:
            title = check_ae_title(text)
        except ValueError:
            return
        self.assertTrue(1 <= len(title) <= 16 and title == title.strip(" ") and title.isascii() and title.isprintable())
        self.assertNotIn("\\", title)
        self.assertEqual(check_ae_title(title), title)
        self.assertEqual(title, text.strip(" "))


class ContextTests(SynchronousTestCase):
    """
    The acceptor's answer to presentation contexts (PS3.8 9.3.3.2).
    """

    def setUp(self) -> None:
        self.supported = SupportedContexts()
        self.supported.add(CTImageStorage, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])

    def answer(
        self, *proposed: ProposedContext, promiscuous: bool = False
    ) -> list[tuple[int | None, int | None, list[str]]]:
        answers = answer_contexts(proposed, self.supported, promiscuous=promiscuous)
        items = answers.items()
        self.assertEqual(
            [(item.context_id, item.result) for item in items], [(c.context_id, c.result) for c in answers.contexts]
        )
        return [(c.context_id, c.result, [str(uid) for uid in c.transfer_syntax]) for c in answers.contexts]

    def test_accepted(self) -> None:
        """
        Result 0: the first supported transfer syntax that is proposed, in the acceptor's order.
        """
        for proposed, taken in (
            ((IMPLICIT,), IMPLICIT),
            ((IMPLICIT, EXPLICIT), EXPLICIT),
            ((EXPLICIT, IMPLICIT), EXPLICIT),
            ((str(JPEGBaseline8Bit), EXPLICIT), EXPLICIT),
        ):
            self.assertEqual(self.answer(ProposedContext(1, CT, proposed)), [(1, 0, [taken])])

    def test_abstract_syntax(self) -> None:
        """
        Result 3: the abstract syntax is not supported, well-formed or not.
        """
        for uid in (MR, "1.2.3.4", "not a uid", "1..2"):
            self.assertEqual(self.answer(ProposedContext(1, uid, (IMPLICIT,))), [(1, 3, [IMPLICIT])])

    def test_transfer_syntaxes(self) -> None:
        """
        Result 4: none of the transfer syntaxes is supported, or none was proposed.
        """
        jpeg = str(JPEGBaseline8Bit)
        self.assertEqual(self.answer(ProposedContext(1, CT, (jpeg,))), [(1, 4, [jpeg])])
        self.assertEqual(self.answer(ProposedContext(1, CT, ())), [(1, 4, [])])

    def test_each_is_answered(self) -> None:
        """
        Each proposed context is answered, in order, with its own ID; the same abstract syntax may come again.
        """
        proposed = (
            ProposedContext(255, CT, (IMPLICIT,)),
            ProposedContext(1, MR, (IMPLICIT,)),
            ProposedContext(3, CT, (EXPLICIT,)),
            ProposedContext(5, CT, (str(ExplicitVRBigEndian),)),
        )
        self.assertEqual([each[:2] for each in self.answer(*proposed)], [(255, 0), (1, 3), (3, 0), (5, 4)])
        accepted = answer_contexts(proposed, self.supported).accepted
        self.assertEqual(sorted(accepted), [3, 255])

    def test_default_roles(self) -> None:
        """
        Without role selection the requestor is SCU and we are SCP.
        """
        (context,) = answer_contexts([ProposedContext(1, CT, (IMPLICIT,))], self.supported).contexts
        self.assertEqual(
            (context.as_scu, context.as_scp, context.scu_role, context.scp_role), (False, True, None, None)
        )

    def test_promiscuous(self) -> None:
        """
        Every storage SOP Class and every unknown one is accepted in the first transfer syntax that is proposed; of other
        service classes what is supported; what is supported prefers its own transfer syntaxes.
        """
        jpeg = str(JPEGBaseline8Bit)
        proposed = (
            ProposedContext(1, MR, (jpeg, IMPLICIT)),
            ProposedContext(3, "1.2.3.4", (IMPLICIT,)),
            ProposedContext(5, str(PatientRootQueryRetrieveInformationModelFind), (IMPLICIT,)),
            ProposedContext(7, CT, (jpeg, IMPLICIT)),
            ProposedContext(9, MR, ()),
            ProposedContext(11, str(Verification), (IMPLICIT,)),
        )
        self.assertEqual(
            [(each[0], each[1]) for each in self.answer(*proposed, promiscuous=True)],
            [(1, 0), (3, 0), (5, 3), (7, 0), (9, 4), (11, 3)],
        )
        self.assertEqual(self.answer(proposed[0], promiscuous=True), [(1, 0, [jpeg])])
        self.assertEqual(self.answer(proposed[3], promiscuous=True), [(7, 0, [IMPLICIT])])
        self.assertEqual(self.answer(ProposedContext(1, CT, (jpeg,)), promiscuous=True), [(1, 0, [jpeg])])
        self.assertEqual(self.answer(ProposedContext(1, CT, (jpeg,))), [(1, 4, [jpeg])])
        for uid in (MR, "1.2.3.4"):
            either = ProposedContext(1, uid, (IMPLICIT, jpeg, EXPLICIT))
            self.assertEqual(self.answer(either, promiscuous=True), [(1, 0, [EXPLICIT])])

    def test_own_order(self) -> None:
        """
        The supported context's order decides for any order of the proposal, of any transfer syntaxes.
        """
        jpeg, big = str(JPEGBaseline8Bit), str(ExplicitVRBigEndian)
        for own in permutations((IMPLICIT, EXPLICIT, big, jpeg)):
            supported = SupportedContexts()
            supported.add(MRImageStorage, own)
            for proposed in permutations((jpeg, EXPLICIT, IMPLICIT, "1.2.3")):
                (context,) = answer_contexts([ProposedContext(1, MR, proposed)], supported).contexts
                self.assertEqual(context.transfer_syntax, [next(uid for uid in own if uid != big)])

    def test_requestor_order(self) -> None:
        """
        If asked to, the acceptor takes the first supported transfer syntax in the requestor's order.
        """
        for proposed in permutations((IMPLICIT, EXPLICIT, "1.2.3")):
            offer = [ProposedContext(1, CT, proposed)]
            (context,) = answer_contexts(offer, self.supported, requestor_order=True).contexts
            self.assertEqual(context.transfer_syntax, [next(uid for uid in proposed if uid != "1.2.3")])
            (context,) = answer_contexts(offer, self.supported, requestor_order=True, promiscuous=True).contexts
            self.assertEqual(context.transfer_syntax, [proposed[0]])

    def test_compression_is_kept(self) -> None:
        """
        If asked to, the acceptor takes a compressed transfer syntax that comes first in the proposal, if it is supported.
        """
        jpeg, deflated = str(JPEGBaseline8Bit), str(DeflatedExplicitVRLittleEndian)
        self.supported.add(CTImageStorage, [jpeg, deflated])
        for proposed, taken in (
            ((jpeg, EXPLICIT), jpeg),
            ((IMPLICIT, jpeg, EXPLICIT), EXPLICIT),
            ((deflated, IMPLICIT), IMPLICIT),
            (("1.2.3", jpeg, IMPLICIT), IMPLICIT),
        ):
            offer = [ProposedContext(1, CT, proposed)]
            (context,) = answer_contexts(offer, self.supported, keep_compression=True).contexts
            self.assertEqual(context.transfer_syntax, [taken], proposed)

    def test_sendable(self) -> None:
        """
        For a requestor that is SCP only, the transfer syntaxes of the instances to send take precedence; for any other the
        own order decides. One that is not supported, or not proposed, is never accepted.
        """
        jpeg = str(JPEGBaseline8Bit)
        stored = {CT: [jpeg, IMPLICIT]}
        offer = [ProposedContext(1, CT, (EXPLICIT, IMPLICIT))]
        for role, taken in (
            ((False, True), IMPLICIT),
            ((True, True), EXPLICIT),
            ((True, False), EXPLICIT),
            (None, EXPLICIT),
        ):
            roles = [] if role is None else [build_role(CTImageStorage, *role)]
            answers = answer_contexts(offer, self.supported, roles, sendable=lambda uid: stored.get(uid, ()))
            self.assertEqual(answers.contexts[0].transfer_syntax, [taken], role)
        offer = [ProposedContext(1, CT, (EXPLICIT, jpeg))]
        answers = answer_contexts(
            offer, self.supported, [build_role(CTImageStorage, scp_role=True)], sendable=lambda uid: [jpeg]
        )
        self.assertEqual(answers.contexts[0].transfer_syntax, [EXPLICIT])

    def test_sendable_and_compressed(self) -> None:
        """
        A compressed transfer syntax that is proposed first is accepted for sending only if instances are stored in it, or if
        that is not known.
        """
        jpeg = str(JPEGBaseline8Bit)
        self.supported.add(CTImageStorage, jpeg)
        role = [build_role(CTImageStorage, scp_role=True)]
        for offered, stored, taken in (
            ((jpeg, EXPLICIT), [EXPLICIT, jpeg], jpeg),
            ((jpeg, EXPLICIT), [EXPLICIT], EXPLICIT),
            ((jpeg, EXPLICIT), [], jpeg),
            ((EXPLICIT, jpeg), [jpeg], jpeg),
            ((EXPLICIT, jpeg), [], EXPLICIT),
        ):
            answers = answer_contexts(
                [ProposedContext(1, CT, offered)],
                self.supported,
                role,
                keep_compression=True,
                sendable=lambda uid, found=stored: found,  # type: ignore[misc]
            )
            self.assertEqual(answers.contexts[0].transfer_syntax, [taken], (offered, stored))

    def test_promiscuous_roles(self) -> None:
        """
        A promiscuous acceptor answers the roles of retired, private and unknown storage classes; no others.
        """
        retired = "1.2.840.10008.5.1.4.1.1.6"  # Ultrasound Image Storage (Retired)
        find = str(PatientRootQueryRetrieveInformationModelFind)
        for uid in (retired, "1.2.840.113619.4.27", "1.2.3.4", MR, find):
            for scu, scp in ((False, True), (True, True), (True, False)):
                role = RoleSelection(uid, scu, scp)
                offer = [ProposedContext(1, uid, (IMPLICIT, EXPLICIT))]
                answers = answer_contexts(offer, self.supported, [role], promiscuous=True)
                self.assertEqual(answers.roles, [role] if uid != find else [])
                if uid != find:
                    (context,) = answers.contexts
                    self.assertEqual((context.as_scp, context.as_scu), (scu, scp))
                self.assertEqual(answer_contexts(offer, self.supported, [role]).roles, [])


BOTH = (False, True)
ANY = (None, False, True)


class RoleTests(SynchronousTestCase):
    """
    Role selection (PS3.7 D.3.3.4): every combination of what is proposed and what is supported.
    """

    def negotiate(
        self, proposed: tuple[bool, bool] | None, own: tuple[bool | None, bool | None]
    ) -> tuple[PresentationContext, PresentationContext, list[RoleSelection]]:
        """The acceptor's context, the requestor's, and the items of the answer."""
        supported = SupportedContexts()
        supported.add(CTImageStorage, IMPLICIT)
        (context,) = supported.as_list()
        context.scu_role, context.scp_role = own  # one alone is refused by add()
        roles = [] if proposed is None else [build_role(CTImageStorage, *proposed)]
        requested = number_contexts([build_context(CTImageStorage, IMPLICIT)])
        answers = answer_contexts(propose_contexts(requested), supported, roles)
        information = UserInformation(roles=tuple(answers.roles))
        answer = AAssociateAC("A", "B", answers.items(), information)
        (context,) = resolve_answer(requested, {role.sop_class_uid: role for role in roles}, answer)
        return answers.contexts[0], context, answers.roles

    def test_all(self) -> None:
        """
        Both sides always come to the same roles, and one of the four outcomes holds: rejected; default; reversed; both.
        """
        outcomes = set()
        for proposed, own in product([None, *product(BOTH, BOTH)], product(ANY, ANY)):
            acceptor, requestor, items = self.negotiate(proposed, own)
            what = f"{proposed} to {own}"
            answered = proposed is not None and None not in own
            self.assertEqual(acceptor.result, requestor.result, what)
            if not answered:
                # No item in the answer: the default roles.
                expected = (0, True, False)
                self.assertEqual(items, [], what)
            else:
                assert proposed is not None
                scu, scp = proposed[0] and bool(own[0]), proposed[1] and bool(own[1])
                expected = (0, scu, scp) if scu or scp else (1, False, False)
                self.assertEqual(items, [RoleSelection(CT, scu, scp)] if scu or scp else [], what)
            result, as_scu, as_scp = expected
            self.assertEqual(acceptor.result, result, what)
            if result == 0:
                self.assertEqual((requestor.as_scu, requestor.as_scp), (as_scu, as_scp), what)
                self.assertEqual((acceptor.as_scp, acceptor.as_scu), (as_scu, as_scp), what)
            else:
                self.assertEqual((acceptor.as_scp, acceptor.as_scu), (False, False), what)
            outcomes.add(expected)
        self.assertEqual(outcomes, {(1, False, False), (0, True, False), (0, False, True), (0, True, True)})

    def test_granted_more_than_proposed(self) -> None:
        """
        An acceptor that grants a role that was not proposed does not give it.
        """
        requested = number_contexts([build_context(CTImageStorage, IMPLICIT)])
        role = build_role(CTImageStorage, scu_role=True)
        granted = UserInformation(roles=(RoleSelection(CT, True, True), RoleSelection(MR, True, True)))
        answer = AAssociateAC("A", "B", (AnsweredContext(1, 0, IMPLICIT),), granted)
        (context,) = resolve_answer(requested, {CT: role}, answer)
        self.assertEqual((context.as_scu, context.as_scp), (True, False))
        requested = number_contexts([build_context(CTImageStorage, IMPLICIT)])
        (context,) = resolve_answer(requested, {}, answer)
        self.assertEqual((context.as_scu, context.as_scp), (True, False))

    def test_one_item_for_a_sop_class(self) -> None:
        """
        Two contexts of one SOP Class have one role selection item, also where only one of them is accepted.
        """
        supported = SupportedContexts()
        supported.add(CTImageStorage, IMPLICIT, True, True)
        for syntaxes in ((IMPLICIT, IMPLICIT), (IMPLICIT, EXPLICIT), (EXPLICIT, IMPLICIT)):
            proposed = [ProposedContext(2 * i + 1, CT, (uid,)) for i, uid in enumerate(syntaxes)]
            answers = answer_contexts(proposed, supported, [build_role(CTImageStorage, scp_role=True)])
            self.assertEqual(answers.roles, [RoleSelection(CT, False, True)])

    @given(
        st.lists(
            st.tuples(st.sampled_from([CT, MR, "1.2.3"]), st.lists(st.sampled_from([IMPLICIT, EXPLICIT]), max_size=2)),
            max_size=5,
        ),
        st.lists(
            st.builds(RoleSelection, st.sampled_from([CT, MR, "1.2.3"]), st.booleans(), st.booleans()), max_size=4
        ),
        st.lists(
            st.tuples(
                st.sampled_from([CT, MR]),
                st.sampled_from([IMPLICIT, EXPLICIT]),
                st.none() | st.booleans(),
                st.none() | st.booleans(),
            ),
            max_size=3,
        ),
        st.booleans(),
    )
    def test_never_more_than_proposed(
        self,
        offers: list[tuple[str, list[str]]],
        roles: list[RoleSelection],
        own: list[tuple[str, str, bool | None, bool | None]],
        promiscuous: bool,
    ) -> None:
        """
        Nothing is granted that was not proposed: no context, no transfer syntax, no role.
        """
        supported = SupportedContexts()
        for each in own:
            supported.add(*each[:2])
        for each in own:
            context = supported.get(each[0])
            assert context is not None
            context.scu_role, context.scp_role = each[2:]
        proposed = [ProposedContext(2 * i + 1, uid, tuple(syntaxes)) for i, (uid, syntaxes) in enumerate(offers)]
        answers = answer_contexts(proposed, supported, roles, promiscuous=promiscuous)
        self.assertEqual([c.context_id for c in answers.contexts], [c.context_id for c in proposed])
        for offer, item in zip(proposed, answers.items(), strict=True):
            self.assertIn(item.result, (0, 1, 3, 4))
            if item.result == 0:
                self.assertIn(item.transfer_syntax, offer.transfer_syntaxes)
        last = {role.sop_class_uid: role for role in roles}
        for role in answers.roles:
            wanted = last[role.sop_class_uid]
            self.assertFalse(role.scu_role and not wanted.scu_role)
            self.assertFalse(role.scp_role and not wanted.scp_role)
            self.assertTrue(role.scu_role or role.scp_role)
        for context in answers.contexts:
            if context.result != 0:
                self.assertNotIn(True, (context.as_scu, context.as_scp) if context.result == 1 else ())


class RequestTests(SynchronousTestCase):
    """
    The reasons to reject a request before the negotiation of contexts (PS3.8 9.3.4).
    """

    def rejection(self, request: AAssociateRQ, **kwargs: list[str]) -> tuple[int, int, int] | None:
        answer = check_request(request, **kwargs)
        return None if answer is None else (answer.result, answer.source, answer.reason)

    def test_accepted(self) -> None:
        """
        Without conditions any pair of titles is let in; with them those that are named.
        """
        request = AAssociateRQ("PACS", "CT1")
        self.assertIsNone(self.rejection(request))
        self.assertIsNone(self.rejection(request, called=["A", "PACS"], calling=["CT1", "B"]))

    def test_application_context(self) -> None:
        """
        (1, 1, 2): another application context.
        """
        request = AAssociateRQ("PACS", "CT1", application_context_name="1.2.3")
        self.assertEqual(self.rejection(request), (1, 1, 2))

    def test_called(self) -> None:
        """
        (1, 1, 7): a called title that is not served, or is none. Case counts.
        """
        self.assertEqual(self.rejection(AAssociateRQ("PACS", "CT1"), called=["OTHER"]), (1, 1, 7))
        self.assertEqual(self.rejection(AAssociateRQ("PACS", "CT1"), called=["pacs"]), (1, 1, 7))
        self.assertEqual(self.rejection(AAssociateRQ("", "CT1")), (1, 1, 7))
        self.assertEqual(self.rejection(AAssociateRQ("A\\B", "CT1")), (1, 1, 7))

    def test_calling(self) -> None:
        """
        (1, 1, 3): a calling title that is not let in, or is none.
        """
        self.assertEqual(self.rejection(AAssociateRQ("PACS", "CT1"), calling=["CT2"]), (1, 1, 3))
        self.assertEqual(self.rejection(AAssociateRQ("PACS", "")), (1, 1, 3))
        self.assertEqual(self.rejection(AAssociateRQ("PACS", "A\x01")), (1, 1, 3))


class WindowTests(SynchronousTestCase):
    """
    The asynchronous operations window (PS3.7 D.3.3.3).
    """

    def test_examples(self) -> None:
        """
        (proposed, ready for, cap) and what comes out; 0 is any number.
        """
        for proposed, ready, cap, expected in (
            ((5, 1), (10, 10), 64, (5, 1)),
            ((5, 8), (3, 2), 64, (3, 2)),
            ((0, 0), (0, 0), 64, (64, 0)),
            ((0, 0), (7, 7), 64, (7, 7)),
            ((8, 8), (0, 0), 64, (8, 8)),
            ((100, 100), (0, 0), 64, (64, 100)),
            ((0, 0), (500, 1), 64, (64, 1)),
            ((1, 1), (1, 1), 1, (1, 1)),
        ):
            answer = accept_window(AsyncOperationsWindow(*proposed), ready, cap)
            self.assertEqual((answer.invoked, answer.performed), expected, (proposed, ready, cap))

    @given(st.tuples(*[st.integers(0, 65535)] * 4), st.integers(1, 65535))
    def test_never_more(self, numbers: tuple[int, int, int, int], cap: int) -> None:
        """
        Neither number is above what was proposed, above what we are ready for, and the one that we have to perform is
        never without limit and never above the cap.
        """

        def above(number: int, limit: int) -> bool:
            return limit != 0 and (number == 0 or number > limit)

        proposed, ready = AsyncOperationsWindow(*numbers[:2]), numbers[2:]
        answer = accept_window(proposed, ready, cap)
        self.assertFalse(above(answer.invoked, proposed.invoked) or above(answer.performed, proposed.performed))
        self.assertFalse(above(answer.invoked, ready[0]) or above(answer.performed, ready[1]))
        self.assertTrue(1 <= answer.invoked <= cap)


class AnswerTests(SynchronousTestCase):
    """
    The results of the requested contexts, from the acceptor's answer.
    """

    def resolve(self, *answered: AnsweredContext) -> list[PresentationContext]:
        requested = number_contexts(
            [build_context(CTImageStorage, [IMPLICIT, EXPLICIT]), build_context(MRImageStorage, IMPLICIT)]
        )
        return resolve_answer(requested, {}, AAssociateAC("A", "B", answered))

    def test_results(self) -> None:
        """
        Each of the five results is taken over; with 0 the one transfer syntax is left.
        """
        for result in range(1, 5):
            first, second = self.resolve(AnsweredContext(1, 0, EXPLICIT), AnsweredContext(3, result, IMPLICIT))
            self.assertEqual((first.result, first.transfer_syntax, second.result), (0, [EXPLICIT], result))
            self.assertEqual((first.as_scu, first.as_scp, second.as_scu), (True, False, None))

    def test_a_proposal_from_files(self) -> None:
        """
        A transfer syntax is accepted as it was proposed, also a UID that identifies something else or is malformed.
        """
        for syntax in (str(CTImageStorage), "1.2.3", "abc/../d", "1.2.840.10008.1.1"):
            requested = [PresentationContext.received(1, CTImageStorage, [syntax])]
            answer = AAssociateAC("A", "B", (AnsweredContext(1, 0, syntax),))
            (context,) = resolve_answer(requested, {}, answer)
            self.assertEqual((context.result, context.transfer_syntax), (0, [syntax]))

    def test_missing(self) -> None:
        """
        Result 2 for a context that is not in the answer.
        """
        self.assertEqual([context.result for context in self.resolve(AnsweredContext(3, 0, IMPLICIT))], [2, 0])
        self.assertEqual([context.result for context in self.resolve()], [2, 2])

    def test_not_proposed(self) -> None:
        """
        Result 2 where a transfer syntax is accepted that was not proposed, or the result is none; an answer to a context
        that was not proposed is passed over.
        """
        contexts = self.resolve(
            AnsweredContext(1, 0, str(DeflatedExplicitVRLittleEndian)),
            AnsweredContext(3, 9),
            AnsweredContext(5, 0, IMPLICIT),
        )
        self.assertEqual([context.result for context in contexts], [2, 2])


class ItemTests(SynchronousTestCase):
    """
    The list of extended negotiation items that ``associate`` takes.
    """

    def test_all(self) -> None:
        """
        Each kind goes to its place.
        """
        window, identity = AsyncOperationsWindow(5, 6), UserIdentity(1, b"me")
        role = build_role(CTImageStorage, scp_role=True)
        extended, common = SOPClassExtended(CT, b"\1"), SOPClassCommonExtended(MR, "1.2")
        merged = merge_items([identity, extended, role, common, window])
        self.assertEqual(
            merged,
            UserInformation(
                async_operations=window,
                roles=(role,),
                sop_class_extended=(extended,),
                sop_class_common_extended=(common,),
                user_identity=identity,
            ),
        )
        self.assertEqual(merge_items([]), UserInformation())

    def test_errors(self) -> None:
        """
        An object that is not an item is a TypeError; a second window or identity is a ValueError.
        """
        self.assertIn("build_role", str(self.assertRaises(TypeError, merge_items, ["item"])))
        for item in (AsyncOperationsWindow(), UserIdentity(1, b"me")):
            error = self.assertRaises(ValueError, merge_items, [item, item])
            self.assertIn("once only", str(error))

    def test_last_role_counts(self) -> None:
        """
        Of two roles for one SOP Class the later holds.
        """
        merged = merge_items([build_role(CTImageStorage, True), build_role(CTImageStorage, False, True)])
        self.assertEqual(merged.roles, (RoleSelection(CT, False, True),))

    def test_service_user(self) -> None:
        """
        A ServiceUser has the items that its side sent; the others have their default values.
        """
        user = ServiceUser()
        user.learn(UserInformation())
        self.assertEqual((user.maximum_length, user.implementation_class_uid, user.user_identity), (0, "", None))
        extended, common = SOPClassExtended(CT, b"\1"), SOPClassCommonExtended(MR, "1.2")
        user.learn(
            UserInformation(
                maximum_length=4096,
                implementation_class_uid="1.2.3",
                implementation_version_name="V",
                roles=(RoleSelection(CT, True),),
                sop_class_extended=(extended,),
                sop_class_common_extended=(common,),
                user_identity_response=b"ticket",
            )
        )
        self.assertEqual(
            (user.maximum_length, user.implementation_class_uid, user.implementation_version_name),
            (4096, "1.2.3", "V"),
        )
        self.assertEqual(user.role_selection, {CT: RoleSelection(CT, True)})
        self.assertEqual((user.sop_class_extended, user.sop_class_common_extended), ({CT: b"\1"}, {MR: common}))
        self.assertEqual(user.user_identity, b"ticket")

    def test_secrets(self) -> None:
        """
        Neither form of an identity shows in what is printed.
        """
        identity = UserIdentity(2, b"somebody", b"passcode")
        shown = repr([identity, UserInformation(user_identity=identity, user_identity_response=b"ticket")])
        for secret in ("somebody", "passcode", "ticket"):
            self.assertNotIn(secret, shown)
        user = ServiceUser()
        user.learn(UserInformation(user_identity=identity))
        self.assertNotIn("passcode", repr(user))
        user.learn(UserInformation(user_identity_response=b"ticket"))
        self.assertNotIn("ticket", repr(user))
