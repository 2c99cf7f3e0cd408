"""
The state machine against a second transcription of PS3.8 Table 9-10, and each cell on a real connection.
"""

import unittest

from dicomtwist.errors import InvalidState
from dicomtwist.ul.connection import (
    AbortIndication,
    AssociateConfirmation,
    AssociateIndication,
    ReleaseIndication,
    Signal,
    ULConnection,
)
from dicomtwist.ul.framing import Fragment
from dicomtwist.ul.items import AnsweredContext, ProposedContext
from dicomtwist.ul.pdu import (
    PDV,
    AAbort,
    AAssociateAC,
    AAssociateRJ,
    AAssociateRQ,
    AReleaseRP,
    AReleaseRQ,
    PDataTF,
)
from dicomtwist.ul.state_machine import ACTIONS, TABLE, Event, State

# Table 9-10, state by state: the event and its action. Cells that are not listed are blank.
STANDARD = """
Sta1: 1 AE-1 5 AE-5
Sta2: 3 AA-1 4 AA-1 6 AE-6 10 AA-1 12 AA-1 13 AA-1 16 AA-2 17 AA-5 18 AA-2 19 AA-1
Sta3: 3 AA-8 4 AA-8 6 AA-8 7 AE-7 8 AE-8 10 AA-8 12 AA-8 13 AA-8 15 AA-1 16 AA-3 17 AA-4 19 AA-8
Sta4: 2 AE-2 15 AA-2 17 AA-4
Sta5: 3 AE-3 4 AE-4 6 AA-8 10 AA-8 12 AA-8 13 AA-8 15 AA-1 16 AA-3 17 AA-4 19 AA-8
Sta6: 3 AA-8 4 AA-8 6 AA-8 9 DT-1 10 DT-2 11 AR-1 12 AR-2 13 AA-8 15 AA-1 16 AA-3 17 AA-4 19 AA-8
Sta7: 3 AA-8 4 AA-8 6 AA-8 10 AR-6 12 AR-8 13 AR-3 15 AA-1 16 AA-3 17 AA-4 19 AA-8
Sta8: 3 AA-8 4 AA-8 6 AA-8 9 AR-7 10 AA-8 12 AA-8 13 AA-8 14 AR-4 15 AA-1 16 AA-3 17 AA-4 19 AA-8
Sta9: 3 AA-8 4 AA-8 6 AA-8 10 AA-8 12 AA-8 13 AA-8 14 AR-9 15 AA-1 16 AA-3 17 AA-4 19 AA-8
Sta10: 3 AA-8 4 AA-8 6 AA-8 10 AA-8 12 AA-8 13 AR-10 15 AA-1 16 AA-3 17 AA-4 19 AA-8
Sta11: 3 AA-8 4 AA-8 6 AA-8 10 AA-8 12 AA-8 13 AR-3 15 AA-1 16 AA-3 17 AA-4 19 AA-8
Sta12: 3 AA-8 4 AA-8 6 AA-8 10 AA-8 12 AA-8 13 AA-8 14 AR-4 15 AA-1 16 AA-3 17 AA-4 19 AA-8
Sta13: 3 AA-6 4 AA-6 6 AA-7 10 AA-6 12 AA-6 13 AA-6 16 AA-2 17 AR-5 18 AA-2 19 AA-7
"""


# Tables 9-6 to 9-9: the action, the next state, the PDU that is sent, the events for the owner of the connection. AE-6 is
# given for an acceptable request; AR-8 leads the requestor to Sta9 and the acceptor to Sta10.
CONSEQUENCES = """
AE-1  Sta4  -
AE-2  Sta5  A-ASSOCIATE-RQ
AE-3  Sta6  -               AssociateConfirmation
AE-4  Sta1  -               AssociateConfirmation CLOSE
AE-5  Sta2  -               START_ARTIM
AE-6  Sta3  -               STOP_ARTIM AssociateIndication
AE-7  Sta6  A-ASSOCIATE-AC
AE-8  Sta13 A-ASSOCIATE-RJ  START_ARTIM
DT-1  Sta6  -
DT-2  Sta6  -               Fragment
AR-1  Sta7  A-RELEASE-RQ
AR-2  Sta8  -               ReleaseIndication
AR-3  Sta1  -               ReleaseConfirmation CLOSE
AR-4  Sta13 A-RELEASE-RP    START_ARTIM
AR-5  Sta1  -               STOP_ARTIM
AR-6  Sta7  -               Fragment
AR-7  Sta8  -
AR-8  Sta9  -               ReleaseIndication
AR-9  Sta11 A-RELEASE-RP
AR-10 Sta12 -               ReleaseConfirmation
AA-1  Sta13 A-ABORT-user    START_ARTIM
AA-2  Sta1  -               STOP_ARTIM CLOSE
AA-3  Sta1  -               AbortIndication CLOSE
AA-4  Sta1  -               AbortIndication
AA-5  Sta1  -               STOP_ARTIM
AA-6  Sta13 -
AA-7  Sta13 A-ABORT-provider
AA-8  Sta13 A-ABORT-provider AbortIndication START_ARTIM
"""


