"""
The function :func:`retrieve`: everything that a retrieval into a folder needs, from the names of what to retrieve.
"""

from __future__ import annotations

import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure

from dicomtwist import AE, Association, PresentationContext
from dicomtwist.archive.storage.types import Durability, is_uid
from dicomtwist.dicomweb import DICOMwebClient
from dicomtwist.eventloop.coroutines import DeferredItems, deferred_items
from dicomtwist.evt import HandlerTuple
from dicomtwist.retrieval.folder import ReceivingFolder
from dicomtwist.retrieval.journal import RetrievalJournal
from dicomtwist.retrieval.layout import UID_LAYOUT, Layout
from dicomtwist.retrieval.results import Progress, Request, RequestResult, Totals
from dicomtwist.retrieval.retriever import Retriever
from dicomtwist.retrieval.web_retriever import WebRetriever
from dicomtwist.transport.peer_address import Peer, parse_peer

__all__ = ["Wanted", "retrieve", "retrieve_from_web"]

#: The attributes that select nothing.
_FORM: Final = ("QueryRetrieveLevel", "SpecificCharacterSet")
#: The value representations of which a number with a fraction can be a value.
_NUMBERS: Final = ("DS", "FL", "FD")

#: The forms of a request: a Study Instance UID, keys by keyword, an identifier, or a request.
Wanted = str | Mapping[str, Any] | Dataset | Request


def retrieve(
    ae: AE,
    address: str | IStreamClientEndpoint,
    port: int | None,
    wanted: Wanted | Iterable[Wanted] | AsyncIterable[Wanted],
    folder: str | os.PathLike[str],
    *,
    ae_title: str = "ANY-SCP",
    ext_neg: Iterable[object] = (),
    tls_args: object = None,
    layout: str | Layout = UID_LAYOUT,
    sop_classes: Sequence[str] = (),
    root: str | None = None,
    associations: int = 1,
    retries: int = 2,
    durability: Durability | str = Durability.FULL,
    min_free: int = 0,
    overwrite: bool = False,
    resume: str | os.PathLike[str] | None = None,
    on_result: Callable[[RequestResult], object] | None = None,
    on_progress: Callable[[Progress], object] | None = None,
) -> Deferred[Totals]:
    """
    Retrieve studies from a peer into a folder.

    .. code-block:: python

        totals = await retrieve(ae, "pacs.example.org", 104, ["1.2.3", {"AccessionNumber": "A17"}], "studies", ae_title="PACS")
        print(totals.stored, totals.requests)

    :param ae: the AE that requests the associations.
    :param address: see :meth:`dicomtwist.AE.associate`, as *port*, *ae_title*, *ext_neg* and *tls_args*.
    :param wanted: a Study Instance UID, keys by keyword, or an identifier; or any number of these, taken one at a time. Studies
        that no UID names are found first with C-FIND. Of several entries, one that selects nothing or has an empty key fails
        alone, and the error of its result has its number.
    :param folder: the folder, which is made if it is missing and its parent exists.
    :param layout: the names of the files in it, see :class:`Layout`.
    :param sop_classes: the SOP Classes to receive; by default all. If they are more than an association has contexts for,
        several associations share them.
    :param root: the information model, ``"study"`` or ``"patient"``; by default that which the peer has.
    :param associations: the number of concurrent associations.
    :param retries: how often a request goes on after its association broke.
    :param durability: with ``"full"`` a file is on the disk before it gets its name, so that a power cut leaves no part of one.
    :param min_free: the bytes that stay free on the disk; with less, instances are refused.
    :param overwrite: whether an instance replaces a file of the same instance with another data set.
    :param resume: a journal of the requests that are complete, which are not retrieved again; it is made if it is missing.
        ``dicomtwist get --resume`` has the same journals, each for one peer, folder and layout.
    :param on_result: called with each :class:`RequestResult` when its files have their names.
    :param on_progress: called with the :class:`Progress` after each instance.
    :returns: a Deferred with the :class:`Totals`, also if something failed. It fails with the error of the first association if
        there is none. Cancelling it stops the peer (C-CANCEL) and releases the associations.
    :raises StoreUnusable: the folder cannot be used.
    :raises ValueError: an argument is wrong. The Deferred fails with :class:`JournalError` if the journal cannot be used.
    """
    place = ReceivingFolder(
        Path(folder),
        layout=layout if isinstance(layout, Layout) else Layout(layout),
        durability=Durability(durability),
        min_free=min_free,
        overwrite=overwrite,
    )
    items = list(ext_neg)

    def associate(
        contexts: list[PresentationContext], handlers: list[HandlerTuple], roles: list[object]
    ) -> Deferred[Association]:
        return ae.associate(
            address,
            port,
            ae_title=ae_title,
            contexts=contexts,
            ext_neg=[*items, *roles],
            tls_args=tls_args,
            evt_handlers=handlers,
        )

    retriever = Retriever(
        ae,
        associate,
        place,
        sop_classes=sop_classes,
        root=root,
        associations=associations,
        retries=retries,
        on_result=on_result,
        on_progress=on_progress,
        open_journal=_journal(resume, _peer_name(address, port, ae_title), place),
    )
    return _started(retriever, place, _requests(wanted))


