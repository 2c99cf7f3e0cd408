"""
Attributes as pydicom's dictionary has them: keywords and value representations.

Shell completion imports this module, so it needs nothing of pydicom but the dictionary.
"""

from __future__ import annotations

from pydicom.datadict import dictionary_VR, keyword_dict, keyword_for_tag
from pydicom.tag import BaseTag, Tag


def name_of(tag: BaseTag) -> str:
    """Return the keyword of *tag*, or how it is written where it has none."""
    return keyword_for_tag(tag) or f"({tag.group:04X},{tag.element:04X})"


def vr_of(tag: BaseTag) -> str:
    """Return the VR of an attribute; where the dictionary has several, the first."""
    if tag.is_private_creator:
        return "LO"
    try:
        return dictionary_VR(tag).split(" or ")[0]
    except KeyError:
        return "UN"


def keywords_like(start: str) -> list[str]:
    """Return the keywords of the attributes that can be asked for and that begin with *start*, in whatever case."""
    return sorted(
        keyword
        for keyword, tag in keyword_dict.items()
        if keyword.lower().startswith(start.lower()) and is_queryable(Tag(tag))
    )


def is_queryable(tag: BaseTag) -> bool:
    """Whether it is of a data set, and no length of a group, in which pydicom has keywords for some."""
    return 0x0002 < tag.group < 0xFFFC and tag.element != 0 and bool(tag.group & 1) == tag.is_private
