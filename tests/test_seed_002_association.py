"""
Association, sentence by sentence of the reference document 002.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from OpenSSL.crypto import FILETYPE_PEM
from pydicom import Dataset
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.ssl import Certificate, CertificateOptions, KeyPair, PrivateCertificate, trustRootFromCertificates

from dicomtwist import (
    AE,
    AssociationAborted,
    AssociationRejected,
    NoPresentationContext,
    NotEstablished,
    QueryRetrievePresentationContexts,
    StoragePresentationContexts,
    UserIdentity,
    build_context,
    build_role,
    evt,
)
from dicomtwist.endpoints import client_tls_options, server_tls_options
from dicomtwist.sop_class import CTImageStorage, Verification, VerificationSOPClass
from tests.certificates import Authority
from tests.loopback import LoopbackTestCase, ct_image


class RequestingTests(LoopbackTestCase):
    """
    "Requesting an Association (SCU)".
    """

    async def test_associate(self) -> None:
        """
        ``ae.associate('127.0.0.1', 11112)``, "with ... the default Called AE Title parameter of b'ANY-SCP         '".
        """
        called: list[object] = []
        scp = self.scp()
        server = await self.serve(
            scp, evt_handlers=[(evt.EVT_REQUESTED, lambda e: called.append(e.pdu.called_ae_title))]
        )
        ae = AE()
        ae.add_requested_context(VerificationSOPClass)
        assoc = await ae.associate("127.0.0.1", server.port)
        self.assertTrue(assoc.is_established)
        await assoc.release()
        self.assertEqual(called, ["ANY-SCP"])

    async def test_called_title(self) -> None:
        """
        "Specifying the Called AE Title": ``ae_title=b'STORE_SCP'``, for an SCP that rejects any other.
        """
        scp = self.scp("STORE_SCP")
        scp.require_called_aet = True
        server = await self.serve(scp)
        await self.failure(self.scu().associate("127.0.0.1", server.port), AssociationRejected)
        await (await self.scu().associate("127.0.0.1", server.port, ae_title=b"STORE_SCP")).release()

    async def test_contexts(self) -> None:
        """
        "Specifying Presentation Contexts for each Association": ``contexts=``, while the AE has none.
        """
        server = await self.serve(self.scp())
        ae = AE()
        requested_contexts = [build_context("1.2.840.10008.1.1")]
        async with await ae.associate("127.0.0.1", server.port, contexts=requested_contexts) as assoc:
            self.assertEqual([context.abstract_syntax for context in assoc.accepted_contexts], [Verification])

    async def test_extended_negotiation(self) -> None:
        """
        "Using Extended Negotiation", the whole example.

        The example assigns requested_contexts twice and relies on the second assignment adding to the first. The newer
        documents 001 and 004 say of the same attribute "set all the requested contexts at once", and dicomtwist follows them,
        because an assignment that adds would leave no way to replace the contexts. So the test adds the lists instead. They
        would have 133 contexts, so it takes fewer of the storage contexts.
        """
        scp = AE()
        for context in QueryRetrievePresentationContexts:
            assert context.abstract_syntax is not None
            scp.add_supported_context(context.abstract_syntax)
        for context in StoragePresentationContexts:
            assert context.abstract_syntax is not None
            scp.add_supported_context(context.abstract_syntax, scu_role=True, scp_role=True)
        seen: list[tuple[object, ...]] = []

        def handle_user_id(event: evt.Event) -> tuple[bool, None]:
            seen.append((event.user_id_type, event.primary_field, event.secondary_field))
            return True, None

        server = await self.serve(scp, evt_handlers=[(evt.EVT_USER_ID, handle_user_id)])

        ae = AE()
        storage = StoragePresentationContexts[:100]
        ae.requested_contexts = QueryRetrievePresentationContexts + storage
        negotiation_items: list[object] = []
        for context in storage:
            assert context.abstract_syntax is not None
            negotiation_items.append(build_role(context.abstract_syntax, scp_role=True))
        negotiation_items.append(UserIdentity(2, primary=b"username", secondary=b"password"))
        async with await ae.associate("127.0.0.1", server.port, ext_neg=negotiation_items) as assoc:
            self.assertEqual(len(assoc.accepted_contexts), len(ae.requested_contexts))
            self.assertEqual({context.as_scp for context in assoc.accepted_contexts[-100:]}, {True})
            self.assertEqual({context.as_scu for context in assoc.accepted_contexts[:-100]}, {True})
        self.assertEqual(seen, [(2, b"username", b"password")])

    def test_assigned_twice(self) -> None:
        """An assignment sets the contexts, see above: the second one replaces the first."""
        ae = AE()
        ae.requested_contexts = QueryRetrievePresentationContexts
        ae.requested_contexts = StoragePresentationContexts
        self.assertEqual(ae.requested_contexts, StoragePresentationContexts)
        ae.requested_contexts += [build_context(Verification)]
        self.assertEqual(len(ae.requested_contexts), 121)


class TLSTests(LoopbackTestCase):
    """
    "TLS", on both sides.

    The examples use contexts of the module ``ssl``, which do not work with Twisted; the tests use pyOpenSSL's instead.
    """

    def setUp(self) -> None:
        folder = self.mktemp()
        os.mkdir(folder)
        self.authority = Authority(folder, "own")
        self.key = self.authority.issue("localhost")
        self.client_key = self.authority.issue("client")
        self.other = Authority(folder, "other")

    def context(self, method: int, key: str | None = None, trust: str | None = None) -> SSL.Context:
        context = SSL.Context(method)
        if key is not None:
            context.use_privatekey_file(key)
            context.use_certificate_chain_file(key)
        if trust is not None:
            context.load_verify_locations(trust)
            context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *args: bool(args[-1]))
        return context

    def server_context(self, trust: str | None = None) -> SSL.Context:
        return self.context(SSL.TLS_SERVER_METHOD, self.key, trust)

    def client_context(self, key: str | None = None, trust: str | None = None) -> SSL.Context:
        return self.context(SSL.TLS_CLIENT_METHOD, key, trust or self.authority.path)

    async def echo(self, tls_args: object, ssl_context: object, host: str = "127.0.0.1") -> None:
        server = await self.serve(self.scp(), ssl_context=ssl_context)
        assoc = await self.scu().associate(host, server.port, tls_args=tls_args)
        self.assertEqual(await assoc.send_c_echo(), 0)
        self.assertTrue(assoc.protocol.secure)
        await assoc.release()

    async def test_example(self) -> None:
        """Client and server check each other's certificates: ``tls_args=(context, None)``, ``ssl_context=context``."""
        await self.echo((self.client_context(self.client_key), None), self.server_context(self.authority.path))

    async def test_hostname(self) -> None:
        """
        "host is the value of the server_hostname keyword parameter": the server receives it, and the certificate must match it.
        """
        await self.echo((self.client_context(), "localhost"), self.server_context())
        server = await self.serve(self.scp(), ssl_context=self.server_context())
        args = (self.client_context(), "pacs.example.org")
        error = await self.failure(self.scu().associate("127.0.0.1", server.port, tls_args=args), Exception)
        self.assertIn("host name mismatch", str(error))

    async def test_untrusted(self) -> None:
        """A server with an untrusted certificate, and a client without a required one, get no association."""
        server = await self.serve(self.scp(), ssl_context=self.server_context())
        for hostname in (None, "localhost"):
            args = (self.client_context(trust=self.other.path), hostname)
            await self.failure(self.scu().associate("127.0.0.1", server.port, tls_args=args), Exception)
        strict = await self.serve(self.scp(), ssl_context=self.server_context(self.authority.path))
        scu = self.scu()
        await self.failure(scu.associate("127.0.0.1", strict.port, tls_args=(self.client_context(), None)), Exception)
        self.assertEqual(scu.active_associations, [])

    async def test_what_else_is_taken(self) -> None:
        """Both sides also accept Twisted's CertificateOptions, and dicomtwist's own options."""
        pem = Path(self.key).read_bytes()
        private = PrivateCertificate.fromCertificateAndKeyPair(
            Certificate.loadPEM(pem), KeyPair.load(pem, FILETYPE_PEM)
        )
        root = trustRootFromCertificates([Certificate.loadPEM(Path(self.authority.path).read_bytes())])
        await self.echo((CertificateOptions(trustRoot=root), "localhost"), private.options())
        await self.echo(CertificateOptions(trustRoot=root), private.options())
        server_options = server_tls_options(self.key, self.key, client_certificate="none")
        client_options = client_tls_options("localhost", self.authority.path)
        await self.echo((client_options, None), server_options)
        await self.echo(client_options, server_options)
        error = self.assertRaises(
            ValueError, self.scu().associate, "127.0.0.1", 104, tls_args=(client_options, "localhost")
        )
        self.assertIn("its own host name", str(error))

    def test_stdlib(self) -> None:
        """A context of the module ``ssl`` raises at once, and the error says what to pass."""
        ssl_cx = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        error = self.assertRaises(TypeError, self.scu().associate, "127.0.0.1", 104, tls_args=(ssl_cx, None))
        self.assertIn("OpenSSL.SSL.Context", str(error))
        error = self.assertRaises(TypeError, self.scp().start_server, ("", 0), ssl_context=ssl_cx)
        self.assertIn("OpenSSL.SSL.Context", str(error))


