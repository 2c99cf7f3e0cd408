"""
AE: every attribute and method, what is refused, and the printed form.
"""

from __future__ import annotations

import ssl
from dataclasses import fields
from typing import Any

from OpenSSL import SSL
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

import dicomtwist
from dicomtwist import AE, AssociationRejected, build_context, build_role, evt
from dicomtwist.ae import Server
from dicomtwist.endpoints import EndpointError
from dicomtwist.presentation import PREBUILT_CONTEXTS
from dicomtwist.settings import IMPLEMENTATION_CLASS_UID, SHORTEST_PDU, Settings
from dicomtwist.sop_class import CTImageStorage, Verification

VERIFICATION = [build_context(Verification)]


class SettingsTests(SynchronousTestCase):
    """
    The attributes that are settings.
    """

    def test_defaults(self) -> None:
        """
        The defaults of an AE without arguments.
        """
        ae = AE()
        self.assertEqual(ae.ae_title, "DICOMTWIST")
        self.assertEqual((ae.acse_timeout, ae.dimse_timeout, ae.network_timeout), (30, 30, 60))
        self.assertIsNone(ae.connection_timeout)
        self.assertEqual((ae.maximum_associations, ae.maximum_pdu_size), (1000, 131072))
        self.assertEqual((ae.require_called_aet, ae.require_calling_aet), (False, []))
        self.assertEqual(ae.implementation_class_uid, IMPLEMENTATION_CLASS_UID)
        self.assertTrue((ae.implementation_version_name or "").startswith("DICOMTWIST"))
        self.assertEqual((ae.requested_contexts, ae.supported_contexts, ae.active_associations), ([], [], []))
        self.assertEqual((ae.port, ae.bind_addr), (0, ""))

    def test_they_are_the_settings(self) -> None:
        """
        An attribute and the setting of the same name are one.
        """
        values: dict[str, Any] = {
            "ae_title": "OTHER",
            "acse_timeout": 1,
            "dimse_timeout": 2.5,
            "network_timeout": None,
            "write_timeout": 3,
            "pdu_timeout": None,
            "connection_timeout": 4,
            "maximum_associations": 5,
            "maximum_connections": 6,
            "maximum_connections_per_peer": 7,
            "maximum_association_rate": 8,
            "maximum_pdu_size": 16382,
            "implementation_class_uid": "1.2.3",
            "implementation_version_name": "NAME",
            "require_called_aet": True,
            "require_calling_aet": ["A", "B"],
        }
        ae, other = AE(), AE()
        for name, value in values.items():
            setattr(ae, name, value)
            self.assertEqual((getattr(ae, name), getattr(ae.settings, name)), (value, value))
            self.assertNotEqual(getattr(other, name), value, "settings belong to one AE")

    def test_forms(self) -> None:
        """
        Titles and names are kept as ``str`` without padding, however they are given; 0 is no limit for the PDU size.
        """
        ae = AE(b" PACS ")
        self.assertEqual(ae.ae_title, "PACS")
        ae.ae_title = b"OTHER           "
        self.assertEqual(ae.ae_title, "OTHER")
        ae.require_calling_aet = [b"A   ", " B"]
        self.assertEqual(ae.require_calling_aet, ["A", "B"])
        ae.implementation_version_name = None
        self.assertIsNone(ae.implementation_version_name)
        ae.implementation_version_name = b"NAME"
        self.assertEqual(ae.implementation_version_name, "NAME")
        ae.maximum_pdu_size = 0
        self.assertEqual(ae.maximum_pdu_size, 0)

    def test_each_setting_is_an_attribute(self) -> None:
        """
        An AE reads and assigns its settings under their own names, and documents each.
        """
        ae, other = AE(), Settings(ae_title="OTHER", require_called_aet=True, require_calling_aet=["ONE"])
        for field in fields(Settings):
            setattr(ae, field.name, getattr(other, field.name))
            self.assertEqual(getattr(ae, field.name), getattr(other, field.name))
            self.assertTrue(getattr(AE, field.name).__doc__)
        self.assertEqual(ae.settings, other)
        self.assertEqual(vars(AE)["acse_timeout"].__doc__, "See :attr:`Settings.acse_timeout`, in seconds.")

    def test_values_that_cannot_be(self) -> None:
        """
        Each is refused with an error that names the attribute, and the value before stays.
        """
        wrong: dict[str, list[Any]] = {
            "acse_timeout": [0, -1, float("nan")],
            "dimse_timeout": [0],
            "network_timeout": [-0.1],
            "connection_timeout": [0],
            "write_timeout": [0],
            "pdu_timeout": [0],
            "maximum_associations": [0, -1],
            "maximum_connections": [0],
            "maximum_connections_per_peer": [0],
            "maximum_association_rate": [0],
            "maximum_pdu_size": [-1, 1, SHORTEST_PDU - 1, 2**32],
            "implementation_version_name": ["", "A" * 17, "Ä", "A\n"],
            "require_calling_aet": [["A" * 17], [""], "A\\B"],
        }
        for name, values in wrong.items():
            for value in values:
                ae = AE()
                before = getattr(ae, name)
                error = self.assertRaises(ValueError, setattr, ae, name, value)
                self.assertIn(name, str(error))
                self.assertEqual(getattr(ae, name), before)
        for uid in ("", "1.2.a", "1" * 65):
            self.assertRaises(ValueError, setattr, AE(), "implementation_class_uid", uid)

    def test_wrong_types(self) -> None:
        """
        A value of another type is a TypeError, a bool for a number included.
        """
        wrong: dict[str, list[Any]] = {
            "ae_title": [None, 3],
            "acse_timeout": ["30", True],
            "maximum_associations": [1.5, "1", None, True],
            "maximum_connections": [None],
            "maximum_association_rate": [0.5],
            "maximum_pdu_size": [None, 16384.0],
            "implementation_class_uid": [None, 3],
            "implementation_version_name": [3],
            "require_called_aet": [1, None],
            "require_calling_aet": [3, [3]],
        }
        for name, values in wrong.items():
            for value in values:
                self.assertRaises(TypeError, setattr, AE(), name, value)

    def test_settings_alone(self) -> None:
        """
        Settings check at their making and at assigning, those without an attribute at AE as well.
        """
        self.assertRaises(ValueError, Settings, ae_title="A\\B")
        self.assertRaises(ValueError, Settings, maximum_operations=0)
        self.assertRaises(ValueError, setattr, Settings(), "maximum_object_size", 0)
        self.assertRaises(ValueError, setattr, Settings(), "maximum_buffered_size", -1)
        self.assertRaises(TypeError, setattr, Settings(), "promiscuous", "no")
        self.assertRaises(AttributeError, setattr, Settings(), "no_such_setting", 1)

    def test_port(self) -> None:
        """
        The port of the older style.
        """
        self.assertEqual(AE("A", 11112).port, 11112)
        self.assertRaises(ValueError, AE, "A", 65536)
        self.assertRaises(TypeError, AE, "A", "11112")


