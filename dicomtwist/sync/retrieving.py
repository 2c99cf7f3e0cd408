"""
Retrieval into a folder in code that blocks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Unpack

from twisted.internet.interfaces import IStreamClientEndpoint

from dicomtwist.ae.ae import AE
from dicomtwist.eventloop.reactor_thread import Beginning, wait_for
from dicomtwist.faces.arguments import ae_of
from dicomtwist.faces.retrieving import RetrieveOptions, begin_retrieval
from dicomtwist.sync.connecting import own_reactor

if TYPE_CHECKING:
    from dicomtwist.retrieval import Totals
    from dicomtwist.retrieval.function import Wanted

__all__ = ["retrieve"]


def retrieve(
    address: str | IStreamClientEndpoint,
    port: int | None,
    wanted: Wanted | Iterable[Wanted],
    folder: str | os.PathLike[str],
    *,
    ae: AE | str | None = None,
    **options: Unpack[RetrieveOptions],
) -> Totals:
    """
    Retrieve studies from a peer into a folder, and wait for the end. The parameters are those of
    :func:`dicomtwist.retrieval.retrieve`, but for the AE, which may be left out.

    .. code-block:: python

        wanted = [{"AccessionNumber": number} for number in numbers]
        totals = dicomtwist.sync.retrieve("pacs.example.org", 104, wanted, "studies", ae_title="PACS")

    :param address: see :func:`connect`, as *port*.
    :param wanted: a Study Instance UID, keys by keyword, or an identifier; or any number of these, taken one at a time.
    :param folder: the folder, which is made if it is missing and its parent exists.
    :param ae: the AE that requests, with its settings such as timeouts; or the AE title of this side.
    :param options: ``ae_title``, ``layout``, ``associations``, ``on_result`` and the others. *wanted* is iterated, and
        callbacks are called, in the reactor's thread: they must not block for long, or make calls of this module.
    :returns: the sum of the results, also if something failed. Ctrl-C stops the peer and releases the associations.
    :raises AssociationError: there is no association. An error of the connection or of the TLS handshake is raised as it is.
    :raises StoreUnusable: the folder cannot be used.
    :raises ValueError: an argument is wrong.
    :raises ReactorConflict: the call would block the reactor, or the reactor cannot be used.
    """
    requestor = ae_of(ae)
    beginning = Beginning()
    reactor = own_reactor(requestor, beginning)
    try:
        return wait_for(reactor, lambda: begin_retrieval(reactor, requestor, address, port, wanted, folder, **options))
    finally:
        beginning.needs_reactor = False
