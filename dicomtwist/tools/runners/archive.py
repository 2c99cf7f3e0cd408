"""
The operations of ``dicomtwist archive``, at a running server by its API, or in the folder of a stopped one.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode
from zipfile import BadZipFile, ZipFile

import click

from dicomtwist.tools.display.console import printable
from dicomtwist.tools.server.api import OperationFailed, ServerAPI, open_server

__all__ = ["open_archive", "run"]

#: The studies that are asked for at once.
PAGE: Final = 500
#: The time between two questions whether a check has ended, in seconds.
POLL: Final = 0.5
_COPY: Final = 1024 * 1024

#: The fields of the answers of a server that are used, with their types.
_STAT: Final = {
    "folder": str,
    **dict.fromkeys(("patients", "studies", "series", "instances", "size", "free", "locked"), int),
}
_STUDY: Final = {"study": str, "size": int, "instances": int, "received": str | None, "lock": dict | None}
_STATE: Final = {"number": int, "state": str}
_CHECKED: Final = {
    **dict.fromkeys(("instances", "indexed", "lost", "unreadable"), int),
    **dict.fromkeys(("lost_names", "unreadable_names", "damaged_names"), list),
}


class Archives:
    """The operations, wherever the archive is. Each raises :class:`OperationFailed`."""

    @abstractmethod
    def stat(self) -> dict[str, Any]:
        """Return what the archive holds."""

    @abstractmethod
    def studies(
        self, uids: Sequence[str], patient_id: str, locked: bool, offset: int, limit: int
    ) -> list[dict[str, Any]]:
        """Return a part of the list of studies."""

    @abstractmethod
    def delete(self, uids: Sequence[str]) -> None:
        """Delete a study, a series or an instance."""

    @abstractmethod
    def lock(self, study: str, reason: str) -> None:
        """Lock a study."""

    @abstractmethod
    def unlock(self, study: str) -> None:
        """Unlock a study."""

    @abstractmethod
    def check(self, *, all_files: bool) -> dict[str, Any]:
        """Compare files and index; return the result."""

    @abstractmethod
    def export(self, uids: Sequence[str], folder: Path) -> int:
        """Copy files into a folder; return their number."""


class RunningServer(Archives):
    """
    A server that runs.

    :param api: its API.
    """

    def __init__(self, api: ServerAPI) -> None:
        self._api = api

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        return self._api.ask(method, f"/archive{path}", body)

    def stat(self) -> dict[str, Any]:
        return self._api.checked(self._ask("GET", ""), _STAT)

    def studies(
        self, uids: Sequence[str], patient_id: str, locked: bool, offset: int, limit: int
    ) -> list[dict[str, Any]]:
        query = [("offset", str(offset)), ("limit", str(limit)), *(("study", uid) for uid in uids)]
        query += [("patient_id", patient_id)] * bool(patient_id) + [("locked", "true")] * locked
        found = self._ask("GET", f"/studies?{urlencode(query)}")
        if not isinstance(found, list):
            raise self._api.is_another()
        return [self._api.checked(one, _STUDY) for one in found]

    def delete(self, uids: Sequence[str]) -> None:
        self._ask("DELETE", _path(uids))

    def lock(self, study: str, reason: str) -> None:
        self._ask("PUT", f"{_path([study])}/lock", {"reason": reason})

    def unlock(self, study: str) -> None:
        self._ask("DELETE", f"{_path([study])}/lock")

    def check(self, *, all_files: bool) -> dict[str, Any]:
        state = self._api.checked(self._ask("POST", "/rebuild" if all_files else "/check"), _STATE)
        number = state["number"]
        while state["number"] == number and state["state"] == "running":
            time.sleep(POLL)
            state = self._api.checked(self._ask("GET", "/check"), _STATE)
        if state["number"] != number or state["state"] != "done":
            raise OperationFailed(str(state.get("reason", "the server was started again meanwhile")))
        return self._api.checked(state.get("result"), _CHECKED)

    def export(self, uids: Sequence[str], folder: Path) -> int:
        path = "/dicom-web" + _path(uids)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            with self._api.response(
                "GET", path, accept="application/zip, application/dicom; transfer-syntax=*;q=0.5"
            ) as response:
                warnings = response.headers.get_all("Warning", [])
                shutil.copyfileobj(response, file, _COPY)
            file.seek(0)
            try:
                count, comment = _unpack(file, folder / uids[0])
            except (BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
                raise OperationFailed(f"{self._api.url} has sent no zip file, or not all of it") from None
        left_out = [one for one in (*warnings, comment) if "left out" in one]
        if left_out:
            raise OperationFailed(f"{count} instances were exported, and not all: {', '.join(left_out)[:500]}")
        return count


def _path(uids: Sequence[str]) -> str:
    names = ("studies", "series", "instances")
    return "".join(f"/{name}/{quote(uid, safe='')}" for name, uid in zip(names, uids, strict=False))


def _unpack(file: Any, folder: Path) -> tuple[int, str]:
    """Write the files of a zip file, SERIES/INSTANCE.dcm each; return their number and its comment."""
    count = 0
    with ZipFile(file) as archive:
        for member in archive.infolist():
            series, _, name = member.filename.partition("/")
            with archive.open(member) as source:
                _copy(source, folder / Path(series).name / Path(name).name)
            count += 1
        return count, archive.comment.decode("utf-8", "replace")


def _copy(source: Any, target: Path) -> None:
    """Write a file, which has its name when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        with part.open("wb") as file:
            shutil.copyfileobj(source, file, _COPY)
        os.replace(part, target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


class StoppedFolder(Archives):
    """
    The folder of a server that does not run.

    :param archive: the archive, open, whose files and index agree.
    :param found: the differences that were found when it was opened.
    """

    def __init__(self, archive: Any, found: Any) -> None:
        self._archive = archive
        self._found = found

    def stat(self) -> dict[str, Any]:
        from dicomtwist.archive.query.overview import overview

        return overview(self._archive)

    def studies(
        self, uids: Sequence[str], patient_id: str, locked: bool, offset: int, limit: int
    ) -> list[dict[str, Any]]:
        from dicomtwist.archive.query.overview import StudyChoice, studies

        return studies(self._archive, StudyChoice(uids, patient_id, locked, offset, limit))

    def delete(self, uids: Sequence[str]) -> None:
        deleted = self._archive.delete(uids)
        if deleted.files is not None:
            for _ in self._archive.purge(deleted.files):
                pass

    def lock(self, study: str, reason: str) -> None:
        from dicomtwist.archive.removal.holds import Hold

        self._archive.holds.put(study, Hold(reason, "dicomtwist archive", time.time()))

    def unlock(self, study: str) -> None:
        if not self._archive.holds.remove(study):
            raise OperationFailed(f"study {study} is not locked")

    def check(self, *, all_files: bool) -> dict[str, Any]:
        from dicomtwist.archive.services.maintenance import as_json

        return as_json(self._found)

    def export(self, uids: Sequence[str], folder: Path) -> int:
        count = 0
        failures = []
        store = self._archive.store
        for series_uid, uid in self._archive.index.instances_below(uids):
            try:
                source = store.open(uids[0], series_uid, uid)
            except OSError as error:
                failures.append(f"{uid}: {error}")
                continue
            with source:
                _copy(source, folder / uids[0] / series_uid / f"{uid}.dcm")
            count += 1
        if failures:
            words = f"{count} instances were exported, and {len(failures)} were not, the first is {failures[0]}"
            raise OperationFailed(words)
        if not count:
            raise OperationFailed("there is no such study, series or instance")
        return count


@contextmanager
def open_archive(
    url: str, storage: Path | None, token_file: Path | None, roots: Path | None, *, rebuilds: bool = False
) -> Iterator[Archives]:
    """
    Open the archive of a server, or that of a folder.

    :param rebuilds: whether the index of a folder is moved away before.
    :raises OperationFailed: it cannot be used; the text says why.
    """
    if storage is None:
        yield RunningServer(open_server(url, token_file, roots))
        return
    with _opened(storage, rebuilds=rebuilds) as archive:
        yield archive


@contextmanager
def _opened(storage: Path, *, rebuilds: bool) -> Iterator[StoppedFolder]:
    try:
        from dicomtwist.archive.archive import Archive
        from dicomtwist.archive.index.index import FOLDER
        from dicomtwist.archive.recovery import reconcile
        from dicomtwist.archive.storage.process_locks import FileLock
        from dicomtwist.archive.storage.types import StoreError
    except ModuleNotFoundError as error:
        if error.name != "sqlalchemy":
            raise
        raise OperationFailed('the archive needs SQLAlchemy: pip install "dicomtwist[archive]"') from None
    index = storage / FOLDER
    try:
        if not index.is_dir():
            _check_unindexed(storage, rebuilds=rebuilds)
            index.mkdir()
            rebuilds = False
        lock = FileLock(os.fspath(index / "lock"))
        try:
            if not lock.try_exclusive():
                raise OperationFailed(f"a server uses {storage}: stop it, or ask it with --url")
            if rebuilds:
                index.rename(storage / time.strftime(f"{FOLDER}-%Y%m%d-%H%M%S"))
        finally:
            lock.close()
        archive = Archive(storage)
        archive.open()
        try:
            found = reconcile(archive)
            for removed in archive.unpurged():
                for _ in archive.purge(removed):
                    pass
            yield StoppedFolder(archive, found)
        finally:
            archive.close()
    except StoreError as error:
        raise OperationFailed(str(error)) from None
    except OSError as error:
        raise OperationFailed(f"{error.filename or storage}: {error.strerror or error}") from None


def _check_unindexed(storage: Path, *, rebuilds: bool) -> None:
    """
    Check a folder without an index, as a backup without one is restored.

    :raises OperationFailed: it is not the folder of an archive, or its index is not to be made now.
    """
    from dicomtwist.archive.index.index import FOLDER
    from dicomtwist.archive.storage.types import is_uid

    with os.scandir(storage) as entries:
        if not any(one.name == ".incoming" or is_uid(one.name) for one in entries if one.is_dir()):
            raise OperationFailed(
                f"{storage} is not the folder of an archive: it has neither an index ({FOLDER}) nor studies"
            )
    if not rebuilds:
        raise OperationFailed(
            f"{storage} has no index ({FOLDER}), as after a restore: 'dicomtwist archive rebuild --storage {storage}' makes "
            "it, and so does the start of a server"
        )


# --- the operations


def run(archive: Archives, name: str, *, as_json: bool, **arguments: Any) -> int:
    """
    Run an operation, and print its result.

    :returns: the exit status.
    :raises OperationFailed: it failed.
    """
    return _OPERATIONS[name](archive, as_json=as_json, **arguments)


def _stat(archive: Archives, *, as_json: bool) -> int:
    found = archive.stat()
    if as_json:
        click.echo(json.dumps(found))
        return 0
    for name in ("folder", "patients", "studies", "series", "instances"):
        click.echo(f"{name:10} {printable(found[name])}")
    click.echo(f"{'size':10} {_bytes(found['size'])}, {_bytes(found['free'])} free")
    click.echo(f"{'locked':10} {found['locked']} studies")
    if found.get("lacks_room"):
        click.echo(f"{'room':10} none: {printable(found['lacks_room'])}")
    return 0


def _list(
    archive: Archives, *, as_json: bool, uids: Sequence[str], patient_id: str, locked: bool, limit: int | None
) -> int:
    rows: list[dict[str, Any]] = []
    offset = 0
    while limit is None or offset < limit:
        wanted = PAGE if limit is None else min(PAGE, limit - offset)
        rows = archive.studies(uids, patient_id, locked, offset, wanted)
        if not (offset or as_json):
            click.echo(f"{'received':20}  {'size':>9}  {'instances':>9}  locked  study")
        for row in rows:
            if as_json:
                click.echo(json.dumps(row))
            else:
                click.echo(
                    f"{printable(row['received'] or ''):20}  {_bytes(row['size']):>9}  {row['instances']:>9}  "
                    f"{'yes' if row['lock'] else 'no':6}  {printable(row['study'])}"
                )
        offset += len(rows)
        if len(rows) < wanted:
            break
    return 0


def _each(what: str, archive: Archives, call: Callable[[Any], Any], targets: Sequence[Any], *, as_json: bool) -> int:
    """Call an operation for each target, print how it went, and return the exit status."""
    failed = 0
    for target in targets:
        name = target if isinstance(target, str) else "/".join(target)
        try:
            found = call(target)
        except OperationFailed as error:
            failed = 1
            outcome: Mapping[str, Any] = {"uids": name, "done": False, "reason": str(error)}
            words = f"{name}: {error}"
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "dicomtwist" and not isinstance(error, OSError):
                raise
            failed = 1
            outcome = {"uids": name, "done": False, "reason": str(error)}
            words = f"{name}: {error}"
        else:
            outcome = {"uids": name, "done": True, **({} if found is None else {"instances": found})}
            words = f"{name}: {what}" + ("" if found is None else f", {found} instances")
        click.echo(json.dumps(outcome) if as_json else printable(words), err=not as_json and not outcome["done"])
    return failed


def _delete(archive: Archives, *, as_json: bool, uids: Sequence[Sequence[str]]) -> int:
    return _each("deleted", archive, archive.delete, uids, as_json=as_json)


def _lock(archive: Archives, *, as_json: bool, uids: Sequence[str], reason: str) -> int:
    return _each("locked", archive, lambda uid: archive.lock(uid, reason), uids, as_json=as_json)


def _unlock(archive: Archives, *, as_json: bool, uids: Sequence[str]) -> int:
    return _each("unlocked", archive, archive.unlock, uids, as_json=as_json)


def _export(archive: Archives, *, as_json: bool, uids: Sequence[Sequence[str]], folder: Path) -> int:
    return _each("exported", archive, lambda one: archive.export(one, folder), uids, as_json=as_json)


def _check(archive: Archives, *, as_json: bool) -> int:
    return _compare(archive, as_json=as_json, all_files=False)


def _rebuild(archive: Archives, *, as_json: bool) -> int:
    return _compare(archive, as_json=as_json, all_files=True)


def _compare(archive: Archives, *, as_json: bool, all_files: bool) -> int:
    found = archive.check(all_files=all_files)
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(
            f"{found['instances']} instances; {found['indexed']} files were indexed, {found['lost']} rows without a file "
            f"removed, {found['unreadable']} files cannot be read"
        )
        for key, words in (
            ("lost_names", "missing"),
            ("unreadable_names", "not indexed"),
            ("damaged_names", "not whole"),
        ):
            for name in found[key]:
                click.echo(f"{words}: {printable(name)}", err=True)
    return 1 if found["unreadable"] else 0


def _bytes(count: int) -> str:
    value, units = float(count), ["B", "KB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


_OPERATIONS: Final[Mapping[str, Callable[..., int]]] = {
    "stat": _stat,
    "list": _list,
    "delete": _delete,
    "lock": _lock,
    "unlock": _unlock,
    "check": _check,
    "rebuild": _rebuild,
    "export": _export,
}