class ContextTests(SynchronousTestCase):
    """
    The presentation contexts of an AE; the collections themselves have their own tests.
    """

    def test_requested(self) -> None:
        """
        Added, assigned, removed.
        """
        ae = AE()
        ae.add_requested_context(Verification)
        ae.add_requested_context(CTImageStorage, ImplicitVRLittleEndian)
        self.assertEqual([c.abstract_syntax for c in ae.requested_contexts], [Verification, CTImageStorage])
        ae.remove_requested_context(Verification)
        self.assertEqual([c.abstract_syntax for c in ae.requested_contexts], [CTImageStorage])
        ae.requested_contexts = VERIFICATION
        self.assertEqual(ae.requested_contexts, VERIFICATION)
        ae.remove_requested_context(Verification, ExplicitVRLittleEndian)
        self.assertNotIn(ExplicitVRLittleEndian, ae.requested_contexts[0].transfer_syntax)

    def test_supported(self) -> None:
        """
        Supported contexts are added and removed in the same way, with roles.
        """
        ae = AE()
        ae.add_supported_context(CTImageStorage, ImplicitVRLittleEndian, True, False)
        ae.add_supported_context(Verification)
        (verification, image) = ae.supported_contexts
        self.assertEqual((image.scu_role, image.scp_role, verification.scu_role), (True, False, None))
        ae.remove_supported_context(CTImageStorage, ImplicitVRLittleEndian)
        self.assertEqual(ae.supported_contexts, [verification])
        ae.supported_contexts = []
        self.assertEqual(ae.supported_contexts, [])

    def test_lists_are_copies(self) -> None:
        """
        Changing what an attribute gave changes nothing.
        """
        ae = AE()
        ae.requested_contexts = ae.supported_contexts = VERIFICATION
        ae.requested_contexts.clear()
        ae.supported_contexts.clear()
        ae.require_calling_aet.append("X")
        self.assertEqual((len(ae.requested_contexts), len(ae.supported_contexts)), (1, 1))
        self.assertEqual(ae.require_calling_aet, [])

    def test_prebuilt(self) -> None:
        """
        Every prebuilt list is at the top level, new at each look.
        """
        self.assertEqual(len(PREBUILT_CONTEXTS), 26)
        for name in PREBUILT_CONTEXTS:
            self.assertIn(name, dir(dicomtwist))
            contexts = getattr(dicomtwist, name)
            self.assertTrue(contexts)
            contexts.clear()
            self.assertTrue(getattr(dicomtwist, name))
        self.assertRaises(AttributeError, getattr, dicomtwist, "NoPresentationContexts")


