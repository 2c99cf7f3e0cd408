"""
Store and forward: instances that are sent to their destinations, by tasks that survive restarts.

The names here are imported when they are first used, so that the modules with rules and coercion can be used without Twisted.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dicomtwist.forwarding.delivery.interfaces import InstanceSource, Sender, TaskQueue
    from dicomtwist.forwarding.errors import CoercionError, ForwardingRuleError
    from dicomtwist.forwarding.forwarder import Forwarder
    from dicomtwist.forwarding.parsing import parse_forward
    from dicomtwist.forwarding.rules import ForwardRule, ForwardRules
    from dicomtwist.forwarding.tasks.store import TaskStore
    from dicomtwist.forwarding.tasks.types import Arrival, Definition, Selection, Task, TaskState

__all__ = [
    "Arrival",
    "CoercionError",
    "Definition",
    "ForwardRule",
    "ForwardRules",
    "Forwarder",
    "ForwardingRuleError",
    "InstanceSource",
    "Selection",
    "Sender",
    "Task",
    "TaskQueue",
    "TaskState",
    "TaskStore",
    "parse_forward",
]

_MODULES = {
    **dict.fromkeys(("InstanceSource", "Sender", "TaskQueue"), "delivery.interfaces"),
    **dict.fromkeys(("CoercionError", "ForwardingRuleError"), "errors"),
    "Forwarder": "forwarder",
    "parse_forward": "parsing",
    **dict.fromkeys(("ForwardRule", "ForwardRules"), "rules"),
    "TaskStore": "tasks.store",
    **dict.fromkeys(("Arrival", "Definition", "Selection", "Task", "TaskState"), "tasks.types"),
}

if not TYPE_CHECKING:  # else a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
