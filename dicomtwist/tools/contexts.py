"""
The presentation contexts to propose: for SOP Classes by name, for files to send, and for instances to receive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomtwist import ALL_TRANSFER_SYNTAXES, PresentationContext, build_context, presentation, sop_class
from dicomtwist.presentation import DEFAULT_TRANSFER_SYNTAXES, PREBUILT_CONTEXTS
from dicomtwist.sop_class import SOPClass, Verification, check_uid, common_storage_classes, uid_to_sop_class
from dicomtwist.ul.items import MAX_PRESENTATION_CONTEXTS

#: The transfer syntaxes between which an instance can be converted: the uncompressed ones.
CONVERTIBLE = frozenset(DEFAULT_TRANSFER_SYNTAXES)

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


# --- receiving

#: Compressed transfer syntaxes, the most common first.
_COMPRESSED = (
    "1.2.840.10008.1.2.4.70",  # JPEG Lossless, Selection Value 1
    "1.2.840.10008.1.2.4.90",  # JPEG 2000, lossless
    "1.2.840.10008.1.2.4.50",  # JPEG Baseline
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.5",  # RLE Lossless
    "1.2.840.10008.1.2.4.80",  # JPEG-LS, lossless
)
#: The SOP Classes of most instances. They are the first to get contexts for compressed transfer syntaxes.
_USUAL = (
    *("CTImageStorage", "MRImageStorage", "UltrasoundMultiFrameImageStorage", "DigitalXRayImageStorageForPresentation"),
    *(
        "DigitalMammographyXRayImageStorageForPresentation",
        "ComputedRadiographyImageStorage",
        "XRayAngiographicImageStorage",
    ),
    *("UltrasoundImageStorage", "SecondaryCaptureImageStorage", "EnhancedCTImageStorage", "EnhancedMRImageStorage"),
    *("NuclearMedicineImageStorage", "PositronEmissionTomographyImageStorage", "BreastTomosynthesisImageStorage"),
    *("VLEndoscopicImageStorage", "VLPhotographicImageStorage", "MultiFrameTrueColorSecondaryCaptureImageStorage"),
)


def storage_classes(names: Iterable[str]) -> list[SOPClass]:
    """
    Return the storage SOP Classes that *names* name; without names the common ones that are not retired, the most usual first.

    :raises ValueError: a name names none, or they are too many for one association.
    """
    classes = list(dict.fromkeys(uid for name in names for uid in sop_classes_named(name)))
    if not classes:
        usual = [uid for name in _USUAL if (uid := _keyword(name)) is not None]
        in_use = [uid for uid in common_storage_classes() if not uid.is_retired]
        classes = list(dict.fromkeys([*usual, *in_use]))
    if len(classes) >= MAX_PRESENTATION_CONTEXTS:
        most = MAX_PRESENTATION_CONTEXTS - 1
        raise ValueError(f"these are {len(classes)} SOP Classes, and an association has room for {most}: name fewer")
    return classes


def receiving_contexts(classes: Sequence[SOPClass], limit: int) -> list[PresentationContext]:
    """
    Return presentation contexts to receive instances of *classes* in any transfer syntax.

    Each class gets one context for the uncompressed transfer syntaxes. The contexts that are left are for compressed ones,
    as far as possible with one transfer syntax each, since a peer accepts only one of several in the same context.

    :param classes: the SOP Classes; if the contexts do not suffice for all, the first classes take precedence.
    :param limit: the largest number of contexts.
    """
    contexts = [build_context(uid, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]) for uid in classes]
    others = [
        str(syntax)
        for syntax in ALL_TRANSFER_SYNTAXES
        if str(syntax) not in CONVERTIBLE - {DeflatedExplicitVRLittleEndian} and str(syntax) not in _COMPRESSED
    ]
    left = limit - len(contexts)
    for number, uid in enumerate(classes):
        share = left // (len(classes) - number) or min(left, 1)
        alone = _COMPRESSED[: max(0, share - 1)]
        rest = [syntax for syntax in (*_COMPRESSED, *others) if syntax not in alone]
        contexts += [build_context(uid, syntax) for syntax in alone]
        if share:
            contexts.append(build_context(uid, rest))
        left -= len(alone) + bool(share)
    return contexts
