"""
Which presentation contexts to propose: by name, or for files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomtwist import ALL_TRANSFER_SYNTAXES, PresentationContext, build_context, presentation, sop_class
from dicomtwist.presentation import DEFAULT_TRANSFER_SYNTAXES, PREBUILT_CONTEXTS
from dicomtwist.sop_class import SOPClass, Verification, check_uid, common_storage_classes, uid_to_sop_class
from dicomtwist.ul.items import MAX_PRESENTATION_CONTEXTS

#: The transfer syntaxes between which an instance is converted if it has to be: the uncompressed ones.
CONVERTIBLE = frozenset(DEFAULT_TRANSFER_SYNTAXES)

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


def names_like(start: str) -> list[str]:
    """Return what :func:`sop_classes_named` knows that begins with *start*, in whatever case: groups, then keywords."""
    known = [*groups(), *(name for name in dir(sop_class) if _keyword(name) is not None)]
    return [name for name in known if name.lower().startswith(start.lower())]


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
        for syntax in (ALL_TRANSFER_SYNTAXES if uid != Verification else [ImplicitVRLittleEndian])
    ]


def needed_by(sop_class_uid: str, syntaxes: Iterable[str]) -> list[Need]:
    """
    Return what has to be proposed for instances of a SOP Class that come in *syntaxes*.

    Each transfer syntax is in a context of its own: of several in one, the peer takes a single one. What is not compressed
    can be converted, so the default transfer syntax, which every peer has, is proposed beside it.
    """
    wanted = list(dict.fromkeys(syntaxes))
    if CONVERTIBLE.intersection(wanted) and ImplicitVRLittleEndian not in wanted:
        wanted.append(ImplicitVRLittleEndian)
    return [(sop_class_uid, syntax) for syntax in wanted]


def contexts_for(needs: Iterable[Need]) -> list[PresentationContext]:
    """Return a presentation context for each of *needs*."""
    return [PresentationContext.received(1, uid, [syntax]) for uid, syntax in needs]


def split(contexts: Sequence[PresentationContext]) -> Iterator[list[PresentationContext]]:
    """Cut *contexts* into as many as an association may have."""
    for start in range(0, len(contexts), MAX_PRESENTATION_CONTEXTS):
        yield list(contexts[start : start + MAX_PRESENTATION_CONTEXTS])


# --- what is to come in

#: Compressed transfer syntaxes, the most usual first.
_COMPRESSED = (
    "1.2.840.10008.1.2.4.70",  # JPEG Lossless, Selection Value 1
    "1.2.840.10008.1.2.4.90",  # JPEG 2000, lossless
    "1.2.840.10008.1.2.4.50",  # JPEG Baseline
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.5",  # RLE Lossless
    "1.2.840.10008.1.2.4.80",  # JPEG-LS, lossless
)
#: The SOP Classes of which most instances are; these are first to have their compressed instances taken.
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
    Return the storage SOP Classes that *names* mean, the common ones for no names: those in use, the most usual first.

    :raises ValueError: a name means none, or they are more than an association has place for.
    """
    classes = list(dict.fromkeys(uid for name in names for uid in sop_classes_named(name)))
    if not classes:
        usual = [uid for name in _USUAL if (uid := _keyword(name)) is not None]
        in_use = [uid for uid in common_storage_classes() if not uid.is_retired]
        classes = list(dict.fromkeys([*usual, *in_use]))
    if len(classes) >= MAX_PRESENTATION_CONTEXTS:
        most = MAX_PRESENTATION_CONTEXTS - 1
        raise ValueError(f"these are {len(classes)} SOP Classes, an association has place for {most} of them")
    return classes


def contexts_to_take(classes: Sequence[SOPClass], room: int) -> list[PresentationContext]:
    """
    Return presentation contexts for instances of *classes* that are to come in, in whatever transfer syntax.

    Each class has one for what is not compressed. The room that is left goes to compressed ones, each transfer syntax in one
    of its own as far as that goes: of several in one, the peer takes a single one.

    :param classes: the SOP Classes; where there is not room for all of them, what comes first is served first.
    :param room: how many contexts at the most.
    """
    contexts = [build_context(uid, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]) for uid in classes]
    others = [
        str(syntax)
        for syntax in ALL_TRANSFER_SYNTAXES
        if str(syntax) not in CONVERTIBLE - {DeflatedExplicitVRLittleEndian} and str(syntax) not in _COMPRESSED
    ]
    left = room - len(contexts)
    for number, uid in enumerate(classes):
        share = left // (len(classes) - number) or min(left, 1)
        alone = _COMPRESSED[: max(0, share - 1)]
        rest = [syntax for syntax in (*_COMPRESSED, *others) if syntax not in alone]
        contexts += [build_context(uid, syntax) for syntax in alone]
        if share:
            contexts.append(build_context(uid, rest))
        left -= len(alone) + bool(share)
    return contexts
