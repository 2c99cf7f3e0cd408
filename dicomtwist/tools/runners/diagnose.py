"""
``dicomtwist diagnose``: connect to a peer step by step and find the cause of a failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IResolutionReceiver
from zope.interface import implementer

from dicomtwist import (
    AE,
    AssociationError,
    AssociationTimeout,
    DataSetError,
    NoPresentationContext,
    NotEstablished,
)
from dicomtwist.retrieval.contexts import CONVERTIBLE
from dicomtwist.sop_class import Verification
from dicomtwist.tls.errors import last_reason
from dicomtwist.tools.connection import Connection
from dicomtwist.tools.display.console import Output, plural, table
from dicomtwist.tools.explain import Cause, cause_of, not_dicom, peer_is_plain, peer_is_secure
from dicomtwist.tools.files.file_scanner import ScannedInstance, find_examples
from dicomtwist.tools.interrupts import FAILURE, NO_ASSOCIATION, SUCCESS, Interrupts
from dicomtwist.tools.probe import AssociationProbe, Step, describe_contexts, describe_sides
from dicomtwist.tools.runners.dump import Proposal, context_lines
from dicomtwist.tools.runners.echo import verification
from dicomtwist.ul.items import MAX_PRESENTATION_CONTEXTS

#: The timeout of the second connection, which finds out the protocol of a peer, in seconds.
PROBE_TIMEOUT = 5.0

#: The first bytes of other services.
_BANNERS = {b"HTTP/": "HTTP", b"<": "HTTP", b"SSH-": "SSH", b"220": "FTP or SMTP", b"* OK": "IMAP", b"+OK": "POP3"}


@dataclass
class Diagnosis:
    """
    The result of a diagnosis.

    :ivar steps: the steps that were taken.
    :ivar contexts: the presentation contexts, each with the proposal and the answer.
    :ivar sides: the values that each side negotiated.
    :ivar cause: the problem, ``None`` if there is none.
    :ivar established: whether there was an association.
    :ivar stored: the files that were sent, each with the answer of the peer; ``None`` if none were to be sent.
    """

    steps: list[Step] = field(default_factory=list)
    contexts: list[dict[str, Any]] = field(default_factory=list)
    sides: dict[str, dict[str, Any]] | None = None
    cause: Cause | None = None
    established: bool = False
    stored: list[dict[str, Any]] | None = None

    @property
    def exit_status(self) -> int:
        """The exit status for the result."""
        if self.cause is None:
            return SUCCESS
        return FAILURE if self.established else NO_ASSOCIATION


@implementer(IResolutionReceiver)
class _Addresses:
    """Collects the addresses of a host name."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.complete: Deferred[list[str]] = Deferred()

    def resolutionBegan(self, resolutionInProgress: Any) -> None:
        """Called by the resolver at the beginning."""

    def addressResolved(self, address: Any) -> None:
        """Called by the resolver for each address."""
        if address.host not in self.found:
            self.found.append(address.host)

    def resolutionComplete(self) -> None:
        """Called by the resolver at the end."""
        self.complete.callback(self.found)


async def _resolve(connection: Connection, reactor: Any, diagnosis: Diagnosis) -> bool:
    """Look up the host name as a step of its own; return whether it has an address."""
    if not connection.peer.is_name:
        return True
    since = reactor.seconds()
    addresses = _Addresses()
    reactor.nameResolver.resolveHostName(addresses, connection.peer.host, connection.peer.port)
    found = await addresses.complete
    detail = ", ".join(found) or "unknown host"
    diagnosis.steps.append(Step("look up name", reactor.seconds() - since, bool(found), detail))
    if not found:
        diagnosis.cause = Cause(
            "unknown-host",
            f"there is no host {connection.peer.host}",
            "check the name, or give the IP address",
        )
    return bool(found)


# --- the protocol of the peer


async def _probe_again(connection: Connection, reactor: Any) -> AssociationProbe:
    """Request another association over *connection*, with shorter timeouts."""
    settings = dict(connection.settings)
    for name in ("connection_timeout", "acse_timeout"):
        settings[name] = min(settings.get(name) or PROBE_TIMEOUT, PROBE_TIMEOUT)
    connection = replace(connection, settings=settings, identity=None)
    ae = connection.make_ae(reactor)
    try:
        probe = AssociationProbe(connection, ae, [verification()])
        await probe.run()
        if probe.established and probe.association is not None:
            try:
                await probe.association.release()
            except AssociationError:
                pass  # the answer of the peer is all that was needed
    finally:
        await ae.shutdown()
    return probe


