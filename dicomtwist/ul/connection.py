"""
One connection of the DICOM Upper Layer, without I/O: received bytes go in, events and bytes to write come out.

The owner (:mod:`dicomtwist.transport.upper_layer`) carries out the returned events: it runs the ARTIM timer, closes the
transport, writes :meth:`ULConnection.data_to_send`, and passes the indications to the association above.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from dicomtwist.errors import InvalidPDU, InvalidState
from dicomtwist.ul.framing import DEFAULT_MAX_LENGTH, ControlPDU, Fragment, Frame, Framer
from dicomtwist.ul.pdu import (
    AAbort,
    AAssociateAC,
    AAssociateRJ,
    AAssociateRQ,
    AReleaseRP,
    AReleaseRQ,
    decode_pdu,
)
from dicomtwist.ul.state_machine import ACTIONS, TABLE, Action, Event, State


class Signal(Enum):
    """A request to the owner of the connection."""

    START_ARTIM = "start, or restart, the ARTIM timer"
    STOP_ARTIM = "stop the ARTIM timer if it runs"
    CLOSE = "close the transport connection"


@dataclass(frozen=True, slots=True)
class AssociateIndication:
    """A-ASSOCIATE indication: the peer requests an association; answer with ``accept`` or ``reject``."""

    request: AAssociateRQ


@dataclass(frozen=True, slots=True)
class AssociateConfirmation:
    """A-ASSOCIATE confirmation: the peer's answer."""

    answer: AAssociateAC | AAssociateRJ


@dataclass(frozen=True, slots=True)
class ReleaseIndication:
    """
    A-RELEASE indication: answer with ``release_response``.

    :ivar collision: whether this side has also requested the release.
    """

    collision: bool = False


@dataclass(frozen=True, slots=True)
class ReleaseConfirmation:
    """A-RELEASE confirmation: the peer agreed to our release."""


@dataclass(frozen=True, slots=True)
class AbortIndication:
    """
    A-ABORT or A-P-ABORT indication: the association is over.

    :ivar source: the source in the A-ABORT PDU.
    :ivar reason: the reason in the A-ABORT PDU.
    :ivar by_peer: whether the peer sent that PDU. If not, this side sent it.
    :ivar lost: whether the transport closed without an A-ABORT.
    :ivar detail: the error that made this side abort.
    """

    source: int = 2
    reason: int = 0
    by_peer: bool = True
    lost: bool = False
    detail: str = ""


ULEvent: TypeAlias = (
    Fragment
    | Signal
    | AssociateIndication
    | AssociateConfirmation
    | ReleaseIndication
    | ReleaseConfirmation
    | AbortIndication
)

#: The states in which a P-DATA-TF goes straight to the user: DT-2 and AR-6 do not change the state.
RECEIVING = frozenset((State.STA6, State.STA7))
#: The states in which a P-DATA request is allowed: DT-1 and AR-7 do not change the state.
SENDING = frozenset((State.STA6, State.STA8))

_PDU_EVENTS = {
    1: Event.EVT6,
    2: Event.EVT3,
    3: Event.EVT4,
    5: Event.EVT12,
    6: Event.EVT13,
    7: Event.EVT16,
}