def retrieve_from_web(
    client: DICOMwebClient,
    wanted: Wanted | Iterable[Wanted] | AsyncIterable[Wanted],
    folder: str | os.PathLike[str],
    *,
    layout: str | Layout = UID_LAYOUT,
    sop_classes: Sequence[str] = (),
    connections: int = 1,
    retries: int = 2,
    durability: Durability | str = Durability.FULL,
    min_free: int = 0,
    overwrite: bool = False,
    resume: str | os.PathLike[str] | None = None,
    on_result: Callable[[RequestResult], object] | None = None,
    on_progress: Callable[[Progress], object] | None = None,
) -> Deferred[Totals]:
    """
    Retrieve studies from a server of DICOMweb into a folder, see :func:`retrieve`.

    .. code-block:: python

        client = DICOMwebClient("https://pacs.example.org/dicom-web")
        totals = await retrieve_from_web(client, ["1.2.3", {"AccessionNumber": "A17"}], "studies")

    :param client: the client of the server; the caller closes it.
    :param wanted: the studies, which are searched for (QIDO-RS) if no UID names them.
    :param connections: the number of concurrent requests.
    :param retries: how often a request goes on after its connection broke.
    :param resume: see :func:`retrieve`.
    :returns: a Deferred with the :class:`Totals`. It fails if the server cannot be reached or refuses the user. Cancelling it
        closes the connections.
    """
    place = ReceivingFolder(
        Path(folder),
        layout=layout if isinstance(layout, Layout) else Layout(layout),
        durability=Durability(durability),
        min_free=min_free,
        overwrite=overwrite,
    )
    retriever = WebRetriever(
        client,
        place,
        sop_classes=sop_classes,
        connections=connections,
        retries=retries,
        on_result=on_result,
        on_progress=on_progress,
        open_journal=_journal(resume, str(client.url), place),
    )
    return _started(retriever, place, _requests(wanted))


def _started(
    retriever: Retriever | WebRetriever, place: ReceivingFolder, requests: Iterator[Request] | AsyncIterator[Request]
) -> Deferred[Totals]:
    """
    Begin a retrieval, and return its Deferred.

    :raises StoreUnusable: the folder cannot be used.
    """
    place.prepare()
    result: Deferred[Totals] = Deferred(lambda _: retriever.stop())

    def done(totals: Totals | Failure) -> None:
        if not result.called:  # else it was cancelled
            result.callback(totals)

    Deferred.fromCoroutine(_run(retriever, place, requests)).addBoth(done)
    return result


async def _run(
    retriever: Retriever | WebRetriever, place: ReceivingFolder, requests: Iterable[Request] | AsyncIterable[Request]
) -> Totals:
    try:
        totals = await retriever.run(requests)
    finally:
        place.close()
    if retriever.error is not None and not retriever.established:
        raise retriever.error
    return totals


