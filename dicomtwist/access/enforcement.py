"""
Enforcement of access rules: associations and operations that no rule allows are refused.

An association is checked when it is requested, and again when its user is known. Each operation is checked when it is
requested, by its DIMSE service and SOP Class. So a rule that was removed no longer applies to established associations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final
from weakref import WeakKeyDictionary

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import ISSLTransport
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist import evt
from dicomtwist.access.certificates import Certificate
from dicomtwist.access.passcode_checks import PasscodeChecks, TooManyChecks
from dicomtwist.access.policy import CheckedRequestor, Policy
from dicomtwist.access.refusals import Refusal, Refusals
from dicomtwist.access.rules import (
    EVERYTHING,
    IDENTITY_TYPES,
    UNIX,
    Identity,
    Operation,
    Requestor,
    Rules,
)
from dicomtwist.ae.server import Server
from dicomtwist.association.acceptor import AcceptorAssociation
from dicomtwist.dimse.messages import RESPONSES, Message
from dicomtwist.dimse.status import NOT_AUTHORISED, Status
from dicomtwist.errors import ExecutorFull, Refused
from dicomtwist.interfaces import AssociationInterface
from dicomtwist.runtime.executors import Executor
from dicomtwist.sop_class import (
    ModalityPerformedProcedureStep,
    ModalityPerformedProcedureStepNotification,
    ModalityPerformedProcedureStepRetrieve,
    ModalityWorklistInformationFind,
    StorageCommitmentPushModel,
)
from dicomtwist.trace import is_traced, remark
from dicomtwist.ul.items import UserIdentity

__all__ = ["Access", "Policy"]

#: The operation of each event; for DIMSE-N it depends on the SOP Class.
_OPERATIONS: Final = {
    evt.EVT_C_ECHO: Operation.ECHO,
    evt.EVT_C_STORE: Operation.STORE,
    evt.EVT_C_FIND: Operation.FIND,
    evt.EVT_C_GET: Operation.GET,
    evt.EVT_C_MOVE: Operation.MOVE,
}
_BY_CLASS: Final = {
    str(ModalityWorklistInformationFind): Operation.WORKLIST,
    str(ModalityPerformedProcedureStep): Operation.MPPS,
    str(ModalityPerformedProcedureStepRetrieve): Operation.MPPS,
    str(ModalityPerformedProcedureStepNotification): Operation.MPPS,
    str(StorageCommitmentPushModel): Operation.COMMIT,
}
_NORMALISED: Final = frozenset(
    (
        *(evt.EVT_N_ACTION, evt.EVT_N_CREATE, evt.EVT_N_DELETE),
        *(evt.EVT_N_EVENT_REPORT, evt.EVT_N_GET, evt.EVT_N_SET),
    )
)
#: The events whose handlers yield many answers.
_ANSWERING: Final = (evt.EVT_C_FIND, evt.EVT_C_GET, evt.EVT_C_MOVE)


class Access:
    """
    The access control of a server.

    :param policy: the initial policy.
    :param executor: the executor that checks passcodes; the caller holds it while this object is used.

    :ivar policy: the policy that applies.
    :ivar checks: the checks of passcodes, for every protocol.
    :ivar refusals: the refusals, by protocol and by what was refused: ``"association"``, ``"user"`` or ``"operation"``.
    """

    log = Logger()

    def __init__(self, policy: Policy, executor: Executor) -> None:
        self.policy = policy
        self._checked: WeakKeyDictionary[AssociationInterface, CheckedRequestor] = WeakKeyDictionary()
        self.checks = PasscodeChecks(executor)
        self.refusals = Refusals()
        self._verifying: dict[AssociationInterface, Deferred[Any]] = {}

    def guarded(self, handlers: Iterable[evt.HandlerTuple]) -> list[evt.HandlerTuple]:
        """
        Return *handlers* with a check of the rules before each handler of a DIMSE service, and with handlers that check the
        association and its user.

        A refused operation is answered with 0x0124, not authorised (PS3.7 C.5.12).
        """
        found: list[evt.HandlerTuple] = [
            (evt.EVT_REQUESTED, self.handle_requested),
            (evt.EVT_CONN_CLOSE, self.handle_closed),
        ]
        entries = list(handlers)
        if all(entry[0] is not evt.EVT_C_ECHO for entry in entries):
            entries.append((evt.EVT_C_ECHO, lambda event: 0x0000))
        if self.policy.depends_on_user:
            found.append((evt.EVT_USER_ID, self.handle_user))
        for event, handler, *arguments in entries:
            if event in _OPERATIONS or event in _NORMALISED:
                handler = self._guarded(event, handler)
            found.append((event, handler, *arguments))  # type: ignore[arg-type]
        return found

    def change(self, policy: Policy, server: Server | None) -> None:
        """
        Apply *policy* from now on, to established associations as well.

        :param server: the server that listens with the handlers that :meth:`guarded` returned.
        """
        self.policy = policy
        if server is not None:
            change = server.bind if policy.depends_on_user else server.unbind
            change(evt.EVT_USER_ID, self.handle_user)

    # --- associations

    def handle_requested(self, event: evt.Event) -> None:
        """Reject an association on which nothing would be allowed."""
        assoc = event.assoc
        assert isinstance(assoc, AcceptorAssociation)
        policy = self.policy
        requestor = requestor_of(assoc)
        if requestor.certificate is not None:
            remark(assoc, f"the certificate of the peer is {requestor.certificate}")
        if policy.depends_on_user and isinstance(assoc.requestor.user_identity, UserIdentity):
            requestor = replace(requestor, undecided=True)
        rejection = policy.rules.rejection(requestor)
        if rejection is not None:
            self.refusals.add(("dimse", "association"))
            self._report(assoc, "association", rejection.words)
            assoc.reject(rejection.result, rejection.source, rejection.reason, rejection.words)
            return
        self._checked[assoc] = CheckedRequestor(requestor, policy)
        _trace_rules(assoc, requestor, policy.rules)

    def handle_user(self, event: evt.Event) -> Any:
        """
        Decide whether the user is accepted: the passcode must be right, or the type of identity accepted without a check; and
        the rules must allow at least one operation.

        :returns: (the decision, ``None``), or a Deferred with it.
        """
        policy, assoc = self.policy, event.assoc
        kind = IDENTITY_TYPES[event.user_id_type]
        name = event.primary_field.decode("utf-8", "replace") if kind in (Identity.USERNAME, Identity.PASSCODE) else ""
        if kind in policy.unchecked:
            return self._let_in(assoc, kind, name, True)
        if kind is not Identity.PASSCODE or policy.users is None:
            return self._let_in(assoc, kind, name, False)
        address = assoc.requestor.address
        verifying: Deferred[Any] = self.checks.verify(address, policy.users, name, event.secondary_field)
        if not verifying.called:
            self._verifying[assoc] = verifying
        return verifying.addBoth(self._verified, assoc, kind, name)

    def handle_closed(self, event: evt.Event) -> None:
        """Cancel the passcode check of an association whose connection is closed."""
        verifying = self._verifying.get(event.assoc)
        if verifying is not None:
            verifying.cancel()

    def _verified(self, outcome: bool | Failure, assoc: AssociationInterface, kind: Identity, name: str) -> Any:
        self._verifying.pop(assoc, None)
        if not isinstance(outcome, Failure):
            return self._let_in(assoc, kind, name, outcome)
        if outcome.check(ExecutorFull, TooManyChecks):
            assert isinstance(assoc, AcceptorAssociation)
            assoc.reject(2, 3, 1, outcome.getErrorMessage())  # temporary congestion, PS3.8 9.3.4
            return False, None
        return (False, None) if outcome.check(CancelledError) else outcome

    def _let_in(self, assoc: AssociationInterface, kind: Identity, name: str, right: bool) -> tuple[bool, None]:
        why = f"a user identity of type {kind} was not confirmed: {self.policy.why_unconfirmed(kind)}"
        if right:
            policy = self.policy
            requestor = replace(requestor_of(assoc), user=name, identity=kind)
            rejection = policy.rules.rejection(requestor)
            if rejection is None:
                self._checked[assoc] = CheckedRequestor(requestor, policy)
                _trace_rules(assoc, requestor, policy.rules)
                return True, None
            why = rejection.words
        self.refusals.add(("dimse", "user"))
        self._report(assoc, "user", why)
        remark(assoc, why)
        remote = assoc.remote
        self.log.info(
            "{peer!r} at {address}: {why}", peer=remote.ae_title, address=remote.address, why=why, association=assoc
        )
        return False, None

    def requestor_of(self, assoc: AssociationInterface) -> Requestor | None:
        """Return the peer of *assoc* as it was checked, with its user; ``None`` if it was not accepted."""
        checked = self._checked.get(assoc)
        return None if checked is None else checked.requestor

    # --- operations

    def may_replace(self, assoc: AssociationInterface) -> bool:
        """Return whether the peer of *assoc* may replace a stored instance, see :meth:`may`."""
        return self.may(assoc, Operation.REPLACE)

    def may(self, assoc: AssociationInterface, *operations: Operation) -> bool:
        """
        Return whether the peer of *assoc* may request all *operations* now; may be called from any thread.

        For what a handler learns only while it works on a request that is allowed, such as whether an instance replaces
        another one.
        """
        checked = self._checked.get(assoc)
        return checked is not None and checked.may(operations, self.policy)

    def _guarded(self, event_type: evt.EventType, handler: evt.Handler) -> evt.Handler:
        def guard(event: evt.DIMSEEvent, *arguments: Any) -> Any:
            operations = _operations(event_type, event)
            checked = self._checked.get(event.assoc)
            if checked is not None and checked.may(operations, self.policy):
                return handler(event, *arguments)
            return self._refuse(event, checked, operations)

        if getattr(handler, "is_streaming", False):
            evt.streaming(guard)
        if getattr(handler, "is_decoding", False):
            evt.decoding(guard)
        return guard

    def _refuse(self, event: evt.DIMSEEvent, checked: CheckedRequestor | None, operations: Iterable[Operation]) -> Any:
        self.refusals.add(("dimse", "operation"))
        # The peer learns the operation, and only the log the rules.
        what = f"no rule allows {' and '.join(sorted(operations))}"
        if event.event in _ANSWERING:
            why = self._explain_refusal(checked, operations)
            if is_traced(event.assoc):
                remark(event.assoc, f"{what}: {why}")
            self._report(event.assoc, "operation", f"{what}: {why}", event.request.SERVICE)
            raise Refused(NOT_AUTHORISED, what, details=why)
        self._log_refused(event, checked, operations, what)
        return Status(NOT_AUTHORISED, event.request.SERVICE, what)

    def log_refused_replacement(self, event: evt.DIMSEEvent, what: str) -> None:
        """
        Log that the instance of *event* was refused, since no rule allows the peer to replace the stored one.

        :param what: the instance and what is stored, in words.
        """
        self.refusals.add(("dimse", "operation"))
        operations = (Operation.REPLACE,)
        self._log_refused(event, self._checked.get(event.assoc), operations, f"no rule allows replace: {what}")

    def _log_refused(
        self, event: evt.DIMSEEvent, checked: CheckedRequestor | None, operations: Iterable[Operation], what: str
    ) -> None:
        """Log that *operations* were refused, once for each association, however many instances a peer tries to store."""
        why = self._explain_refusal(checked, operations) if is_traced(event.assoc) else ""
        if why:
            remark(event.assoc, f"{what}: {why}")
        if checked is not None and checked.logged.issuperset(operations):
            return
        why = why or self._explain_refusal(checked, operations)
        self._report(event.assoc, "operation", f"{what}: {why}", event.request.SERVICE)
        event.assoc.log_refusal(
            self.log.info,
            "{service} of {peer!r} at {address} refused with 0x{status:04X}: {what}: {why}",
            service=event.request.SERVICE,
            peer=event.assoc.remote.ae_title,
            address=event.assoc.remote.address,
            status=NOT_AUTHORISED,
            what=what,
            why=why,
        )
        if checked is not None:
            checked.logged.update(operations)

    def _report(self, assoc: AssociationInterface, what: str, words: str, request: str = "") -> None:
        remote = assoc.remote
        self.refusals.report(
            Refusal(
                protocol="dimse",
                what=what,
                peer=remote.ae_title,
                address=remote.address,
                request=request,
                words=words,
            )
        )

    def _explain_refusal(self, checked: CheckedRequestor | None, operations: Iterable[Operation]) -> str:
        if checked is None or checked.requestor.undecided:
            return "the association was not checked"
        return self.policy.explain_refusal(checked.requestor, operations)


def _trace_rules(assoc: AssociationInterface, requestor: Requestor, rules: Rules) -> None:
    """Tell the trace of *assoc*, if it has one, which rules match."""
    if is_traced(assoc) and not requestor.undecided:
        for rule in rules.rules:
            if rule.matches(requestor):
                allowed = "everything" if rule.allow == EVERYTHING else ", ".join(sorted(rule.allow)) or "nothing"
                remark(assoc, f"{rule} matches, and allows {allowed}")


def _sop_class_of(request: type[Message]) -> Callable[[Any], str]:
    """Return a function that returns the SOP Class UID of a *request*: it has an Affected or a Requested one."""
    names = {field.name for field in fields(request)}
    return attrgetter("affected_sop_class_uid" if "affected_sop_class_uid" in names else "requested_sop_class_uid")


_SOP_CLASS_OF: Final = {request: _sop_class_of(request) for request in RESPONSES}


def _operations(event_type: evt.EventType, event: evt.DIMSEEvent) -> frozenset[Operation]:
    """Return the requested operations: those of the service with the SOP Class of the request, and with that of its context."""
    request = event.request
    return _operations_on(event_type, event.context.abstract_syntax, _SOP_CLASS_OF[type(request)](request))


@lru_cache(maxsize=1024)
def _operations_on(event: evt.EventType, *uids: str | None) -> frozenset[Operation]:
    return frozenset(_operation(event, str(uid)) for uid in uids if uid)


def _operation(event: evt.EventType, uid: str) -> Operation:
    if event in _NORMALISED:
        found = _BY_CLASS.get(uid, Operation.OTHER)
        return found if found in (Operation.MPPS, Operation.COMMIT) else Operation.OTHER
    if event is evt.EVT_C_FIND and _BY_CLASS.get(uid) is Operation.WORKLIST:
        return Operation.WORKLIST
    return _OPERATIONS[event]


def requestor_of(assoc: AssociationInterface) -> Requestor:
    """Return the peer of *assoc* as its A-ASSOCIATE-RQ and its connection show it, without a user."""
    transport: Any = assoc.protocol.transport
    address = assoc.requestor.address
    if isinstance(transport.getPeer(), UNIXAddress):
        address = UNIX
    certificate = None
    if ISSLTransport.providedBy(transport):
        shown: Any = transport.getPeerCertificate()
        certificate = None if shown is None else Certificate.of(shown.to_cryptography())
    return Requestor(
        *(assoc.requestor.called_ae_title, assoc.requestor.ae_title, address),
        proxied=bool(assoc.requestor.proxy),
        certificate=certificate,
    )
