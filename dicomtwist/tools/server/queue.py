"""
The operations of ``dicomtwist queue`` at a running server, by its API.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import click
from pydicom import Dataset

from dicomtwist.access.explanation import parse_sender
from dicomtwist.daemon.forwarding.files import make_key
from dicomtwist.datasets.codec import encode_dataset
from dicomtwist.errors import DataSetError
from dicomtwist.forwarding.errors import ForwardingRuleError
from dicomtwist.forwarding.header import read_header
from dicomtwist.forwarding.operators.explanations import explanations
from dicomtwist.forwarding.parsing import parse_forward
from dicomtwist.forwarding.pseudonyms import KEY_LENGTH, Pseudonyms
from dicomtwist.forwarding.tasks.types import TaskState
from dicomtwist.part10 import FileMeta, NotDicomFile, encode_preamble_and_meta
from dicomtwist.settings import IMPLEMENTATION_CLASS_UID
from dicomtwist.tools.display.console import printable
from dicomtwist.tools.server.api import OperationFailed, ServerAPI

__all__ = ["change_tasks", "explain_file", "explain_locally", "list_tasks", "show", "write_key"]

#: The tasks that are asked for at once.
PAGE: Final = 500

_EXPLICIT: Final = "1.2.840.10008.1.2.1"
_TASK: Final = {
    **dict.fromkeys(("id", "tries", "age"), int | float),
    **dict.fromkeys(("study", "instance", "destination", "rule", "state", "said"), str),
    "next_try": str | None,
}
_DESTINATION: Final = {
    "destination": str,
    **dict.fromkeys(map(str, TaskState), int),
    "oldest_age": int | float | None,
    "peers": list,
}
_EXPLANATION: Final = {"rule": str, "sends": bool, "destinations": list, "key": str, "words": str}


def list_tasks(api: ServerAPI, query: Sequence[tuple[str, str]], limit: int | None, *, as_json: bool) -> int:
    """Print tasks, and return the exit status."""
    count = 0
    for task in _tasks(api, query, limit):
        if as_json:
            click.echo(json.dumps(task))
            continue
        if not count:
            click.echo(
                f"{'id':>8}  {'state':8}  {'destination':16}  {'tries':>5}  {'age':>7}  {'next try':20}  study / instance"
            )
        count += 1
        click.echo(
            f"{task['id']:>8}  {printable(task['state']):8}  {printable(task['destination']):16}  {task['tries']:>5}  "
            f"{_age(task['age']):>7}  {printable(task['next_try'] or ''):20}  {printable(task['study'])}\n"
            f"{'':>10}{printable(task['rule'])}: {printable(task['instance'])}"
            + (f"\n{'':>10}{printable(task['said'])}" if task["said"] else "")
        )
    return 0


def _tasks(api: ServerAPI, query: Sequence[tuple[str, str]], limit: int | None) -> Iterator[dict[str, Any]]:
    after = seen = 0
    while limit is None or seen < limit:
        wanted = PAGE if limit is None else min(PAGE, limit - seen)
        found = api.ask("GET", f"/queue?{urlencode([*query, ('limit', str(wanted)), ('after', str(after))])}")
        if not isinstance(found, list):
            raise api.is_another()
        for one in found:
            task = api.checked(one, _TASK)
            yield task
            after = max(after, int(task["id"]))
        seen += len(found)
        if len(found) < wanted:
            return


def show(api: ServerAPI, ids: Sequence[int], *, as_json: bool) -> int:
    """Print the destinations, or some tasks in full, and return the exit status."""
    if ids:
        for number in ids:
            task = api.checked(api.ask("GET", f"/queue/tasks/{number}"), _TASK)
            if as_json:
                click.echo(json.dumps(task))
            else:
                for name, value in task.items():
                    click.echo(f"{name:12} {printable(str(value if value is not None else ''))}")
        return 0
    found = api.ask("GET", "/queue/destinations")
    if not isinstance(found, list):
        raise api.is_another()
    if not as_json and found:
        click.echo(f"{'destination':20}  " + "  ".join(f"{state:>9}" for state in TaskState) + f"  {'oldest':>8}  peer")
    for one in found:
        row = api.checked(one, _DESTINATION)
        if as_json:
            click.echo(json.dumps(row))
            continue
        oldest = "" if row["oldest_age"] is None else _age(row["oldest_age"])
        peers = "; ".join(_peer(peer) for peer in row["peers"] if isinstance(peer, dict))
        numbers = "  ".join(f"{row[state]:>9}" for state in TaskState)
        click.echo(f"{printable(row['destination']):20}  {numbers}  {oldest:>8}  {printable(peers)}")
    return 0


def _peer(peer: Mapping[str, Any]) -> str:
    words = f"{peer.get('name', '')}"
    if "breaker" in peer:
        words += " " + ("is up" if peer["breaker"] == "closed" else f"is down: {peer.get('said', '')}")
    return words


def change_tasks(api: ServerAPI, what: str, selection: Mapping[str, Any], *, as_json: bool) -> int:
    """Change tasks, print their number, and return the exit status."""
    found = api.checked(api.ask("POST", f"/queue/{what}", dict(selection)), {"tasks": int})
    done = {"retry": "are tried again", "hold": "are on hold", "release": "are released", "drop": "are dropped"}
    count = found["tasks"]
    click.echo(json.dumps(found) if as_json else f"{count} tasks {done[what]}")
    return 0


def explain_file(api: ServerAPI, path: Path, sender: Mapping[str, str], *, as_json: bool) -> int:
    """Print what the rules of a server say about a file, and return the exit status: 1 if it goes nowhere."""
    found = api.ask("POST", f"/queue/explain?{urlencode(sender)}", _front(_header(path)))
    if not isinstance(found, list):
        raise api.is_another()
    return _explained([api.checked(one, _EXPLANATION) for one in found], as_json=as_json)


def explain_locally(config: Path, path: Path, sender: Mapping[str, str], *, as_json: bool) -> int:
    """Print what the rules in a configuration file say about a file, and return the exit status: 1 if it goes nowhere."""
    try:
        content = tomllib.loads(config.read_text("utf-8-sig"))
        # An explanation changes nothing, so neither the key nor tables of values are needed.
        rules = parse_forward(
            content.get("forward", []), pseudonyms=Pseudonyms(bytes(KEY_LENGTH)), read_table=lambda name: {"": ""}
        )
        requestor = parse_sender(sender, str(content.get("ae-title", "DICOMTWIST")))
    except OSError as error:
        raise OperationFailed(f"cannot read {config}: {error.strerror}") from None
    except ForwardingRuleError as error:
        raise OperationFailed(f"{config}: {error}") from None
    except ValueError as error:
        raise OperationFailed(str(error)) from None
    return _explained(explanations(rules, _front(_header(path)), requestor), as_json=as_json)


def _explained(found: Sequence[Mapping[str, Any]], *, as_json: bool) -> int:
    for one in found:
        if as_json:
            click.echo(json.dumps(one))
        elif one["sends"]:
            places = " and to ".join(", else ".join(str(each).split(",")) for each in one["destinations"])
            changed = ", changed on the way" if one.get("changes") else ""
            click.echo(printable(f"{one['rule']}: to {places}{changed}"))
        else:
            click.echo(printable(f"{one['rule']}: no, {one['key']}: {one['words']}"))
    if not found and not as_json:
        click.echo("there are no rules of forwarding")
    return 0 if any(one["sends"] for one in found) else 1


def _header(path: Path) -> Dataset:
    try:
        with path.open("rb") as file:
            return read_header(file)
    except OSError as error:
        raise OperationFailed(f"cannot read {path}: {error.strerror}") from None
    except (NotDicomFile, DataSetError) as error:
        raise OperationFailed(f"{path}: {error}") from None


def _front(header: Dataset) -> bytes:
    """Return a header as a PS3.10 file without pixel data."""
    # The rules look at the data set alone, so any UIDs do.
    meta = FileMeta(_EXPLICIT, _EXPLICIT, _EXPLICIT, IMPLEMENTATION_CLASS_UID)
    return encode_preamble_and_meta(meta) + encode_dataset(header, _EXPLICIT)


def write_key(path: Path) -> None:
    """
    Make the file of a new key of pseudonyms.

    :raises OperationFailed: there is a file already, or it cannot be written.
    """
    try:
        make_key(path)
    except FileExistsError:
        raise OperationFailed(
            f"{path} is there already: with another key all patients would have other pseudonyms"
        ) from None
    except OSError as error:
        raise OperationFailed(f"cannot write {path}: {error.strerror}") from None
    click.echo(f'{path} has a new key (mode 600): keep a copy, and write forward-key = "{path}" in the configuration')


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
