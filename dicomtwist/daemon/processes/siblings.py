"""
Questions among the processes of one server: a worker asks all others, through the pipes to the supervisor.

Each process answers questions of a few kinds, such as for its metrics. The process that a client happens to reach asks the
others, so that one answer to the client shows the whole server. The messages are lines of JSON:

* a worker to the supervisor: ``{"ask": ID, "what": KIND}``, ``{"tell": ID, "value": VALUE}`` to a question, and
  ``{"note": KIND}``, which has no answer
* the supervisor to a worker: ``{"ask": ID, "what": KIND}``, and ``{"told": ID, "values": {NAME: VALUE}}``
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Final, Protocol, TypeAlias

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

__all__ = ["Alone", "Answers", "Asker", "Hub", "Lines", "Spoke"]

#: The time that the supervisor waits for the answer of a worker, and a worker for those of all, in seconds.
WORKER_PATIENCE: Final = 2.5
PATIENCE: Final = 3.0
#: The longest message, in bytes. The metrics of a process have about 50 KB.
MAX_MESSAGE: Final = 4 * 1024 * 1024
#: The most questions of one worker at once; further ones are answered with nothing.
MAX_QUESTIONS: Final = 32

#: The functions that answer, by the kinds of questions. Their results are what JSON can have.
Answers: TypeAlias = dict[str, Callable[[], Any]]
#: The functions that take notes, by the kinds of notes.
Notes: TypeAlias = dict[str, Callable[[], object]]


class Asker(Protocol):
    """
    One of the processes of a server.

    :ivar answers: the questions that this process answers.
    :ivar notes: the functions that are called when a worker tells something, by its kind.
    """

    answers: Answers
    notes: Notes

    def ask(self, what: str) -> Deferred[Mapping[str, Any]]:
        """
        Ask all other processes.

        :param what: the kind of the question.
        :returns: a Deferred with the answers by the names of the processes; ``None`` is that of a process that did not answer
            in time, or could not.
        """

    def note(self, what: str) -> None:
        """Tell the supervisor something that needs no answer; nothing happens in the supervisor itself, or without one."""


class Alone:
    """The only process of a server."""

    def __init__(self) -> None:
        self.answers: Answers = {}
        self.notes: Notes = {}

    def ask(self, what: str) -> Deferred[Mapping[str, Any]]:
        """Return no answers."""
        return succeed({})

    def note(self, what: str) -> None:
        """Do nothing: there is no supervisor."""


class Lines:
    """
    Cuts bytes into messages.

    :param received: called with each message.
    """

    def __init__(self, received: Callable[[Any], None]) -> None:
        self._received = received
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """
        Take the next bytes.

        :raises ValueError: they are no messages.
        """
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = rest
        if len(rest) > MAX_MESSAGE:
            raise ValueError("a message that is too long")
        for line in lines:
            self._received(json.loads(line))


def encode(message: Any) -> bytes:
    """Return the line of a message."""
    return json.dumps(message).encode() + b"\n"


def answer(answers: Answers, what: str) -> Deferred[Any]:
    """Return a Deferred with the answer of this process; it fires with ``None`` if there is none."""
    log = Logger()

    def failed(reason: Failure) -> None:
        log.failure("a question for {what} could not be answered", reason, what=what)

    if what not in answers:
        return succeed(None)
    return maybeDeferred(answers[what]).addErrback(failed)


class Question:
    """
    A question that waits for its answer.

    :param clock: the reactor.
    :param patience: the time for the answer, in seconds.

    :ivar result: fires with the answer, or with ``None`` after that time.
    """

    def __init__(self, clock: Any, patience: float) -> None:
        self.result: Deferred[Any] = Deferred()
        self._late = clock.callLater(patience, self.told, None)

    def told(self, value: Any) -> None:
        """Take the answer."""
        if self._late.active():
            self._late.cancel()
        if not self.result.called:
            self.result.callback(value)


class Spoke:
    """
    The side of a worker.

    :param clock: the reactor.
    :param write: writes bytes to the supervisor.
    """

    def __init__(self, clock: Any, write: Callable[[bytes], object]) -> None:
        self.answers: Answers = {}
        self.notes: Notes = {}
        self._clock = clock
        self._write = write
        self._numbers = count(1)
        self._questions: dict[int, Question] = {}
        self._lines = Lines(self._received)
        self.feed = self._lines.feed

    def ask(self, what: str) -> Deferred[Mapping[str, Any]]:
        """Ask all other processes, see :meth:`Asker.ask`."""
        if len(self._questions) >= MAX_QUESTIONS:
            return succeed({})
        number = next(self._numbers)
        question = self._questions[number] = Question(self._clock, PATIENCE)
        self._write(encode({"ask": number, "what": what}))

        def told(values: Any) -> Mapping[str, Any]:
            del self._questions[number]
            return values or {"supervisor": None}

        return question.result.addCallback(told)

    def note(self, what: str) -> None:
        """Tell the supervisor something, see :meth:`Asker.note`."""
        self._write(encode({"note": what}))

    def _received(self, message: Any) -> None:
        if "ask" in message:
            number = message["ask"]
            told = answer(self.answers, message["what"])
            told.addCallback(lambda value: self._write(encode({"tell": number, "value": value})))
        elif message.get("told") in self._questions:
            self._questions[message["told"]].told(message["values"])


class Member(Protocol):
    """A worker, as the hub knows it."""

    def write(self, data: bytes) -> None:
        """Write bytes to it."""


class Hub:
    """
    The side of the supervisor.

    :param clock: the reactor.
    :param name: the name of the supervisor among the processes.
    :param members: returns the workers by their names, ``None`` for one that is not ready.
    """

    def __init__(self, clock: Any, name: str, members: Callable[[], Mapping[str, Member | None]]) -> None:
        self.answers: Answers = {}
        self.notes: Notes = {}
        self._clock = clock
        self._name = name
        self._members = members
        self._numbers = count(1)
        self._questions: dict[int, Question] = {}

    def ask(self, what: str) -> Deferred[Mapping[str, Any]]:
        """Ask all workers, see :meth:`Asker.ask`."""
        return self._gather({name: self._ask(one, what) for name, one in self._members().items()})

    def note(self, what: str) -> None:
        """Do nothing: this is the supervisor."""

    def received(self, member: Member, message: Any) -> None:
        """Take a message of a worker."""
        if "note" in message:
            self.notes.get(message["note"], lambda: None)()
            return
        if "tell" in message:
            question = self._questions.get(message["tell"])
            if question is not None:
                question.told(message["value"])
            return
        number, what = message["ask"], message["what"]
        others = {name: self._ask(one, what) for name, one in self._members().items() if one is not member}
        others[self._name] = answer(self.answers, what)
        self._gather(others).addCallback(lambda values: member.write(encode({"told": number, "values": values})))

    def _ask(self, member: Member | None, what: str) -> Deferred[Any]:
        if member is None:
            return succeed(None)
        number = next(self._numbers)
        question = self._questions[number] = Question(self._clock, WORKER_PATIENCE)
        member.write(encode({"ask": number, "what": what}))

        def told(value: Any) -> Any:
            del self._questions[number]
            return value

        return question.result.addCallback(told)

    def _gather(self, asked: dict[str, Deferred[Any]]) -> Deferred[Mapping[str, Any]]:
        gathered: Deferred[list[Any]] = gatherResults(asked.values())
        return gathered.addCallback(lambda values: dict(zip(asked, values, strict=True)))
