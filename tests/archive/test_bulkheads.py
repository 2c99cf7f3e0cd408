"""Executors are bulkheads: one that is blocked delays no other, and one that is full refuses."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from dicomtwist import AE, UserIdentity, build_context, build_role, evt
from dicomtwist.access.enforcement import Policy
from dicomtwist.access.rules import parse_rules
from dicomtwist.access.users import Users, hash_passcode
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.query.search import Finder, Search
from dicomtwist.archive.server import ArchiveServer
from dicomtwist.archive.services.worklist_folder import WorklistFolder
from dicomtwist.archive.storage.types import Durability
from dicomtwist.errors import ExecutorFull, OperationFailed
from dicomtwist.runtime.executors import Bounds, Share
from dicomtwist.sop_class import (
    ModalityPerformedProcedureStep,
    ModalityWorklistInformationModelFind,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)
from dicomtwist.transport.peer_directory import Peers
from dicomtwist.ul.items import UserInformation
from dicomtwist.ul.pdu import AAssociateRJ
from tests.archive.samples import SECONDARY_CAPTURE, dataset, keep
from tests.memory import MemoryTestCase

CLASSES = (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    ModalityWorklistInformationModelFind,
    ModalityPerformedProcedureStep,
    StorageCommitmentPushModel,
)
FULL = Bounds(threads=1, max_queued=0)


def studies() -> Dataset:
    """A query for all studies."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "STUDY"
    identifier.StudyInstanceUID = ""
    return identifier


def long_one() -> Dataset:
    """A data set that is too long to be decoded in the thread of the reactor."""
    dataset = studies()
    dataset.PixelData = bytes(100_000)
    dataset["PixelData"].VR = "OB"
    return dataset


def steps() -> Dataset:
    """A query for the whole worklist."""
    identifier = Dataset()
    identifier.PatientID = ""
    return identifier


class Server:
    """An archive with all its services, and the executors of its AE."""

    def __init__(self, test: TestCase | MemoryTestCase, ae: AE) -> None:
        self.ae = ae
        self.archive = Archive(Path(test.mktemp()), durability=Durability.NONE)
        self.archive.open()
        test.addCleanup(self.archive.close)
        worklist, users = Path(test.mktemp()), Path(test.mktemp())
        worklist.mkdir()
        users.write_text(f"{hash_passcode('alice', b'ThePassword', n=16)}\n")
        policy = Policy(parse_rules([{"allow": "all"}]), Users(users))
        parts = ArchiveServer(ae, self.archive, Peers(ae.reactor, []), policy=policy, worklist=worklist)
        self.ingest = parts.ingest
        self.commitment = parts.storage_commitment
        self.handlers = parts.handlers()
        ae.supported_contexts = [build_context(uid) for uid in CLASSES]
        ae.add_supported_context(SECONDARY_CAPTURE, scu_role=True, scp_role=True)


