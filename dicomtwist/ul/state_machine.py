"""
The DICOM Upper Layer state machine: PS3.8 Table 9-10 as data, to be compared with the printed table.

:data:`TABLE` maps (event, state) to the action; :data:`ACTIONS` (Tables 9-6 to 9-9) gives the states that an action can
lead to. If there are two, the action selects one: AE-6 by whether the request is acceptable, AR-8 by the role.
"""

from __future__ import annotations

from enum import Enum, IntEnum, unique
from typing import Final


class State(IntEnum):
    """The states of PS3.8 Tables 9-1 to 9-5."""

    STA1 = 1  #: Idle
    STA2 = 2  #: Transport connection open, awaiting A-ASSOCIATE-RQ PDU
    STA3 = 3  #: Awaiting local A-ASSOCIATE response primitive
    STA4 = 4  #: Awaiting transport connection opening to complete
    STA5 = 5  #: Awaiting A-ASSOCIATE-AC or A-ASSOCIATE-RJ PDU
    STA6 = 6  #: Association established and ready for data transfer
    STA7 = 7  #: Awaiting A-RELEASE-RP PDU
    STA8 = 8  #: Awaiting local A-RELEASE response primitive
    STA9 = 9  #: Release collision, requestor side; awaiting A-RELEASE response primitive
    STA10 = 10  #: Release collision, acceptor side; awaiting A-RELEASE-RP PDU
    STA11 = 11  #: Release collision, requestor side; awaiting A-RELEASE-RP PDU
    STA12 = 12  #: Release collision, acceptor side; awaiting A-RELEASE response primitive
    STA13 = 13  #: Awaiting transport connection close indication


class Event(IntEnum):
    """The events of PS3.8 Table 9-10, in the order of its rows."""

    EVT1 = 1  #: A-ASSOCIATE request (local user)
    EVT2 = 2  #: Transport connect confirmation (local transport service)
    EVT3 = 3  #: A-ASSOCIATE-AC PDU received
    EVT4 = 4  #: A-ASSOCIATE-RJ PDU received
    EVT5 = 5  #: Transport connection indication
    EVT6 = 6  #: A-ASSOCIATE-RQ PDU received
    EVT7 = 7  #: A-ASSOCIATE response primitive (accept)
    EVT8 = 8  #: A-ASSOCIATE response primitive (reject)
    EVT9 = 9  #: P-DATA request primitive
    EVT10 = 10  #: P-DATA-TF PDU received
    EVT11 = 11  #: A-RELEASE request primitive
    EVT12 = 12  #: A-RELEASE-RQ PDU received
    EVT13 = 13  #: A-RELEASE-RP PDU received
    EVT14 = 14  #: A-RELEASE response primitive
    EVT15 = 15  #: A-ABORT request primitive
    EVT16 = 16  #: A-ABORT PDU received
    EVT17 = 17  #: Transport connection closed indication
    EVT18 = 18  #: ARTIM timer expired
    EVT19 = 19  #: Unrecognised or invalid PDU received


@unique  # an Enum would merge two actions with equal text
class Action(Enum):
    """The actions of PS3.8 Tables 9-6 to 9-9."""

    AE_1 = "Issue TRANSPORT CONNECT request primitive to local transport service"
    AE_2 = "Send A-ASSOCIATE-RQ PDU"
    AE_3 = "Issue A-ASSOCIATE confirmation (accept) primitive"
    AE_4 = "Issue A-ASSOCIATE confirmation (reject) primitive and close transport connection"
    AE_5 = "Issue transport connection response primitive; start ARTIM timer"
    AE_6 = "Stop ARTIM timer; issue A-ASSOCIATE indication, or send A-ASSOCIATE-RJ PDU and start ARTIM timer"
    AE_7 = "Send A-ASSOCIATE-AC PDU"
    AE_8 = "Send A-ASSOCIATE-RJ PDU and start ARTIM timer"
    DT_1 = "Send P-DATA-TF PDU"
    DT_2 = "Send P-DATA indication primitive"
    AR_1 = "Send A-RELEASE-RQ PDU"
    AR_2 = "Issue A-RELEASE indication primitive"
    AR_3 = "Issue A-RELEASE confirmation primitive and close transport connection"
    AR_4 = "Issue A-RELEASE-RP PDU and start ARTIM timer"
    AR_5 = "Stop ARTIM timer"
    AR_6 = "Issue P-DATA indication"
    AR_7 = "Issue P-DATA-TF PDU"
    AR_8 = "Issue A-RELEASE indication (release collision)"
    AR_9 = "Send A-RELEASE-RP PDU"
    AR_10 = "Issue A-RELEASE confirmation primitive"
    AA_1 = "Send A-ABORT PDU (service-user source) and start, or restart, ARTIM timer"
    AA_2 = "Stop ARTIM timer if running; close transport connection"
    AA_3 = "Issue A-ABORT or A-P-ABORT indication, as the source says, and close transport connection"
    AA_4 = "Issue A-P-ABORT indication primitive"
    AA_5 = "Stop ARTIM timer, no A-ASSOCIATE-RQ PDU came"
    AA_6 = "Ignore PDU"
    AA_7 = "Send A-ABORT PDU"
    AA_8 = "Send A-ABORT PDU (service-provider source), issue A-P-ABORT indication, start ARTIM timer"