class OutcomeTests(LoopbackTestCase):
    """
    "Outcomes of an Association Request": "There are four potential outcomes".
    """

    async def test_accepted(self) -> None:
        """
        "acceptance and establishment".
        """
        server = await self.serve(self.scp())
        assoc = await self.scu().associate("127.0.0.1", server.port)
        self.assertTrue(assoc.is_established)
        self.assertFalse(assoc.is_rejected or assoc.is_aborted or assoc.is_released)
        await assoc.release()
        self.assertFalse(assoc.is_established)
        self.assertTrue(assoc.is_released)

    async def test_rejected(self) -> None:
        """
        "association rejection": not an association that has to be checked, but an exception that says why.
        """
        scp = self.scp()
        scp.require_calling_aet = ["SOMEBODY"]
        server = await self.serve(scp)
        error = await self.failure(self.scu().associate("127.0.0.1", server.port), AssociationRejected)
        self.assertEqual((error.result, error.source, error.reason), (1, 1, 3))

    async def test_aborted(self) -> None:
        """
        "association abort".
        """
        server = await self.serve(self.scp(), evt_handlers=[(evt.EVT_REQUESTED, lambda event: event.assoc.abort())])
        error = await self.failure(self.scu().associate("127.0.0.1", server.port), AssociationAborted)
        self.assertTrue(error.by_peer)

    async def test_no_connection(self) -> None:
        """
        "or a connection failure": the error of the connection is passed on.
        """
        server = await self.serve(self.scp())
        port = server.port
        await server.shutdown()
        await self.failure(self.scu().associate("127.0.0.1", port), ConnectionRefusedError)


