"""Presentation contexts: how they are made and printed, their IDs, the prebuilt lists."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import presentation
from dicomtwist.presentation import (
    ALL_TRANSFER_SYNTAXES,
    DEFAULT_TRANSFER_SYNTAXES,
    STORAGE_TRANSFER_SYNTAXES,
    AllStoragePresentationContexts,
    PresentationContext,
    PresentationContextTuple,
    QueryRetrievePresentationContexts,
    StoragePresentationContexts,
    VerificationPresentationContexts,
    build_context,
    build_contexts,
    build_role,
    number_contexts,
)
from dicomtwist.sop_class import (
    CTImageStorage,
    ServiceClass,
    Verification,
)
from dicomtwist.ul.items import RoleSelection

VERIFICATION_TEXT = """Abstract Syntax: Verification SOP Class
Transfer Syntax(es):
    =Implicit VR Little Endian
    =Explicit VR Little Endian
    =Deflated Explicit VR Little Endian
    =Explicit VR Big Endian"""

# The names and sizes of pynetdicom 3.0.4, and the two service classes for which it has no list.
SIZES = {
    "AllStoragePresentationContexts": 170,
    "ApplicationEventLoggingPresentationContexts": 2,
    "BasicWorklistManagementPresentationContexts": 1,
    "ColorPalettePresentationContexts": 3,
    "DefinedProcedureProtocolPresentationContexts": 3,
    "DisplaySystemPresentationContexts": 1,
    "HangingProtocolPresentationContexts": 3,
    "ImplantTemplatePresentationContexts": 9,
    "InstanceAvailabilityPresentationContexts": 1,
    "InventoryPresentationContexts": 3,
    "MediaCreationManagementPresentationContexts": 1,
    "MediaStoragePresentationContexts": 1,
    "ModalityPerformedPresentationContexts": 3,
    "NonPatientObjectPresentationContexts": 9,
    "PrintManagementPresentationContexts": 11,
    "ProcedureStepPresentationContexts": 3,
    "ProtocolApprovalPresentationContexts": 3,
    "QueryRetrievePresentationContexts": 13,
    "RTMachineVerificationPresentationContexts": 2,
    "RelevantPatientInformationPresentationContexts": 3,
    "StorageCommitmentPresentationContexts": 1,
    "StorageManagementPresentationContexts": 1,
    "StoragePresentationContexts": 120,
    "SubstanceAdministrationPresentationContexts": 2,
    "UnifiedProcedurePresentationContexts": 5,
    "VerificationPresentationContexts": 1,
}

syntaxes = st.lists(st.sampled_from(ALL_TRANSFER_SYNTAXES), min_size=1, max_size=8)


def text(*names: str, abstract_syntax: str = "Verification SOP Class") -> str:
    """Return the printed form of a context with these transfer syntaxes."""
    lines = [f"Abstract Syntax: {abstract_syntax}", "Transfer Syntax(es):"]
    return "\n".join([*lines, *(f"    ={name}" for name in names)])


class TransferSyntaxTests(SynchronousTestCase):
    """The lists of transfer syntaxes."""

    def test_default(self) -> None:
        """The four default transfer syntaxes, in their order."""
        self.assertEqual(
            DEFAULT_TRANSFER_SYNTAXES,
            (
                ImplicitVRLittleEndian,
                ExplicitVRLittleEndian,
                DeflatedExplicitVRLittleEndian,
                ExplicitVRBigEndian,
            ),
        )

    def test_all(self) -> None:
        """All entries are transfer syntaxes, each once, with the default ones first."""
        self.assertEqual(ALL_TRANSFER_SYNTAXES[:4], DEFAULT_TRANSFER_SYNTAXES)
        self.assertGreaterEqual(len(ALL_TRANSFER_SYNTAXES), 46)
        self.assertEqual(len(set(ALL_TRANSFER_SYNTAXES)), len(ALL_TRANSFER_SYNTAXES))
        self.assertTrue(all(uid.is_transfer_syntax for uid in ALL_TRANSFER_SYNTAXES))
        for suffix in ("1.98", "4.50", "4.91", "4.112", "4.205", "5", "7.3", "8.1"):
            self.assertIn(f"1.2.840.10008.1.2.{suffix}", ALL_TRANSFER_SYNTAXES)

    def test_for_storage(self) -> None:
        """A server that keeps images supports all of them, and prefers the explicit one."""
        self.assertEqual(STORAGE_TRANSFER_SYNTAXES[0], ExplicitVRLittleEndian)
        self.assertEqual(sorted(STORAGE_TRANSFER_SYNTAXES), sorted(ALL_TRANSFER_SYNTAXES))


class ContextTests(SynchronousTestCase):
    """A single context."""

    def test_empty(self) -> None:
        """A new context is empty."""
        context = PresentationContext()
        self.assertIs(context.abstract_syntax, None)
        self.assertEqual(context.transfer_syntax, [])
        for name in ("context_id", "result", "scu_role", "scp_role", "as_scu", "as_scp"):
            self.assertIs(getattr(context, name), None)
        self.assertEqual(str(context), "Transfer Syntax(es):")
        self.assertIn("None", repr(context))

    def test_abstract_syntax(self) -> None:
        """The abstract syntax may be given in several forms, and the context always stores the same form."""
        context = PresentationContext()
        for value in ("1.2.840.10008.1.1", UID("1.2.840.10008.1.1"), Verification, b"1.2.840.10008.1.1\0"):
            context.abstract_syntax = value
            self.assertEqual(context.abstract_syntax, Verification)
            assert context.abstract_syntax is not None
            self.assertIs(context.abstract_syntax.service_class, ServiceClass.VERIFICATION)
        for wrong, error in (
            (12, TypeError),
            ("", ValueError),
            ("1.2.x", ValueError),
            ("1." * 33, ValueError),
        ):
            self.assertRaises(error, setattr, context, "abstract_syntax", wrong)
        self.assertEqual(context.abstract_syntax, Verification)

    def test_transfer_syntax(self) -> None:
        """The order is kept; repetitions are dropped."""
        context = PresentationContext()
        context.transfer_syntax = ["1.2.840.10008.1.2.1", b"1.2.840.10008.1.2", ExplicitVRLittleEndian]
        self.assertEqual(context.transfer_syntax, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        self.assertTrue(all(isinstance(uid, UID) for uid in context.transfer_syntax))
        context.transfer_syntax = ExplicitVRBigEndian
        self.assertEqual(context.transfer_syntax, [ExplicitVRBigEndian])
        context.add_transfer_syntax("1.2.840.10008.1.2")
        context.add_transfer_syntax(ExplicitVRBigEndian)
        self.assertEqual(context.transfer_syntax, [ExplicitVRBigEndian, ImplicitVRLittleEndian])
        context.remove_transfer_syntax("1.2.840.10008.1.2.2")
        context.remove_transfer_syntax("1.2.840.10008.1.2.2")
        self.assertEqual(context.transfer_syntax, [ImplicitVRLittleEndian])

    def test_transfer_syntax_is_a_copy(self) -> None:
        """Changing the returned list does not change the context."""
        context = build_context(Verification)
        context.transfer_syntax.clear()
        self.assertEqual(len(context.transfer_syntax), 4)

    def test_transfer_syntax_errors(self) -> None:
        """Other types, and UIDs that are not transfer syntaxes, are refused, and the context stays as it was."""
        context = build_context(Verification, ImplicitVRLittleEndian)
        for wrong, error in (
            (None, TypeError),
            (12, TypeError),
            (["1.2.840.10008.1.2"], TypeError),
            ("", ValueError),
            ("implicit", ValueError),
            (Verification, ValueError),
        ):
            self.assertRaises(error, context.add_transfer_syntax, wrong)
            self.assertRaises(error, context.remove_transfer_syntax, wrong)
        self.assertRaises(TypeError, setattr, context, "transfer_syntax", 12)
        self.assertRaises(TypeError, setattr, context, "transfer_syntax", ["1.2.840.10008.1.2.1", 12])
        self.assertEqual(context.transfer_syntax, [ImplicitVRLittleEndian])
        error_text = str(self.assertRaises(ValueError, context.add_transfer_syntax, Verification))
        self.assertIn("Verification SOP Class", error_text)

    def test_private_transfer_syntax(self) -> None:
        """A private transfer syntax is accepted, and keeps the encoding that was set for it."""
        private = UID("1.2.3.4")
        private.set_private_encoding(False, True)
        self.assertFalse(build_context(Verification, private).transfer_syntax[0].is_implicit_VR)

    @given(syntaxes, syntaxes)
    def test_order(self, first: list[UID], second: list[UID]) -> None:
        """Adding is a union that keeps the order; removing undoes it."""
        context = build_context(CTImageStorage, first)
        for uid in second:
            context.add_transfer_syntax(uid)
        self.assertEqual(context.transfer_syntax, list(dict.fromkeys(first + second)))
        for uid in second:
            context.remove_transfer_syntax(uid)
        self.assertEqual(context.transfer_syntax, [u for u in dict.fromkeys(first) if u not in second])

    @given(st.integers(-300, 600))
    def test_context_id(self, value: int) -> None:
        """IDs are odd and from 1 to 255."""
        context = PresentationContext()
        if value in range(1, 256, 2):
            context.context_id = value
            self.assertEqual(context.context_id, value)
        else:
            self.assertRaises(ValueError, setattr, context, "context_id", value)
            self.assertIs(context.context_id, None)
        self.assertRaises(TypeError, setattr, context, "context_id", str(value))

    def test_result(self) -> None:
        """The result has a code and its text."""
        context = PresentationContext()
        for result, status in (
            (None, "Pending"),
            (0, "Accepted"),
            (1, "User Rejected"),
            (2, "Provider Rejected"),
            (3, "Abstract Syntax Not Supported"),
            (4, "Transfer Syntax(es) Not Supported"),
        ):
            context.result = result
            self.assertEqual((context.result, context.status), (result, status))
        for wrong in (-1, 5, "0"):
            self.assertRaises(ValueError, setattr, context, "result", wrong)

    def test_roles(self) -> None:
        """Roles are true, false or not set."""
        context = PresentationContext(scu_role=True, scp_role=False)
        self.assertEqual((context.scu_role, context.scp_role), (True, False))
        for name in ("scu_role", "scp_role"):
            for value in (True, False, None):
                setattr(context, name, value)
                self.assertIs(getattr(context, name), value)
            for wrong in (1, 0, "yes"):
                self.assertRaises(TypeError, setattr, context, name, wrong)

    def test_equality(self) -> None:
        """Contexts are equal if all attributes are equal, including the order of the transfer syntaxes."""
        one, other = build_context(Verification), build_context("1.2.840.10008.1.1")
        self.assertEqual(one, other)
        self.assertNotEqual(one, build_context(Verification, DEFAULT_TRANSFER_SYNTAXES[::-1]))
        self.assertNotEqual(one, build_context(CTImageStorage))
        self.assertNotEqual(one, "1.2.840.10008.1.1")
        changes = {
            "context_id": 1,
            "result": 0,
            "scu_role": True,
            "scp_role": True,
            "as_scu": True,
            "as_scp": True,
        }
        for name, value in changes.items():
            other = build_context(Verification)
            setattr(other, name, value)
            self.assertNotEqual(one, other, name)
        self.assertEqual(hash(one), hash(build_context(Verification)))

    def test_copies(self) -> None:
        """A copy is equal and independent."""
        context = build_context(Verification)
        context.context_id, context.result, context.as_scu = 3, 0, True
        for duplicate in (context.copy(), copy.copy(context), copy.deepcopy(context)):
            self.assertEqual(duplicate, context)
            duplicate.remove_transfer_syntax(ImplicitVRLittleEndian)
            self.assertEqual(len(context.transfer_syntax), 4)

    def test_tuple(self) -> None:
        """The form that handlers get, which only a complete context has."""
        context = build_context(Verification, [ExplicitVRLittleEndian])
        self.assertRaises(ValueError, getattr, context, "as_tuple")
        context.context_id = 5
        context_id, abstract_syntax, transfer_syntax = context.as_tuple
        self.assertEqual((context_id, abstract_syntax), (5, Verification))
        self.assertEqual(transfer_syntax.name, "Explicit VR Little Endian")
        self.assertEqual(context.as_tuple, PresentationContextTuple(5, Verification, ExplicitVRLittleEndian))

    def test_received(self) -> None:
        """A context can hold whatever a peer proposes, however odd it is."""
        context = PresentationContext.received(2, "acme.1", ["", "1.2.x", "1.2.x", Verification])
        self.assertEqual(context.context_id, 2)
        self.assertEqual(context.abstract_syntax, "acme.1")
        self.assertEqual(context.transfer_syntax, ["", "1.2.x", Verification])
        self.assertIn("Abstract Syntax: acme.1", str(context))


class PrintedFormTests(SynchronousTestCase):
    """``str()`` and ``repr()`` of a context."""

    def test_plain(self) -> None:
        """Outside of an association only the syntaxes are printed."""
        self.assertEqual(str(build_context(Verification)), VERIFICATION_TEXT)

    def test_negotiated(self) -> None:
        """In an association the negotiated values are printed, too."""
        context = build_context(CTImageStorage, ImplicitVRLittleEndian)
        context.context_id, context.result = 7, 0
        context.scu_role = context.scp_role = True
        context.as_scu, context.as_scp = False, True
        self.assertEqual(
            str(context),
            "ID: 7\n"
            "Abstract Syntax: CT Image Storage\n"
            "Transfer Syntax(es):\n"
            "    =Implicit VR Little Endian\n"
            "Result: Accepted\n"
            "Role selection: SCU and SCP\n"
            "Role: SCP only",
        )
        context.as_scp = False
        self.assertTrue(str(context).endswith("Role: (none)"))
        context.scp_role = context.as_scp = None
        self.assertTrue(str(context).endswith("Result: Accepted"))

    def test_unknown(self) -> None:
        """A UID without a name is printed as it is."""
        self.assertEqual(str(build_context("1.2.3", "1.2.4")), text("1.2.4", abstract_syntax="1.2.3"))

    def test_repr(self) -> None:
        """One line for a debugger."""
        context = build_context(Verification, ImplicitVRLittleEndian)
        self.assertEqual(repr(context), "<PresentationContext - 'Verification SOP Class' [1.2.840.10008.1.2] Pending>")


class BuildTests(SynchronousTestCase):
    """``build_context`` and ``build_role``."""

    def test_build_context(self) -> None:
        """``build_context`` works as the documentation shows it."""
        context_a = build_context(CTImageStorage, ImplicitVRLittleEndian)
        context_b = build_context("1.2.840.10008.1.1", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
        self.assertEqual(str(context_a), text("Implicit VR Little Endian", abstract_syntax="CT Image Storage"))
        self.assertEqual(str(context_b), text("Implicit VR Little Endian", "Explicit VR Big Endian"))
        self.assertEqual(build_context(CTImageStorage).transfer_syntax, list(DEFAULT_TRANSFER_SYNTAXES))

    def test_build_context_errors(self) -> None:
        """An abstract syntax is required, and UIDs must be valid."""
        wrong: Any
        for wrong, error in ((None, TypeError), (12, TypeError), ("acme", ValueError)):
            self.assertRaises(error, build_context, wrong)
        self.assertRaises(TypeError, build_context, Verification, 12)
        self.assertRaises(ValueError, build_context, Verification, CTImageStorage)

    def test_build_contexts(self) -> None:
        """UIDs and contexts, each with the same transfer syntaxes."""
        given: list[str | bytes | PresentationContext] = ["1.2.840.10008.1.1", build_context(CTImageStorage), b"1.2.3"]
        contexts = build_contexts(given, [ExplicitVRLittleEndian, JPEG2000Lossless])
        self.assertEqual(
            contexts,
            [
                build_context(uid, [ExplicitVRLittleEndian, JPEG2000Lossless])
                for uid in ("1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.1.2", "1.2.3")
            ],
        )
        contexts[0].add_transfer_syntax("1.2.840.10008.1.2.5")
        self.assertEqual(len(contexts[1].transfer_syntax), 2)
        self.assertEqual(build_contexts("1.2.3"), [build_context("1.2.3")])
        self.assertEqual(build_contexts([]), [])
        negotiated = PresentationContext("1.2.3", "1.2.840.10008.1.2", context_id=5, scu_role=True)
        self.assertEqual(build_contexts([negotiated]), [build_context("1.2.3")])

    def test_build_contexts_errors(self) -> None:
        self.assertRaises(TypeError, build_contexts, None)
        self.assertRaises(TypeError, build_contexts, [1])
        self.assertRaises(ValueError, build_contexts, ["CTImageStorage"])
        self.assertRaises(ValueError, build_contexts, [PresentationContext()])
        self.assertRaises(ValueError, build_contexts, ["1.2.3"], "1.2.840.10008.1.1")

    def test_build_role(self) -> None:
        """A role selection item."""
        self.assertEqual(
            build_role(CTImageStorage, scp_role=True), RoleSelection("1.2.840.10008.5.1.4.1.1.2", False, True)
        )
        self.assertEqual(build_role("1.2.3", True), RoleSelection("1.2.3", True, False))
        for context in StoragePresentationContexts:
            assert context.abstract_syntax is not None
            role = build_role(context.abstract_syntax, scp_role=True)
            self.assertEqual(role.sop_class_uid, context.abstract_syntax)

    def test_build_role_errors(self) -> None:
        """Roles are booleans."""
        self.assertRaises(TypeError, build_role, CTImageStorage, scu_role=1)
        self.assertRaises(TypeError, build_role, CTImageStorage, scp_role=None)
        self.assertRaises(TypeError, build_role, None)
        self.assertRaises(ValueError, build_role, "acme")


class NumberTests(SynchronousTestCase):
    """IDs for an association request."""

    def test_numbers(self) -> None:
        """IDs are odd and in order, and the original contexts do not get them."""
        contexts = StoragePresentationContexts + QueryRetrievePresentationContexts[:8]
        numbered = number_contexts(contexts)
        self.assertEqual([context.context_id for context in numbered], list(range(1, 256, 2)))
        self.assertEqual({context.context_id for context in contexts}, {None})
        self.assertEqual([c.abstract_syntax for c in numbered], [c.abstract_syntax for c in contexts])

    def test_again(self) -> None:
        """The results of an earlier association are reset; the roles to propose are kept."""
        context = build_context(Verification)
        context.context_id, context.result, context.as_scu, context.as_scp = 9, 3, True, False
        context.scu_role, context.scp_role = False, True
        (again,) = number_contexts([context])
        self.assertEqual((again.context_id, again.result, again.as_scu, again.as_scp), (1, None, None, None))
        self.assertEqual((again.scu_role, again.scp_role), (False, True))

    def test_errors(self) -> None:
        """A request has 1 to 128 complete contexts."""
        self.assertRaises(ValueError, number_contexts, [])
        self.assertRaises(ValueError, number_contexts, [build_context(Verification)] * 129)
        self.assertRaises(ValueError, number_contexts, [PresentationContext()])
        self.assertRaises(ValueError, number_contexts, [build_context(Verification, [])])
        self.assertRaises(ValueError, number_contexts, ["1.2.840.10008.1.1"])


class PrebuiltTests(SynchronousTestCase):
    """The prebuilt lists."""

    def test_sizes(self) -> None:
        """All 26 lists exist; a later pydicom may know more SOP Classes, but the common storage is fixed."""
        names = [name for name in dir(presentation) if name.endswith("PresentationContexts")]
        self.assertEqual(sorted(names), sorted(SIZES))
        self.assertEqual(len(names), 26)
        for name, size in SIZES.items():
            self.assertGreaterEqual(len(getattr(presentation, name)), size, name)
        self.assertEqual(len(StoragePresentationContexts), 120)

    def test_contents(self) -> None:
        """Every context is complete, and each SOP Class occurs once, with the default transfer syntaxes."""
        for name in SIZES:
            contexts = getattr(presentation, name)
            uids = [context.abstract_syntax for context in contexts]
            self.assertEqual(uids, sorted(set(uids)), name)
            self.assertEqual(len({uid.service_class for uid in uids}), 1, name)
            for context in contexts:
                self.assertEqual(context, build_context(context.abstract_syntax))

    def test_of_one_service(self) -> None:
        """Some of the most important contexts."""
        (verification,) = VerificationPresentationContexts
        self.assertEqual(str(verification), VERIFICATION_TEXT)
        self.assertIn(build_context(CTImageStorage), StoragePresentationContexts)
        self.assertIn(build_context(CTImageStorage), AllStoragePresentationContexts)

    def test_own_copy(self) -> None:
        """Changing a list changes it for no other user."""
        first = presentation.StoragePresentationContexts
        first[0].scp_role = True
        first[1].add_transfer_syntax(JPEGBaseline8Bit)
        del first[2:]
        second = presentation.StoragePresentationContexts
        self.assertEqual(len(second), 120)
        self.assertEqual({context.scp_role for context in second}, {None})
        self.assertEqual({len(context.transfer_syntax) for context in second}, {4})

    def test_unknown_name(self) -> None:
        """There are no other lists."""
        error = self.assertRaises(AttributeError, getattr, presentation, "StoragePresentationContext")
        self.assertIn("StoragePresentationContext", str(error))
