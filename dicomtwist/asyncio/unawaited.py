"""
Results that code uses without ``await``.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

__all__ = ["Unawaited"]


class Unawaited:
    """
    An awaitable and asynchronous context manager that is not the object which it gives: errors say what to write.

    :cvar call: the function that returns it.
    :cvar gives: a name for the object, as the guides have it.
    """

    call: ClassVar[str]
    gives: ClassVar[str]

    # Type checkers would take every attribute for one that exists.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("_"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            raise AttributeError(
                f"the result of {self.call}() has no {name!r} before it is awaited: write 'async with {self.call}(...) as"
                f" {self.gives}:' or '{self.gives} = await {self.call}(...)'"
            )

    def __enter__(self) -> Any:
        raise TypeError(
            f"write 'async with {self.call}(...)' in a coroutine, or 'with dicomtwist.sync.{self.call}(...)' in a script that"
            " blocks"
        )

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Never called; ``with`` looks for it before it calls ``__enter__``."""
