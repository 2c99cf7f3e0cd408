"""
DIMSE-N in both roles (PS3.7 10): each service, its statuses, contexts and roles, and failures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

from pydicom import Dataset
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian
from twisted.internet.defer import CancelledError, Deferred

from dicomtwist import (
    Association,
    AssociationAborted,
    AssociationLost,
    DataSetError,
    NoPresentationContext,
    NotEstablished,
    Status,
    build_context,
    build_role,
    evt,
)
from dicomtwist.datasets.identifier import DECODED_AT_ONCE, encode_identifier
from dicomtwist.dimse.messages import (
    RESPONSES,
    NActionRQ,
    NActionRSP,
    NCreateRQ,
    NCreateRSP,
    NDeleteRQ,
    NDeleteRSP,
    NEventReportRQ,
    NEventReportRSP,
    NGetRQ,
    NGetRSP,
    NSetRQ,
    NSetRSP,
    Request,
    Response,
)
from dicomtwist.presentation import DEFAULT_TRANSFER_SYNTAXES
from dicomtwist.scu import Reply
from tests.memory import MemoryTestCase

MPPS = "1.2.840.10008.3.1.2.3.3"
COMMITMENT, COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
FILM_SESSION, FILM_BOX = "1.2.840.10008.5.1.1.1", "1.2.840.10008.5.1.1.2"
PRINTER, PRINTER_INSTANCE = "1.2.840.10008.5.1.1.16", "1.2.840.10008.5.1.1.17"
GRAYSCALE_PRINT = "1.2.840.10008.5.1.1.9"
COLOR_PRINT = "1.2.840.10008.5.1.1.18"
PULL_STORED_PRINT = "1.2.840.10008.5.1.1.32"  # a Meta SOP Class of which nobody knows what is in it
PUSH, WATCH, PULL, EVENT = (f"1.2.840.10008.5.1.4.34.6.{number}" for number in range(1, 5))
RT_VERIFICATION = "1.2.840.10008.5.1.4.34.8"  # has all six services
INSTANCE = "1.2.3.4"

HOOKS = {
    "send_n_create": evt.EVT_N_CREATE,
    "send_n_set": evt.EVT_N_SET,
    "send_n_get": evt.EVT_N_GET,
    "send_n_action": evt.EVT_N_ACTION,
    "send_n_event_report": evt.EVT_N_EVENT_REPORT,
    "send_n_delete": evt.EVT_N_DELETE,
}


def attributes(**values: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


NOBODY = attributes(PatientName="Nobody")


class NormalisedTestCase(MemoryTestCase):
    #: What the SCU proposes and the SCP supports.
    contexts: tuple[str, ...] = (RT_VERIFICATION,)

    def setUp(self) -> None:
        super().setUp()
        self.scp.supported_contexts = [build_context(uid) for uid in self.contexts]
        self.scu.requested_contexts = [build_context(uid) for uid in self.contexts]

    def done(self, result: Deferred[Any]) -> Any:
        self.network.flush()
        return self.successResultOf(result)

    def reply(self, result: Deferred[Reply]) -> Reply:
        reply: Reply = self.done(result)
        return reply

    def calls(self, association: Association, reporter: Association | None = None) -> dict[str, Callable[[], Any]]:
        """Return a call for each of the six services; *reporter* sends the notification."""
        target = RT_VERIFICATION, INSTANCE
        return {
            "send_n_create": lambda: association.send_n_create(NOBODY, *target),
            "send_n_set": lambda: association.send_n_set(NOBODY, *target),
            "send_n_get": lambda: association.send_n_get(["PatientName"], *target),
            "send_n_action": lambda: association.send_n_action(NOBODY, 3, *target),
            "send_n_event_report": lambda: (reporter or association).send_n_event_report(NOBODY, 4, *target),
            "send_n_delete": lambda: association.send_n_delete(*target),
        }

    def all_to(self, handler: Any, *arguments: Any) -> dict[str, Any]:
        """Return the result of each of the six services if *handler* is bound to all."""
        for hook in HOOKS.values():
            self.scp.bind(hook, handler, arguments)
            self.scu.bind(hook, handler, arguments)
        association, accepted = self.both()
        return {name: self.done(call()) for name, call in self.calls(association, accepted).items()}


def status_of(result: Any) -> Status:
    """Return the status in the result of any of the six services."""
    status = result[0] if isinstance(result, tuple) else result
    assert isinstance(status, Status)
    return status


class ServicesTests(NormalisedTestCase):
    """The arguments and the result of the handler, and the result that the requestor gets."""

    def one(self, hook: evt.EventType, handler: Any, **options: Any) -> Association:
        association, _ = self.both((hook, handler), **options)
        return association

    def test_create(self) -> None:
        seen: list[evt.CreateEvent] = []

        def handler(event: evt.CreateEvent) -> Any:
            seen.append(event)
            return 0x0000, attributes(PatientID="7")

        association = self.one(evt.EVT_N_CREATE, handler)
        status, reply = self.reply(association.send_n_create(NOBODY, RT_VERIFICATION, INSTANCE))
        self.assertEqual((status, status.service, status.sop_class), (0, "N-CREATE", RT_VERIFICATION))
        self.assertEqual(status.affected_sop_instance_uid, INSTANCE)
        self.assertEqual(reply, attributes(PatientID="7"))
        (event,) = seen
        self.assertEqual(event.attribute_list, NOBODY)
        self.assertEqual((event.sop_class_uid, event.sop_instance_uid), (RT_VERIFICATION, INSTANCE))
        self.assertEqual((event.message_id, event.meta_uid), (1, None))
        self.assertEqual(event.request.AffectedSOPInstanceUID, INSTANCE)  # type: ignore[union-attr]
        for name in ("modification_list", "action_type", "event_type", "is_cancelled"):
            with self.assertRaises(AttributeError):
                getattr(event, name)

    def test_create_without_uid(self) -> None:
        """The SCP makes a UID, unless the handler returns one, in any of the possible ways."""
        made = attributes(Status=0x0000, AffectedSOPInstanceUID="1.2.30")
        told = {
            "1.2.10": Status(0, affected_sop_instance_uid="1.2.10"),
            "1.2.20": (0x0000, attributes(AffectedSOPInstanceUID="1.2.20", PatientID="7")),
            "1.2.30": (made, None),
            "1.2.40": (0x0000, attributes(SOPInstanceUID="1.2.40")),
        }
        self.scp.bind(evt.EVT_N_CREATE, lambda event: told[str(event.attribute_list.PatientID)])
        association, _ = self.both()
        for uid in told:
            status, _ = self.reply(association.send_n_create(attributes(PatientID=uid), RT_VERIFICATION))
            self.assertEqual(status.affected_sop_instance_uid, uid)
            # The UID of the request is repeated, whatever the handler says.
            status, _ = self.reply(association.send_n_create(attributes(PatientID=uid), RT_VERIFICATION, "1.2.9"))
            self.assertEqual(status.affected_sop_instance_uid, "1.2.9")

    def test_create_with_a_uid_that_is_made(self) -> None:
        seen: list[str] = []

        def handler(event: evt.CreateEvent) -> int:
            seen.append(event.sop_instance_uid)
            return 0x0000

        association = self.one(evt.EVT_N_CREATE, handler)
        uids = [
            self.reply(association.send_n_create(None, RT_VERIFICATION))[0].affected_sop_instance_uid for _ in range(2)
        ]
        self.assertEqual(uids, seen)
        self.assertEqual(len(set(uids)), 2)
        self.assertTrue(seen[0].startswith("2.25."))

    def test_create_that_fails_has_no_uid(self) -> None:
        association = self.one(evt.EVT_N_CREATE, lambda event: 0x0110)
        status, _ = self.reply(association.send_n_create(None, RT_VERIFICATION))
        self.assertEqual((status, status.affected_sop_instance_uid), (0x0110, None))

    def test_a_uid_that_is_none(self) -> None:
        association = self.one(evt.EVT_N_CREATE, lambda event: Status(0, affected_sop_instance_uid="nonsense"))
        self.assertEqual(self.reply(association.send_n_create(None, RT_VERIFICATION))[0], 0x0110)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_set(self) -> None:
        def handler(event: evt.SetEvent) -> Any:
            return 0x0000, event.modification_list

        association = self.one(evt.EVT_N_SET, handler)
        status, reply = self.reply(association.send_n_set(NOBODY, RT_VERIFICATION, INSTANCE))
        self.assertEqual((status, status.service, reply), (0, "N-SET", NOBODY))
        self.assertEqual(status.affected_sop_instance_uid, INSTANCE)

    def test_get(self) -> None:
        seen: list[list[Any]] = []

        def handler(event: evt.GetEvent) -> Any:
            seen.append(event.attribute_identifiers)
            return 0x0000, NOBODY

        association = self.one(evt.EVT_N_GET, handler)
        lists: list[Any] = [["PatientName", 0x00100020, (0x10, 0x30)], [], None]
        for tags in lists:
            status, reply = self.reply(association.send_n_get(tags, RT_VERIFICATION, INSTANCE))
            self.assertEqual((status, reply), (0, NOBODY))
        self.assertEqual(seen, [[Tag(0x00100010), Tag(0x00100020), Tag(0x00100030)], [], []])
        self.assertEqual(seen[0][0].json_key, "00100010")

    def test_action(self) -> None:
        seen: list[Any] = []

        def handler(event: evt.ActionEvent) -> Any:
            seen.append((event.action_type, event.action_information, event.event))
            return 0x0000, attributes(PatientID="8") if event.action_type == 3 else None

        association = self.one(evt.EVT_N_ACTION, handler)
        messages: list[Any] = []
        association.bind(evt.EVT_DIMSE_RECV, lambda event: messages.append(event.message))
        status, reply = self.reply(association.send_n_action(NOBODY, 3, RT_VERIFICATION, INSTANCE))
        self.assertEqual((status, reply), (0, attributes(PatientID="8")))
        status, reply = self.reply(association.send_n_action(None, 4, RT_VERIFICATION, INSTANCE))
        self.assertEqual((status, reply), (0, None))
        self.assertEqual(seen, [(3, NOBODY, evt.EVT_N_ACTION), (4, Dataset(), evt.EVT_N_ACTION)])
        # The type is told beside a reply (PS3.7 10.1.4.1.7).
        self.assertEqual([message.action_type_id for message in messages], [3, None])

    def test_event_report(self) -> None:
        """N-EVENT-REPORT goes to the SCU, which is the requestor unless another role was negotiated."""
        seen: list[Any] = []

        def handler(event: evt.EventReportEvent) -> Any:
            seen.append((event.event_type, event.event_information))
            return 0x0000, NOBODY if event.event_type == 1 else None

        _, accepted = self.both(evt_handlers=[(evt.EVT_N_EVENT_REPORT, handler)])
        messages: list[Any] = []
        accepted.bind(evt.EVT_DIMSE_RECV, lambda event: messages.append(event.message))
        status, reply = self.reply(accepted.send_n_event_report(NOBODY, 1, RT_VERIFICATION, INSTANCE))
        self.assertEqual((status, status.service, reply), (0, "N-EVENT-REPORT", NOBODY))
        status, reply = self.reply(accepted.send_n_event_report(None, 2, RT_VERIFICATION, INSTANCE))
        self.assertEqual((status, reply), (0, None))
        self.assertEqual(seen, [(1, NOBODY), (2, Dataset())])
        self.assertEqual([message.event_type_id for message in messages], [1, None])

    def test_delete(self) -> None:
        seen: list[str] = []

        def handler(event: evt.NormalisedEvent) -> int:
            seen.append(event.sop_instance_uid)
            return 0x0000

        association = self.one(evt.EVT_N_DELETE, handler)
        status = self.done(association.send_n_delete(RT_VERIFICATION, INSTANCE))
        self.assertIsInstance(status, Status)
        self.assertEqual((status, status.affected_sop_instance_uid, seen), (0, INSTANCE, [INSTANCE]))

    def test_arguments_and_kinds_of_handlers(self) -> None:
        async def coroutine(event: evt.Event, *arguments: Any) -> Any:
            return arguments[0]

        def deferred(event: evt.Event, *arguments: Any) -> Any:
            result: Deferred[Any] = Deferred()
            event.assoc.ae.reactor.callLater(0, result.callback, arguments[0])
            return result

        for handler in (coroutine, deferred):
            results = self.all_to(handler, 0x0000)
            self.assertEqual(
                {name: int(status_of(result)) for name, result in results.items()}, dict.fromkeys(HOOKS, 0)
            )
            for association in (*self.scu.active_associations, *self.scp.active_associations):
                association.abort()
            self.network.flush()
            self.network.result_of(self.scp.shutdown())

    def test_an_empty_data_set_is_none(self) -> None:
        seen: list[Any] = []

        def handler(event: evt.ActionEvent) -> Any:
            seen.append((event.request.has_dataset, event.action_information))
            return 0x0000, Dataset()

        association = self.one(evt.EVT_N_ACTION, handler)
        messages: list[Any] = []
        association.bind(evt.EVT_DIMSE_RECV, lambda event: messages.append(event.message))
        self.assertEqual(self.reply(association.send_n_action(Dataset(), 1, RT_VERIFICATION, INSTANCE)), (0, None))
        self.assertEqual(seen, [(False, Dataset())])
        self.assertEqual([message.has_dataset for message in messages], [False])

    def test_each_transfer_syntax(self) -> None:
        for syntax in (*DEFAULT_TRANSFER_SYNTAXES, "1.2.840.10008.1.2.1.99"):
            context = [build_context(RT_VERIFICATION, syntax)]
            self.scp.supported_contexts = self.scu.requested_contexts = context
            server = self.listen((evt.EVT_N_SET, lambda event: (0, event.modification_list)))
            association = self.associate()
            self.assertEqual(self.reply(association.send_n_set(NOBODY, RT_VERIFICATION, INSTANCE)), (0, NOBODY))
            encoded = encode_identifier(NOBODY, str(syntax))
            self.assertEqual(self.reply(association.send_n_set(encoded, RT_VERIFICATION, INSTANCE)), (0, NOBODY))
            association.abort()
            server.shutdown()
            self.network.flush()

    def test_long_data_sets(self) -> None:
        """Long data sets are decoded in a thread, in both directions."""
        image = attributes(BitsAllocated=8, PixelData=b"\1\2" * DECODED_AT_ONCE)

        def handler(event: evt.SetEvent) -> Any:
            self.assertIsNotNone(event._dataset)
            return 0x0000, event.modification_list

        self.scp.supported_contexts = self.scu.requested_contexts = [
            build_context(RT_VERIFICATION, ExplicitVRLittleEndian)
        ]
        association = self.one(evt.EVT_N_SET, handler)
        status, reply = self.reply(association.send_n_set(image, RT_VERIFICATION, INSTANCE))
        self.assertEqual(status, 0)
        assert reply is not None
        self.assertEqual(reply.PixelData, image.PixelData)

    def test_at_once_in_a_window(self) -> None:
        """Responses out of order reach the calls that wait for them."""
        waiting: dict[int, Deferred[Any]] = {}

        def handler(event: evt.ActionEvent) -> Any:
            return waiting.setdefault(event.action_type, Deferred())

        association, _ = self.windowed((evt.EVT_N_ACTION, handler))
        results = [association.send_n_action(None, number, RT_VERIFICATION, INSTANCE) for number in range(6)]
        self.network.flush()
        self.assertEqual(list(waiting), [0, 1, 2, 3])
        for number in (3, 1, 0, 2):
            waiting[number].callback((0x0000, attributes(PatientID=str(number))))
        self.network.flush()
        self.assertEqual(list(waiting), [0, 1, 2, 3, 4, 5])
        for number in (5, 4):
            waiting[number].callback((0x0000, attributes(PatientID=str(number))))
        replies = [self.reply(result)[1] for result in results]
        self.assertEqual([reply.PatientID for reply in replies if reply], list("012345"))


class StatusTests(NormalisedTestCase):
    """Statuses, and the attributes that go with them (PS3.7 Annex C)."""

    def test_any_status(self) -> None:
        """A failure status raises no exception."""
        association, accepted = self.both()
        for code in (0x0000, 0x0001, 0x0107, 0x0110, 0x0112, 0x0116, 0x0213, 0xB600, 0xC616, 0xFFFF):
            for hook in HOOKS.values():
                self.scp.bind(hook, lambda event, code: code, [code])
                self.scu.bind(hook, lambda event, code: code, [code])
            for name, call in self.calls(association, accepted).items():
                self.assertEqual(status_of(self.done(call())), code, name)

    def test_data_set_beside_a_failure(self) -> None:
        """Some failures have a data set: 0x0115 has the wrong values (PS3.7 C.5.10)."""
        results = self.all_to(lambda event: (0x0115, None if event.event is evt.EVT_N_DELETE else NOBODY))
        results.pop("send_n_delete")
        self.assertEqual(results, dict.fromkeys(results, (0x0115, NOBODY)))

    def test_words(self) -> None:
        association, _ = self.both((evt.EVT_N_SET, lambda event: Status(0x0110, "N-SET", "disk", (0x00100010,), 7)))
        status, _ = self.reply(association.send_n_set(NOBODY, RT_VERIFICATION, INSTANCE))
        self.assertEqual((status.error_comment, status.offending_element, status.error_id), ("disk", (0x00100010,), 7))

    def test_attributes(self) -> None:
        """The Attribute Identifier List goes with N-GET, N-SET and N-CREATE."""
        tags = (0x00100010, 0x00100020)
        some = attributes(Status=0x0107, AttributeIdentifierList=list(tags), ErrorComment="some")
        one = attributes(Status=0x0107, AttributeIdentifierList=tags[0])
        for value, told in ((Status(0x0107, attribute_identifier_list=tags), tags), (some, tags), (one, tags[:1])):
            for hook in HOOKS.values():
                self.scp.bind(hook, lambda event, value: value, [value])
                self.scu.bind(hook, lambda event, value: value, [value])
            server = self.listen()
            association = self.associate()
            (accepted,) = server.factory.associations
            for name, call in self.calls(association, accepted).items():
                status = status_of(self.done(call()))
                has = name in ("send_n_get", "send_n_set", "send_n_create")
                self.assertEqual(status.attribute_identifier_list, told if has else None, name)
                self.assertEqual(status, 0x0107)
            association.abort()
            server.shutdown()
            self.network.flush()

    def test_type_of_a_failure(self) -> None:
        seen: list[Any] = []
        association, accepted = self.both(
            (evt.EVT_N_ACTION, lambda event: 0x0123), evt_handlers=[(evt.EVT_N_EVENT_REPORT, lambda event: 0x0113)]
        )
        for side in (association, accepted):
            side.bind(evt.EVT_DIMSE_RECV, lambda event: seen.append(event.message))
        self.done(association.send_n_action(None, 30, RT_VERIFICATION, INSTANCE))
        self.done(accepted.send_n_event_report(None, 40, RT_VERIFICATION, INSTANCE))
        responses = [message for message in seen if isinstance(message, Response)]
        self.assertEqual([responses[0].action_type_id, responses[1].event_type_id], [30, 40])  # type: ignore[attr-defined]


class FailureTests(NormalisedTestCase):
    """Each failure gives its status, and the association goes on."""

    def test_nothing_bound(self) -> None:
        association, accepted = self.both()
        statuses = {name: status_of(self.done(call())) for name, call in self.calls(association, accepted).items()}
        self.assertEqual(statuses, dict.fromkeys(HOOKS, 0x0110))
        for name, status in statuses.items():
            self.assertEqual(status.error_comment, f"no handler is bound to {HOOKS[name].name}")

    def test_raises(self) -> None:
        results = self.all_to(lambda event: 1 / 0)
        self.assertEqual({name: status_of(result) for name, result in results.items()}, dict.fromkeys(HOOKS, 0x0110))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 6)

    def test_no_answer(self) -> None:
        """None, a tuple of three, a Dataset without a status, a status of 17 bits, and a reply that is no data set fail."""
        bad: list[Any] = [None, (0, None, None), NOBODY, 0x10000, "0", (0x0000, "reply")]
        association, _ = self.both()
        for value in bad:
            self.scp.bind(evt.EVT_N_SET, lambda event, value: value, [value])
            self.assertEqual(self.reply(association.send_n_set(NOBODY, RT_VERIFICATION, INSTANCE)), (0x0110, None))
            self.assertEqual(len(self.flushLoggedErrors(TypeError, ValueError)), 1, value)

    def test_delete_with_a_data_set(self) -> None:
        association, _ = self.both((evt.EVT_N_DELETE, lambda event: (0x0000, NOBODY)))
        self.assertEqual(self.done(association.send_n_delete(RT_VERIFICATION, INSTANCE)), 0x0110)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
        self.scp.active_associations[0].bind(evt.EVT_N_DELETE, lambda event: (0x0000, None))
        self.assertEqual(self.done(association.send_n_delete(RT_VERIFICATION, INSTANCE)), 0)

    def test_cannot_be_encoded(self) -> None:
        bad = attributes(PatientID="1")
        bad.add_new(0x00080018, "US", "not a number")
        association, _ = self.both((evt.EVT_N_SET, lambda event: (0x0000, bad)))
        self.assertEqual(self.reply(association.send_n_set(NOBODY, RT_VERIFICATION, INSTANCE)), (0x0110, None))
        self.assertEqual(len(self.flushLoggedErrors(DataSetError)), 1)
        sending = association.send_n_set(bad, RT_VERIFICATION, INSTANCE)
        self.failureResultOf(sending, DataSetError)
        self.assertFalse(association.exchange.asking)

    def test_cannot_be_decoded(self) -> None:
        """A data set that cannot be decoded, short or long, raises an error when the handler uses it."""
        association, _ = self.both((evt.EVT_N_SET, lambda event: (0x0000, event.modification_list)))
        for length in (6, DECODED_AT_ONCE):
            data = b"\x10\0\x10\0" + b"\xf0\xff\xff\x7f" + b" " * length
            self.assertEqual(self.reply(association.send_n_set(data, RT_VERIFICATION, INSTANCE)), (0x0110, None))
            self.assertEqual(len(self.flushLoggedErrors(DataSetError)), 1)

    def test_who_does_not_look_does_not_notice(self) -> None:
        association, _ = self.both((evt.EVT_N_SET, lambda event: 0x0000))
        data = b"\x10\0\x10\0" + b"\xf0\xff\xff\x7f" + b" " * DECODED_AT_ONCE
        self.assertEqual(self.reply(association.send_n_set(data, RT_VERIFICATION, INSTANCE)), (0, None))

    def test_the_reply_cannot_be_decoded(self) -> None:
        for length in (6, DECODED_AT_ONCE):
            data = b"\x10\0\x10\0" + b"\xf0\xff\xff\x7f" + b" " * length
            server = self.listen((evt.EVT_N_GET, lambda event, data: (0x0000, data), [data]))
            association = self.associate()
            getting = association.send_n_get(None, RT_VERIFICATION, INSTANCE)
            self.network.flush()
            self.failureResultOf(getting, DataSetError)
            self.assertTrue(association.is_established)
            self.assertFalse(association.exchange.asking)
            association.abort()
            server.shutdown()
            self.network.flush()

    def test_too_long(self) -> None:
        self.scp.maximum_buffered_size = 1000
        association, _ = self.both((evt.EVT_N_SET, self.fail))
        status, _ = self.reply(association.send_n_set(b"\0" * 1002, RT_VERIFICATION, INSTANCE))
        self.assertEqual((status, status.error_comment), (0x0213, "a data set of more than 1000 bytes"))

    def test_a_reply_that_is_too_long(self) -> None:
        self.scu.maximum_buffered_size = 1000
        association, _ = self.both((evt.EVT_N_GET, lambda event: (0x0000, b"\0" * 1002)))
        getting = association.send_n_get(None, RT_VERIFICATION, INSTANCE)
        self.network.flush()
        self.failureResultOf(getting, AssociationAborted)

    def test_what_cannot_be_sent(self) -> None:
        association, _ = self.both()
        for kind, sending in (
            (ValueError, association.send_n_create(None, "nonsense")),
            (ValueError, association.send_n_create(None, RT_VERIFICATION, "1.2.x")),
            (ValueError, association.send_n_set(NOBODY, RT_VERIFICATION, "")),
            (TypeError, association.send_n_set("text", RT_VERIFICATION, INSTANCE)),  # type: ignore[arg-type]
            (ValueError, association.send_n_get(["NoSuchKeyword"], RT_VERIFICATION, INSTANCE)),
            (ValueError, association.send_n_action(None, 0x10000, RT_VERIFICATION, INSTANCE)),
            (TypeError, association.send_n_action(None, True, RT_VERIFICATION, INSTANCE)),
            (TypeError, association.send_n_event_report(None, "1", RT_VERIFICATION, INSTANCE)),  # type: ignore[arg-type]
            (TypeError, association.send_n_delete(RT_VERIFICATION, None)),  # type: ignore[arg-type]
        ):
            self.failureResultOf(sending, kind)
        self.assertFalse(association.exchange.asking)
        self.assertTrue(association.is_established)

    def test_not_established(self) -> None:
        association, accepted = self.both()
        association.abort()
        self.network.flush()
        for call in self.calls(association, accepted).values():
            self.failureResultOf(call(), NotEstablished)

    def test_the_association_ends(self) -> None:
        association, accepted = self.both((evt.EVT_N_ACTION, lambda event: Deferred()))
        acting = association.send_n_action(None, 1, RT_VERIFICATION, INSTANCE)
        waiting = association.send_n_get(None, RT_VERIFICATION, INSTANCE)
        self.network.flush()
        accepted.abort()
        self.network.flush()
        self.failureResultOf(acting, AssociationAborted)
        self.failureResultOf(waiting, AssociationAborted)

    def test_the_connection_is_lost(self) -> None:
        association, _ = self.both((evt.EVT_N_ACTION, lambda event: Deferred()))
        acting = association.send_n_action(None, 1, RT_VERIFICATION, INSTANCE)
        self.network.flush()
        self.network.connections[0].cut()
        self.network.flush()
        self.failureResultOf(acting, AssociationLost)

    def test_an_answer_after_the_end(self) -> None:
        answer: Deferred[Any] = Deferred()
        association, _ = self.both((evt.EVT_N_GET, lambda event: answer))
        getting = association.send_n_get(None, RT_VERIFICATION, INSTANCE)
        self.network.flush()
        association.abort()
        self.network.flush()
        self.failureResultOf(getting, AssociationAborted)
        answer.callback((0x0000, NOBODY))
        self.network.flush()

    def test_giving_up(self) -> None:
        """A cancelled Deferred does not get the response, which still ends the operation."""
        answer: Deferred[Any] = Deferred()
        association, _ = self.both((evt.EVT_N_GET, lambda event: answer))
        getting = association.send_n_get(None, RT_VERIFICATION, INSTANCE)
        self.network.flush()
        getting.cancel()
        self.failureResultOf(getting, CancelledError)
        self.assertTrue(association.exchange.asking)
        answer.callback(0x0000)
        self.network.flush()
        self.assertFalse(association.exchange.asking)


class ContextTests(NormalisedTestCase):
    """The presentation contexts that an operation is sent on, and may arrive on."""

    contexts = (MPPS,)

    def taken(self, *supported: str) -> tuple[Association, list[Any]]:
        """Return an association with these contexts, and a list of the contexts that its operations arrive on."""
        self.scp.supported_contexts = self.scu.requested_contexts = [build_context(uid) for uid in supported]
        seen: list[Any] = []

        def handler(event: evt.NormalisedEvent) -> int:
            seen.append((event.sop_class_uid, event.context.abstract_syntax, event.meta_uid))
            return 0x0000

        for hook in HOOKS.values():
            self.scp.bind(hook, handler)
            self.scu.bind(hook, handler)
        association, _ = self.both()
        return association, seen

    def test_meta(self) -> None:
        """A SOP Class of a Meta SOP Class goes on the context of that one, which the caller need not name."""
        association, seen = self.taken(COLOR_PRINT, GRAYSCALE_PRINT)
        self.done(association.send_n_create(None, FILM_SESSION, meta_uid=GRAYSCALE_PRINT))
        self.done(association.send_n_get(None, PRINTER, PRINTER_INSTANCE))
        self.assertEqual(
            seen, [(FILM_SESSION, GRAYSCALE_PRINT, GRAYSCALE_PRINT), (PRINTER, GRAYSCALE_PRINT, GRAYSCALE_PRINT)]
        )

    def test_its_own_comes_first(self) -> None:
        association, seen = self.taken(GRAYSCALE_PRINT, PRINTER)
        self.done(association.send_n_get(None, PRINTER, PRINTER_INSTANCE))
        self.done(association.send_n_get(None, PRINTER, PRINTER_INSTANCE, meta_uid=GRAYSCALE_PRINT))
        self.assertEqual([meta for _, _, meta in seen], [None, GRAYSCALE_PRINT])

    def test_a_meta_that_was_not_accepted(self) -> None:
        association, _ = self.taken(GRAYSCALE_PRINT)
        error = self.failureResultOf(
            association.send_n_create(None, FILM_SESSION, meta_uid=COLOR_PRINT), NoPresentationContext
        )
        self.assertIn("Basic Color Print Management Meta", str(error.value))

    def test_none_at_all(self) -> None:
        association, _ = self.taken(MPPS)
        error = self.failureResultOf(association.send_n_create(None, FILM_SESSION), NoPresentationContext)
        self.assertIn("Basic Film Session", str(error.value))
        self.assertIn("nor is there a context for Basic Grayscale Print Management Meta", str(error.value))
        error = self.failureResultOf(association.send_n_delete(COMMITMENT, INSTANCE), NoPresentationContext)
        self.assertNotIn("nor", str(error.value))

    def test_ups(self) -> None:
        """The SOP Class is always UPS Push, on a context of a UPS SOP Class that has the operation (PS3.4 CC.2)."""
        association, seen = self.taken(EVENT, PULL, WATCH, PUSH)
        (accepted,) = self.scp.active_associations
        self.done(association.send_n_create(NOBODY, PUSH, INSTANCE))
        self.done(association.send_n_set(NOBODY, PUSH, INSTANCE))
        self.done(association.send_n_get(None, PUSH, INSTANCE))
        for action_type in (1, 2, 3, 4, 5, 99):
            self.done(association.send_n_action(None, action_type, PUSH, INSTANCE))
        self.done(accepted.send_n_event_report(None, 1, PUSH, INSTANCE))
        self.assertEqual({uid for uid, _, _ in seen}, {PUSH})
        on = [context for _, context, _ in seen]
        self.assertEqual(on, [PUSH, PULL, PUSH, PULL, PUSH, WATCH, WATCH, WATCH, PUSH, EVENT])
        # N-DELETE is not for UPS: it is for the peer to refuse.
        self.assertEqual(self.done(association.send_n_delete(PUSH, INSTANCE)), 0)

    def test_ups_on_what_there_is(self) -> None:
        association, seen = self.taken(PULL)
        self.done(association.send_n_get(None, PUSH, INSTANCE))
        self.done(association.send_n_action(None, 1, PUSH, INSTANCE, meta_uid=PULL))
        self.assertEqual(seen, [(PUSH, PULL, PULL)] * 2)
        error = self.failureResultOf(association.send_n_create(None, PUSH), NoPresentationContext)
        self.assertIn("Unified Procedure Step - Push", str(error.value))

    def test_not_of_the_context(self) -> None:
        association, seen = self.taken(GRAYSCALE_PRINT, MPPS)
        for uid, context in ((MPPS, GRAYSCALE_PRINT), (FILM_BOX, MPPS), ("1.2.3.4.5", MPPS)):
            status, _ = self.reply(association.send_n_create(NOBODY, uid, meta_uid=context))
            self.assertEqual(status, 0x0122)
        self.assertEqual(seen, [])

    def test_a_meta_of_which_nothing_is_known(self) -> None:
        association, seen = self.taken(PULL_STORED_PRINT)
        status, _ = self.reply(association.send_n_create(NOBODY, FILM_BOX, meta_uid=PULL_STORED_PRINT))
        self.assertEqual((int(status), len(seen)), (0, 1))


class RoleTests(NormalisedTestCase):
    """Operations go from SCU to SCP, notifications from SCP to SCU."""

    contexts = (COMMITMENT,)

    def test_not_the_scp(self) -> None:
        """The acceptor is the SCP unless another role was negotiated."""
        association, accepted = self.both(evt_handlers=[(evt.EVT_N_ACTION, self.fail)])
        target = COMMITMENT, COMMITMENT_INSTANCE
        self.failureResultOf(accepted.send_n_action(None, 1, *target), NoPresentationContext)
        self.failureResultOf(association.send_n_event_report(None, 1, *target), NoPresentationContext)

    def test_an_operation_in_the_wrong_role(self) -> None:
        association, accepted = self.both(evt_handlers=[(evt.EVT_N_ACTION, self.fail)])
        with mock.patch.object(accepted, "has_role", lambda context_id, as_scu: True):
            acting = accepted.send_n_action(None, 1, COMMITMENT, COMMITMENT_INSTANCE)
        status, _ = self.reply(acting)
        self.assertEqual((status, status.error_comment), (0x0122, "not in this role"))
        self.assertTrue(association.is_established)

    def test_with_the_role(self) -> None:
        """On an association of its own the SCP asks for its role."""
        self.scp.supported_contexts = []
        self.scp.add_supported_context(COMMITMENT, scu_role=True, scp_role=True)
        association, _ = self.both(
            (evt.EVT_N_EVENT_REPORT, lambda event: 0x0000),
            ext_neg=[build_role(COMMITMENT, scu_role=False, scp_role=True)],
        )
        self.assertEqual(
            self.reply(association.send_n_event_report(NOBODY, 1, COMMITMENT, COMMITMENT_INSTANCE)), (0, None)
        )

    def test_without_the_role(self) -> None:
        """An N-EVENT-REPORT without the role, as many peers send it, is accepted if a handler is bound, and refused if not."""
        association, _ = self.both((evt.EVT_N_EVENT_REPORT, lambda event: event.event_type - 1))
        target = COMMITMENT, COMMITMENT_INSTANCE
        self.assertEqual(self.reply(association.send_n_event_report(NOBODY, 1, *target, any_role=True)), (0, None))

    def test_without_the_role_and_without_a_handler(self) -> None:
        association, _ = self.both()
        status, _ = self.reply(
            association.send_n_event_report(NOBODY, 1, COMMITMENT, COMMITMENT_INSTANCE, any_role=True)
        )
        self.assertEqual((status, status.error_comment), (0x0122, "not in this role"))

    def test_any_role_prefers_the_right_one(self) -> None:
        seen: list[Any] = []

        def handler(event: evt.EventReportEvent) -> int:
            seen.append(event.assoc.mode)
            return 0x0000

        _, accepted = self.both(evt_handlers=[(evt.EVT_N_EVENT_REPORT, handler)])
        self.done(accepted.send_n_event_report(NOBODY, 1, COMMITMENT, COMMITMENT_INSTANCE, any_role=True))
        self.assertEqual(seen, ["requestor"])


class WireTests(NormalisedTestCase):
    """The messages that are sent, and unusual ones that arrive."""

    def test_requests(self) -> None:
        """Each request has its command set, and a data set if the service has one."""
        association, peer = self.scripted_scp()
        for name, call in self.calls(association).items():
            if name == "send_n_event_report":
                continue
            call().addErrback(lambda reason: reason.trap(AssociationLost))
            self.network.flush()
            request, _ = peer.messages()[-1]
            assert isinstance(request, Request)
            peer.send_message(1, RESPONSES[type(request)](message_id_being_responded_to=request.message_id, status=0))
            self.network.flush()
        encoded = encode_identifier(NOBODY, "1.2.840.10008.1.2")
        affected: dict[str, Any] = {"affected_sop_class_uid": RT_VERIFICATION, "affected_sop_instance_uid": INSTANCE}
        requested: dict[str, Any] = {"requested_sop_class_uid": RT_VERIFICATION, "requested_sop_instance_uid": INSTANCE}
        self.assertEqual(
            peer.messages(),
            [
                (NCreateRQ(message_id=1, has_dataset=True, **affected), encoded),
                (NSetRQ(message_id=2, has_dataset=True, **requested), encoded),
                (NGetRQ(message_id=3, attribute_identifier_list=(0x00100010,), **requested), b""),
                (NActionRQ(message_id=4, has_dataset=True, action_type_id=3, **requested), encoded),
                (NDeleteRQ(message_id=5, **requested), b""),
            ],
        )

    def test_a_response_that_says_little(self) -> None:
        """If the response leaves out the UIDs, those of the request count; other attributes of the response are taken."""
        association, peer = self.scripted_scp()
        bringing: list[dict[str, Any]] = [{}, {"affected_sop_instance_uid": "1.2.77"}]
        for brings in bringing:
            setting = association.send_n_set(NOBODY, RT_VERIFICATION, INSTANCE)
            self.network.flush()
            request = peer.messages()[-1][0]
            assert isinstance(request, NSetRQ)
            peer.send_message(1, NSetRSP(message_id_being_responded_to=request.message_id, status=0xB600, **brings))
            status, _ = self.reply(setting)
            self.assertEqual(status.affected_sop_instance_uid, brings.get("affected_sop_instance_uid", INSTANCE))
            self.assertTrue(status.is_warning)

    def test_a_delete_response_with_a_data_set(self) -> None:
        association, peer = self.scripted_scp()
        deleting = association.send_n_delete(RT_VERIFICATION, INSTANCE)
        self.network.flush()
        peer.send_message(1, NDeleteRSP(message_id_being_responded_to=1, status=0), b"\0" * 8)
        self.assertEqual(self.done(deleting), 0)

    def test_data_sets_where_there_should_be_none(self) -> None:
        """N-GET and N-DELETE requests have no data set; one that arrives all the same does no harm."""
        self.scp.bind(evt.EVT_N_GET, lambda event: (0x0000, NOBODY))
        self.scp.bind(evt.EVT_N_DELETE, lambda event: 0x0000)
        server = self.listen()
        peer = self.network.scripted_client(104)
        peer.request((1, RT_VERIFICATION))
        peer.take()
        requested: dict[str, Any] = {"requested_sop_class_uid": RT_VERIFICATION, "requested_sop_instance_uid": INSTANCE}
        peer.send_message(1, NGetRQ(message_id=1, **requested), b"\x10\0\x10\0\2\0\0\0A ")
        peer.send_message(1, NDeleteRQ(message_id=2, **requested), b"\x10\0\x10\0\2\0\0\0A ")
        self.network.flush()
        self.assertEqual(
            [(type(message), message.status, bool(data)) for message, data in peer.messages()],  # type: ignore[attr-defined]
            [(NGetRSP, 0, True), (NDeleteRSP, 0, False)],
        )
        server.shutdown()

    def test_responses(self) -> None:
        """Each response repeats the UIDs as the affected ones (PS3.7 10.3)."""
        self.scp.supported_contexts = [build_context(RT_VERIFICATION)]
        for hook in HOOKS.values():
            self.scp.bind(hook, lambda event: 0x0000)
        self.listen()
        peer = self.network.scripted_client(104)
        peer.request((1, RT_VERIFICATION))
        peer.take()
        affected: dict[str, Any] = {"affected_sop_class_uid": RT_VERIFICATION, "affected_sop_instance_uid": INSTANCE}
        requested: dict[str, Any] = {"requested_sop_class_uid": RT_VERIFICATION, "requested_sop_instance_uid": INSTANCE}
        requests: list[Request] = [
            NCreateRQ(message_id=1, **affected),
            NSetRQ(message_id=2, **requested),
            NGetRQ(message_id=3, **requested),
            NActionRQ(message_id=4, action_type_id=1, **requested),
            NDeleteRQ(message_id=5, **requested),
            NEventReportRQ(message_id=6, event_type_id=1, **affected),
        ]
        for request in requests:
            peer.send_message(1, request)
            self.network.flush()
        responses = [NCreateRSP, NSetRSP, NGetRSP, NActionRSP, NDeleteRSP, NEventReportRSP]
        self.assertEqual(
            [message for message, _ in peer.messages()],
            [
                response(message_id_being_responded_to=number, status=0, **affected)
                for number, response in enumerate(responses, 1)
            ],
        )
