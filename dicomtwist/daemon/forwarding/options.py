"""
The options of store and forward of ``twist dicom``, and the rules of its configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from twisted.python import usage

from dicomtwist.archive.inbox.notes import FOLDER
from dicomtwist.archive.storage.types import Durability
from dicomtwist.daemon.configuration import Configuration, ConfigurationError
from dicomtwist.daemon.forwarding.files import KeyFileError, is_open_to_others, read_key, read_table
from dicomtwist.daemon.option_values import seconds
from dicomtwist.forwarding.deidentification import Deidentification
from dicomtwist.forwarding.errors import ForwardingRuleError
from dicomtwist.forwarding.parsing import parse_forward
from dicomtwist.forwarding.pseudonyms import Pseudonyms
from dicomtwist.forwarding.receipt.maker import Receipt
from dicomtwist.forwarding.rules import ForwardRule, ForwardRules
from dicomtwist.forwarding.tasks.store import TaskStore
from dicomtwist.forwarding.values import parse_duration

__all__ = [
    "FORWARD_PARAMETERS",
    "Forwarding",
    "describe_forwarding",
    "make_receipt",
    "read_forwarding",
    "warn_of_forwarding",
]

#: For how long finished tasks stay in the queue, in seconds.
DEFAULT_HISTORY: Final = 30 * 86400.0
#: The age of the oldest task from which on the log warns, in seconds.
DEFAULT_WARNING: Final = 3600.0


def duration(option: str) -> Callable[[str], float]:
    """Return the converter of an *option* that is a duration, such as ``30d``."""

    def convert(value: str) -> float:
        try:
            found = parse_duration(value)
        except ValueError as error:
            raise usage.UsageError(f"{option}: {error}") from None
        return found

    return convert


#: The options with a value, as ``usage.Options`` has them.
FORWARD_PARAMETERS: Final[list[list[Any]]] = [
    [
        "forward-key",
        None,
        None,
        "File with the secret key of pseudonyms, for rules of forwarding that need one; dicomtwist queue key makes it.",
    ],
    [
        "forward-warning",
        None,
        DEFAULT_WARNING,
        "Age in seconds of the oldest task of forwarding from which on that is logged; none: never.",
        seconds("--forward-warning"),
    ],
    [
        "forward-history",
        None,
        DEFAULT_HISTORY,
        "Time for which finished tasks of forwarding stay in the queue, in seconds or as 30d, 12h.",
        duration("--forward-history"),
    ],
]


#: The most attributes and patterns that a description names; further ones are counted.
MAX_NAMED: Final = 20
_DEFAULTS: Final = ForwardRule("", ())


@dataclass(frozen=True)
class Forwarding:
    """
    The rules of forwarding of a configuration, with all that they need to be parsed again.

    :ivar tables: the tables ``[[forward]]``.
    :ivar rules: the rules.
    :ivar pseudonyms: the key, ``None`` without one.
    """

    tables: Sequence[Mapping[str, Any]] = ()
    rules: ForwardRules = field(default_factory=ForwardRules)
    pseudonyms: Pseudonyms | None = None

    def parse(self, table: Mapping[str, Any]) -> ForwardRule:
        """
        Return the rule of a table that a task keeps, which the configuration need not have any more. Files that it names are
        read, which blocks.

        :raises ForwardingRuleError: it cannot be applied now, such as without its table of values.
        """
        return parse_forward([table], pseudonyms=self.pseudonyms, read_table=read_table).rules[0]


def read_forwarding(configuration: Configuration, key: str | None, peers: Collection[str]) -> Forwarding:
    """
    Read the rules of forwarding, with the files that they name. It blocks.

    :param key: the file of the key, ``None`` without one.
    :param peers: the names of the peers.
    :raises usage.UsageError: the file of the key cannot be used.
    :raises ConfigurationError: a rule is wrong.
    """
    try:
        pseudonyms = None if key is None else read_key(Path(key))
    except KeyFileError as error:
        raise usage.UsageError(f"--forward-key: {error}") from None
    # Rules often share a table of values.
    read: dict[str, Mapping[str, str]] = {}

    def table_of(name: str) -> Mapping[str, str]:
        if name not in read:
            read[name] = read_table(name)
        return read[name]

    try:
        rules = parse_forward(list(configuration.forward), peers=peers, pseudonyms=pseudonyms, read_table=table_of)
    except ForwardingRuleError as error:
        raise ConfigurationError(f"{configuration.path}: {error}") from None
    return Forwarding(configuration.forward, rules, pseudonyms)


def make_receipt(options: Any) -> Receipt | None:
    """
    Return what makes tasks of received instances; ``None`` if nothing can be forwarded: there is neither a configuration file,
    whose rules a reload may read, nor a task of an earlier run.
    """
    folder = options.archive_root / FOLDER
    if options.configuration.path is None and not folder.is_dir():
        return None
    forwarding: Forwarding = options.forwarding
    store = TaskStore(folder, full=options["durability"] is Durability.FULL)
    return Receipt(store, forwarding.rules, forwarding.tables)


def describe_forwarding(forwarding: Forwarding, sender: Callable[[ForwardRule], str]) -> Iterator[str]:
    """
    Yield the rules of forwarding in words, for ``--check``.

    :param sender: returns the conditions of a rule on the sender, in words.
    """
    for rule in forwarding.rules.rules:
        conditions = [sender(rule), *(f"{one.path} {_any(one.patterns)}" for one in rule.conditions)]
        yield f"{_upper(rule.where)} {rule.name!r}: {', '.join(conditions)}: to {'; '.join(_actions(rule))}"


def _actions(rule: ForwardRule) -> Iterator[str]:
    yield " and to ".join(", else ".join(destination) for destination in rule.to)
    coercion = rule.coercion
    named = {"set": coercion.set, "remove": coercion.remove, "replace": coercion.replace, "hash": coercion.hash}
    for verb, paths in named.items():
        if paths:
            yield f"{verb} {_few(list(map(str, paths)))}"
    for path, mapped in coercion.map.items():
        yield f"map {path} by a table of {len(mapped.table)} rows"
    if coercion.shift_dates:
        yield f"shift dates by {coercion.shift_dates}" + (" days" if isinstance(coercion.shift_dates, int) else "")
    if isinstance(coercion.deidentify, Deidentification):
        options = sorted(coercion.deidentify.options)
        yield "deidentify" + (f" with {', '.join(options)}" if options else "")
    if rule.hours is not None:
        yield f"at {rule.hours}"
    if rule.study_quiet:
        yield f"when nothing of the study has arrived for {rule.study_quiet:g} s"
    if rule.priority != _DEFAULTS.priority:
        yield f"priority {rule.priority}"
    if rule.rate is not None:
        yield f"at most {rule.rate:g} bytes a second"
    if rule.associations != _DEFAULTS.associations:
        yield f"{rule.associations} associations"
    if rule.confirm:
        yield f"confirmed by {rule.confirm}"
    if not rule.keep:
        yield "deleted here afterwards"


def _any(patterns: Sequence[str]) -> str:
    return " or ".join(one or "absent" for one in _few_of(patterns))


def _few(names: Sequence[str]) -> str:
    return ", ".join(_few_of(names))


def _few_of(names: Sequence[str]) -> list[str]:
    more = len(names) - MAX_NAMED
    return [*names[:MAX_NAMED], f"{more} more"] if more > 0 else list(names)


def warn_of_forwarding(forwarding: Forwarding, options: Any) -> Iterator[str]:
    """Yield what is probably not meant, for ``--check``."""
    key = options["forward-key"]
    if key is not None and is_open_to_others(Path(key)):
        yield f"the key {key} can be read by all users of this machine: chmod 600 {key}"
    for rule in forwarding.rules.rules:
        name = f"{rule.where} {rule.name!r}"
        if rule.coercion.deidentify is not None:
            yield f"{name}: deidentify changes the header only, what is burned into the pixels stays"
        if rule.confirm == "commit" and options["workers"] > 1:
            yield f"{name}: with workers only reports of commitment on the association of the request are noticed"
        titles = [title for title in options["calling"] if rule.peer.has_calling(title)]
        if options["calling"] and rule.peer.calling and not titles:
            yield f"{name} never matches: allow-calling has none of its calling AE titles"
        if options["require-called-aet"] and rule.peer.called and not rule.peer.has_called(options["ae-title"]):
            yield f"{name} never matches: require-called-aet is on, and its called AE titles are others"
        if options["ae-title"] in {peer for destination in rule.to for peer in destination}:
            yield f"{name} sends to {options['ae-title']}, which is the AE title of this server"
    if key is not None and not len(forwarding.rules):
        yield "forward-key is not used: there are no rules of forwarding"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