class Blocked(TestCase):
    """Over loopback, with real threads."""

    timeout = 60

    async def test_worklist_and_passcodes(self) -> None:
        """
        While all threads for worklists and passcodes hang, with more waiting, instances are stored and queries answered.
        """
        server = Server(self, AE("SCP"))
        executors = server.ae.executors
        port = await server.ae.start_server(("127.0.0.1", 0), evt_handlers=server.handlers)
        scu = AE("SCU")
        scu.requested_contexts = [build_context(uid, ExplicitVRLittleEndian) for uid in (*CLASSES, SECONDARY_CAPTURE)]
        lanes = executors.worklist, executors.passcodes
        gate, begun = threading.Event(), threading.Semaphore(0)

        def hang(*_: Any) -> list[Any]:
            begun.release()
            gate.wait(30)
            return []

        self.addCleanup(gate.set)
        self.patch(WorklistFolder, "read", lambda _, titles: dict.fromkeys(titles, hang()))
        self.patch(Users, "verify", lambda *_: hang() == [])
        assoc = await scu.associate("127.0.0.1", port.port)
        askers = [await scu.associate("127.0.0.1", port.port) for _ in range(executors.worklist.bounds.threads + 1)]
        waiting: list[Deferred[Any]] = [
            asker.send_c_find(steps(), ModalityWorklistInformationModelFind).collect() for asker in askers
        ]
        users = [
            scu.associate(
                "127.0.0.1",
                port.port,
                ext_neg=[UserIdentity(2, b"alice", b"ThePassword")],
                bind_address=(f"127.0.0.{number}", 0),
            )
            for number in range(2, executors.passcodes.bounds.threads + 3)
        ]
        # Of the threads for worklists one reads, however many queries wait for it.
        busy = (1, executors.passcodes.bounds.threads)
        while [lane.vitals.busy for lane in lanes] != [*busy] or not lanes[1].vitals.queued:
            self.assertTrue((await assoc.send_c_store(dataset(1))).is_success)
        self.assertTrue((await assoc.send_c_store(dataset(2))).is_success)
        large = dataset(3, PixelData=bytes(300_000), BitsAllocated=8)
        self.assertTrue((await assoc.send_c_store(large)).is_success)
        found = await assoc.send_c_find(studies(), StudyRootQueryRetrieveInformationModelFind).collect()
        self.assertEqual([one.StudyInstanceUID for one in found], ["1.2.1"])
        for lane, threads, queued in zip(lanes, busy, (0, 1), strict=True):
            vitals = lane.vitals
            self.assertEqual((vitals.busy, vitals.queued), (threads, queued), vitals)
            self.assertGreater(vitals.longest, 0)
        self.assertGreater(lanes[1].vitals.blocked, 0)
        self.assertFalse(any(one.called for one in (*waiting, *users)))
        gate.set()
        self.assertEqual(await gatherResults(waiting), [[]] * len(askers))
        for one in (assoc, *askers, *await gatherResults(users)):
            await one.release()
        server.ingest.stop()
        await server.ae.shutdown()
        self.assertEqual([lane.vitals.blocked for lane in lanes], [0, 0])

    async def test_queries_of_one_host(self) -> None:
        """Long searches of one host, on several associations, leave threads for the queries and retrievals of others."""
        server = Server(self, AE("SCP"))
        self.assertIsNone(keep(server.archive, dataset(1)))
        querying = server.ae.executors.querying
        port = await server.ae.start_server(("127.0.0.1", 0), evt_handlers=server.handlers)
        scu = AE("SCU")
        scu.requested_contexts = [build_context(uid, ExplicitVRLittleEndian) for uid in CLASSES]
        scu.add_requested_context(SECONDARY_CAPTURE, ExplicitVRLittleEndian)
        gate, begun = threading.Event(), threading.Semaphore(0)
        self.addCleanup(gate.set)
        find = Finder._find

        def hang(finder: Finder, share: Share, identifier: Dataset, *rest: Any) -> Any:
            if identifier.StudyInstanceUID == "1.2.3":
                begun.release()
                gate.wait(30)
            return (yield from find(finder, share, identifier, *rest))

        self.patch(Finder, "_find", hang)
        long = studies()
        long.StudyInstanceUID = "1.2.3"
        hosts = [("127.0.0.2", 0)] * (querying.bounds.threads + 1)
        askers = [await scu.associate("127.0.0.1", port.port, bind_address=host) for host in hosts]
        waiting = [asker.send_c_find(long, StudyRootQueryRetrieveInformationModelFind).collect() for asker in askers]
        for _ in range(querying.bounds.max_share):
            await deferToThread(begun.acquire, timeout=30)
        roles = [build_role(SECONDARY_CAPTURE, scp_role=True)]
        stored: list[evt.HandlerTuple] = [(evt.EVT_C_STORE, lambda event: 0)]
        assoc = await scu.associate("127.0.0.1", port.port, ext_neg=roles, evt_handlers=stored)
        found = await assoc.send_c_find(studies(), StudyRootQueryRetrieveInformationModelFind).collect()
        self.assertEqual([one.StudyInstanceUID for one in found], ["1.2.1"])
        one = studies()
        one.StudyInstanceUID = "1.2.1"
        statuses = [status async for status, _ in assoc.send_c_get(one, StudyRootQueryRetrieveInformationModelGet)]
        self.assertEqual(int(statuses[-1]), 0)
        self.assertFalse(any(one.called for one in waiting))
        self.assertEqual(querying.vitals.busy, querying.bounds.max_share)
        gate.set()
        self.assertEqual(await gatherResults(waiting), [[]] * len(askers))
        for asker in (assoc, *askers):
            await asker.release()
        server.ingest.stop()
        await server.ae.shutdown()

    async def test_long_searches_of_many_hosts(self) -> None:
        """Long searches of several hosts, more than there are threads, take turns with the queries and retrievals of others."""
        server = Server(self, AE("SCP"))
        self.assertIsNone(keep(server.archive, dataset(1)))
        querying = server.ae.executors.querying
        port = await server.ae.start_server(("127.0.0.1", 0), evt_handlers=server.handlers)
        scu = AE("SCU")
        scu.requested_contexts = [build_context(uid, ExplicitVRLittleEndian) for uid in CLASSES]
        scu.add_requested_context(SECONDARY_CAPTURE, ExplicitVRLittleEndian)
        in_turns = Search.in_turns
        turns, ends = Counter[int](), threading.Event()
        self.addCleanup(ends.set)

        def long(search: Search) -> Any:
            while "1.2.3" in str(search.query.criteria[0].compile(compile_kwargs={"literal_binds": True})):
                turns[id(search)] += 1
                time.sleep(0.001)
                if ends.is_set():
                    break
                yield
            return (yield from in_turns(search))

        self.patch(Search, "in_turns", long)
        asked = studies()
        asked.StudyInstanceUID = "1.2.3"
        hosts = [(f"127.0.0.{2 + number % 4}", 0) for number in range(4 * querying.bounds.threads)]
        askers = [await scu.associate("127.0.0.1", port.port, bind_address=host) for host in hosts]
        waiting = [asker.send_c_find(asked, StudyRootQueryRetrieveInformationModelFind).collect() for asker in askers]
        # All take turns, also those of one host.
        while len(turns) < len(askers) or min(turns.values()) < 3:
            await deferToThread(time.sleep, 0.001)
        roles = [build_role(SECONDARY_CAPTURE, scp_role=True)]
        stored: list[evt.HandlerTuple] = [(evt.EVT_C_STORE, lambda event: 0)]
        assoc = await scu.associate("127.0.0.1", port.port, ext_neg=roles, evt_handlers=stored)
        one = studies()
        one.StudyInstanceUID = "1.2.1"
        found = await assoc.send_c_find(one, StudyRootQueryRetrieveInformationModelFind).collect()
        self.assertEqual([each.StudyInstanceUID for each in found], ["1.2.1"])
        statuses = [status async for status, _ in assoc.send_c_get(one, StudyRootQueryRetrieveInformationModelGet)]
        self.assertEqual(int(statuses[-1]), 0)
        self.assertFalse(any(each.called for each in waiting))
        ends.set()
        self.assertEqual(await gatherResults(waiting), [[]] * len(askers))
        for asker in (assoc, *askers):
            await asker.release()
        server.ingest.stop()
        await server.ae.shutdown()


