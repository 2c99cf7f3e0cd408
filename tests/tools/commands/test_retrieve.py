"""``dicomtwist get`` and ``dicomtwist move``."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from click import UsageError
from pydicom import dcmread
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import AE, Association, evt
from dicomtwist.presentation import ALL_TRANSFER_SYNTAXES
from dicomtwist.retrieval.contexts import (
    all_classes,
    first_contexts,
    further_contexts,
    receiving_contexts,
    thorough_contexts,
    usual_classes,
)
from dicomtwist.sop_class import CTImageStorage
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelGet as STUDY_GET
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelMove as STUDY_MOVE
from dicomtwist.tools.contexts import sop_classes_named
from dicomtwist.tools.query.keys import parse_key
from dicomtwist.tools.query.query import make_query
from tests import peers
from tests.interop.archives import dcmqrscp, expected_bytes, orthanc, study
from tests.tools.common import ToolTestCase, reactor

STUDY = f"StudyInstanceUID={study()[0].study}"


class Proposed(SynchronousTestCase):
    """The presentation contexts for receiving."""

    def test_common_ones(self) -> None:
        """Each SOP Class uncompressed, the most usual ones compressed as well, as far as there is room."""
        classes = usual_classes()
        contexts = receiving_contexts(classes, 127)
        self.assertEqual(len(contexts), 127)
        self.assertEqual({context.abstract_syntax for context in contexts}, set(classes))
        compressed = [str(context.abstract_syntax) for context in contexts[len(classes) :]]
        self.assertEqual(compressed, [str(uid) for uid in classes[: 127 - len(classes)]])
        self.assertIn(str(CTImageStorage), compressed)

    def test_named_ones(self) -> None:
        """The fewer SOP Classes, the more contexts with one transfer syntax; none is missing and none occurs twice."""
        for count in (1, 2, 10, 63, 64, 127):
            classes = sop_classes_named("storage")[:count]
            contexts = receiving_contexts(classes, 127)
            self.assertLessEqual(len(contexts), 127)
            for uid in classes:
                proposed = [
                    str(syntax)
                    for context in contexts
                    if context.abstract_syntax == uid
                    for syntax in context.transfer_syntax
                ]
                self.assertEqual(len(proposed), len(set(proposed)))
                if count <= 63:
                    missing = {str(syntax) for syntax in ALL_TRANSFER_SYNTAXES} - set(proposed)
                    self.assertEqual(missing, {"1.2.840.10008.1.2.2"})  # it is converted

    def test_more_than_an_association_has_room_for(self) -> None:
        """Each class is proposed in all transfer syntaxes, over several associations, and nothing twice."""
        first = first_contexts(all_classes(), 124)
        further = list(further_contexts(all_classes(), first, 124))
        self.assertGreater(len(further), 1)
        proposed = [context for contexts in (first, *further) for context in contexts]
        self.assertTrue(all(len(contexts) <= 124 for contexts in further))
        self.assertEqual({context.abstract_syntax for context in proposed}, set(sop_classes_named("storage")))
        for uid in all_classes():
            syntaxes = [syntax for each in proposed if each.abstract_syntax == uid for syntax in each.transfer_syntax]
            self.assertEqual(len(syntaxes), len(set(syntaxes)), uid)
            self.assertEqual({str(one) for one in ALL_TRANSFER_SYNTAXES} - set(syntaxes), {"1.2.840.10008.1.2.2"}, uid)

    def test_known_classes(self) -> None:
        """Instances of known classes get each compressed transfer syntax in a context of its own."""
        classes = all_classes()[:7]
        plans = list(thorough_contexts(classes, 124))
        self.assertEqual(len(plans), 4)
        self.assertEqual({each.abstract_syntax for plan in plans for each in plan}, set(classes))
        for plan in plans:
            self.assertLessEqual(len(plan), 124)
            self.assertEqual({len(each.transfer_syntax) for each in plan}, {1, 2})
        self.assertEqual(list(thorough_contexts((), 124)), [])

    def test_mistakes(self) -> None:
        with self.assertRaisesRegex(ValueError, "neither the keyword of a SOP Class"):
            sop_classes_named("CTImage")


class Levels(SynchronousTestCase):
    """The default level of a query."""

    def test_the_lowest_unique_key(self) -> None:
        for service, root, keys, level in (
            ("Get", "study", ["StudyInstanceUID=1.2"], "STUDY"),
            ("Get", "study", ["StudyInstanceUID=1.2", "SeriesInstanceUID=1.3", "SOPInstanceUID"], "SERIES"),
            ("Move", "patient", ["PatientID=1", "StudyInstanceUID=1.2", "SOPInstanceUID=1.4"], "IMAGE"),
            ("Move", "patient", ["PatientID=1"], "PATIENT"),
            ("Get", "study", ["PatientID=1"], "STUDY"),
            ("Get", "patient", ["PatientName=A"], "STUDY"),
            ("Find", "patient", ["PatientID=1"], "STUDY"),
            ("Find", "patient", ["PatientID=1", "QueryRetrieveLevel=PATIENT"], "PATIENT"),
        ):
            query = make_query([parse_key(key) for key in keys], (), None, root, service, add_defaults=False)
            self.assertEqual(query.identifier.QueryRetrieveLevel, level, (service, root, keys))

    def test_the_model_of_the_level(self) -> None:
        """Without ``--root``, the level says which model is used, and the keys say the level."""
        for service, level, keys, model, expected in (
            ("Get", None, ["StudyInstanceUID=1.2"], "Study", "STUDY"),
            ("Move", None, ["PatientID=1"], "Patient", "PATIENT"),
            ("Move", None, ["PatientID=1", "StudyInstanceUID=1.2"], "Study", "STUDY"),
            ("Find", None, ["PatientID=1"], "Study", "STUDY"),
            ("Find", "PATIENT", ["PatientID=1"], "Patient", "PATIENT"),
            ("Find", None, ["PatientID=1", "QueryRetrieveLevel=PATIENT"], "Patient", "PATIENT"),
        ):
            query = make_query([parse_key(key) for key in keys], (), level, None, service, add_defaults=False)
            self.assertTrue(query.model.name.startswith(f"{model} Root"), (service, keys))
            self.assertEqual(query.identifier.QueryRetrieveLevel, expected)
        with self.assertRaisesRegex(UsageError, "--root study"):
            make_query((), (), "PATIENT", "study", "Find", add_defaults=False)


class Archives(ToolTestCase):
    """Real archives, which know us as CT1."""

    def files(self, folder: Path) -> list[Path]:
        """Check that *folder* holds the study."""
        paths = sorted(folder.rglob("*.dcm"))
        for path in paths:
            dataset = dcmread(path)
            uids = (dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)
            self.assertEqual(path, folder / uids[0] / uids[1] / f"{uids[2]}.dcm")
            (original,) = [file for file in study() if file.sop_instance == uids[2]]
            self.assertEqual(dataset.PixelData, dcmread(original.path).PixelData)
        return paths

    async def ask(self, peer: str, port: int, *, moves: bool = True) -> None:
        """Get and move the study, and instances that the archive has not."""
        calling = ("--calling", "CT1")
        result = await self.tool("get", *calling, peer, self.folder / "got", "-k", STUDY)
        self.assertEqual(result.code, 0, result.text)
        self.assertIn(f"  stored     {len(study())}  in {self.folder}/got\n", result.stdout.decode())
        self.assertEqual(len(self.files(self.folder / "got")), len(study()))
        receives = ("--receive", self.folder / "moved", "--listen", f"tcp:{port}:interface=127.0.0.1")
        document = await self.json("move", *calling, *receives, peer, "-k", STUDY, code=0)
        self.assertEqual(
            (document["completed"], document["failed"], document["stored"]), (len(study()), 0, len(study()))
        )
        self.assertEqual(len(self.files(self.folder / "moved")), len(study()))
        patient = ("--root", "patient", "-k", f"PatientID={dcmread(study()[0].path).PatientID}")
        document = await self.json("get", *calling, *patient, peer, self.folder / "patient", code=0)
        self.assertEqual(len(self.files(self.folder / "patient")), document["stored"])
        document = await self.json("move", *calling, "--to", "NOBODY", peer, "-k", STUDY, code=1)
        self.assertEqual(document["completed"], 0)
        document = await self.json("get", *calling, peer, self.folder / "none", "-k", "StudyInstanceUID=1.2.3", code=1)
        self.assertEqual((document["stored"], self.files(self.folder / "none")), (0, []))

    async def store(self, peer: str, files: Sequence[peers.DicomFile]) -> None:
        """Fill an archive."""
        result = await self.tool("store", "-q", peer, *[file.path for file in files])
        self.assertEqual(result.code, 0, result.text)

    async def test_twist_dicom(self) -> None:
        """Fetch everything, at a terminal with a bar as well."""
        back = peers.free_port()
        port, _ = await self.twist_dicom("--peer", f"CT1=127.0.0.1:{back}")
        peer = f"127.0.0.1:{port}"
        await self.store(peer, study())
        await self.ask(peer, back)
        process = self.terminal("get", "--durability", "none", peer, self.folder / "again", "-k", STUDY)
        result = await process.wait(120)
        self.assertEqual(result.code, 0, result.text)
        count = len(study())
        self.assertIn(f"{count}/{count}", result.text)
        self.assertEqual(len(self.files(self.folder / "again")), count)
        # Nothing listens at the address of CT1; and we accept no SOP Class that the archive has.
        document = await self.json("move", "--to", "CT1", peer, "-k", STUDY, code=1)
        self.assertEqual((document["status"], document["failed"]), ("0xA702", count))
        self.assertEqual(len(document["failed_instances"]), count)
        self.assertIn("does it reach CT1? Check the address that", document["error"])
        document = await self.json("move", "--to", "CT9", peer, "-k", STUDY, code=1)
        self.assertRegex(document["error"], "0xA801.*: ANY-SCP@.* needs an address for CT9 in its configuration")
        document = await self.json(
            "get", "--sop-class", "MRImageStorage", peer, self.folder / "no", "-k", STUDY, code=1
        )
        self.assertEqual((document["failed"], document["stored"]), (count, 0))

    async def test_dcmqrscp(self) -> None:
        back = peers.free_port()
        port = await dcmqrscp(self, study(), {"CT1": back})
        await self.ask(f"DCMQRSCP@127.0.0.1:{port}", back)

    async def test_orthanc(self) -> None:
        back = peers.free_port()
        port = await orthanc(self, study(), {"CT1": back})
        await self.ask(f"ORTHANC@127.0.0.1:{port}", back)

    def test_mistakes(self) -> None:
        taken = self.folder / "file"
        taken.write_text("")
        for command, options, words in (
            ("get", [self.folder / "x"], "nothing selects what to send"),
            ("get", [self.folder / "x", "-k", "StudyInstanceUID"], "nothing selects what to send"),
            ("get", [taken, "-k", STUDY], "is a file"),
            ("get", [self.folder / "no" / "x", "-k", STUDY], "make the folder above it first"),
            ("get", [self.folder / "x", "-k", STUDY, "--sop-class", "CT"], "'--sop-class': 'CT' is neither"),
            ("move", ["-k", STUDY], "the destination is missing"),
            ("move", ["-k", STUDY, "--to", "x" * 17], "the maximum is 16"),
            ("move", ["-k", STUDY, "--receive", self.folder / "x", "--listen", "foo:1"], "foo"),
        ):
            result = self.misuse(command, "127.0.0.1:1", *options)
            self.assertEqual(result.code, 2, result.text)
            self.assertIn(words, result.text)


class OverTLS(ToolTestCase):
    """Requests and received instances over TLS."""

    def setUp(self) -> None:
        super().setUp()
        self.certificates = peers.certificates()
        self.roots = ("--tls-roots", self.certificates.ca)
        self.own = ("--tls-certificate", self.certificates.client_cert, "--tls-key", self.certificates.client_key)

    def files_of(self, name: str) -> str:
        """Return the key and certificate of *name* as options of an endpoint string."""
        pem = vars(self.certificates)
        return f"privateKey={pem[f'{name}_key']}:certKey={pem[f'{name}_cert']}"

    def listen(self, port: int, clients: str) -> str:
        """Return the endpoint string to receive at; *clients* says which clients are accepted."""
        return f"dicomtls:{port}:interface=127.0.0.1:{self.files_of('server')}:{clients}"

    async def start_archive(self, back: int, *, mutual: bool, shown: str = "client") -> str:
        """
        Start ``twist dicom`` with the study in it; return the peer.

        :param back: the port that it knows for CT1, to which it connects over TLS.
        :param mutual: whether it demands a client certificate.
        :param shown: the name of the certificate that it shows to CT1.
        """
        clients = f"trustRoots={self.certificates.ca}" if mutual else "clientCertificate=none"
        address = f"dicomtls:127.0.0.1:{back}:trustRoots={self.certificates.ca}:{self.files_of(shown)}"
        port, _ = await self.twist_dicom("--peer", f"CT1={address}", tls=f"{self.files_of('server')}:{clients}")
        peer = f"127.0.0.1:{port}"
        result = await self.tool("store", "-q", *self.roots, *self.own, peer, *[file.path for file in study()])
        self.assertEqual(result.code, 0, result.text)
        return peer

    def assert_study(self, folder: str) -> None:
        """Check that the study is in *folder*, byte for byte."""
        came = {path.stem: peers.dataset_bytes(path) for path in (self.folder / folder).rglob("*.dcm")}
        self.assertEqual(came, {file.sop_instance: expected_bytes(file) for file in study()})

    async def test_the_peer_has_a_certificate(self) -> None:
        """We have no certificate, neither as the client nor as the server."""
        back = peers.free_port()
        peer = await self.start_archive(back, mutual=False)
        result = await self.tool("get", *self.roots, peer, self.folder / "got", "-k", STUDY)
        self.assertEqual(result.code, 0, result.text)
        self.assert_study("got")
        receives = ("--receive", self.folder / "moved", "--listen", self.listen(back, "clientCertificate=none"))
        result = await self.tool("move", "--calling", "CT1", *self.roots, *receives, peer, "-k", STUDY)
        self.assertEqual(result.code, 0, result.text)
        self.assert_study("moved")
        # A CA that did not sign the certificate of the peer; and a request without TLS to a TLS port.
        strange = ("--tls-roots", self.certificates.other_ca)
        for options, code in ((strange, "unknown-ca"), ((), "closed")):
            for command in (("get", self.folder / "none"), ("move", "--to", "CT1")):
                document = await self.json(command[0], *options, peer, *command[1:], "-k", STUDY, code=3)
                self.assertEqual(document["cause"]["code"], code)
        self.assertEqual(list((self.folder / "none").rglob("*.dcm")), [])

    async def test_both_have_certificates(self) -> None:
        """Both sides require certificates, in both directions; a client without one or with one of another CA is rejected."""
        back = peers.free_port()
        peer = await self.start_archive(back, mutual=True)
        mutual = (*self.roots, *self.own)
        document = await self.json("get", *mutual, peer, self.folder / "got", "-k", STUDY, code=0)
        self.assertEqual((document["completed"], document["stored"]), (len(study()), len(study())))
        self.assert_study("got")
        listen = self.listen(back, f"trustRoots={self.certificates.ca}")
        receives = ("--calling", "CT1", "--receive", self.folder / "moved", "--listen", listen)
        document = await self.json("move", *mutual, *receives, peer, "-k", STUDY, code=0)
        self.assertEqual((document["completed"], document["stored"]), (len(study()), len(study())))
        self.assert_study("moved")
        # The same with an endpoint string instead of the options.
        address = f"dicomtls:{peer}:trustRoots={self.certificates.ca}:{self.files_of('client')}"
        result = await self.tool("get", "-q", f"ARCHIVE@{address}", self.folder / "again", "-k", STUDY)
        self.assertEqual((result.code, result.text), (0, ""))
        self.assert_study("again")
        strange = ("--tls-certificate", self.certificates.other_cert, "--tls-key", self.certificates.other_key)
        for options, code in (((), "client-certificate"), (strange, "our-certificate")):
            document = await self.json("get", *self.roots, *options, peer, self.folder / "none", "-k", STUDY, code=3)
            self.assertEqual(document["cause"]["code"], code)
            document = await self.json("move", *self.roots, *options, "--to", "CT1", peer, "-k", STUDY, code=3)
            self.assertEqual(document["cause"]["code"], code)

    async def test_the_way_back_does_not_work(self) -> None:
        """Our server refuses the certificate of the archive: all sub-operations fail, and the server stops."""
        back = peers.free_port()
        peer = await self.start_archive(back, mutual=True, shown="other")
        listen = self.listen(back, f"trustRoots={self.certificates.ca}")
        receives = ("--calling", "CT1", "--receive", self.folder / "moved", "--listen", listen)
        document = await self.json("move", *self.roots, *self.own, *receives, peer, "-k", STUDY, code=1)
        self.assertEqual(
            (document["status"], document["failed"], document["stored"]), ("0xA702", len(study()), 0), document
        )
        await self.assertFailure(TCP4ClientEndpoint(reactor, "127.0.0.1", back).connect(Factory()), ConnectError)

    async def test_at_a_terminal(self) -> None:
        """The bar counts instances that arrive over TLS."""
        back = peers.free_port()
        peer = await self.start_archive(back, mutual=True)
        listen = self.listen(back, f"trustRoots={self.certificates.ca}")
        receives = ("--calling", "CT1", "--receive", self.folder / "moved", "--listen", listen)
        mutual, count = (*self.roots, *self.own), len(study())
        for command in (("get", *mutual, peer, self.folder / "got"), ("move", *mutual, *receives, peer)):
            result = await self.terminal(*command, "-k", STUDY).wait(120)
            self.assertEqual(result.code, 0, result.text)
            self.assertRegex(result.text, rf"100%\|█+\| {count}/{count} \[")
            self.assertRegex(result.text, rf"(?m)^  completed  {count}\r$")


class Conduct(ToolTestCase):
    """Interrupts and failures."""

    async def test_interrupted(self) -> None:
        """C-CANCEL between two instances: the first is kept and reported."""
        ended: Deferred[Association] = Deferred()
        sent: Deferred[None] = Deferred()
        count_next: Deferred[None] = Deferred()

        async def get(event: Any) -> AsyncIterator[Any]:
            yield 2
            yield 0xFF00, study()[0].path
            sent.callback(None)
            await count_next
            yield 0xFE00, None

        ae = AE("SCP")
        ae.add_supported_context(STUDY_GET)
        ae.add_supported_context(CTImageStorage, ALL_TRANSFER_SYNTAXES, scu_role=True, scp_role=True)
        self.addCleanup(ae.shutdown)
        handlers: list[Any] = [
            (evt.EVT_C_GET, get),
            (evt.EVT_C_CANCEL, lambda event: count_next.callback(None)),
            (evt.EVT_RELEASED, lambda event: ended.callback(event.assoc)),
        ]
        server = await ae.start_server(("127.0.0.1", 0), evt_handlers=handlers)
        peer = f"127.0.0.1:{server.port}"
        process = await self.start_tool("get", "-v", "--json", peer, self.folder / "got", "-k", STUDY)
        await sent.addTimeout(120, reactor)
        await process.wait_for("1 completed", 120)
        process.signal("INT")
        result = await process.wait(120)
        self.assertEqual(result.code, 1, result.text)
        self.assertIn("stopping: the peer is asked to cancel (C-CANCEL), and what it has sent is kept", result.text)
        document = json.loads(result.stdout)
        self.assertEqual((document["status"], document["stored"], document["interrupted"]), ("0xFE00", 1, True))
        self.assertEqual(len(list((self.folder / "got").rglob("*.dcm"))), 1)
        await ended

    async def test_a_move_interrupted(self) -> None:
        """C-CANCEL and a release; the instances that have arrived are kept."""
        back = peers.free_port()
        ended: list[Association] = []
        both: Deferred[None] = Deferred()
        sent: Deferred[None] = Deferred()
        never: Deferred[None] = Deferred()

        def released(event: Any) -> None:
            ended.append(event.assoc)
            if len(ended) == 2:
                both.callback(None)

        async def move(event: Any) -> AsyncIterator[Any]:
            yield "127.0.0.1", back
            yield 2
            yield 0xFF00, study()[0].path
            sent.callback(None)
            await never

        ae = AE("SCP")
        ae.add_supported_context(STUDY_MOVE)
        # The association of the request, and the one of the instance.
        ae.bind(evt.EVT_RELEASED, released)
        self.addCleanup(ae.shutdown)
        server = await ae.start_server(("127.0.0.1", 0), evt_handlers=[(evt.EVT_C_MOVE, move)])
        receives = ("--receive", self.folder / "moved", "--listen", f"tcp:{back}:interface=127.0.0.1")
        process = self.terminal("move", "-v", *receives, f"127.0.0.1:{server.port}", "-k", STUDY)
        await sent.addTimeout(120, reactor)
        await process.wait_for("1 completed", 120)
        process.type("\x03")
        result = await process.wait(120)
        self.assertEqual(result.code, 1, result.text)
        self.assertIn("dicomtwist: interrupted\r\n", result.text)
        self.assertIn("stopping: the peer is asked to cancel (C-CANCEL), and what it has moved stays", result.text)
        self.assertEqual(len(list((self.folder / "moved").rglob("*.dcm"))), 1)
        await both.addTimeout(60, reactor)

    async def test_interrupted_twice(self) -> None:
        """A peer that ignores C-CANCEL: a second interrupt aborts."""
        asked: Deferred[Association] = Deferred()
        never: Deferred[None] = Deferred()
        for_ever: Deferred[None] = Deferred()
        self.addCleanup(for_ever.callback, None)

        async def get(event: Any) -> AsyncIterator[Any]:
            asked.callback(event.assoc)
            try:
                await never
            except CancelledError:
                await for_ever
            yield 0

        ae = AE("SCP")
        ae.add_supported_context(STUDY_GET)
        ae.add_supported_context(CTImageStorage, ALL_TRANSFER_SYNTAXES, scu_role=True, scp_role=True)
        self.addCleanup(ae.shutdown)
        server = await ae.start_server(("127.0.0.1", 0), evt_handlers=[(evt.EVT_C_GET, get)])
        process = await self.start_tool("get", f"127.0.0.1:{server.port}", self.folder / "got", "-k", STUDY)
        association = await asked.addTimeout(120, reactor)
        process.signal("INT")
        await process.wait_for("once more to abort", 120)
        self.assertTrue(association.is_established)
        process.signal("INT")
        result = await process.wait(120)
        self.assertEqual(result.code, 1, result.text)
        await association.when_ended()
        self.assertTrue(association.is_aborted)

    async def test_no_bar_without_an_association(self) -> None:
        nobody = f"127.0.0.1:{peers.free_port()}"
        result = await self.terminal("get", nobody, self.folder / "x", "-k", STUDY).wait(120)
        self.assertEqual(result.code, 3, result.text)
        self.assertEqual(len(result.text.splitlines()), 1, result.text)

    async def test_no_place_to_listen(self) -> None:
        server = await self.serve()
        listen = f"tcp:{server.port}:interface=127.0.0.1"
        result = await self.tool(
            *("move", "--receive", self.folder / "x", "--listen", listen, f"127.0.0.1:{server.port}", "-k", STUDY)
        )
        self.assertEqual(result.code, 1, result.text)
        self.assertIn(f"dicomtwist: --listen {listen}: ", result.stderr.decode())

    async def test_without_sqlalchemy(self) -> None:
        """SQLAlchemy is for archives, and the command works without it."""
        blocked = self.folder / "blocked.py"
        blocked.write_text("import sys\nsys.modules['sqlalchemy'] = None\nfrom dicomtwist.tools import main\nmain()\n")
        nobody = f"127.0.0.1:{peers.free_port()}"
        result = await peers.run(sys.executable, blocked, "get", "--json", nobody, self.folder / "x", "-k", STUDY)
        self.assertEqual(result.code, 3, result.text)
        self.assertEqual(json.loads(result.stdout)["cause"]["code"], "refused")
