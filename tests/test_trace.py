"""The trace of an association: each thing that is negotiated, each reason, each message, and nothing secret."""

from __future__ import annotations

import io
import sys
from typing import Any

from pydicom import Dataset
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import (
    AE,
    AllStoragePresentationContexts,
    AssociationRejected,
    AsyncOperationsWindow,
    SOPClassCommonExtended,
    SOPClassExtended,
    UserIdentity,
    build_context,
    build_role,
    debug_logger,
    evt,
    trace,
)
from dicomtwist.dimse.messages import RESPONSES, CCancelRQ, CStoreRQ, NActionRQ, make_response
from dicomtwist.logs import MAX_MESSAGE
from dicomtwist.sop_class import CTImageStorage, MRImageStorage, SOPClass, Verification
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelFind as FIND
from dicomtwist.testing import MemoryNetwork
from dicomtwist.ul.items import ProposedContext
from dicomtwist.ul.pdu import AAssociateRQ

JPEG2000 = "1.2.840.10008.1.2.4.90"
EXPLICIT = "1.2.840.10008.1.2.1"


class TraceTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = MemoryNetwork()
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)  # type: ignore[arg-type]
        self.scp, self.scu = AE("SCP", reactor=self.network), AE("SCU", reactor=self.network)
        self.scp.add_supported_context(Verification)
        self.scp.add_supported_context(CTImageStorage, EXPLICIT, scu_role=True, scp_role=True)
        self.scp.add_supported_context(FIND)

    def serve(self, *handlers: Any) -> None:
        self.server = self.network.result_of(self.scp.start_server(104, evt_handlers=list(handlers)))

    def associate(self, *items: object, **arguments: Any) -> Any:
        return self.network.result_of(self.scu.associate("127.0.0.1", 104, ext_neg=list(items), **arguments))

    def lines(self, assoc: Any = None) -> list[str]:
        """Return the lines of the trace, of *assoc* alone if it is given."""
        found = [event for event in self.events if event.get("log_namespace") == trace.TRACE]
        return [formatEvent(event) for event in found if assoc in (None, event["association"])]

    def has(self, text: str, assoc: Any = None) -> None:
        lines = self.lines(assoc)
        self.assertTrue(any(text in line for line in lines), f"{text!r} not in\n" + "\n".join(lines))


