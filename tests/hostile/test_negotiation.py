"""Association requests that no peer should send: rows 12 to 14, and user identities."""

from __future__ import annotations

from twisted.logger import globalLogPublisher

from dicomtwist import UserIdentity, evt
from dicomtwist.ul.items import ProposedContext, UserInformation, encode_item
from dicomtwist.ul.pdu import AAbort, AAssociateAC, AAssociateRJ, AAssociateRQ
from tests.hostile.common import ACSE, HostileTestCase
from tests.hostile.test_wire import AA1, APPLICATION, RQ_HEAD, associate_rq
from tests.memory import CT, VERIFICATION
from tests.secrets import Leaks

IMPLICIT = "1.2.840.10008.1.2"


def context(number: int, abstract_syntax: str = VERIFICATION) -> bytes:
    """Return a presentation context item."""
    return ProposedContext(number, abstract_syntax, (IMPLICIT,)).encode()


class Contexts(HostileTestCase):
    """Row 12."""

    def answer(self, request: bytes) -> object:
        peer = self.connect()
        peer.send(request)
        (answer,) = peer.take()
        self.echo_is_answered()
        if isinstance(answer, AAssociateAC):
            peer.close()
        else:
            self.wait(ACSE)
        self.assertIsNotNone(peer.closed)
        return answer

    def test_none(self) -> None:
        answer = self.answer(associate_rq(APPLICATION, UserInformation().encode()))
        assert isinstance(answer, AAssociateAC)
        self.assertEqual(answer.presentation_contexts, ())

    def test_ids(self) -> None:
        user = UserInformation().encode()
        for items in (
            [context(2)],
            [context(0)],
            [context(1), context(1)],
            [context(number % 256) for number in range(1, 259, 2)],  # 129, so that an ID is repeated
        ):
            self.assertEqual(self.answer(associate_rq(APPLICATION, *items, user)), AA1)
        answer = self.answer(associate_rq(APPLICATION, *[context(number) for number in range(1, 256, 2)], user))
        assert isinstance(answer, AAssociateAC)
        self.assertEqual({item.result for item in answer.presentation_contexts}, {0})
        self.assertEqual(len(answer.presentation_contexts), 128)

    def test_user_information(self) -> None:
        first, second = UserInformation(maximum_length=4096).encode(), UserInformation(maximum_length=64).encode()
        twice = encode_item(0x50, encode_item(0x51, b"\0\0\x10\0") + encode_item(0x51, b"\0\0\0\x40"))
        for items in ([first, second], [twice], [encode_item(0x50, b"")], []):
            answer = self.answer(associate_rq(APPLICATION, context(1), *items))
            self.assertIsInstance(answer, AAssociateAC)

    def test_application_context_and_version(self) -> None:
        for items in ([encode_item(0x10, b"1.2.3")], [encode_item(0x10, b"")], []):
            answer = self.answer(associate_rq(*items, context(1)))
            self.assertEqual(answer, AAssociateRJ(1, 1, 2))
        rest = RQ_HEAD[2:] + APPLICATION + context(1)
        for version, expected in ((0, AAssociateRJ(1, 2, 2)), (0xFFFE, AAssociateRJ(1, 2, 2))):
            body = version.to_bytes(2, "big") + rest
            self.assertEqual(self.answer(b"\1\0" + len(body).to_bytes(4, "big") + body), expected)
        for version in (1, 3, 0xFFFF):  # only bit 0 counts
            body = version.to_bytes(2, "big") + rest
            self.assertIsInstance(self.answer(b"\1\0" + len(body).to_bytes(4, "big") + body), AAssociateAC)

    def test_odd_uids(self) -> None:
        for uid in ("x", "1." * 500, "../../etc/passwd", "1.2\n3", "\xff\xfe", "1.2.840.10008.1.1\0"):
            answer = self.answer(AAssociateRQ("A", "B", (ProposedContext(1, uid, (uid,)),)).encode())
            assert isinstance(answer, AAssociateAC)
            self.assertNotEqual(answer.presentation_contexts[0].result, 0)


