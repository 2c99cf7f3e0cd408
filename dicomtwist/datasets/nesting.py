"""
A limit on the nesting of sequences in a decoded data set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pydicom import Dataset

from dicomtwist.datasets.element_headers import ITEM_TAGS
from dicomtwist.errors import DataSetError

#: The most levels of nested sequences. Real data sets have about ten: structured reports.
MAX_NESTED: Final = 64


def check_nesting(dataset: Dataset) -> None:
    """
    Check all sequences of *dataset*, which takes about the time of decoding them.

    pydicom decodes a sequence of defined length when it is first used, and then walks it by recursion: the ``repr`` of ten
    thousand levels takes all memory.

    :raises DataSetError: sequences are nested deeper than :data:`MAX_NESTED`, or one of them cannot be decoded.
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
    """Yield the items of all sequences in *dataset*, including sequences that the data dictionary does not know."""
    for tag, element in list(dataset.items()):
        value = element.value
        if element.VR == "SQ" or (element.VR in (None, "UN") and value and value[:4] in ITEM_TAGS):
            decoded = dataset[tag]
            if decoded.VR == "SQ":
                yield from decoded.value
