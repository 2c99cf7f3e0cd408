"""
The audit trail of a server: audit messages about what its associations and requests of HTTP have done.

A message is made in a thread, from the record of what has ended and from the index, which knows patients and studies. Queries,
and retrievals that begin, have their messages at once.
"""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from threading import Lock
from typing import Any, Final, Protocol, TypeAlias
from urllib.parse import parse_qs
from weakref import WeakKeyDictionary

from dicomtwist import evt
from dicomtwist.access.enforcement import Access
from dicomtwist.access.rules import Requestor
from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.reading import Subject
from dicomtwist.archive.removal.remover import Deleted
from dicomtwist.archive.storage.types import IndexFailed, is_uid
from dicomtwist.association.record import AssociationRecord, counting
from dicomtwist.audit import messages as audit
from dicomtwist.audit.alerts import Alerts
from dicomtwist.audit.messages import Event, Participant, PatientObject, StudyObject
from dicomtwist.dimse.messages import CStoreRQ, CStoreRSP
from dicomtwist.dimse.status import NOT_AUTHORISED, StatusCategory, category
from dicomtwist.errors import DataSetError
from dicomtwist.interfaces import AssociationInterface
from dicomtwist.web.http.records import RequestRecord

__all__ = ["Trail"]

#: The most instances of one association, in one direction, that wait for the thread that looks up their studies; further ones
#: are counted as of an unknown study. Each takes some 100 bytes.
MAX_INSTANCES: Final = 10_000
#: The most pairs of a study and a SOP Class that one association is counted by, in one direction; instances of further ones
#: are counted as of an unknown study.
MAX_COUNTED: Final = 10_000
#: The most studies of one identifier that have messages.
MAX_STUDIES: Final = 1000
#: The beginning of the routes of DICOMweb, whose studies, series and instances are files.
DICOMWEB: Final = "/dicom-web/"
#: The status of a response without a body, because the client has it already.
NOT_MODIFIED: Final = 304
#: The instances that are looked up at once.
PAGE: Final = 400

_STUDY: Final = re.compile(r"/studies/([0-9.]{1,64})(?=/|\Z)")
_INSTANCE: Final = re.compile(r"/instances/([0-9.]{1,64})(?=/|\Z)")
_UNKNOWN: Final = Subject("unknown")
_UNKNOWN_KIND: Final = (_UNKNOWN, "unknown")


class Writer(Protocol):
    """The writer of messages: a :class:`~dicomtwist.runtime.lines.line_writer.LineWriter`."""

    def put(self, item: Callable[[], list[bytes]], weight: int = 1) -> None:
        """Call *item* in a thread, and write the messages that it returns."""


#: The patient and the study of an instance, and its SOP Class.
_Kind: TypeAlias = tuple[Subject, str]


class _Instances:
    """
    The instances of one association in one direction.

    Their UIDs are not kept until it ends, which may take days: a thread looks up their studies, some hundred at once, and
    counts them by study and SOP Class.

    :ivar done: the number of instances that were transferred.
    :ivar failed: the number of those that were not.
    :ivar pending: the instances under way, by Message ID.
    """

    __slots__ = ("_counts", "_lock", "_subjects", "_uids", "done", "failed", "pending")

    def __init__(self) -> None:
        self.pending: dict[int, str] = {}
        self.done = self.failed = 0
        self._uids: deque[str] = deque()
        self._counts: Counter[tuple[str, str]] = Counter()  # by study and SOP Class
        self._subjects = {_UNKNOWN.study: _UNKNOWN}  # the latest of each study
        self._lock = Lock()

    def ended(self, message_id: int, status: int) -> bool:
        """Note how an operation has ended; return whether as many wait as are looked up at once."""
        uid = self.pending.pop(message_id, "")
        if category(status) is StatusCategory.FAILURE:
            self.failed += 1
            return False
        self.done += 1
        if len(self._uids) < MAX_INSTANCES:
            self._uids.append(uid)
        return self.done % PAGE == 0

    def counted(self, look_up: Callable[[list[str]], dict[str, _Kind]]) -> dict[Subject, Counter[str]]:
        """
        Look up the instances that wait; return the numbers of all so far, by study and SOP Class. It blocks.

        :param look_up: finds instances by their UIDs.
        """
        with self._lock:
            while self._uids:
                page = [self._uids.popleft() for _ in range(min(PAGE, len(self._uids)))]
                found = look_up(page)
                for uid in page:
                    self._count(*found.get(uid, _UNKNOWN_KIND))
            counts, subjects = Counter(self._counts), dict(self._subjects)
        counts[_UNKNOWN.study, "unknown"] += self.done - counts.total()
        classes: dict[Subject, Counter[str]] = {}
        for (study, sop_class), count in (+counts).items():
            classes.setdefault(subjects[study], Counter())[sop_class] += count
        return classes

    def _count(self, subject: Subject, sop_class: str) -> None:
        key = (subject.study, sop_class)
        if key not in self._counts and len(self._counts) >= MAX_COUNTED:
            key, subject = (_UNKNOWN.study, "unknown"), _UNKNOWN
        self._counts[key] += 1
        self._subjects[subject.study] = subject