class PrintedTests(SynchronousTestCase):
    """
    str(ae).
    """

    def test_whole(self) -> None:
        """
        Every setting that a peer notices, and the contexts.
        """
        ae = AE("PACS")
        ae.implementation_class_uid, ae.implementation_version_name = "1.2.3", "V1"
        ae.maximum_pdu_size = 0
        ae.require_called_aet = True
        ae.require_calling_aet = ["CT1", "CT2"]
        ae.add_supported_context(Verification, ImplicitVRLittleEndian)
        self.assertEqual(
            str(ae),
            """Application Entity 'PACS'
  Implementation: 1.2.3 V1
  Maximum PDU size: no limit
  Timeouts in seconds: ACSE 30.0, DIMSE 30.0, network 60.0, connection None
  Associations: 0 active, 1000 at the most
  Called AE title: must be ours
  Calling AE titles: CT1, CT2
  Requested presentation contexts: none
  Supported presentation contexts: 1
    Abstract Syntax: Verification SOP Class
    Transfer Syntax(es):
        =Implicit VR Little Endian""",
        )

    def test_without(self) -> None:
        """
        The printed form leaves out an absent version name and has words for empty requirements.
        """
        ae = AE()
        ae.implementation_version_name = None
        self.assertIn("  Called AE title: any\n  Calling AE titles: any\n", str(ae))
        self.assertIn(f"  Implementation: {IMPLEMENTATION_CLASS_UID}\n", str(ae))


