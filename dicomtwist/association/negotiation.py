"""
Association negotiation (PS3.8 7.1.1, PS3.7 Annex D.3): a proposal in, an answer out. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from pydicom.uid import ExplicitVRLittleEndian

from dicomtwist.presentation import DEFAULT_TRANSFER_SYNTAXES, PresentationContext, SupportedContexts
from dicomtwist.sop_class import ServiceClass, check_uid, uid_to_service_class
from dicomtwist.ul.ae_title import is_ae_title
from dicomtwist.ul.items import (
    APPLICATION_CONTEXT_NAME,
    AnsweredContext,
    AsyncOperationsWindow,
    ProposedContext,
    RoleSelection,
    SOPClassCommonExtended,
    SOPClassExtended,
    UserIdentity,
    UserInformation,
)
from dicomtwist.ul.pdu import AAssociateAC, AAssociateRJ, AAssociateRQ

#: The highest number, and the longest item in bytes, that 16 bits can say.
_LONGEST: Final = 0xFFFF

#: Stands for a SOP Class that is supported only because the acceptor is promiscuous.
_BOTH_ROLES: Final = PresentationContext(scu_role=True, scp_role=True)
_STORAGE: Final = (ServiceClass.STORAGE, ServiceClass.UNKNOWN)

#: An extended negotiation item that users pass.
NegotiationItem: TypeAlias = (
    AsyncOperationsWindow | RoleSelection | SOPClassExtended | SOPClassCommonExtended | UserIdentity
)


def merge_items(items: Iterable[object]) -> UserInformation:
    """
    Return the user information with the extended negotiation *items*.

    :raises TypeError: an object in it is not a negotiation item, or a field of one is of a wrong type.
    :raises ValueError: there are two items of a kind that may be proposed once only, or a field of one cannot be encoded.
    """
    single: dict[type, object] = {}
    roles: dict[str, RoleSelection] = {}
    extended: list[SOPClassExtended] = []
    common: list[SOPClassCommonExtended] = []
    for given in items:
        item = check_item(given)
        if isinstance(item, RoleSelection):
            roles[item.sop_class_uid] = item
        elif isinstance(item, SOPClassExtended):
            extended.append(item)
        elif isinstance(item, SOPClassCommonExtended):
            common.append(item)
        elif isinstance(item, AsyncOperationsWindow | UserIdentity):
            if type(item) in single:
                raise ValueError(f"{type(item).__name__} may be proposed once only (PS3.7 D.3.3)")
            single[type(item)] = item
    window = single.get(AsyncOperationsWindow)
    identity = single.get(UserIdentity)
    assert window is None or isinstance(window, AsyncOperationsWindow)
    assert identity is None or isinstance(identity, UserIdentity)
    return UserInformation(
        async_operations=window,
        roles=tuple(roles.values()),
        sop_class_extended=tuple(extended),
        sop_class_common_extended=tuple(common),
        user_identity=identity,
    )


def check_item(item: object) -> NegotiationItem:
    """
    Return an extended negotiation item that a user passes, its UIDs as ``str`` without padding.

    :raises TypeError: it is not a negotiation item, or a field is of a wrong type.
    :raises ValueError: a field has a value that the item cannot hold.
    """
    match item:
        case AsyncOperationsWindow():
            for number in (item.invoked, item.performed):
                if isinstance(number, bool) or not isinstance(number, int):
                    raise TypeError(f"a number of {item!r} must be an int, not {type(number).__name__}")
                if not 0 <= number <= _LONGEST:
                    raise ValueError(f"the numbers of {item!r} must be from 0, for no limit, to {_LONGEST}")
            return item
        case RoleSelection():
            _check_flag(item.scu_role, "scu_role of a RoleSelection")
            _check_flag(item.scp_role, "scp_role of a RoleSelection")
            return replace(item, sop_class_uid=_uid(item.sop_class_uid, item))
        case SOPClassExtended():
            checked = replace(item, sop_class_uid=_uid(item.sop_class_uid, item))
            _check_bytes(item.information, "the information of a SOPClassExtended")
            check_length(item, 2 + len(checked.sop_class_uid) + len(item.information))
            return checked
        case SOPClassCommonExtended():
            if isinstance(item.related_general_sop_classes, str | bytes):
                raise TypeError("related_general_sop_classes of a SOPClassCommonExtended must be a tuple of UIDs")
            related = tuple(_uid(uid, item) for uid in item.related_general_sop_classes)
            common = SOPClassCommonExtended(_uid(item.sop_class_uid, item), _uid(item.service_class_uid, item), related)
            # Three lengths of two bytes, and one more for each related SOP Class.
            texts = [common.sop_class_uid, common.service_class_uid, *related]
            check_length(item, 6 + 2 * len(related) + sum(map(len, texts)))
            return common
        case UserIdentity():
            if isinstance(item.identity_type, bool) or not isinstance(item.identity_type, int):
                raise TypeError(f"identity_type of a UserIdentity must be an int, not {item.identity_type!r}")
            if not 1 <= item.identity_type <= 5:
                raise ValueError(
                    f"identity_type of a UserIdentity must be from 1 to 5 (PS3.7 D.3.3.7), not {item.identity_type}"
                )
            _check_bytes(item.primary, "the primary field of a UserIdentity")
            _check_bytes(item.secondary, "the secondary field of a UserIdentity")
            _check_flag(item.response_requested, "response_requested of a UserIdentity")
            check_length(item, 6 + len(item.primary) + len(item.secondary))
            return item
    raise TypeError(
        f"{item!r} is not an extended negotiation item: AsyncOperationsWindow, RoleSelection (build_role),"
        " SOPClassExtended, SOPClassCommonExtended, UserIdentity"
    )


def _uid(value: object, item: object) -> str:
    return str(check_uid(value, f"a UID of a {type(item).__name__}"))


def _check_flag(value: object, what: str) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{what} must be a bool, not {type(value).__name__}")


def _check_bytes(value: object, what: str) -> None:
    # The value is not quoted: it may be a passcode.
    if not isinstance(value, bytes):
        hint = ": encode it, mostly in UTF-8" if isinstance(value, str) else ""
        raise TypeError(f"{what} must be bytes, not {type(value).__name__}{hint}")


def check_length(item: object, length: int) -> None:
    """:raises ValueError: *item* has more bytes than an item may have."""
    if length > _LONGEST:
        raise ValueError(f"a {type(item).__name__} of {length} bytes is too long: the maximum is {_LONGEST}")


# --- the acceptor


@dataclass(slots=True)
class ContextAnswers:
    """
    The answer of an acceptor to the proposed presentation contexts.

    :ivar contexts: one for each proposed context, with its result; with the roles and the one transfer syntax if the
        result is 0.
    :ivar roles: the role selection items of the answer; the list does not change.
    """

    contexts: list[PresentationContext] = field(default_factory=list)
    roles: list[RoleSelection] = field(default_factory=list)
    _items: tuple[AnsweredContext, ...] | None = field(default=None, repr=False, compare=False)

    @property
    def accepted(self) -> dict[int, PresentationContext]:
        """The accepted contexts by their IDs."""
        return {
            context.context_id: context
            for context in self.contexts
            if context.result == 0 and context.context_id is not None
        }

    def copy(self) -> ContextAnswers:
        """Return a copy with contexts of its own."""
        return ContextAnswers([context.copy() for context in self.contexts], self.roles, self._items)

    def items(self) -> tuple[AnsweredContext, ...]:
        """Return the presentation context items of the A-ASSOCIATE-AC. The contexts do not change any more."""
        if self._items is not None:
            return self._items
        answered: list[AnsweredContext] = []
        for context in self.contexts:
            assert context.context_id is not None and context.result is not None
            syntaxes = context.transfer_syntax
            answered.append(AnsweredContext(context.context_id, context.result, syntaxes[0] if syntaxes else ""))
        self._items = tuple(answered)
        return self._items


def answer_contexts(
    proposed: Iterable[ProposedContext],
    supported: SupportedContexts,
    roles: Iterable[RoleSelection] = (),
    *,
    promiscuous: bool = False,
    keep_compression: bool = False,
    requestor_order: bool = False,
    sendable: Callable[[str], Sequence[str]] | None = None,
) -> ContextAnswers:
    """
    Answer the presentation contexts and roles that a requestor proposes.

    Of the transfer syntaxes of a supported context, the first one that the requestor proposes is accepted. The order of the
    proposal does not count, because it often means nothing (many requestors sort by UID, so that Implicit VR, which loses the
    VRs of private elements, comes first).

    :param proposed: the items of the A-ASSOCIATE-RQ.
    :param supported: the supported contexts; a role selection is answered only if both roles of the context are set
        (PS3.7 D.3.3.4).
    :param roles: the role selection items of the A-ASSOCIATE-RQ.
    :param promiscuous: accept any SOP Class of the Storage Service Class, and any unknown one, with any transfer
        syntax and in any role.
    :param keep_compression: accept a compressed transfer syntax that the requestor proposes first, whatever the own
        order: few requestors can decompress what they store.
    :param requestor_order: accept the first supported transfer syntax in the requestor's order, whatever the own order.
    :param sendable: returns for a SOP Class the transfer syntaxes of the instances that this side has to send, the most
        frequent first; they take precedence if the requestor proposes to be SCP only, as for C-GET. With *keep_compression* a
        compressed one that is proposed first, and is among them, comes before.
    :returns: results 0 accepted, 1 no acceptable role, 3 abstract syntax not supported, 4 transfer syntaxes not
        supported (PS3.8 9.3.3.2).
    """
    proposed_roles = {role.sop_class_uid: role for role in roles}
    answers = ContextAnswers()
    answered_roles: dict[str, RoleSelection] = {}
    for offer in proposed:
        own = supported.get(offer.abstract_syntax)
        role = proposed_roles.get(offer.abstract_syntax)
        wanted: Sequence[str] = own.transfer_syntax if own is not None else []
        if promiscuous and _is_storage(offer.abstract_syntax):
            # Both roles, so that another AE can retrieve by C-GET what it may store.
            own = own or _BOTH_ROLES
            wanted = [*wanted, *_uncompressed_first(offer.transfer_syntaxes)]
        stored: Sequence[str] = ()
        if sendable is not None and role is not None and role.scp_role and not role.scu_role:
            stored = [uid for uid in sendable(offer.abstract_syntax) if uid in wanted]
            wanted = [*stored, *wanted]
        if requestor_order:
            syntax = next((uid for uid in offer.transfer_syntaxes if uid in wanted), None)
        else:
            # A compressed syntax is of no use to a requestor that receives, if no instance is stored in it.
            compressed = keep_compression and (not stored or next(iter(offer.transfer_syntaxes), "") in stored)
            syntax = _choose(offer.transfer_syntaxes, wanted, keep_compression=compressed)
        context = PresentationContext.received(
            offer.context_id, offer.abstract_syntax, offer.transfer_syntaxes if syntax is None else [syntax]
        )
        if own is None:
            context.result = 3
        elif syntax is None:
            context.result = 4
        else:
            granted = _answer_role(context, own, role)
            if granted is not None:
                answered_roles[granted.sop_class_uid] = granted
        answers.contexts.append(context)
    answers.roles = list(answered_roles.values())
    return answers


def _choose(offered: Sequence[str], wanted: Sequence[str], *, keep_compression: bool) -> str | None:
    """Return the transfer syntax to accept: the first of *wanted* that is *offered*, ``None`` if there is none."""
    if keep_compression and offered and offered[0] not in DEFAULT_TRANSFER_SYNTAXES and offered[0] in wanted:
        return offered[0]
    return next((uid for uid in wanted if uid in offered), None)


def _uncompressed_first(offered: Sequence[str]) -> Sequence[str]:
    """Return *offered*, with Explicit VR Little Endian in front if the first one is uncompressed."""
    explicit = str(ExplicitVRLittleEndian)
    if explicit in offered and offered[0] in DEFAULT_TRANSFER_SYNTAXES:
        return [explicit, *offered]
    return offered


def _is_storage(uid: str) -> bool:
    # An unknown SOP Class is taken for a private storage class: no other service works without prior agreement.
    return uid_to_service_class(uid) in _STORAGE


def _answer_role(
    context: PresentationContext, own: PresentationContext, proposed: RoleSelection | None
) -> RoleSelection | None:
    """Accept *context*, or reject it if no role is left; return the role selection item of the answer."""
    context.result = 0
    context.as_scp, context.as_scu = True, False
    if proposed is None or own.scu_role is None or own.scp_role is None:
        return None
    # Only roles that were proposed are granted (PS3.7 D.3.3.4); the roles in the item are those of the requestor.
    granted = RoleSelection(
        proposed.sop_class_uid, proposed.scu_role and own.scu_role, proposed.scp_role and own.scp_role
    )
    if not granted.scu_role and not granted.scp_role:
        context.result, context.as_scp = 1, False
        return None
    context.scu_role, context.scp_role = granted.scu_role, granted.scp_role
    context.as_scp, context.as_scu = granted.scu_role, granted.scp_role
    return granted


def check_request(
    request: AAssociateRQ, *, called: Iterable[str] = (), calling: Iterable[str] = ()
) -> AAssociateRJ | None:
    """
    Return the rejection of a *request* with a wrong application context or AE title, or ``None``.

    :param called: the Called AE Titles that are served; empty for any.
    :param calling: the Calling AE Titles that are accepted; empty for any.
    """
    if request.application_context_name != APPLICATION_CONTEXT_NAME:
        return AAssociateRJ(1, 1, 2)
    called_titles, calling_titles = frozenset(called), frozenset(calling)
    if not is_ae_title(request.called_ae_title) or (called_titles and request.called_ae_title not in called_titles):
        return AAssociateRJ(1, 1, 7)
    if not is_ae_title(request.calling_ae_title) or (calling_titles and request.calling_ae_title not in calling_titles):
        return AAssociateRJ(1, 1, 3)
    return None


def accept_window(proposed: AsyncOperationsWindow, answer: tuple[int, int], cap: int) -> AsyncOperationsWindow:
    """
    Return the window of the answer: no number exceeds the proposed one (PS3.7 D.3.3.3), where 0 stands for no limit.

    :param answer: the (invoked, performed) that this side supports, from the requestor's point of view.
    :param cap: the highest number of operations that are performed at once; it replaces a 0 in the answer.
    """

    def least(ours: int, theirs: int) -> int:
        if theirs == 0:
            return ours
        return min(ours or theirs, theirs)

    invoked = least(answer[0] or cap, proposed.invoked)
    return AsyncOperationsWindow(min(invoked, cap), least(answer[1], proposed.performed))


# --- the requestor


def resolve_answer(
    requested: Iterable[PresentationContext], roles: Mapping[str, RoleSelection], answer: AAssociateAC
) -> list[PresentationContext]:
    """
    Return the *requested* contexts with the results of the acceptor's *answer*.

    A context that the answer omits, or answers with a transfer syntax that was not proposed, gets the result 2.

    :param requested: copies with their IDs; they are changed.
    :param roles: the role selection items that were proposed, by SOP Class.
    """
    answered = {item.context_id: item for item in answer.presentation_contexts}
    granted = {role.sop_class_uid: role for role in answer.user_information.roles}
    contexts: list[PresentationContext] = []
    for context in requested:
        assert context.context_id is not None
        contexts.append(context)
        item = answered.get(context.context_id)
        if item is None or item.result > 4:
            context.result = 2
            continue
        if item.result == 0 and item.transfer_syntax not in context.transfer_syntax:
            context.result = 2
            continue
        context.result = item.result
        if item.result:
            continue
        context.accept(item.transfer_syntax)
        context.as_scu, context.as_scp = True, False
        proposal = roles.get(str(context.abstract_syntax))
        if proposal is not None:
            context.scu_role, context.scp_role = proposal.scu_role, proposal.scp_role
            grant = granted.get(proposal.sop_class_uid)
            if grant is not None:
                context.as_scu = proposal.scu_role and grant.scu_role
                context.as_scp = proposal.scp_role and grant.scp_role
    return contexts


def propose_contexts(contexts: Iterable[PresentationContext]) -> tuple[ProposedContext, ...]:
    """Return the presentation context items that propose *contexts*, which have their IDs."""
    items: list[ProposedContext] = []
    for context in contexts:
        assert context.context_id is not None and context.abstract_syntax is not None
        items.append(
            ProposedContext(
                context.context_id, str(context.abstract_syntax), tuple(str(uid) for uid in context.transfer_syntax)
            )
        )
    return tuple(items)
