"""
``dicomtwist echo``: send C-ECHO and measure the response times.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dicomtwist import (
    AssociationError,
    NoPresentationContext,
    NotEstablished,
    PresentationContext,
    Status,
    build_context,
)
from dicomtwist.sop_class import Verification
from dicomtwist.tools.client import run_concurrently
from dicomtwist.tools.connection import Connection
from dicomtwist.tools.display.console import VERBOSE, Output, plural
from dicomtwist.tools.explain import NO_ASSOCIATION_ERRORS, Cause, cause_of
from dicomtwist.tools.interrupts import FAILURE, NO_ASSOCIATION, SUCCESS, Interrupts


def verification() -> PresentationContext:
    """Return the presentation context of C-ECHO."""
    return build_context(Verification)


@dataclass
class EchoResults:
    """
    The results of all C-ECHOs.

    :ivar statuses: how often each status was returned.
    :ivar fastest: the shortest response time, in seconds.
    :ivar slowest: the longest response time, in seconds.
    :ivar total: the sum of the response times, in seconds.
    :ivar associations: the number of associations that were established.
    :ivar cause: why an association could not be established.
    :ivar error: why an association ended before all its responses had arrived.
    """

    statuses: dict[int, int] = field(default_factory=dict)
    fastest: float = float("inf")
    slowest: float = 0.0
    total: float = 0.0
    associations: int = 0
    cause: Cause | None = None
    error: str = ""

    @property
    def count(self) -> int:
        """The number of responses."""
        return sum(self.statuses.values())

    def add(self, status: Status, seconds: float) -> None:
        """Add a response."""
        self.statuses[int(status)] = self.statuses.get(int(status), 0) + 1
        self.fastest, self.slowest = min(self.fastest, seconds), max(self.slowest, seconds)
        self.total += seconds

    @property
    def exit_status(self) -> int:
        """The exit status for the results."""
        if not self.associations:
            return NO_ASSOCIATION
        return FAILURE if self.cause or self.error or set(self.statuses) != {0} else SUCCESS


async def _send_echoes(connection: Connection, reactor: Any, output: Output, count: int) -> EchoResults:
    answers = EchoResults()
    ae = connection.make_ae(reactor)
    output.log_associations(ae)

    async def run_one() -> None:
        try:
            assoc = await connection.associate(ae, [verification()])
        except NO_ASSOCIATION_ERRORS as error:
            answers.cause = cause_of(error, connection)
            return
        answers.associations += 1
        try:
            for number in range(1, count + 1):
                asked = reactor.seconds()
                status = await assoc.send_c_echo()
                answers.add(status, reactor.seconds() - asked)
                output.note(f"answer {number}: {status}", VERBOSE)
            await assoc.release()
        except (AssociationError, NotEstablished, NoPresentationContext) as error:
            answers.error = str(error)

    try:
        await run_concurrently(*(run_one() for _ in range(connection.associations)))
    finally:
        await ae.shutdown()
    return answers


def _print_result(connection: Connection, output: Output, answers: EchoResults) -> None:
    peer = connection.peer
    for code, count in answers.statuses.items():
        times = f" ({count} times)" if count > 1 else ""
        output.result(f"{peer} answered: {Status(code, 'C-ECHO')}{times}")
    if answers.count > 1:
        mean = 1000 * answers.total / answers.count
        output.result(
            f"{plural(answers.count, 'answer')} over {plural(answers.associations, 'association')}: fastest"
            f" {1000 * answers.fastest:.2f} ms, mean {mean:.2f} ms, slowest {1000 * answers.slowest:.2f} ms"
        )
    elif answers.count:
        output.result(f"in {1000 * answers.total:.2f} ms")
    if answers.cause is not None:
        output.error(f"{answers.cause}")
    if answers.error:
        output.error(answers.error)
    output.document(
        {
            "command": "echo",
            "peer": str(peer),
            "exit_status": answers.exit_status,
            "associations": answers.associations,
            "answers": answers.count,
            "statuses": {f"0x{code:04X}": count for code, count in answers.statuses.items()},
            "mean_seconds": answers.total / answers.count if answers.count else None,
            "error": answers.error or None,
            "cause": answers.cause and answers.cause.document(),
        }
    )


class Echo:
    """
    One run of the subcommand.

    :param count: how many C-ECHOs to send on each association.
    """

    def __init__(self, connection: Connection, output: Output, count: int) -> None:
        self._connection = connection
        self._output = output
        self._count = count

    async def main(self, reactor: Any, interrupts: Interrupts) -> int:
        """Run it and return the exit status."""
        answers = await _send_echoes(self._connection, reactor, self._output, self._count)
        _print_result(self._connection, self._output, answers)
        return answers.exit_status
