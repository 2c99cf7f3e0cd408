"""
One peer: what waits for it, what is open, and the couriers that send it over connections of their own.

Nothing here waits for another peer. Few instances are in hand, so that memory is bounded and one that is urgent need not wait
long; the others stay in the queue of tasks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from random import random
from typing import Any, Final

from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from dicomtwist.forwarding.delivery.breaker import Breaker, BreakerState
from dicomtwist.forwarding.delivery.interfaces import Delivery, Sender
from dicomtwist.forwarding.delivery.rate import Rate
from dicomtwist.forwarding.delivery.results import MAX_TRIES, Action, Result, of_connecting, of_error
from dicomtwist.runtime.executors import Runner

__all__ = ["Peer"]

#: The most instances in hand: claimed, open, or being sent.
MAX_IN_HAND: Final = 256
#: The most of them whose rule has a rate. They wait here for their turn, and must not fill the places of others.
MAX_PACED: Final = 16
#: The most instances that are opened in one trip to a thread, and that are open at a time.
MAX_OPENED: Final = 32
MAX_READY: Final = 64
#: The bytes of open instances in memory from which on no more are opened.
MAX_HELD: Final = 4 * 1024 * 1024
#: The time for which a connection waits for another instance before it is given back, in seconds.
LINGER: Final = 2.0
#: The connections that end with one instance alone under way, with answers for others in between, until that one has failed.
MAX_LOST_ALONE: Final = 5
#: The most instances for which these are counted.
MAX_BLAMED: Final = 1000
#: The most instances that wait for a confirmation, and that are asked about together; and the time for which the first of
#: these waits for others, in seconds.
MAX_CONFIRMING: Final = 5000
CONFIRMED_TOGETHER: Final = 100
CONFIRM_PAUSE: Final = 2.0

#: The result of an instance that the peer cannot be sent any more, because it is stopped.
_GIVEN_BACK: Final = Result(Action.RETRY, is_down=True, is_sent=False)


class Peer:
    """
    One peer.

    :param name: its name in the configuration.
    :param sender: sends instances to it.
    :param executor: opens files.
    :param reactor: for timers.
    :param changed: called when there may be room for more.
    :param jitter: returns a number from 0 to 1.

    :ivar name: see above.
    :ivar sender: see above.
    :ivar breaker: whether it can be used.
    :ivar associations: the most connections at once.
    :ivar sent: the instances that it has taken.
    :ivar bytes_sent: the bytes of them.
    :ivar failures: the attempts that failed.
    :ivar in_hand: the instances that were given and have not ended, without those that wait for a confirmation.
    """

    log = Logger()

    def __init__(
        self,
        name: str,
        sender: Sender,
        executor: Runner,
        reactor: Any,
        changed: Callable[[], object],
        jitter: Callable[[], float] = random,
    ) -> None:
        self.name = name
        self.sender = sender
        self.breaker = Breaker(jitter)
        self.associations = 1
        self.sent = self.bytes_sent = self.failures = 0
        self.in_hand = 0
        self._executor = executor
        self._reactor = reactor
        self._changed = changed
        self._rates: dict[str, Rate] = {}
        self._waiting: deque[Delivery] = deque()
        self._paced: deque[Delivery] = deque()
        self._ready: deque[Delivery] = deque()
        self._held = 0
        self._opening: Deferred[Any] | None = None
        self._couriers: set[Deferred[None]] = set()
        self._hungry: list[Deferred[bool]] = []
        self._answers = self._losses = 0
        self._blamed: dict[int, tuple[int, int]] = {}
        self._confirming: dict[str, list[Delivery]] = {}
        self._in_confirmation = 0
        self._confirmations: set[Deferred[None]] = set()
        self._timers: dict[str, Any] = {}
        self._is_stopping = False

    # --- for lanes

    def configure(self, associations: int, rates: Mapping[str, float]) -> None:
        """
        Take the settings of the rules.

        :param associations: the most connections at once.
        :param rates: the bytes a second by the names of rules.
        """
        self.associations = associations
        for name in [name for name in self._rates if rates.get(name) != self._rates[name].rate]:
            del self._rates[name]
        for name, rate in rates.items():
            self._rates.setdefault(name, Rate(rate))

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to do."""
        return not (self.in_hand or self._in_confirmation or self._couriers or self._confirmations)

    @property
    def confirming(self) -> int:
        """The number of instances that wait for a confirmation."""
        return self._in_confirmation

    def state(self) -> BreakerState:
        """Return the state of the breaker."""
        return self.breaker.state(self._reactor.seconds())

    def is_usable(self) -> bool:
        """Return whether instances can be given, one at least, if there is room."""
        return not self._is_stopping and self.breaker.room(self._reactor.seconds()) != 0

    def room(self) -> int:
        """Return how many more instances it takes."""
        if self._is_stopping or self._in_confirmation >= MAX_CONFIRMING:
            return 0
        allowed = self.breaker.room(self._reactor.seconds())
        if allowed is None:
            return max(0, MAX_IN_HAND - self.in_hand)
        return 0 if self.in_hand else allowed

    def wait(self) -> float | None:
        """Return the seconds after which the breaker lets an attempt pass; ``None`` if it does now, or one is being made."""
        now = self._reactor.seconds()
        return self.breaker.until - now if self.breaker.state(now) is BreakerState.OPEN else None

    def room_for_rule(self, name: str) -> int:
        """Return how many more instances of a rule it takes, as far as the rate of the rule is concerned."""
        return max(0, MAX_PACED - len(self._paced)) if name in self._rates else MAX_IN_HAND

    def put(self, deliveries: Sequence[Delivery]) -> None:
        """Take instances; for each :attr:`Delivery.done` is called once."""
        self.in_hand += len(deliveries)
        if self._is_stopping:
            for delivery in deliveries:
                self._finish(delivery, _GIVEN_BACK)
            return
        for delivery in deliveries:
            (self._paced if delivery.rule.name in self._rates else self._waiting).append(delivery)
        self._advance()

    def stop(self) -> None:
        """Begin nothing more. Instances that were not sent end as not tried, and wait for the next run."""
        self._is_stopping = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for delivery in (*self._ready, *self._waiting, *self._paced):
            delivery.left = ()
        self._give_back(_GIVEN_BACK)
        waiting, self._confirming = self._confirming, {}
        for batch in waiting.values():
            self._confirmed(batch, [_GIVEN_BACK] * len(batch))
        self._feed(False)

    async def close(self, grace: float) -> None:
        """Stop, let what is being sent end within *grace* seconds, and close the connections."""
        self.stop()
        closing = Deferred.fromCoroutine(self.sender.close(grace))
        for confirmation in list(self._confirmations):
            confirmation.cancel()
        await DeferredList([closing, *self._couriers, *self._confirmations], consumeErrors=True)
        if self._opening is not None:
            await self._opening

    # --- the feed of senders

    def take(self, wanted: Callable[[Delivery], bool] | None = None) -> Delivery | None:
        """Return the first open instance, of those that are *wanted*."""
        ready = self._ready
        if not ready:
            return None
        if wanted is None or wanted(ready[0]):
            delivery = ready.popleft()
        else:
            found = next((one for one in ready if wanted(one)), None)
            if found is None:
                return None
            delivery = found
            ready.remove(delivery)
        self._held -= delivery.held
        if len(ready) < MAX_READY // 2:
            self._open_more()
        return delivery

    def ready(self) -> Sequence[Delivery]:
        """Return the open instances."""
        return self._ready

    def put_back(self, delivery: Delivery) -> None:
        """Put back an instance that was not sent."""
        self._ready.appendleft(delivery)
        self._held += delivery.held

    def more(self) -> Deferred[bool]:
        """Return a Deferred that fires with whether there is another instance."""
        hungry: Deferred[bool] = Deferred()
        if self._is_stopping:
            hungry.callback(False)
        else:
            self._hungry.append(hungry)
            timer = self._reactor.callLater(LINGER, self._starve, hungry)

            def fed(result: bool) -> bool:
                if timer.active():
                    timer.cancel()
                return result

            hungry.addCallback(fed)
        return hungry

    def _starve(self, hungry: Deferred[bool]) -> None:
        if hungry in self._hungry:
            self._hungry.remove(hungry)
            hungry.callback(False)

    def _feed(self, has_more: bool) -> None:
        hungry, self._hungry = self._hungry, []
        for one in hungry:
            one.callback(has_more)

    def ended(self, delivery: Delivery, result: Result) -> None:
        """Note the result of an instance that was taken."""
        if result.is_lost:
            self._losses += 1
            if delivery.is_suspect:
                result = self._lost_alone(delivery, result)
        else:
            self._answers += 1
            if result.is_down:
                self._down(result)
            elif self.breaker.failures and self.breaker.succeeded():
                self.log.info("{peer} can be reached again", peer=self.name)
        if result.action is Action.DONE:
            self.sent += 1
            self.bytes_sent += delivery.size
            if delivery.rule.confirm:
                if not self._is_stopping:
                    self.in_hand -= 1
                    self._confirm_later(delivery)
                    return
                result = _GIVEN_BACK
        self._finish(delivery, result)

    def _lost_alone(self, delivery: Delivery, result: Result) -> Result:
        """
        Return the result of an instance that was sent alone when its connection ended.

        It is to blame if that happens again and again, and others are answered in between. A peer that ends all connections
        is no reason to give up an instance.
        """
        count, answers = self._blamed.pop(delivery.task.id, (0, -1))
        if self._answers > answers:
            count += 1
        if count >= MAX_LOST_ALONE and delivery.task.tries + 1 >= MAX_TRIES:
            return Result(Action.FAIL, f"{result.said}: it ends each connection that it is sent over")
        while len(self._blamed) >= MAX_BLAMED:
            del self._blamed[next(iter(self._blamed))]
        self._blamed[delivery.task.id] = count, self._answers
        return result

    def _finish(self, delivery: Delivery, result: Result) -> None:
        self.in_hand -= 1
        if result.action is not Action.DONE:
            self.failures += 1
        delivery.parcel = None
        delivery.done(delivery, result)
        if self.in_hand <= MAX_IN_HAND // 2:
            self._changed()

    # --- opening

    def _advance(self) -> None:
        self._open_more()
        self._send_more()

    def _open_more(self) -> None:
        if self._opening is not None or self._is_stopping or len(self._ready) >= MAX_READY or self._held >= MAX_HELD:
            return
        batch: list[Delivery] = self._in_turn()
        while self._waiting and len(batch) < MAX_OPENED:
            batch.append(self._waiting.popleft())
        if batch:
            opening: Deferred[Any] = self._executor.run(self.sender.open, batch)
            self._opening = opening  # before its callbacks: it fails at once if the executor is full
            opening.addCallbacks(
                self._opened, self._not_opened, callbackArgs=(batch,), errbackArgs=(batch,)
            ).addErrback(self._log)

    def _in_turn(self) -> list[Delivery]:
        """Remove and return the instances whose rules have a rate that lets them pass now."""
        if not self._paced:
            return []
        now = self._reactor.seconds()
        passed: list[Delivery] = []
        kept: deque[Delivery] = deque()
        shortest: float | None = None
        for delivery in self._paced:
            rate = self._rates.get(delivery.rule.name)
            wait = 0.0 if rate is None or len(passed) >= MAX_OPENED else rate.wait(now)
            if wait or len(passed) >= MAX_OPENED:
                kept.append(delivery)
                shortest = wait if shortest is None else min(shortest, wait)
                continue
            if rate is not None:
                rate.take(delivery.task.size or 1, now)
            passed.append(delivery)
        self._paced = kept
        if shortest is not None:
            self._later("rate", max(shortest, 0.001), self._advance)
        return passed

    def _opened(self, results: Sequence[Result | None], batch: list[Delivery]) -> None:
        self._opening = None
        for delivery, result in zip(batch, results, strict=False):
            if self._is_stopping:
                delivery.close()
                self._finish(delivery, _GIVEN_BACK)
            elif result is None:
                if not delivery.task.size and (rate := self._rates.get(delivery.rule.name)) is not None:
                    rate.take(delivery.size, self._reactor.seconds())
                self._ready.append(delivery)
                self._held += delivery.held
            else:
                delivery.close()
                self._finish(delivery, result)
        self._wait_again(batch[len(results) :])
        self._advance()

    def _wait_again(self, deliveries: Sequence[Delivery]) -> None:
        """Put back instances that were to be opened."""
        if not self._is_stopping:
            self._waiting.extendleft(reversed(deliveries))
            return
        for delivery in deliveries:
            self._finish(delivery, _GIVEN_BACK)

    def _not_opened(self, reason: Failure, batch: list[Delivery]) -> None:
        """Try again a little later: the executor is full, or the opening failed as a whole."""
        self._opening = None
        self.log.warn("instances for {peer} cannot be opened: {why}", peer=self.name, why=reason.getErrorMessage())
        self._wait_again(batch)
        self._later("open", 1.0, self._advance)

    def _later(self, name: str, seconds: float, function: Callable[[], None]) -> None:
        if name in self._timers or self._is_stopping:
            return

        def run() -> None:
            del self._timers[name]
            function()

        self._timers[name] = self._reactor.callLater(seconds, run)

    # --- sending

    def _send_more(self) -> None:
        if not self._ready or self._is_stopping:
            return
        if self.breaker.state(self._reactor.seconds()) is BreakerState.OPEN:
            # It went down while these were being opened.
            self._give_back(Result(Action.RETRY, self.breaker.said, is_down=True, is_sent=False))
            return
        if self._hungry:
            self._feed(True)
            return
        most = 1 if self.breaker.failures else self.associations
        while len(self._couriers) < min(most, len(self._ready)):
            self.breaker.begin()
            courier = Deferred.fromCoroutine(self._send())
            if courier.called:
                return
            self._couriers.add(courier)
            courier.addBoth(self._sent, courier)

    async def _send(self) -> None:
        answers, losses = self._answers, self._losses
        try:
            await self.sender.send(self)
        except Exception as error:
            self._not_connected(error)
            return
        if self._answers != answers:
            return
        if self._losses == losses:
            self.breaker.give_up()
        elif self.breaker.lost(self._reactor.seconds(), "it ends every connection without an answer"):
            self._note_down()
        if self.breaker.failures:
            self._give_back(Result(Action.RETRY, self.breaker.said, is_down=True, is_sent=False))

    def _sent(self, result: object, courier: Deferred[None]) -> None:
        self._couriers.discard(courier)
        if isinstance(result, Failure):
            self._log(result)
        if self._ready:
            # Not at once: a peer that ends each connection as soon as it is made would make a loop of it.
            self._later("send", 0.0, self._advance)
        self._changed()

    def _not_connected(self, error: Exception) -> None:
        result = of_connecting(error)
        if result.action is Action.FAIL:
            if self.breaker.succeeded():
                self.log.info("{peer} can be reached again", peer=self.name)
            ready, self._ready = self._ready, deque()
            self._held = 0
            for delivery in ready:
                delivery.close()
                self._finish(delivery, result)
        else:
            self._down(result)

    def _down(self, result: Result) -> None:
        if self.breaker.failed(self._reactor.seconds(), result.said, result.after):
            self._note_down()
        self._give_back(Result(Action.RETRY, result.said, is_down=True, is_sent=False))

    def _note_down(self) -> None:
        self.log.warn("{peer} cannot be used: {why}; its instances wait", peer=self.name, why=self.breaker.said)

    def _give_back(self, result: Result) -> None:
        """End all instances that are not being sent."""
        given = [*self._ready, *self._waiting, *self._paced]
        self._ready.clear()
        self._waiting.clear()
        self._paced.clear()
        self._held = 0
        for delivery in given:
            delivery.close()
            self._finish(delivery, result)
        self._changed()

    # --- confirmation

    def _confirm_later(self, delivery: Delivery) -> None:
        self._in_confirmation += 1
        how = delivery.rule.confirm
        waiting = self._confirming.setdefault(how, [])
        delivery.parcel = None
        waiting.append(delivery)
        if len(waiting) >= CONFIRMED_TOGETHER:
            self._confirm(how)
        else:
            self._later(f"confirm {how}", CONFIRM_PAUSE, lambda: self._confirm(how))
        self._changed()

    def _confirm(self, how: str) -> None:
        batch = self._confirming.pop(how, [])
        if batch:
            confirmation = Deferred.fromCoroutine(self._ask(batch, how))
            self._confirmations.add(confirmation)

            def ended(result: object) -> None:
                self._confirmations.discard(confirmation)
                if isinstance(result, Failure) and not self._is_stopping:
                    self._log(result)

            confirmation.addBoth(ended)

    async def _ask(self, batch: list[Delivery], how: str) -> None:
        try:
            results = await self.sender.confirm(batch, how)
        except Exception as error:
            result = of_error(error)
            again = Result(Action.RETRY, f"no confirmation: {result.said}", result.most)
            results = [_GIVEN_BACK if self._is_stopping else again] * len(batch)
        self._confirmed(batch, results)

    def _confirmed(self, batch: list[Delivery], results: Sequence[Result]) -> None:
        for delivery, result in zip(batch, results, strict=True):
            self._in_confirmation -= 1
            self.in_hand += 1
            self._finish(delivery, result)

    def _log(self, reason: Failure) -> None:
        self.log.failure("while instances were sent to {peer}", reason, peer=self.name)
