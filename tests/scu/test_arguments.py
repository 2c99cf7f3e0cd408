"""
Arguments that cannot be sent: each fails alone, before anything is registered or sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.uid import ExplicitVRLittleEndian
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import (
    Association,
    Status,
    build_context,
    evt,
)
from dicomtwist.association.negotiation import merge_items
from dicomtwist.datasets.stream import CHUNK
from dicomtwist.dimse.messages import CEchoRQ, CFindRQ, CStoreRQ, NGetRQ
from dicomtwist.exchange.invoking import WindowPlace
from dicomtwist.scu.dimse_n import MAX_TAGS
from dicomtwist.ul.items import (
    AsyncOperationsWindow,
    RoleSelection,
    SOPClassCommonExtended,
    SOPClassExtended,
    UserIdentity,
    decode_user_information,
)
from tests.memory import CONTEXTS, CT, MemoryTestCase, instance, part10

FIND = "1.2.840.10008.5.1.4.1.2.2.1"
GET = "1.2.840.10008.5.1.4.1.2.2.3"
MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
COMMITMENT = "1.2.840.10008.1.20.1"
MODELS = (FIND, GET, MOVE, COMMITMENT)

#: Items that the A-ASSOCIATE-RQ cannot carry.
WRONG_ITEMS: list[Any] = [
    UserIdentity(2, "user", "pass"),  # type: ignore[arg-type]
    UserIdentity(2, b"user", "pass"),  # type: ignore[arg-type]
    UserIdentity(1, None),  # type: ignore[arg-type]
    UserIdentity(1, bytearray(b"user")),  # type: ignore[arg-type]
    UserIdentity(4, b"<" * 65_500 + b">" * 500),
    UserIdentity(2, b"u" * 40_000, b"p" * 40_000),
    UserIdentity(3, b"t" * 0xFFFF),
    UserIdentity(0, b"user"),
    UserIdentity(6, b"user"),
    UserIdentity(256, b"user"),
    UserIdentity("1", b"user"),  # type: ignore[arg-type]
    UserIdentity(True, b"user"),
    UserIdentity(1, b"user", b"", "yes"),  # type: ignore[arg-type]
    AsyncOperationsWindow(-1, 1),
    AsyncOperationsWindow(1, -1),
    AsyncOperationsWindow(65_536, 1),
    AsyncOperationsWindow(1.0, 1),  # type: ignore[arg-type]
    AsyncOperationsWindow("2", "2"),  # type: ignore[arg-type]
    AsyncOperationsWindow(None, 1),  # type: ignore[arg-type]
    RoleSelection("", True, True),
    RoleSelection("not a UID", True, True),
    RoleSelection("1" * 65, True, True),
    RoleSelection(None, True, True),  # type: ignore[arg-type]
    RoleSelection(CT, None, True),  # type: ignore[arg-type]
    RoleSelection(CT, 2, 3),  # type: ignore[arg-type]
    SOPClassExtended(CT, "text"),  # type: ignore[arg-type]
    SOPClassExtended(CT, b"\1" * 65_530),
    SOPClassExtended("1.2.ä", b""),
    SOPClassExtended(17, b""),  # type: ignore[arg-type]
    SOPClassCommonExtended(CT, "", ()),
    SOPClassCommonExtended(CT, "1.2.3", "1.2.4"),  # type: ignore[arg-type]
    SOPClassCommonExtended(CT, "1.2.3", (None,)),  # type: ignore[arg-type]
    SOPClassCommonExtended(CT, "1.2.3", tuple(f"1.2.3.{number}" for number in range(10_000))),
    "item",
    None,
]


class ItemTests(MemoryTestCase):
    """Extended negotiation items that cannot be encoded: ``associate`` raises, and connects to nobody."""

    def test_each(self) -> None:
        self.listen()
        for item in WRONG_ITEMS:
            error = self.assertRaises((TypeError, ValueError), self.scu.associate, "127.0.0.1", 104, ext_neg=[item])
            self.assertNotIn("pass", str(error))
        self.assertEqual(self.network.connections, [])

    def test_together(self) -> None:
        """Items that are short enough alone are too long together."""
        items = [SOPClassExtended(f"1.2.{number}", b"\1" * 30_000) for number in range(3)]
        self.assertRaises(ValueError, self.scu.associate, "127.0.0.1", 104, ext_neg=items)
        self.listen()
        self.assertTrue(self.associate(ext_neg=items[:2]).is_established)

    def test_contexts(self) -> None:
        """So are transfer syntaxes: in one context, and in all of them."""
        many = [f"1.2.3.{number}" for number in range(10_000)]
        for contexts in ([build_context(CT, many)], [build_context(CT, many[:3_000])] * 128):
            self.assertRaises(ValueError, self.scu.associate, "127.0.0.1", 104, contexts=contexts)

    def test_longest(self) -> None:
        """Items of exactly the longest length arrive."""
        seen: list[bytes] = []

        def identify(event: evt.Event) -> tuple[bool, None]:
            seen.append(event.primary_field)
            return True, None

        self.listen((evt.EVT_USER_ID, identify))
        # The item has a header of 4 bytes in the user information, and 6 bytes besides the assertion; others follow.
        assertion = b"<" * (0xFFFF - 200)
        self.assertTrue(self.associate(ext_neg=[UserIdentity(4, assertion)]).is_established)
        self.assertEqual(seen, [assertion])

    def test_padded_and_bytes(self) -> None:
        """UIDs as bytes, and with padding, are proposed as they are meant."""
        (role,) = merge_items([RoleSelection(b"1.2.3 ", True, False)]).roles  # type: ignore[arg-type]
        self.assertEqual(role, RoleSelection("1.2.3", True, False))

    def test_acceptor(self) -> None:
        """A handler of the acceptor that returns an item that cannot be encoded still gives the requestor an answer."""
        answers: list[tuple[Any, ...]] = [
            (evt.EVT_USER_ID, lambda event: (True, "text")),
            (evt.EVT_USER_ID, lambda event: (True, b"\1" * 0xFFFE)),
            (evt.EVT_USER_ID, lambda event: (True, 7)),
            (evt.EVT_USER_ID, lambda event: None),
            (evt.EVT_SOP_EXTENDED, lambda event: {CT: b"\1" * 0xFFF0}),
            (evt.EVT_SOP_EXTENDED, lambda event: {CT: "text"}),
            (evt.EVT_ASYNC_OPS, lambda event: ("1", "2")),
            (evt.EVT_ASYNC_OPS, lambda event: (1 << 40, 1 << 40)),
        ]
        items = [UserIdentity(4, b"<>", b"", True), SOPClassExtended(CT, b"\1"), AsyncOperationsWindow(2, 2)]
        for answer in answers:
            server = self.listen(answer)
            asking = self.asking(ext_neg=items)
            self.assertTrue(asking.called, answer)
            asking.addErrback(lambda reason: None)
            self.flushLoggedErrors()
            server.shutdown()
            self.network.flush()


class ItemProperties(SynchronousTestCase):
    """An item with any content is either refused, or encoded and read again."""

    FIELD = st.binary(max_size=8) | st.text(max_size=8) | st.none() | st.integers(-2, 70_000) | st.booleans()
    UID = st.sampled_from(["1.2.3", "", "1.2.a", b"1.2", None, 5])

    @given(
        st.one_of(
            st.builds(AsyncOperationsWindow, FIELD, FIELD),
            st.builds(RoleSelection, UID, FIELD, FIELD),
            st.builds(SOPClassExtended, UID, FIELD),
            st.builds(SOPClassCommonExtended, UID, UID, st.lists(UID, max_size=2).map(tuple) | FIELD),
            st.builds(UserIdentity, FIELD, FIELD, FIELD, FIELD),
            FIELD,
        )
    )
    def test_any(self, item: Any) -> None:
        try:
            information = merge_items([item])
        except (TypeError, ValueError):
            return
        decoded = decode_user_information(memoryview(information.encode())[4:], set())
        for name in ("async_operations", "roles", "sop_class_extended", "sop_class_common_extended", "user_identity"):
            self.assertEqual(getattr(decoded, name), getattr(information, name))


def keys() -> Dataset:
    dataset = Dataset()
    dataset.QueryRetrieveLevel = "STUDY"
    return dataset


def _with_uid(keyword: str, uid: Any) -> Dataset:
    dataset = instance()
    dataset[keyword] = DataElement(keyword, "LO" if isinstance(uid, int) else "UI", None)
    dataset[keyword]._value = uid
    return dataset


#: Message IDs that are none.
_NUMBERS: list[Any] = [None, "1", -1, 70_000, [], 1.0]

#: Calls that are a mistake of the caller.
WRONG_CALLS: list[Callable[[Any], Any]] = [
    *[
        lambda assoc, value=value: assoc.send_c_store(instance(), priority=value)
        for value in (70_000, 3, -1, "x", None, 1.0, True, b"\0\0")
    ],
    *[
        lambda assoc, value=value: assoc.send_c_store(instance(), originator_aet=value)
        for value in (b"", "A" * 17, "Ä", "A\\B", 5, b"A\0B")
    ],
    *[
        lambda assoc, value=value: assoc.send_c_store(instance(), originator_id=value)
        for value in (70_000, -1, "1", 1.5, True)
    ],
    *[
        lambda assoc, value=value: assoc.send_c_find(keys(), FIND, priority=value)
        for value in ("x", 70_000, 65_535, None, -1, 2.0)
    ],
    *[
        lambda assoc, uid=uid, keyword=keyword: assoc.send_c_store(_with_uid(keyword, uid))
        for keyword in ("SOPInstanceUID", "SOPClassUID")
        for uid in (["1.2", "1.3"], "1.ü", 5, *(["1" * 70_000] if keyword == "SOPInstanceUID" else []))
    ],
    *[lambda assoc, value=value: assoc.send_c_cancel(value) for value in _NUMBERS],
    *[lambda assoc, value=value: assoc.send_c_get(keys(), GET, on_progress=value) for value in (5, "x")],
    lambda assoc: assoc.send_c_find("keys", FIND),
    lambda assoc: assoc.send_c_find(keys(), None),
    lambda assoc: assoc.send_c_get(keys(), GET, priority=70_000),
    lambda assoc: assoc.send_c_get(None, GET),
    lambda assoc: assoc.send_c_move(keys(), "DEST", MOVE, priority="0"),
    lambda assoc: assoc.send_c_move(keys(), "DEST\\", MOVE),
    lambda assoc: assoc.send_c_move(keys(), None, MOVE),
    lambda assoc: assoc.send_n_get([0x1_0000_0000], COMMITMENT, "1.2.3"),
    lambda assoc: assoc.send_n_get([-1], COMMITMENT, "1.2.3"),
    lambda assoc: assoc.send_n_get([(0x10000, 0)], COMMITMENT, "1.2.3"),
    lambda assoc: assoc.send_n_get(["NoSuchKeyword"], COMMITMENT, "1.2.3"),
    lambda assoc: assoc.send_n_get([None], COMMITMENT, "1.2.3"),
    lambda assoc: assoc.send_n_get([1.5], COMMITMENT, "1.2.3"),
    lambda assoc: assoc.send_n_get("PatientName", COMMITMENT, "1.2.3"),
    lambda assoc: assoc.send_n_get(0x00100010, COMMITMENT, "1.2.3"),
    lambda assoc: assoc.send_n_get(range(0x00100000, 0x00100000 + MAX_TAGS + 1), COMMITMENT, "1.2.3"),
    lambda assoc: assoc.send_n_get([], COMMITMENT, "1.2.x"),
    lambda assoc: assoc.send_n_get([], COMMITMENT, None),
    lambda assoc: assoc.send_n_action(None, 70_000, COMMITMENT, "1.2.3"),
    lambda assoc: assoc.send_n_action(None, "1", COMMITMENT, "1.2.3"),
    lambda assoc: assoc.send_n_action("text", 1, COMMITMENT, "1.2.3"),
    lambda assoc: assoc.send_n_event_report(None, -1, COMMITMENT, "1.2.3", any_role=True),
    lambda assoc: assoc.send_n_event_report(None, 1, COMMITMENT, "1" * 65, any_role=True),
    lambda assoc: assoc.send_n_set([], COMMITMENT, "1.2.3"),
    lambda assoc: assoc.send_n_create(None, COMMITMENT, 5),
    lambda assoc: assoc.send_n_create(None, COMMITMENT, meta_uid="x"),
    lambda assoc: assoc.send_n_delete(COMMITMENT, ""),
    lambda assoc: assoc.send_n_delete("", "1.2.3"),
]


class CallTestCase(MemoryTestCase):
    """Operations with arguments that cannot be sent."""

    def setUp(self) -> None:
        super().setUp()
        contexts = [*CONTEXTS, *(build_context(uid, ExplicitVRLittleEndian) for uid in MODELS)]
        self.scp.supported_contexts = self.scu.requested_contexts = contexts
        self.sent: list[str] = []

    def handlers(self) -> list[Any]:
        return [(evt.EVT_DIMSE_RECV, lambda event: self.sent.append(event.message.NAME))]

    def check_alive(self, association: Association) -> None:
        """The association is as if nothing had been asked: it answers, and it is released."""
        self.assertEqual(self.network.result_of(association.send_c_echo()), 0)
        self.assertIsNone(self.network.result_of(association.release()))
        self.assertEqual(self.sent, ["C-ECHO-RQ"])
        self.sent.clear()


class CallTests(CallTestCase):
    """Arguments of operations."""

    def failing(self, call: Callable[[Association], Any], association: Association) -> None:
        try:
            asked = call(association)
        except (TypeError, ValueError):
            return
        self.assertIsInstance(asked, Deferred)
        self.network.flush()
        self.failureResultOf(asked, TypeError, ValueError)

    def test_each(self) -> None:
        """Each fails with a ``TypeError`` or ``ValueError`` before anything is sent."""
        server = self.listen(*self.handlers())
        for call in WRONG_CALLS:
            association = self.associate()
            self.failing(call, association)
            self.assertFalse(association.exchange.asking)
            self.check_alive(association)
        self.network.result_of(server.stop_listening())

    def test_in_a_window(self) -> None:
        """Others of the window get their answers."""
        association, _ = self.windowed(*self.handlers())
        good = [association.send_c_echo() for _ in range(3)]
        for call in WRONG_CALLS:
            self.failing(call, association)
        self.assertEqual([self.network.result_of(one) for one in good], [0, 0, 0])
        self.sent.clear()
        self.check_alive(association)

    def test_while_it_waits(self) -> None:
        """So it is if the call would have waited for a place in the window."""
        answer: Deferred[int] = Deferred()
        association, _ = self.both((evt.EVT_C_ECHO, lambda event: answer), *self.handlers())
        first = association.send_c_echo()
        for call in WRONG_CALLS:
            self.failing(call, association)
        answer.callback(0)
        self.assertEqual(self.network.result_of(first), 0)
        self.sent.clear()

    def test_bytes_and_numbers_that_are_good(self) -> None:
        """A title as bytes, and the three priorities, are sent."""
        seen: list[tuple[Any, ...]] = []

        def stored(event: evt.StoreEvent) -> int:
            request = event.request
            assert isinstance(request, CStoreRQ)
            seen.append((request.move_originator_application_entity_title, request.priority))
            return 0

        association, _ = self.both((evt.EVT_C_STORE, stored))
        for priority in (0, 1, 2):
            asked = association.send_c_store(
                instance(), originator_aet=b" AB ", originator_id=65_535, priority=priority
            )
            self.assertEqual(self.network.result_of(asked), 0)
        self.assertEqual(seen, [("AB", 0), ("AB", 1), ("AB", 2)])

    def test_most_tags(self) -> None:
        """The longest N-GET arrives."""
        seen: list[int] = []

        def get(event: evt.GetEvent) -> int:
            request = event.request
            assert isinstance(request, NGetRQ) and request.attribute_identifier_list is not None
            seen.append(len(request.attribute_identifier_list))
            return 0

        association, _ = self.both((evt.EVT_N_GET, get))
        tags = range(0x00100000, 0x00100000 + MAX_TAGS)
        status, _ = self.network.result_of(association.send_n_get(tags, COMMITMENT, "1.2." + "3" * 60))
        self.assertEqual((status, seen), (0, [MAX_TAGS]))


class Readings:
    """A file-like object of a user, which reads as told, again and again."""

    def __init__(self, *parts: Any) -> None:
        self.parts = list(parts)

    def read(self, count: int) -> Any:
        part = self.parts[0] if len(self.parts) == 1 else self.parts.pop(0)
        return part(count) if callable(part) else part


class FileTests(CallTestCase):
    """Objects with ``read()`` that break its rules: nothing is read for ever, and no instance is cut off."""

    def test_at_the_beginning(self) -> None:
        whole = part10(1000)
        for error, parts in (
            (TypeError, ["text"]),
            (TypeError, [""]),
            (TypeError, [5]),
            (TypeError, [whole, "text"]),
            (BlockingIOError, [None]),
            (BlockingIOError, [whole, None]),
            (BlockingIOError, [whole[:150], None]),
            (ValueError, [lambda count: bytes(count + 1)]),
            (ValueError, [whole, lambda count: bytes(2 * count)]),
        ):
            self.listen(*self.handlers())
            association = self.associate()
            asked = association.send_c_store(cast("Any", Readings(*parts)))
            self.network.flush()
            self.failureResultOf(asked, error)
            self.check_alive(association)
            self.scp.shutdown()
            self.network.flush()

    def test_behind_the_beginning(self) -> None:
        """A part of the instance is sent already: the association is aborted, and the peer has no instance."""
        stored: list[Any] = []
        whole = part10(3 * CHUNK)
        for error, wrong in (
            (TypeError, "text"),
            (BlockingIOError, None),
            (ValueError, lambda count: bytes(count + 1)),
        ):
            self.listen((evt.EVT_C_STORE, stored.append))
            association = self.associate()
            rest = BytesIO(whole)
            asked = association.send_c_store(cast("Any", Readings(rest.read, rest.read, wrong)))
            self.network.flush()
            self.failureResultOf(asked, error)
            self.assertTrue(association.is_aborted)
            self.scp.shutdown()
            self.network.flush()
        self.assertEqual(stored, [])

    def test_kinds_of_bytes(self) -> None:
        got: list[bytes] = []

        def handler(event: evt.StoreEvent) -> int:
            got.append(event.dataset.PixelData)
            return 0

        whole = part10(1000)
        for kind in (bytes, bytearray, memoryview):
            self.listen((evt.EVT_C_STORE, handler))
            association = self.associate()
            file = Readings(kind(whole[:7]), kind(whole[7:]), kind(b""))
            self.assertEqual(self.network.result_of(association.send_c_store(cast("Any", file))), 0)
            self.network.result_of(association.release())
            self.scp.shutdown()
            self.network.flush()
        self.assertEqual(got, [b"\1\2" * 500] * 3)


class Closing:
    """A data set source that notes that it was closed."""

    closed = 0

    def read(self) -> tuple[bytes, bool]:
        raise AssertionError("nothing reads it")

    def close(self) -> None:
        self.closed += 1


class ExchangeTests(MemoryTestCase):
    """A request that the exchange cannot encode, whatever let it through."""

    REQUESTS = (
        CEchoRQ(affected_sop_class_uid=7),  # type: ignore[arg-type]
        CEchoRQ(affected_sop_class_uid=None),  # type: ignore[arg-type]
        CStoreRQ(priority=70_000),
        CStoreRQ(move_originator_application_entity_title=b"AB"),  # type: ignore[arg-type]
        CFindRQ(priority="x"),  # type: ignore[arg-type]
        NGetRQ(attribute_identifier_list=("x",)),  # type: ignore[arg-type]
        NGetRQ(attribute_identifier_list=(1 << 40,)),
    )

    def started(self, association: Association, request: Any, source: Any) -> Deferred[Any]:
        async def start() -> Any:
            async with WindowPlace(association.exchange):
                return await association.exchange.start(1, request, source)

        return Deferred.fromCoroutine(start())

    def test_start(self) -> None:
        """It fails alone, closes its data set, and leaves no operation behind, also while another message is sent."""
        answer: Deferred[int] = Deferred()
        association, _ = self.windowed((evt.EVT_C_ECHO, lambda event: answer))
        waiting = association.send_c_echo()
        for request in self.REQUESTS:
            source = Closing()
            failed = self.started(association, request, source)
            self.assertIn("cannot be encoded", str(self.failureResultOf(failed, ValueError).value))
            self.assertEqual(source.closed, 1)
        answer.callback(0)
        self.assertEqual(self.network.result_of(waiting), 0)
        self.assertFalse(association.exchange.asking)
        self.assertIsNone(self.network.result_of(association.release()))


#: Handlers' statuses with details that cannot be encoded, with the status and the details that are sent.
def _status(code: int, **elements: Any) -> Dataset:
    dataset = Dataset()
    dataset.Status = code
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def _raw(code: int, keyword: str, vr: str, value: Any) -> Dataset:
    dataset = Dataset()
    dataset.Status = code
    dataset.add_new(keyword, vr, value)
    return dataset


STATUSES: list[tuple[Any, int]] = [
    (_status(0xA700, ErrorID=70_000), 0xA700),
    (_status(0xA700, ErrorID=-1), 0xA700),
    (_status(0x0000, ErrorID=[1, 2]), 0x0000),
    (_status(0xA700, ErrorID=None), 0xA700),
    (_raw(0xA700, "ErrorID", "LO", "seven"), 0xA700),
    (_raw(0xA700, "ErrorComment", "US", 5), 0xA700),
    (_raw(0xA700, "ErrorComment", "OB", b"\xff\xfe"), 0xA700),
    (_raw(0xA700, "ErrorComment", "SQ", []), 0xA700),
    (_status(0xA700, ErrorComment=None), 0xA700),
    (_status(0xA700, ErrorComment=["one", "two"]), 0xA700),
    (_status(0xA700, ErrorComment="Ä" * 100), 0xA700),
    (_status(0xA700, ErrorComment="患者"), 0xA700),
    (_status(0xA700, OffendingElement=0x00100010), 0xA700),
    (_status(0xA700, OffendingElement=None), 0xA700),
    (_raw(0xA700, "OffendingElement", "LO", "what"), 0xA700),
    (_status(0xA700, AttributeIdentifierList=[0x00100010] * 30_000), 0xA700),
    (_raw(0xA700, "AttributeIdentifierList", "LO", ["a", "b"]), 0xA700),
    (Status(0xA700, error_id=70_000), 0xA700),
    (Status(0xA700, error_id="seven"), 0xA700),  # type: ignore[arg-type]
    (Status(0xA700, error_comment=5), 0xA700),  # type: ignore[arg-type]
    (Status(0xA700, error_comment="\ud800" * 70), 0xA700),
    (Status(0xA700, offending_element=5), 0xA700),  # type: ignore[arg-type]
    (Status(0xA700, offending_element=("PatientName", -1)), 0xA700),  # type: ignore[arg-type]
    (Status(0xA700, attribute_identifier_list=(1 << 33,)), 0xA700),
    (Status(0xA700, offending_element=(0x00100010,) * 40_000), 0xA700),
    (Status(0xB000, error_id=65_536, error_comment="it is there"), 0xB000),
]
BROKEN: list[Any] = [70_000, -1, None, "0", 1.5, True, [], _status(70_000), _status(-1), Dataset(), object()]
BROKEN += [SystemExit(1), SystemExit(), GeneratorExit()]


class AnswerTests(MemoryTestCase):
    """The peer gets a response for any result of a handler, and the association continues."""

    def setUp(self) -> None:
        super().setUp()
        contexts = [*CONTEXTS, *(build_context(uid, ExplicitVRLittleEndian) for uid in MODELS)]
        self.scp.supported_contexts = self.scu.requested_contexts = contexts
        self.value: Any = 0

    def value_of(self, event: evt.Event) -> Any:
        return self.result()

    def result(self) -> Any:
        """Return the value, or raise it as a handler would that ends the program."""
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value

    @evt.streaming
    def stream(self, event: evt.StoreEvent) -> Any:
        return self.result()

    def found(self, event: evt.IdentifierEvent) -> Iterator[Any]:
        yield self.result(), None

    def retrieved(self, event: evt.IdentifierEvent) -> Iterator[Any]:
        if event.event is evt.EVT_C_MOVE:
            yield "127.0.0.1", 104
        yield 1
        yield self.result(), None

    def calls(self, association: Association) -> Iterator[tuple[str, Callable[[], Any]]]:
        yield "C-ECHO", association.send_c_echo
        yield "C-STORE", lambda: association.send_c_store(instance())
        yield "C-FIND", lambda: Deferred.fromCoroutine(self.last(association.send_c_find(keys(), FIND)))
        yield "C-GET", lambda: Deferred.fromCoroutine(self.last(association.send_c_get(keys(), GET)))
        yield "C-MOVE", lambda: Deferred.fromCoroutine(self.last(association.send_c_move(keys(), "SCP", MOVE)))
        yield "N-CREATE", lambda: association.send_n_create(None, COMMITMENT, "1.2.3")
        yield "N-SET", lambda: association.send_n_set(keys(), COMMITMENT, "1.2.3")
        yield "N-GET", lambda: association.send_n_get([], COMMITMENT, "1.2.3")
        yield "N-ACTION", lambda: association.send_n_action(None, 1, COMMITMENT, "1.2.3")
        yield "N-DELETE", lambda: association.send_n_delete(COMMITMENT, "1.2.3")
        # The peer must have the role of SCU; it is answered all the same.
        yield "N-EVENT-REPORT", lambda: association.send_n_event_report(None, 1, COMMITMENT, "1.2.3", any_role=True)

    async def last(self, answers: Any) -> Status:
        async for _ in answers:
            pass
        status: Status = answers.status
        return status

    def associated(self, store: Any) -> Association:
        handlers: list[Any] = [(evt.EVT_C_STORE, store), (evt.EVT_C_ECHO, self.value_of)]
        handlers += [(evt.EVT_C_FIND, self.found), (evt.EVT_C_GET, self.retrieved), (evt.EVT_C_MOVE, self.retrieved)]
        for event in (evt.EVT_N_CREATE, evt.EVT_N_SET, evt.EVT_N_GET, evt.EVT_N_ACTION, evt.EVT_N_DELETE):
            handlers.append((event, self.value_of))
        handlers.append((evt.EVT_N_EVENT_REPORT, self.value_of))
        association, _ = self.both(*handlers)
        return association

    def ask_all(self, association: Association, value: Any) -> list[tuple[str, int]]:
        self.value = value
        statuses: list[tuple[str, int]] = []
        for name, call in self.calls(association):
            asked = call()
            self.network.flush()
            self.assertTrue(asked.called, f"{name} of {value!r} got no answer")
            result = self.successResultOf(asked)
            statuses.append((name, int(result[0] if isinstance(result, tuple) else result)))
        self.assertTrue(association.is_established)
        self.flushLoggedErrors()
        return statuses

    def test_details(self) -> None:
        """A status is sent although what explains it cannot be."""
        association = self.associated(self.value_of)
        for value, expected in STATUSES:
            for name, status in self.ask_all(association, value):
                if name in ("C-GET", "C-MOVE") and expected == 0:
                    continue  # the status of a retrieval that succeeds says what its sub-operations did
                self.assertEqual(status, expected, f"{name}: {value!r}")

    def test_statuses(self) -> None:
        """A handler that returns no status fails, and its peer is told."""
        association = self.associated(self.value_of)
        for value in BROKEN:
            for name, status in self.ask_all(association, value):
                self.assertGreaterEqual(status, 0x0100, f"{name}: {value!r}")

    def test_a_streaming_handler(self) -> None:
        association = self.associated(self.stream)
        for value, expected in STATUSES:
            self.value = value
            self.assertEqual(self.network.result_of(association.send_c_store(instance(300_000))), expected)
        for value in BROKEN:
            self.value = value
            self.assertGreaterEqual(int(self.network.result_of(association.send_c_store(instance()))), 0x0100)
        self.flushLoggedErrors()

    def test_what_is_sent(self) -> None:
        """The details that can be sent are sent, cut to their lengths, in ASCII."""
        association = self.associated(self.value_of)
        for value, comment, elements in (
            (_status(0xA700, ErrorID=70_000, ErrorComment="full"), "full", None),
            (_status(0xA700, ErrorComment="ä" * 70), "?" * 64, None),
            (_status(0xA700, ErrorComment=["one", "two"]), "one; two", None),
            (Status(0xA700, error_id=-5, offending_element=0x00100010), None, (0x00100010,)),  # type: ignore[arg-type]
        ):
            self.value = value
            status = self.network.result_of(association.send_c_store(instance()))
            self.assertEqual(
                (status.error_comment, status.offending_element, status.error_id), (comment, elements, None)
            )
        self.flushLoggedErrors()

    def test_a_response_that_cannot_be_encoded(self) -> None:
        """The last resort: whatever a service puts into its response, the peer gets a failure."""
        association = self.associated(self.value_of)
        (accepted,) = self.scp.active_associations
        make = accepted.exchange._make_operation

        def broken(context: Any, request: Any) -> Any:
            performance: Any = make(context, request)
            response = performance.response(0)
            response.error_id = 70_000
            performance._service = lambda operation: operation.finish(response)
            return performance

        accepted.exchange._make_operation = broken
        self.assertEqual(self.network.result_of(association.send_c_echo()), 0x0110)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertTrue(association.is_established)
