"""
``dicomtwist diagnose``: why does it not work?
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IResolutionReceiver
from zope.interface import implementer

from dicomtwist import AE, AssociationError, AssociationTimeout, NoPresentationContext, NotEstablished
from dicomtwist.sop_class import Verification
from dicomtwist.tls.errors import last_reason
from dicomtwist.tools.connection import Connection
from dicomtwist.tools.display.console import Output, plural, table
from dicomtwist.tools.explain import Cause, cause_of, not_dicom, peer_is_plain, peer_is_secure
from dicomtwist.tools.interrupts import ALL_WELL, NO_ASSOCIATION, SOME_FAILED, Interrupts
from dicomtwist.tools.operations.dump import Proposal, context_lines
from dicomtwist.tools.operations.echo import verification
from dicomtwist.tools.probe import Attempt, Step, describe_contexts, describe_sides
from dicomtwist.ul.items import MAX_PRESENTATION_CONTEXTS

#: How long a second connection, which finds out what a peer speaks, waits for an answer, in seconds.
PROBE_TIMEOUT = 5.0

#: How other services greet.
_BANNERS = {b"HTTP/": "HTTP", b"<": "HTTP", b"SSH-": "SSH", b"220": "FTP or SMTP", b"* OK": "IMAP", b"+OK": "POP3"}


@dataclass
class Diagnosis:
    """
    What was found.

    :ivar steps: what was done.
    :ivar contexts: what was proposed and answered.
    :ivar sides: what the two sides told of themselves.
    :ivar cause: what is wrong, ``None`` where nothing is.
    """

    steps: list[Step] = field(default_factory=list)
    contexts: list[dict[str, Any]] = field(default_factory=list)
    sides: dict[str, dict[str, Any]] | None = None
    cause: Cause | None = None
    established: bool = False

    @property
    def exit_status(self) -> int:
        """The exit status that it means."""
        if self.cause is None:
            return ALL_WELL
        return SOME_FAILED if self.established else NO_ASSOCIATION


@implementer(IResolutionReceiver)
class _Addresses:
    """Collects the addresses of a host name."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.complete: Deferred[list[str]] = Deferred()

    def resolutionBegan(self, resolutionInProgress: Any) -> None:
        """It is being looked up."""

    def addressResolved(self, address: Any) -> None:
        """One more."""
        if address.host not in self.found:
            self.found.append(address.host)

    def resolutionComplete(self) -> None:
        """No more."""
        self.complete.callback(self.found)


async def _resolve(connection: Connection, reactor: Any, diagnosis: Diagnosis) -> bool:
    """Look a host name up, as a step of its own; return whether there is a way on."""
    if not connection.peer.is_name:
        return True
    since = reactor.seconds()
    addresses = _Addresses()
    reactor.nameResolver.resolveHostName(addresses, connection.peer.host, connection.peer.port)
    found = await addresses.complete
    detail = ", ".join(found) or "not known"
    diagnosis.steps.append(Step("look up name", reactor.seconds() - since, bool(found), detail))
    if not found:
        diagnosis.cause = Cause(
            "unknown-host",
            f"there is no host {connection.peer.host}",
            "check its name, or give its IP address",
        )
    return bool(found)


# --- what does the peer speak?


async def _probe(connection: Connection, reactor: Any) -> Attempt:
    """Ask once more over *connection*, with less patience."""
    settings = dict(connection.settings)
    for name in ("connection_timeout", "acse_timeout"):
        settings[name] = min(settings.get(name) or PROBE_TIMEOUT, PROBE_TIMEOUT)
    connection = replace(connection, settings=settings, identity=None)
    ae = connection.make_ae(reactor)
    try:
        attempt = Attempt(connection, ae, [verification()])
        await attempt.make()
        if attempt.established and attempt.association is not None:
            try:
                await attempt.association.release()
            except AssociationError:
                pass  # it has answered, and that is all that was asked
    finally:
        await ae.shutdown()
    return attempt


async def _speaks_tls(connection: Connection, reactor: Any) -> bool:
    # Nothing is sent over it but a request for an association, so there is nobody to be trusted.
    context = SSL.Context(SSL.TLS_METHOD)
    attempt = await _probe(replace(connection, tls_args=(context, None)), reactor)
    if attempt.asked:
        return True
    return isinstance(attempt.error, SSL.Error) and "alert" in last_reason(attempt.error).casefold()


async def _speaks_plain(connection: Connection, reactor: Any) -> bool:
    plain = replace(connection, tls_args=None)
    if connection.peer.secure:
        plain.endpoint = None
        plain.peer = replace(connection.peer, description="")
    attempt = await _probe(plain, reactor)
    return attempt.answered


def _banner(data: bytes) -> str | None:
    """Return what other service greets with *data*."""
    return next((name for start, name in _BANNERS.items() if data.startswith(start)), None)