#: The states that an action can lead to. If there are two, the action selects one.
ACTIONS: Final[dict[Action, tuple[State, ...]]] = {
    Action.AE_1: (State.STA4,),
    Action.AE_2: (State.STA5,),
    Action.AE_3: (State.STA6,),
    Action.AE_4: (State.STA1,),
    Action.AE_5: (State.STA2,),
    Action.AE_6: (State.STA3, State.STA13),
    Action.AE_7: (State.STA6,),
    Action.AE_8: (State.STA13,),
    Action.DT_1: (State.STA6,),
    Action.DT_2: (State.STA6,),
    Action.AR_1: (State.STA7,),
    Action.AR_2: (State.STA8,),
    Action.AR_3: (State.STA1,),
    Action.AR_4: (State.STA13,),
    Action.AR_5: (State.STA1,),
    Action.AR_6: (State.STA7,),
    Action.AR_7: (State.STA8,),
    Action.AR_8: (State.STA9, State.STA10),
    Action.AR_9: (State.STA11,),
    Action.AR_10: (State.STA12,),
    Action.AA_1: (State.STA13,),
    Action.AA_2: (State.STA1,),
    Action.AA_3: (State.STA1,),
    Action.AA_4: (State.STA1,),
    Action.AA_5: (State.STA1,),
    Action.AA_6: (State.STA13,),
    Action.AA_7: (State.STA13,),
    Action.AA_8: (State.STA13,),
}

_A = Action
_NO = None

# One row for each event, one column for each state, as Table 9-10 is printed.
# fmt: off
_ROWS: Final[dict[Event, tuple[Action | None, ...]]] = {
    #             Sta1     Sta2     Sta3     Sta4     Sta5     Sta6     Sta7     Sta8     Sta9     Sta10    Sta11    Sta12    Sta13
    Event.EVT1:  (_A.AE_1, _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO),
    Event.EVT2:  (_NO,     _NO,     _NO,     _A.AE_2, _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO),
    Event.EVT3:  (_NO,     _A.AA_1, _A.AA_8, _NO,     _A.AE_3, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_6),
    Event.EVT4:  (_NO,     _A.AA_1, _A.AA_8, _NO,     _A.AE_4, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_6),
    Event.EVT5:  (_A.AE_5, _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO),
    Event.EVT6:  (_NO,     _A.AE_6, _A.AA_8, _NO,     _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_7),
    Event.EVT7:  (_NO,     _NO,     _A.AE_7, _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO),
    Event.EVT8:  (_NO,     _NO,     _A.AE_8, _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO),
    Event.EVT9:  (_NO,     _NO,     _NO,     _NO,     _NO,     _A.DT_1, _NO,     _A.AR_7, _NO,     _NO,     _NO,     _NO,     _NO),
    Event.EVT10: (_NO,     _A.AA_1, _A.AA_8, _NO,     _A.AA_8, _A.DT_2, _A.AR_6, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_6),
    Event.EVT11: (_NO,     _NO,     _NO,     _NO,     _NO,     _A.AR_1, _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO),
    Event.EVT12: (_NO,     _A.AA_1, _A.AA_8, _NO,     _A.AA_8, _A.AR_2, _A.AR_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_6),
    Event.EVT13: (_NO,     _A.AA_1, _A.AA_8, _NO,     _A.AA_8, _A.AA_8, _A.AR_3, _A.AA_8, _A.AA_8, _A.AR_10, _A.AR_3, _A.AA_8, _A.AA_6),
    Event.EVT14: (_NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _A.AR_4, _A.AR_9, _NO,     _NO,     _A.AR_4, _NO),
    Event.EVT15: (_NO,     _NO,     _A.AA_1, _A.AA_2, _A.AA_1, _A.AA_1, _A.AA_1, _A.AA_1, _A.AA_1, _A.AA_1, _A.AA_1, _A.AA_1, _NO),
    Event.EVT16: (_NO,     _A.AA_2, _A.AA_3, _NO,     _A.AA_3, _A.AA_3, _A.AA_3, _A.AA_3, _A.AA_3, _A.AA_3, _A.AA_3, _A.AA_3, _A.AA_2),
    Event.EVT17: (_NO,     _A.AA_5, _A.AA_4, _A.AA_4, _A.AA_4, _A.AA_4, _A.AA_4, _A.AA_4, _A.AA_4, _A.AA_4, _A.AA_4, _A.AA_4, _A.AR_5),
    Event.EVT18: (_NO,     _A.AA_2, _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _NO,     _A.AA_2),
    Event.EVT19: (_NO,     _A.AA_1, _A.AA_8, _NO,     _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_8, _A.AA_7),
}
# fmt: on

#: PS3.8 Table 9-10. A pair that is missing cannot occur, or is an error of the local user.
TABLE: Final[dict[tuple[Event, State], Action]] = {
    (event, state): action
    for event, row in _ROWS.items()
    for state, action in zip(State, row, strict=True)
    if action is not None
}
