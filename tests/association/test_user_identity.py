"""
User identity (PS3.7 D.3.3.7): who is let in, what is answered, and that nothing of it shows where it must not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import globalLogPublisher

from dicomtwist import AssociationError, AssociationRejected, UserIdentity, evt
from dicomtwist.ul.items import UserInformation
from dicomtwist.ul.pdu import AAbort, AAssociateAC, AAssociateRJ, AAssociateRQ
from tests.memory import VERIFICATION, MemoryTestCase
from tests.secrets import Leaks

SECRETS = (b"TheUser", b"ThePassword", b"TheAnswer")


def identity(kind: int = 2, *, response: bool = True) -> UserIdentity:
    """The user identity of these tests."""
    return UserIdentity(kind, b"TheUser", b"ThePassword" if kind == 2 else b"", response_requested=response)


class Answers(MemoryTestCase):
    """The response of the acceptor."""

    def answer(self, kind: int, result: Any) -> bytes | None:
        """Return what is answered to an identity when the handler returns *result*."""
        self.setUp()
        self.listen((evt.EVT_USER_ID, lambda event: result))
        peer = self.network.scripted_client(104)
        peer.request((1, VERIFICATION), information=UserInformation(user_identity=identity(kind)))
        (answer,) = peer.take()
        assert isinstance(answer, AAssociateAC)
        self.tearDown()
        return answer.user_information.user_identity_response

    def test_names_are_confirmed_and_no_more(self) -> None:
        # The Server Response is of zero length where the type was 1 or 2 (PS3.7 Table D.3-15).
        for kind in (1, 2):
            for response in (None, b"", b"TheAnswer"):
                self.assertEqual(self.answer(kind, (True, response)), b"")

    def test_tickets_are_answered_with_what_the_handler_says(self) -> None:
        for kind in (3, 4, 5):
            for response in (None, b"", b"TheAnswer"):
                self.assertEqual(self.answer(kind, (True, response)), response)

    def test_a_type_that_is_none(self) -> None:
        for kind in (0, 6, 255):
            self.setUp()
            asked: list[Any] = []
            self.listen((evt.EVT_USER_ID, asked.append))
            peer = self.network.scripted_client(104)
            peer.request((1, VERIFICATION), information=UserInformation(user_identity=identity(kind)))
            self.assertEqual(peer.take(), [AAssociateRJ(1, 2, 1)])
            self.assertEqual(asked, [])
            peer.close()
            self.tearDown()


class Secrets(MemoryTestCase):
    """They are in no log event and in nothing that an object says of itself, however it ends."""

    def setUp(self) -> None:
        super().setUp()
        self.leaks = Leaks(*SECRETS)
        globalLogPublisher.addObserver(self.leaks)
        self.addCleanup(globalLogPublisher.removeObserver, self.leaks)
        self.seen: list[evt.Event] = []
        for ae in (self.scp, self.scu):
            for event in evt.get_events():
                if event.is_notification and event not in (evt.EVT_DATA_RECV, evt.EVT_DATA_SENT):
                    ae.bind(event, self.look)

    def look(self, event: evt.Event) -> None:
        """Look at all that a handler can print: the event, what is in it, both sides."""
        self.seen.append(event)
        association = event.assoc
        self.leaks.look_at(event)
        if event.event is not evt.EVT_USER_ID:  # whose attributes are what it is for
            self.leaks.look_at(*vars(event).values())
        self.leaks.look_at(association, association.requestor, association.acceptor, association.protocol)
        self.leaks.look_at(*vars(association).values(), association.ae, association.settings)

    def clean(self, errors: int = 0) -> None:
        """Nothing was found, though there was something to find."""
        self.assertEqual(self.leaks.found, [])
        self.assertGreater(len(self.seen), 3)
        self.assertEqual(len(self.flushLoggedErrors()), errors)

    def ask(self, handler: Callable[[evt.Event], Any], kind: int = 2) -> Deferred[Any]:
        """Ask for an association, and look at what comes of it."""

        def handle(event: evt.Event) -> Any:
            self.look(event)
            self.assertEqual(event.primary_field, b"TheUser")
            return handler(event)

        self.listen((evt.EVT_USER_ID, handle))
        asking = self.asking(ext_neg=[identity(kind)])
        self.leaks.look_at(asking)
        return asking

    def test_the_instrument(self) -> None:
        # It would find them, in each of the forms that one can come in.
        for form in ("TheUser", repr(b"TheUser"), b"TheUser".hex(), "84, 104, 101, 85, 115, 101, 114"):
            leaks = Leaks(*SECRETS)
            leaks.look_at(f"a line with {form} in it")
            self.assertEqual(len(leaks.found), 1)
        leaks = Leaks(*SECRETS)
        leaks({"log_format": "hello {who}", "who": "TheUser", "log_time": 0.0})
        self.assertGreaterEqual(len(leaks.found), 1)

    def test_let_in(self) -> None:
        for kind in range(1, 6):
            self.setUp()
            association = self.successResultOf(self.ask(lambda event: (True, b"TheAnswer"), kind))
            self.assertEqual(association.acceptor.user_identity, b"" if kind < 3 else b"TheAnswer")
            self.network.result_of(association.send_c_echo())
            self.network.result_of(association.release())
            self.leaks.look_at(association)
            self.clean()
            self.tearDown()

    def test_not_let_in(self) -> None:
        error = self.failureResultOf(self.ask(lambda event: (False, b"TheAnswer")), AssociationRejected)
        self.leaks.look_at(error, error.value)
        self.clean()

    def test_handlers_that_fail(self) -> None:
        def raising(event: evt.Event) -> Any:
            raise LookupError("no directory")

        async def raising_later(event: evt.Event) -> Any:
            raise LookupError("no directory")

        def nonsense(event: evt.Event) -> Any:
            return event.primary_field == b"TheUser"

        def another_nonsense(event: evt.Event) -> Any:
            return True, "TheAnswer"  # not bytes

        def too_long(event: evt.Event) -> Any:
            return True, b"TheAnswer" * 10_000

        for handler in (raising, raising_later, nonsense, another_nonsense, too_long):
            self.setUp()
            error = self.failureResultOf(self.ask(handler, 3), AssociationRejected)
            self.leaks.look_at(error, error.value)
            self.clean(errors=1)
            self.tearDown()

    def test_while_the_handler_decides(self) -> None:
        # The peer leaves, or is left.
        def cut(association: Any) -> None:
            self.network.connections[-1].cut()

        def abort(association: Any) -> None:
            association.abort("enough")

        def wait(association: Any) -> None:
            self.network.advance(31)

        for leave in (cut, abort, wait):
            self.setUp()
            deciding: list[Deferred[Any]] = [Deferred()]
            asking = self.ask(lambda event, deciding=deciding: deciding[0])  # type: ignore[misc]
            leave(self.seen[-1].assoc)
            self.network.flush()
            deciding[0].callback((True, b"TheAnswer"))
            error = self.failureResultOf(asking, AssociationError)
            self.leaks.look_at(error, error.value)
            self.clean()
            self.tearDown()

    def test_items_that_are_broken(self) -> None:
        # Whatever is wrong with the bytes: the abort and the log say what, and not with which.
        whole = AAssociateRQ("SCP", "SCU", (), UserInformation(user_identity=identity())).encode()
        place = whole.index(b"TheUser") - 2
        for broken in (
            whole[:place] + b"\xff\xff" + whole[place + 2 :],
            whole[:place] + b"\0\1" + whole[place + 2 :],
            whole[: place + 9] + b"\0\xff" + whole[place + 11 :],
        ):
            self.setUp()
            self.listen()
            peer = self.network.scripted_client(104)
            peer.send(broken)
            self.assertIsInstance(peer.take()[-1], AAbort)
            peer.close()
            self.clean()
            self.tearDown()

    def test_a_peer_that_answers_it_wrongly(self) -> None:
        # As a requestor: an answer that was not asked for, one that is too short, none.
        for response in (b"TheAnswer", b"", None):
            self.setUp()
            peer = self.network.scripted_server(105)
            asking = self.asking(105, ext_neg=[identity(1, response=False)])
            peer.accept(information=UserInformation(user_identity_response=response))
            association = self.successResultOf(asking)
            self.assertEqual(association.acceptor.user_identity, response)
            self.leaks.look_at(association)
            peer.reset()
            self.clean()
            self.tearDown()

    def test_where_nobody_listens(self) -> None:
        error = self.failureResultOf(self.asking(9, ext_neg=[identity()]))
        self.leaks.look_at(error, error.value, self.scu)
        self.assertEqual(self.leaks.found, [])

    def test_what_may_not_come_twice(self) -> None:
        error: Any = self.assertRaises(
            ValueError, self.scu.associate, "127.0.0.1", 104, ext_neg=[identity(), identity(3)]
        )
        self.leaks.look_at(error)
        self.assertEqual(self.leaks.found, [])