def read_standard():
    """Return the action of Table 9-10 by (event number, state number)."""
    cells = {}
    for line in STANDARD.strip().splitlines():
        state, _, rest = line.partition(":")
        words = rest.split()
        for event, action in zip(words[::2], words[1::2], strict=True):
            cells[int(event), int(state.removeprefix("Sta"))] = action
    return cells


def read_consequences():
    """Return (next state number, PDU sent or "-", names of the events for the owner) by action."""
    lines = [line.split() for line in CONSEQUENCES.strip().splitlines()]
    return {words[0]: (int(words[1].removeprefix("Sta")), words[2], words[3:]) for words in lines}


CELLS = read_standard()
NEXT = read_consequences()

RQ = AAssociateRQ("SCP", "SCU", (ProposedContext(1, "1.2.840.10008.1.1", ("1.2.840.10008.1.2",)),))
AC = AAssociateAC("SCP", "SCU", (AnsweredContext(1, 0, "1.2.840.10008.1.2"),))
RJ = AAssociateRJ(1, 1, 7)
DATA = PDataTF((PDV(1, 2, b"data"),))
UNKNOWN = b"\x0f\0\0\0\0\0"

SENT = {
    "-": b"",
    "A-ASSOCIATE-RQ": RQ.encode(),
    "A-ASSOCIATE-AC": AC.encode(),
    "A-ASSOCIATE-RJ": RJ.encode(),
    "A-RELEASE-RQ": AReleaseRQ().encode(),
    "A-RELEASE-RP": AReleaseRP().encode(),
    "A-ABORT-user": AAbort(0, 0).encode(),
}


def send_data(connection):
    """P-DATA request: the connection only says whether it is allowed, since the data does not pass through it."""
    if not connection.may_send_data:
        raise InvalidState("no P-DATA request now")
    return []


#: The way to produce each event.
APPLY = {
    1: lambda connection: connection.associate(RQ),
    2: lambda connection: connection.connection_made(),
    3: lambda connection: connection.receive_data(AC.encode()),
    4: lambda connection: connection.receive_data(RJ.encode()),
    5: lambda connection: connection.connection_made(),
    6: lambda connection: connection.receive_data(RQ.encode()),
    7: lambda connection: connection.accept(AC),
    8: lambda connection: connection.reject(RJ),
    9: send_data,
    10: lambda connection: connection.receive_data(DATA.encode()),
    11: lambda connection: connection.release(),
    12: lambda connection: connection.receive_data(AReleaseRQ().encode()),
    13: lambda connection: connection.receive_data(AReleaseRP().encode()),
    14: lambda connection: connection.release_response(),
    15: lambda connection: connection.abort(),
    16: lambda connection: connection.receive_data(AAbort(0, 0).encode()),
    17: lambda connection: connection.connection_lost(),
    18: lambda connection: connection.artim_expired(),
    19: lambda connection: connection.receive_data(UNKNOWN),
}

#: Primitives of the local side, which are errors if their cell in Table 9-10 is blank. Evt15 is an exception: see
#: ULConnection.abort.
LOCAL = {1, 2, 5, 7, 8, 9, 11, 14}

#: The events that lead from Sta1 to each state that the requestor of an association can reach ...
REQUESTOR_PATHS = {
    1: (), 4: (1,), 5: (1, 2), 6: (1, 2, 3), 7: (1, 2, 3, 11), 8: (1, 2, 3, 12), 9: (1, 2, 3, 11, 12),
    11: (1, 2, 3, 11, 12, 14), 13: (1, 2, 15),
}  # fmt: skip
#: ... and to each state that the acceptor can reach.
ACCEPTOR_PATHS = {
    1: (), 2: (5,), 3: (5, 6), 6: (5, 6, 7), 7: (5, 6, 7, 11), 8: (5, 6, 7, 12), 10: (5, 6, 7, 11, 12),
    12: (5, 6, 7, 11, 12, 13), 13: (5, 6, 8),
}  # fmt: skip


