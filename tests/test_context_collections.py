"""The two collections of presentation contexts of an AE: the requested and the supported ones."""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.ae import AE
from dicomtwist.presentation import (
    ALL_TRANSFER_SYNTAXES,
    DEFAULT_TRANSFER_SYNTAXES,
    AllStoragePresentationContexts,
    PresentationContext,
    QueryRetrievePresentationContexts,
    RequestedContexts,
    StoragePresentationContexts,
    SupportedContexts,
    VerificationPresentationContexts,
    build_context,
    build_role,
)
from dicomtwist.sop_class import (
    CTImageStorage,
    MRImageStorage,
    Verification,
    VerificationSOPClass,
)
from dicomtwist.testing import MemoryNetwork

VERIFICATION_TEXT = """Abstract Syntax: Verification SOP Class
Transfer Syntax(es):
    =Implicit VR Little Endian
    =Explicit VR Little Endian
    =Deflated Explicit VR Little Endian
    =Explicit VR Big Endian"""

syntaxes = st.lists(st.sampled_from(ALL_TRANSFER_SYNTAXES), min_size=1, max_size=8)


def text(*names: str, abstract_syntax: str = "Verification SOP Class") -> str:
    """Return the printed form of a context with these transfer syntaxes."""
    lines = [f"Abstract Syntax: {abstract_syntax}", "Transfer Syntax(es):"]
    return "\n".join([*lines, *(f"    ={name}" for name in names)])


