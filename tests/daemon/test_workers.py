"""``twist dicom`` with a configuration that changes and with several processes, as an operator runs it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase

from dicomtwist import AE, Association, AssociationRejected
from dicomtwist.access.rules import Requestor
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.attributes import Level
from dicomtwist.archive.recovery import reconcile, repair
from dicomtwist.archive.storage.process_locks import CommitJournal, uncommitted
from dicomtwist.archive.storage.types import ReplacementRefused
from dicomtwist.daemon.workers import WorkerSpec
from dicomtwist.errors import AssociationError
from dicomtwist.sop_class import CTImageStorage
from dicomtwist.transport.listening_sockets import Sockets
from tests import peers
from tests.archive.samples import dataset, handed, keep
from tests.certificates import Authority

VERIFICATION = "1.2.840.10008.1.1"

reactor = cast(Any, _reactor)


def instance(study: str, uid: str | None = None) -> Dataset:
    """Make a small CT image."""
    found = Dataset()
    found.SOPClassUID = CTImageStorage
    found.SOPInstanceUID = uid or generate_uid()
    found.StudyInstanceUID = study
    found.SeriesInstanceUID = f"{study}.1"
    found.PatientID = study
    found.Modality = "CT"
    return found


def runs(pid: int) -> bool:
    """Whether a process is running; a zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class ServerTestCase(TestCase):
    """A test that runs a server as a process."""

    timeout = 240

    def setUp(self) -> None:
        self.storage = Path(self.mktemp())
        self.configuration = Path(self.mktemp()).with_suffix(".toml")
        self.configuration.parent.mkdir(parents=True, exist_ok=True)

    async def start(self, text: str, *options: str, port: int, ready: str = "reloaded|listens at") -> None:
        self.configuration.write_text(text)
        command = ("-m", "twisted", "--log-format", "text", "dicom", "--storage", str(self.storage))
        self.server = await peers.start(
            self, sys.executable, *command, "--config", str(self.configuration), *options, ready=port, timeout=90
        )

    def scu(self, title: str = "SCU") -> AE:
        ae = AE(title)
        ae.add_requested_context(VERIFICATION)
        ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        return ae

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that no process reports; fail with the output of the server if it ends before."""
        await self.server.poll(condition)


class Reload(ServerTestCase):
    """At SIGHUP rules, peers and certificates are read again, and associations go on."""

    async def reload(self, text: str | None = None, *, good: bool = True) -> None:
        if text is not None:
            self.configuration.write_text(text)
        words = "reloaded" if good else "nothing is changed"
        count = self.server.text.count(words)
        self.server.signal("HUP")
        await self.until(lambda: self.server.text.count(words) > count)

    async def test_rules(self) -> None:
        port = peers.free_port()
        port_line = f'port = "tcp:{port}:interface=127.0.0.1"\n'
        rule = '[[access.rule]]\ncalling = "SCU"\nallow = {}\n'
        await self.start(port_line + rule.format('"echo"'), port=port)
        assoc = await self.scu().associate("127.0.0.1", port)
        self.assertEqual(await assoc.send_c_store(instance("1.2")), 0x0124)
        await self.assertFailure(self.scu("ELSE").associate("127.0.0.1", port), AssociationRejected)
        await self.reload(port_line + rule.format('["store"]'))
        self.assertEqual(await assoc.send_c_store(instance("1.2")), 0x0000)
        self.assertEqual(await assoc.send_c_echo(), 0x0124)
        # A mistake changes nothing.
        await self.reload(port_line + "[[access.rule]]\nalow = 'all'\n", good=False)
        self.assertIn("access.rule 1: alow is not a key: did you mean allow?", self.server.text)
        self.assertEqual(await assoc.send_c_store(instance("1.2")), 0x0000)
        # Options that need a restart wait for it, which is logged.
        await self.reload("inbox = 'off'\n" + port_line + rule.format('"all"'))
        waiting = "changed, but needs a restart: inbox"
        self.assertEqual(self.server.text.count(waiting), 1)
        await self.reload()
        self.assertEqual(self.server.text.count(waiting), 2, "the server still runs with the option of its start")
        await self.reload(port_line + rule.format('"all"'))
        self.assertEqual(self.server.text.count(waiting), 2)
        self.assertEqual(await assoc.send_c_echo(), 0x0000)
        await assoc.release()

    async def test_certificates(self) -> None:
        """A new certificate applies to the next connection; a wrong file leaves the old certificate in use."""
        certificates = peers.certificates()
        folder = Path(self.mktemp())
        folder.mkdir()

        def put(key: str, certificate: str, ca: str) -> None:
            for source, name in ((key, "key.pem"), (certificate, "cert.pem"), (ca, "ca.pem")):
                shutil.copy(source, folder / name)

        port = peers.free_port()
        files = f"privateKey={folder}/key.pem:certKey={folder}/cert.pem:trustRoots={folder}/ca.pem"
        put(certificates.server_key, certificates.server_cert, certificates.ca)
        await self.start(f'port = "dicomtls:{port}:interface=127.0.0.1:{files}"\n', port=port)
        ours = f"privateKey={certificates.client_key}:certKey={certificates.client_cert}"
        theirs = f"privateKey={certificates.other_key}:certKey={certificates.other_cert}"

        async def echo(trust: str, own: str) -> Association:
            assoc = await self.scu().associate(f"dicomtls:127.0.0.1:{port}:trustRoots={trust}:{own}")
            self.assertEqual(await assoc.send_c_echo(), 0x0000)
            return assoc

        first = await echo(certificates.ca, ours)
        (folder / "cert.pem").write_text("nothing")
        await self.reload(good=False)
        self.assertIn("certKey: no usable certificate", self.server.text)
        await (await echo(certificates.ca, ours)).release()
        put(certificates.other_key, certificates.other_cert, certificates.other_ca)
        await self.reload()
        await (await echo(certificates.other_ca, theirs)).release()
        await self.assertFailure(Deferred.fromCoroutine(echo(certificates.ca, ours)), Exception)
        await self.server.wait_for("no association:")
        self.assertEqual(await first.send_c_echo(), 0x0000, "the association of before goes on")
        await first.release()

    async def test_revocation(self) -> None:
        """A certificate on the new list is refused; a broken list leaves the old list in use."""
        folder = self.mktemp()
        Path(folder).mkdir()
        authority = Authority(folder, "ours")
        certificate, other = authority.issue("one"), authority.issue("other")
        current = authority.revocation_list("current")
        port = peers.free_port()
        files = f"privateKey={authority.issue('server', '127.0.0.1')}:trustRoots={authority.path}:crl={current}"
        await self.start(f'port = "dicomtls:{port}:interface=127.0.0.1:{files}"\n', port=port)

        def asking(own: str) -> Deferred[Association]:
            return self.scu().associate(f"dicomtls:127.0.0.1:{port}:trustRoots={authority.path}:privateKey={own}")

        first = await asking(certificate)
        authority.revocation_list("current", certificate)
        await self.reload()
        await self.assertFailure(asking(certificate), Exception)
        await self.server.wait_for("has been revoked")
        await (await asking(other)).release()
        Path(current).write_text("nothing")
        await self.reload(good=False)
        self.assertIn("crl: no revocation list in PEM form", self.server.text)
        await self.assertFailure(asking(certificate), Exception)
        await self.until(lambda: self.server.text.count("has been revoked") == 2)
        await (await asking(other)).release()
        self.assertEqual(await first.send_c_echo(), 0x0000, "the association of before goes on")
        await first.release()

    async def test_client_certificates(self) -> None:
        """Rules match the certificate of the peer by its subject and its fingerprint, and a peer without one."""
        certificates = peers.certificates()
        secure, plain = peers.free_port(), peers.free_port()
        files = f"privateKey={certificates.server_key}:certKey={certificates.server_cert}:trustRoots={certificates.ca}"
        ports = f'port = ["dicomtls:{secure}:interface=127.0.0.1:{files}", "tcp:{plain}:interface=127.0.0.1"]\n'
        rule = '[[access.rule]]\ncertificate = "{}"\nallow = "echo"\n'
        await self.start(ports + rule.format("CN=client"), port=plain)
        own = f"privateKey={certificates.client_key}:certKey={certificates.client_cert}"
        endpoint = f"dicomtls:127.0.0.1:{secure}:trustRoots={certificates.ca}:{own}"
        pem = Path(certificates.client_cert).read_bytes()
        fingerprint = x509.load_pem_x509_certificate(pem).fingerprint(SHA256()).hex()
        for pattern, fits in (("CN=client", True), ("CN=else", False), (f"sha256:{fingerprint}", True)):
            await self.reload(ports + rule.format(pattern))
            asking: Deferred[Any] = self.scu().associate(endpoint)
            if fits:
                assoc = await asking
                self.assertEqual(await assoc.send_c_echo(), 0x0000)
                await assoc.release()
            else:
                await self.assertFailure(asking, AssociationRejected)
            await self.assertFailure(self.scu().associate("127.0.0.1", plain), AssociationRejected)

    async def test_mistake_at_the_start(self) -> None:
        for text, words in (
            ("max-asociations = 3", "did you mean max-associations?"),
            ("max-associations = 0", "max-associations '0' is not a number"),
            ('port = "unix:/tmp/x"\nworkers = 2', "can be used by one process only"),
            ("workers = 65", "workers '65' is not a number from 1 to 64"),
        ):
            self.configuration.write_text(text)
            result = await peers.run(
                sys.executable, "-m", "twisted", "dicom", "--storage", self.mktemp(), "--config", self.configuration
            )
            self.assertEqual(result.code, 64, result.text)
            (line,) = [line for line in result.stderr.decode().splitlines() if line.strip()]
            self.assertIn(words, line)


class WorkersTestCase(ServerTestCase):
    """A test with two workers behind one port."""

    async def start_workers(self, text: str = "", *options: str, count: int = 2) -> int:
        port = peers.free_port()
        place = ("--port", f"tcp:{port}:interface=127.0.0.1", "--workers", str(count))
        await self.start(text, *place, *options, port=port)
        await self.server.wait_for(f"all {count} workers are ready", 120)
        return port

    def pids(self) -> dict[int, int]:
        """Return the process ID of each worker, as it was logged last."""
        return {
            int(number): int(pid)
            for number, pid in re.findall(r"worker (\d+) is ready: process (\d+)", self.server.text)
        }

    def holders(self, port: int) -> list[int]:
        """Return the workers with an established connection at *port*, by their open sockets; one entry for each connection."""
        inodes = set()
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(f":{port:04X}") and fields[3] == "01":
                inodes.add(f"socket:[{fields[9]}]")
        found = []
        for pid in self.pids().values():
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    found += [pid] if os.readlink(entry) in inodes else []
                except FileNotFoundError:
                    continue
        return found

    async def gone(self, *pids: int) -> None:
        while any(runs(pid) for pid in pids):  # also when the server has ended
            await deferLater(reactor, 0.05)


class Load(WorkersTestCase):
    """Several processes serve one archive together."""

    async def test_both_take_load(self) -> None:
        """Both workers get connections, and their instances are in one index."""
        port = await self.start_workers()
        assocs: list[Association] = []
        while len(set(self.holders(port))) < 2:
            self.assertLess(len(assocs), 200, "one worker takes all")
            assocs.append(await self.scu().associate("127.0.0.1", port))
        self.assertNotIn(self.server.pid, self.holders(port))

        async def send(assoc: Association, number: int) -> None:
            # Each sender has instances of its own, all in one study of one patient.
            for image in range(10):
                status = await assoc.send_c_store(instance("1.2.3", f"1.2.3.{number + 1}.{image + 1}"))
                self.assertTrue(status.is_success, str(status))
            await assoc.release()

        await gatherResults([Deferred.fromCoroutine(send(assoc, number)) for number, assoc in enumerate(assocs)])
        pids = [self.server.pid, *self.pids().values()]
        self.server.signal("TERM")
        result = await self.server.wait(60)
        self.assertEqual(result.code, 0, result.text)
        await self.gone(*pids)
        self.assertNotIn("Traceback", result.text)
        archive = Archive(self.storage)
        archive.open()
        self.addCleanup(archive.close)
        counts = archive.index.counts()
        self.assertEqual(counts[Level.IMAGE], 10 * len(assocs))
        self.assertEqual((counts[Level.PATIENT], counts[Level.STUDY], counts[Level.SERIES]), (1, 1, 1))
        found = reconcile(archive)
        self.assertEqual((found.indexed, found.lost, found.unreadable), (0, 0, 0))

    async def test_a_killed_worker(self) -> None:
        """After kill -9 of a worker under load, acknowledged instances are there, the other goes on, and another starts."""
        port = await self.start_workers()
        before = self.pids()
        answered: list[str] = []
        killed: list[int] = []

        async def send(number: int) -> None:
            assoc = await self.scu().associate("127.0.0.1", port)
            try:
                for image in range(60):
                    uid = f"1.2.3.{number + 1}.{image + 1}"
                    sending = assoc.send_c_store(instance(f"1.2.{number + 1}", uid))
                    if len(answered) >= 40 and not killed:
                        killed.append(self.holders(port)[0])
                        os.kill(killed[0], 9)
                    if (await sending).is_success:
                        answered.append(uid)
                await assoc.release()
            except AssociationError:
                await assoc.when_ended()

        await gatherResults([Deferred.fromCoroutine(send(number)) for number in range(6)])
        self.assertGreaterEqual(len(answered), 40)
        await self.until(lambda: set(self.pids().values()) - set(before.values()) != set())
        self.assertRegex(self.server.text, rf"worker \d, process {killed[0]}, ended by signal 9")
        async with await self.scu().associate("127.0.0.1", port) as assoc:
            self.assertTrue((await assoc.send_c_store(instance("1.2.99", "1.2.99.1"))).is_success)
        self.server.signal("TERM")
        self.assertEqual((await self.server.wait(60)).code, 0)
        archive = Archive(self.storage)
        self.addCleanup(archive.close)
        self.assertEqual(archive.open(), 0, "its temporary files are gone")
        indexed = {uid for *_, uids in archive.index.files() for uid in uids}
        self.assertEqual({*answered, "1.2.99.1"} - indexed, set())
        found = reconcile(archive)
        self.assertEqual((found.indexed, found.lost, found.unreadable), (0, 0, 0))

    async def test_reload(self) -> None:
        """A reload reaches all workers; a mistake reaches none."""
        rule = '[[access.rule]]\nallow = "{}"\n'
        port = await self.start_workers(rule.format("echo"))
        assocs: list[Association] = []
        while len(set(self.holders(port))) < 2:
            self.assertLess(len(assocs), 200)
            assocs.append(await self.scu().associate("127.0.0.1", port))
        self.configuration.write_text("nonsense")
        self.server.signal("HUP")
        await self.server.wait_for("nothing is changed", 60)
        self.assertEqual(self.server.text.count("nothing is changed"), 1)
        self.configuration.write_text(rule.format("store"))
        self.server.signal("HUP")
        await self.until(lambda: self.server.text.count("reloaded") == 3)
        for assoc in assocs:
            self.assertEqual(await assoc.send_c_echo(), 0x0124)
            await assoc.release()

    async def test_the_supervisor_is_killed(self) -> None:
        """No process is left over, and operations in progress are finished."""
        port = await self.start_workers()
        assoc = await self.scu().associate("127.0.0.1", port)
        pids = list(self.pids().values())
        os.kill(self.server.pid, 9)
        self.assertTrue((await assoc.send_c_store(instance("1.2"))).is_success)
        await assoc.release()
        await self.gone(*pids)

    async def test_stop_waits_and_aborts(self) -> None:
        """Associations finish; after the grace time those that are left are aborted, and no process is left over."""
        port = await self.start_workers("", "--grace", "1")
        assoc = await self.scu().associate("127.0.0.1", port)
        pids = [self.server.pid, *self.pids().values()]
        self.server.signal("TERM")
        self.assertTrue((await assoc.send_c_store(instance("1.2"))).is_success)
        await assoc.when_ended()
        self.assertTrue(assoc.is_aborted)
        self.assertEqual((await self.server.wait(60)).code, 0)
        await self.gone(*pids)


class Stranger:
    """A sender that may not replace instances."""

    may_replace = False
    requestor = Requestor("", "")

    def log_replacement(self, message: str, /, **fields: object) -> None:
        raise AssertionError("nothing was replaced")

    def log_conflict(self, message: str, /, **fields: object) -> None:
        raise AssertionError("nothing disagrees")


class Sharing(SynchronousTestCase):
    """Several writers of one archive, and the repair after one of them has died."""

    def setUp(self) -> None:
        self.root = Path(self.mktemp())
        self.first = Archive(self.root, process="supervisor")
        self.first.open()
        self.addCleanup(self.first.close)
        self.second = Archive(self.root, process="worker-1", lock=os.dup(self.first.index.lock))
        self.second.open()
        self.addCleanup(self.second.close)

    def test_they_see_each_other(self) -> None:
        """Writers share patients, studies and series, and each row number is used once."""
        for number in range(6):
            archive = (self.first, self.second)[number % 2]
            self.assertIsNone(keep(archive, dataset(number)))
        self.assertEqual(self.first.index.counts(), self.second.index.counts())
        self.assertEqual(self.first.index.counts()[Level.IMAGE], 6)
        found = reconcile(self.first)
        self.assertEqual((found.indexed, found.lost), (0, 0))

    def test_another_version_of_an_instance(self) -> None:
        """A sender that may not replace stores no second version, whichever writer has the first one and gets the second."""
        for number, (one, other) in enumerate(((self.first, self.second), (self.second, self.first))):
            self.assertIsNone(keep(one, dataset(number)))
            second = handed(dataset(number, 9, SOPInstanceUID=f"1.2.1.1.{number}"))
            second.sender = Stranger()
            outcomes: list[BaseException | None] = []
            other.keep(second, outcomes.append)
            self.assertIsInstance(outcomes.pop(), ReplacementRefused)
        self.assertEqual(self.first.index.counts()[Level.IMAGE], 2)

    def test_what_is_uncommitted(self) -> None:
        """A repair handles a file without a row, a row without a file, and a temporary file."""
        self.assertIsNone(keep(self.second, dataset(1)))
        self.assertIsNone(keep(self.second, dataset(2)))
        (one, two) = [
            (study_uid, series_uid, uid) for study_uid, series_uid, uids in self.first.index.files() for uid in uids
        ]
        journal = self.second.journal
        assert journal is not None
        temporary = self.second.store.write_temporary([b"x"])
        with journal.locked([one, two]):
            # The writer dies here: its journal stays as it is now.
            notes = {path: path.read_bytes() for path in (self.root / ".index").glob("committing-*")}
        for path, content in notes.items():
            path.write_bytes(content)
        self.first.index.remove([one])
        self.first.store.path(*two).unlink()
        self.assertEqual(uncommitted(self.root / ".index", "worker-1")[1], [one, two])
        self.assertEqual(repair(self.first, "worker-1"), 2)
        left = [(a, b, uid) for a, b, uids in self.first.index.files() for uid in uids]
        self.assertEqual(left, [one])
        self.assertFalse(Path(temporary.path).exists())
        self.assertTrue(self.first.store.path(*one).exists())

    def test_stored_during_a_recovery(self) -> None:
        """
        A writer stores, replaces and removes instances after a recovery has listed the files, or the rows: as a worker does
        that finds room on a full disk before the supervisor has compared files and index.
        """
        for number in range(4):
            self.assertIsNone(keep(self.second, dataset(number)))
        (uids,) = [(study, series) for study, series, _ in self.first.index.files()]
        late = dataset(9)
        missing, gone = dataset(5), dataset(6)
        for one in (missing, gone):
            self.assertIsNone(keep(self.second, one))
        places = [(*uids, f"1.2.1.1.{number}") for number in (5, 6)]
        self.first.index.remove(places)
        self.first.index.announce_replacing([(*uids, "1.2.1.1.0")])
        series = self.first.store.series
        files = self.first.index.files

        def listed(*arguments: Any) -> Any:
            found = list(series(*arguments))
            self.assertIsNone(keep(self.second, late))  # has a row, and no file that was listed
            self.assertIsNone(keep(self.second, dataset(5, PatientComments="replaced")))
            self.second.store.path(*places[1]).unlink()
            self.second.index.announce_replacing([(*uids, "1.2.1.1.1")])
            return iter(found)

        def rows() -> Any:
            found = [(*folder, [uid for uid in names if not uid.endswith(".5")]) for *folder, names in files()]
            return iter(found)  # as they were before the writer had stored the row of 5

        self.patch(self.first.store, "series", listed)
        self.patch(self.first.index, "files", rows)
        found = reconcile(self.first)
        self.assertEqual((found.lost, found.unreadable, found.instances), (0, 0, 6), found)
        left = {uid for *_, names in files() for uid in names}
        self.assertEqual(left, {f"1.2.1.1.{number}" for number in (0, 1, 2, 3, 5, 9)})
        (row,) = self.first.index.find_instances({"1.2.1.1.5"})
        self.assertIsNotNone(row.digest, "the row is that of the writer")
        self.assertEqual(self.first.index.announced(), [(*uids, "1.2.1.1.1")])

    def test_recovery_and_writer_at_once(self) -> None:
        """Recoveries one after the other, beside a writer: all that it has stored has a file and a row."""
        done = Event()
        errors: list[object] = []

        def store() -> None:
            for number in range(300):
                comments = "x" * (number % 7)
                errors.append(keep(self.second, dataset(number % 200, number % 3, PatientComments=comments)))
            done.set()

        thread = Thread(target=store)
        thread.start()
        lost = 0
        while not done.is_set():
            lost += reconcile(self.first).lost
        thread.join()
        self.assertEqual(set(errors), {None})
        found = reconcile(self.first)
        self.assertEqual((lost, found.lost, found.indexed, found.unreadable), (0, 0, 0, 0))

    def test_nothing_is_uncommitted(self) -> None:
        self.assertEqual(uncommitted(self.root / ".index", "nobody"), ("", []))
        self.assertEqual(repair(self.first, "worker-1"), 0)

    def test_notes_of_a_longer_group(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        journal = CommitJournal(folder, "x", "abc")
        self.addCleanup(journal.close)
        for names in ([("1.2.3.4.5.6.7", "1.2", "1")] * 3, [("1", "2", "3")]):
            with journal.locked(names):
                self.assertEqual(uncommitted(folder, "x"), ("abc", names))
            self.assertEqual(uncommitted(folder, "x"), ("abc", []))
        self.assertRaises(ZeroDivisionError, self._fails_within, journal)
        self.assertEqual(uncommitted(folder, "x"), ("abc", []))

    def _fails_within(self, journal: CommitJournal) -> None:
        with journal.locked([("1", "2", "3")]):
            raise ZeroDivisionError


class Places(SynchronousTestCase):
    """The specification of a worker."""

    def test_environment(self) -> None:
        environment = WorkerSpec(2, ("tcp:1", "tcp:2")).environment()
        place = WorkerSpec.taken(environment)
        assert place is not None
        self.assertEqual((place.name, place.ports, len(place.sockets)), ("worker-2", ("tcp:1", "tcp:2"), 2))
        self.assertEqual(environment, {}, "programs that it starts are no workers")
        self.assertIsNone(WorkerSpec.taken({}))

    def test_sockets_of_one_process(self) -> None:
        for description in ("unix:/run/dicom.sock", "systemd:domain=INET:index=0", "haproxy:unix:/x"):
            self.assertRaises(ValueError, Sockets(reactor, [description]).check_shareable)
        Sockets(reactor, ["tcp:1", "dicomtls:2:privateKey=x", "haproxy:tcp6:1"]).check_shareable()