def connection_in(state, requestor):
    """Return a connection in *state*, reached by legal events."""
    connection = ULConnection(requestor=requestor)
    for event in (REQUESTOR_PATHS if requestor else ACCEPTOR_PATHS)[state]:
        APPLY[event](connection)
    connection.data_to_send()
    return connection


def cases():
    """Yield (event, state, requestor) for each cell that can occur, in each role in which it can."""
    for requestor, paths in ((True, REQUESTOR_PATHS), (False, ACCEPTOR_PATHS)):
        for state in paths:
            for event in range(1, 20):
                # The transport opens with Evt2 for a requestor and with Evt5 for an acceptor, which does not send Evt1.
                if event != (5 if requestor else 2) and (event, state, requestor) != (1, 1, False):
                    yield event, state, requestor


def name_of(event):
    return event.name if isinstance(event, Signal) else type(event).__name__


class TableTests(unittest.TestCase):
    """The tables in :mod:`dicomtwist.ul.state_machine`."""

    def test_each_cell(self):
        for event in Event:
            for state in State:
                with self.subTest(event=event.name, state=state.name):
                    action = TABLE.get((event, state))
                    ours = action.name.replace("_", "-") if action else None
                    self.assertEqual(ours, CELLS.get((event.value, state.value)))

    def test_size(self):
        self.assertEqual((len(State), len(Event)), (13, 19))
        self.assertEqual(len(TABLE), len(CELLS))

    def test_next_states(self):
        second = {"AE-6": 13, "AR-8": 10}
        for action, states in ACTIONS.items():
            name = action.name.replace("_", "-")
            with self.subTest(action=name):
                self.assertEqual(states[0], NEXT[name][0])
                self.assertEqual(list(states[1:]), [second[name]] if name in second else [])
        self.assertEqual(len(ACTIONS), len(NEXT))


class PathTests(unittest.TestCase):
    def test_each_state_is_reached(self):
        for requestor, paths in ((True, REQUESTOR_PATHS), (False, ACCEPTOR_PATHS)):
            for state in paths:
                self.assertEqual(connection_in(state, requestor).state, state)
        self.assertEqual({*REQUESTOR_PATHS, *ACCEPTOR_PATHS}, set(range(1, 14)))

    def test_only_openings_by_the_wrong_side_are_left_out(self):
        met = {(event, state) for event, state, _ in cases()}
        missing = {(event, state) for event in range(1, 20) for state in range(1, 14)} - met
        self.assertEqual(missing, {(5, s) for s in (4, 5, 9, 11)} | {(2, s) for s in (2, 3, 10, 12)})
        self.assertFalse(missing & CELLS.keys())


class CellTests(unittest.TestCase):
    """Each cell on a connection in its state."""

    def test_defined_cells(self):
        for event, state, requestor in cases():
            action = CELLS.get((event, state))
            if action is None:
                continue
            with self.subTest(event=event, state=state, action=action, requestor=requestor):
                connection = connection_in(state, requestor)
                events = APPLY[event](connection)
                next_state, pdu, owner = NEXT[action]
                if action == "AR-8" and not requestor:
                    next_state = 10
                if action == "AA-1" and event != 15:
                    # Not in the standard, since there is no association yet: it gives the owner the reason.
                    owner = ["AbortIndication", *owner]
                if pdu == "A-ABORT-provider":
                    sent = AAbort(2, 1 if event == 19 else 2).encode()
                else:
                    sent = SENT[pdu]
                self.assertEqual(connection.state, next_state)
                self.assertEqual(connection.data_to_send(), sent)
                self.assertEqual([name_of(e) for e in events], owner)

    def test_blank_cells(self):
        for event, state, requestor in cases():
            if (event, state) in CELLS:
                continue
            with self.subTest(event=event, state=state, requestor=requestor):
                connection = connection_in(state, requestor)
                if event in LOCAL:
                    with self.assertRaises(InvalidState):
                        APPLY[event](connection)
                else:
                    self.assertEqual(APPLY[event](connection), [])
                self.assertEqual(connection.state, state)
                self.assertEqual(connection.data_to_send(), b"")

    def test_an_acceptor_asks_for_no_association(self):
        connection = ULConnection(requestor=False)
        with self.assertRaises(InvalidState):
            connection.associate(RQ)
        self.assertEqual(connection.state, State.STA1)

    def test_the_error_names_event_and_state(self):
        with self.assertRaisesRegex(InvalidState, "EVT11 is not defined in STA1"):
            ULConnection(requestor=True).release()