class _Job:
    """
    Makes messages once, however often it is called: a write that fails is tried again.

    :param events: the events; they are made in the thread.
    :param source: the name of the source of the trail.
    """

    __slots__ = ("_events", "_made", "_source")

    def __init__(self, events: Iterable[Event], source: str) -> None:
        self._events = events
        self._source = source
        self._made: list[bytes] | None = None

    def __call__(self) -> list[bytes]:
        if self._made is None:
            self._made = [audit.message(event, self._source) for event in self._events]
            self._events = ()
        return self._made


class Trail:
    """
    The audit trail.

    :param source: the name of the source of the trail.
    :param title: the AE title of the server.
    :param archive: the archive.
    :param access: the access control, which knows the users; ``None`` without one.
    :param writer: writes the messages.
    :param clock: the reactor; with it repeated alerts have a message together, see :mod:`~dicomtwist.audit.alerts`.

    :ivar source: the name of the source, which may change, and so may *writer*.
    """

    def __init__(
        self, source: str, title: str, archive: Archive, access: Access | None, writer: Writer, clock: Any = None
    ) -> None:
        self._alerts = None if clock is None else Alerts(clock, lambda event: self._put([event]))
        self.source = source
        self._title = title
        self._archive = archive
        self._access = access
        self.writer = writer
        self._instances: WeakKeyDictionary[AssociationInterface, tuple[_Instances, _Instances]] = WeakKeyDictionary()

    @property
    def handlers(self) -> list[evt.HandlerTuple]:
        """The handlers of notifications that the trail needs."""
        return [
            (evt.EVT_DIMSE_RECV, self._received),
            (evt.EVT_DIMSE_SENT, self._sent),
            (evt.EVT_RECORD, self._association_ended),
        ]

    def _put(self, events: Iterable[Event], weight: int = 1) -> None:
        self.writer.put(_Job(events, self.source), weight)

    def _alert(self, event: Event) -> None:
        """Write the message of an event that a peer can repeat as often as it likes."""
        if self._alerts is None or event.outcome == audit.SUCCESS:
            self._put([event])
        else:
            self._alerts.add(event)

    # --- the application

    def flush(self) -> None:
        """Write the messages of alerts that were only counted so far."""
        if self._alerts is not None:
            self._alerts.flush()

    def started(self) -> None:
        """Note that the application has started."""
        self._put([self._activity(audit.START)])

    def stopped(self) -> None:
        """Note that the application stops."""
        self._put([self._activity(audit.STOP)])

    def _activity(self, kind: audit.Code) -> Event:
        return Event(
            code=audit.ACTIVITY, kind=kind, action="E", when=_now(), participants=[self._us(audit.APPLICATION)]
        )

    def _us(self, role: audit.Code | None, title: str = "", **more: Any) -> Participant:
        return Participant(user=title or self._title, alternative=str(os.getpid()), role=role, **more)

    # --- associations

    def identifier_received(self, event: evt.IdentifierEvent) -> None:
        """Note a query, or that a retrieval begins; the rules allow it."""
        assoc, request = event.assoc, event.request
        peer = self._peer(assoc)
        if event.event is evt.EVT_C_FIND:
            query = audit.QueryObject(
                of=request.affected_sop_class_uid,
                content=event.encoded_identifier,
                syntax=str(event.context.transfer_syntax),
            )
            source, destination = partial(peer, audit.SOURCE, True), self._us(audit.DESTINATION, self._called(assoc))
            self._put(
                [
                    Event(
                        code=audit.QUERY,
                        action="E",
                        when=_now(),
                        participants=[source(), destination],
                        objects=[query],
                    )
                ],
                1 + len(query.content) // 1000,
            )
            return
        participants = [self._us(audit.SOURCE, self._called(assoc))]
        if event.event is evt.EVT_C_MOVE:
            participants += [Participant(user=event.move_destination, role=audit.DESTINATION), peer(None, True)]
        else:
            participants.append(peer(audit.DESTINATION, True))
        studies = _studies(event)
        self._put(self._transfers(audit.BEGIN_TRANSFERRING, "E", _now(), participants, studies), 1 + len(studies))

    def _transfers(
        self, code: audit.Code, action: str, when: datetime, participants: list[Participant], studies: list[str]
    ) -> Iterator[Event]:
        subjects = self._subjects(studies)
        for uid in studies or [_UNKNOWN.study]:
            objects = _objects(subjects.get(uid, Subject(uid)), {})
            yield Event(code=code, action=action, when=when, participants=participants, objects=objects)

    def _received(self, event: evt.Event) -> None:
        message = event.message
        if type(message) is CStoreRQ:
            self._of(event.assoc)[0].pending[message.message_id] = message.affected_sop_instance_uid
        elif type(message) is CStoreRSP:
            self._ended(self._of(event.assoc)[1], message)

    def _sent(self, event: evt.Event) -> None:
        message = event.message
        if type(message) is CStoreRQ:
            self._of(event.assoc)[1].pending[message.message_id] = message.affected_sop_instance_uid
        elif type(message) is CStoreRSP:
            self._ended(self._of(event.assoc)[0], message)

    def _ended(self, instances: _Instances, response: CStoreRSP) -> None:
        if instances.ended(response.message_id_being_responded_to, response.status):
            self.writer.put(lambda: self._count(instances))

    def _count(self, instances: _Instances) -> list[bytes]:
        """Count the instances that wait, for messages at the end of their association."""
        instances.counted(self._subjects_of_instances)
        return []

    def _of(self, assoc: AssociationInterface) -> tuple[_Instances, _Instances]:
        found = self._instances.get(assoc)
        if found is None:
            found = self._instances[assoc] = (_Instances(), _Instances())
        return found

    @counting
    def _association_ended(self, event: evt.Event) -> None:
        assoc, record = event.assoc, event.record
        received, sent = self._instances.pop(assoc, (_Instances(), _Instances()))
        peer, us = self._peer(assoc), partial(self._us, title=self._called(assoc) if assoc.is_acceptor else "")
        is_acceptor = assoc.is_acceptor
        if is_acceptor:
            for alert in self._security(assoc, record):
                self._alert(alert)
        for instances, action, source, destination in (
            (received, "C", peer(audit.SOURCE, is_acceptor), us(audit.DESTINATION)),
            (sent, "R", us(audit.SOURCE, is_requestor=not is_acceptor), peer(audit.DESTINATION, is_acceptor)),
        ):
            events = self._transferred(instances, action, record.ended, [source, destination])
            if instances.done:
                self._put(events, 1 + min(instances.done, MAX_INSTANCES) // PAGE)
            elif instances.failed:  # as those of a peer that may not store
                for failed in events:
                    self._alert(failed)

    def _transferred(
        self, instances: _Instances, action: str, when: datetime, participants: list[Participant]
    ) -> Iterator[Event]:
        """Yield a message for each study."""
        classes = instances.counted(self._subjects_of_instances)
        failure = f"{instances.failed} instances were not transferred" if instances.failed else ""
        for subject, counts in classes.items() or [(_UNKNOWN, Counter[str]())]:
            yield Event(
                code=audit.TRANSFERRED,
                action=action,
                when=when,
                outcome=audit.FAILURE if failure else audit.SUCCESS,
                why=failure,
                participants=participants,
                objects=_objects(subject, counts),
            )

    def _security(self, assoc: AssociationInterface, record: AssociationRecord) -> Iterator[Event]:
        """Yield the messages about users, and about what was refused."""
        peer = self._peer(assoc)(None, True)
        us = self._us(None, self._called(assoc))
        common: dict[str, Any] = {"action": "E", "when": record.ended, "participants": [peer, us]}
        has_identity = assoc.requestor.user_identity is not None
        if record.ending.kind == "rejected":
            if has_identity and record.ending.codes[:2] == (2, 2):
                yield Event(
                    code=audit.AUTHENTICATION,
                    kind=audit.LOGIN,
                    outcome=audit.FAILURE,
                    why="the user was not confirmed",
                    **common,
                )
                return
            node = audit.NodeObject(node=peer.address or peer.user, why=record.ending.why)
            yield Event(
                code=audit.SECURITY_ALERT,
                kind=audit.NODE,
                outcome=audit.FAILURE,
                why=record.ending.why,
                objects=[node],
                **common,
            )
            return
        requestor = self._requestor(assoc)
        if record.established is not None and requestor is not None and requestor.identity is not None:
            yield Event(code=audit.AUTHENTICATION, kind=audit.LOGIN, **common)
        for count in record.counts:
            if count.status == NOT_AUTHORISED and count.direction == "received":
                why = f"{count.count} {count.service} refused: no rule allows them"
                yield self._restricted(peer, us, record.ended, why)

    def _restricted(self, peer: Participant, us: Participant, when: datetime, why: str) -> Event:
        return Event(
            code=audit.SECURITY_ALERT,
            kind=audit.RESTRICTED,
            action="E",
            when=when,
            outcome=audit.FAILURE,
            why=why,
            participants=[peer, us],
            objects=[audit.NodeObject(node=us.user, why=why)],
        )

    def _requestor(self, assoc: AssociationInterface) -> Requestor | None:
        return None if self._access is None else self._access.requestor_of(assoc)

    def _peer(self, assoc: AssociationInterface) -> Callable[[audit.Code | None, bool], Participant]:
        remote, requestor = assoc.remote, self._requestor(assoc) if assoc.is_acceptor else None
        user = "" if requestor is None else requestor.user

        def participant(role: audit.Code | None, is_requestor: bool) -> Participant:
            return Participant(
                user=user or remote.ae_title,
                alternative=remote.ae_title if user else "",
                is_requestor=is_requestor,
                role=role,
                address=remote.address,
            )

        return participant

    def _called(self, assoc: AssociationInterface) -> str:
        return assoc.requestor.called_ae_title if assoc.is_acceptor else self._title

    # --- HTTP

    def request_ended(self, record: RequestRecord) -> None:
        """Note what a request of HTTP has done."""
        client = partial(
            Participant,
            user=record.user or record.address,
            alternative=record.address if record.user else "",
            address=record.address,
            is_requestor=True,
        )
        us = self._us
        if record.status in (401, 403):
            self._alert(self._refused(record, client(), us(None)))
        elif record.status is not None and record.status < 400 and record.route:
            events = self._events_of(record, client, us)
            if events is not None:
                self._put(events, 1 + len(record.stored) + len(record.query) // 1000)

    def _refused(self, record: RequestRecord, client: Participant, us: Participant) -> Event:
        if record.status == 401 and record.credentials:
            return Event(
                code=audit.AUTHENTICATION,
                kind=audit.LOGIN,
                action="E",
                when=record.started,
                outcome=audit.FAILURE,
                why="the credentials are wrong",
                participants=[client, us],
            )
        return self._restricted(client, us, record.started, f"{record.method} refused: no rule allows it")

    def _events_of(
        self, record: RequestRecord, client: Callable[..., Participant], us: Callable[..., Participant]
    ) -> Iterable[Event] | None:
        """Return the messages about a request that has succeeded, ``None`` if it concerns no data."""
        last = record.route.rpartition("/")[2]
        when, method = record.started, record.method
        studies = _STUDY.findall(record.path)[:1]
        if method == "POST" and record.stored:
            participants = [client(role=audit.SOURCE), us(audit.DESTINATION)]
            return self._stored(record, participants)
        is_search = (
            last in ("studies", "series", "instances") or record.route == "/"
        )  # the page with the list of studies
        if method != "GET" or not (is_search or "/studies" in record.route or last == "wado"):
            return None
        if is_search:
            url = f"{record.path}?{record.query}" if record.query else record.path
            query = audit.QueryObject(of=record.path, content=url.encode("utf-8", "replace"))
            participants = [client(role=audit.SOURCE), us(audit.DESTINATION)]
            return [Event(code=audit.QUERY, action="E", when=when, participants=participants, objects=[query])]
        instance = next(iter(_INSTANCE.findall(record.path)), "")
        if last == "wado":
            parameters = parse_qs(record.query)
            studies = [uid for uid in parameters.get("studyUID", []) if is_uid(uid)][:1]
            instance = next((uid for uid in parameters.get("objectUID", []) if is_uid(uid)), "")
        # DICOMweb sends files; pages and /api describe studies, with paths of the same form.
        is_transfer = last in ("{study}", "{series}", "{instance}") and record.route.startswith(DICOMWEB)
        participants = [client(), us(None)]
        code = audit.ACCESSED
        if (is_transfer or last == "wado") and record.status != NOT_MODIFIED:
            code = audit.TRANSFERRED
            participants = [us(audit.SOURCE), client(role=audit.DESTINATION)]
        return self._retrieved(record, code, participants, studies, instance)

    def _retrieved(
        self,
        record: RequestRecord,
        code: audit.Code,
        participants: list[Participant],
        studies: list[str],
        instance: str,
    ) -> Iterator[Event]:
        """
        Yield the message about what a request has read.

        :param studies: the study that it names, if there is one.
        :param instance: the instance that it names, ``""`` if it names none.
        """
        uid = next(iter(studies), _UNKNOWN.study)
        subject = self._subjects(studies).get(uid, Subject(uid))
        counts: Mapping[str, int] = record.sent.get(uid, {})
        uids: dict[str, list[str]] = {}
        if instance:
            _, sop_class = self._subjects_of_instances([instance]).get(instance, (subject, "unknown"))
            counts, uids = {sop_class: 1}, {sop_class: [instance]}
        is_cut = record.ending == "lost"
        yield Event(
            code=code,
            action="R",
            when=record.started,
            outcome=audit.FAILURE if is_cut else audit.SUCCESS,
            why="the connection was lost before the end of the response" if is_cut else "",
            participants=participants,
            objects=_objects(subject, counts, uids),
        )

    def _stored(self, record: RequestRecord, participants: list[Participant]) -> Iterator[Event]:
        subjects = self._subjects(list(record.stored))
        failed = f"{record.failed} instances were not stored" if record.failed else ""
        for uid, counts in record.stored.items():
            yield Event(
                code=audit.TRANSFERRED,
                action="C",
                when=record.started,
                outcome=audit.FAILURE if failed else audit.SUCCESS,
                why=failed,
                participants=participants,
                objects=_objects(subjects.get(uid, Subject(uid)), counts),
            )

    # --- forwarding

    def forwarding_begins(self, peer: str, study: str) -> None:
        """Note that a study is going to be sent to a peer by a rule of forwarding."""
        participants = self._forwards_to(peer)
        self._put(self._transfers(audit.BEGIN_TRANSFERRING, "E", _now(), participants, [study]), 2)

    def forwarded(self, peer: str, studies: Mapping[str, Counter[str]]) -> None:
        """Note the numbers of instances that a peer has taken, by study and SOP Class UID, as they were received."""
        self._put(self._forwarded(self._forwards_to(peer), _now(), studies), 1 + len(studies))

    def _forwarded(
        self, participants: list[Participant], when: datetime, studies: Mapping[str, Counter[str]]
    ) -> Iterator[Event]:
        subjects = self._subjects(list(studies))
        for uid, counts in studies.items():
            objects = _objects(subjects.get(uid, Subject(uid)), counts)
            yield Event(code=audit.TRANSFERRED, action="R", when=when, participants=participants, objects=objects)

    def _forwards_to(self, peer: str) -> list[Participant]:
        return [self._us(audit.SOURCE, is_requestor=True), Participant(user=peer, role=audit.DESTINATION)]

    # --- deletions

    def deleted(self, deletion: Deleted, by: str) -> None:
        """
        Note that a study, or a part of it, was deleted.

        :param by: words that name the client.
        """
        self._put(
            [
                Event(
                    code=audit.DELETED if len(deletion.uids) == 1 else audit.ACCESSED,
                    action="D",
                    when=_now(),
                    participants=[Participant(user=by, is_requestor=True), self._us(None)],
                    objects=_objects(deletion.subject, {}),
                )
            ]
        )

    # --- in threads

    def _subjects(self, studies: list[str]) -> dict[str, Subject]:
        if not studies:
            return {}
        with suppress(IndexFailed, AttributeError):
            self._archive.add_rows()
        found: dict[str, Subject] = {}
        for start in range(0, len(studies), PAGE):
            with suppress(IndexFailed):
                for _, _, subject in self._archive.index.find_subjects(studies=studies[start : start + PAGE]):
                    found[subject.study] = subject
        return found

    def _subjects_of_instances(self, uids: list[str]) -> dict[str, tuple[Subject, str]]:
        with suppress(IndexFailed):
            self._archive.add_rows()
        with suppress(IndexFailed):
            rows = self._archive.index.find_subjects(instances=uids)
            return {uid: (subject, sop_class) for uid, sop_class, subject in rows}
        return {}


def _objects(
    subject: Subject, counts: Mapping[str, int], uids: Mapping[str, Sequence[str]] | None = None
) -> list[StudyObject | PatientObject]:
    return [
        StudyObject(uid=subject.study, instances=counts, accession=subject.accession, uids=uids or {}),
        PatientObject(patient_id=subject.patient_id, name=subject.name),
    ]


def _studies(event: evt.IdentifierEvent) -> list[str]:
    """Return the studies that an identifier names, as far as it can be read."""
    try:
        value = event.identifier.get("StudyInstanceUID")
    except DataSetError:
        return []
    values = [] if value is None else [value] if isinstance(value, str) else list(value)
    return [str(uid) for uid in values[:MAX_STUDIES] if is_uid(str(uid))]


def _now() -> datetime:
    return datetime.now(UTC)
