"""dicomtwist.pixels.lanes: jobs of peers that take turns."""

from __future__ import annotations

import unittest

from hypothesis import given
from hypothesis import strategies as st

from dicomtwist.pixels.lanes import Lanes


class Turns(unittest.TestCase):
    def test_one_peer(self) -> None:
        """A peer alone has all places, and its jobs keep their order."""
        lanes: Lanes[int] = Lanes(2, 100)
        for job in range(4):
            self.assertIsNone(lanes.add("a", job))
        self.assertEqual([lanes.next(), lanes.next(), lanes.next()], [0, 1, None])
        lanes.done("a")
        self.assertEqual([lanes.next(), lanes.next(), len(lanes)], [2, None, 1])

    def test_a_peer_that_has_none(self) -> None:
        """A peer whose jobs fill the places keeps no other one waiting."""
        lanes: Lanes[str] = Lanes(2, 2000)
        for job in range(1000):
            lanes.add("busy", f"busy {job}")
        self.assertEqual([lanes.next() for _ in range(3)], ["busy 0", "busy 1", None])
        for job in range(3):
            lanes.add("other", f"other {job}")
        self.assertEqual([lanes.next(), lanes.next()], ["other 0", None])
        lanes.done("busy")
        self.assertIsNone(lanes.next(), "the place beyond the others was used")
        lanes.done("other")
        self.assertEqual([lanes.next(), lanes.next()], ["other 1", None])
        lanes.done("busy")
        lanes.done("other")
        self.assertEqual([lanes.next(), lanes.next(), lanes.next()], ["busy 2", "other 2", None])

    def test_one_place(self) -> None:
        lanes: Lanes[str] = Lanes(1, 100)
        lanes.add("a", "a")
        lanes.add("a", "b")
        lanes.add("b", "c")
        self.assertEqual([lanes.next(), lanes.next(), lanes.next()], ["a", "c", None])

    def test_no_room(self) -> None:
        """If too many wait, the peer with the most of them loses its last one, which may be the new one."""
        lanes: Lanes[int] = Lanes(1, 3)
        for job in range(3):
            lanes.add("a", job)
        self.assertEqual(lanes.add("a", 3), 3)
        self.assertEqual(lanes.add("b", 4), 2)
        self.assertEqual(lanes.add("b", 5), 5)
        self.assertEqual(lanes.add("c", 6), 1)
        self.assertEqual(lanes.add("d", 7), 7)
        self.assertEqual(list(lanes.clear()), [0, 4, 6])

    def test_remove(self) -> None:
        lanes: Lanes[int] = Lanes(1, 3)
        lanes.add("a", 1)
        lanes.add("a", 2)
        self.assertTrue(lanes.remove("a", 1))
        self.assertFalse(lanes.remove("a", 1))
        self.assertFalse(lanes.remove("b", 1))
        self.assertEqual((lanes.next(), len(lanes)), (2, 0))
        self.assertFalse(lanes.remove("a", 2))

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(("add", "next", "done", "remove")))))
    def test_any_order(self, steps: list[tuple[str, str]]) -> None:
        """No job is lost or done twice, and no more than the places and one are done at once."""
        lanes: Lanes[int] = Lanes(2, 5)
        jobs: dict[int, str] = {}
        waiting: set[int] = set()
        active: list[int] = []
        for number, (peer, step) in enumerate(steps):
            if step == "add":
                jobs[number] = peer
                waiting.add(number)
                dropped = lanes.add(peer, number)
                if dropped is not None:
                    waiting.remove(dropped)
            elif step == "next":
                job = lanes.next()
                if job is not None:
                    waiting.remove(job)
                    active.append(job)
                elif len(active) < 2:
                    self.assertFalse(waiting)
            elif step == "done" and active:
                lanes.done(jobs[active.pop()])
            elif step == "remove" and waiting:
                job = min(waiting)
                self.assertTrue(lanes.remove(jobs[job], job))
                waiting.remove(job)
            self.assertLessEqual(len(active), 3)
            self.assertEqual(len(lanes), len(waiting))
            self.assertLessEqual(len(waiting), 5)
        self.assertEqual(set(lanes.clear()), waiting)
