"""The list of operations in little memory: it returns what was added."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.association.operation_log import LoggedOperation, OperationLog

_texts = st.text(max_size=80) | st.text(alphabet="0123456789.", max_size=64) | st.just("\udc80")
_operations = st.builds(
    LoggedOperation,
    direction=st.sampled_from(("sent", "received")),
    service=st.sampled_from(("C-STORE", "C-FIND")),
    sop_class_uid=_texts,
    sop_instance_uid=_texts,
    message_id=st.integers(0, 65535),
    status=st.none() | st.integers(0, 65535),
    pending=st.integers(0, 2**32 - 1),
    started=st.floats(allow_nan=False),
    seconds=st.floats(allow_nan=False),
)


class Log(SynchronousTestCase):
    @given(st.lists(_operations, max_size=40), st.integers(0, 50))
    def test_as_they_were_added(self, operations: list[LoggedOperation], maximum: int) -> None:
        log = OperationLog(maximum)
        self.assertEqual([log.add(one) for one in operations], [n < maximum for n in range(len(operations))])
        self.assertEqual(log.operations(), operations[:maximum])
        self.assertEqual(len(log), min(len(operations), maximum))

    def test_memory(self) -> None:
        """A thousand operations with UIDs of 64 characters."""
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        before = tracemalloc.get_traced_memory()[0]
        log = OperationLog(1000)
        for number in range(1000):
            log.add(LoggedOperation("received", "C-STORE", "1.2.3", f"1.{number:062}", number, 0, 0, 1.0, 2.0))
        self.assertLess(tracemalloc.get_traced_memory()[0] - before, 120_000)