class ContentTests(unittest.TestCase):
    """The content of indications and confirmations."""

    def test_association(self):
        self.assertEqual(
            APPLY[6](connection_in(2, False)),
            [Signal.STOP_ARTIM, AssociateIndication(RQ)],
        )
        self.assertEqual(APPLY[3](connection_in(5, True)), [AssociateConfirmation(AC)])
        self.assertEqual(APPLY[4](connection_in(5, True)), [AssociateConfirmation(RJ), Signal.CLOSE])

    def test_data(self):
        for state in 6, 7:
            (fragment,) = APPLY[10](connection_in(state, True))
            self.assertIsInstance(fragment, Fragment)
            self.assertEqual(
                (fragment.context_id, fragment.control, bytes(fragment.data), fragment.ends),
                (1, 2, b"data", True),
            )

    def test_release(self):
        self.assertEqual(APPLY[12](connection_in(6, False)), [ReleaseIndication(collision=False)])
        for requestor in True, False:
            self.assertEqual(APPLY[12](connection_in(7, requestor)), [ReleaseIndication(collision=True)])

    def test_abort_by_the_peer(self):
        for source, reason in ((0, 0), (2, 6), (77, 88)):
            for state in 3, 6, 12:
                connection = connection_in(state, False)
                self.assertEqual(
                    connection.receive_data(AAbort(source, reason).encode()),
                    [AbortIndication(source, reason, by_peer=True), Signal.CLOSE],
                )

    def test_connection_lost(self):
        (indication,) = APPLY[17](connection_in(6, True))
        self.assertTrue(indication.lost)

    def test_abort_by_this_side(self):
        indication, signal = APPLY[12](connection_in(5, True))
        self.assertEqual((indication.source, indication.reason, indication.by_peer), (2, 2, False))
        self.assertEqual(indication.detail, "AReleaseRQ out of place")
        self.assertIs(signal, Signal.START_ARTIM)
        indication, _ = APPLY[19](connection_in(6, True))
        self.assertEqual((indication.source, indication.reason, indication.by_peer), (2, 1, False))
        self.assertIn("unknown", indication.detail)

    def test_protocol_error(self):
        connection = connection_in(6, True)
        indication, signal = connection.protocol_error(4, "data set without command set")
        self.assertEqual(indication, AbortIndication(2, 4, by_peer=False, detail="data set without command set"))
        self.assertIs(signal, Signal.START_ARTIM)
        self.assertEqual(connection.data_to_send(), AAbort(2, 4).encode())
        self.assertEqual(connection.state, State.STA13)

    def test_data_out_of_place_is_named(self):
        indication, _ = APPLY[10](connection_in(3, False))
        self.assertEqual(indication.detail, "P-DATA-TF out of place")


class ProtocolVersionTests(unittest.TestCase):
    """AE-6, the decision of the provider itself: only bit 0 is tested (PS3.8 9.3.2)."""

    def receive(self, version):
        connection = connection_in(2, False)
        request = AAssociateRQ("SCP", "SCU", protocol_version=version)
        return connection, connection.receive_data(request.encode())

    def test_bit_0_among_others(self):
        for version in 0x0001, 0x0003, 0x8001, 0xFFFF:
            connection, events = self.receive(version)
            self.assertEqual([name_of(event) for event in events], ["STOP_ARTIM", "AssociateIndication"])
            self.assertEqual(connection.state, State.STA3)

    def test_without_bit_0(self):
        for version in 0x0000, 0x0002, 0x8000, 0xFFFE:
            connection, events = self.receive(version)
            self.assertEqual(events, [Signal.STOP_ARTIM, Signal.START_ARTIM])
            self.assertEqual(connection.data_to_send(), AAssociateRJ(1, 2, 2).encode())
            self.assertEqual(connection.state, State.STA13)
