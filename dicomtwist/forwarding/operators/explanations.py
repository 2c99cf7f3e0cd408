"""
Explanations of the rules of forwarding for one instance, as values of JSON.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from dicomtwist.access.rules import Requestor
from dicomtwist.forwarding.header import read_header
from dicomtwist.forwarding.rules import DataSetAttributes, Destination, ForwardRules

__all__ = ["explanations", "named"]


def named(destination: Destination) -> str:
    """Return a destination as one text: the peers in the order of failover."""
    return ",".join(destination)


def explanations(rules: ForwardRules, file: bytes, requestor: Requestor) -> list[dict[str, Any]]:
    """Return what each of *rules* says, see :meth:`~dicomtwist.forwarding.operators.queue.ForwardQueue.explain`. It blocks."""
    attributes = DataSetAttributes(read_header(BytesIO(file)))
    return [
        {
            "rule": one.rule.name,
            "sends": bool(one.destinations),
            "destinations": [named(each) for each in one.destinations],
            "key": one.key,
            "words": one.words,
            "changes": bool(one.rule.coercion),
        }
        for one in rules.explain(attributes, requestor)
    ]
