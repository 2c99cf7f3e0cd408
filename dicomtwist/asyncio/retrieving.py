"""
Retrieval into a folder in coroutines of asyncio.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Iterable
from typing import TYPE_CHECKING, Unpack

from twisted.internet.interfaces import IStreamClientEndpoint

from dicomtwist.ae.ae import AE
from dicomtwist.eventloop.coroutines import SteppedItems, from_deferred
from dicomtwist.eventloop.loop_reactor import reactor_of_running_loop
from dicomtwist.faces.arguments import ae_of
from dicomtwist.faces.retrieving import RetrieveOptions, begin_retrieval

if TYPE_CHECKING:
    from dicomtwist.retrieval import Totals
    from dicomtwist.retrieval.function import Wanted

__all__ = ["retrieve"]


async def retrieve(
    address: str | IStreamClientEndpoint,
    port: int | None,
    wanted: Wanted | Iterable[Wanted] | AsyncIterable[Wanted],
    folder: str | os.PathLike[str],
    *,
    ae: AE | str | None = None,
    **options: Unpack[RetrieveOptions],
) -> Totals:
    """
    Retrieve studies from a peer into a folder. The parameters are those of :func:`dicomtwist.retrieval.retrieve`, but for the
    AE, which may be left out.

    .. code-block:: python

        wanted = [{"AccessionNumber": number} for number in numbers]
        totals = await dicomtwist.asyncio.retrieve("pacs.example.org", 104, wanted, "studies", ae_title="PACS")

    :param address: see :func:`connect`, as *port*.
    :param wanted: a Study Instance UID, keys by keyword, or an identifier; or any number of these, taken one at a time.
    :param folder: the folder, which is made if it is missing and its parent exists.
    :param ae: the AE that requests, with its settings such as timeouts; or the AE title of this side.
    :param options: ``ae_title``, ``layout``, ``associations``, ``on_result`` and the others.
    :returns: the sum of the results, also if something failed. A cancellation stops the peer and releases the associations.
    :raises AssociationError: there is no association. An error of the connection or of the TLS handshake is raised as it is.
    :raises StoreUnusable: the folder cannot be used.
    :raises ValueError: an argument is wrong.
    :raises ReactorConflict: the reactor cannot be used.
    """
    reactor = reactor_of_running_loop()
    requestor = ae_of(ae)
    requestor.use_reactor(reactor)
    if isinstance(wanted, AsyncIterable):
        wanted = SteppedItems(aiter(wanted))
    return await from_deferred(begin_retrieval(reactor, requestor, address, port, wanted, folder, **options))
