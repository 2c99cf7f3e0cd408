"""Presentation contexts (PS3.8 7.1.1.13): an abstract syntax with the transfer syntaxes that it may be sent in.

Besides :class:`PresentationContext` there are the two collections of an AE, :class:`RequestedContexts` and
:class:`SupportedContexts`, and a prebuilt list of contexts for each Service Class, such as
``StoragePresentationContexts``. Each access to such a list returns a new one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from pydicom._uid_dict import UID_dictionary
from pydicom.uid import UID

from dicomtwist.sop_class import (
    ServiceClass,
    SOPClass,
    UIDLike,
    check_uid,
    common_storage_classes,
    shared_uid,
    sop_classes,
)
from dicomtwist.ul.items import MAX_PRESENTATION_CONTEXTS, RoleSelection

#: One or more transfer syntaxes in any form that users may pass.
TransferSyntaxes = UIDLike | Iterable[UIDLike]

#: Implicit VR Little Endian, Explicit VR Little Endian, Deflated Explicit VR Little Endian, Explicit VR Big Endian.
DEFAULT_TRANSFER_SYNTAXES: Final = tuple(UID(f"1.2.840.10008.1.2{suffix}") for suffix in ("", ".1", ".1.99", ".2"))
#: The default ones and all others that are not retired, in the order of PS3.6 Table A-1.
ALL_TRANSFER_SYNTAXES: Final = DEFAULT_TRANSFER_SYNTAXES + tuple(
    UID(uid)
    for uid, (_, kind, _, retired, _) in UID_dictionary.items()
    if kind == "Transfer Syntax" and not retired and uid not in DEFAULT_TRANSFER_SYNTAXES
)

#: All of these, Explicit VR Little Endian first: what a server that keeps images should support. Implicit VR loses the VRs of
#: private elements, and with them the meaning of values that only a VR tells, as 1-bit pixel data. The compressed ones are
#: for modalities that send JPEG 2000, JPEG-LS, JPEG, RLE, HTJ2K, JPEG XL or video.
STORAGE_TRANSFER_SYNTAXES: Final = tuple(sorted(ALL_TRANSFER_SYNTAXES, key=lambda uid: uid != "1.2.840.10008.1.2.1"))

_STATUS: Final[dict[int | None, str]] = {
    None: "Pending",
    0: "Accepted",
    1: "User Rejected",
    2: "Provider Rejected",
    3: "Abstract Syntax Not Supported",
    4: "Transfer Syntax(es) Not Supported",
}  # PS3.8 Table 9-18; "Pending" means that there is no answer yet

_ROLES: Final[dict[tuple[bool, bool], str]] = {
    (True, True): "SCU and SCP",
    (True, False): "SCU only",
    (False, True): "SCP only",
    (False, False): "(none)",
}


def _checked_abstract_syntax(value: object) -> SOPClass:
    """Check an abstract syntax with :func:`~dicomtwist.sop_class.check_uid`."""
    return SOPClass(check_uid(value, "the abstract syntax"))


def _checked_transfer_syntax(value: object) -> UID:
    """Check a transfer syntax.

    :returns: the UID; that of a private transfer syntax keeps its encoding
    :raises TypeError: if it is neither ``str`` nor ``bytes``
    :raises ValueError: if it is not a UID, or is known to identify something else
    """
    text = check_uid(value, "the transfer syntax")
    known = UID_dictionary.get(text)
    if known is not None and known[1] != "Transfer Syntax":
        raise ValueError(f"{text} is not a transfer syntax but a {known[1]}: {known[0]}")
    return _as_uid(text)


def _as_uid(text: str) -> UID:
    """Make a UID without the warnings of pydicom."""
    return text if isinstance(text, UID) else shared_uid(UID, text)


def _checked_transfer_syntaxes(values: object) -> list[UID]:
    """Check one or more transfer syntaxes.

    :param values: one UID or an iterable of UIDs; ``None`` stands for the default ones
    :returns: the transfer syntaxes in the same order, each once
    :raises TypeError: if it is neither a UID nor an iterable
    :raises ValueError: if one is not a transfer syntax
    """
    if values is None:
        return list(DEFAULT_TRANSFER_SYNTAXES)
    if isinstance(values, str | bytes):
        return [_checked_transfer_syntax(values)]
    if not isinstance(values, Iterable):
        raise TypeError(f"transfer syntaxes must be a UID or a list of UIDs, not {type(values).__name__}")
    return list(dict.fromkeys(_checked_transfer_syntax(value) for value in values))


def _checked_role(value: object, what: str) -> bool | None:
    """Return a role; ``TypeError`` if it is neither ``bool`` nor ``None``."""
    if value is None or isinstance(value, bool):
        return value
    raise TypeError(f"{what} must be a bool or None, not {type(value).__name__}")


class PresentationContextTuple(NamedTuple):
    """An accepted presentation context, as handlers see it."""

    context_id: int
    abstract_syntax: UID
    transfer_syntax: UID


_known_tuple = functools.lru_cache(maxsize=4096)(PresentationContextTuple)


class PresentationContext:
    """An abstract syntax, its transfer syntaxes, and the result of their negotiation.

    :param abstract_syntax: the UID of a SOP Class (or of a Meta SOP Class)
    :param transfer_syntax: one transfer syntax or several, in order of preference; none by default
    :param context_id: the ID within an association
    :param scu_role: see :attr:`scu_role`
    :param scp_role: see :attr:`scp_role`
    :raises TypeError: if a value has a wrong type
    :raises ValueError: if a value has the right type, but is invalid
    """

    __slots__ = (
        "_abstract_syntax",
        "_context_id",
        "_result",
        "_scp_role",
        "_scu_role",
        "_transfer_syntax",
        "as_scp",
        "as_scu",
    )

    def __init__(
        self,
        abstract_syntax: UIDLike | None = None,
        transfer_syntax: TransferSyntaxes = (),
        *,
        context_id: int | None = None,
        scu_role: bool | None = None,
        scp_role: bool | None = None,
    ) -> None:
        # The list never changes, copies share it: a change replaces it.
        self._transfer_syntax: list[UID]
        #: Whether this side acts as SCU and as SCP in this context, ``None`` before the negotiation.
        self.as_scu: bool | None = None
        self.as_scp: bool | None = None
        self._result: int | None = None
        self.abstract_syntax = abstract_syntax
        self._transfer_syntax = _checked_transfer_syntaxes(transfer_syntax)
        self.context_id = context_id
        self.scu_role = scu_role
        self.scp_role = scp_role

    @classmethod
    def received(cls, context_id: int, abstract_syntax: str, transfer_syntax: Iterable[str]) -> PresentationContext:
        """Create a context from the proposal of a peer, even if its UIDs are malformed.

        :param context_id: the ID that the peer assigned
        :param abstract_syntax: the proposed abstract syntax
        :param transfer_syntax: the proposed transfer syntaxes
        :returns: the context; nothing in it is checked, since the acceptor must be able to answer it (PS3.8 9.3.3.2)
        """
        # Without __init__, whose checks of nothing take half of the time: there may be 128 contexts.
        context = cls.__new__(cls)
        context.as_scu = context.as_scp = context._result = context._scu_role = context._scp_role = None
        context._context_id = context_id
        context._abstract_syntax = shared_uid(SOPClass, abstract_syntax)
        context._transfer_syntax = [_as_uid(uid) for uid in dict.fromkeys(transfer_syntax)]
        return context

    def accept(self, transfer_syntax: str) -> None:
        """Keep only *transfer_syntax*, one of those proposed. It is not checked, since a proposal may repeat it from a file."""
        self._transfer_syntax = [_as_uid(transfer_syntax)]

    @property
    def abstract_syntax(self) -> SOPClass | None:
        """The abstract syntax; ``str``, ``bytes`` and ``UID`` may be assigned."""
        return self._abstract_syntax

    @abstract_syntax.setter
    def abstract_syntax(self, value: UIDLike | None) -> None:
        self._abstract_syntax = None if value is None else _checked_abstract_syntax(value)

    @property
    def transfer_syntax(self) -> list[UID]:
        """The transfer syntaxes in order of preference, each once.

        The list is a copy. To change the context, assign one or more transfer syntaxes, or call
        :meth:`add_transfer_syntax` and :meth:`remove_transfer_syntax`.
        """
        return list(self._transfer_syntax)

    @transfer_syntax.setter
    def transfer_syntax(self, values: TransferSyntaxes) -> None:
        self._transfer_syntax = [] if values is None else _checked_transfer_syntaxes(values)

    def add_transfer_syntax(self, syntax: UIDLike) -> None:
        """Add a transfer syntax after the others, unless it is already there.

        :param syntax: the transfer syntax
        :raises TypeError: if it is not a ``str`` or ``bytes``
        :raises ValueError: if it is not a UID, or is known to identify something else
        """
        uid = _checked_transfer_syntax(syntax)
        if uid not in self._transfer_syntax:
            self._transfer_syntax = [*self._transfer_syntax, uid]

    def remove_transfer_syntax(self, syntax: UIDLike) -> None:
        """Remove a transfer syntax; no effect if it is not there.

        :param syntax: the transfer syntax
        :raises TypeError: if it is not a ``str`` or ``bytes``
        :raises ValueError: if it is not a UID, or is known to identify something else
        """
        uid = _checked_transfer_syntax(syntax)
        if uid in self._transfer_syntax:
            self._transfer_syntax = [other for other in self._transfer_syntax if other != uid]

    @property
    def context_id(self) -> int | None:
        """The ID within an association, odd and from 1 to 255 (PS3.8 9.3.2.2), ``None`` outside of one."""
        return self._context_id

    @context_id.setter
    def context_id(self, value: int | None) -> None:
        if value is not None:
            if not isinstance(value, int):
                raise TypeError(f"a context ID must be an int, not {type(value).__name__}")
            if not 1 <= value <= 255 or value % 2 == 0:
                raise ValueError(f"a context ID must be odd and from 1 to 255 (PS3.8 9.3.2.2), not {value}")
        self._context_id = value

    @property
    def result(self) -> int | None:
        """The answer of the acceptor, 0 to 4 (PS3.8 Table 9-18), ``None`` if there is none yet."""
        return self._result

    @result.setter
    def result(self, value: int | None) -> None:
        if value not in _STATUS:
            raise ValueError(f"a result must be None or from 0 to 4 (PS3.8 Table 9-18), not {value!r}")
        self._result = value

    @property
    def status(self) -> str:
        """The meaning of the :attr:`result`."""
        return _STATUS[self._result]

    @property
    def scu_role(self) -> bool | None:
        """Role selection (PS3.7 D.3.3.4): whether the requestor is proposed, or to be accepted, as SCU.

        ``None`` means that no role is proposed, or that a proposal is not answered.
        """
        return self._scu_role

    @scu_role.setter
    def scu_role(self, value: bool | None) -> None:
        self._scu_role = _checked_role(value, "scu_role")

    @property
    def scp_role(self) -> bool | None:
        """Role selection as in :attr:`scu_role`, for the requestor as SCP."""
        return self._scp_role

    @scp_role.setter
    def scp_role(self, value: bool | None) -> None:
        self._scp_role = _checked_role(value, "scp_role")

    @property
    def as_tuple(self) -> PresentationContextTuple:
        """The ID, the abstract syntax and the first transfer syntax, which is the accepted one.

        :raises ValueError: if one of them is missing
        """
        if self._context_id is None or self._abstract_syntax is None or not self._transfer_syntax:
            raise ValueError("only a context with an ID, an abstract and a transfer syntax makes a tuple")
        abstract, syntax = self._abstract_syntax, self._transfer_syntax[0]
        # For known UIDs, tuples are shared, as the UIDs themselves are.
        make = _known_tuple if abstract in UID_dictionary and syntax in UID_dictionary else PresentationContextTuple
        return make(self._context_id, abstract, syntax)

    def copy(self) -> PresentationContext:
        """Return a copy that shares no mutable part with this context."""
        # Not a loop over the slots, which takes three times as long: an association has up to 128 contexts.
        context = object.__new__(type(self))
        context.as_scu, context.as_scp = self.as_scu, self.as_scp
        context._abstract_syntax, context._transfer_syntax = self._abstract_syntax, self._transfer_syntax
        context._context_id, context._result = self._context_id, self._result
        context._scu_role, context._scp_role = self._scu_role, self._scp_role
        return context

    __copy__ = copy

    def __eq__(self, other: object) -> bool:
        """Two contexts are equal if all of their attributes are, including the order of the transfer syntaxes."""
        if not isinstance(other, PresentationContext):
            return NotImplemented
        return all(getattr(self, slot) == getattr(other, slot) for slot in PresentationContext.__slots__)

    def __hash__(self) -> int:
        """
        Return the hash of the abstract syntax, which hardly ever changes: an acceptor or an AE changes the other attributes.

        A context that is in a set or a key of a dictionary is not found again after a change of its abstract syntax, or by a
        context that it equalled before a change.
        """
        return hash(self._abstract_syntax)

    def __repr__(self) -> str:
        """Identify the context on one line."""
        name = None if self._abstract_syntax is None else self._abstract_syntax.name
        syntaxes = ", ".join(self._transfer_syntax)
        return f"<PresentationContext {self._context_id or '-'} {name!r} [{syntaxes}] {self.status}>"

    def __str__(self) -> str:
        """Describe the context; the ID, the result and the roles only if they are set."""
        lines = [] if self._context_id is None else [f"ID: {self._context_id}"]
        if self._abstract_syntax is not None:
            lines.append(f"Abstract Syntax: {self._abstract_syntax.name}")
        lines.append("Transfer Syntax(es):")
        lines += [f"    ={syntax.name}" for syntax in self._transfer_syntax]
        if self._result is not None:
            lines.append(f"Result: {self.status}")
        if self._scu_role is not None and self._scp_role is not None:
            lines.append(f"Role selection: {_ROLES[self._scu_role, self._scp_role]}")
        if self.as_scu is not None and self.as_scp is not None:
            lines.append(f"Role: {_ROLES[self.as_scu, self.as_scp]}")
        return "\n".join(lines)


def build_context(abstract_syntax: UIDLike, transfer_syntax: TransferSyntaxes | None = None) -> PresentationContext:
    """Create a presentation context.

    :param abstract_syntax: the UID of a SOP Class
    :param transfer_syntax: one transfer syntax or several; ``DEFAULT_TRANSFER_SYNTAXES`` by default
    :returns: the context
    :raises TypeError: if a value has a wrong type
    :raises ValueError: if a value is not a UID, or a transfer syntax is known to be something else
    """
    return PresentationContext(_checked_abstract_syntax(abstract_syntax), _checked_transfer_syntaxes(transfer_syntax))


def build_contexts(
    abstract_syntaxes: UIDLike | Iterable[UIDLike | PresentationContext],
    transfer_syntax: TransferSyntaxes | None = None,
) -> list[PresentationContext]:
    """Create a presentation context for each abstract syntax, all with the same transfer syntaxes.

    A server that accepts compressed images as well has
    ``build_contexts(AllStoragePresentationContexts, STORAGE_TRANSFER_SYNTAXES)``.

    :param abstract_syntaxes: UIDs of SOP Classes, or contexts of which only the abstract syntax counts, such as a prebuilt list
    :param transfer_syntax: one transfer syntax or several; ``DEFAULT_TRANSFER_SYNTAXES`` by default
    :returns: the contexts in the same order
    :raises TypeError: if a value has a wrong type
    :raises ValueError: if a value is not a UID, a transfer syntax is known to be something else, or a context lacks its
        abstract syntax
    """
    if isinstance(abstract_syntaxes, str | bytes):
        abstract_syntaxes = [abstract_syntaxes]
    if not isinstance(abstract_syntaxes, Iterable):
        raise TypeError(f"abstract syntaxes must be UIDs or contexts, not {type(abstract_syntaxes).__name__}")
    # The transfer syntaxes are checked once: there may be 170 contexts, each with 50 of them.
    syntaxes = _checked_transfer_syntaxes(transfer_syntax)
    contexts = []
    for given in abstract_syntaxes:
        uid = given.abstract_syntax if isinstance(given, PresentationContext) else given
        if uid is None:
            raise ValueError("a presentation context in the list has no abstract syntax")
        context = PresentationContext(_checked_abstract_syntax(uid))
        context._transfer_syntax = syntaxes
        contexts.append(context)
    return contexts


def build_role(uid: UIDLike, scu_role: bool = False, scp_role: bool = False) -> RoleSelection:
    """Create a role selection item to propose with an association (PS3.7 D.3.3.4).

    :param uid: the SOP Class of the roles
    :param scu_role: whether the requestor proposes to be SCU
    :param scp_role: whether the requestor proposes to be SCP
    :returns: the item
    :raises TypeError: if the UID is not a ``str`` or ``bytes``, or a role is not a ``bool``
    :raises ValueError: if the UID is invalid
    """
    for name, role in (("scu_role", scu_role), ("scp_role", scp_role)):
        if not isinstance(role, bool):
            raise TypeError(f"{name} must be a bool, not {type(role).__name__}")
    return RoleSelection(_checked_abstract_syntax(uid), scu_role, scp_role)


def number_contexts(contexts: Iterable[PresentationContext]) -> list[PresentationContext]:
    """Copy contexts and assign the IDs that an association request needs.

    :param contexts: 1 to 128 contexts; results of an earlier association are dropped
    :returns: copies in the same order with the IDs 1, 3, 5, ...
    :raises ValueError: if there are no contexts or more than 128 (PS3.8 9.3.2.2), or if one of them lacks its abstract
        syntax or all transfer syntaxes
    """
    copies = _checked_number([_unnegotiated_copy(context) for context in contexts])
    if not copies:
        raise ValueError("an association request needs at least one presentation context")
    for index, context in enumerate(copies):
        context.context_id = 2 * index + 1
    return copies


def _checked_number(contexts: list[PresentationContext]) -> list[PresentationContext]:
    """Return the contexts; ``ValueError`` if there are more contexts than IDs."""
    if len(contexts) > MAX_PRESENTATION_CONTEXTS:
        raise ValueError(
            f"an association request carries at most {MAX_PRESENTATION_CONTEXTS} presentation contexts "
            f"(PS3.8 9.3.2.2), these would be {len(contexts)}: remove those that are not needed, or request "
            "the others with another association"
        )
    return contexts


def _unnegotiated_copy(context: object) -> PresentationContext:
    """Check that a context can be negotiated, and copy it without the results of an earlier association.

    :raises ValueError: if it is not a context, or lacks its abstract syntax or all transfer syntaxes
    """
    if not isinstance(context, PresentationContext):
        raise ValueError(f"contexts must be PresentationContext items, not {type(context).__name__}")
    if context.abstract_syntax is None or not context._transfer_syntax:
        raise ValueError("a presentation context needs an abstract syntax and at least one transfer syntax")
    copy = context.copy()
    copy.context_id = copy.result = copy.as_scu = copy.as_scp = None
    return copy


def _remove_syntaxes(context: PresentationContext, unwanted: list[UID]) -> bool:
    """Remove transfer syntaxes from a context; return whether others remain."""
    context._transfer_syntax = [uid for uid in context._transfer_syntax if uid not in unwanted]
    return bool(context._transfer_syntax)


def check_roles(context: PresentationContext) -> None:
    """Check the roles of a supported context: a proposal of roles is answered for both of them, or not at all.

    :param context: the context
    :raises ValueError: if one role is set and the other one is not
    """
    if (context.scu_role is None) != (context.scp_role is None):
        missing = "scu_role" if context.scu_role is None else "scp_role"
        raise ValueError(
            f"{context.abstract_syntax!r} has one of the two roles, {missing} is None: a proposal of roles would not be"
            " answered (PS3.7 D.3.3.4); set both roles to True or False, or neither of them"
        )


class _Contexts:
    """The common part of the two collections of an AE."""

    def as_list(self) -> list[PresentationContext]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[PresentationContext]:
        return iter(self.as_list())

    def __len__(self) -> int:
        return len(self.as_list())


class RequestedContexts(_Contexts):
    """The contexts that an AE requests: at most 128, in the order in which they were added, repetitions allowed.

    The contexts have no IDs here, see :func:`number_contexts`.
    """

    def __init__(self) -> None:
        self._contexts: list[PresentationContext] = []

    def add(self, abstract_syntax: UIDLike, transfer_syntax: TransferSyntaxes | None = None) -> None:
        """Add a context.

        :param abstract_syntax: the UID of a SOP Class
        :param transfer_syntax: one transfer syntax or several; the default ones by default
        :raises TypeError: if a value has a wrong type
        :raises ValueError: if there are already 128 contexts, if a value is not a UID, or if there is no transfer syntax
        """
        self.extend([build_context(abstract_syntax, transfer_syntax)])

    def extend(self, contexts: Iterable[PresentationContext]) -> None:
        """Add copies of contexts, either all of them or none.

        :param contexts: the contexts
        :raises ValueError: if there would be more than 128 contexts, or if one of them is not usable
        """
        added = [_unnegotiated_copy(context) for context in contexts]
        self._contexts = _checked_number(self._contexts + added)

    def replace(self, contexts: Iterable[PresentationContext]) -> None:
        """Replace the present contexts with copies of others.

        :param contexts: the new contexts, which may be none
        :raises ValueError: if there are more than 128 contexts, or if one of them is not usable
        """
        self._contexts = _checked_number([_unnegotiated_copy(context) for context in contexts])

    def remove(self, abstract_syntax: UIDLike, transfer_syntax: TransferSyntaxes | None = None) -> None:
        """Remove contexts, or some of their transfer syntaxes; no effect on those that are not there.

        :param abstract_syntax: the abstract syntax of the contexts
        :param transfer_syntax: the transfer syntaxes to remove; a context without any other is removed as a whole;
            ``None`` removes all contexts of the abstract syntax
        :raises TypeError: if a value has a wrong type
        :raises ValueError: if a value is not a UID
        """
        uid = _checked_abstract_syntax(abstract_syntax)
        unwanted = None if transfer_syntax is None else _checked_transfer_syntaxes(transfer_syntax)
        self._contexts = [
            context
            for context in self._contexts
            if context.abstract_syntax != uid or (unwanted is not None and _remove_syntaxes(context, unwanted))
        ]

    def as_list(self) -> list[PresentationContext]:
        """Return the contexts themselves, in the order in which they were added, in a new list."""
        return list(self._contexts)


class SupportedContexts(_Contexts):
    """The contexts that an AE supports: one for each abstract syntax, without a limit of their number."""

    def __init__(self) -> None:
        self._contexts: dict[str, PresentationContext] = {}

    def add(
        self,
        abstract_syntax: UIDLike,
        transfer_syntax: TransferSyntaxes | None = None,
        scu_role: bool | None = None,
        scp_role: bool | None = None,
    ) -> None:
        """Add a context, or add transfer syntaxes to the existing context of the abstract syntax.

        Role selection is answered if both roles are set (PS3.7 D.3.3.4); one alone is an error.

        :param abstract_syntax: the UID of a SOP Class
        :param transfer_syntax: one transfer syntax or several; the default ones by default
        :param scu_role: whether to accept the requestor as SCU; ``None`` keeps the present setting
        :param scp_role: whether to accept the requestor as SCP; ``None`` keeps the present setting
        :raises TypeError: if a value has a wrong type
        :raises ValueError: if a value is not a UID, if there is no transfer syntax, or if one role would be set and
            the other one not
        """
        context = build_context(abstract_syntax, transfer_syntax)
        context.scu_role = scu_role
        context.scp_role = scp_role
        self.extend([context])

    def extend(self, contexts: Iterable[PresentationContext]) -> None:
        """Add copies of contexts with their roles, either all of them or none.

        :param contexts: the contexts
        :raises ValueError: if one of them is not usable, or would have one role set and the other one not
        """
        added: dict[str, PresentationContext] = {}
        for context in [_unnegotiated_copy(context) for context in contexts]:
            uid = str(context.abstract_syntax)
            present = added.get(uid)
            if present is None:
                # Copies change until all of them are known to be usable.
                present = added[uid] = self._contexts[uid].copy() if uid in self._contexts else context
            syntaxes = present._transfer_syntax + context._transfer_syntax
            present._transfer_syntax = list(dict.fromkeys(syntaxes))
            if context.scu_role is not None:
                present.scu_role = context.scu_role
            if context.scp_role is not None:
                present.scp_role = context.scp_role
        for context in added.values():
            check_roles(context)
        for uid, context in added.items():
            known = self._contexts.setdefault(uid, context)
            if known is not context:
                known._transfer_syntax = context._transfer_syntax
                known.scu_role, known.scp_role = context.scu_role, context.scp_role

    def check(self) -> None:
        """Check the roles of all contexts, which may have been set since they were added.

        :raises ValueError: if a context has one role set and the other one not
        """
        for context in self._contexts.values():
            check_roles(context)

    def replace(self, contexts: Iterable[PresentationContext]) -> None:
        """Replace the present contexts with copies of others, including their roles.

        :param contexts: the new contexts, which may be none
        :raises ValueError: if one of them is not usable
        """
        successor = SupportedContexts()
        successor.extend(contexts)
        self._contexts = successor._contexts

    def remove(self, abstract_syntax: UIDLike, transfer_syntax: TransferSyntaxes | None = None) -> None:
        """Remove a context, or some of its transfer syntaxes; no effect on those that are not there.

        The parameters and errors are those of :meth:`RequestedContexts.remove`.
        """
        uid = _checked_abstract_syntax(abstract_syntax)
        unwanted = None if transfer_syntax is None else _checked_transfer_syntaxes(transfer_syntax)
        context = self._contexts.get(uid)
        if context is not None and (unwanted is None or not _remove_syntaxes(context, unwanted)):
            del self._contexts[uid]

    def get(self, abstract_syntax: str) -> PresentationContext | None:
        """Return the context of an abstract syntax, ``None`` if it is not supported."""
        return self._contexts.get(abstract_syntax)

    def state(self) -> object:
        """Return an object that is equal to an earlier one if no context was added, removed or changed since then."""
        # A comparison takes a microsecond, since equal lists of transfer syntaxes are mostly the same object.
        contexts = self._contexts.items()
        return [(uid, context._transfer_syntax, context._scu_role, context._scp_role) for uid, context in contexts]

    def as_list(self) -> list[PresentationContext]:
        """Return the contexts themselves, in the order of their abstract syntaxes as text, in a new list."""
        return [context for _, context in sorted(self._contexts.items())]

    def __contains__(self, abstract_syntax: object) -> bool:
        return abstract_syntax in self._contexts


# The prebuilt lists: each has the contexts of one Service Class with the default transfer syntaxes. Only
# StoragePresentationContexts is a selection of 120, since all storage SOP Classes would not fit into one request.
_PREBUILT: Final[dict[str, ServiceClass]] = {
    "AllStoragePresentationContexts": ServiceClass.STORAGE,
    "ApplicationEventLoggingPresentationContexts": ServiceClass.APPLICATION_EVENT,
    "BasicWorklistManagementPresentationContexts": ServiceClass.BASIC_WORKLIST,
    "ColorPalettePresentationContexts": ServiceClass.COLOR_PALETTE,
    "DefinedProcedureProtocolPresentationContexts": ServiceClass.DEFINED_PROCEDURE_PROTOCOL,
    "DisplaySystemPresentationContexts": ServiceClass.DISPLAY_SYSTEM,
    "HangingProtocolPresentationContexts": ServiceClass.HANGING_PROTOCOL,
    "ImplantTemplatePresentationContexts": ServiceClass.IMPLANT_TEMPLATE,
    "InstanceAvailabilityPresentationContexts": ServiceClass.INSTANCE_AVAILABILITY,
    "InventoryPresentationContexts": ServiceClass.INVENTORY,
    "MediaCreationManagementPresentationContexts": ServiceClass.MEDIA_CREATION,
    "MediaStoragePresentationContexts": ServiceClass.MEDIA_STORAGE,
    "ModalityPerformedPresentationContexts": ServiceClass.PROCEDURE_STEP,
    "NonPatientObjectPresentationContexts": ServiceClass.NON_PATIENT_OBJECT,
    "PrintManagementPresentationContexts": ServiceClass.PRINT_MANAGEMENT,
    "ProcedureStepPresentationContexts": ServiceClass.PROCEDURE_STEP,
    "ProtocolApprovalPresentationContexts": ServiceClass.PROTOCOL_APPROVAL,
    "QueryRetrievePresentationContexts": ServiceClass.QUERY_RETRIEVE,
    "RTMachineVerificationPresentationContexts": ServiceClass.RT_MACHINE_VERIFICATION,
    "RelevantPatientInformationPresentationContexts": ServiceClass.RELEVANT_PATIENT,
    "StorageCommitmentPresentationContexts": ServiceClass.STORAGE_COMMITMENT,
    "StorageManagementPresentationContexts": ServiceClass.STORAGE_MANAGEMENT,
    "StoragePresentationContexts": ServiceClass.STORAGE,
    "SubstanceAdministrationPresentationContexts": ServiceClass.SUBSTANCE_ADMINISTRATION,
    "UnifiedProcedurePresentationContexts": ServiceClass.UNIFIED_PROCEDURE_STEP,
    "VerificationPresentationContexts": ServiceClass.VERIFICATION,
}

#: The names of the prebuilt lists.
PREBUILT_CONTEXTS: Final = tuple(_PREBUILT)


@functools.cache
def _prebuilt(name: str) -> tuple[PresentationContext, ...]:
    """Create the contexts of a prebuilt list. Callers receive copies of them only."""
    common = name == "StoragePresentationContexts"
    classes = common_storage_classes() if common else sop_classes(_PREBUILT[name])
    return tuple(build_context(uid) for uid in classes)


def __getattr__(name: str) -> list[PresentationContext]:
    """Return a new copy of a prebuilt list (PEP 562).

    :raises AttributeError: if there is no list of this name
    """
    if name not in _PREBUILT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return [context.copy() for context in _prebuilt(name)]


def __dir__() -> list[str]:
    """List the names of this module, with the prebuilt lists."""
    return sorted({*globals(), *_PREBUILT})