async def _find_cause(attempt: Attempt, reactor: Any) -> Cause:
    """Return why *attempt* came to nothing; where that can mean two things, the peer is asked again."""
    connection, error = attempt.connection, attempt.error
    assert error is not None
    cause = cause_of(error, connection)
    service = _banner(attempt.first_bytes)
    if service is not None:
        return not_dicom(service)
    if not connection.secure:
        if attempt.first_bytes[:2] in (b"\x15\x03", b"\x16\x03"):
            return peer_is_secure()
        if cause.code in ("closed", "aborted", "silent") and await _speaks_tls(connection, reactor):
            return peer_is_secure()
    elif not attempt.asked and cause.code in ("peer-is-plain", "tls", "closed", "silent", "aborted"):
        if connection.peer.host and await _speaks_plain(connection, reactor):
            return peer_is_plain(connection)
        if isinstance(error, AssociationTimeout):
            return Cause("silent", cause.what, cause.advice)
    return cause


# --- the diagnosis


async def _echo(attempt: Attempt, diagnosis: Diagnosis) -> None:
    association = attempt.association
    assert association is not None
    if any(context.abstract_syntax == Verification for context in association.accepted_contexts):
        try:
            status = await association.send_c_echo()
            attempt.took("echo", str(status), ok=status.is_success)
            if not status.is_success:
                diagnosis.cause = Cause(
                    "echo", f"the peer answered C-ECHO with {status}", "the log of the peer says why"
                )
        except (AssociationError, NotEstablished, NoPresentationContext) as error:
            attempt.took("echo", str(error), ok=False)
            diagnosis.cause = Cause(
                "echo", f"the association did not last: {error}", "the log of the peer says why, if it is its doing"
            )
            return
    try:
        await association.release()
        attempt.took("release")
    except AssociationError as error:
        attempt.took("release", str(error), ok=False)
        diagnosis.cause = diagnosis.cause or Cause(
            "release", f"the association was not released: {error}", "harmless where all else went well"
        )


def _context_cause(diagnosis: Diagnosis) -> Cause | None:
    rejected = [row for row in diagnosis.contexts if not row["accepted"]]
    if not rejected:
        return None
    names = ", ".join(dict.fromkeys(row["name"] for row in rejected[:5])) + (" ..." if len(rejected) > 5 else "")
    return Cause(
        "context",
        f"the peer does not accept {plural(len(rejected), 'presentation context')} of {len(diagnosis.contexts)}: {names}",
        "have them configured at the peer, or send them in another transfer syntax",
    )


async def examine(connection: Connection, ae: AE, reactor: Any, proposal: Proposal) -> Diagnosis:
    """
    Go the way to a peer step by step, and return what was found.

    :raises ValueError: there is nothing to propose, or too much.
    """
    diagnosis = Diagnosis()
    contexts = await proposal.contexts(ae, ())
    if all(context.abstract_syntax != Verification for context in contexts):
        contexts.insert(0, verification())
    if len(contexts) > MAX_PRESENTATION_CONTEXTS:
        raise ValueError(
            f"these are {len(contexts)} presentation contexts, an association has {MAX_PRESENTATION_CONTEXTS} at the most:"
            " dump-association asks for several"
        )
    if not await _resolve(connection, reactor, diagnosis):
        return diagnosis
    attempt = Attempt(connection, ae, contexts)
    await attempt.make()
    if attempt.association is not None and attempt.association.was_established:
        diagnosis.contexts = describe_contexts(attempt.association)
        diagnosis.sides = describe_sides(attempt.association)
    if attempt.established:
        diagnosis.established = True
        await _echo(attempt, diagnosis)
        diagnosis.cause = diagnosis.cause or _context_cause(diagnosis)
    else:
        diagnosis.cause = await _find_cause(attempt, reactor)
    diagnosis.steps += attempt.steps
    return diagnosis


def _tell(connection: Connection, output: Output, diagnosis: Diagnosis) -> None:
    over = " over TLS" if connection.secure else ""
    output.result(f"{connection.calling} to {connection.peer}{over}")
    rows = [
        ("ok" if step.ok else "FAILED", step.name, f"{1000 * step.seconds:.1f} ms", step.detail)
        for step in diagnosis.steps
    ]
    output.result(*table(rows, "  "))
    if diagnosis.contexts:
        output.result("presentation contexts", *context_lines(diagnosis.contexts))
    if diagnosis.cause is None:
        output.result("It works.")
    else:
        output.result(f"Wrong: {diagnosis.cause.what}", f"To do: {diagnosis.cause.advice}")
        if output.as_json or output.verbosity < 0:
            output.error(str(diagnosis.cause))
    output.document(
        {
            "command": "diagnose",
            "peer": str(connection.peer),
            "exit_status": diagnosis.exit_status,
            "tls": connection.secure,
            "steps": [step.document() for step in diagnosis.steps],
            "sides": diagnosis.sides,
            "contexts": diagnosis.contexts,
            "cause": diagnosis.cause and diagnosis.cause.document(),
        }
    )


class Diagnose:
    """
    One run of the subcommand.

    :param proposal: the presentation contexts to propose besides Verification.
    """

    def __init__(self, connection: Connection, output: Output, proposal: Proposal) -> None:
        self._connection = connection
        self._output = output
        self._proposal = proposal

    async def main(self, reactor: Any, interrupts: Interrupts) -> int:
        """Run it and return the exit status."""
        connection, output = self._connection, self._output
        ae = connection.make_ae(reactor)
        output.follow(ae)
        try:
            diagnosis = await examine(connection, ae, reactor, self._proposal)
        except ValueError as error:
            output.error(str(error))
            return SOME_FAILED
        finally:
            await ae.shutdown()
        _tell(connection, output, diagnosis)
        return diagnosis.exit_status
