"""
Several AE titles on one port, promiscuous acceptors, and acceptors that accept no context.
"""

from __future__ import annotations

from typing import Any

from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

from dicomtwist import AE, AssociationRejected, NoAcceptedContexts, NoPresentationContext, Server, build_context, evt
from dicomtwist.ul.items import ProposedContext
from dicomtwist.ul.pdu import AAbort, AAssociateAC, AAssociateRJ
from tests.memory import CT, VERIFICATION, MemoryTestCase, instance

MR = "1.2.840.10008.5.1.4.1.1.4"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
PRIVATE = "1.2.3.4.5.6.7"


class SeveralTitles(MemoryTestCase):
    """Two AEs on one port: SCP, which accepts CT images, and OTHER, which accepts Verification only."""

    def setUp(self) -> None:
        super().setUp()
        self.said: list[tuple[str, str]] = []
        self.other = AE("OTHER", reactor=self.network)
        self.scp.supported_contexts = [build_context(CT, ExplicitVRLittleEndian)]
        self.other.supported_contexts = [build_context(VERIFICATION)]

    def say(self, event: evt.Event, who: str) -> int:
        """A handler for any event."""
        self.said.append((who, event.event.name.removeprefix("EVT_")))
        return 0

    def shared(self, *handlers: Any, **options: Any) -> Server:
        """Start the server."""
        return self.listen(*handlers, others=[self.other], **options)

    def accepted(self, title: str) -> list[str | None]:
        """Return the results that *title* has for the contexts of CT and Verification."""
        association = self.associate(ae_title=title)
        accepted: list[str | None] = [context.abstract_syntax for context in association.accepted_contexts]
        self.network.result_of(association.release())
        return accepted

    def test_contexts(self) -> None:
        self.shared()
        self.assertEqual([self.accepted("SCP"), self.accepted("OTHER")], [[CT], [VERIFICATION]])

    def test_handlers(self) -> None:
        for ae in (self.scp, self.other):
            for event in (evt.EVT_REQUESTED, evt.EVT_ESTABLISHED, evt.EVT_C_ECHO, evt.EVT_C_STORE, evt.EVT_RELEASED):
                ae.bind(event, self.say, [ae.ae_title])
        server = self.shared()
        association = self.associate(ae_title="OTHER")
        self.network.result_of(association.send_c_echo())
        self.assertEqual([each.ae for each in server.active_associations], [self.other])
        self.assertEqual((len(self.scp.active_associations), len(self.other.active_associations)), (0, 1))
        self.network.result_of(association.release())
        words = ["REQUESTED", "ESTABLISHED", "C_ECHO", "RELEASED"]
        self.assertEqual(self.said, [("OTHER", word) for word in words])
        self.said.clear()
        association = self.associate(ae_title="SCP")
        self.network.result_of(association.send_c_store(instance()))
        self.network.result_of(association.release())
        words[2] = "C_STORE"
        self.assertEqual(self.said, [("SCP", word) for word in words])

    def test_handlers_of_the_server(self) -> None:
        # The handlers passed to start_server belong to its own AE; handlers bound to the server apply to all AEs.
        server = self.shared((evt.EVT_RELEASED, self.say, ["started"]))
        server.bind(evt.EVT_RELEASED, lambda event: self.say(event, "bound"))
        self.accepted("OTHER")
        self.assertEqual(self.said, [("bound", "RELEASED")])
        self.accepted("SCP")
        self.assertEqual(self.said[1:], [("started", "RELEASED"), ("bound", "RELEASED")])

    def test_one_ae_under_several_titles(self) -> None:
        hosts = [
            self.scp.host(
                ae_title=title, contexts=[build_context(uid)], evt_handlers=[(evt.EVT_ESTABLISHED, self.say, [title])]
            )
            for title, uid in (("MAGNET", MR), ("CHECK", VERIFICATION))
        ]
        server = self.network.result_of(self.scp.start_server(104, others=hosts))
        self.scu.requested_contexts = [build_context(uid) for uid in (CT, MR, VERIFICATION)]
        found = [self.accepted(title) for title in ("SCP", "MAGNET", "CHECK")]
        self.assertEqual(found, [[CT], [MR], [VERIFICATION]])
        self.assertEqual(self.said, [("MAGNET", "ESTABLISHED"), ("CHECK", "ESTABLISHED")])
        self.assertEqual(server.factory.titles, {"SCP", "MAGNET", "CHECK"})

    def test_a_title_of_nobody(self) -> None:
        # The first AE answers a request for an unknown title, and may require its own title.
        self.shared()
        self.assertEqual(self.accepted("NOBODY"), [CT])
        self.scp.require_called_aet = True
        error = self.failureResultOf(self.asking(ae_title="NOBODY"), AssociationRejected).value
        self.assertEqual((error.result, error.source, error.reason), (1, 1, 7))
        self.assertEqual(self.accepted("OTHER"), [VERIFICATION])

    def test_settings(self) -> None:
        self.other.require_calling_aet = ["FRIEND"]
        self.other.maximum_pdu_size = 5000
        self.other.implementation_version_name = "OTHER"
        self.shared()
        self.accepted("SCP")
        peer = self.network.scripted_client(104)
        peer.request((1, VERIFICATION), called="OTHER")
        self.assertEqual(peer.take(), [AAssociateRJ(1, 1, 3)])
        peer.close()
        peer = self.network.scripted_client(104)
        peer.request((1, VERIFICATION), called="OTHER", calling="FRIEND")
        (answer,) = peer.take()
        assert isinstance(answer, AAssociateAC)
        information = answer.user_information
        self.assertEqual((information.maximum_length, information.implementation_version_name), (5000, "OTHER"))

    def test_the_longest_pdu_is_that_of_who_is_called(self) -> None:
        # The announced maximum applies, even if the first AE accepts longer PDUs.
        self.other.supported_contexts = self.scp.supported_contexts
        for ae, size in ((self.scp, 4096), (self.other, 65536)):
            ae.maximum_pdu_size = size
            ae.bind(evt.EVT_C_STORE, self.say, [ae.ae_title])
        self.shared()
        for title, size in (("OTHER", 65536), ("SCP", 4096)):
            association = self.associate(ae_title=title)
            self.assertEqual(association.acceptor.maximum_length, size)
            self.assertEqual(self.network.result_of(association.send_c_store(instance(200_000))), 0)
            self.assertGreater(self.network.connections[-1].client.bytes_written, 200_000)
            peer = self.network.scripted_client(104)
            peer.request((3, CT), called=title)
            peer.take()
            peer.send(b"\4\0" + (size + 1).to_bytes(4, "big"))
            self.assertIsInstance(peer.take()[-1], AAbort)
            peer.close()
        self.assertEqual(self.said, [("OTHER", "C_STORE"), ("SCP", "C_STORE")])