async def _speaks_tls(connection: Connection, reactor: Any) -> bool:
    # Only an association request is sent, without a user identity, so the certificate is not checked.
    context = SSL.Context(SSL.TLS_METHOD)
    probe = await _probe_again(replace(connection, tls_args=(context, None)), reactor)
    if probe.request_sent:
        return True
    return isinstance(probe.error, SSL.Error) and "alert" in last_reason(probe.error).casefold()


async def _speaks_plain(connection: Connection, reactor: Any) -> bool:
    plain = replace(connection, tls_args=None)
    if connection.peer.secure:
        plain.endpoint = None
        plain.peer = replace(connection.peer, description="")
    probe = await _probe_again(plain, reactor)
    return probe.pdu_received


def _banner(data: bytes) -> str | None:
    """Return the name of the service whose first bytes are *data*, ``None`` if it is unknown."""
    return next((name for start, name in _BANNERS.items() if data.startswith(start)), None)


async def _find_cause(probe: AssociationProbe, reactor: Any) -> Cause:
    """Return why *probe* failed. If the failure is ambiguous, a second connection decides."""
    connection, error = probe.connection, probe.error
    assert error is not None
    cause = cause_of(error, connection)
    service = _banner(probe.first_bytes)
    if service is not None:
        return not_dicom(service)
    if not connection.secure:
        if probe.first_bytes[:2] in (b"\x15\x03", b"\x16\x03"):
            return peer_is_secure()
        if cause.code in ("closed", "aborted", "silent") and await _speaks_tls(connection, reactor):
            return peer_is_secure()
    elif not probe.request_sent and cause.code in ("peer-is-plain", "tls", "closed", "silent", "aborted"):
        if connection.peer.host and await _speaks_plain(connection, reactor):
            return peer_is_plain(connection)
        if isinstance(error, AssociationTimeout):
            return Cause("silent", cause.what, cause.advice)
    return cause


# --- the diagnosis


async def _echo(probe: AssociationProbe, diagnosis: Diagnosis) -> bool:
    """Send C-ECHO if its presentation context was accepted; return whether the association goes on."""
    association = probe.association
    assert association is not None
    if any(context.abstract_syntax == Verification for context in association.accepted_contexts):
        try:
            status = await association.send_c_echo()
            probe.add_step("echo", str(status), ok=status.is_success)
            if not status.is_success:
                diagnosis.cause = Cause("echo", f"the peer answered C-ECHO with {status}", "see the log of the peer")
        except (AssociationError, NotEstablished, NoPresentationContext) as error:
            probe.add_step("echo", str(error), ok=False)
            diagnosis.cause = Cause("echo", f"the association ended during C-ECHO: {error}", "see the log of the peer")
            return False
    return True


async def _store(probe: AssociationProbe, diagnosis: Diagnosis, instances: Sequence[ScannedInstance]) -> bool:
    """Send *instances* one after another; return whether the association goes on."""
    association = probe.association
    assert association is not None
    diagnosis.stored = []
    for instance in instances:
        try:
            status = await association.send_c_store(instance.path)
        except (AssociationError, NotEstablished) as error:
            answer, ok, goes_on = f"the association ended: {error}", False, False
            advice = "see the log of the peer; it may not cope with this file"
        except (NoPresentationContext, DataSetError, OSError) as error:
            # The file is the mistake, or the negotiation, whose contexts are in the result.
            answer, ok, goes_on = str(error), False, True
            advice = "configure the presentation context at the peer, or check the file with another program"
        else:
            answer, ok, goes_on = str(status), status.is_success or status.is_warning, True
            advice = "see the log of the peer for what it does not like about this file"
        probe.add_step("store", f"{answer}  {instance.path}", ok=ok)
        diagnosis.stored.append({"path": instance.path, "ok": ok, "answer": answer})
        if not ok and diagnosis.cause is None:
            diagnosis.cause = Cause("store", f"the peer does not store {instance.path}: {answer}", advice)
        if not goes_on:
            return False
    return True


async def _release(probe: AssociationProbe, diagnosis: Diagnosis) -> None:
    association = probe.association
    assert association is not None
    try:
        await association.release()
        probe.add_step("release")
    except AssociationError as error:
        probe.add_step("release", str(error), ok=False)
        diagnosis.cause = diagnosis.cause or Cause(
            "release", f"the association was not released: {error}", "nothing, if everything else works"
        )


