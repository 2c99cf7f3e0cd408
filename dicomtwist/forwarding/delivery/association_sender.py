"""
Sending over associations: the presentation contexts that the instances need, the window, and the answers (PS3.4 B.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure

from dicomtwist.datasets.outgoing_instance import OutgoingInstance
from dicomtwist.dimse.messages import LOW, Response
from dicomtwist.exchange.store_request import prepare, prepare_at_once, send
from dicomtwist.forwarding.delivery.confirmation import Commitments, find_contexts, find_instances
from dicomtwist.forwarding.delivery.instances import open_each, open_for_association
from dicomtwist.forwarding.delivery.interfaces import Delivery, Feed, InstanceSource
from dicomtwist.forwarding.delivery.results import Result, of_error, of_status
from dicomtwist.pool.pool import AssociationPool
from dicomtwist.runtime.executors import Executor
from dicomtwist.scp.move_destination import contexts_for
from dicomtwist.ul.items import AsyncOperationsWindow

if TYPE_CHECKING:
    from dicomtwist.ae.ae import AE
    from dicomtwist.association.association import Association

__all__ = ["AssociationSender"]

#: The most kinds of instances that one association can be used for. Each needs up to two of its 128 presentation contexts.
MAX_KINDS: Final = 60
#: The most groups of kinds whose associations are kept.
MAX_GROUPS: Final = 8
#: The window that is proposed: the requests that may wait for an answer at once. Most peers answer with one.
WINDOW: Final = 16
#: The bytes of instances in memory from which on no more are opened in one trip to a thread.
ENOUGH: Final = 1024 * 1024

#: A SOP Class UID and a transfer syntax UID.
Kind = tuple[str, str]


def _kind(delivery: Delivery) -> Kind:
    instance = delivery.parcel
    return instance.sop_class_uid, instance.transfer_syntax


class _Group:
    """
    Associations that propose the same presentation contexts.

    :ivar kinds: the kinds of instances that can be sent over them.
    :ivar users: the number of couriers that use them.
    """

    def __init__(self, kinds: frozenset[Kind], pool: AssociationPool) -> None:
        self.kinds = kinds
        self.pool = pool
        self.users = 0


class AssociationSender:
    """
    Sends instances to one AE.

    :param ae: requests the associations.
    :param address: where the peer is: (host, port), or an endpoint.
    :param ae_title: the AE title of the peer.
    :param source: the instances.
    :param commitments: requests storage commitment.
    :param associations: the most associations at once.
    :param arguments: further arguments of :meth:`dicomtwist.AE.associate`, such as ``tls_args``.
    """

    def __init__(
        self,
        ae: AE,
        address: tuple[str, int] | IStreamClientEndpoint | str,
        ae_title: str,
        source: InstanceSource,
        commitments: Commitments,
        associations: int = 1,
        **arguments: Any,
    ) -> None:
        self._ae = ae
        self._address: str | IStreamClientEndpoint
        self._port: int | None
        self._address, self._port = address if isinstance(address, tuple) else (address, None)
        self._title = ae_title
        self._source = source
        self._commitments = commitments
        self._associations = associations
        self._arguments = arguments
        self._executor: Executor = ae.executors.retrieval
        self._groups: list[_Group] = []
        self._confirming: dict[str, AssociationPool] = {}
        self._closing: set[Deferred[Any]] = set()
        self._in_use: set[Association] = set()

    # --- opening

    def open(self, deliveries: Sequence[Delivery]) -> list[Result | None]:
        """Open instances, see :class:`~dicomtwist.forwarding.delivery.interfaces.Sender`."""
        return open_each(
            deliveries, self._source, lambda one, path: open_for_association(one, path, self._executor), ENOUGH
        )

    # --- sending

    async def send(self, feed: Feed) -> None:
        """Send what *feed* has, see :class:`~dicomtwist.forwarding.delivery.interfaces.Sender`."""
        while True:
            group = self._group_for(feed.ready())
            if group is None:
                return
            group.users += 1
            try:
                async with group.pool.association(exclusive=True) as association:
                    run = _Run(association, feed, group.kinds)
                    self._in_use.add(association)
                    try:
                        await run.until_dry()
                    finally:
                        self._in_use.discard(association)
                if run.is_lost:
                    return
            finally:
                group.users -= 1
                if not group.users and group not in self._groups:
                    self._close_later(group.pool)

    def _group_for(self, ready: Iterable[Delivery]) -> _Group | None:
        """Return associations for the first of *ready*, and as many others as possible; ``None`` if there is none."""
        kinds = dict.fromkeys(map(_kind, ready))
        if not kinds:
            return None
        first = next(iter(kinds))
        for number, group in enumerate(self._groups):
            if first in group.kinds:
                self._groups.append(self._groups.pop(number))
                return group
        known = self._groups[-1].kinds if self._groups else frozenset()
        wanted = [first, *(kind for kind in kinds if kind not in known and kind != first)]
        if self._groups and len(known) + len(wanted) <= MAX_KINDS:
            # The associations without the context are released: one more would be refused by a peer that serves one at a time.
            self._drop(self._groups.pop())
            wanted += known
        elif len(self._groups) >= MAX_GROUPS:
            self._drop(self._groups.pop(0))
        else:
            self._release_idle()
        group = _Group(frozenset(wanted[:MAX_KINDS]), self._pool(wanted[:MAX_KINDS]))
        self._groups.append(group)
        return group

    def _pool(self, kinds: Iterable[Kind]) -> AssociationPool:
        contexts = contexts_for(kinds, self._ae.transcoder)
        return self._make_pool(contexts, [AsyncOperationsWindow(WINDOW, 1)], self._associations)

    def _make_pool(self, contexts: Any, items: list[object], size: int, **more: Any) -> AssociationPool:
        limit = self._ae.settings.network_timeout
        return AssociationPool(
            self._ae,
            self._address,
            self._port,
            ae_title=self._title,
            contexts=contexts,
            ext_neg=items,
            size=size,
            idle_timeout=30.0 if limit is None else min(30.0, limit / 2),
            # The breaker of the peer waits between attempts.
            attempts=1,
            retry_policy=_at_once,
            timeout=None,
            **{**more, **self._arguments},
        )

    def _drop(self, group: _Group) -> None:
        if not group.users:
            self._close_later(group.pool)

    def _release_idle(self) -> None:
        """Release the associations of groups that nothing uses; the pools can be used again."""
        for group in self._groups:
            if not group.users:
                self._close_later(group.pool, again=True)

    def _close_later(self, pool: AssociationPool, *, again: bool = False) -> None:
        closing = pool.stopService()
        self._closing.add(closing)

        def closed(result: object) -> None:
            self._closing.discard(closing)

        closing.addBoth(closed)
        if again:
            pool.startService()

    # --- confirmation

    async def confirm(self, deliveries: Sequence[Delivery], how: str) -> Sequence[Result]:
        """Ask the peer whether it has instances, see :class:`~dicomtwist.forwarding.delivery.interfaces.Sender`."""
        instances = [delivery.uids for delivery in deliveries if delivery.uids is not None]
        pool = self._confirming.get(how)
        if pool is None:
            contexts, handlers = self._commitments.negotiation() if how == "commit" else (find_contexts(), [])
            pool = self._confirming[how] = self._make_pool(contexts, [], 1, evt_handlers=handlers)
        if how == "commit":
            return await self._commitments.request(pool, instances)
        return await find_instances(pool, instances)

    # --- the end

    async def close(self, grace: float) -> None:
        """Release the associations; those that are in use after *grace* seconds are aborted."""
        pools = [*(group.pool for group in self._groups), *self._confirming.values()]
        self._groups.clear()
        late = self._ae.reactor.callLater(grace, self._abort)
        await DeferredList([*(pool.stopService() for pool in pools), *self._closing], consumeErrors=True)
        if late.active():
            late.cancel()

    def _abort(self) -> None:
        for association in list(self._in_use):
            association.abort("the forwarder is being stopped")


def _at_once(failures: int) -> float:
    return 0.0


class _Run:
    """
    The use of one association, until there is nothing more for it.

    :param kinds: the kinds of instances that can be sent over it.

    :ivar is_lost: whether it ended with instances that were not answered.
    """

    def __init__(self, association: Association, feed: Feed, kinds: frozenset[Kind]) -> None:
        self._association = association
        self._exchange = association.exchange
        self._feed = feed
        self._kinds = kinds
        self._in_flight = 0
        self._is_alone = False
        self._is_advancing = False
        self._changed: Deferred[None] | None = None
        self.is_lost = False

    async def until_dry(self) -> None:
        """Send until the feed has no more for this association, and all is answered."""
        self._association.when_ended().addCallback(lambda _: self._notify())
        while True:
            self._advance()
            if self._in_flight:
                self._changed = Deferred()
                await self._changed
            elif not self._association.is_established or self.is_lost:
                return
            elif self._feed.ready() or not await self._feed.more():
                # The instances that are left need other presentation contexts.
                return

    def _notify(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.callback(None)

    def _wanted(self, delivery: Delivery) -> bool:
        return _kind(delivery) in self._kinds and not (self._in_flight and delivery.is_suspect)

    def _advance(self) -> None:
        """Send as many as the window has places."""
        if self._is_advancing:
            return  # an outer call, further up the stack, continues
        self._is_advancing = True
        try:
            while self._in_flight < self._exchange.invoke_limit and not self._is_alone and not self.is_lost:
                if not self._association.is_established:
                    return
                ready = self._feed.ready()
                if self._in_flight and ready and ready[0].is_suspect:
                    return
                delivery = self._feed.take(self._wanted)
                if delivery is None:
                    return
                self._in_flight += 1
                self._is_alone = delivery.is_suspect
                self._begin(delivery)
        finally:
            self._is_advancing = False

    def _begin(self, delivery: Delivery) -> None:
        instance: OutgoingInstance = delivery.parcel
        if prepare_at_once(self._association, instance, LOW):
            self._send(None, delivery)
            return
        preparing = Deferred.fromCoroutine(prepare(self._association, instance, LOW))
        preparing.addCallback(self._send, delivery).addErrback(self._failed, delivery)

    def _send(self, _: None, delivery: Delivery) -> None:
        # The lease is exclusive, and there are no more in flight than places.
        self._exchange.enter_window().addCallbacks(
            self._in_window, self._failed, callbackArgs=(delivery,), errbackArgs=(delivery,)
        )

    def _in_window(self, _: None, delivery: Delivery) -> None:
        try:
            answer = send(self._exchange, delivery.parcel)
        except Exception:
            self._exchange.leave_window()
            delivery.close()
            self._failed(Failure(), delivery)
            return
        answer.addCallbacks(self._answered, self._not_answered, callbackArgs=(delivery,), errbackArgs=(delivery,))

    def _answered(self, answer: tuple[Response, bytes | None], delivery: Delivery) -> None:
        response = answer[0]
        self._exchange.leave_window()
        sop_class = delivery.parcel.sop_class_uid
        self._end(delivery, of_status(response.status, response.error_comment, sop_class))

    def _not_answered(self, reason: Failure, delivery: Delivery) -> None:
        self._exchange.leave_window()
        self._failed(reason, delivery)

    def _failed(self, reason: Failure, delivery: Delivery) -> None:
        assert reason.value is not None
        self._end(delivery, of_error(reason.value))

    def _end(self, delivery: Delivery, result: Result) -> None:
        self._in_flight -= 1
        self._is_alone = False
        self.is_lost = self.is_lost or result.is_lost
        self._advance()
        # After the next request is on its way.
        self._feed.ended(delivery, result)
        if not self._in_flight:
            self._notify()
