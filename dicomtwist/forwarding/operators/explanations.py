"""
Explanations of the rules of forwarding for one instance, as values of JSON.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from dicomtwist.access.rules import Requestor
from dicomtwist.archive.index.record import MAX_VALUE_LENGTH
from dicomtwist.datasets.header_scanner import HeaderError, HeaderScanner
from dicomtwist.errors import DataSetError
from dicomtwist.forwarding.header import PIXEL_GROUP
from dicomtwist.forwarding.receipt.attributes import ScannedAttributes, items_of, tags_for
from dicomtwist.forwarding.rules import Destination, ForwardRules
from dicomtwist.part10 import read_file_meta

__all__ = ["explanations", "named"]


def named(destination: Destination) -> str:
    """Return a destination as one text: the peers in the order of failover."""
    return ",".join(destination)


def explanations(rules: ForwardRules, file: bytes, requestor: Requestor) -> list[dict[str, Any]]:
    """Return what each of *rules* says, see :meth:`~dicomtwist.forwarding.operators.queue.ForwardQueue.explain`. It blocks."""
    attributes = _attributes(file, tags_for(rules.paths))
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


def _attributes(file: bytes, tags: frozenset[int]) -> ScannedAttributes:
    """Return the attributes of an instance as its receipt sees them, so that an explanation says what would happen."""
    meta, offset = read_file_meta(BytesIO(file))
    syntax = meta.transfer_syntax_uid
    # To the end of the header, so that a file that is cut in it is an error.
    scanner = HeaderScanner(
        syntax, tags, max_value_length=MAX_VALUE_LENGTH, sequences=True, stop_after=(PIXEL_GROUP << 16) - 1
    )
    try:
        scanner.feed(memoryview(file)[offset:])
        if not scanner.done:
            scanner.finish()
    except HeaderError as error:
        raise DataSetError(str(error)) from None
    return ScannedAttributes(items_of(scanner.values, sorted(tags)), syntax)
