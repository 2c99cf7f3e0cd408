"""Row 21: a reset or a close after every byte of a recorded C-STORE conversation, on either side."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from twisted.internet.defer import Deferred

from dicomtwist import AE, AssociationError, evt
from dicomtwist.testing import MemoryNetwork, ScriptedPeer
from fuzz.seeds import Recorder, pdus
from tests.hostile.common import HostileTestCase
from tests.memory import CONTEXTS, encoded, part10

SIZE = 200


def record() -> Recorder:
    """Record an echo, a C-STORE and the release, in both directions."""
    network, recorder = MemoryNetwork(), Recorder()
    scp, scu = AE("SCP", reactor=network), AE("SCU", reactor=network)
    scp.supported_contexts = CONTEXTS
    scu.requested_contexts = CONTEXTS

    async def converse() -> None:
        await scp.start_server(104, evt_handlers=[(evt.EVT_C_STORE, lambda event: 0)])
        assoc = await scu.associate("127.0.0.1", 104, evt_handlers=recorder.handlers())
        assert (await assoc.send_c_echo()).is_success
        assert (await assoc.send_c_store(BytesIO(part10(SIZE)))).is_success
        await assoc.release()

    network.result_of(converse())
    return recorder


def end(peer: ScriptedPeer, way: str) -> None:
    """Close or reset the connection."""
    if peer.closed is None:
        peer.reset() if way == "reset" else peer.close()


class Acceptor(HostileTestCase):
    """The peer sends the first bytes of a requestor's stream, and closes."""

    def test_every_offset(self) -> None:
        stream = record().sent[0]
        stored: dict[str, bytes] = {"old": b"an earlier copy"}
        told: list[str] = []

        @evt.streaming
        async def stream_it(event: evt.StoreEvent) -> int:
            parts = []
            try:
                async for part in event.stream:
                    parts.append(bytes(part))
            except AssociationError:
                told.append("gone")
                raise
            stored[event.request.affected_sop_instance_uid] = b"".join(parts)
            return 0

        self.serve((evt.EVT_C_STORE, stream_it))
        assert self.server is not None
        ends: dict[str, int] = {}

        def ended(event: evt.Event) -> None:
            ends[event.event.name] = ends.get(event.event.name, 0) + 1

        self.server.bind(evt.EVT_ABORTED, ended)
        self.server.bind(evt.EVT_RELEASED, ended)
        whole = stream.index(pdus(stream)[-1])  # the release begins here, after the data set
        begun = len(b"".join(pdus(stream)[:3]))  # the command set of the C-STORE ends here
        for way in ("reset", "close"):
            for offset in range(len(stream) + 1):
                peer = self.connect()
                peer.send(stream[:offset])
                before = len(told)
                complete = "1.2.3.4" in stored
                self.assertEqual(complete, offset >= whole, offset)
                end(peer, way)
                self.assertFalse(self.end_of(peer).connected, offset)
                self.assertEqual(len(told) - before, int(begun <= offset < whole), offset)
                stored.pop("1.2.3.4", None)
                self.network.connections[:] = [one for one in self.network.connections if one.is_open]
                self.assertEqual(len(self.network.connections), 1)  # the neighbour's
                if offset % 50 == 0:
                    self.echo_is_answered()
        self.assertEqual(stored, {"old": b"an earlier copy"})
        self.assertEqual(ends, {"EVT_ABORTED": 2 * len(stream), "EVT_RELEASED": 2})
        self.assertEqual(len(self.server.factory.associations), 1)

    def test_the_end_of_the_data_set_is_what_it_says(self) -> None:
        self.assertIn(encoded(SIZE)[-SIZE:], record().sent[0])


class Requestor(HostileTestCase):
    """The peer sends the first bytes of an acceptor's stream, and closes: each waiting caller is notified, once."""

    def test_every_offset(self) -> None:
        stream = record().received[0]
        for way in ("reset", "close"):
            for offset in range(len(stream) + 1):
                steps = self.converse(stream[:offset], way)
                self.assertTrue(steps, offset)
                last = steps[-1]
                if offset == len(stream):
                    self.assertEqual(steps, ["associated", "echoed", "stored", "released"])
                else:
                    self.assertIsInstance(last, AssociationError, offset)
        self.assertEqual(self.network.pools, [])

    def converse(self, data: bytes, way: str) -> list[Any]:
        """Associate, echo, store and release with a peer that sends *data*; return the outcome of each, in order."""
        peer = self.network.scripted_server(105)
        steps: list[Any] = []
        finished: list[Any] = []

        async def run() -> None:
            assoc = await self.scu.associate("127.0.0.1", 105)
            steps.append("associated")
            await assoc.send_c_echo()
            steps.append("echoed")
            await assoc.send_c_store(BytesIO(part10(SIZE)))
            steps.append("stored")
            await assoc.release()
            steps.append("released")

        def failed(reason: Any) -> None:
            steps.append(reason.value)

        running: Deferred[None] = Deferred.fromCoroutine(run())
        running.addErrback(failed).addBoth(finished.append)
        self.network.flush()
        # As a real peer does, send each PDU when the message that it answers has arrived.
        while data:
            length = 6 + int.from_bytes(data[2:6], "big") if len(data) >= 6 else len(data)
            peer.send(data[:length])
            data = data[length:]
        end(peer, way)
        self.network.flush()
        self.assertEqual(len(finished), 1, "somebody still waits")
        self.assertFalse(self.network.connections[-1].is_open)
        self.assertEqual(self.network.getDelayedCalls(), [])
        self.network.ports.pop(105, None)
        self.network.connections.clear()
        return steps