class RequestedTests(SynchronousTestCase):
    """The contexts that an AE requests."""

    def setUp(self) -> None:
        self.contexts = RequestedContexts()

    def test_one_by_one(self) -> None:
        """A str, a UID and a SOP Class all work, and their order is kept."""
        self.contexts.add("1.2.840.10008.1.1")
        self.contexts.add(UID("1.2.840.10008.5.1.4.1.1.4"))
        self.contexts.add(CTImageStorage)
        self.contexts.add(UID("1.2.840.10008."))
        self.flushWarnings()  # pydicom's warning about the trailing dot
        self.assertEqual(
            [context.abstract_syntax for context in self.contexts],
            [Verification, MRImageStorage, CTImageStorage, "1.2.840.10008."],
        )
        self.assertEqual(str(self.contexts.as_list()[0]), VERIFICATION_TEXT)

    def test_transfer_syntaxes(self) -> None:
        """One transfer syntax or a list; adding an abstract syntax again makes a second context."""
        self.contexts.add(VerificationSOPClass, [ImplicitVRLittleEndian, ExplicitVRBigEndian])
        self.contexts.add(VerificationSOPClass, "1.2.840.10008.1.2.1")
        self.contexts.add(VerificationSOPClass, "1.2.840.10008.1.2.1")
        self.assertEqual(len(self.contexts), 3)
        first, second, third = self.contexts.as_list()
        self.assertEqual(str(first), text("Implicit VR Little Endian", "Explicit VR Big Endian"))
        self.assertEqual(str(second), text("Explicit VR Little Endian"))
        self.assertEqual(second, third)

    def test_at_once(self) -> None:
        """Contexts can be set all at once, and others added after them."""
        self.contexts.add(MRImageStorage)
        self.contexts.replace([build_context(CTImageStorage), build_context("1.2.840.10008.1.1")])
        self.contexts.add(MRImageStorage)
        self.assertEqual(
            [context.abstract_syntax for context in self.contexts],
            [CTImageStorage, Verification, MRImageStorage],
        )
        self.contexts.replace([])
        self.assertEqual(self.contexts.as_list(), [])

    def test_limit(self) -> None:
        """The 120 common storage contexts leave room for 8 others."""
        self.contexts.replace(StoragePresentationContexts)
        for _ in range(8):
            self.contexts.add(Verification)
        self.assertEqual(len(self.contexts), 128)
        error = self.assertRaises(ValueError, self.contexts.add, Verification)
        self.assertIn("128", str(error))
        self.assertRaises(ValueError, self.contexts.extend, [build_context(Verification)])
        self.assertEqual(len(self.contexts), 128)

    def test_limit_at_once(self) -> None:
        """If there are too many at once, nothing changes."""
        self.contexts.add(Verification)
        self.assertRaises(ValueError, self.contexts.replace, AllStoragePresentationContexts)
        self.assertRaises(ValueError, self.contexts.extend, AllStoragePresentationContexts[:128])
        self.assertEqual(len(self.contexts), 1)
        self.contexts.replace(AllStoragePresentationContexts[:128])
        self.assertEqual(len(self.contexts), 128)

    def test_slice(self) -> None:
        """A slice of a prebuilt list, followed by another context."""
        self.contexts.replace(StoragePresentationContexts[:127])
        self.contexts.add(Verification)
        self.assertEqual(self.contexts.as_list()[-1].abstract_syntax, Verification)

    def test_extend(self) -> None:
        """Two prebuilt lists, one after the other."""
        self.contexts.replace(QueryRetrievePresentationContexts)
        self.contexts.extend(StoragePresentationContexts[:115])
        self.assertEqual(len(self.contexts), 128)
        self.contexts.remove("1.2.840.10008.5.1.4.1.2.1.1")
        self.assertEqual(len(self.contexts), 127)

    def test_errors(self) -> None:
        """An error names what is wrong, and leaves everything as it was."""
        value: object
        for value, error in ((None, TypeError), (12, TypeError), ("", ValueError), ("acme", ValueError)):
            self.assertRaises(error, self.contexts.add, value)
        for value, error in (
            (12, TypeError),
            ([12], TypeError),
            ([], ValueError),
            (Verification, ValueError),
        ):
            self.assertRaises(error, self.contexts.add, Verification, value)
        for contexts in (["1.2.840.10008.1.1"], [build_context(Verification), None], [PresentationContext()]):
            self.assertRaises(ValueError, self.contexts.replace, contexts)
        self.assertEqual(len(self.contexts), 0)

    def test_remove_whole(self) -> None:
        """All contexts of an abstract syntax are removed."""
        self.contexts.add("1.2.840.10008.1.1")
        self.contexts.add(CTImageStorage)
        self.contexts.add("1.2.840.10008.1.1", ImplicitVRLittleEndian)
        self.contexts.remove(VerificationSOPClass)
        self.assertEqual([context.abstract_syntax for context in self.contexts], [CTImageStorage])
        self.contexts.remove("1.2.840.10008.1.1")
        self.contexts.remove("1.2.840.10008.5.1.4.1.1.2")
        self.assertEqual(len(self.contexts), 0)

    def test_remove_transfer_syntaxes(self) -> None:
        """Only these transfer syntaxes are removed from each context; a context that has no other one is removed."""
        self.contexts.add(VerificationSOPClass, ImplicitVRLittleEndian)
        self.contexts.add(VerificationSOPClass)
        self.contexts.add(CTImageStorage, ImplicitVRLittleEndian)
        self.contexts.remove(VerificationSOPClass, ImplicitVRLittleEndian)
        self.assertEqual(len(self.contexts), 2)
        self.contexts.remove(VerificationSOPClass, [ExplicitVRLittleEndian, "1.2.840.10008.1.2.1.99", JPEGBaseline8Bit])
        self.assertEqual(str(self.contexts.as_list()[0]), text("Explicit VR Big Endian"))
        self.contexts.remove(VerificationSOPClass, JPEGBaseline8Bit)
        self.assertEqual(len(self.contexts), 2)
        self.contexts.remove(VerificationSOPClass, DEFAULT_TRANSFER_SYNTAXES)
        self.assertEqual([context.abstract_syntax for context in self.contexts], [CTImageStorage])

    def test_remove_errors(self) -> None:
        """Removing something that cannot be in the collection is an error."""
        self.assertRaises(TypeError, self.contexts.remove, None)
        self.assertRaises(ValueError, self.contexts.remove, "acme")
        self.assertRaises(TypeError, self.contexts.remove, Verification, 12)

    def test_copies(self) -> None:
        """The collection copies the contexts that it is given; its list is a copy, but contains the contexts themselves."""
        own = build_context(Verification)
        own.context_id, own.result = 3, 0
        self.contexts.replace([own])
        own.remove_transfer_syntax(ImplicitVRLittleEndian)
        self.assertEqual(str(self.contexts.as_list()[0]), VERIFICATION_TEXT)
        self.contexts.as_list().clear()
        self.contexts.as_list()[0].scp_role = True
        self.assertTrue(self.contexts.as_list()[0].scp_role)