class Full(MemoryTestCase):
    """In memory: an executor has one thread, which is busy, and no queue."""

    def setUp(self) -> None:
        super().setUp()
        self.server = Server(self, self.scp)
        self.assertIsNone(keep(self.server.archive, dataset(1)))
        self.server.archive.catch_up()
        self.listen(*self.server.handlers)
        self.scu.requested_contexts = [build_context(uid, ExplicitVRLittleEndian) for uid in CLASSES]
        self.scu.add_requested_context(SECONDARY_CAPTURE, ExplicitVRLittleEndian)

    def tearDown(self) -> None:
        self.server.ingest.stop()
        self.network.result_of(self.server.commitment.stop())
        super().tearDown()

    def fill(self, name: str) -> None:
        """Fill the threads and the queue of an executor."""
        executor = getattr(self.scp.executors, name)
        executor.bounds = FULL
        self.network.works = False
        executor.run(int)
        self.failureResultOf(executor.run(int), ExecutorFull)

    def status(self, answers: Any) -> int:
        """The status with which a query or a retrieval fails."""
        self.network.flush()
        return int(self.failureResultOf(answers.collect(), OperationFailed).value.status)

    def test_find(self) -> None:
        assoc = self.associate()
        self.fill("querying")
        self.assertEqual(self.status(assoc.send_c_find(studies(), CLASSES[0])), 0xA700)
        self.network.works = True
        self.network.flush()
        found = self.network.result_of(assoc.send_c_find(studies(), CLASSES[0]).collect())
        self.assertEqual(len(found), 1)

    def retrieve(self) -> Any:
        assoc = self.associate(
            ext_neg=[build_role(SECONDARY_CAPTURE, scp_role=True)], evt_handlers=[(evt.EVT_C_STORE, lambda event: 0)]
        )
        identifier = studies()
        identifier.StudyInstanceUID = "1.2.1"
        return lambda: assoc.send_c_get(identifier, CLASSES[1])

    def test_get(self) -> None:
        get = self.retrieve()
        self.fill("querying")
        final = self.final(get())
        self.assertEqual(int(final), 0xA701)

    def final(self, retrieval: Any) -> Any:
        async def last() -> Any:
            return [status async for status, _ in retrieval][-1]

        return self.network.result_of(last())

    def test_files_to_send(self) -> None:
        get = self.retrieve()
        with mock.patch.object(self.scp.executors.retrieval, "run", lambda *_: _full()):
            final = self.final(get())
        self.assertEqual(int(final), 0xA702)

    def test_worklist(self) -> None:
        assoc = self.associate()
        self.fill("worklist")
        self.assertEqual(self.status(assoc.send_c_find(steps(), CLASSES[2])), 0xA700)

    def test_small_instances(self) -> None:
        """One instance is being stored, the queue is full, and the next instance is refused."""
        self.scp.executors.receiving.bounds = Bounds(threads=1, max_queued=1)
        assocs = [self.associate() for _ in range(3)]
        self.network.works = False
        storing = [assoc.send_c_store(dataset(number)) for number, assoc in enumerate(assocs, 10)]
        self.network.flush()
        self.network.works = True
        statuses = [int(self.network.result_of(one)) for one in storing]
        self.assertEqual(sorted(statuses), [0, 0, 0xA700])
        self.assertEqual(int(self.network.result_of(assocs[0].send_c_store(dataset(20)))), 0)

    def test_large_instances(self) -> None:
        """One instance is accepted and completed; the next is refused, and nothing is left of it."""
        self.scp.executors.receiving.bounds = FULL
        assocs = [self.associate() for _ in range(2)]
        # The SCU encodes a Dataset without a thread.
        self.network.works = False
        storing = [
            assoc.send_c_store(dataset(number, PixelData=bytes(5_000_000), BitsAllocated=8))
            for number, assoc in enumerate(assocs, 10)
        ]
        self.network.flush()
        self.network.works = True
        statuses = [int(self.network.result_of(one)) for one in storing]
        self.assertEqual(sorted(statuses), [0, 0xA700])
        incoming = self.server.archive.root / ".incoming"
        self.assertEqual([path.name for path in incoming.iterdir() if path.name != ".lock"], [])
        self.assertEqual(int(self.network.result_of(assocs[0].send_c_store(dataset(20)))), 0)

    def test_procedure_steps(self) -> None:
        assoc = self.associate()
        self.fill("housekeeping")
        status, _ = self.network.result_of(assoc.send_n_create(studies(), ModalityPerformedProcedureStep, "1.2.3"))
        self.assertEqual(int(status), 0x0213)

    def test_storage_commitment(self) -> None:
        assoc = self.associate()
        self.fill("housekeeping")
        status, _ = self.network.result_of(
            assoc.send_n_action(studies(), 1, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
        )
        self.assertEqual(int(status), 0x0213)

    def test_long_data_sets(self) -> None:
        """A long data set of DIMSE-N for a user's handler is decoded in a thread, and refused if there is none."""
        called: list[evt.Event] = []
        self.network.result_of(self.scp.start_server(105, evt_handlers=[(evt.EVT_N_CREATE, called.append)]))
        assoc = self.associate(105)
        self.fill("decoding")
        status, _ = self.network.result_of(assoc.send_n_create(long_one(), ModalityPerformedProcedureStep, "1.2.3"))
        self.assertEqual(int(status), 0x0213)
        self.assertEqual(called, [])

    def test_long_procedure_steps(self) -> None:
        """A long performed procedure step is decoded in the threads that store it, and refused if there is none."""
        assoc = self.associate()
        self.fill("decoding")
        asked = assoc.send_n_create(long_one(), ModalityPerformedProcedureStep, "1.2.3")
        self.network.flush()
        self.assertNoResult(asked)
        self.network.works = True
        status, _ = self.network.result_of(asked)
        self.assertEqual(int(status), 0x0120)  # it was decoded, and lacks attributes
        self.fill("housekeeping")
        status, _ = self.network.result_of(assoc.send_n_create(long_one(), ModalityPerformedProcedureStep, "1.2.4"))
        self.assertEqual(int(status), 0x0213)

    def user(self) -> Any:
        """A peer with a user identity."""
        peer = self.network.scripted_client(104)
        identity = UserIdentity(2, b"alice", b"ThePassword", response_requested=True)
        peer.request((1, SECONDARY_CAPTURE), information=UserInformation(user_identity=identity))
        return peer

    def test_passcodes(self) -> None:
        self.fill("passcodes")
        peer = self.user()
        self.assertEqual(peer.take(), [AAssociateRJ(2, 3, 1)])
        peer.close()

    def test_passcodes_of_ended_associations(self) -> None:
        """The passcode of a peer whose association has ended is removed from the queue and not checked."""
        self.network.works = False
        executor = self.scp.executors.passcodes
        with mock.patch.object(Users, "verify", side_effect=AssertionError):
            # One of each address is in the queue of the threads, the others wait for it.
            peers = [self.user() for _ in range(3)]
            self.assertEqual(executor.vitals.queued, 1)
            for peer in peers:
                peer.close()
            self.network.flush()
            self.assertEqual(executor.vitals.queued, 0)
            self.network.works = True
            self.network.flush()

    def test_queries_of_ended_associations(self) -> None:
        """A C-FIND that is cancelled, or whose association has ended, is removed from the queue."""
        self.network.works = False
        executor = self.scp.executors.querying
        assocs = [self.associate() for _ in range(2)]
        answers = [assoc.send_c_find(studies(), CLASSES[0]) for assoc in assocs]
        collecting = [one.collect() for one in answers]
        self.network.flush()
        self.assertEqual(executor.vitals.queued, 2)
        assocs[0].abort()
        self.network.flush()
        self.assertEqual(executor.vitals.queued, 1)
        answers[1].cancel()
        self.network.flush()
        self.assertEqual(executor.vitals.queued, 0)
        for one in collecting:
            one.addErrback(lambda _: None)

    def test_long_searches_of_ended_associations(self) -> None:
        """A running search ends at its next step if its peer has cancelled it or is gone."""
        collecting = self.associate().send_c_find(studies(), CLASSES[0]).collect()
        collecting.addErrback(lambda _: None)
        in_turns = Search.in_turns
        ended: list[BaseException] = []

        def noted(search: Search) -> Any:
            for association in self.scp.active_associations:
                association.abort()
            try:
                return (yield from in_turns(search))
            except BaseException as error:
                ended.append(error)
                raise

        with mock.patch.object(Search, "in_turns", noted):
            self.network.flush()
        self.assertEqual([type(error) for error in ended], [CancelledError])


def _full() -> Deferred[Any]:
    failed: Deferred[Any] = Deferred()
    failed.errback(ExecutorFull("retrieval", 0))
    return failed