class Negotiation(TraceTestCase):
    def test_contexts(self) -> None:
        """Each context has a line, with what was proposed, what was accepted, the roles, and on the acceptor why not."""
        trace.trace(self.scp)
        trace.trace(self.scu)
        self.serve()
        self.scu.add_requested_context(CTImageStorage, EXPLICIT)
        self.scu.add_requested_context(CTImageStorage, JPEG2000)
        self.scu.add_requested_context(MRImageStorage, [EXPLICIT, JPEG2000])
        ours = self.associate(build_role(CTImageStorage, scu_role=True, scp_role=True))
        (theirs,) = self.server.active_associations
        refused = "proposed JPEG 2000 Image Compression (Lossless Only); NOT accepted: none of its transfer syntaxes is"
        for assoc in (ours, theirs):
            self.has(
                "A-ASSOCIATE-RQ: 'SCU' calls 'ANY-SCP', 3 presentation contexts, PDUs of at most 131072 bytes", assoc
            )
            self.has("role selection: CT Image Storage: the requestor as SCU and SCP", assoc)
            self.has("A-ASSOCIATE-AC: 1 of 3 presentation contexts accepted", assoc)
            self.has(
                "context 1: CT Image Storage: proposed Explicit VR Little Endian; accepted Explicit VR Little Endian,"
                " we are SCU and SCP",
                assoc,
            )
            self.has(f"context 3: CT Image Storage: {refused}", assoc)
            self.has(
                "context 5: MR Image Storage: proposed Explicit VR Little Endian, JPEG 2000 Image Compression (Lossless Only);"
                " NOT accepted: abstract syntax not supported",
                assoc,
            )
        self.has("; we support Explicit VR Little Endian", theirs)
        self.assertNotIn("we support", "\n".join(self.lines(ours)))
        (event,) = [one for one in self.events if one.get("context_id") == 3 and one["association"] is ours]
        self.assertEqual((event["proposed"], event["accepted"], event["result"]), ([JPEG2000], None, 4))

    def test_many_contexts_in_short(self) -> None:
        """Of contexts in great number that have the same outcome the first few are named, and all are in the fields."""
        trace.trace(self.scu)
        self.scp.supported_contexts = AllStoragePresentationContexts[:60]
        self.serve()
        ours = self.associate(contexts=AllStoragePresentationContexts[:100])
        groups = [event for event in self.events if isinstance(event.get("context_id"), list)]
        self.assertEqual([len(event["context_id"]) for event in groups], [60, 40])
        accepted, refused = [line.strip() for line in self.lines(ours) if " contexts: " in line]
        self.assertTrue(accepted.startswith("60 contexts: proposed "))
        self.assertTrue(accepted.endswith(" and 56 more"), accepted)
        self.assertIn(f": 1 {SOPClass(str(AllStoragePresentationContexts[0].abstract_syntax)).name}, 3 ", accepted)
        self.assertTrue(refused.endswith(" and 28 more"), refused)
        self.assertEqual(len(self.lines(ours)), 5)

    def test_many_contexts_alike(self) -> None:
        """Every one is named on request: they share lines, with the ID and the name of each."""
        trace.trace(self.scu)
        trace.trace(self.scu, every_context=True)
        self.serve()
        contexts = [build_context(Verification, EXPLICIT), *AllStoragePresentationContexts[:100]]
        ours = self.associate(contexts=contexts)
        lines = [line for line in self.lines(ours) if "NOT accepted: abstract syntax not supported" in line]
        refused = [one for one in ours.rejected_contexts if one.result == 3]
        self.assertLess(len(lines), 6)
        self.assertLess(max(map(len, lines)), MAX_MESSAGE)
        for one in refused:
            self.assertIn(f" {one.context_id} {one.abstract_syntax.name}", ", ".join(lines).replace(": ", ", "))
        self.has("context 1: Verification SOP Class: proposed Explicit VR Little Endian; accepted", ours)
        found: list[int] = []
        for event in self.events:
            if isinstance(event.get("context_id"), list):
                self.assertEqual(len(event["context_id"]), len(event["abstract_syntax"]))
                self.assertEqual((event["result"], event["accepted"]), (3, None))
                found += event["context_id"]
        self.assertEqual(found, [one.context_id for one in refused])

    def test_many_roles(self) -> None:
        """A client of C-GET has a role for each SOP Class: one line in place of a hundred, with all UIDs in its field."""
        trace.trace(self.scu)
        self.serve()
        classes = [str(context.abstract_syntax) for context in AllStoragePresentationContexts[:100]]
        contexts = [build_context(Verification, EXPLICIT), *AllStoragePresentationContexts[:100]]
        roles = [build_role(uid, scp_role=True) for uid in classes[:-3]]
        ours = self.associate(*roles, *(build_role(uid, scu_role=True) for uid in classes[-3:]), contexts=contexts)
        lines = [line.strip() for line in self.lines(ours) if "role selection" in line]
        self.assertEqual(len(lines), 5, lines)
        self.assertTrue(lines[0].startswith("role selection for 97 SOP Classes: the requestor as SCP: "), lines)
        self.assertTrue(lines[0].endswith(" and 93 more"), lines)
        self.assertEqual(lines[3], f"role selection: {SOPClass(classes[-1]).name}: the requestor as SCU")
        proposed = [uid for event in self.events for uid in event.get("role_selection", ())]
        self.assertEqual(proposed[:100], classes)
        # The acceptor, which has one of these classes, answers its role.
        self.assertEqual(lines[4:], ["role selection: CT Image Storage: the requestor as SCP"])

    def test_items(self) -> None:
        """Items of extended negotiation are shown; of a user identity the name of the user, and nothing secret."""
        trace.trace(self.scp)
        trace.trace(self.scu)
        self.serve(
            (evt.EVT_ASYNC_OPS, lambda event: (3, 1)),
            (evt.EVT_SOP_EXTENDED, lambda event: event.app_info),
            (evt.EVT_USER_ID, lambda event: (True, b"S3cretTicket")),
        )
        self.scu.add_requested_context(FIND)
        items = (
            AsyncOperationsWindow(5, 0),
            SOPClassExtended(FIND, b"\1\0\1"),
            SOPClassCommonExtended(CTImageStorage, "1.2.840.10008.4.2", (MRImageStorage,)),
        )
        self.associate(*items, UserIdentity(2, b"alice", b"S3cretWord", response_requested=True))
        self.has("asynchronous operations window: 5 invoked, any number of performed")
        self.has("asynchronous operations window: 3 invoked, 1 performed")
        self.has("extended negotiation: Study Root Query/Retrieve Information Model - FIND: 01 00 01")
        self.has("common extended negotiation: CT Image Storage: service class")
        self.has("user identity: user name and passcode, 'alice' (the passcode is not shown), a response is requested")
        for kind in (3, 4, 5):
            self.associate(UserIdentity(kind, b"S3cretToken", response_requested=True))
        self.has("user identity: JSON Web Token of 11 bytes")
        self.has("user identity: Kerberos service ticket of 11 bytes")
        self.has("with a response of 12 bytes")
        self.assertNotIn("S3cret", "\n".join(self.lines()))

    def test_rejection(self) -> None:
        trace.trace(self.scp)
        trace.trace(self.scu)
        self.scu.add_requested_context(Verification)
        self.serve((evt.EVT_REQUESTED, lambda event: event.assoc.reject(1, 1, 1, "because of the test")))
        deferred = self.scu.associate("127.0.0.1", 104)
        self.network.flush()
        self.failureResultOf(deferred, AssociationRejected)
        self.has("-> A-ASSOCIATE-RJ: association rejected permanently")
        self.has("(1, 1, 1): because of the test")
        self.has("<- A-ASSOCIATE-RJ: association rejected permanently")

    def test_hostile_names(self) -> None:
        """A text of a peer in place of a UID is not shown, and a title is quoted."""
        trace.trace(self.scp)
        self.serve()
        peer = self.network.scripted_client(104)
        contexts = (
            ProposedContext(1, "S3cret^Name", ("1.2.840.10008.1.2",)),
            ProposedContext(3, Verification, ("S3cret\x1b[2J", "1.2.3")),
        )
        peer.send(AAssociateRQ("SCP", "it's {me}", contexts))
        self.network.flush()
        text = "\n".join(map(formatEvent, self.events))
        self.has('"it\'s {me}" calls')
        self.has("context 1: an invalid UID of 11 characters: proposed Implicit VR Little Endian; NOT accepted")
        self.has("context 3: Verification SOP Class: proposed an invalid UID of 10 characters, 1.2.3; NOT accepted")
        self.assertNotIn("S3cret", text)


