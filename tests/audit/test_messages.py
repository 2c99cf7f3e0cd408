"""Audit messages are valid, whatever a peer has sent, and say what happened."""

from __future__ import annotations

from base64 import b64decode
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.audit import messages as audit
from dicomtwist.audit.messages import Event, NodeObject, Participant, PatientObject, QueryObject, StudyObject, message
from dicomtwist.audit.syslog import framed, syslog_message
from tests.audit.schema import code_of, etree, objects_of, parsed

WHEN = datetime(2026, 11, 30, 12, 0, 0, 1000, UTC)


class Valid(SynchronousTestCase):
    def test_each_event(self) -> None:
        codes = (
            *(audit.ACTIVITY, audit.BEGIN_TRANSFERRING, audit.ACCESSED, audit.TRANSFERRED),
            *(audit.DELETED, audit.QUERY, audit.SECURITY_ALERT, audit.AUTHENTICATION),
        )
        for code in codes:
            for kind in (None, audit.START, audit.LOGIN):
                event = Event(code=code, kind=kind, action="E", when=WHEN, participants=[Participant(user="US")])
                root = parsed(message(event, "ARCHIVE"))
                self.assertEqual(code_of(root), code.value)
                self.assertEqual(code_of(root, "EventIdentification/EventTypeCode"), kind.value if kind else "")

    def test_what_it_says(self) -> None:
        event = Event(
            code=audit.TRANSFERRED,
            action="C",
            when=WHEN,
            outcome=audit.FAILURE,
            why="2 instances failed",
            participants=[
                Participant(user="CT1", role=audit.SOURCE, is_requestor=True, address="10.1.2.3"),
                Participant(user="ARCHIVE", alternative="77", role=audit.DESTINATION, address="pacs.example"),
            ],
            objects=[
                StudyObject(uid="1.2.3", instances={"1.2": 7, "1.3": 1}, accession="A1"),
                PatientObject(patient_id="P1", name="Doe^Jane"),
            ],
        )
        root = parsed(message(event, "ARCHIVE"))
        identification = root.find("EventIdentification")
        self.assertEqual(identification.get("EventDateTime"), "2026-11-30T12:00:00.001+00:00")
        self.assertEqual(identification.get("EventOutcomeIndicator"), "4")
        self.assertEqual(identification.findtext("EventOutcomeDescription"), "2 instances failed")
        source, destination = root.findall("ActiveParticipant")
        self.assertEqual((source.get("UserID"), source.get("UserIsRequestor")), ("CT1", "true"))
        self.assertEqual(
            (source.get("NetworkAccessPointID"), source.get("NetworkAccessPointTypeCode")), ("10.1.2.3", "2")
        )
        self.assertEqual(
            (destination.get("AlternativeUserID"), destination.get("NetworkAccessPointTypeCode")), ("77", "1")
        )
        self.assertEqual([code_of(one, "RoleIDCode") for one in (source, destination)], ["110153", "110152"])
        study = objects_of(root, "110180")["1.2.3"].find("ParticipantObjectDescription")
        counts = {one.get("UID"): one.get("NumberOfInstances") for one in study.findall("SOPClass")}
        self.assertEqual((counts, study.find("Accession").get("Number")), ({"1.2": "7", "1.3": "1"}, "A1"))
        self.assertEqual(objects_of(root, "2")["P1"].findtext("ParticipantObjectName"), "Doe^Jane")

    def test_many_classes(self) -> None:
        """A peer chooses SOP Classes: a message stays short, whatever was stored."""
        counts = {f"1.2.826.0.1.3680043.2.1143.107.104.103.115.{10**12 + number}": 2 for number in range(5000)}
        event = Event(
            code=audit.TRANSFERRED,
            action="C",
            when=WHEN,
            participants=[Participant(user="X")],
            objects=[StudyObject(uid="1.2.3", instances=counts)],
        )
        text = message(event, "ARCHIVE")
        self.assertLess(len(text), 32 * 1024)
        found = objects_of(parsed(text), "110180")["1.2.3"].findall("ParticipantObjectDescription/SOPClass")
        self.assertEqual(sum(int(one.get("NumberOfInstances")) for one in found), 10_000)

    def test_a_query(self) -> None:
        query = QueryObject(of="1.2.840.10008.5.1.4.1.2.2.1", content=b"\0\x01\xff", syntax="1.2.840.10008.1.2.1")
        event = Event(code=audit.QUERY, action="E", when=WHEN, participants=[Participant(user="X")], objects=[query])
        root = parsed(message(event, "ARCHIVE"))
        found = objects_of(root, "110181")["1.2.840.10008.5.1.4.1.2.2.1"]
        self.assertEqual(b64decode(found.findtext("ParticipantObjectQuery")), b"\0\x01\xff")

    @given(st.text(max_size=400), st.binary(max_size=100))
    def test_any_text(self, text: str, content: bytes) -> None:
        event = Event(
            code=audit.SECURITY_ALERT,
            action="E",
            when=WHEN,
            why=text,
            participants=[Participant(user=text, alternative=text, address=text)],
            objects=[
                StudyObject(uid=text, instances={text: 1}, accession=text),
                PatientObject(patient_id=text, name=text),
                QueryObject(of=text, content=content),
                NodeObject(node=text, why=text.encode("utf-8", "replace").decode()),
            ],
        )
        line = message(event, text)
        self.assertNotIn(b"\n", line)
        parsed(line)

    def test_the_schema_refuses(self) -> None:
        """The schema of the tests is not one that takes anything."""
        event = Event(code=audit.QUERY, action="E", when=WHEN, participants=[Participant(user="X")])
        line = message(event, "ARCHIVE")
        for before, after in (
            (b'EventActionCode="E"', b'EventActionCode="X"'),
            (b'EventOutcomeIndicator="0"', b'EventOutcomeIndicator="1"'),
            (b' UserIsRequestor="false"', b""),
            (b"<AuditSourceIdentification", b"<ActiveParticipant/><AuditSourceIdentification"),
            (b'originalText="Query"', b""),
        ):
            self.assertIn(before, line)
            self.assertRaises(etree.DocumentInvalid, parsed, line.replace(before, after))


class Syslog(SynchronousTestCase):
    def test_header(self) -> None:
        line = syslog_message("<x>ä</x>".encode(), WHEN, "pacs.example", "dicomtwist", "77")
        self.assertEqual(
            line,
            b"<85>1 2026-11-30T12:00:00.001+00:00 pacs.example dicomtwist 77 DICOM+RFC3881 - "
            b"\xef\xbb\xbf<x>\xc3\xa4</x>",
        )
        self.assertEqual(framed(b"abc"), b"3 abc")

    def test_names_with_spaces(self) -> None:
        line = syslog_message(b"", WHEN, "a host\n", "", "1")
        self.assertTrue(line.startswith(b"<85>1 2026-11-30T12:00:00.001+00:00 a_host_ - 1 DICOM+RFC3881 - "), line)
