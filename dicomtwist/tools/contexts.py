"""
Which presentation contexts to propose: by name, or for files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from dicomtwist import ALL_TRANSFER_SYNTAXES, PresentationContext, build_context, presentation, sop_class
from dicomtwist.presentation import PREBUILT_CONTEXTS
from dicomtwist.sop_class import SOPClass, Verification, check_uid, uid_to_sop_class
from dicomtwist.ul.items import MAX_PRESENTATION_CONTEXTS

IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
#: The transfer syntaxes between which an instance is converted where it has to be.
CONVERTIBLE = frozenset(
    (IMPLICIT_LITTLE_ENDIAN, "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
)

#: A SOP Class UID with the Transfer Syntax UID of its instances.
Need = tuple[str, str]

#: Short names beside those of the lists in :mod:`dicomtwist.presentation`, without their common ending.
_SHORT = {
    "storage": "AllStorage",
    "query": "QueryRetrieve",
    "worklist": "BasicWorklistManagement",
    "commitment": "StorageCommitment",
}
_ENDING = "PresentationContexts"


def groups() -> list[str]:
    """Return the names of groups of SOP Classes that may be proposed at once."""
    return sorted({*_SHORT, *(name.removesuffix(_ENDING).lower() for name in PREBUILT_CONTEXTS)})


def sop_classes_named(name: str) -> list[SOPClass]:
    """
    Return the SOP Classes that *name* means: a group, a keyword such as ``CTImageStorage``, or a UID.

    :raises ValueError: it means none.
    """
    wanted = _SHORT.get(name.lower(), name).lower()
    for group in PREBUILT_CONTEXTS:
        if group.removesuffix(_ENDING).lower() == wanted:
            contexts: list[PresentationContext] = getattr(presentation, group)
            return [context.abstract_syntax for context in contexts if context.abstract_syntax is not None]
    if name[:1].isdigit():
        if name in ALL_TRANSFER_SYNTAXES:
            raise ValueError(f"{name} is a transfer syntax and not a SOP Class")
        return [uid_to_sop_class(check_uid(name, "the SOP Class"))]
    found = _keyword(name)
    if found is None:
        raise ValueError(f"{name!r} is neither a SOP Class keyword, as CTImageStorage, nor a UID, nor one of a group")
    return [found]


def _keyword(name: str) -> SOPClass | None:
    try:
        value = getattr(sop_class, name)
    except AttributeError:
        return None
    return value if isinstance(value, SOPClass) else None


def contexts_named(names: Iterable[str], *, each_syntax: bool = False) -> list[PresentationContext]:
    """
    Return presentation contexts for the SOP Classes that *names* mean, each class once.

    :param each_syntax: one context for each transfer syntax that there is, so that the answer tells of every one.
    """
    classes = dict.fromkeys(uid for name in names for uid in sop_classes_named(name))
    if not each_syntax:
        return [build_context(uid) for uid in classes]
    return [
        build_context(uid, syntax)
        for uid in classes
        for syntax in (ALL_TRANSFER_SYNTAXES if uid != Verification else [IMPLICIT_LITTLE_ENDIAN])
    ]


def needed_by(sop_class_uid: str, syntaxes: Iterable[str]) -> list[Need]:
    """
    Return what has to be proposed for instances of a SOP Class that come in *syntaxes*.

    Each transfer syntax is in a context of its own: of several in one, the peer takes a single one. What is not compressed
    can be converted, so the default transfer syntax, which every peer has, is proposed beside it.
    """
    wanted = list(dict.fromkeys(syntaxes))
    if CONVERTIBLE.intersection(wanted) and IMPLICIT_LITTLE_ENDIAN not in wanted:
        wanted.append(IMPLICIT_LITTLE_ENDIAN)
    return [(sop_class_uid, syntax) for syntax in wanted]


def contexts_for(needs: Iterable[Need]) -> list[PresentationContext]:
    """Return a presentation context for each of *needs*."""
    return [PresentationContext.received(1, uid, [syntax]) for uid, syntax in needs]


def split(contexts: Sequence[PresentationContext]) -> Iterator[list[PresentationContext]]:
    """Cut *contexts* into as many as an association may have."""
    for start in range(0, len(contexts), MAX_PRESENTATION_CONTEXTS):
        yield list(contexts[start : start + MAX_PRESENTATION_CONTEXTS])