class ArgumentTests(SynchronousTestCase):
    """
    Arguments that associate and start_server refuse at once, before a connection is made.
    """

    def setUp(self) -> None:
        self.ae = AE()
        self.ae.requested_contexts = self.ae.supported_contexts = VERIFICATION

    def refused(self, error: type[Exception], words: str, *args: Any, **kwargs: Any) -> None:
        raised = self.assertRaises(error, self.ae.associate, *args, **kwargs)
        self.assertIn(words, str(raised))

    def test_associate(self) -> None:
        """
        Titles, contexts, items, addresses: each error says what is wrong.
        """
        self.refused(ValueError, "the called AE title", "127.0.0.1", 104, ae_title="A\\B")
        self.refused(ValueError, "128", "127.0.0.1", 104, contexts=VERIFICATION * 129)
        self.refused(RuntimeError, "contexts= is empty", "127.0.0.1", 104, contexts=[])
        self.refused(TypeError, "build_role", "127.0.0.1", 104, ext_neg=["item"])
        self.refused(ValueError, "maximum_pdu_size", "127.0.0.1", 104, max_pdu=-1)
        self.refused(TypeError, "port needs a host name", TCP4ClientEndpoint(None, "127.0.0.1", 104), 104)
        self.refused(ValueError, "needs a host and a port", "tcp:127.0.0.1:104", bind_address=("127.0.0.1", 0))
        self.refused(ValueError, "flowinfo", "127.0.0.1", 104, bind_address=("127.0.0.1",))
        self.refused(TypeError, "a port as int", "127.0.0.1", 104, bind_address=("127.0.0.1", "0"))
        self.refused(ValueError, "flow label 7", "::1", 104, bind_address=("::1", 0, 7, 0))
        for port in (-1, 65536, 70_000, 2**40):
            for host in ("127.0.0.1", "::1", "localhost", "pacs.example.org"):
                self.refused(ValueError, "from 0 to 65535", host, port)
            self.refused(ValueError, "from 0 to 65535", "127.0.0.1", 104, bind_address=("127.0.0.1", port))
            self.assertRaises(ValueError, self.ae.start_server, ("127.0.0.1", port))
        self.refused(EndpointError, "nonsense", "nonsense")
        self.refused(TypeError, "EVT_C_ECHO", "127.0.0.1", 104, evt_handlers=[("EVT_C_ECHO", print)])

    def test_tls_args(self) -> None:
        """
        A context of the module ssl, and what is no context at all, with what to pass instead.
        """
        stdlib = ssl.create_default_context()
        self.refused(TypeError, "OpenSSL.SSL.Context", "127.0.0.1", 104, tls_args=(stdlib, None))
        self.refused(TypeError, "dicomtls:", "127.0.0.1", 104, tls_args=stdlib)
        self.refused(TypeError, "CertificateOptions", "127.0.0.1", 104, tls_args=("ca.pem", None))
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        self.refused(TypeError, "a host name must be a str", "127.0.0.1", 104, tls_args=(context, 3))
        self.refused(ValueError, "neither a host name", "127.0.0.1", 104, tls_args=(context, "a..b"))
        error = self.assertRaises(TypeError, self.ae.start_server, ("127.0.0.1", 0), ssl_context=stdlib)
        self.assertIn("server_tls_options", str(error))
        self.assertRaises(TypeError, self.ae.start_server, ("127.0.0.1", 0), ssl_context="cert.pem")

    def test_start_server(self) -> None:
        """
        Blocking, no contexts, a title twice on one port, addresses.
        """
        start = self.ae.start_server
        self.assertIn("await", str(self.assertRaises(ValueError, start, 0, block=True)))
        error = self.assertRaises(ValueError, start, 0, contexts=[])
        self.assertIn("no supported presentation contexts", str(error))
        self.assertIn("must differ", str(self.assertRaises(ValueError, start, 0, others=[self.ae])))
        self.assertRaises(ValueError, start, 0, ae_title="")
        self.assertRaises(ValueError, start, ("127.0.0.1",))
        self.assertRaises(TypeError, start, ("127.0.0.1", "104"))
        self.assertRaises(EndpointError, start, 65536)
        self.assertIn("acceptor_factory", str(self.assertRaises(TypeError, self.ae.make_server, ("", 104))))

    def test_requestor_factory(self) -> None:
        """
        The factory numbers copies of the contexts: those of the AE have no IDs.
        """
        protocol = self.ae.requestor_factory("PACS", ext_neg=[build_role(Verification, True)]).buildProtocol(None)
        association: Any = protocol.user
        self.assertEqual([c.context_id for c in association.requestor.presentation_contexts], [1])
        self.assertIsNone(self.ae.requested_contexts[0].context_id)
        self.assertEqual(association.acceptor.ae_title, "PACS")