def _context_cause(diagnosis: Diagnosis) -> Cause | None:
    """Return a cause if the peer does not accept what was proposed."""
    accepted = {row["sop_class"] for row in diagnosis.contexts if row["accepted"] and _is_convertible(row)}
    # An uncompressed file is sent in any uncompressed transfer syntax that the peer accepts.
    rejected = [
        row
        for row in diagnosis.contexts
        if not row["accepted"] and not (_is_convertible(row) and row["sop_class"] in accepted)
    ]
    if not rejected:
        return None
    names = ", ".join(dict.fromkeys(row["name"] for row in rejected[:5])) + (" ..." if len(rejected) > 5 else "")
    return Cause(
        "context",
        f"the peer does not accept {plural(len(rejected), 'presentation context')} of {len(diagnosis.contexts)}: {names}",
        "configure them at the peer, or send the instances in another transfer syntax",
    )


def _is_convertible(row: dict[str, Any]) -> bool:
    return CONVERTIBLE.issuperset(row["proposed"])


async def examine(
    connection: Connection, ae: AE, reactor: Any, proposal: Proposal, *, store: bool = False
) -> Diagnosis:
    """
    Connect to a peer step by step and return the diagnosis.

    :param store: send the first instance of each SOP Class and transfer syntax in the files of *proposal*.
    :raises ValueError: there is nothing to propose, or too much for one association.
    """
    diagnosis = Diagnosis()
    contexts = await proposal.contexts(ae, ())
    if all(context.abstract_syntax != Verification for context in contexts):
        contexts.insert(0, verification())
    if len(contexts) > MAX_PRESENTATION_CONTEXTS:
        raise ValueError(
            f"these are {len(contexts)} presentation contexts, and an association has room for {MAX_PRESENTATION_CONTEXTS}:"
            " use dump-association, which requests several associations"
        )
    instances: list[ScannedInstance] = []
    if store:
        instances = (await proposal.scan(ae, find_examples, MAX_PRESENTATION_CONTEXTS)).instances
    if not await _resolve(connection, reactor, diagnosis):
        return diagnosis
    probe = AssociationProbe(connection, ae, contexts)
    await probe.run()
    if probe.association is not None and probe.association.was_established:
        diagnosis.contexts = describe_contexts(probe.association)
        diagnosis.sides = describe_sides(probe.association)
    if probe.established:
        diagnosis.established = True
        goes_on = await _echo(probe, diagnosis)
        if goes_on and store:
            goes_on = await _store(probe, diagnosis, instances)
        if goes_on:
            await _release(probe, diagnosis)
        diagnosis.cause = _context_cause(diagnosis) or diagnosis.cause
    else:
        diagnosis.cause = await _find_cause(probe, reactor)
    diagnosis.steps += probe.steps
    return diagnosis


def _praise(diagnosis: Diagnosis, has_files: bool) -> str:
    if diagnosis.stored:
        return f"It works: {plural(len(diagnosis.stored), 'file')} stored, one for each SOP Class and transfer syntax."
    if has_files:
        return (
            "It works: the peer accepts the presentation contexts of the files. Nothing was sent; --store sends some."
        )
    return "It works."


def _print_result(connection: Connection, output: Output, diagnosis: Diagnosis, *, has_files: bool) -> None:
    over = " over TLS" if connection.secure else ""
    output.sentences(f"{connection.calling} to {connection.peer}{over}")
    rows = [
        ("ok" if step.ok else "FAILED", step.name, f"{1000 * step.seconds:.1f} ms", step.detail)
        for step in diagnosis.steps
    ]
    output.result(*table(rows, "  "))
    if diagnosis.contexts:
        output.result("presentation contexts", *context_lines(diagnosis.contexts))
    if diagnosis.cause is None:
        output.sentences(_praise(diagnosis, has_files))
    else:
        output.sentences(f"Wrong: {diagnosis.cause.what}", f"To do: {diagnosis.cause.advice}")
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
            "stored": diagnosis.stored,
            "cause": diagnosis.cause and diagnosis.cause.document(),
        }
    )


class Diagnose:
    """
    One run of the subcommand.

    :param proposal: the presentation contexts to propose besides Verification.
    :param store: whether to send some of the files of *proposal*.
    """

    def __init__(self, connection: Connection, output: Output, proposal: Proposal, *, store: bool = False) -> None:
        self._connection = connection
        self._output = output
        self._proposal = proposal
        self._store = store

    async def main(self, reactor: Any, interrupts: Interrupts) -> int:
        """Run it and return the exit status."""
        connection, output = self._connection, self._output
        ae = connection.make_ae(reactor)
        output.log_associations(ae)
        try:
            diagnosis = await examine(connection, ae, reactor, self._proposal, store=self._store)
        except ValueError as error:
            output.error(str(error))
            return FAILURE
        finally:
            await ae.shutdown()
        _print_result(connection, output, diagnosis, has_files=bool(self._proposal.paths))
        return diagnosis.exit_status