class SupportedTests(SynchronousTestCase):
    """The contexts that an AE supports."""

    def setUp(self) -> None:
        self.contexts = SupportedContexts()

    def test_order(self) -> None:
        """They are in the order of their UIDs, in whatever order they were added."""
        self.contexts.add(UID("1.2.840.10008.5.1.4.1.1.4"))
        self.contexts.add(CTImageStorage)
        self.contexts.add("1.2.840.10008.1.1")
        self.assertEqual(
            [context.abstract_syntax for context in self.contexts],
            [Verification, CTImageStorage, MRImageStorage],
        )
        self.assertEqual(str(self.contexts.as_list()[0]), VERIFICATION_TEXT)

    def test_merge(self) -> None:
        """There is one context for each abstract syntax; its transfer syntaxes are in the order in which they were added."""
        self.contexts.add(CTImageStorage, ExplicitVRLittleEndian)
        self.contexts.add(CTImageStorage, ImplicitVRLittleEndian)
        self.assertEqual(len(self.contexts), 1)
        self.assertEqual(
            str(self.contexts.as_list()[0]),
            text("Explicit VR Little Endian", "Implicit VR Little Endian", abstract_syntax="CT Image Storage"),
        )

    @given(st.lists(syntaxes, min_size=1, max_size=4))
    def test_any_merge(self, additions: list[list[UID]]) -> None:
        """Any contexts are added in any portions, and removed again."""
        contexts = SupportedContexts()
        for addition in additions:
            contexts.add(CTImageStorage, addition)
        merged = list(dict.fromkeys(uid for addition in additions for uid in addition))
        self.assertEqual(contexts.as_list()[0].transfer_syntax, merged)
        contexts.remove(CTImageStorage, merged[1:])
        self.assertEqual([c.transfer_syntax for c in contexts], [merged[:1]])
        contexts.remove(CTImageStorage, merged)
        self.assertEqual(len(contexts), 0)

    def test_no_limit(self) -> None:
        """There is no limit, whether they are set at once or added later."""
        self.contexts.replace(AllStoragePresentationContexts)
        self.contexts.add(Verification)
        self.contexts.extend(QueryRetrievePresentationContexts)
        self.assertEqual(len(self.contexts), len(AllStoragePresentationContexts) + 14)
        uids = [str(context.abstract_syntax) for context in self.contexts]
        self.assertEqual(uids, sorted(uids))

    def test_at_once(self) -> None:
        """Setting all at once replaces the earlier contexts, and merges equal abstract syntaxes."""
        self.contexts.add(MRImageStorage)
        self.contexts.replace(
            [
                build_context(CTImageStorage, ImplicitVRLittleEndian),
                build_context("1.2.840.10008.1.1", [ImplicitVRLittleEndian, ExplicitVRBigEndian]),
                build_context(CTImageStorage, ExplicitVRBigEndian),
            ]
        )
        self.assertEqual(
            [str(context) for context in self.contexts],
            [
                text("Implicit VR Little Endian", "Explicit VR Big Endian"),
                text("Implicit VR Little Endian", "Explicit VR Big Endian", abstract_syntax="CT Image Storage"),
            ],
        )
        self.contexts.replace([])
        self.assertEqual(len(self.contexts), 0)

    def test_roles(self) -> None:
        """Roles are kept, and stay the same if only transfer syntaxes are added."""
        self.contexts.add(CTImageStorage, scu_role=False, scp_role=True)
        self.contexts.add(CTImageStorage, JPEGBaseline8Bit)
        (context,) = self.contexts
        self.assertEqual((context.scu_role, context.scp_role), (False, True))
        self.contexts.add(CTImageStorage, scu_role=True)
        self.assertEqual((context.scu_role, context.scp_role), (True, True))
        self.contexts.replace(self.contexts.as_list())
        (context,) = self.contexts
        self.assertEqual((context.scu_role, context.scp_role), (True, True))
        self.assertRaises(TypeError, self.contexts.add, CTImageStorage, scu_role="yes")
        self.assertRaises(TypeError, self.contexts.add, CTImageStorage, scp_role=1)

    def test_one_role_alone(self) -> None:
        """One role without the other is an error, and adds nothing."""
        for roles in ({"scu_role": True}, {"scp_role": True}, {"scu_role": False}, {"scp_role": False}):
            error = self.assertRaises(ValueError, self.contexts.add, CTImageStorage, **roles)
            self.assertIn("scp_role is None" if "scu_role" in roles else "scu_role is None", str(error))
        self.assertEqual(len(self.contexts), 0)
        self.contexts.add(CTImageStorage, ImplicitVRLittleEndian)
        self.assertRaises(ValueError, self.contexts.add, CTImageStorage, JPEGBaseline8Bit, scp_role=True)
        half = build_context(VerificationSOPClass)
        half.scp_role = True
        for change in (self.contexts.extend, self.contexts.replace):
            self.assertRaises(ValueError, change, [build_context(CTImageStorage, JPEGBaseline8Bit), half])
        (context,) = self.contexts
        self.assertEqual((context.transfer_syntax, context.scu_role), ([ImplicitVRLittleEndian], None))
        # Two contexts of one abstract syntax that complete each other are one.
        other = build_context(VerificationSOPClass)
        other.scu_role = False
        self.contexts.extend([half, other])
        present = self.contexts.get(VerificationSOPClass)
        assert present is not None
        self.assertEqual((present.scu_role, present.scp_role), (False, True))

    def test_one_role_set_later(self) -> None:
        """A role that is set on a context of the collection is checked when a server starts."""
        ae = AE()
        ae.add_supported_context(CTImageStorage)
        ae.supported_contexts[0].scp_role = True
        self.assertRaises(ValueError, ae.start_server, 0)
        self.assertRaises(ValueError, ae.acceptor_factory)
        self.assertRaises(ValueError, AE("OTHER").acceptor_factory, contexts=ae.supported_contexts)
        ae.supported_contexts[0].scu_role = False
        ae.acceptor_factory()

    def test_one_role_set_while_it_serves(self) -> None:
        """A running server logs that a proposal of roles is not answered, and answers the rest."""
        network = MemoryNetwork()
        ae = AE(reactor=network)
        ae.add_supported_context(CTImageStorage)
        network.result_of(ae.start_server(104))
        ae.supported_contexts[0].scp_role = True
        events: list[Any] = []
        globalLogPublisher.addObserver(cast("Any", events.append))
        self.addCleanup(globalLogPublisher.removeObserver, cast("Any", events.append))
        role = build_role(CTImageStorage, scp_role=True)
        association = network.result_of(
            ae.associate("127.0.0.1", 104, contexts=[build_context(CTImageStorage)], ext_neg=[role])
        )
        self.assertEqual(association.acceptor.role_selection, {})
        self.assertIn("scu_role is None", str([event.get("error") for event in events]))
        association.abort()
        network.result_of(ae.shutdown())

    def test_roles_afterwards(self) -> None:
        """Roles may be set on the contexts that the collection returns."""
        self.contexts.replace(QueryRetrievePresentationContexts)
        for context in self.contexts.as_list():
            context.scp_role, context.scu_role = True, False
        self.assertEqual({context.scp_role for context in self.contexts}, {True})
        self.assertEqual({context.scp_role for context in QueryRetrievePresentationContexts}, {None})

    def test_lookup(self) -> None:
        """Contexts are found by abstract syntax."""
        self.contexts.add(CTImageStorage)
        self.assertIs(self.contexts.get("1.2.840.10008.5.1.4.1.1.2"), self.contexts.as_list()[0])
        self.assertIs(self.contexts.get("1.2.3"), None)
        self.assertIn(CTImageStorage, self.contexts)
        self.assertNotIn(Verification, self.contexts)

    def test_remove(self) -> None:
        """Contexts are removed as a whole or by transfer syntax."""
        self.contexts.replace(VerificationPresentationContexts)
        self.contexts.remove(VerificationSOPClass)
        self.assertEqual(len(self.contexts), 0)
        self.contexts.remove(VerificationSOPClass)
        self.contexts.add(VerificationSOPClass, ImplicitVRLittleEndian)
        self.contexts.remove(VerificationSOPClass, ImplicitVRLittleEndian)
        self.assertEqual(len(self.contexts), 0)
        self.contexts.add(VerificationSOPClass, [*DEFAULT_TRANSFER_SYNTAXES[:2], ExplicitVRBigEndian])
        self.contexts.remove(VerificationSOPClass, [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
        self.assertEqual(str(self.contexts.as_list()[0]), text("Explicit VR Big Endian"))

    def test_errors(self) -> None:
        """After an error everything is as it was."""
        value: object
        for value, error in ((None, TypeError), (12, TypeError), ("", ValueError), ("acme", ValueError)):
            self.assertRaises(error, self.contexts.add, value)
            self.assertRaises(error, self.contexts.remove, value)
        for value, error in (
            (12, TypeError),
            ([12], TypeError),
            ([], ValueError),
            (Verification, ValueError),
        ):
            self.assertRaises(error, self.contexts.add, Verification, value)
        for contexts in (["1.2.840.10008.1.1"], [build_context(Verification), None], [PresentationContext()]):
            self.assertRaises(ValueError, self.contexts.replace, contexts)
            self.assertRaises(ValueError, self.contexts.extend, contexts)
        self.assertEqual(len(self.contexts), 0)