class Messages(TraceTestCase):
    def test_both_directions(self) -> None:
        trace.trace(self.scp)
        trace.trace(self.scu)

        def find(event: Any) -> Any:
            yield 0xFF00, Dataset()
            yield 0xA700, None

        self.serve((evt.EVT_C_FIND, find))
        self.scu.add_requested_context(FIND)
        self.scu.add_requested_context(Verification)
        assoc = self.associate()
        self.network.result_of(assoc.send_c_echo())
        keys = Dataset()
        keys.QueryRetrieveLevel, keys.PatientName = "STUDY", "S3cret^Name"
        answers = assoc.send_c_find(keys, FIND).collect()
        self.network.flush()
        self.failureResultOf(answers)
        self.network.result_of(assoc.release())
        for sign, answer in (("->", "<-"), ("<-", "->")):
            self.has(f"{sign} C-ECHO-RQ 1: Verification SOP Class")
            self.has(f"{answer} C-ECHO-RSP 1: 0x0000 Success")
            self.has(f"{sign} C-FIND-RQ 2: Study Root Query/Retrieve Information Model - FIND, ")
            self.has(f"{answer} C-FIND-RSP 2: 0xFF00 ")
            self.has(f"{answer} C-FIND-RSP 2: 0xA700 ")
            self.has(f"{sign} A-RELEASE-RQ")
            self.has(f"{answer} A-RELEASE-RP")
        self.has("the association is released")
        self.assertNotIn("S3cret", "\n".join(self.lines()))

    def test_abort(self) -> None:
        trace.trace(self.scp)
        trace.trace(self.scu)
        self.serve()
        self.scu.add_requested_context(Verification)
        self.associate().abort("enough")
        self.network.flush()
        self.has("-> A-ABORT")
        self.has("the association ended: ")

    def test_words(self) -> None:
        """Every message has words, with what matters in it."""
        words = trace.message_in_words
        for request in RESPONSES:
            made: Any = request(message_id=7)  # type: ignore[call-arg]
            self.assertTrue(words(made).startswith(f"{made.NAME} 7"), words(made))
            response = make_response(made, 0x0110)
            self.assertIn("0x0110 Processing failure", words(response))
        store = CStoreRQ(
            message_id=1,
            affected_sop_class_uid=CTImageStorage,
            affected_sop_instance_uid="1.2.3",
            priority=1,
            move_originator_application_entity_title="WS1",
            move_originator_message_id=9,
            has_dataset=True,
        )
        self.assertEqual(
            words(store),
            "C-STORE-RQ 1: CT Image Storage, 1.2.3, priority high, for the C-MOVE 9 of 'WS1', with a data set",
        )
        self.assertEqual(words(CCancelRQ(message_id_being_responded_to=3)), "C-CANCEL-RQ 3")
        action = NActionRQ(
            message_id=2, requested_sop_class_uid="1.2", requested_sop_instance_uid="x^y", action_type_id=1
        )
        self.assertEqual(words(action), "N-ACTION-RQ 2: 1.2, an invalid UID of 3 characters, action type 1")
        failed: Any = make_response(store, 0xA700)
        failed.error_comment, failed.offending_element = "a\nb", (0x00080018,)
        self.assertTrue(words(failed).endswith("; comment 'a\\\\nb'; offending element (0008,0018)"), words(failed))


