"""
The operations of DIMSE-C that this side invokes (PS3.7 9.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom import Dataset
from twisted.internet.defer import Deferred

from dicomtwist.datasets.identifier import encode_identifier
from dicomtwist.datasets.outgoing_instance import InstanceLike, check_identity, open_instance
from dicomtwist.dimse.messages import HIGH, LOW, MEDIUM, CEchoRQ, CFindRQ, CGetRQ, CGetRSP, CMoveRQ, CMoveRSP, Response
from dicomtwist.dimse.status import Status
from dicomtwist.exchange.exchange import Exchange
from dicomtwist.exchange.invoking import WindowPlace
from dicomtwist.exchange.store_request import prepare, send
from dicomtwist.interfaces import AEInterface, AssociationSide
from dicomtwist.presentation import PresentationContextTuple
from dicomtwist.scu.responses import Answers, OnProgress, Retrieval
from dicomtwist.settings import Settings
from dicomtwist.ul.ae_title import check_ae_title


class ServiceClassUser:
    """
    The operations of DIMSE-C that this side invokes.

    A data set is given as a pydicom Dataset, which is encoded in the transfer syntax of the presentation context, or as
    ``bytes`` that are in it already.
    """

    if TYPE_CHECKING:
        ae: AEInterface
        settings: Settings

        @property
        def remote(self) -> AssociationSide:
            """The peer."""

        @property
        def exchange(self) -> Exchange:
            """The messages of the association."""

        def check_established(self) -> None:
            """Raise :class:`NotEstablished` if it is not established."""

        def context_for(
            self, abstract_syntax: str, transfer_syntax: str | None = None, *, as_scu: bool = True
        ) -> PresentationContextTuple:
            """Return the accepted presentation context for a service."""

    def send_c_echo(self) -> Deferred[Status]:
        """
        Verify that the peer responds (C-ECHO, PS3.7 9.1.5).

        :returns: a Deferred with the :class:`Status`; it fails with the :class:`AssociationError` that ended the
            association before the response arrived, :class:`NotEstablished` or :class:`NoPresentationContext`.
        """
        return Deferred.fromCoroutine(self._echo())

    async def _echo(self) -> Status:
        context = self.context_for("1.2.840.10008.1.1")
        async with WindowPlace(self.exchange):
            response, _ = await self.exchange.start(context.context_id, CEchoRQ())
        return self.status_of(response)

    def send_c_store(
        self,
        dataset: InstanceLike,
        *,
        priority: int = 2,
        originator_aet: str | bytes | None = None,
        originator_id: int | None = None,
    ) -> Deferred[Status]:
        """
        Ask the peer to store an instance (C-STORE, PS3.7 9.1.1).

        :param dataset: the path of a Part 10 file, which is streamed from disk; a pydicom Dataset; an open binary file or
            similar object that reads a Part 10 file from its current position; or the ``bytes`` of one.
        :param priority: 0 medium, 1 high, 2 low.
        :param originator_aet: for a sub-operation of a C-MOVE, the AE title that requested the C-MOVE.
        :param originator_id: the Message ID of that C-MOVE.
        :returns: a Deferred with the :class:`Status`, a failure status as well; it fails with

            * the :class:`AssociationError` that ended the association before the response arrived,
              :class:`NotEstablished`,
            * :class:`NoPresentationContext` if no accepted context fits the SOP Class and transfer syntax,
            * ``ValueError`` or ``TypeError`` if another argument is not valid; nothing is sent then,
            * ``OSError``, :class:`~dicomtwist.part10.NotDicomFile` or :class:`~dicomtwist.errors.DataSetError` if
              the data set cannot be read or encoded. If a part of it has been sent by then, the association is aborted.
        """
        return Deferred.fromCoroutine(self._store(dataset, priority, originator_aet, originator_id))

    async def _store(
        self, dataset: InstanceLike, priority: int, originator_aet: str | bytes | None, originator_id: int | None
    ) -> Status:
        self.check_established()
        priority = check_priority(priority)
        title = None if originator_aet is None else check_ae_title(originator_aet, "the Move Originator AE title")
        if originator_id is not None:
            originator_id = check_number(originator_id, "the Move Originator Message ID")
        if isinstance(dataset, Dataset):
            check_identity(dataset)
        async with WindowPlace(self.exchange):
            # A file is opened only with a place in the window, so that a thousand calls do not open a thousand files.
            instance = await open_instance(dataset, self.ae.executors.retrieval)
            await prepare(self, instance, priority, title, originator_id)
            response, _ = await send(self.exchange, instance)
        return self.status_of(response, str(instance.context.abstract_syntax))

    def send_c_find(self, identifier: Dataset | bytes, query_model: str, *, priority: int = 2) -> Answers:
        """
        Query the peer (C-FIND, PS3.7 9.1.2).

        :param identifier: the keys to match and to return, with Query/Retrieve Level if the model has levels.
        :param query_model: the SOP Class UID of the information model, such as
            ``sop_class.StudyRootQueryRetrieveInformationModelFind``.
        :param priority: 0 medium, 1 high, 2 low.
        :returns: the :class:`~dicomtwist.scu.Answers`, an asynchronous iterator of (status, identifier or ``None``);
            ``await answers.collect()`` gives the identifiers.
        :raises NotEstablished: the association is not established.
        :raises NoPresentationContext: no context of the model was accepted.
        :raises ValueError: *priority* is not 0, 1 or 2.
        :raises DataSetError: the identifier cannot be encoded.
        """
        context = self.context_for(query_model)
        request = CFindRQ(affected_sop_class_uid=str(query_model), priority=check_priority(priority))
        return Answers(self, context, request, encode_identifier(identifier, str(context.transfer_syntax)))

    def send_c_get(
        self,
        identifier: Dataset | bytes,
        query_model: str,
        *,
        priority: int = 2,
        on_progress: OnProgress | None = None,
    ) -> Retrieval:
        """
        Retrieve instances on this association (C-GET, PS3.7 9.1.3).

        They arrive as C-STORE requests at the handler of ``EVT_C_STORE``, in contexts for which the role of SCP was
        negotiated: propose them with ``ext_neg=[build_role(sop_class, scp_role=True)]``.

        :param identifier: the unique keys of the instances, with Query/Retrieve Level.
        :param query_model: the SOP Class UID of the information model.
        :param priority: 0 medium, 1 high, 2 low.
        :param on_progress: called with the :class:`~dicomtwist.scu.SubOperations` on each response.
        :returns: the :class:`~dicomtwist.scu.Retrieval`, an asynchronous iterator of (status, data set or ``None``);
            ``await retrieval.when_done()`` gives the result.
        :raises NotEstablished: the association is not established.
        :raises NoPresentationContext: no context of the model was accepted.
        :raises ValueError: *priority* is not 0, 1 or 2.
        :raises DataSetError: the identifier cannot be encoded.
        """
        context = self.context_for(query_model)
        request = CGetRQ(affected_sop_class_uid=str(query_model), priority=check_priority(priority))
        encoded = encode_identifier(identifier, str(context.transfer_syntax))
        return Retrieval(self, context, request, encoded, on_progress)

    def send_c_move(
        self,
        identifier: Dataset | bytes,
        move_aet: str,
        query_model: str,
        *,
        priority: int = 2,
        on_progress: OnProgress | None = None,
    ) -> Retrieval:
        """
        Have the peer send instances to the AE *move_aet* (C-MOVE, PS3.7 9.1.4).

        :param identifier: the unique keys of the instances, with Query/Retrieve Level.
        :param move_aet: the AE title of the destination, as the peer knows it.
        :param query_model: the SOP Class UID of the information model.
        :param priority: 0 medium, 1 high, 2 low.
        :param on_progress: called with the :class:`~dicomtwist.scu.SubOperations` on each response.
        :returns: the :class:`~dicomtwist.scu.Retrieval`, as with :meth:`send_c_get`.
        :raises ValueError: *move_aet* is not an AE title, or *priority* is not 0, 1 or 2.
        :raises NotEstablished: the association is not established.
        :raises NoPresentationContext: no context of the model was accepted.
        :raises DataSetError: the identifier cannot be encoded.
        """
        title = check_ae_title(move_aet, "the Move Destination")
        context = self.context_for(query_model)
        request = CMoveRQ(
            affected_sop_class_uid=str(query_model), priority=check_priority(priority), move_destination=title
        )
        encoded = encode_identifier(identifier, str(context.transfer_syntax))
        return Retrieval(self, context, request, encoded, on_progress)

    def send_c_cancel(self, message_id: int) -> None:
        """
        Cancel a C-FIND, C-GET or C-MOVE (C-CANCEL, PS3.7 9.3.2.3). The request has no response: the operation ends with the
        status 0xFE00, or as it would have ended without it. An operation that has ended stays as it is.

        :param message_id: the Message ID of its request, :attr:`Answers.message_id`; ``Answers.cancel()`` does the same.
        :raises NotEstablished: the association was never established.
        :raises TypeError: *message_id* is not an ``int``, such as the ``None`` of a request that is not sent yet.
        :raises ValueError: it does not fit in 16 bits.
        """
        self.exchange.cancel(check_number(message_id, "a Message ID"))

    @staticmethod
    def status_of(response: Response, sop_class: str = "") -> Status:
        """Return the status of *response* to an operation of *sop_class*, with its comment and other details."""
        status = Status(
            response.status,
            response.SERVICE,
            response.error_comment,
            response.offending_element,
            response.error_id,
            sop_class,
        )
        if isinstance(response, CGetRSP | CMoveRSP):
            status.number_of_remaining_suboperations = response.number_of_remaining_suboperations
            status.number_of_completed_suboperations = response.number_of_completed_suboperations
            status.number_of_failed_suboperations = response.number_of_failed_suboperations
            status.number_of_warning_suboperations = response.number_of_warning_suboperations
        return status


def check_priority(value: int) -> int:
    """
    Return a priority that a user passes (PS3.7 E.1).

    :raises TypeError: it is not an ``int``.
    :raises ValueError: it is not 0, 1 or 2.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"a priority is an int, not {type(value).__name__}")
    if value not in (MEDIUM, HIGH, LOW):
        raise ValueError(f"a priority is 0 for medium, 1 for high or 2 for low (PS3.7 E.1), not {value}")
    return int(value)


def check_number(value: int, what: str) -> int:
    """
    Return a number of 16 bits that a user passes.

    :param what: its name in the error.
    :raises TypeError: it is not an ``int``.
    :raises ValueError: it does not fit in 16 bits.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{what} is an int, not {type(value).__name__}")
    if not 0 <= value <= 0xFFFF:
        raise ValueError(f"{what} is a number of 16 bits, not {value}")
    return int(value)
