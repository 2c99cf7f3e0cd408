"""
Data sets as JSON with keywords, for reports and journals. It is not DICOM JSON (PS3.18 Annex F).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from pydicom import Dataset
from pydicom.datadict import keyword_for_tag
from pydicom.tag import BaseTag
from pydicom.valuerep import DSfloat, PersonName

__all__ = ["to_json", "value_of"]


def value_of(dataset: Dataset, tag: Any) -> Any:
    """Return the value of an attribute, as bytes if it cannot be decoded as its VR."""
    try:
        return dataset[tag].value if tag in dataset else None
    except Exception:
        # pydicom raises various exceptions for values that it cannot decode.
        value = dataset.get_item(tag, keep_deferred=True)
        return getattr(value, "value", None)


def to_json(dataset: Dataset) -> dict[str, Any]:
    """Return *dataset* for JSON: values by keyword, sequences as lists of such objects, bytes in base 64."""
    return {_name(tag): _json_value(value_of(dataset, tag)) for tag in sorted(dataset.keys())}


def _json_value(value: Any) -> Any:
    if isinstance(value, Dataset):
        return to_json(value)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, PersonName):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float | DSfloat):
        # JSON has neither infinity nor NaN.
        return float(value) if abs(value) < float("inf") else str(value)
    if isinstance(value, Sequence):
        return [_json_value(each) for each in value]
    return str(value)


def _name(tag: BaseTag) -> str:
    return keyword_for_tag(tag) or f"({tag.group:04X},{tag.element:04X})"
