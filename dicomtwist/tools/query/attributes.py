"""
Attributes as pydicom's dictionary has them: keywords and value representations.

Shell completion imports this module, so it needs nothing of pydicom but the dictionary.
"""

from __future__ import annotations

from pydicom.datadict import dictionary_VR, keyword_dict, keyword_for_tag
from pydicom.tag import BaseTag, Tag


def attribute_name(tag: BaseTag) -> str:
    """Return the keyword of *tag*, or the tag as ``(gggg,eeee)`` if it has none."""
    return keyword_for_tag(tag) or f"({tag.group:04X},{tag.element:04X})"


def vr_of(tag: BaseTag) -> str:
    """Return the VR of an attribute, the first one if the dictionary has several."""
    if tag.is_private_creator:
        return "LO"
    try:
        return dictionary_VR(tag).split(" or ")[0]
    except KeyError:
        return "UN"


def complete_keyword(start: str) -> list[str]:
    """Return the keywords that begin with *start* in any case, of all attributes that a query may contain."""
    return sorted(
        keyword
        for keyword, tag in keyword_dict.items()
        if keyword.lower().startswith(start.lower()) and is_queryable(Tag(tag))
    )


def is_queryable(tag: BaseTag) -> bool:
    """Whether a query may contain the attribute: one of a data set, and no group length."""
    return 0x0002 < tag.group < 0xFFFC and tag.element != 0 and bool(tag.group & 1) == tag.is_private