class Identity(HostileTestCase):
    """Row 13."""

    def setUp(self) -> None:
        super().setUp()
        self.leaks = Leaks(b"S3cretWord", b"S3cretToken")
        globalLogPublisher.addObserver(self.leaks)
        self.addCleanup(globalLogPublisher.removeObserver, self.leaks)

    def asked(self, item: bytes) -> object:
        peer = self.connect()
        user = encode_item(0x50, encode_item(0x58, item))
        peer.send(associate_rq(APPLICATION, context(1), user))
        (answer,) = peer.take()
        self.echo_is_answered()
        peer.close()
        self.wait(ACSE)
        return answer

    def test_identities(self) -> None:
        def let_in(event: evt.Event) -> tuple[bool, None]:
            return event.primary_field == b"name" and event.secondary_field == b"RightWord", None

        self.serve((evt.EVT_USER_ID, let_in))

        def identity(kind: int, primary: bytes, secondary: bytes = b"") -> bytes:
            fields = b"".join(len(field).to_bytes(2, "big") + field for field in (primary, secondary))
            return bytes((kind, 1)) + fields

        unknown, refused = AAssociateRJ(1, 2, 1), AAssociateRJ(2, 2, 1)
        for item, expected in (
            (identity(0, b"S3cretToken"), unknown),
            (identity(9, b"S3cretToken"), unknown),
            (identity(255, b"S3cretToken"), unknown),
            (identity(2, b"name", b"S3cretWord"), refused),
            (identity(2, b"\xff\xfe\xc0", b"S3cretWord"), refused),
            (identity(1, b""), refused),
            (identity(3, b"S3cretToken" * 5900), refused),
            (b"\2\1\0\4name\xff\xffS3cretWord", AA1),
            (b"\2", AA1),
        ):
            self.assertEqual(self.asked(item), expected, item[:20])
        self.assertIsInstance(self.asked(identity(2, b"name", b"RightWord")), AAssociateAC)
        self.assertGreater(self.leaks.looked_at, 0)
        self.assertEqual(self.leaks.found, [])
        self.assertEqual(self.lines_with("rejected"), 7)

    def test_repr(self) -> None:
        self.leaks.look_at(UserIdentity(2, b"name", b"S3cretWord"))
        self.assertEqual(self.leaks.found, [])


class Titles(HostileTestCase):
    """Row 14."""

    def test_titles(self) -> None:
        wrong = [b" " * 16, bytes(16), b"..\\..\\x", b"\x1b[31mRED", b"A\r\nB", b"A\0B", b"\xff" * 16, b"A\x7f"]
        for title in wrong:
            for called in (False, True):
                with self.subTest(title=title, called=called):
                    head = bytearray(RQ_HEAD)
                    place = 4 if called else 20
                    head[place : place + 16] = title.ljust(16)
                    body = bytes(head) + APPLICATION + context(1, CT)
                    before = len(self.log.lines)
                    peer = self.connect()
                    peer.send(b"\1\0" + len(body).to_bytes(4, "big") + body)
                    self.assertEqual(peer.take(), [AAssociateRJ(1, 1, 7 if called else 3)])
                    self.wait(ACSE)
                    self.assertIsNotNone(peer.closed)
                    (line,) = self.log.lines[before:]
                    self.assertTrue(line.isprintable(), line)

    def test_a_path_is_a_title(self) -> None:
        # The standard allows it as a title, and nothing treats it as a path.
        peer = self.connect()
        peer.request((1, VERIFICATION), calling="../x")
        self.assertIsInstance(peer.take()[0], AAssociateAC)
        peer.send(AAbort(0, 0))
        self.assertIsNotNone(peer.closed)
        self.assertEqual(self.lines_with("'../x'"), 1)
