"""Callers that invoke operations through an exchange: their place in the window, and their association."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from dicomtwist.dimse.messages import Response
from dicomtwist.dimse.status import Status
from dicomtwist.exchange.exchange import Exchange
from dicomtwist.interfaces import AEInterface, AssociationSide
from dicomtwist.presentation import PresentationContextTuple
from dicomtwist.settings import Settings


class WindowPlace:
    """A place in the asynchronous operations window, for ``async with``."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def __aenter__(self) -> None:
        await self._exchange.enter_window()

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exchange.leave_window()


class InvokingAssociation(Protocol):
    """An association as the rooms above know it that invoke operations on it: a :class:`dicomtwist.Association`."""

    ae: AEInterface
    settings: Settings

    @property
    def remote(self) -> AssociationSide:
        """The peer."""

    @property
    def exchange(self) -> Exchange:
        """
        The messages of the association.

        :raises NotEstablished: it was never established.
        """

    def context_for(
        self, abstract_syntax: str, transfer_syntax: str | None = None, *, as_scu: bool = True
    ) -> PresentationContextTuple:
        """Return the accepted presentation context for a service."""

    def status_of(self, response: Response, sop_class: str = "") -> Status:
        """Return the status of *response* to an operation of *sop_class*."""
