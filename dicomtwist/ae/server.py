"""
A listening Application Entity.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from dicomtwist import evt
from dicomtwist.ae.stop import Stop
from dicomtwist.association.acceptor import AcceptorAssociation, AcceptorFactory
from dicomtwist.association.association import Association
from dicomtwist.exchange import nesting
from dicomtwist.transport.upper_layer import address_of

#: The time that a peer has to close its connection after the A-ABORT of a stop, in seconds.
CLOSE_SECONDS: Final = 1.0


class Server:
    """
    A listening server of an AE: one port or more that accept associations. ``AE.start_server`` returns it.

    :ivar factory: the factory of its associations.
    """

    log = Logger()

    def __init__(self, factory: AcceptorFactory, clock: Any) -> None:
        self.factory = factory
        self._clock = clock
        self._ports: list[IListeningPort] = []

    def __repr__(self) -> str:
        return f"<Server of {', '.join(sorted(self.factory.titles))} at {self.addresses}>"

    def listening(self, port: IListeningPort) -> None:
        """Add *port*, which listens with :attr:`factory`."""
        self._ports.append(port)

    def exchange(self, before: IListeningPort, port: IListeningPort) -> Deferred[None]:
        """
        Replace the port *before* by *port*, which listens with :attr:`factory` at the same socket; associations continue.

        :returns: a Deferred that fires with ``None`` when *before* is closed.
        """
        self._ports[self._ports.index(before)] = port
        return Deferred.fromCoroutine(_stop([before]))

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The addresses that it listens at, as (host, port); (path, 0) for a UNIX socket."""
        return [address_of(port.getHost()) for port in self._ports]

    @property
    def port(self) -> int:
        """The TCP port that it listens at, the first of several."""
        return self.addresses[0][1]

    @property
    def active_associations(self) -> list[AcceptorAssociation]:
        """The associations that are established."""
        return [association for association in self.factory.associations if association.is_established]

    @property
    def operations(self) -> Counter[str]:
        """The number of operations that its associations have performed since it listens, by service such as ``"C-STORE"``."""
        total = self.factory.performed.copy()
        for association in self.factory.associations:
            if association.was_established:
                total.update(association.exchange.counts)
        return total

    def bind(self, event: evt.EventType, handler: evt.Handler, args: Any = None) -> None:
        """Bind *handler* to *event* for the associations of this server, existing ones included."""
        for host in self.factory.hosts:
            host.handlers.bind(event, handler, args)
        self._handlers_changed()

    def unbind(self, event: evt.EventType, handler: evt.Handler) -> None:
        """Unbind *handler* from *event* if it was bound for this server."""
        for host in self.factory.hosts:
            host.handlers.unbind(event, handler)
        self._handlers_changed()

    def get_handlers(self, event: evt.EventType | None = None) -> list[evt.HandlerTuple]:
        """Return the handlers of this server for *event*, or for all events, as (event, handler, arguments)."""
        return self.factory.hosts[0].handlers.bound(event)

    def get_events(self) -> list[evt.EventType]:
        """Return the events that handlers of this server are bound to, in the order of their names."""
        return self.factory.hosts[0].handlers.events()

    def _handlers_changed(self) -> None:
        for association in self.factory.associations:
            association.handlers_changed()

    def stop_listening(self) -> Deferred[None]:
        """
        Accept no more connections; associations continue.

        :returns: a Deferred that fires with ``None`` when the ports are closed.
        """
        ports, self._ports = self._ports, []
        return Deferred.fromCoroutine(_stop(ports))

    def shutdown(self, grace: float | None = 0.0) -> Deferred[None]:
        """
        Stop: accept no more connections, wait for the associations to end, then abort the remaining ones.

        A peer that does not close its connection within :data:`CLOSE_SECONDS` after the A-ABORT is not waited for. A
        connection without an association is aborted at once.

        A handler of these associations may await this: its own association is not waited for, since it would not end before the
        handler has; it is aborted as well if it has not ended after *grace*.

        :param grace: the time to wait for the associations to end, in seconds; ``None`` for no limit.
        :returns: a Deferred that fires with ``None`` when every connection is closed: after *grace* and
            :data:`CLOSE_SECONDS` at the latest.
        """
        return Deferred.fromCoroutine(self._shutdown(grace, nesting.frames()))

    async def _shutdown(self, grace: float | None, inside: nesting.Frames) -> None:
        await self.stop_listening()
        self.factory.close()
        associations = list(self.factory.associations)
        stop = Stop(associations, inside, self._clock)
        established = [association for association in associations if association.is_established]
        _abort([association for association in associations if not association.is_established])
        if grace == 0:
            _abort(established)
        if not (established and grace):
            await stop.wait()
            return
        late = self._clock.callLater(grace, _abort, established)

        def settle() -> None:
            if stop.is_over and late.active():
                late.cancel()

        stop.ended.addCallback(lambda _: settle())
        await stop.wait()
        settle()  # the caller goes on before the callbacks of the associations' ends are done, and may look for timers


def _abort(associations: list[AcceptorAssociation]) -> None:
    for association in associations:
        association.abort("the server is shutting down", within=CLOSE_SECONDS)


async def _stop(ports: list[IListeningPort]) -> None:
    for port in ports:
        await maybeDeferred(port.stopListening)


def log_ended(association: Association) -> None:
    """Log the one line of an association that has ended: peer, operations, ending."""
    if not association.was_established:
        return
    exchange, remote = association.exchange, association.remote
    counts = ", ".join(
        f"{count} {service}" + (f" ({exchange.failures[service]} failed)" if exchange.failures[service] else "")
        for service, count in exchange.counts.items()
    )
    stored = exchange.counts["C-STORE"] - exchange.failures["C-STORE"]
    totals = exchange.totals
    seconds = association.ae.reactor.seconds() - association.opened_at
    Server.log.info(
        "{peer!r} at {address} called {called!r}: {log_summary}; {log_transfer}; {ending}",
        association=association,
        peer=remote.ae_title,
        address=remote.address,
        called=association.requestor.called_ae_title,
        log_summary="; ".join([counts or "nothing asked for", *filter(None, [", ".join(totals.words(stored))])]),
        operations=dict(exchange.counts),
        failed=dict(exchange.failures),
        instances_stored=stored,
        instances_sent=totals.sent,
        studies=len(totals.studies),
        matches=totals.matches,
        destinations=list(totals.destinations),
        log_transfer=f"{in_bytes(association.bytes_received)} in, {in_bytes(association.bytes_sent)} out, {seconds:.3f} s",
        bytes_received=association.bytes_received,
        bytes_sent=association.bytes_sent,
        seconds=round(seconds, 3),
        ending="released" if association.is_released else str(association.end_reason),
    )


def in_bytes(number: int) -> str:
    """Return a number of bytes with a unit, such as ``6.3 MB``."""
    if number < 1000:
        return f"{number} bytes"
    amount = float(number)
    for unit in ("kB", "MB", "GB"):
        amount /= 1000
        if amount < 999.5:
            return f"{amount:.3g} {unit}"
    return f"{amount / 1000:.4g} TB"
