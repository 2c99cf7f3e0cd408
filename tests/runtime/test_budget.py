"""The bound on what operations take together."""

from __future__ import annotations

from unittest import TestCase

from hypothesis import given
from hypothesis import strategies as st

from dicomtwist.runtime.budget import Budget, Share

HOSTS = ("10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2", "unix")


class Shares(TestCase):
    """The parts that operations take, and give back."""

    def test_half_for_a_host(self) -> None:
        budget = Budget()
        one, two, other = (Share(budget, address, 10) for address in ("10.0.0.1", "10.0.0.1", "10.0.0.2"))
        self.assertTrue(one.grow(3))
        self.assertTrue(two.grow(2))
        self.assertFalse(one.grow(1))
        self.assertTrue(other.grow(5))
        self.assertFalse(Share(budget, "10.0.0.3", 10).grow(1))
        one.release()
        self.assertEqual(budget.taken, 7)
        self.assertTrue(two.grow(3))

    def test_a_network_of_ipv6_is_a_host(self) -> None:
        budget = Budget()
        shares = [Share(budget, f"2001:db8::{number}", 10) for number in range(2)]
        self.assertEqual([share.grow(5) for share in shares], [True, False])

    def test_a_share_that_is_gone(self) -> None:
        budget = Budget()
        share = Share(budget, "10.0.0.1", 10)
        self.assertTrue(share.grow(5))
        del share
        self.assertEqual(budget.taken, 0)

    @given(st.lists(st.tuples(st.sampled_from(HOSTS), st.lists(st.integers(0, 60)), st.booleans())))
    def test_any(self, operations: list[tuple[str, list[int], bool]]) -> None:
        """The limit holds, and everything comes back."""
        budget = Budget()
        shares = []
        for host, amounts, is_short in operations:
            share = Share(budget, host, 100)
            for amount in amounts:
                before = budget.taken
                grew = share.grow(amount)
                self.assertEqual(budget.taken - before, amount if grew else 0)
            self.assertLessEqual(budget.taken, 100)
            if is_short:
                share.release()
                share.release()
            shares.append(share)
        for share in shares:
            share.release()
        self.assertEqual(budget.taken, 0)
