"""Names that scripts written for pynetdicom use: they work, or the error says what to write instead."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from pydicom import Dataset
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

import dicomtwist
from dicomtwist import PresentationContext, build_context, evt, sop_class
from dicomtwist.dimse.messages import RESPONSES, Request
from dicomtwist.sop_class import CTImageStorage, Verification
from dicomtwist.sop_class import PatientRootQueryRetrieveInformationModelGet as GET
from dicomtwist.sop_class import PatientRootQueryRetrieveInformationModelMove as MOVE
from tests.loopback import LoopbackTestCase, ct_image


class Names(SynchronousTestCase):
    """Names of modules."""

    def test_register_uid(self) -> None:
        self.patch(sop_class, "_entries", dict(sop_class._entries))
        self.patch(sop_class, "_uids", dict(sop_class._uids))
        found = dicomtwist.register_uid("1.2.3.4", "AcmeFind", "Query/Retrieve", dimse_msg_type="C-FIND")
        self.assertEqual(found, sop_class.AcmeFind)
        self.assertEqual(sop_class.registered_services("1.2.3.4"), ("C-FIND",))
        self.assertIn("AcmeFind", sop_class.__all__)

    def test_star(self) -> None:
        """The star imports every SOP Class, under its older names too, and nothing else that could hide a name."""
        code = """if True:
            from dicomtwist.sop_class import *
            names = set(globals())
            print(CTImageStorage, VerificationSOPClass, StudyRootQueryRetrieveInformationModelFind.service_class.value)
            print(sorted(names & {"re", "functools", "Any", "Final", "UID", "config", "annotations", "cast"}))
            print(uid_to_sop_class("1.2.840.10008.1.1").name, len(names) > 300)
            """
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
        self.assertEqual(
            result.stdout,
            "1.2.840.10008.5.1.4.1.1.2 1.2.840.10008.1.1 Query/Retrieve\n[]\nVerification SOP Class True\n",
        )

    def test_contexts_in_sets(self) -> None:
        """Equal contexts have one hash, and a change that an association makes does not lose them."""
        one, other = build_context(Verification), build_context("1.2.840.10008.1.1")
        self.assertEqual(len({one, other, build_context(CTImageStorage)}), 2)
        seen = {one: "one"}
        one.context_id, one.result = 1, 0
        self.assertEqual(seen[one], "one")
        self.assertIsInstance(hash(PresentationContext()), int)

    def test_data_sets_of_requests(self) -> None:
        """A command set has no data set; the error names the place of it."""
        names = {
            "C-STORE": ("DataSet", "event.encoded_dataset(include_meta=False)"),
            "C-FIND": ("Identifier", "event.identifier"),
            "C-GET": ("Identifier", "event.identifier"),
            "C-MOVE": ("Identifier", "event.identifier"),
            "N-CREATE": ("AttributeList", "event.attribute_list"),
            "N-SET": ("ModificationList", "event.modification_list"),
            "N-ACTION": ("ActionInformation", "event.action_information"),
            "N-EVENT-REPORT": ("EventInformation", "event.event_information"),
        }
        found = set()
        for cls in RESPONSES:
            if issubclass(cls, Request) and cls.SERVICE in names:
                name, place = names[cls.SERVICE]
                error = self.assertRaises(AttributeError, getattr, cls.__new__(cls), name)
                self.assertIn(place, str(error))
                found.add(cls.SERVICE)
        self.assertEqual(found, set(names))


class Associations(LoopbackTestCase):
    """Names of associations, of their sides and of events."""

    async def test_addr(self) -> None:
        server = await self.serve(self.scp())
        scu = self.scu()
        assoc = await scu.associate(addr="127.0.0.1", port=server.port)
        self.assertTrue(assoc.is_established)
        await assoc.release()
        for arguments in ({}, {"address": "127.0.0.1", "addr": "127.0.0.1"}, {"port": 104}):
            error = self.assertRaises(TypeError, scu.associate, **arguments)
            self.assertIn("needs one address", str(error))

    async def test_sides(self) -> None:
        seen: list[Any] = []
        scp = self.scp()
        server = await self.serve(scp, evt_handlers=[(evt.EVT_ACCEPTED, lambda event: seen.append(event.assoc))])
        assoc = await self.scu().associate("127.0.0.1", server.port, ae_title="SCP")
        self.assertEqual(
            assoc.acceptor.info,
            {"ae_title": "SCP", "address": "127.0.0.1", "port": server.port, "mode": "acceptor", "pdv_size": 131072},
        )
        self.assertEqual(assoc.requestor.info["mode"], "requestor")
        self.assertTrue(assoc.requestor.is_requestor and assoc.acceptor.is_acceptor)
        self.assertFalse(assoc.requestor.is_acceptor or assoc.acceptor.is_requestor)
        error = self.assertRaises(AttributeError, lambda: assoc.requestor.primitive)
        self.assertIn("event.pdu of EVT_REQUESTED", str(error))
        self.assertEqual(assoc.name, f"requestor with 'SCP' at 127.0.0.1:{server.port}")
        (other,) = seen
        self.assertEqual(other.name, f"acceptor with 'SCU' at 127.0.0.1:{assoc.requestor.port}")
        await assoc.release()

    async def test_bound_events(self) -> None:
        def echo(event: evt.Event) -> int:
            return 0

        scp, scu = self.scp(), self.scu()
        server = await self.serve(scp, evt_handlers=[(evt.EVT_C_ECHO, echo), (evt.EVT_RELEASED, print, ["x"])])
        self.assertEqual(server.get_events(), [evt.EVT_C_ECHO, evt.EVT_RELEASED])
        self.assertEqual(server.get_handlers(evt.EVT_RELEASED), [(evt.EVT_RELEASED, print, ("x",))])
        server.unbind(evt.EVT_RELEASED, print)
        self.assertEqual(server.get_events(), [evt.EVT_C_ECHO])
        self.assertEqual(scp.get_events(), [])
        assoc = await scu.associate("127.0.0.1", server.port, evt_handlers=[(evt.EVT_CONN_CLOSE, echo)])
        self.assertEqual(assoc.get_events(), [evt.EVT_CONN_CLOSE])
        assoc.bind(evt.EVT_ABORTED, echo)
        self.assertEqual(assoc.get_handlers(evt.EVT_CONN_CLOSE), [(evt.EVT_CONN_CLOSE, echo, ())])
        self.assertEqual(assoc.get_handlers(evt.EVT_C_ECHO), [])
        self.assertEqual(assoc.get_events(), [evt.EVT_ABORTED, evt.EVT_CONN_CLOSE])
        await assoc.release()

    async def test_requests_of_handlers(self) -> None:
        """The event of a handler has the data set, and its request none."""

        def store(event: evt.StoreEvent) -> int:
            self.assertFalse(hasattr(event.request, "DataSet"))
            done.callback(event.dataset.PatientName)
            return 0

        done: Deferred[Any] = Deferred()
        server = await self.serve(self.scp(), evt_handlers=[(evt.EVT_C_STORE, store)])
        assoc = await self.scu().associate("127.0.0.1", server.port)
        self.assertEqual(await assoc.send_c_store(ct_image()), 0)
        self.assertEqual(await done, "Test^Case")
        await assoc.release()

    async def test_suboperations_of_statuses(self) -> None:
        """The statuses of C-GET and C-MOVE have the counts of their responses."""

        def get(event: evt.Event) -> Any:
            yield 2
            yield 0xFF00, ct_image()
            yield 0xB000, None

        def move(event: evt.Event) -> Any:
            yield None, None

        scp = self.scp()
        scp.add_supported_context(GET)
        scp.add_supported_context(MOVE)
        scp.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
        handlers = [(evt.EVT_C_GET, get), (evt.EVT_C_MOVE, move)]
        server = await self.serve(scp, evt_handlers=handlers)
        scu = self.scu()
        scu.add_requested_context(GET)
        scu.add_requested_context(MOVE)
        keys = Dataset()
        keys.QueryRetrieveLevel, keys.PatientID = "PATIENT", "1"
        role = dicomtwist.build_role(CTImageStorage, scp_role=True)
        stored = [(evt.EVT_C_STORE, lambda event: 0)]
        assoc = await scu.associate("127.0.0.1", server.port, ext_neg=[role], evt_handlers=stored)
        statuses = [status async for status, _ in assoc.send_c_get(keys, GET)]
        self.assertEqual(
            [(status.NumberOfCompletedSuboperations, status.get("NumberOfFailedSuboperations")) for status in statuses],
            [(1, 0)] * len(statuses),
        )
        self.assertEqual(statuses[0].NumberOfRemainingSuboperations, 1)
        self.assertNotIn("NumberOfRemainingSuboperations", statuses[-1])
        (status,) = [status async for status, _ in assoc.send_c_move(keys, "NOBODY", MOVE)]
        self.assertEqual(status.Status, 0xA801)
        self.assertFalse(hasattr(await assoc.send_c_echo(), "NumberOfCompletedSuboperations"))
        await assoc.release()
