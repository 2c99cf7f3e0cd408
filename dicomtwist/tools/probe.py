"""
A probe of a peer: one association request, with the time of each step and the result of the negotiation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dicomtwist import AE, Association, PresentationContext, evt
from dicomtwist.tls import describe_tls_error
from dicomtwist.tools.connection import Connection
from dicomtwist.tools.display.console import plural
from dicomtwist.tools.explain import NO_ASSOCIATION_ERRORS

__all__ = ["AssociationProbe", "Step", "describe_contexts", "describe_sides"]

#: How many bytes from the peer are kept, to recognise its protocol.
FIRST_BYTES = 16


@dataclass(slots=True)
class Step:
    """
    One step of a probe.

    :ivar seconds: its duration.
    :ivar ok: whether it succeeded.
    :ivar detail: its result, in words.
    """

    name: str
    seconds: float
    ok: bool
    detail: str = ""

    def document(self) -> dict[str, Any]:
        """Return the step as a part of the JSON document."""
        return {"step": self.name, "ok": self.ok, "seconds": round(self.seconds, 6), "detail": self.detail}


@dataclass
class AssociationProbe:
    """
    A request for an association, with everything that is learnt from it.

    :ivar steps: the steps that were taken, in order.
    :ivar association: the association since its request was sent, even if it was never established.
    :ivar established: whether the association can be used.
    :ivar error: why there is no association.
    :ivar first_bytes: the first bytes that the peer sent.
    :ivar request_sent: whether our request was sent, which is after the TLS handshake.
    :ivar pdu_received: whether the peer sent a PDU.
    """

    connection: Connection
    ae: AE
    contexts: Sequence[PresentationContext]
    steps: list[Step] = field(default_factory=list)
    association: Association | None = None
    established: bool = False
    error: BaseException | None = None
    first_bytes: bytes = b""
    request_sent: bool = False
    pdu_received: bool = False
    _since: float = 0.0
    _step: str = "connect"

    async def run(self) -> None:
        """Request the association; the attributes hold the result."""
        self._since = self.ae.reactor.seconds()
        try:
            self.association = await self.connection.associate(self.ae, self.contexts, self._handlers())
            self.established = True
        except NO_ASSOCIATION_ERRORS as error:
            self.error = error
            if not self.steps or self.steps[-1].ok:
                self.add_step(self._step, describe_tls_error(error) or str(error) or type(error).__name__, ok=False)

    def add_step(self, name: str, detail: str = "", *, ok: bool = True) -> None:
        """Record the end of a step that began at the end of the previous one."""
        now = self.ae.reactor.seconds()
        self.steps.append(Step(name, now - self._since, ok, detail))
        self._since = now

    def _handlers(self) -> list[evt.HandlerTuple]:
        return [
            (evt.EVT_CONN_OPEN, self._connected),
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_DATA_RECV, self._received),
            (evt.EVT_PDU_RECV, self._pdu_received),
            (evt.EVT_ACCEPTED, self._accepted),
        ]

    def _connected(self, event: Any) -> None:
        host, port = event.address
        self.add_step("connect", f"{host} port {port}" if port else str(host))
        self._step = "TLS handshake" if self.connection.secure else "association"

    def _requested(self, event: Any) -> None:
        self.association, self.request_sent = event.assoc, True
        if self.connection.secure:
            self.add_step("TLS handshake", _tls_detail(event.assoc.protocol.transport))
        self._step = "association"

    def _received(self, event: Any) -> None:
        if len(self.first_bytes) < FIRST_BYTES:
            self.first_bytes = (self.first_bytes + event.data)[:FIRST_BYTES]

    def _pdu_received(self, event: Any) -> None:
        self.pdu_received = True

    def _accepted(self, event: Any) -> None:
        contexts = event.pdu.presentation_contexts
        accepted = sum(context.result == 0 for context in contexts)
        detail = f"{accepted} of {plural(len(self.contexts), 'presentation context')} accepted"
        self.add_step("association", detail, ok=accepted > 0)


def _tls_detail(transport: Any) -> str:
    handle = transport.getHandle()
    parts = [handle.get_protocol_version_name(), handle.get_cipher_name() or ""]
    certificate = transport.getPeerCertificate()
    if certificate is not None:
        parts.append(f"certificate valid until {certificate.to_cryptography().not_valid_after_utc:%Y-%m-%d}")
    return ", ".join(part for part in parts if part)


def describe_contexts(association: Association) -> list[dict[str, Any]]:
    """Return the presentation contexts of *association*, each with the proposal and the answer."""
    answers = {
        context.context_id: context for context in (*association.accepted_contexts, *association.rejected_contexts)
    }
    rows = []
    for proposed in association.requestor.presentation_contexts:
        answer = answers.get(proposed.context_id)
        accepted = answer is not None and answer.result == 0
        rows.append(
            {
                "id": proposed.context_id,
                "sop_class": str(proposed.abstract_syntax),
                "name": proposed.abstract_syntax.name if proposed.abstract_syntax is not None else "",
                "proposed": [str(uid) for uid in proposed.transfer_syntax],
                "proposed_names": [uid.name for uid in proposed.transfer_syntax],
                "accepted": accepted,
                "answer": answer.status if answer is not None else "no answer",
                "transfer_syntax": str(answer.transfer_syntax[0]) if accepted and answer is not None else None,
                "transfer_syntax_name": answer.transfer_syntax[0].name if accepted and answer is not None else None,
            }
        )
    return rows


def describe_sides(association: Association) -> dict[str, dict[str, Any]]:
    """Return what both sides negotiated; of the user identity only whether there was one."""
    sides = {}
    for name, side in (("proposed", association.requestor), ("answered", association.acceptor)):
        invoked, performed = side.asynchronous_operations
        sides[name] = {
            "maximum_pdu_length": side.maximum_length,
            "implementation_class_uid": side.implementation_class_uid,
            "implementation_version_name": side.implementation_version_name,
            "operations_invoked": invoked,
            "operations_performed": performed,
            "roles": [f"{uid}: SCU {role.scu_role}, SCP {role.scp_role}" for uid, role in side.role_selection.items()],
            "extended_negotiation": sorted(side.sop_class_extended),
            "user_identity": side.user_identity is not None,
        }
    return sides
