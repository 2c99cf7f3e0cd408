"""
Why there is no presentation context for a service, in words: the names of SOP Classes and transfer syntaxes, and what to add.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Sequence
from typing import Final

from pydicom.uid import UID

from dicomtwist.presentation import PresentationContext
from dicomtwist.sop_class import SOPClass, shared_uid

#: The transfer syntaxes and the contexts of which one sentence gives the names.
_NAMED_SYNTAXES: Final = 3
_NAMED_CONTEXTS: Final = 5

_LONGEST_NAME: Final = 100

_UID: Final = re.compile(r"[0-9.]{1,64}")

#: The result "transfer syntaxes not supported" (PS3.8 Table 9-18).
_SYNTAXES_REFUSED: Final = 4


class Proposal(enum.StrEnum):
    """The way in which the presentation contexts of an association were proposed: a call with the place for another one."""

    AE = "ae.add_requested_context({})"
    """They are those of the AE."""
    ASSOCIATE = "associate(..., contexts=[build_context({}), ...])"
    """They are an argument of ``AE.associate`` or of a pool."""
    CONNECT = "connect(..., contexts=[build_context({}), ...])"
    """They are those of ``connect()`` of dicomtwist.asyncio or dicomtwist.sync."""
    PROGRAM = ""
    """A program chose them, so that its user has no call to change."""


def syntax_names(uids: Iterable[str], most: int = _NAMED_SYNTAXES) -> str:
    """
    Return the names of transfer syntaxes, as ``"JPEG Baseline (Process 1), RLE Lossless"``.

    :param most: the number of names, of which there may be one more.
    """
    names = [_syntax_name(str(uid)) for uid in uids]
    more = len(names) - most
    if more <= 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {more} more"


def uid_name(uid: str) -> str:
    """
    Return the name of *uid* in PS3.6, or *uid* if it has none.

    A text that is no UID may be the name of a patient, so only its length is given.
    """
    if not _UID.fullmatch(uid):
        return f"an invalid UID of {len(uid)} characters"
    return SOPClass(uid).name


def _syntax_name(uid: str) -> str:
    name = shared_uid(UID, uid).name
    # A peer may propose any text as a transfer syntax.
    return name if len(name) <= _LONGEST_NAME and name.isprintable() else ascii(name[:_LONGEST_NAME])


def explain_refusals(peer: str, rejected: Sequence[PresentationContext]) -> str:
    """
    Return why an association has no accepted presentation context.

    :param peer: the AE title of the acceptor.
    :param rejected: the contexts that were proposed, each with its result.
    """
    reasons = sorted({f"{_proposal(context)}: {context.status}" for context in rejected})
    more = f" and {len(reasons) - _NAMED_CONTEXTS} more" if len(reasons) > _NAMED_CONTEXTS else ""
    text = f"{peer} accepted none of the {len(rejected)} presentation contexts: {'; '.join(reasons[:_NAMED_CONTEXTS])}{more}"
    if any(context.result == _SYNTAXES_REFUSED for context in rejected):
        text += ". Propose other transfer syntaxes as well, or configure the peer to accept these"
    return text


def _proposal(context: PresentationContext) -> str:
    """Name a proposed context: the SOP Class and its UID, and the transfer syntaxes if they are what the acceptor lacks."""
    uid = str(context.abstract_syntax)
    name = SOPClass(uid).name
    named = uid if name == uid else f"{name} ({uid})"
    if context.result != _SYNTAXES_REFUSED:
        return named
    return f"{named} with {syntax_names(context.transfer_syntax)}"


def explain_missing_context(
    abstract_syntax: str,
    transfer_syntax: str | None,
    *,
    role: str,
    accepted: Sequence[str],
    has_role: bool,
    rejected: Iterable[PresentationContext],
    is_requestor: bool,
    proposal: Proposal = Proposal.AE,
) -> str:
    """
    Return why an association has no presentation context for a service, and what to add.

    :param abstract_syntax: the SOP Class UID of the service.
    :param transfer_syntax: the transfer syntax UID of the data set, ``None`` for any.
    :param role: the role of this side, ``"SCU"`` or ``"SCP"``.
    :param accepted: the transfer syntaxes of the accepted contexts of the SOP Class.
    :param has_role: whether this side has the role in one of these contexts.
    :param rejected: the contexts that the acceptor rejected.
    :param is_requestor: whether this side requested the association, so that it can propose more.
    :param proposal: how it proposed the contexts, so that the advice is a call that its user can write.
    """
    name = SOPClass(abstract_syntax).name
    call = _call(proposal, abstract_syntax, transfer_syntax) if is_requestor else ""
    wanted = f" with {syntax_names([transfer_syntax])}" if transfer_syntax else ""
    if accepted and not has_role:
        return f"no accepted presentation context for {name} as {role}: role selection has not given us this role"
    refused = [context for context in rejected if context.abstract_syntax == abstract_syntax]
    asked = [context for context in refused if transfer_syntax is None or transfer_syntax in context.transfer_syntax]
    if refused and (asked or not accepted):
        context = (asked or refused)[0]
        text = f"the peer did not accept a presentation context for {name}{wanted if asked else ''}: {context.status}"
        if context.result == _SYNTAXES_REFUSED and not (asked and wanted):
            text += f": {syntax_names(context.transfer_syntax)}"
        if accepted:
            text += f"; it accepted {syntax_names(accepted)}"
        elif transfer_syntax and not asked and context.result == _SYNTAXES_REFUSED and call:
            text += f"; propose {call}"
        return text
    if accepted:
        text = f"no accepted presentation context for {name}{wanted} as {role}: the accepted transfer syntax is "
        text += syntax_names(accepted)
        if not transfer_syntax or not call:
            return text
        return f"{text}. Propose one of its own: {call}"
    if not is_requestor:
        return f"the peer proposed no presentation context for {name}"
    text = f"no presentation context was proposed for {name}"
    if not call:
        return f"{text}{wanted}"
    return f"{text}: {'add it to the requested contexts,' if proposal is Proposal.AE else 'propose it by'} {call}"


def _call(proposal: Proposal, abstract_syntax: str, transfer_syntax: str | None) -> str:
    """Return the call that proposes a context, with the keywords of :mod:`dicomtwist.sop_class` and :mod:`pydicom.uid`."""
    arguments = [SOPClass(abstract_syntax), *([UID(transfer_syntax)] if transfer_syntax else [])]
    return proposal.format(", ".join(uid.keyword or repr(str(uid)) for uid in arguments))
