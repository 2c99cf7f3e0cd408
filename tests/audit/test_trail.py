"""The messages about requests of HTTP, and about users and peers that are refused."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import evt
from dicomtwist.access.rules import Identity, Requestor
from dicomtwist.archive.index.reading import Subject
from dicomtwist.archive.removal.remover import Deleted
from dicomtwist.archive.storage.types import IndexFailed
from dicomtwist.association.record import AssociationRecord, Ending, OperationCount
from dicomtwist.audit import trail
from dicomtwist.audit.trail import Trail
from dicomtwist.dimse.messages import CStoreRQ, CStoreRSP
from dicomtwist.web.http.records import RequestRecord
from tests.audit.schema import code_of, objects_of, parsed

NOW = datetime(2026, 11, 30, 12, 0, 0, 0, UTC)


class Index:
    """An index with patients P1 of the study 1.2.1 and so on."""

    is_broken = False

    def find_subjects(self, *, instances: Any = (), studies: Any = ()) -> list[tuple[str, str, Subject]]:
        if self.is_broken:
            raise IndexFailed("the index cannot be read")
        found = [("", "", self.subject(uid)) for uid in studies if uid.startswith("1.2.")]
        return found + [(uid, "1.9", self.subject(uid.rpartition(".")[0])) for uid in instances if uid != "unknown"]

    def subject(self, study: str) -> Subject:
        return Subject(study, "A1", f"P{study[-1]}", "Doe^Jane")


class Access:
    """The access control; it knows one user."""

    requestor: Requestor | None = None

    def requestor_of(self, assoc: Any) -> Requestor | None:
        return self.requestor


class TrailTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.index, self.access = Index(), Access()
        archive: Any = SimpleNamespace(index=self.index, add_rows=lambda: None)
        access: Any = self.access
        self.jobs: list[Any] = []
        self.weights: list[int] = []

        def put(job: Any, weight: int = 1) -> None:
            self.jobs.append(job)
            self.weights.append(weight)

        writer: Any = SimpleNamespace(put=put)
        self.trail = Trail("SOURCE", "ARCHIVE", archive, access, writer)

    def messages(self) -> list[Any]:
        """Return the messages so far; each job can be called again after a write that failed."""
        found: list[Any] = []
        for job in self.jobs:
            lines = job()
            self.assertEqual(job(), lines)
            found += map(parsed, lines)
        self.jobs.clear()
        return found

    def kinds(self) -> list[str]:
        return [_kind(one) for one in self.messages()]


def _kind(message: Any) -> str:
    event = message.find("EventIdentification")
    parts = [code_of(message), code_of(message, "EventIdentification/EventTypeCode")]
    return " ".join([*filter(None, parts), event.get("EventActionCode"), event.get("EventOutcomeIndicator")])


class Forwarding(TrailTestCase):
    def test_begin_and_end(self) -> None:
        self.trail.forwarding_begins("CLOUD", "1.2.1")
        (begin,) = self.messages()
        self.assertEqual(_kind(begin), "110102 E 0")
        self.assertEqual([one.get("UserID") for one in begin.findall("ActiveParticipant")], ["ARCHIVE", "CLOUD"])
        self.trail.forwarded("CLOUD", {"1.2.1": Counter({"1.9": 3}), "9.9": Counter({"1.9": 1})})
        self.assertEqual(self.kinds(), ["110104 R 0", "110104 R 0"])
        self.trail.forwarded("CLOUD", {"1.2.1": Counter({"1.9": 3})})
        (ended,) = self.messages()
        self.assertIn(
            "P1", [one.get("ParticipantObjectID") for one in ended.findall("ParticipantObjectIdentification")]
        )
        self.assertEqual(self.weights, [2, 3, 2])


class HTTP(TrailTestCase):
    def request(self, method: str, route: str, status: int | None = 200, ending: str = "answered", **more: Any) -> None:
        values: dict[str, Any] = {
            "path": route.replace("{study}", "1.2.1").replace("{series}", "1.2.1.1").replace("{instance}", "1.2.1.1.1"),
            "address": "10.1.2.3",
            "user": "",
            "credentials": False,
            **more,
        }
        self.trail.request_ended(
            RequestRecord(
                method=method, route=route, status=status, proxied=False, secure=True, identity="", certificate="",
                started=NOW, seconds=0.1, bytes_received=0, bytes_sent=0, ending=ending, **values,
            )
        )  # fmt: skip

    def test_kinds(self) -> None:
        study = "/dicom-web/studies/{study}"
        for method, route, kind in (
            ("GET", "/dicom-web/studies", "110112 E 0"),
            ("GET", "/dicom-web/series", "110112 E 0"),
            ("GET", f"{study}/series", "110112 E 0"),
            ("GET", f"{study}/series/{{series}}/instances", "110112 E 0"),
            ("GET", study, "110104 R 0"),
            ("GET", f"{study}/series/{{series}}", "110104 R 0"),
            ("GET", f"{study}/series/{{series}}/instances/{{instance}}", "110104 R 0"),
            ("GET", f"{study}/metadata", "110103 R 0"),
            ("GET", f"{study}/series/{{series}}/instances/{{instance}}/rendered", "110103 R 0"),
            ("GET", f"{study}/thumbnail", "110103 R 0"),
            ("GET", "/", "110112 E 0"),
            ("GET", "/studies/{study}", "110103 R 0"),
            ("GET", "/studies/{study}/series/{series}", "110103 R 0"),
            ("GET", "/studies/{study}/series/{series}/instances/{instance}", "110103 R 0"),
            ("GET", "/api/archive/studies", "110112 E 0"),
            ("GET", "/api/archive/studies/{study}", "110103 R 0"),
        ):
            self.request(method, route)
            (message,) = self.messages()
            self.assertEqual(_kind(message), kind, (method, route))
            if "110112" not in kind:
                self.assertEqual(list(objects_of(message, "110180")), ["1.2.1"])
                self.assertEqual(list(objects_of(message, "2")), ["P1"])

    def test_long_queries(self) -> None:
        """Messages that wait are bounded by their size: a query may be as long as a header."""
        self.request("GET", "/dicom-web/studies", query="PatientName=" + "x" * 60_000)
        self.assertEqual(self.weights, [61])

    def test_no_data(self) -> None:
        self.request("GET", "/metrics")
        self.request("GET", "/health/ready")
        self.request("OPTIONS", "/dicom-web/studies")
        self.request("GET", "", 404)
        self.request("GET", "/dicom-web/studies", None)
        self.request("GET", "/dicom-web/studies", 500)
        self.assertEqual(self.messages(), [])

    def test_deleted(self) -> None:
        """The message of a deletion has the patient, whom the index does not know any more."""
        self.request("DELETE", "/dicom-web/studies/{study}", 204)
        self.trail.deleted(Deleted(("1.2.1",), (), 3, None, Subject("1.2.1", patient_id="P1")), "'alice' at 10.1.2.3")
        self.trail.deleted(Deleted(("1.2.1", "1.3"), (), 3, None, Subject("1.2.1", patient_id="P1")), "retention")
        study, series = self.messages()
        self.assertEqual((_kind(study), _kind(series)), ("110105 D 0", "110103 D 0"))
        self.assertEqual((list(objects_of(study, "110180")), list(objects_of(study, "2"))), (["1.2.1"], ["P1"]))
        self.assertEqual(study.find("ActiveParticipant").get("UserID"), "'alice' at 10.1.2.3")

    def test_wado_uri(self) -> None:
        self.request("GET", "/dicom-web/wado", query="requestType=WADO&studyUID=1.2.2&seriesUID=1.3&objectUID=1.4")
        (message,) = self.messages()
        self.assertEqual((_kind(message), list(objects_of(message, "2"))), ("110104 R 0", ["P2"]))
        self.assertEqual(self.instances(message), [("1.9", "1", ["1.4"])])

    def instances(self, message: Any) -> list[tuple[str, str, list[str]]]:
        """Return the SOP Classes of a message: UID, number of instances, SOP Instance UIDs."""
        return [
            (one.get("UID"), one.get("NumberOfInstances"), [each.get("UID") for each in one.iter("Instance")])
            for one in message.iter("SOPClass")
        ]

    def test_instances(self) -> None:
        """The number of instances that were sent; the UID of one that the request names."""
        study = "/dicom-web/studies/{study}"
        one = f"{study}/series/{{series}}/instances/{{instance}}"
        for route, more, kind, instances in (
            (study, {"sent": {"1.2.1": {"1.9": 3, "1.8": 1}}}, "110104 R 0", [("1.9", "3", []), ("1.8", "1", [])]),
            (study, {"sent": {"1.2.1": {"1.9": 2}}, "ending": "lost"}, "110104 R 4", [("1.9", "2", [])]),
            (one, {}, "110104 R 0", [("1.9", "1", ["1.2.1.1.1"])]),
            (one, {"status": 304}, "110103 R 0", [("1.9", "1", ["1.2.1.1.1"])]),
            (f"{one}/frames/{{frames}}", {}, "110103 R 0", [("1.9", "1", ["1.2.1.1.1"])]),
            (one.replace("/dicom-web", ""), {}, "110103 R 0", [("1.9", "1", ["1.2.1.1.1"])]),
            (f"{study}/metadata", {}, "110103 R 0", []),
        ):
            self.request("GET", route, **more)
            (message,) = self.messages()
            self.assertEqual((_kind(message), self.instances(message)), (kind, instances), (route, more))
        self.index.is_broken = True
        self.request("GET", one)
        (message,) = self.messages()
        self.assertEqual(self.instances(message), [("unknown", "1", ["1.2.1.1.1"])])

    def test_stored(self) -> None:
        self.request(
            "POST", "/dicom-web/studies", stored={"1.2.1": {"1.9": 3}, "1.2.2": {"1.9": 1, "1.8": 2}}, failed=1, user="alice"
        )  # fmt: skip
        first, second = self.messages()
        self.assertEqual((_kind(first), _kind(second)), ("110104 C 4", "110104 C 4"))
        counts = {one.get("UID"): one.get("NumberOfInstances") for one in second.iter("SOPClass")}
        self.assertEqual(counts, {"1.9": "1", "1.8": "2"})
        client = first.find("ActiveParticipant")
        self.assertEqual((client.get("UserID"), client.get("NetworkAccessPointID")), ("alice", "10.1.2.3"))

    def test_refused(self) -> None:
        self.request("GET", "/dicom-web/studies", 403)
        self.request("GET", "/dicom-web/studies", 401)
        self.request("GET", "/dicom-web/studies", 401, credentials=True)
        self.assertEqual(self.kinds(), ["110113 110132 E 4", "110113 110132 E 4", "110114 110122 E 4"])

    def test_an_index_that_cannot_be_read(self) -> None:
        self.index.is_broken = True
        self.request("GET", "/dicom-web/studies/{study}")
        (message,) = self.messages()
        self.assertEqual(list(objects_of(message, "110180")), ["1.2.1"])


class Assoc:
    """An association, hashable and weakly referenced."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    remote: Any
    requestor: Any
    is_acceptor: bool


