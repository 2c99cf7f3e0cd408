"""
The requestor's side of an association: the request, and its answer (PS3.8 7.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from dicomtwist import evt
from dicomtwist.association.association import Association
from dicomtwist.association.explanations import Proposal, explain_refusals
from dicomtwist.association.negotiation import propose_contexts, resolve_answer
from dicomtwist.association.timeouts import Deadline
from dicomtwist.errors import AssociationRejected, NoAcceptedContexts
from dicomtwist.interfaces import AEInterface
from dicomtwist.presentation import PresentationContext, number_contexts
from dicomtwist.settings import Settings
from dicomtwist.transport.upper_layer import UpperLayerProtocol
from dicomtwist.ul.framing import MAX_ASSOCIATE_LENGTH
from dicomtwist.ul.items import UserInformation
from dicomtwist.ul.pdu import AAssociateAC, AAssociateRJ, AAssociateRQ
from dicomtwist.ul.state_machine import State

#: The states before the A-ASSOCIATE-RQ is sent: there is nothing to abort.
_NOT_ASKED = (State.STA1, State.STA4)
#: The time that a peer has to close its connection after the A-ABORT of a request that was cancelled, in seconds.
CANCELLED_SECONDS: Final = 1.0
#: Errors of the transport that name no cause of the close.
_PLAIN_CLOSE = (ConnectionDone, ConnectionLost)


class RequestorAssociation(Association):
    """
    An association that this side requests.

    :param called_ae_title: the AE title of the acceptor.
    :param contexts: the presentation contexts to propose, with their IDs.
    :param items: the extended negotiation items to propose.
    """

    mode = "requestor"

    def __init__(
        self,
        ae: AEInterface,
        settings: Settings,
        handlers: evt.Handlers,
        called_ae_title: str,
        contexts: Sequence[PresentationContext],
        items: UserInformation,
    ) -> None:
        super().__init__(ae, settings, handlers)
        self._proposed = list(contexts)
        self._asked_at: float | None = None
        self._answered: Deferred[Association] | None = Deferred(self._cancelled)
        self.acceptor.ae_title = called_ae_title
        self._information = _user_information(settings, items)
        requestor = self.requestor
        requestor.ae_title = settings.ae_title
        requestor.called_ae_title = called_ae_title
        requestor.learn(self._information)
        requestor.presentation_contexts = [context.copy() for context in contexts]
        if items.async_operations is not None:
            requestor.asynchronous_operations = (
                items.async_operations.invoked,
                items.async_operations.performed,
            )

    def when_established(self) -> Deferred[Association]:
        """
        Return the Deferred that fires with this association when it is established; to be called once.

        It fails when the connection is closed before that, with the cause: :class:`AssociationRejected`,
        :class:`AssociationAborted`, :class:`AssociationTimeout`, :class:`NoAcceptedContexts`,
        :class:`AssociationLost`, or the error of the TLS handshake. Cancelling it aborts the association.
        """
        assert self._answered is not None
        return self._answered

    def _cancelled(self, deferred: Deferred[Association]) -> None:
        self._answered = None
        if self._protocol.connection.state in _NOT_ASKED:
            self._protocol.close()
        else:
            self.abort("the caller cancelled the request", within=CANCELLED_SECONDS)

    def transport_opened(self) -> None:
        """Start the timeout for the answer, which covers a TLS handshake."""
        super().transport_opened()
        self._asked_at = self.ae.reactor.seconds()
        if self.settings.acse_timeout is not None:
            self._protocol.watch(self.settings.acse_timeout)

    def transport_ready(self) -> None:
        """Send the A-ASSOCIATE-RQ."""
        if self._end is not None:
            return  # a handler aborted
        request = AAssociateRQ(
            self.acceptor.ae_title,
            self.requestor.ae_title,
            propose_contexts(self._proposed),
            self._information,
        )
        self._asked_at = self.ae.reactor.seconds()
        try:
            self._protocol.request(request)
        except Exception:
            # The factory has encoded the request once, so this is an error of this library. The caller learns of it.
            self._over(Failure())
            self._protocol.close()
            return
        self.notify(evt.EVT_REQUESTED, pdu=request)
        self.notify(evt.EVT_ACSE_SENT, primitive="A-ASSOCIATE request")
        self.notify(evt.EVT_PDU_SENT, pdu=request)

    def associate_confirmation(self, answer: AAssociateAC | AAssociateRJ) -> None:
        """Establish the association with the answer, or end it."""
        self._asked_at = None
        self.notify(evt.EVT_PDU_RECV, pdu=answer)
        self.notify(evt.EVT_ACSE_RECV, primitive="A-ASSOCIATE confirmation")
        if isinstance(answer, AAssociateRJ):
            self.is_rejected = True
            self.notify(evt.EVT_REJECTED, pdu=answer)
            self._over(Failure(AssociationRejected(answer.result, answer.source, answer.reason)))
            return
        information = answer.user_information
        acceptor = self.acceptor
        acceptor.learn(information)
        contexts = resolve_answer(self._proposed, self.requestor.role_selection, answer)
        acceptor.presentation_contexts = contexts
        invoked, performed = 1, 1
        proposed = self._information.async_operations
        if proposed is not None and information.async_operations is not None:
            window = information.async_operations
            invoked, performed = (
                _within(window.invoked, proposed.invoked),
                _within(window.performed, proposed.performed),
            )
            # This side invokes the operations that the acceptor performs, and the other way round.
            acceptor.asynchronous_operations = (performed, invoked)
        self.log_deviation(answer.tolerated)
        self.established(answer, contexts, invoked, performed)
        if self._end is not None:
            return  # a handler aborted
        if not self._contexts:
            self._nothing_accepted()
        elif self._answered is not None:
            answered, self._answered = self._answered, None
            answered.callback(self)

    def _nothing_accepted(self) -> None:
        self._unusable = Failure(NoAcceptedContexts(explain_refusals(self.acceptor.ae_title, self._rejected)))
        self.release().addErrback(lambda _: None)

    _unusable: Failure | None = None

    def transport_closed(self, reason: Failure) -> None:
        """Fail the Deferred of :meth:`when_established` if it waits."""
        # Without an association, the error of the TLS handshake or the transport is the best explanation.
        secure_error = reason if self._protocol.secure and self._end is None else None
        super().transport_closed(reason)
        if self._answered is not None:
            answered, self._answered = self._answered, None
            failure = self._unusable or self._end
            if secure_error is not None and not reason.check(*_PLAIN_CLOSE):
                failure = secure_error
            assert failure is not None
            answered.errback(failure)

    def _deadlines(self) -> list[Deadline]:
        if self._asked_at is None or self.settings.acse_timeout is None:
            return super()._deadlines()
        what = "the TLS handshake did not end" if self._protocol.handshaking else "the peer did not answer the request"
        return [Deadline("acse", self.settings.acse_timeout, self._asked_at, what)]

    def _timed_out(self, timer: str, seconds: float, what: str) -> None:
        super()._timed_out(timer, seconds, what)
        if self._protocol.handshaking:
            self._protocol.transport.abortConnection()


def _user_information(settings: Settings, items: UserInformation) -> UserInformation:
    """Return the user information of a request with the extended negotiation *items*."""
    return replace(
        items,
        maximum_length=settings.maximum_pdu_size,
        implementation_class_uid=settings.implementation_class_uid,
        implementation_version_name=settings.implementation_version_name,
    )


def _within(answered: int, proposed: int) -> int:
    """Return *answered*, limited to *proposed*; 0 stands for no limit."""
    if proposed == 0:
        return answered
    return min(answered or proposed, proposed)


class RequestorFactory(Factory):
    """
    Builds the protocol of one requested association: ``endpoint.connect(ae.requestor_factory(...))``.

    The protocol's ``user`` is the :class:`RequestorAssociation`; the Deferred of its
    :meth:`~RequestorAssociation.when_established` fires when the association can be used.
    """

    noisy = False

    def __init__(
        self,
        ae: AEInterface,
        settings: Settings,
        handlers: evt.Handlers,
        called_ae_title: str,
        contexts: Sequence[PresentationContext],
        items: UserInformation,
        proposal: Proposal = Proposal.AE,
    ) -> None:
        self._ae = ae
        self._settings = settings
        self._proposal = proposal
        self._handlers = handlers
        self._called_ae_title = called_ae_title
        self._contexts = number_contexts(contexts)
        self._items = items
        self._check()

    def _check(self) -> None:
        """
        Encode the A-ASSOCIATE-RQ once, before a connection is made for it.

        :raises ValueError: it cannot be encoded, or is longer than acceptors take.
        """
        settings = self._settings
        information = _user_information(settings, self._items)
        contexts = propose_contexts(self._contexts)
        request = AAssociateRQ(self._called_ae_title, settings.ae_title, contexts, information)
        length = len(request.encode())
        if length > MAX_ASSOCIATE_LENGTH:
            raise ValueError(
                f"an association request of {length} bytes, the maximum is {MAX_ASSOCIATE_LENGTH}: propose fewer"
                " presentation contexts, transfer syntaxes or items"
            )

    def buildProtocol(self, addr: IAddress | None) -> UpperLayerProtocol:
        """Return the protocol of a new association."""
        association = RequestorAssociation(
            self._ae,
            self._settings,
            self._handlers,
            self._called_ae_title,
            [context.copy() for context in self._contexts],
            self._items,
        )
        association.proposal = self._proposal
        return association.protocol
