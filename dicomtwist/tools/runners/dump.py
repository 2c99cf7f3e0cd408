"""
``dicomtwist dump-association``: propose presentation contexts to a peer and show which it accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dicomtwist import DEFAULT_TRANSFER_SYNTAXES, AssociationError, PresentationContext
from dicomtwist.tools.connection import Connection
from dicomtwist.tools.contexts import contexts_for, contexts_named, split_contexts
from dicomtwist.tools.display.console import Output, plural, table
from dicomtwist.tools.explain import Cause, cause_of
from dicomtwist.tools.files.file_scanner import find_requirements
from dicomtwist.tools.interrupts import FAILURE, NO_ASSOCIATION, SUCCESS, Interrupts
from dicomtwist.tools.probe import AssociationProbe, describe_contexts, describe_sides

_T = TypeVar("_T")

#: The most presentation contexts that are proposed, over several associations.
MAX_PROPOSED = 16_384


@dataclass(frozen=True, slots=True)
class Proposal:
    """The presentation contexts to propose, as the options describe them."""

    names: tuple[str, ...]
    paths: tuple[str, ...]
    each_syntax: bool

    async def contexts(self, ae: Any, default: tuple[str, ...]) -> list[PresentationContext]:
        """
        Return the presentation contexts. A worker thread reads the headers of files.

        :raises ValueError: there are too many, or none of the files is a DICOM file.
        """
        contexts: list[PresentationContext] = []
        if self.paths:
            requirements = await self.scan(ae, find_requirements, MAX_PROPOSED)
            if not requirements:
                raise ValueError("none of the files is a DICOM file")
            contexts += contexts_for(requirements)
        names = self.names or (() if self.paths else default)
        contexts += contexts_named(names, each_syntax=self.each_syntax)
        if len(contexts) > MAX_PROPOSED:
            raise ValueError(
                f"these are {len(contexts)} presentation contexts, {MAX_PROPOSED} is the most: name fewer SOP Classes or files"
            )
        return contexts

    async def scan(self, ae: Any, find: Callable[[Sequence[str], int], _T], most: int) -> _T:
        """Return what *find* finds in the paths, up to *most* of it. A worker thread reads the headers of files."""
        ae.executors.acquire()
        try:
            found: _T = await ae.executors.retrieval.run(find, self.paths, most)
        finally:
            ae.executors.release()
        return found


def syntaxes_in_words(uids: Sequence[str], names: Sequence[str]) -> str:
    """Return transfer syntaxes as the short text of a cell."""
    if set(uids) == set(DEFAULT_TRANSFER_SYNTAXES):
        return "any uncompressed"
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


def context_lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return presentation contexts as the lines of a table, each with the proposal and the answer."""
    cells = [("ID", "SOP Class", "proposed", "answered")]
    for row in rows:
        answer = row["transfer_syntax_name"] if row["accepted"] else f"rejected: {row['answer']}"
        proposed = syntaxes_in_words(row["proposed"], row["proposed_names"])
        cells.append((row["id"], row["name"], proposed, answer))
    return table(cells, "  ")


def _side_lines(sides: dict[str, dict[str, Any]]) -> list[str]:
    words = {
        "maximum_pdu_length": "maximum PDU length",
        "implementation_class_uid": "implementation class",
        "implementation_version_name": "implementation version",
        "operations_invoked": "operations invoked at once",
        "operations_performed": "operations performed at once",
        "roles": "roles",
        "extended_negotiation": "extended negotiation",
        "user_identity": "user identity",
    }

    def say(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        return ", ".join(value) or "none" if isinstance(value, list) else str(value)

    rows = [("", "proposed", "answered")]
    rows += [(text, say(sides["proposed"][key]), say(sides["answered"][key])) for key, text in words.items()]
    return table(rows, "  ")


async def _negotiate(connection: Connection, reactor: Any, output: Output, proposal: Proposal) -> int:
    ae = connection.make_ae(reactor)
    output.log_associations(ae)
    rows: list[dict[str, Any]] = []
    sides: dict[str, dict[str, Any]] | None = None
    cause: Cause | None = None
    established = 0
    try:
        contexts = await proposal.contexts(ae, ("verification", "storage"))
        for part in split_contexts(contexts):
            probe = AssociationProbe(connection, ae, part)
            await probe.run()
            if probe.association is not None and probe.association.was_established:
                established += 1
                rows += describe_contexts(probe.association)
                sides = sides or describe_sides(probe.association)
            if probe.error is not None:
                cause = cause or cause_of(probe.error, connection)
                if probe.association is None or not probe.association.was_established:
                    break
            elif probe.association is not None:
                try:
                    await probe.association.release()
                except AssociationError as error:
                    output.note(f"the association could not be released: {error}")
    except ValueError as error:
        output.error(str(error))
        return FAILURE
    finally:
        await ae.shutdown()
    accepted = sum(row["accepted"] for row in rows)
    status = NO_ASSOCIATION if not established else SUCCESS if accepted == len(contexts) else FAILURE
    _print_result(connection, output, contexts, rows, sides, cause if not accepted else None, status)
    return status


def _print_result(
    connection: Connection,
    output: Output,
    contexts: list[PresentationContext],
    rows: list[dict[str, Any]],
    sides: dict[str, dict[str, Any]] | None,
    cause: Cause | None,
    status: int,
) -> None:
    accepted = sum(row["accepted"] for row in rows)
    if sides is not None:
        output.result(f"{connection.calling} and {connection.peer}", *_side_lines(sides))
        output.result(f"{accepted} of {plural(len(contexts), 'presentation context')} accepted", *context_lines(rows))
    else:
        output.result(f"{plural(len(contexts), 'presentation context')} would be proposed by {connection.calling}")
        output.result(
            *table(
                [
                    (context.abstract_syntax and context.abstract_syntax.name, _syntaxes(context))
                    for context in contexts
                ],
                "  ",
            )
        )
    if cause is not None:
        output.error(str(cause))
    output.document(
        {
            "command": "dump-association",
            "peer": str(connection.peer),
            "exit_status": status,
            "calling": connection.calling,
            "called": connection.peer.title,
            "sides": sides,
            "contexts": rows,
            "proposed": len(contexts),
            "accepted": accepted,
            "cause": cause and cause.document(),
        }
    )


def _syntaxes(context: PresentationContext) -> str:
    uids = context.transfer_syntax
    return syntaxes_in_words(uids, [uid.name for uid in uids])


class DumpAssociation:
    """
    One run of the subcommand.

    :param proposal: the presentation contexts to propose.
    """

    def __init__(self, connection: Connection, output: Output, proposal: Proposal) -> None:
        self._connection = connection
        self._output = output
        self._proposal = proposal

    async def main(self, reactor: Any, interrupts: Interrupts) -> int:
        """Run it and return the exit status."""
        return await _negotiate(self._connection, reactor, self._output, self._proposal)
