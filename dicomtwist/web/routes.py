"""
The table of routes: methods and paths of DICOMweb, the operations that they need, and their handlers.

Each module of handlers has its rows in ``ROUTES``; :mod:`dicomtwist.web.resource` puts them together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from dicomtwist.access.rules import Operation
from dicomtwist.archive.storage.types import is_uid
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.services import Services

__all__ = ["Handler", "Match", "Route", "Router"]

#: A handler of a request. It answers by the methods of the request; the last argument has the values of the placeholders.
Handler: TypeAlias = Callable[[DICOMwebRequest, Services, Mapping[str, str]], Coroutine[Any, Any, None]]

#: The placeholders of a path whose values are UIDs. The values of others are texts without a slash.
UIDS: Final = frozenset(("study", "series", "instance"))


@dataclass(frozen=True, slots=True)
class Route:
    """
    One row of the table.

    :ivar method: the method; GET stands for HEAD as well.
    :ivar path: the path below the resource, with placeholders: ``/studies/{study}/series``. ``{name...}`` at the end matches
        any rest.
    :ivar operations: the operations that the rules must allow.
    :ivar handler: the handler.
    :ivar words: its purpose, for the conformance statement.
    """

    method: str
    path: str
    operations: frozenset[Operation]
    handler: Handler
    words: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """
    The routes of one path.

    :ivar routes: the routes by their methods; empty if there is no such path.
    :ivar values: the values of the placeholders.
    """

    routes: Mapping[str, Route]
    values: Mapping[str, str]

    @property
    def methods(self) -> list[str]:
        """The methods that are allowed, for the header field ``Allow``."""
        found = set(self.routes)
        if "GET" in found:
            found.add("HEAD")
        return sorted({*found, "OPTIONS"})


class Router:
    """
    Finds the routes of paths.

    :param routes: the table.
    :raises ValueError: two rows have the same method and path.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._paths: dict[str, tuple[re.Pattern[str], dict[str, Route]]] = {}
        for route in self.routes:
            _, methods = self._paths.setdefault(route.path, (_expression(route.path), {}))
            if route.method in methods:
                raise ValueError(f"two routes {route.method} {route.path}")
            methods[route.method] = route

    def find(self, path: str) -> Match:
        """
        Return the routes of a path.

        :param path: the path below the resource, decoded.
        :raises Problem: a UID in it is not one (400).
        """
        for expression, methods in self._paths.values():
            found = expression.fullmatch(path)
            if found is not None:
                values = found.groupdict()
                for name in UIDS & values.keys():
                    if not is_uid(values[name]):
                        raise Problem(400, f"the {name} in the path is not a UID")
                return Match(methods, values)
        return Match({}, {})


def _expression(path: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)(\.\.\.)?\}", path)
    found = re.escape(pieces[0])
    for name, rest, literal in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        found += f"(?P<{name}>.+)" if rest else f"(?P<{name}>[^/]+)"
        found += re.escape(literal)
    return re.compile(found)
