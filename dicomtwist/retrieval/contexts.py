"""
The presentation contexts on which a peer may send instances to us, spread over several associations if one has no room.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomtwist import (
    ALL_TRANSFER_SYNTAXES,
    AllStoragePresentationContexts,
    PresentationContext,
    build_context,
    sop_class,
)
from dicomtwist.presentation import DEFAULT_TRANSFER_SYNTAXES
from dicomtwist.sop_class import common_storage_classes

#: The transfer syntaxes between which an instance can be converted: the uncompressed ones.
CONVERTIBLE = frozenset(DEFAULT_TRANSFER_SYNTAXES)
#: The most SOP Classes of one association that has a context for each transfer syntax.
MAX_THOROUGH = 2

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

#: The transfer syntaxes of the contexts for uncompressed instances.
_UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
#: All others, in the order in which they are proposed together.
_OTHERS = tuple(
    str(syntax)
    for syntax in ALL_TRANSFER_SYNTAXES
    if str(syntax) not in CONVERTIBLE - {DeflatedExplicitVRLittleEndian} and str(syntax) not in _COMPRESSED
)


def usual_classes() -> list[str]:
    """Return the common storage SOP Classes that are not retired, the most usual first."""
    usual = [str(getattr(sop_class, name)) for name in _USUAL]
    in_use = [str(uid) for uid in common_storage_classes() if not uid.is_retired]
    return list(dict.fromkeys([*usual, *in_use]))


def all_classes() -> list[str]:
    """Return all storage SOP Classes, the most usual first."""
    known = [str(context.abstract_syntax) for context in AllStoragePresentationContexts]
    return list(dict.fromkeys([*usual_classes(), *known]))


def receiving_contexts(classes: Sequence[str], limit: int) -> list[PresentationContext]:
    """
    Return presentation contexts to receive instances of *classes* in any transfer syntax.

    Each class gets one context for the uncompressed transfer syntaxes. The contexts that are left are for compressed ones,
    as far as possible with one transfer syntax each, since a peer accepts only one of several in the same context.

    :param classes: the SOP Classes; if the contexts do not suffice for all, the first classes take precedence.
    :param limit: the largest number of contexts.
    """
    contexts = [build_context(uid, list(_UNCOMPRESSED)) for uid in classes]
    left = limit - len(contexts)
    every = [*_COMPRESSED, *_OTHERS]
    for number, uid in enumerate(classes):
        share = left // (len(classes) - number) or min(left, 1)
        alone = every[: share if share >= len(every) else max(0, share - 1)]
        rest = every[len(alone) :]
        contexts += [build_context(uid, syntax) for syntax in alone]
        if share and rest:
            contexts.append(build_context(uid, rest))
        left -= len(alone) + bool(share and rest)
    return contexts


def first_contexts(classes: Sequence[str], limit: int) -> list[PresentationContext]:
    """Return the contexts of the first association: those of as many of *classes* as it has room for."""
    return receiving_contexts(classes[:limit], limit)


def thorough_contexts(classes: Iterable[str], limit: int) -> Iterator[list[PresentationContext]]:
    """Yield the contexts of associations for instances that the first did not bring, whose *classes* are known."""
    wanted = sorted(set(classes))
    for start in range(0, len(wanted), MAX_THOROUGH):
        yield receiving_contexts(wanted[start : start + MAX_THOROUGH], limit)


def further_contexts(
    classes: Sequence[str], first: Iterable[PresentationContext], limit: int
) -> Iterator[list[PresentationContext]]:
    """
    Yield the contexts of associations for instances that the first did not bring, whose classes are not known: each of
    *classes*, uncompressed and compressed, as far as the contexts *first* do not have it.
    """
    pairs = [(str(context.abstract_syntax), context.transfer_syntax[0] in _UNCOMPRESSED) for context in first]
    proposed = set(pairs)
    contexts = [
        build_context(uid, list(_UNCOMPRESSED) if plain else [*_COMPRESSED, *_OTHERS])
        for uid in classes
        for plain in (True, False)
        if (uid, plain) not in proposed
    ]
    for start in range(0, len(contexts), limit):
        yield contexts[start : start + limit]
