"""The delays between attempts, and what the policies of the project come to."""

from __future__ import annotations

from unittest import TestCase

from dicomtwist.archive.services import storage_commitment
from dicomtwist.daemon import workers
from dicomtwist.pool import DEFAULT_RETRY_POLICY
from dicomtwist.runtime.backoff import Backoff
from dicomtwist.tools.files.bulk_sender import MAX_RECONNECTS, RECONNECT_DELAYS


class BackoffTests(TestCase):
    def delays(self, policy: Backoff, count: int) -> list[float]:
        return [policy(failures) for failures in range(1, count + 1)]

    def test_doubles(self) -> None:
        self.assertEqual(self.delays(Backoff(1.0, 30.0), 7), [1, 2, 4, 8, 16, 30, 30])

    def test_factor(self) -> None:
        self.assertEqual(self.delays(Backoff(1.0, 100.0, 3.0), 6), [1, 3, 9, 27, 81, 100])
        self.assertEqual(self.delays(Backoff(5.0, 5.0, 1.0), 3), [5, 5, 5])

    def test_jitter(self) -> None:
        """Jitter is added to each delay, to the longest one as well."""
        added = iter([0.25, 0.5, 0.75])
        self.assertEqual(self.delays(Backoff(1.0, 2.0, jitter=lambda: next(added)), 3), [1.25, 2.5, 2.75])

    def test_ends_of_the_range(self) -> None:
        """Without a failure the delay is the first one; a number of failures that no power has room for is the longest."""
        policy = Backoff(0.5, 60.0)
        self.assertEqual([policy(0), policy(10**9)], [0.5, 60.0])

    def test_none_at_all(self) -> None:
        self.assertEqual(self.delays(Backoff(0.0, 0.0), 3), [0, 0, 0])

    def test_mistakes(self) -> None:
        for arguments in ((-1.0, 1.0), (2.0, 1.0), (1.0, 2.0, 0.5)):
            with self.assertRaises(ValueError):
                Backoff(*arguments)

    def test_policies(self) -> None:
        """The delays that docs/limits.md and the guides describe."""
        commitment = Backoff(storage_commitment.FIRST_DELAY, storage_commitment.LONGEST_DELAY)
        self.assertEqual(self.delays(commitment, 8), [10, 20, 40, 80, 160, 320, 600, 600])
        replacing = Backoff(workers.FIRST_DELAY, workers.LONGEST_DELAY)
        self.assertEqual(self.delays(replacing, 9), [0.5, 1, 2, 4, 8, 16, 32, 60, 60])
        self.assertEqual(self.delays(RECONNECT_DELAYS, MAX_RECONNECTS), [1, 2, 4, 8, 16])
        for failures, least in enumerate([1, 2, 4, 8, 16, 30, 30], start=1):
            self.assertTrue(least <= DEFAULT_RETRY_POLICY(failures) < least + 1)