class Associations(TrailTestCase):
    def setUp(self) -> None:
        super().setUp()
        remote = SimpleNamespace(ae_title="CT1", address="10.1.2.3", port=1)
        requestor = SimpleNamespace(called_ae_title="ARCHIVE", user_identity=None)
        self.assoc = Assoc(remote=remote, requestor=requestor, is_acceptor=True)
        self.handlers: dict[Any, Any] = {entry[0]: entry[1] for entry in self.trail.handlers}

    def message(self, event: evt.EventType, message: Any) -> None:
        self.handlers[event](SimpleNamespace(assoc=self.assoc, message=message))

    def store(self, number: int, uid: str, status: int) -> None:
        received, sent = evt.EVT_DIMSE_RECV, evt.EVT_DIMSE_SENT
        if not self.assoc.is_acceptor:
            received, sent = sent, received
        self.message(received, CStoreRQ(message_id=number, affected_sop_class_uid="1.9", affected_sop_instance_uid=uid))
        self.message(sent, CStoreRSP(message_id_being_responded_to=number, status=status))

    def end(self, ending: Ending, *counts: OperationCount, established: float | None = 0.1) -> None:
        record = AssociationRecord(
            mode="acceptor", calling_ae_title="CT1", called_ae_title="ARCHIVE", local=("", 0), remote=("", 0), secure=False,
            implementation_class_uid="", implementation_version_name="", started=NOW, seconds=1.0, established=established,
            bytes_received=0, bytes_sent=0, contexts=(), operations=(), omitted=0, counts=counts, ending=ending,
        )  # fmt: skip
        self.handlers[evt.EVT_RECORD](SimpleNamespace(assoc=self.assoc, record=record))

    def test_stored(self) -> None:
        for number, (uid, status) in enumerate(
            [("1.2.1.1", 0), ("1.2.1.2", 0xB000), ("1.2.2.1", 0), ("1.2.2.2", 0xA700), ("unknown", 0)]
        ):
            self.store(number, uid, status)
        self.end(Ending(kind="released", by="peer"))
        found = {
            uid: sum(int(one.get("NumberOfInstances")) for one in study.iter("SOPClass"))
            for message in self.messages()
            for uid, study in objects_of(message, "110180").items()
        }
        self.assertEqual(found, {"1.2.1": 2, "1.2.2": 1, "unknown": 1})

    def counts(self) -> dict[str, int]:
        """Return the numbers of instances in the messages, by study."""
        return {
            uid: sum(int(one.get("NumberOfInstances")) for one in study.iter("SOPClass"))
            for message in self.messages()
            for uid, study in objects_of(message, "110180").items()
        }

    def test_many_instances(self) -> None:
        """A long association does not keep the UIDs of what it has transferred, and its messages count all of them."""
        self.patch(trail, "PAGE", 10)
        for number in range(1005):
            self.store(number % 100, f"1.2.{1 + number % 2}.{number}", 0)
            while self.jobs:
                self.assertEqual(self.jobs.pop()(), [], "only counted")
        (received, _) = self.trail._instances[self.assoc]  # type: ignore[index]
        self.assertLess(len(received._uids), 10)
        self.end(Ending(kind="released", by="peer"))
        self.assertEqual(self.counts(), {"1.2.1": 503, "1.2.2": 502})

    def test_counts_are_bounded(self) -> None:
        """Instances that the thread does not come to, and those of too many studies, are counted as of an unknown study."""
        self.patch(trail, "MAX_INSTANCES", 10)
        for number in range(25):
            self.store(number, f"1.2.1.{number}", 0)
        self.end(Ending(kind="released", by="peer"))
        self.assertEqual(self.counts(), {"1.2.1": 10, "unknown": 15})
        self.patch(trail, "MAX_COUNTED", 3)
        for number in range(1, 9):
            self.store(number, f"1.2.{number}.1", 0)
        self.end(Ending(kind="released", by="peer"))
        self.assertEqual(self.counts(), {"1.2.1": 1, "1.2.2": 1, "1.2.3": 1, "unknown": 5})

    def test_one_message_for_a_study(self) -> None:
        """The patient of a study may change while instances of it arrive: the message names the latest."""
        self.patch(trail, "PAGE", 10)
        for number in range(25):
            self.store(number, f"1.2.1.{number}", 0)
            if number == 14:
                self.jobs.pop()()
                self.index.subject = lambda study: Subject(study, "A1", "P9", "Roe^John")  # type: ignore[method-assign]
        self.end(Ending(kind="released", by="peer"))
        (message,) = self.messages()
        self.assertEqual(list(objects_of(message, "110180")), ["1.2.1"])
        self.assertEqual(list(objects_of(message, "2")), ["P9"])

    def test_a_job_that_was_dropped(self) -> None:
        """Counts are those of the end, whether or not a thread has counted before."""
        self.patch(trail, "PAGE", 10)
        for number in range(35):
            self.store(number, f"1.2.1.{number}", 0)
        del self.jobs[1:]
        self.end(Ending(kind="released", by="peer"))
        self.assertEqual(self.counts(), {"1.2.1": 35})

    def test_sent_to_a_destination(self) -> None:
        self.assoc.is_acceptor = False
        self.store(1, "1.2.1.1", 0)
        self.end(Ending(kind="released", by="us"))
        (message,) = self.messages()
        self.assertEqual(_kind(message), "110104 R 0")
        self.assertEqual([one.get("UserID") for one in message.findall("ActiveParticipant")], ["ARCHIVE", "CT1"])

    def test_nothing_was_done(self) -> None:
        self.end(Ending(kind="released", by="peer"))
        self.assertEqual(self.messages(), [])

    def test_rejected(self) -> None:
        self.end(Ending(kind="rejected", by="us", why="no rule", codes=(1, 1, 3)), established=None)
        self.assertEqual(self.kinds(), ["110113 110126 E 4"])

    def test_users(self) -> None:
        self.assoc.requestor.user_identity = object()
        self.end(Ending(kind="rejected", by="us", codes=(2, 2, 1)), established=None)
        self.access.requestor = Requestor("ARCHIVE", "CT1", user="alice", identity=Identity.PASSCODE)
        self.end(Ending(kind="released", by="peer"))
        refused, accepted = self.messages()
        self.assertEqual((_kind(refused), _kind(accepted)), ("110114 110122 E 4", "110114 110122 E 0"))
        self.assertEqual(accepted.find("ActiveParticipant").get("UserID"), "alice")

    def test_operations_without_a_rule(self) -> None:
        count = OperationCount(direction="received", service="C-FIND", status=0x0124, count=7)
        self.end(Ending(kind="released", by="peer"), count)
        (message,) = self.messages()
        self.assertEqual(_kind(message), "110113 110132 E 4")
        self.assertIn("7 C-FIND", message.findtext("EventIdentification/EventOutcomeDescription"))
