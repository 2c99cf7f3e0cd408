"""The forwarder with a scripted queue and scripted peers, under a clock that the test moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.trial.unittest import SynchronousTestCase

from dicomtwist.errors import NoAcceptedContexts, RetriesExhausted
from dicomtwist.forwarding.delivery.breaker import BreakerState
from dicomtwist.forwarding.delivery.interfaces import Delivery
from dicomtwist.forwarding.delivery.peer import MAX_HELD, MAX_IN_HAND, MAX_PACED, MAX_READY
from dicomtwist.forwarding.delivery.results import DONE, MAX_MISSING, Action, Result, of_status
from dicomtwist.forwarding.tasks.types import TaskState
from tests.forwarding.delivery.scripted import Network, ScriptedQueue

REFUSED = RetriesExhausted("A gave no answer", 1, ConnectionRefusedError())
LOST = Result(Action.RETRY, "the association was aborted", is_lost=True)


def network(*tables: dict[str, Any], peers: str = "A") -> Network:
    return Network(ScriptedQueue(*tables or ({"to": ["A"]},)), *peers.split())


class Sending(SynchronousTestCase):
    def test_all_arrive_once(self) -> None:
        net = network()
        net.queue.add(1000)
        net.start()
        net.run(5)
        self.assertEqual(net.queue.states(), {"done": 1000})
        self.assertEqual(len(net.senders["A"].sent), 1000)
        self.assertEqual(len(set(net.senders["A"].sent)), 1000)

    def test_batches(self) -> None:
        """A thousand tasks cost a dozen claims and a dozen transactions, not a thousand."""
        net = network()
        net.queue.add(1000)
        net.start()
        net.run(5)
        self.assertLessEqual(len(net.queue.claims), 16)
        self.assertLessEqual(len(net.queue.finishes), 16)
        self.assertEqual(sum(net.queue.finishes), 1000)

    def test_notified(self) -> None:
        net = network()
        net.start()
        net.run(1)
        net.queue.add(3)
        net.forwarder.notify()
        net.run(1)
        self.assertEqual(net.queue.states(), {"done": 3})

    def test_tasks_that_nobody_tells_of(self) -> None:
        """Another process may have made them."""
        net = network()
        net.start()
        net.queue.add(3)
        net.run(20)
        self.assertEqual(net.queue.states(), {"done": 3})

    def test_idle_costs_little(self) -> None:
        net = network()
        net.start()
        net.run(600)
        self.assertEqual(net.queue.claims, [])
        self.assertEqual(net.senders["A"].attempts, 0)

    def test_one_connection_for_a_trickle(self) -> None:
        net = network()
        net.start()
        for _ in range(10):
            net.queue.add(1)
            net.forwarder.notify()
            net.run(0.5)
        self.assertEqual(net.senders["A"].attempts, 1)
        self.assertEqual(net.queue.states(), {"done": 10})

    def test_bounded(self) -> None:
        """A peer that does not answer has a bounded number of tasks in hand, and bounded memory."""
        net = network()
        net.queue.add(5000, size=MAX_HELD // 8)
        net.senders["A"].answer = lambda delivery: None
        net.start()
        net.run(60)
        self.assertLessEqual(net.queue.states()["sending"], MAX_IN_HAND)
        self.assertLessEqual(net.senders["A"].most_open, MAX_READY + 32)
        net.senders["A"].answer = lambda delivery: DONE
        net.senders["A"].answer_held()
        net.run(60)
        self.assertEqual(net.queue.states(), {"done": 5000})

    def test_associations(self) -> None:
        net = network({"to": ["A"], "associations": 3})
        net.queue.add(100)
        sender = net.senders["A"]
        sender.answer, sender.window = (lambda delivery: None), 3
        net.start()
        net.run(1)
        self.assertEqual(net.associations, {"A": 3})
        self.assertEqual(sender.most_connections, 3)

    def test_replaced_while_being_sent(self) -> None:
        """The copy that replaces one does not overtake it: the peer ends with the later one."""
        net = network({"to": ["A"], "associations": 2})
        (task,) = net.queue.add(1)
        sender = net.senders["A"]
        sender.answer, sender.window = (lambda delivery: None), 2
        net.start()
        net.run(1)
        self.assertEqual(len(sender.sent), 1)
        net.queue.tasks[task.id] = replace(task, version=1)
        net.forwarder.notify()
        net.run(5)
        self.assertEqual(len(sender.sent), 1)
        sender.answer = lambda delivery: DONE
        sender.answer_held()
        net.run(3)
        self.assertEqual([delivery.version for delivery in sender.deliveries], [0, 1])
        self.assertEqual(net.queue.states(), {"done": 1})

    def test_two_destinations(self) -> None:
        net = network({"to": ["A", "B"]}, peers="A B")
        net.queue.add(100)
        net.start()
        net.run(2)
        self.assertEqual(net.queue.states(), {"done": 200})

    def test_unknown_peer(self) -> None:
        """Its tasks wait, and are sent once the peer is configured."""
        net = network({"to": ["X", "A"]})
        net.queue.add(1)
        net.start()
        net.run(1)
        self.assertEqual(net.queue.states("A"), {"done": 1})
        self.assertEqual(net.queue.states("X"), {"waiting": 1})
        net.senders["X"] = type(net.senders["A"])(net.clock)
        net.forwarder.reload()
        net.run(1)
        self.assertEqual(net.queue.states("X"), {"done": 1})

    def test_rule_that_cannot_be_read(self) -> None:
        net = network({"to": ["A"]}, {"to": ["A"]})
        net.queue.add(1)
        net.queue.add(1, rule=2)
        read = net.forwarder._read_rule

        def read_rule(definition):
            if definition.id == 1:
                raise ValueError("the table of values has gone")
            return read(definition)

        net.forwarder._read_rule = read_rule
        net.start()
        net.run(1)
        self.assertEqual(net.queue.states(), {"done": 1, "waiting": 1})
        net.forwarder._read_rule = read
        net.run(120)
        self.assertEqual(net.queue.states(), {"done": 2})


class Failing(SynchronousTestCase):
    def test_for_good(self) -> None:
        """One fails with the words of the peer, and the others go on."""
        net = network()
        tasks = net.queue.add(100)
        bad = tasks[10].instance
        net.senders["A"].answer = lambda one: of_status(0xA900, "wrong") if one.task.instance == bad else DONE
        net.start()
        net.run(2)
        self.assertEqual(net.queue.states(), {"done": 99, "failed": 1})
        self.assertIn("wrong", net.queue.tasks[11].said)
        self.assertEqual(net.queue.tasks[11].tries, 1)

    def test_again(self) -> None:
        net = network()
        net.queue.add(1)
        net.senders["A"].answer = lambda one: DONE if one.task.tries >= 2 else of_status(0x0110, "busy")
        net.start()
        net.run(5)
        self.assertEqual(net.queue.states(), {"waiting": 1})
        self.assertApproximates(net.queue.tasks[1].next_try - net.now(), 5, 0.5)
        net.run(6)
        self.assertEqual((net.queue.tasks[1].tries, net.queue.states()), (2, {"waiting": 1}))
        net.run(25)
        self.assertEqual(net.queue.states(), {"done": 1})

    def test_no_more_than_twelve_times(self) -> None:
        net = network()
        net.queue.add(1)
        net.senders["A"].answer = lambda one: of_status(0x0110, "busy")
        net.start()
        net.run(6 * 3600, 10)
        self.assertEqual(net.queue.states(), {"failed": 1})
        self.assertEqual(len(net.senders["A"].sent), 12)
        self.assertIn("given up after 12 tries", net.queue.tasks[1].said)

    def test_full_destination_is_waited_for(self) -> None:
        """An instance that it has no room for does not keep others back, and never fails."""
        net = network()
        net.queue.add(2)
        net.senders["A"].answer = lambda one: of_status(0xA700, "full") if one.task.id == 1 else DONE
        net.start()
        net.run(10 * 3600, 10)
        self.assertEqual(net.queue.states(), {"done": 1, "waiting": 1})
        self.assertGreater(net.queue.tasks[1].tries, 12)

    def test_not_in_the_archive(self) -> None:
        net = network()
        net.queue.add(3)
        missing = Result(Action.RETRY, "the archive does not have it", MAX_MISSING)
        net.senders["A"].unreadable = lambda one: missing if one.task.id == 2 else None
        net.start()
        net.run(600, 1)
        self.assertEqual(net.queue.states(), {"done": 2, "failed": 1})
        self.assertEqual(net.queue.tasks[2].tries, MAX_MISSING)

    def test_no_context(self) -> None:
        net = network()
        net.queue.add(3)
        net.senders["A"].refusal = NoAcceptedContexts("none")
        net.start()
        net.run(5)
        self.assertEqual(net.queue.states(), {"failed": 3})
        self.assertEqual(net.forwarder.peers["A"].state(), BreakerState.CLOSED)

    def test_queue_that_fails(self) -> None:
        """A full disk: outcomes are kept until they can be recorded, and nothing is sent twice."""
        net = network()
        net.queue.add(300)
        net.senders["A"].answer = lambda one: None
        net.senders["A"].window = 50
        net.start()
        net.run(1)
        net.queue.broken = OSError(28, "no room")
        net.senders["A"].answer = lambda one: DONE
        net.senders["A"].answer_held()
        net.run(120)
        net.queue.broken = None
        net.run(60)
        self.assertEqual(net.queue.states(), {"done": 300})
        self.assertEqual(len(net.senders["A"].sent), 300)

    def test_queue_that_fails_stops_claims(self) -> None:
        net = network()
        net.queue.add(20_000)
        net.start()
        finish = net.queue.finish

        def failing(outcomes: object) -> None:
            raise OSError(28, "no room")

        net.queue.finish = failing  # type: ignore[method-assign]
        net.run(600, 0.5)
        self.assertLess(net.queue.states()["sending"], 3000)
        net.queue.finish = finish  # type: ignore[method-assign]
        net.run(120)
        self.assertEqual(net.queue.states(), {"done": 20_000})


class Down(SynchronousTestCase):
    def test_one_attempt_at_a_time(self) -> None:
        """An hour costs about sixty attempts, whatever waits."""
        net = network()
        net.queue.add(1000)
        net.senders["A"].refusal = REFUSED
        net.start()
        net.run(3600, 0.5)
        self.assertLess(net.senders["A"].attempts, 75)
        self.assertEqual(net.queue.states(), {"waiting": 1000})
        self.assertEqual(max(task.tries for task in net.queue.tasks.values()), 0)
        net.senders["A"].refusal = None
        net.run(80)
        self.assertEqual(net.queue.states(), {"done": 1000})

    def test_words(self) -> None:
        net = network()
        net.queue.add(1)
        net.senders["A"].refusal = REFUSED
        net.start()
        net.run(1)
        self.assertIn("refused", net.queue.tasks[1].said)
        peer = net.forwarder.peers["A"]
        self.assertIn("refused", peer.breaker.said)

    def test_others_go_on(self) -> None:
        """The one that is down, and the one that does not answer, hold up no other."""
        net = network({"to": ["A", "B", "C"]}, peers="A B C")
        net.senders["A"].refusal = REFUSED
        net.senders["B"].answer = lambda one: None
        net.start()
        for number in range(20):
            net.queue.add(50)
            net.forwarder.notify()
            net.run(0.9)
            self.assertEqual(net.queue.states("C"), {"done": 50 * (number + 1)})

    def test_accepts_and_drops(self) -> None:
        """A destination that ends each association costs one attempt at a time as well, and no instance fails."""
        net = network()
        net.queue.add(500)
        net.senders["A"].answer = lambda one: LOST
        net.start()
        net.run(3600, 0.5)
        self.assertLess(net.senders["A"].attempts, 90)
        self.assertEqual(net.queue.states(), {"waiting": 500})
        net.senders["A"].answer = lambda one: DONE
        net.run(3700, 1)
        self.assertEqual(net.queue.states(), {"done": 500})

    def test_an_instance_that_ends_associations(self) -> None:
        """It is sent alone after some tries; the others arrive, and it fails in the end."""
        net = network()
        net.queue.add(200)
        net.senders["A"].answer = lambda one: LOST if one.task.id == 7 else DONE
        net.start()
        net.run(60)
        self.assertEqual(net.queue.states()["done"], 199)
        for _ in range(60):
            net.queue.add(1)
            net.forwarder.notify()
            net.run(600, 2)
        self.assertEqual(net.queue.tasks[7].state, TaskState.FAILED)
        self.assertEqual(net.queue.states()["done"], 259)

    def test_flapping(self) -> None:
        net = network()
        net.queue.add(2000)
        sender = net.senders["A"]
        net.start()
        for _ in range(20):
            sender.refusal = REFUSED
            sender.answer = lambda one: LOST
            net.run(2)
            sender.refusal = None
            sender.answer = lambda one: DONE
            net.run(3)
        net.run(600)
        self.assertEqual(net.queue.states(), {"done": 2000})


class Failover(SynchronousTestCase):
    TABLE: dict[str, Any] = {"to": [["A", "B"]]}

    def test_first(self) -> None:
        net = network(self.TABLE, peers="A B")
        net.queue.add(100)
        net.start()
        net.run(2)
        self.assertEqual((len(net.senders["A"].sent), net.senders["B"].sent), (100, []))

    def test_first_is_down(self) -> None:
        net = network(self.TABLE, peers="A B")
        net.queue.add(100)
        net.senders["A"].refusal = REFUSED
        net.start()
        net.run(2)
        self.assertEqual(net.queue.states(), {"done": 100})
        self.assertEqual(len(net.senders["B"].sent), 100)
        net.senders["A"].refusal = None
        for _ in range(10):
            net.queue.add(10)
            net.forwarder.notify()
            net.run(10)
        self.assertGreater(len(net.senders["A"].sent), 50)
        self.assertEqual(net.queue.states(), {"done": 200})

    def test_first_refuses_an_instance(self) -> None:
        net = network(self.TABLE, peers="A B")
        net.queue.add(10)
        net.senders["A"].answer = lambda one: of_status(0xA900) if one.task.id == 3 else DONE
        net.start()
        net.run(2)
        self.assertEqual(net.queue.states(), {"done": 10})
        self.assertEqual(net.senders["B"].sent, ["1.2.3.3"])

    def test_both_refuse(self) -> None:
        net = network(self.TABLE, peers="A B")
        net.queue.add(1)
        for name in "AB":
            net.senders[name].answer = lambda one, name=name: of_status(0xA900, f"not for {name}")  # type: ignore[misc]
        net.start()
        net.run(2)
        said = net.queue.tasks[1].said
        self.assertEqual(net.queue.states(), {"failed": 1})
        self.assertTrue("A: " in said and "not for A" in said and "B: " in said and "not for B" in said, said)

    def test_one_refuses_and_the_other_is_down(self) -> None:
        net = network(self.TABLE, peers="A B")
        net.queue.add(1)
        net.senders["A"].answer = lambda one: of_status(0xA900)
        net.senders["B"].refusal = REFUSED
        net.start()
        net.run(60)
        self.assertEqual(net.queue.states(), {"waiting": 1})
        net.senders["B"].refusal = None
        net.run(600)
        self.assertEqual(net.queue.states(), {"done": 1})

    def test_both_are_down(self) -> None:
        net = network(self.TABLE, peers="A B")
        net.queue.add(100)
        for sender in net.senders.values():
            sender.refusal = REFUSED
        net.start()
        net.run(600, 0.5)
        self.assertLess(sum(sender.attempts for sender in net.senders.values()), 40)
        net.senders["B"].refusal = None
        net.run(70)
        self.assertEqual(net.queue.states(), {"done": 100})


class Pace(SynchronousTestCase):
    def test_rate(self) -> None:
        net = network({"to": ["A"], "rate": "10kB/s"})
        net.queue.add(100, size=1000)
        net.start()
        net.run(5)
        self.assertApproximates(len(net.senders["A"].sent), 60, 10)
        net.run(6)
        self.assertEqual(net.queue.states(), {"done": 100})

    def test_rate_holds_up_no_other_rule(self) -> None:
        net = network({"to": ["A"], "rate": "1kB/s"}, {"to": ["A"]})
        net.queue.add(1000, size=1000)
        net.queue.add(500, rule=2)
        net.start()
        net.run(3)
        self.assertGreaterEqual(net.queue.states()["done"], 500)
        self.assertLessEqual(net.queue.states()["sending"], MAX_PACED)

    def test_size_that_is_not_known(self) -> None:
        net = network({"to": ["A"], "rate": "1kB/s"})
        net.queue.add(10, size=0)
        net.senders["A"].unreadable = lambda one: setattr(one, "size", 1000)
        net.start()
        net.run(60)
        self.assertEqual(net.queue.states(), {"done": 10})

    def test_hours(self) -> None:
        net = network({"to": ["A"], "hours": ["00:00-24:00"]}, {"to": ["A"], "hours": ["03:00-03:01"]})
        net.queue.add(1)
        net.queue.add(1, rule=2)
        net.start()
        net.run(1)
        self.assertEqual(net.queue.states()["done"], 1)
        net.run(24 * 3600, 20)
        self.assertEqual(net.queue.states(), {"done": 2})


class Confirming(SynchronousTestCase):
    TABLE: dict[str, Any] = {"to": ["A"], "confirm": "commit"}

    def test_done_when_confirmed(self) -> None:
        net = network(self.TABLE)
        net.queue.add(150)
        net.start()
        net.run(1)
        self.assertEqual(net.queue.states()["done"], 100)
        net.run(3)
        self.assertEqual(net.queue.states(), {"done": 150})
        self.assertEqual([len(batch) for batch in net.senders["A"].confirmed], [100, 50])

    def test_not_confirmed(self) -> None:
        net = network(self.TABLE)
        net.queue.add(3)
        refusal = Result(Action.RETRY, "it has lost the instance", 12)
        net.senders["A"].confirmation = lambda one: refusal if one.task.id == 2 and not one.task.tries else DONE
        net.start()
        net.run(5)
        self.assertEqual(net.queue.states(), {"done": 2, "waiting": 1})
        self.assertIn("lost", net.queue.tasks[2].said)
        net.run(20)
        self.assertEqual(net.queue.states(), {"done": 3})
        self.assertEqual(net.senders["A"].sent.count("1.2.3.2"), 2)

    def test_peer_that_cannot_be_asked(self) -> None:
        net = network(self.TABLE)
        net.queue.add(3)

        def fail(delivery: Delivery) -> Result:
            raise RetriesExhausted("no answer", 1, ConnectionRefusedError())

        net.senders["A"].confirmation = fail
        net.start()
        net.run(5)
        self.assertEqual(net.queue.states(), {"waiting": 3})
        net.senders["A"].confirmation = lambda one: DONE
        net.run(60)
        self.assertEqual(net.queue.states(), {"done": 3})


class Stopping(SynchronousTestCase):
    def test_gives_back(self) -> None:
        net = network()
        net.queue.add(500)
        net.senders["A"].answer = lambda one: None
        net.start()
        net.run(1)
        self.successResultOf(net.stop())
        self.assertEqual(net.queue.states(), {"waiting": 500})
        self.assertEqual(net.queue.released, ["test"])
        self.assertTrue(net.senders["A"].is_closed)
        self.assertEqual((net.senders["A"].open_now, net.ae.executors.users), (0, 0))
        self.assertEqual(net.clock.getDelayedCalls(), [])

    def test_results_are_recorded(self) -> None:
        net = network()
        net.queue.add(20)
        net.start()
        while len(net.senders["A"].sent) < 20:
            net.run(0.01)
        self.assertEqual(net.queue.states(), {"sending": 20})
        self.successResultOf(net.stop())
        self.assertEqual(net.queue.states(), {"done": 20})

    def test_again(self) -> None:
        net = network()
        net.start()
        self.successResultOf(net.stop())
        self.successResultOf(net.stop())
        net.queue.add(5)
        net.start()
        net.run(1)
        self.assertEqual(net.queue.states(), {"done": 5})

    def test_with_a_queue_that_fails(self) -> None:
        net = network()
        net.queue.add(5)
        net.start()
        net.queue.broken = OSError(28, "no room")
        self.successResultOf(net.stop())
        self.assertEqual(net.ae.executors.users, 0)

    def test_not_confirmed_yet(self) -> None:
        """An instance that waits for its confirmation is not done when the forwarder stops."""
        net = network({"to": ["A"], "confirm": "commit"})
        net.queue.add(10)
        net.start()
        while len(net.senders["A"].sent) < 10:
            net.run(0.05)
        self.successResultOf(net.stop())
        self.assertEqual(net.queue.states(), {"waiting": 10})
        self.assertEqual({task.tries for task in net.queue.tasks.values()}, {0})

    def test_reload_with_confirmations_under_way(self) -> None:
        net = network({"to": ["A"], "confirm": "commit"})
        net.queue.add(110)
        first = net.senders["A"]
        asked: list[Deferred[object]] = []

        def never(deliveries: object, how: str) -> Deferred[object]:
            asked.append(Deferred())
            return asked[-1]

        first.confirm = never  # type: ignore[method-assign, assignment]
        net.start()
        net.run(1)
        self.assertEqual(len(asked), 1)
        net.senders["A"] = type(first)(net.clock)
        net.forwarder.reload()
        net.run(10)
        self.assertEqual(net.queue.states(), {"done": 110})

    def test_reload_at_any_time(self) -> None:
        """No task is forgotten, at whatever step the peers are connected to again."""
        for steps in range(1, 60):
            net = network()
            net.queue.add(40)
            net.forwarder.startService()
            net.run(steps * 0.001, 0.001)
            net.forwarder.reload()
            net.run(40)
            self.assertEqual(net.queue.states(), {"done": 40}, steps)

    def test_stop_at_any_time(self) -> None:
        for steps in range(1, 60):
            net = network()
            net.queue.add(40)
            net.forwarder.startService()
            net.run(steps * 0.001, 0.001)
            self.successResultOf(net.stop())
            states = net.queue.states()
            self.assertEqual(states["done"] + states["waiting"], 40, states)
            self.assertGreaterEqual(len(net.senders["A"].sent), states["done"])
            self.assertEqual((net.senders["A"].open_now, net.clock.getDelayedCalls()), (0, []))

    def test_leases(self) -> None:
        net = network()
        net.start()
        net.run(1001, 1)
        self.assertEqual(net.queue.renewals, 10)

    def test_reload_under_way(self) -> None:
        net = network()
        net.queue.add(300)
        first = net.senders["A"]
        first.answer = lambda one: None
        net.start()
        net.run(1)
        second = net.senders["A"] = type(first)(net.clock)
        net.forwarder.reload()
        net.run(30)
        self.assertTrue(first.is_closed)
        self.assertEqual(net.queue.states(), {"done": 300})
        self.assertGreaterEqual(len(second.sent), 299)