class UsingTests(LoopbackTestCase):
    """
    "Using an Association (SCU)".
    """

    async def test_not_established(self) -> None:
        """
        "Attempting to use a service without an established association will raise a RuntimeError".
        """
        server = await self.serve(self.scp())
        assoc = await self.scu().associate("127.0.0.1", server.port)
        await assoc.release()
        for call in (assoc.send_c_echo(), assoc.send_c_store(ct_image())):
            error = await self.failure(call, RuntimeError)
            self.assertIsInstance(error, NotEstablished)

    async def test_not_supported(self) -> None:
        """
        "attempting to use a service that is not supported by the association will raise a ValueError".
        """
        server = await self.serve(self.scp())
        async with await self.scu().associate(
            "127.0.0.1", server.port, contexts=[build_context(Verification)]
        ) as assoc:
            error = await self.failure(assoc.send_c_store(ct_image()), ValueError)
            self.assertIsInstance(error, NoPresentationContext)
        async with await self.scu().associate(
            "127.0.0.1", server.port, contexts=[build_context(CTImageStorage)]
        ) as assoc:
            await self.failure(assoc.send_c_echo(), ValueError)

    async def test_release(self) -> None:
        """
        "Releasing an Association": it is over on both sides.
        """
        scp = self.scp()
        server = await self.serve(scp)
        assoc = await self.scu().associate("127.0.0.1", server.port)
        await assoc.send_c_echo()
        (accepted,) = scp.active_associations
        ended = accepted.when_ended()
        await assoc.release()
        await ended
        self.assertTrue(assoc.is_released and accepted.is_released)

    async def test_user_identity_response(self) -> None:
        """
        "Accessing User Identity Responses": ``assoc.acceptor.user_identity``.
        """
        server = await self.serve(self.scp(), evt_handlers=[(evt.EVT_USER_ID, lambda event: (True, b"ticket"))])
        identity = UserIdentity(3, b"request", response_requested=True)
        async with await self.scu().associate("127.0.0.1", server.port, ext_neg=[identity]) as assoc:
            self.assertEqual(assoc.acceptor.user_identity, b"ticket")