@implementer(IStreamServerEndpoint)
class Listening:
    """An endpoint that hides another one behind it, as users may write."""

    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint

    def listen(self, factory: Any) -> Any:
        return self._endpoint.listen(factory)


class AssociationTests(TestCase):
    """
    Over loopback: servers, associations, hooks of the AE, shutdown.
    """

    async def serve(self, ae: AE, address: Any = ("127.0.0.1", 0), **kwargs: Any) -> Server:
        server = await ae.start_server(address, **kwargs)
        self.addCleanup(server.shutdown)
        return server

    def scp(self, title: str = "SCP") -> AE:
        ae = AE(title)
        ae.supported_contexts = VERIFICATION
        return ae

    def scu(self) -> AE:
        ae = AE("SCU")
        ae.requested_contexts = VERIFICATION
        return ae

    async def test_addresses(self) -> None:
        """
        A tuple, a port, a description, an endpoint of anybody's: all listen.
        """
        from twisted.internet import reactor

        endpoint = Listening(TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1"))
        for address in (("127.0.0.1", 0), 0, "tcp:0:interface=127.0.0.1", endpoint):
            ae = self.scp()
            server = await self.serve(ae, address)
            self.assertGreater(server.port, 0)
            async with await self.scu().associate("127.0.0.1", server.port) as assoc:
                self.assertEqual(await assoc.send_c_echo(), 0)

    async def test_active_associations(self) -> None:
        """
        Those of both roles, while they are established.
        """
        scp, scu = self.scp(), self.scu()
        server = await self.serve(scp)
        assoc = await scu.associate("127.0.0.1", server.port)
        await assoc.send_c_echo()
        self.assertEqual(scu.active_associations, [assoc])
        (accepted,) = scp.active_associations
        self.assertEqual(server.active_associations, [accepted])
        self.assertEqual((accepted.requestor.ae_title, accepted.requestor.called_ae_title), ("SCU", "ANY-SCP"))
        ended = accepted.when_ended()
        await assoc.release()
        await ended
        self.assertEqual((scu.active_associations, scp.active_associations), ([], []))

    async def test_maximum_associations(self) -> None:
        """
        One more than the maximum is rejected as transient, local limit exceeded (2, 3, 2); when one has ended there is
        room again.
        """
        scp, scu = self.scp(), self.scu()
        scp.maximum_associations = 1
        server = await self.serve(scp)
        first = await scu.associate("127.0.0.1", server.port)
        error: Any = await self.assertFailure(scu.associate("127.0.0.1", server.port), AssociationRejected)
        self.assertEqual((error.result, error.source, error.reason), (2, 3, 2))
        (accepted,) = server.active_associations
        ended = accepted.when_ended()
        await first.release()
        await ended
        await (await scu.associate("127.0.0.1", server.port)).release()

    async def test_bind(self) -> None:
        """
        A handler bound at the AE is called for each association, until it is unbound.
        """
        seen: list[tuple[Any, ...]] = []

        def established(event: evt.Event, *args: object) -> None:
            seen.append((event.assoc.mode, *args))

        scp, scu = self.scp(), self.scu()
        scp.bind(evt.EVT_ESTABLISHED, established, ["scp"])
        scu.bind(evt.EVT_ESTABLISHED, established)
        server = await self.serve(scp)
        await (await scu.associate("127.0.0.1", server.port)).release()
        self.assertEqual(sorted(seen), [("acceptor", "scp"), ("requestor",)])
        scu.unbind(evt.EVT_ESTABLISHED, established)
        scp.unbind(evt.EVT_ESTABLISHED, established)
        await (await scu.associate("127.0.0.1", server.port)).release()
        self.assertEqual(len(seen), 2)

    async def test_pdus(self) -> None:
        """
        EVT_PDU_SENT reports every PDU but P-DATA-TF; EVT_PDU_RECV reports every PDU, P-DATA-TF once for each fragment.
        """
        seen: list[tuple[str, str, str]] = []

        def note(event: evt.Event, side: str) -> None:
            seen.append((side, event.event.name[-4:], type(event.pdu).__name__))

        scp, scu = self.scp(), self.scu()
        for ae, side in ((scp, "scp"), (scu, "scu")):
            ae.bind(evt.EVT_PDU_RECV, note, [side])
            ae.bind(evt.EVT_PDU_SENT, note, [side])
        server = await self.serve(scp)
        assoc = await scu.associate("127.0.0.1", server.port)
        await assoc.send_c_echo()
        (accepted,) = scp.active_associations
        ended = accepted.when_ended()
        await assoc.release()
        await ended
        self.assertEqual(
            [each[1:] for each in seen if each[0] == "scu"],
            [
                ("SENT", "AAssociateRQ"),
                ("RECV", "AAssociateAC"),
                ("RECV", "Fragment"),
                ("SENT", "AReleaseRQ"),
                ("RECV", "AReleaseRP"),
            ],
        )
        self.assertEqual(
            [each[1:] for each in seen if each[0] == "scp"],
            [
                ("RECV", "AAssociateRQ"),
                ("SENT", "AAssociateAC"),
                ("RECV", "Fragment"),
                ("RECV", "AReleaseRQ"),
                ("SENT", "AReleaseRP"),
            ],
        )
        seen.clear()
        assoc = await scu.associate("127.0.0.1", server.port)
        await assoc.send_c_echo()
        (accepted,) = scp.active_associations
        ended = accepted.when_ended()
        assoc.abort()
        await ended
        self.assertEqual(
            [each for each in seen if each[2] == "AAbort"], [("scu", "SENT", "AAbort"), ("scp", "RECV", "AAbort")]
        )

    async def test_several_titles(self) -> None:
        """
        Several AEs on one port: each answers to its title with its own settings; who is not called is not there.
        """
        first, second = self.scp("FIRST"), self.scp("SECOND")
        first.require_called_aet = second.require_called_aet = True
        second.bind(evt.EVT_C_ECHO, lambda event: 0x0122)
        server = await self.serve(first, others=[second])
        scu = self.scu()
        for title, status in (("FIRST", 0), ("SECOND", 0x0122)):
            async with await scu.associate("127.0.0.1", server.port, ae_title=title) as assoc:
                self.assertEqual(await assoc.send_c_echo(), status)
                self.assertEqual(len((first if title == "FIRST" else second).active_associations), 1)
        error: Any = await self.assertFailure(
            scu.associate("127.0.0.1", server.port, ae_title="THIRD"), AssociationRejected
        )
        self.assertEqual((error.result, error.source, error.reason), (1, 1, 7))

    async def test_shutdown(self) -> None:
        """
        Servers stop, and associations of both roles end.
        """
        scp, scu = self.scp(), self.scu()
        server = await self.serve(scp)
        assoc = await scu.associate("127.0.0.1", server.port)
        ended = assoc.when_ended()
        await scp.shutdown()
        await ended
        self.assertTrue(assoc.is_aborted)
        self.assertEqual(server.addresses, [])
        server = await self.serve(scp)
        assoc = await scu.associate("127.0.0.1", server.port)
        await scu.shutdown()
        self.assertTrue(assoc.is_aborted)

    async def test_cannot_listen(self) -> None:
        """
        A port that is taken fails the Deferred, and leaves nothing behind.
        """
        from twisted.internet.error import CannotListenError

        server = await self.serve(self.scp())
        await self.assertFailure(self.scp().start_server(("127.0.0.1", server.port)), CannotListenError)