class Everywhere(TraceTestCase):
    def tearDown(self) -> None:
        trace.untrace()
        while trace._printed:
            globalLogPublisher.removeObserver(trace._printed.pop())

    def test_off(self) -> None:
        """Without a trace nothing is logged, and associations do not observe messages."""
        self.serve()
        self.scu.add_requested_context(Verification)
        assoc = self.associate()
        (theirs,) = self.server.active_associations
        self.assertFalse(assoc.observes_messages or theirs.observes_messages)
        self.assertEqual(self.lines(), [])

    def test_debug_logger(self) -> None:
        """All AEs are traced, those that were made before as well; it is printed once, however often it is called."""
        self.serve()
        file = io.StringIO()
        self.patch(sys, "stderr", file)
        debug_logger()
        debug_logger()
        self.scu.add_requested_context(Verification)
        assoc = self.associate()
        self.assertTrue(assoc.observes_messages)
        self.network.result_of(assoc.send_c_echo())
        text = file.getvalue()
        self.assertEqual(text.count("-> C-ECHO-RQ 1"), 1)
        self.assertEqual(text.count("<- C-ECHO-RQ 1"), 1)
        trace.untrace()
        again = self.associate()
        self.assertFalse(again.observes_messages)

    def test_file_that_is_gone(self) -> None:
        """A pipe without a reader, or a closed file, ends the trace and nothing else: no traceback for each line."""
        self.addCleanup(trace.untrace)
        for broken in (BrokenPipeError("gone"), ValueError("I/O operation on closed file")):

            class Gone(io.StringIO):
                def write(self, text: str, broken: Exception = broken) -> int:
                    raise broken

            debug_logger(Gone())
            self.addCleanup(globalLogPublisher.removeObserver, trace._printed[0])
            self.serve()
            self.scu.add_requested_context(Verification)
            assoc = self.associate()
            self.network.result_of(assoc.release())
            self.network.result_of(self.server.shutdown())
        self.assertFalse([event for event in self.events if "observer" in event])

    def test_one_association(self) -> None:
        self.serve()
        self.scu.add_requested_context(Verification)
        first, second = self.associate(), self.associate()
        trace.trace(first)
        for assoc in (first, second):
            self.network.result_of(assoc.send_c_echo())
        self.assertEqual(self.lines(), ["-> C-ECHO-RQ 1: Verification SOP Class", "<- C-ECHO-RSP 1: 0x0000 Success"])
        trace.untrace(first)
        self.network.result_of(first.send_c_echo())
        self.assertEqual(len(self.lines()), 2)