class ListeningTests(LoopbackTestCase):
    """
    "Listening for Association Requests (SCP)" and "Providing DIMSE Services (SCP)".
    """

    async def test_start_server(self) -> None:
        """
        ``ae.start_server(('', 11112))``: "suitable as an implementation of the Verification Service Class".
        """
        ae = AE()
        ae.add_supported_context(VerificationSOPClass)
        server = await self.serve(ae, ("", 0))
        async with await self.scu().associate("127.0.0.1", server.port) as assoc:
            self.assertEqual(await assoc.send_c_echo(), 0x0000)

    async def test_blocking(self) -> None:
        """
        "both blocking ... and non-blocking modes": every server here is non-blocking, as with ``block=False``; ``block=True``
        is an error that says what to do.
        """
        ae = self.scp()
        server = await ae.start_server(("127.0.0.1", 0), block=False)
        error = self.assertRaises(ValueError, ae.start_server, ("127.0.0.1", 0), block=True)
        self.assertIn("reactor.run()", str(error))
        await server.shutdown()

    async def test_shutdown(self) -> None:
        """
        "can be stopped using shutdown() and all active association can be stopped using AE.shutdown()".
        """
        ae = self.scp()
        first, second = await self.serve(ae), await self.serve(ae)
        assoc = await self.scu().associate("127.0.0.1", second.port)
        port = first.port
        await first.shutdown()
        await self.failure(self.scu().associate("127.0.0.1", port), ConnectionRefusedError)
        self.assertTrue(assoc.is_established)
        ended = assoc.when_ended()
        await ae.shutdown()
        await ended
        self.assertTrue(assoc.is_aborted)

    async def test_on_c_store(self) -> None:
        """
        ``ae.on_c_store = on_c_store`` with the arguments ds, context, info; it returns "either an int or a Dataset
        object" with a Status.
        """
        ae = self.scp()
        calls: list[Any] = []
        status = Dataset()
        status.Status = 0xB000
        status.ErrorComment = "coerced"
        answers: list[Any] = [0x0000, status]

        def on_c_store(ds: Dataset, context: Any, info: dict[str, Any]) -> Any:
            calls.append((ds.SOPInstanceUID, context.abstract_syntax, info["parameters"]["message_id"]))
            return answers[len(calls) - 1]

        ae.on_c_store = on_c_store
        server = await self.serve(ae)
        async with await self.scu().associate("127.0.0.1", server.port) as assoc:
            self.assertEqual(await assoc.send_c_store(ct_image("1.2.1")), 0)
            second = await assoc.send_c_store(ct_image("1.2.2"))
            self.assertEqual((second, second.error_comment), (0xB000, "coerced"))
        self.assertEqual(calls, [("1.2.1", CTImageStorage, 1), ("1.2.2", CTImageStorage, 2)])

    async def test_no_callback(self) -> None:
        """
        Without a callback a C-STORE fails, and the association goes on: "excluding C-ECHO which has a default implementation
        that always returns a 0x0000 Success response".
        """
        server = await self.serve(self.scp())
        async with await self.scu().associate("127.0.0.1", server.port) as assoc:
            self.assertEqual(await assoc.send_c_store(ct_image()), 0xC211)
            self.assertEqual(await assoc.send_c_echo(), 0)

    async def test_join(self) -> None:
        """An association is not a thread: joining it is an error that says what to wait for."""
        server = await self.serve(self.scp())
        async with await self.scu().associate("127.0.0.1", server.port) as assoc:
            self.assertIn("when_ended()", str(self.assertRaises(TypeError, assoc.join)))
