"""
The presentation contexts to propose: for SOP Classes by name, for files to send, and for instances to receive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pydicom.uid import ImplicitVRLittleEndian

from dicomtwist import ALL_TRANSFER_SYNTAXES, PresentationContext, build_context, presentation, sop_class
from dicomtwist.presentation import PREBUILT_CONTEXTS
from dicomtwist.retrieval.contexts import CONVERTIBLE
from dicomtwist.sop_class import SOPClass, Verification, check_uid, uid_to_sop_class
from dicomtwist.ul.items import MAX_PRESENTATION_CONTEXTS

#: The presentation context that an instance requires: its SOP Class UID and its Transfer Syntax UID.
Requirement = tuple[str, str]

#: Short names for some of the lists in :mod:`dicomtwist.presentation`, which are given without their common ending.
_SHORT = {
    "storage": "AllStorage",
    "query": "QueryRetrieve",
    "worklist": "BasicWorklistManagement",
    "commitment": "StorageCommitment",
}
_ENDING = "PresentationContexts"


def group_names() -> list[str]:
    """Return the names of the groups of SOP Classes."""
    return sorted({*_SHORT, *(name.removesuffix(_ENDING).lower() for name in PREBUILT_CONTEXTS)})


def complete_sop_class(start: str) -> list[str]:
    """Return the names for :func:`sop_classes_named` that begin with *start* in any case: groups, then keywords."""
    known = [*group_names(), *(name for name in dir(sop_class) if _keyword(name) is not None)]
    return [name for name in known if name.lower().startswith(start.lower())]


def sop_classes_named(name: str) -> list[SOPClass]:
    """
    Return the SOP Classes that *name* names: a group, a keyword such as ``CTImageStorage``, or a UID.

    :raises ValueError: it names none.
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
        raise ValueError(
            f"{name!r} is neither the keyword of a SOP Class, as CTImageStorage, nor a UID, nor the name of a group"
        )
    return [found]


def _keyword(name: str) -> SOPClass | None:
    try:
        value = getattr(sop_class, name)
    except AttributeError:
        return None
    return value if isinstance(value, SOPClass) else None


def contexts_named(names: Iterable[str], *, each_syntax: bool = False) -> list[PresentationContext]:
    """
    Return presentation contexts for the SOP Classes that *names* name, each class once.

    :param each_syntax: make one context for each known transfer syntax, so that the peer answers for each of them.
    """
    classes = dict.fromkeys(uid for name in names for uid in sop_classes_named(name))
    if not each_syntax:
        return [build_context(uid) for uid in classes]
    return [
        build_context(uid, syntax)
        for uid in classes
        for syntax in (ALL_TRANSFER_SYNTAXES if uid != Verification else [ImplicitVRLittleEndian])
    ]


def requirements_of(sop_class_uid: str, syntaxes: Iterable[str]) -> list[Requirement]:
    """
    Return the requirements of instances of one SOP Class in *syntaxes*.

    Each transfer syntax gets a context of its own, since a peer accepts only one of several in the same context.
    Uncompressed instances can be converted, so the default transfer syntax, which every peer supports, is added for them.
    """
    wanted = list(dict.fromkeys(syntaxes))
    if CONVERTIBLE.intersection(wanted) and ImplicitVRLittleEndian not in wanted:
        wanted.append(ImplicitVRLittleEndian)
    return [(sop_class_uid, syntax) for syntax in wanted]


def contexts_for(requirements: Iterable[Requirement]) -> list[PresentationContext]:
    """Return a presentation context for each of *requirements*."""
    return [PresentationContext.received(1, uid, [syntax]) for uid, syntax in requirements]


def split_contexts(contexts: Sequence[PresentationContext]) -> Iterator[list[PresentationContext]]:
    """Split *contexts* into lists that each fit into one association."""
    for start in range(0, len(contexts), MAX_PRESENTATION_CONTEXTS):
        yield list(contexts[start : start + MAX_PRESENTATION_CONTEXTS])