def _peer_name(address: str | IStreamClientEndpoint, port: int | None, ae_title: str) -> str:
    """Return the peer as the command line names it, which is how journals do."""
    if not isinstance(address, str):
        return f"{ae_title}@{type(address).__name__}"
    if port is not None:
        return str(Peer(ae_title, address, port))
    try:
        return str(parse_peer(f"{ae_title}@{address}"))
    except ValueError:
        return f"{ae_title}@{address}"


def _journal(
    path: str | os.PathLike[str] | None, peer: str, place: ReceivingFolder
) -> Callable[[], RetrievalJournal] | None:
    if path is None:
        return None
    return partial(
        RetrievalJournal, os.fspath(path), peer, folder=os.path.abspath(place.root), layout=str(place.layout)
    )


def _requests(wanted: Wanted | Iterable[Wanted] | AsyncIterable[Wanted]) -> Iterator[Request] | AsyncIterator[Request]:
    if isinstance(wanted, str | Mapping | Dataset | Request):
        return iter([as_request(wanted)])
    if isinstance(wanted, AsyncIterable):
        return _each(wanted)
    return map(_entry, count(1), wanted)


@deferred_items
async def _each(wanted: AsyncIterable[Wanted]) -> AsyncGenerator[Request, None]:
    number = 0
    async for one in DeferredItems(aiter(wanted)):
        number += 1
        yield _entry(number, one)


def _entry(number: int, wanted: Wanted) -> Request:
    """Return the request of one of several entries; a wrong one must not end the others."""
    try:
        return as_request(wanted)
    except (ValueError, TypeError, AttributeError) as error:
        return Request(Dataset(), "", wanted, f"entry {number}: {error}")


def as_request(wanted: Wanted) -> Request:
    """
    Return the request that *wanted* means, see :func:`retrieve`.

    :raises ValueError: a keyword is unknown, one has no value, a UID is none, or nothing is selected.
    """
    if isinstance(wanted, Request):
        return wanted
    if isinstance(wanted, Dataset):
        keys = wanted
        for element in keys:
            if element.VR == "UI":
                _check_uids(element.keyword, element.value)
    else:
        keys = _keys({"StudyInstanceUID": wanted} if isinstance(wanted, str) else wanted)
    level = str(keys.get("QueryRetrieveLevel") or "")
    if not any(element.value for element in keys if element.keyword not in _FORM):
        raise ValueError("nothing selects what to retrieve: give a key with a value, such as a Study Instance UID")
    return Request(keys, level, wanted)


def _keys(wanted: Mapping[str, Any]) -> Dataset:
    """
    Return the identifier with the keys of *wanted*.

    :raises ValueError: it has none, or one of them cannot be meant.
    """
    if not isinstance(wanted, Mapping):
        raise ValueError(
            f"{wanted!r:.80} is neither a Study Instance UID, as text, nor a mapping of keywords to values"
        )
    keys = Dataset()
    for keyword, value in wanted.items():
        tag = tag_for_keyword(keyword) if isinstance(keyword, str) else None
        if tag is None:
            raise ValueError(f"{keyword!r} is not the keyword of an attribute")
        if keyword not in _FORM and _is_empty(value):
            raise ValueError(f"{keyword} is empty")
        vr = dictionary_VR(tag)
        if isinstance(value, float) and vr not in _NUMBERS:
            # pandas makes 17.0 of the text 017 if another row is empty.
            raise ValueError(
                f"{keyword} is the number {value}, not text: read the table as text, as pandas does with dtype=str"
            )
        if vr == "UI":
            _check_uids(keyword, value)
        setattr(keys, keyword, value)
    return keys


def _check_uids(keyword: str, value: object) -> None:
    """
    Check the values of a UID, of which there may be several.

    :raises ValueError: one is not a UID, such as a number of a spreadsheet.
    """
    values = value.split("\\") if isinstance(value, str) else value if isinstance(value, Sequence) else [value]
    for one in values:
        text = str("" if one is None else one).strip(" \0")
        if text and not is_uid(text):
            raise ValueError(f"{keyword} is {text[:80]!r}, which is not a UID. Did a spreadsheet take it for a number?")


def _is_empty(value: object) -> bool:
    """Whether a value is that of an empty cell: without it more would be selected than the entry means."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or value != value or (isinstance(value, Sequence) and not len(value))
