"""Frames of the inbox: what was written is found again, damage is found and named, and nothing else is ever found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.archive.inbox.frames import (
    ALIGNMENT,
    MAX_NOTE,
    Damaged,
    Found,
    Frame,
    FrameRefused,
    begin_of,
    encode,
    frame_size,
    scan,
    void,
)

GENERATION, EARLIER = b"\xa5this\x00us", b"\xa5earlier"
SYNTAX = "1.2.840.10008.1.2.1"


def frame(number: int, length: int = 1000, *, digest: bool = True) -> Frame:
    content = (number.to_bytes(4, "big") * (length // 4 + 1))[:length]
    return Frame(
        ("1.2.3", f"1.2.3.{number % 3}", f"1.2.3.4.{number}"),
        SYNTAX,
        [content[: length // 3], memoryview(content)[length // 3 :]],
        hashlib.sha256(content).digest() if digest else b"",
    )


class Written(NamedTuple):
    """A frame of an image, with the offsets of its begin and its end, and the number of its batch."""

    frame: Frame
    begin: int
    end: int
    batch: int


def image(batches: Iterable[Sequence[Frame]], generation: bytes = GENERATION) -> tuple[bytes, list[Written]]:
    """Return a segment without anything behind its last frame, and the frames in it."""
    data = b""
    written = []
    for batch, frames in enumerate(batches):
        synced = len(data)
        for one in frames:
            buffers, content, length, end = encode(one, generation, len(data), synced)
            written.append(Written(one, len(data), end, batch))
            data += b"".join(buffers)
            assert len(data) == end
            assert data[content : content + length] == b"".join(one.content)
    return data, written


def scanned(data: bytes, generation: bytes = GENERATION) -> list[Found | Damaged]:
    return list(scan(lambda offset, length: data[offset : offset + length], len(data), generation))


def flat(one: Frame) -> Frame:
    return one._replace(content=[b"".join(one.content)])


def found(parts: Iterable[Found | Damaged]) -> list[Frame]:
    return [part.frame for part in parts if isinstance(part, Found)]


def bad(parts: Iterable[Found | Damaged]) -> list[Damaged]:
    return [part for part in parts if isinstance(part, Damaged)]


UIDS = st.from_regex(r"(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){0,5}", fullmatch=True)
CONTENTS = st.lists(st.binary(max_size=2000), max_size=4)
TIMES = st.integers(0, 2**64 - 1)
NOTES = st.just(b"") | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=MAX_NOTE).map(str.encode)
FRAMES = st.builds(Frame, st.tuples(UIDS, UIDS, UIDS), UIDS | st.just(""), CONTENTS, st.just(b""), TIMES, NOTES)
FRAMES_WITH_DIGEST = FRAMES.map(
    lambda one: one._replace(digest=hashlib.sha256(b"".join(one.content)).digest())
)  # fmt: skip
BATCHES = st.lists(st.lists(FRAMES | FRAMES_WITH_DIGEST, min_size=1, max_size=4), max_size=4)
#: Frames of several sizes, in two batches and a last one.
SAMPLE = [
    [frame(1, 10), frame(2, 3000, digest=False)],
    [frame(3, 512), frame(4, 5000)],
    [frame(5, 2000, digest=False), frame(6, 1), frame(7, 700)],
]


class Encoding(SynchronousTestCase):
    def test_content_is_not_copied(self) -> None:
        one = frame(1)
        buffers, _, _, _ = encode(one, GENERATION, 0, 0)
        self.assertEqual([id(buffer) for buffer in buffers[1:-1]], [id(buffer) for buffer in one.content])

    def test_size(self) -> None:
        for length in (*range(0, 1100, 7), 65_535):
            one = frame(1, length)
            buffers, content, told, end = encode(one, GENERATION, 1024, 512)
            self.assertEqual(sum(map(len, buffers)), frame_size(one))
            self.assertEqual((end, told), (1024 + frame_size(one), length))
            self.assertEqual(begin_of(content), 1024)
            self.assertEqual(frame_size(one) % ALIGNMENT, 0)

    def test_longest_text(self) -> None:
        """Contents begin behind the head, even if that fills the first sector to its end."""
        uid = "1." + "2" * 62
        room = ALIGNMENT - 3 * 65
        for syntax in range(room - 90, room):
            one = Frame((uid, uid, uid), "1" * syntax, [b"content"])
            try:
                buffers, content, _, _ = encode(one, GENERATION, 512, 0)
            except FrameRefused:
                break
            self.assertEqual(begin_of(content), 512)
            data = bytes(512) + b"".join(buffers)
            self.assertEqual(found(scanned(data)), [one])
        else:
            self.fail("a head may be longer than a sector")
        self.assertEqual(content, 1024)

    def test_longest_note(self) -> None:
        """A note of the greatest length fits beside UIDs and a transfer syntax of the greatest length."""
        uid = "1." + "2" * 62
        one = Frame((uid, uid, uid), uid, [b"content"], note=b"n" * MAX_NOTE)
        buffers, _, _, _ = encode(one, GENERATION, 512, 0)
        self.assertEqual(found(scanned(bytes(512) + b"".join(buffers))), [one])

    def test_refused(self) -> None:
        good = frame(1)
        for wrong in (
            good._replace(uids=("1.2.3", "1.2.3/..", "1.2.3.4")),
            good._replace(uids=("", "1.2", "1.3")),
            good._replace(uids=("1.2", "1.3", "1" * 65)),
            good._replace(uids=("1.2", "1.3", "1.4\n")),
            good._replace(transfer_syntax="1.2\n1.3"),
            good._replace(transfer_syntax="1.2\u0661"),
            good._replace(transfer_syntax="1" * 500),
            good._replace(digest=b"short"),
            good._replace(note=b"x" * (MAX_NOTE + 1)),
            good._replace(note=b"two\nlines"),
            good._replace(note=b"\xff"),
            good._replace(received=-1),
            good._replace(received=1 << 64),
            good._replace(content=[memoryview(bytes(1 << 20))] * 4096),
        ):
            self.assertRaises(FrameRefused, frame_size, wrong)
            self.assertRaises(FrameRefused, encode, wrong, GENERATION, 0, 0)
        self.assertIsInstance(FrameRefused(), ValueError)


class Scanning(SynchronousTestCase):
    @given(BATCHES, st.integers(0, 3))
    def test_all_are_found(self, batches: list[list[Frame]], sectors: int) -> None:
        data, written = image(batches)
        parts = scanned(data + bytes(512 * sectors))
        self.assertEqual(bad(parts), [])
        self.assertEqual(found(parts), [flat(one.frame) for one in written])
        for part in parts:
            assert isinstance(part, Found)
            (content,) = part.frame.content
            self.assertEqual(data[part.offset : part.offset + len(content)], content)

    def test_of_another_use(self) -> None:
        """Frames of an earlier use are not found, however many of them the new frames leave."""
        old, _ = image(SAMPLE, EARLIER)
        self.assertEqual(scanned(old), [])
        for count in range(1, 4):
            data, written = image([[frame(100 + number, 600 * number) for number in range(count)]])
            self.assertEqual(scanned(data + old[len(data) :]), scanned(data))
            self.assertEqual(len(found(scanned(data))), len(written))

    def test_void(self) -> None:
        data, written = image(SAMPLE)
        for one in written:
            head = void(data[one.begin : one.begin + ALIGNMENT], one.begin, GENERATION)
            assert head is not None
            changed = data[: one.begin] + head + data[one.begin + len(head) :]
            parts = scanned(changed)
            self.assertEqual(found(parts), [flat(other.frame) for other in written if other is not one])
            self.assertEqual(bad(parts), [])
        self.assertIsNone(void(data[:ALIGNMENT], 512, GENERATION))
        self.assertIsNone(void(data[:ALIGNMENT], 0, EARLIER))
        self.assertIsNone(void(bytes(ALIGNMENT), 0, GENERATION))

    def test_cut_off(self) -> None:
        """A segment of any length has the frames that are whole in it. If it was preallocated, it was made shorter."""
        data, written = image(SAMPLE)
        for length in range(0, len(data), 64):
            parts = scanned(data[:length])
            whole = [one for one in written if self.has_content(one, length)]
            self.assertEqual(found(parts), [flat(one.frame) for one in whole], length)
            # The heads of the second batch say so: their sync was not the first of the segment.
            preallocated = any(one.batch and self.content_of(one)[0] <= length for one in written)
            for part in bad(parts):
                if part.offset:
                    self.assertEqual(part.acknowledged, preallocated, length)
            (cut,) = [one for one in written if one.begin <= length < one.end]
            if preallocated and cut not in whole and cut.begin < length:
                self.assertEqual([part.offset for part in bad(parts)], [cut.begin], length)

    def content_of(self, one: Written) -> tuple[int, int]:
        """Return the first byte of a content, and its end."""
        _, content, size, _ = encode(one.frame, GENERATION, one.begin, 0)
        return content, content + size

    def has_content(self, one: Written, length: int) -> bool:
        return self.content_of(one)[1] <= length

    @given(st.binary(max_size=3000), st.booleans())
    def test_any_bytes(self, data: bytes, begun: bool) -> None:
        self.assertEqual(found(scanned((b"DTINBOX\x01" + GENERATION if begun else b"") + data)), [])

    def test_first_sector(self) -> None:
        """Anything in it but zeros or a head is damage, even if no frame says so."""
        self.assertEqual(scanned(bytes(2048)), [])
        self.assertEqual(scanned(image([[frame(1)]], EARLIER)[0]), [])
        self.assertEqual(scanned(b"?" + bytes(2047)), [Damaged(0, 2048, True)])
        data, _ = image([[frame(1)]])
        self.assertEqual(scanned(b"?" + data[1:]), [Damaged(0, len(data), True)])
        data, _ = image([[frame(1), frame(2)]])
        parts = scanned(b"?" + data[1:])
        self.assertEqual((bad(parts), found(parts)), ([Damaged(0, len(data) // 2, True)], [flat(frame(2))]))

    def test_forged(self) -> None:
        """A content may hold whole frames, but none for its own place and generation: that is not known to a sender."""
        _, begin, _, _ = encode(frame(1), GENERATION, 0, 0)
        shift = bytes(-begin % ALIGNMENT)
        right, wrong = range(512, 8192, 512), range(1024, 8704, 512)
        for generation, offsets in ((EARLIER, right), (GENERATION, wrong), (GENERATION, right)):
            forged = [b"".join(encode(frame(99, 20), generation, offset, 0)[0]) for offset in offsets]
            outer = frame(1)._replace(content=[shift, *forged], digest=b"")
            data, written = image([[outer], [frame(2)]])
            self.assertEqual(found(scanned(data)), [flat(outer), flat(frame(2))])
            parts = scanned(b"?" + data[1:])
            if generation == GENERATION and offsets == right:
                self.assertEqual(
                    found(parts)[0], flat(frame(99, 20))
                )  # so the other two would be found if they counted
                continue
            self.assertEqual(found(parts), [flat(frame(2))])
            self.assertEqual(bad(parts), [Damaged(0, written[0].end, True)])


class Damage(SynchronousTestCase):
    def check(self, data: bytes, changed: bytes, written: list[Written]) -> None:
        """Each frame is found if its bytes are the same; else a part that is named bad covers it. Nothing else is found."""
        parts = scanned(changed)
        found_frames = found(parts)
        damaged = bad(parts)
        last = written[-1].batch
        covered = []
        for one in written:
            _, content, length, _ = encode(one.frame, GENERATION, one.begin, 0)
            if data[one.begin : content + length] == changed[one.begin : content + length]:
                self.assertIn(flat(one.frame), found_frames)
            else:
                self.assertNotIn(flat(one.frame), found_frames)
                covering = [part for part in damaged if part.offset <= one.begin and one.end <= part.end]
                if one.batch < last and any(
                    flat(other.frame) in found_frames for other in written if other.batch == last
                ):
                    self.assertEqual([part.acknowledged for part in covering], [True])
                covered += covering
        self.assertLessEqual(len(found_frames), len(written))
        self.assertEqual([part for part in damaged if part not in covered], [])

    def test_each_byte(self) -> None:
        data, written = image(SAMPLE)
        for position in range(0, len(data), 37):
            self.check(data, data[:position] + bytes([data[position] ^ 0x20]) + data[position + 1 :], written)

    @given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from([b"\0", b"?", b"old"])), min_size=1, max_size=8))
    def test_sectors(self, lost: list[tuple[int, bytes]]) -> None:
        """Sectors are zeros, garbage, or those of an earlier use."""
        data, written = image(SAMPLE)
        old = image([[frame(50 + number, 300 * number) for number in range(20)]], EARLIER)[0]
        changed = bytearray(data)
        for number, what in lost:
            begin = number * 512 % len(data)
            changed[begin : begin + 512] = old[begin : begin + 512] if what == b"old" else what * 512
        self.check(data, bytes(changed), written)

    def test_names_the_instance(self) -> None:
        data, written = image(SAMPLE)
        for one in written:
            _, content, length, _ = encode(one.frame, GENERATION, one.begin, 0)
            changed = data[: content + length - 1] + b"?" + data[content + length :]
            (part,) = bad(scanned(changed))
            acknowledged = one.batch < written[-1].batch
            self.assertEqual(part, Damaged(one.begin, one.end, acknowledged, one.frame.uids))

    @given(st.sets(st.integers(0, 20)))
    def test_torn_last_batch(self, arrived: set[int]) -> None:
        """Any sectors of the last batch may be missing: all before it is found, and nothing counts as acknowledged damage."""
        data, written = image(SAMPLE)
        begin = next(one.begin for one in written if one.batch == 2)
        old = image([[frame(50 + number, 300 * number) for number in range(20)]], EARLIER)[0]
        for behind in (bytes(len(data)), old + bytes(len(data))):
            torn = bytearray(data[:begin] + behind[begin : len(data)])
            for number in arrived:
                at = begin + number * 512
                torn[at : at + 512] = data[at : at + 512]
            torn = torn[: len(data)]
            parts = scanned(bytes(torn))
            self.assertEqual(found(parts)[:4], [flat(one.frame) for one in written if one.batch < 2])
            self.assertFalse(any(part.acknowledged for part in bad(parts)))
