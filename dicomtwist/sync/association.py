"""
An association for code that blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar

from pydicom import Dataset
from pydicom.tag import BaseTag
from twisted.internet.defer import Deferred

from dicomtwist import evt
from dicomtwist.association.association import Association as InnerAssociation
from dicomtwist.datasets.outgoing_instance import InstanceLike
from dicomtwist.dimse.status import Status
from dicomtwist.eventloop.coroutines import from_deferred
from dicomtwist.eventloop.reactor_thread import call, wait_for
from dicomtwist.faces.association import AssociationFace, check_receives
from dicomtwist.scu import Reply
from dicomtwist.scu.responses import OnProgress
from dicomtwist.sync.answers import Answers, Retrieval
from dicomtwist.sync.handlers import in_thread

__all__ = ["Association", "LentAssociation"]

#: The time that a peer has to close its connection after an abort, in seconds.
CLOSE_SECONDS: Final = 1.0

P = ParamSpec("P")
T = TypeVar("T")

_Tags = Iterable[int | str | BaseTag | tuple[int, int]]


class Association(AssociationFace):
    """
    An established association, for code that blocks; ``dicomtwist.sync.connect`` returns it.

    ``with`` releases it at the end of the block, or aborts it if the block raises. Several threads may use it at once. Each
    operation exists under its short name and under pynetdicom's: :meth:`echo` and ``send_c_echo``. Each raises
    :class:`ReactorConflict` in the thread of the reactor, which it would block.
    """

    def __init__(self, reactor: Any, inner: InnerAssociation) -> None:
        super().__init__(inner)
        self._reactor = reactor

    @property
    def needs_reactor(self) -> bool:
        """Whether it has not ended."""
        return self.is_established

    def _wait(self, function: Callable[P, Deferred[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        return wait_for(self._reactor, partial(function, *args, **kwargs))

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return call(self._reactor, partial(function, *args, **kwargs))

    # --- operations

    def echo(self) -> Status:
        """Verify that the peer responds (C-ECHO); see :meth:`dicomtwist.Association.send_c_echo`."""
        return self._wait(self.inner.send_c_echo)

    def store(
        self,
        dataset: InstanceLike,
        *,
        priority: int = 2,
        originator_aet: str | bytes | None = None,
        originator_id: int | None = None,
    ) -> Status:
        """
        Ask the peer to store an instance (C-STORE): a path, which is streamed from disk, a Dataset, a file, or ``bytes``.

        :returns: the status, a failure status as well. The errors are those of :meth:`dicomtwist.Association.send_c_store`.
        """
        return self._wait(
            self.inner.send_c_store,
            dataset,
            priority=priority,
            originator_aet=originator_aet,
            originator_id=originator_id,
        )

    def find(self, identifier: Dataset | bytes, query_model: str, *, priority: int = 2) -> Answers:
        """Query the peer (C-FIND): ``for status, identifier in assoc.find(keys, model)``."""
        answers = self._call(self.inner.send_c_find, identifier, query_model, priority=priority)
        return Answers(self._reactor, answers, self)

    def get(
        self,
        identifier: Dataset | bytes,
        query_model: str,
        *,
        priority: int = 2,
        on_progress: OnProgress | None = None,
    ) -> Retrieval:
        """
        Retrieve instances on this association (C-GET). They arrive at the handler of ``EVT_C_STORE``.

        :param on_progress: called with the counts on each response.
        :raises NoPresentationContext: the peer could not send an instance: pass ``receive=`` to ``connect()``.
        :raises ValueError: no handler is bound to ``EVT_C_STORE``.
        """
        self._call(check_receives, self.inner)
        retrieval = self._call(
            self.inner.send_c_get, identifier, query_model, priority=priority, on_progress=on_progress
        )
        return Retrieval(self._reactor, retrieval, self)

    def move(
        self,
        identifier: Dataset | bytes,
        move_aet: str,
        query_model: str,
        *,
        priority: int = 2,
        on_progress: OnProgress | None = None,
    ) -> Retrieval:
        """Have the peer send instances to the AE *move_aet* (C-MOVE)."""
        retrieval = self._call(
            self.inner.send_c_move, identifier, move_aet, query_model, priority=priority, on_progress=on_progress
        )
        return Retrieval(self._reactor, retrieval, self)

    def cancel(self, message_id: int) -> None:
        """Cancel a C-FIND, C-GET or C-MOVE by its Message ID (C-CANCEL); ``answers.cancel()`` does the same."""
        self._call(self.inner.send_c_cancel, message_id)

    def n_create(
        self,
        dataset: Dataset | bytes | None,
        class_uid: str,
        instance_uid: str | None = None,
        *,
        meta_uid: str | None = None,
    ) -> Reply:
        """Ask the peer to create a SOP Instance (N-CREATE); see :meth:`dicomtwist.Association.send_n_create`."""
        return self._wait(self.inner.send_n_create, dataset, class_uid, instance_uid, meta_uid=meta_uid)

    def n_set(
        self, dataset: Dataset | bytes, class_uid: str, instance_uid: str, *, meta_uid: str | None = None
    ) -> Reply:
        """Ask the peer to change a SOP Instance (N-SET); see :meth:`dicomtwist.Association.send_n_set`."""
        return self._wait(self.inner.send_n_set, dataset, class_uid, instance_uid, meta_uid=meta_uid)

    def n_get(
        self, identifier_list: _Tags | None, class_uid: str, instance_uid: str, *, meta_uid: str | None = None
    ) -> Reply:
        """Ask the peer for attributes of a SOP Instance (N-GET); see :meth:`dicomtwist.Association.send_n_get`."""
        return self._wait(self.inner.send_n_get, identifier_list, class_uid, instance_uid, meta_uid=meta_uid)

    def n_action(
        self,
        dataset: Dataset | bytes | None,
        action_type: int,
        class_uid: str,
        instance_uid: str,
        *,
        meta_uid: str | None = None,
    ) -> Reply:
        """Ask the peer to do something (N-ACTION); see :meth:`dicomtwist.Association.send_n_action`."""
        return self._wait(self.inner.send_n_action, dataset, action_type, class_uid, instance_uid, meta_uid=meta_uid)

    def n_event_report(
        self,
        dataset: Dataset | bytes | None,
        event_type: int,
        class_uid: str,
        instance_uid: str,
        *,
        meta_uid: str | None = None,
        any_role: bool = False,
    ) -> Reply:
        """Tell the peer of an event (N-EVENT-REPORT); see :meth:`dicomtwist.Association.send_n_event_report`."""
        return self._wait(
            self.inner.send_n_event_report,
            dataset,
            event_type,
            class_uid,
            instance_uid,
            meta_uid=meta_uid,
            any_role=any_role,
        )

    def n_delete(self, class_uid: str, instance_uid: str, *, meta_uid: str | None = None) -> Status:
        """Ask the peer to delete a SOP Instance (N-DELETE); see :meth:`dicomtwist.Association.send_n_delete`."""
        return self._wait(self.inner.send_n_delete, class_uid, instance_uid, meta_uid=meta_uid)

    # The names of pynetdicom, and of dicomtwist.Association.
    send_c_echo = echo
    send_c_store = store
    send_c_find = find
    send_c_get = get
    send_c_move = move
    send_c_cancel = cancel
    send_n_create = n_create
    send_n_set = n_set
    send_n_get = n_get
    send_n_action = n_action
    send_n_event_report = n_event_report
    send_n_delete = n_delete

    # --- handlers

    def bind(self, event: evt.EventType, handler: evt.Handler, args: Sequence[Any] | None = None) -> None:
        """Bind *handler* to *event* for this association. A plain function is called in a worker thread."""
        self._call(self.inner.bind, event, in_thread(self._reactor, event, handler, LentAssociation), args)

    def unbind(self, event: evt.EventType, handler: evt.Handler) -> None:
        """Unbind *handler* from *event* if it was bound for this association."""
        self._call(self.inner.unbind, event, in_thread(self._reactor, event, handler, LentAssociation))

    # --- its end

    def release(self) -> None:
        """
        Release the association when all operations are answered.

        :raises AssociationError: the peer does not agree within the ACSE timeout, aborts, or the connection is lost.
        """
        self._wait(self.inner.release)

    def abort(self, detail: str = "") -> None:
        """
        Abort the association (A-ABORT), and wait until its connection is closed.

        :param detail: the reason in words, for the log of this side.
        """

        def abort() -> Deferred[Any]:
            self.inner.abort(detail, within=CLOSE_SECONDS)
            return self.inner.when_ended()

        self._wait(abort)

    def when_ended(self) -> Self:
        """Wait until its connection is closed."""
        self._wait(self.inner.when_ended)
        return self

    async def end(self, seconds: float) -> None:
        """Abort it because the reactor's thread ends, in that thread."""
        self.inner.abort("the program has ended", within=seconds)
        await from_deferred(self.inner.when_ended())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort(f"its block ended with {kind.__name__}")
        elif self.is_established:
            try:
                self.release()
            except BaseException:
                self._drop("its release was interrupted")
                raise

    def _drop(self, detail: str) -> None:
        inner = self.inner
        self._reactor.callFromThread(lambda: inner.abort(detail, within=CLOSE_SECONDS))

    def __del__(self) -> None:
        inner = self.__dict__.get("inner")
        if inner is not None and inner.is_established:
            self._drop("the program has dropped it")


class LentAssociation(Association):
    """
    The association that a handler in a worker thread finds as ``event.assoc``.

    Its methods block. Everything else of the :class:`dicomtwist.Association`, such as its settings, is here as well. It belongs
    to the server, or to the code that has requested it, so it is not aborted when the handler is done with it.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)

    def __del__(self) -> None:
        """Leave it open."""
