"""
How deep the sequences of a data set are nested.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pydicom import Dataset

from dicomtwist.datasets.element_headers import ITEM_TAGS
from dicomtwist.errors import DataSetError

#: How deep sequences may be nested. What exists has about ten levels: a structured report.
MAX_NESTED: Final = 64


def check_nesting(dataset: Dataset) -> None:
    """
    Look into all sequences of *dataset*, which takes about the time of decoding them.

    pydicom decodes a sequence of defined length at the first look at it, and then goes into it by recursion: its ``repr``
    of ten thousand levels takes all of the memory that there is.

    :raises DataSetError: they are nested deeper than :data:`MAX_NESTED`, or one of them cannot be decoded.
    """
    level = [dataset]
    for _ in range(MAX_NESTED + 1):
        try:
            level = [item for outer in level for item in _items(outer)]
        except Exception as error:
            raise DataSetError(f"a sequence of the data set cannot be decoded: {error}") from error
        if not level:
            return
    raise DataSetError(f"the data set has sequences that are nested deeper than {MAX_NESTED}")


def _items(dataset: Dataset) -> Iterator[Dataset]:
    """Yield the items of the sequences in *dataset*, of those that the dictionary does not know as well."""
    for tag, element in list(dataset.items()):
        value = element.value
        if element.VR == "SQ" or (element.VR in (None, "UN") and value and value[:4] in ITEM_TAGS):
            decoded = dataset[tag]
            if decoded.VR == "SQ":
                yield from decoded.value
