"""Hooks: where handlers are bound, which of them are called, and the attributes of events."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from dicomtwist import AE, evt
from dicomtwist.dimse.messages import CEchoRQ
from dicomtwist.evt import EventType, Handlers, get_events
from dicomtwist.presentation import PresentationContextTuple
from dicomtwist.sop_class import Verification


def first(event: evt.Event, *args: Any) -> None: ...


def second(event: evt.Event, *args: Any) -> None: ...


class EventTypeTests(SynchronousTestCase):
    """The list of events."""

    def test_all(self) -> None:
        """Every EVT_ of the module is listed once, by its name, and is of one of the two kinds."""
        events = get_events()
        names = [event.name for event in events]
        self.assertEqual(names, sorted(name for name in dir(evt) if name.startswith("EVT_")))
        for event in events:
            self.assertIs(getattr(evt, event.name), event)
            self.assertNotEqual(event.is_intervention, event.is_notification)
            self.assertEqual(repr(event), f"evt.{event.name}")
            self.assertNotEqual(event.description, "")

    def test_kinds(self) -> None:
        """An event that reports is a notification, an event that asks is an intervention."""
        told = "CONN_OPEN CONN_CLOSE DATA_RECV DATA_SENT PDU_RECV PDU_SENT ACSE_RECV ACSE_SENT DIMSE_RECV DIMSE_SENT"
        told += " C_CANCEL FSM_TRANSITION REQUESTED ACCEPTED ESTABLISHED REJECTED RELEASED ABORTED RECORD"
        notifications = {event.name for event in get_events() if event.is_notification}
        self.assertEqual(notifications, {f"EVT_{name}" for name in told.split()})
        asked = {"EVT_ASYNC_OPS", "EVT_SOP_EXTENDED", "EVT_SOP_COMMON", "EVT_USER_ID", "EVT_C_ECHO", "EVT_C_STORE"}
        self.assertTrue(asked <= {event.name for event in get_events() if event.is_intervention})


class HandlersTests(SynchronousTestCase):
    """Handlers are bound and unbound at three levels."""

    def setUp(self) -> None:
        self.outer = Handlers()
        self.middle = Handlers(parent=self.outer)
        self.inner = Handlers(parent=self.middle)

    def test_nothing_is_bound(self) -> None:
        """At first no handler is bound."""
        self.assertIsNone(self.inner.get(evt.EVT_C_ECHO))
        self.assertEqual(self.inner.listeners(evt.EVT_RELEASED), [])
        self.assertFalse(self.inner.wants(evt.EVT_RELEASED))
        self.assertEqual(self.inner.bound(), [])

    def test_intervention(self) -> None:
        """
        The innermost handler is called. Binding again replaces it; after unbinding, the handler of the next level is called.
        """
        self.outer.bind(evt.EVT_C_ECHO, first)
        self.assertEqual(self.inner.get(evt.EVT_C_ECHO), (first, ()))
        self.inner.bind(evt.EVT_C_ECHO, second, [1])
        self.assertEqual(self.inner.get(evt.EVT_C_ECHO), (second, (1,)))
        self.assertEqual(self.middle.get(evt.EVT_C_ECHO), (first, ()))
        self.inner.bind(evt.EVT_C_ECHO, second, [2])
        self.assertEqual(self.inner.get(evt.EVT_C_ECHO), (second, (2,)))
        self.inner.unbind(evt.EVT_C_ECHO, second)
        self.assertEqual(self.inner.get(evt.EVT_C_ECHO), (first, ()))

    def test_notification(self) -> None:
        """The handlers of every level are called, the outermost first, in the order of their binding, each once for a level."""
        self.inner.bind(evt.EVT_RELEASED, first, ("inner",))
        self.outer.bind(evt.EVT_RELEASED, first, ("outer",))
        self.outer.bind(evt.EVT_RELEASED, second)
        self.outer.bind(evt.EVT_RELEASED, first, ("again",))
        expected = [(first, ("outer",)), (second, ()), (first, ("inner",))]
        self.assertEqual(self.inner.listeners(evt.EVT_RELEASED), expected)
        self.assertTrue(self.inner.wants(evt.EVT_RELEASED))
        self.assertTrue(self.middle.wants(evt.EVT_RELEASED))
        self.assertFalse(self.inner.wants(evt.EVT_ABORTED))

    def test_listeners_is_a_copy(self) -> None:
        """
        A handler that unbinds itself while it is called does not disturb the others.
        """
        self.outer.bind(evt.EVT_RELEASED, first)
        self.outer.bind(evt.EVT_RELEASED, second)
        listeners = self.outer.listeners(evt.EVT_RELEASED)
        self.outer.unbind(evt.EVT_RELEASED, first)
        self.assertEqual([handler for handler, _ in listeners], [first, second])

    def test_unbind(self) -> None:
        """An unbound handler is gone at this level; unbinding a handler that is not bound is not an error."""
        self.outer.bind(evt.EVT_RELEASED, first)
        self.inner.unbind(evt.EVT_RELEASED, first)
        self.assertTrue(self.inner.wants(evt.EVT_RELEASED))
        self.outer.unbind(evt.EVT_RELEASED, first)
        self.outer.unbind(evt.EVT_RELEASED, first)
        self.assertFalse(self.inner.wants(evt.EVT_RELEASED))
        self.outer.bind(evt.EVT_C_ECHO, first)
        self.outer.unbind(evt.EVT_C_ECHO, second)
        self.assertEqual(self.outer.get(evt.EVT_C_ECHO), (first, ()))

    def test_methods(self) -> None:
        """A bound method counts as the same handler each time that it is looked up."""
        self.outer.bind(evt.EVT_RELEASED, self.method)
        self.outer.unbind(evt.EVT_RELEASED, self.method)
        self.assertFalse(self.outer.wants(evt.EVT_RELEASED))

    def method(self, event: evt.Event) -> None: ...

    def test_tuples(self) -> None:
        """Handlers are given as (event, handler) or (event, handler, arguments), and returned in the same form."""
        given: list[evt.HandlerTuple] = [(evt.EVT_RELEASED, first), (evt.EVT_C_ECHO, second, [1, 2])]
        handlers = Handlers(given)
        self.assertEqual(handlers.bound(), [(evt.EVT_RELEASED, first, ()), (evt.EVT_C_ECHO, second, (1, 2))])
        self.assertEqual(handlers.bound(evt.EVT_C_ECHO), [(evt.EVT_C_ECHO, second, (1, 2))])
        self.assertEqual(handlers.bound(evt.EVT_ABORTED), [])

    def test_errors(self) -> None:
        """Binding to something that is not an event, or a handler that is not callable, is refused at once."""
        wrong: Any = "EVT_C_ECHO"
        self.assertIn("EVT_C_ECHO", str(self.assertRaises(TypeError, self.outer.bind, wrong, first)))
        not_callable: Any = 3
        self.assertIn("3", str(self.assertRaises(TypeError, self.outer.bind, evt.EVT_C_ECHO, not_callable)))
        self.assertRaises(TypeError, AE().bind, wrong, first)

    def test_streaming(self) -> None:
        """
        The mark of a streaming handler is on the function itself.
        """

        @evt.streaming
        def handler(event: evt.StoreEvent) -> int:
            return 0

        self.assertTrue(getattr(handler, "is_streaming", False))


class EventTests(SynchronousTestCase):
    """The event objects that handlers get."""

    assoc: Any = "the association"

    def test_attributes(self) -> None:
        """An event has its attributes; any other attribute raises an error that describes the event."""
        event = evt.Event(evt.EVT_ABORTED, self.assoc, reason="lost")
        self.assertEqual((event.event, event.assoc, event.reason), (evt.EVT_ABORTED, self.assoc, "lost"))
        error = self.assertRaises(AttributeError, lambda: event.dataset)
        self.assertIn("EVT_ABORTED has no attribute 'dataset'", str(error))
        self.assertIn("EVT_ABORTED", repr(event))

    def test_request(self) -> None:
        """
        The event of a request has its command set, its context and its Message ID. The command set also has the standard's
        spelling.
        """
        request = CEchoRQ(message_id=7)
        context = PresentationContextTuple(1, Verification, Verification)
        event = evt.DIMSEEvent(evt.EVT_C_ECHO, self.assoc, request, context)
        self.assertEqual((event.message_id, event.context), (7, context))
        self.assertEqual((event.request.message_id, event.request.MessageID), (7, 7))  # type: ignore[attr-defined]

    def test_event_type(self) -> None:
        """Each event equals only itself: two events with one name differ."""
        self.assertNotEqual(EventType("A", "a"), EventType("A", "a"))