class Promiscuous(MemoryTestCase):
    """An acceptor that accepts every storage SOP Class in any transfer syntax."""

    def setUp(self) -> None:
        super().setUp()
        self.scp.supported_contexts = [build_context(VERIFICATION)]
        self.scp.settings.promiscuous = True

    def test_a_private_sop_class(self) -> None:
        seen: list[tuple[str, str]] = []

        def keep(event: evt.StoreEvent) -> int:
            seen.append((event.request.affected_sop_class_uid, event.dataset.SOPInstanceUID))
            return 0

        self.listen((evt.EVT_C_STORE, keep))
        self.scu.requested_contexts = [build_context(PRIVATE, ExplicitVRLittleEndian)]
        association = self.associate()
        dataset = instance()
        dataset.SOPClassUID = PRIVATE
        self.assertEqual(self.network.result_of(association.send_c_store(dataset)), 0)
        self.assertEqual(seen, [(PRIVATE, "1.2.3.4")])

    def test_contexts(self) -> None:
        self.listen()
        peer = self.network.scripted_client(104)
        peer.request(
            (1, VERIFICATION),
            ProposedContext(3, CT, ("1.2.3", JPEGBaseline8Bit)),
            ProposedContext(5, PRIVATE, (JPEGBaseline8Bit,)),
            (7, FIND),
        )
        (answer,) = peer.take()
        assert isinstance(answer, AAssociateAC)
        self.assertEqual(
            [(item.context_id, item.result, item.transfer_syntax) for item in answer.presentation_contexts],
            [(1, 0, "1.2.840.10008.1.2"), (3, 0, "1.2.3"), (5, 0, JPEGBaseline8Bit), (7, 3, "")],
        )

    def test_no_context_is_supported(self) -> None:
        self.scp.supported_contexts = []
        self.listen((evt.EVT_C_STORE, lambda event: 0))
        association = self.associate()
        self.assertEqual(self.network.result_of(association.send_c_store(instance())), 0)
        self.failureResultOf(association.send_c_echo(), NoPresentationContext)


class NothingAccepted(MemoryTestCase):
    """The error names the SOP Classes that were not accepted, and the reasons."""

    def test_names(self) -> None:
        self.scp.supported_contexts = [build_context(CT, JPEGBaseline8Bit)]
        self.listen()
        self.scu.requested_contexts = [build_context(uid, ExplicitVRLittleEndian) for uid in (CT, MR, PRIVATE)]
        error = self.failureResultOf(self.asking(ae_title="PACS"), NoAcceptedContexts).value
        self.assertEqual(
            str(error),
            "PACS accepted none of the 3 presentation contexts:"
            " 1.2.3.4.5.6.7: Abstract Syntax Not Supported;"
            " CT Image Storage (1.2.840.10008.5.1.4.1.1.2) with Explicit VR Little Endian: Transfer Syntax(es) Not Supported;"
            " MR Image Storage (1.2.840.10008.5.1.4.1.1.4): Abstract Syntax Not Supported."
            " Propose other transfer syntaxes as well, or configure the peer to accept these",
        )

    def test_many(self) -> None:
        self.scp.supported_contexts = [build_context(VERIFICATION)]
        self.listen()
        self.scu.requested_contexts = [build_context(f"1.2.3.{number}") for number in range(128)]
        error = self.failureResultOf(self.asking(), NoAcceptedContexts).value
        self.assertIn("none of the 128 presentation contexts", str(error))
        self.assertTrue(str(error).endswith(" and 123 more"), str(error))

    def test_one_that_does_not_answer_for_them(self) -> None:
        peer = self.network.scripted_server(105)
        asking = self.asking(105)
        request = peer.take()[0]
        peer.send(AAssociateAC("ANY-SCP", "SCU"))
        self.assertIsNotNone(request)
        peer.close()
        error = self.failureResultOf(asking, NoAcceptedContexts).value
        self.assertIn("Verification SOP Class (1.2.840.10008.1.1): ", str(error))