class ULConnection:
    """
    This side of one transport connection in the upper layer (PS3.8 9.2).

    :param requestor: whether this side requests the association.
    :param max_length: the longest P-DATA-TF accepted, in bytes; 0 for no limit.
    :ivar state: the current state of Table 9-10.
    """

    def __init__(self, *, requestor: bool, max_length: int = DEFAULT_MAX_LENGTH) -> None:
        self.requestor = requestor
        self.state = State.STA1
        self._framer = Framer(max_length)
        self._out: list[bytes] = []
        self._request = b""

    @property
    def mid_control(self) -> bool:
        """Whether the peer has begun and not finished a PDU that carries no data."""
        return self._framer.mid_control

    @property
    def mid_pdu(self) -> bool:
        """Whether the peer has begun and not finished a PDU."""
        return self._framer.mid_pdu

    @property
    def pdus_begun(self) -> int:
        """The number of PDUs of which the peer has sent at least one byte."""
        return self._framer.begun

    @property
    def may_send_data(self) -> bool:
        """Whether a P-DATA request is allowed now (Sta6, and Sta8 until the release is answered)."""
        return self.state in SENDING

    def data_to_send(self) -> bytes:
        """Return the bytes to write now, and remove them from the buffer."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    # --- events of the transport

    def connection_made(self) -> list[ULEvent]:
        """
        Handle the open transport: Evt5 for an acceptor, Evt2 for a requestor.

        A requestor then has the A-ASSOCIATE-RQ of :meth:`associate` to send.
        """
        return self._step(Event.EVT2 if self.requestor else Event.EVT5)

    def connection_lost(self) -> list[ULEvent]:
        """Handle the closed transport (Evt17)."""
        if (Event.EVT17, self.state) not in TABLE:
            return []
        return self._step(Event.EVT17)

    def artim_expired(self) -> list[ULEvent]:
        """Handle the expiry of the ARTIM timer (Evt18); no effect in a state in which the timer does not run."""
        if (Event.EVT18, self.state) not in TABLE:
            return []
        return self._step(Event.EVT18)

    def receive_data(self, data: bytes) -> list[ULEvent]:
        """Process the bytes of one read; return the resulting events in order."""
        events: list[ULEvent] = []
        for frame in self.frames_of(data):
            events += self.events_of(frame)
        return events

    def frames_of(self, data: bytes) -> list[Frame]:
        """
        Return the frames in the bytes of one read. The caller passes them in order to :meth:`events_of`.

        A fragment that arrives while :attr:`state` is in :data:`RECEIVING` is its own only event, so the caller may handle
        it as it is.
        """
        return self._framer.feed(data)

    def events_of(self, frame: Frame) -> list[ULEvent]:
        """
        Return the events of the next frame.

        A PDU is decoded only after the caller has handled the events of the PDU before it, since that may change the state.
        """
        if type(frame) is Fragment:
            if self.state in RECEIVING:
                return [frame]
            return self._receive(Event.EVT10, detail="P-DATA-TF out of place")
        if type(frame) is ControlPDU:
            return self._receive_control(frame)
        assert isinstance(frame, InvalidPDU)
        return self._receive(Event.EVT19, reason=frame.reason, detail=str(frame))

    def _receive_control(self, frame: ControlPDU) -> list[ULEvent]:
        try:
            pdu = decode_pdu(frame.pdu_type, frame.body)
        except InvalidPDU as error:
            return self._receive(Event.EVT19, reason=error.reason, detail=str(error))
        return self._receive(_PDU_EVENTS[frame.pdu_type], pdu, detail=f"{type(pdu).__name__} out of place")

    def _receive(self, event: Event, pdu: object = None, *, reason: int = 2, detail: str = "") -> list[ULEvent]:
        if (event, self.state) not in TABLE:
            return []  # Sta1 and Sta4: there is no connection that could deliver anything
        return self._step(event, pdu, reason=reason, detail=detail)

    # --- requests of the local user

    def associate(self, request: AAssociateRQ) -> list[ULEvent]:
        """
        A-ASSOCIATE request (Evt1): *request* is sent as soon as the transport is open.

        :raises InvalidState: the association is already under way, or this side is the acceptor.
        :raises ValueError: *request* cannot be encoded.
        """
        if not self.requestor:
            raise InvalidState("an acceptor cannot request an association on its connection")
        self._check(Event.EVT1)
        self._request = request.encode()
        return self._step(Event.EVT1)

    def accept(self, answer: AAssociateAC) -> list[ULEvent]:
        """
        A-ASSOCIATE response, accept (Evt7).

        From now on the maximum length in *answer* is the limit for P-DATA-TF PDUs of the peer.
        """
        if answer.user_information.maximum_length is not None:
            self._framer.max_length = answer.user_information.maximum_length
        return self._step(Event.EVT7, answer)

    def reject(self, answer: AAssociateRJ) -> list[ULEvent]:
        """A-ASSOCIATE response, reject (Evt8)."""
        return self._step(Event.EVT8, answer)

    def release(self) -> list[ULEvent]:
        """A-RELEASE request (Evt11)."""
        return self._step(Event.EVT11)

    def release_response(self) -> list[ULEvent]:
        """A-RELEASE response (Evt14)."""
        return self._step(Event.EVT14)

    def abort(self) -> list[ULEvent]:
        """A-ABORT request (Evt15); no effect if there is nothing to abort."""
        if (Event.EVT15, self.state) not in TABLE:
            return []
        return self._step(Event.EVT15)

    def protocol_error(self, reason: int, detail: str) -> list[ULEvent]:
        """
        Handle a P-DATA-TF whose content breaks the rules of PS3.8 Annex E or PS3.7 (Evt19).

        :param reason: the A-ABORT reason code.
        :param detail: a description of the error.
        """
        return self._receive(Event.EVT19, reason=reason, detail=detail)

    # --- the state table

    def _check(self, event: Event) -> None:
        if (event, self.state) not in TABLE:
            raise InvalidState(f"{event.name} is not defined in {self.state.name} (PS3.8 Table 9-10)")

    def _step(self, event: Event, pdu: object = None, *, reason: int = 0, detail: str = "") -> list[ULEvent]:
        self._check(event)
        action = TABLE[event, self.state]
        events: list[ULEvent] = []
        choice = self._act(action, event, pdu, reason, detail, events)
        self.state = ACTIONS[action][choice]
        return events

    def _act(self, action: Action, event: Event, pdu: object, reason: int, detail: str, events: list[ULEvent]) -> int:
        """Perform *action*; return the index of its next state in :data:`ACTIONS`."""
        match action:
            case Action.AE_1 | Action.DT_1 | Action.DT_2 | Action.AR_6 | Action.AR_7 | Action.AA_6:
                # The owner opens the connection; data takes a shorter way than this method.
                pass
            case Action.AE_2:
                self._out.append(self._request)
            case Action.AE_3:
                assert isinstance(pdu, AAssociateAC)
                events.append(AssociateConfirmation(pdu))
            case Action.AE_4:
                assert isinstance(pdu, AAssociateRJ)
                events += (AssociateConfirmation(pdu), Signal.CLOSE)
            case Action.AE_5:
                events.append(Signal.START_ARTIM)
            case Action.AE_6:
                return self._associate_indication(pdu, events)
            case Action.AE_7:
                assert isinstance(pdu, AAssociateAC)
                self._out.append(pdu.encode())
            case Action.AE_8:
                assert isinstance(pdu, AAssociateRJ)
                self._out.append(pdu.encode())
                events.append(Signal.START_ARTIM)
            case Action.AR_1:
                self._out.append(AReleaseRQ().encode())
            case Action.AR_2:
                events.append(ReleaseIndication())
            case Action.AR_3:
                events += (ReleaseConfirmation(), Signal.CLOSE)
            case Action.AR_4:
                self._out.append(AReleaseRP().encode())
                events.append(Signal.START_ARTIM)
            case Action.AR_5 | Action.AA_5:
                events.append(Signal.STOP_ARTIM)
            case Action.AR_8:
                events.append(ReleaseIndication(collision=True))
                return 0 if self.requestor else 1
            case Action.AR_9:
                self._out.append(AReleaseRP().encode())
            case Action.AR_10:
                events.append(ReleaseConfirmation())
            case _:
                self._abort_action(action, event, pdu, reason, detail, events)
        return 0

    def _associate_indication(self, pdu: object, events: list[ULEvent]) -> int:
        """Perform AE-6. The provider itself checks only the protocol version (PS3.8 9.3.2, bit 0)."""
        assert isinstance(pdu, AAssociateRQ)
        events.append(Signal.STOP_ARTIM)
        if pdu.protocol_version & 1:
            events.append(AssociateIndication(pdu))
            return 0
        self._out.append(AAssociateRJ(1, 2, 2).encode())
        events.append(Signal.START_ARTIM)
        return 1

    def _abort_action(
        self, action: Action, event: Event, pdu: object, reason: int, detail: str, events: list[ULEvent]
    ) -> None:
        match action:
            case Action.AA_1:
                self._out.append(AAbort(0, 0).encode())
                if event is not Event.EVT15:
                    # Not an indication of the standard: in Sta2 there is no association yet. It gives the owner the reason.
                    events.append(AbortIndication(0, 0, by_peer=False, detail=detail))
                events.append(Signal.START_ARTIM)
            case Action.AA_2:
                events += (Signal.STOP_ARTIM, Signal.CLOSE)
            case Action.AA_3:
                assert isinstance(pdu, AAbort)
                events += (AbortIndication(pdu.source, pdu.reason), Signal.CLOSE)
            case Action.AA_4:
                events.append(AbortIndication(lost=True, detail="the connection was closed"))
            case Action.AA_7:
                self._out.append(AAbort(2, reason).encode())
            case Action.AA_8:
                self._out.append(AAbort(2, reason).encode())
                events += (AbortIndication(2, reason, by_peer=False, detail=detail), Signal.START_ARTIM)
            case _:  # pragma: no cover
                raise AssertionError(action)
