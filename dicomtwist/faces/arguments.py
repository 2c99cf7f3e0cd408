"""
The arguments of ``connect()``, with defaults for what a short program leaves out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from dicomtwist import sop_class
from dicomtwist.ae.ae import AE, BindAddress
from dicomtwist.association.association import Association
from dicomtwist.association.explanations import Proposal
from dicomtwist.presentation import PresentationContext, build_context, build_role
from dicomtwist.sop_class import common_storage_classes
from dicomtwist.ul.items import RoleSelection

__all__ = ["Address", "ContextLike", "advise", "ae_of", "check_served", "proposal"]

#: A presentation context, or a SOP Class UID, which is proposed with the four uncompressed transfer syntaxes.
ContextLike: TypeAlias = PresentationContext | str

#: Where a server listens: a port, (host, port), an endpoint string, or an endpoint.
Address: TypeAlias = BindAddress | int | str | Any

#: The services that are proposed by default, besides the storage of common SOP Classes. Together they fit into one request.
SERVICES = (
    sop_class.Verification,
    sop_class.PatientRootQueryRetrieveInformationModelFind,
    sop_class.PatientRootQueryRetrieveInformationModelMove,
    sop_class.PatientRootQueryRetrieveInformationModelGet,
    sop_class.StudyRootQueryRetrieveInformationModelFind,
    sop_class.StudyRootQueryRetrieveInformationModelMove,
    sop_class.StudyRootQueryRetrieveInformationModelGet,
    sop_class.ModalityWorklistInformationModelFind,
)


def ae_of(ae: AE | str | None) -> AE:
    """
    Return the AE for a request.

    :param ae: an AE, or the AE title of a new one; ``None`` for the default title.
    """
    if ae is None:
        return AE()
    return AE(ae) if isinstance(ae, str | bytes) else ae


def check_served(ae: object, others: Iterable[object] = ()) -> None:
    """
    Check what a server is to serve. A client has a default for everything, a server does not know what to support.

    :raises TypeError: it is not an AE, such as a title.
    """
    for one in (ae, *others):
        if not isinstance(one, AE):
            raise TypeError(
                f"serve() needs an AE, which has the contexts that it supports, not {type(one).__name__}:"
                " ae = AE('TITLE'); ae.add_supported_context(...)"
            )


def proposal(
    ae: AE,
    contexts: Iterable[ContextLike] | None,
    ext_neg: Iterable[object] | None,
    receive: Iterable[ContextLike],
) -> tuple[list[PresentationContext], list[object]]:
    """
    Return the presentation contexts to propose, and the extended negotiation items.

    :param contexts: the contexts; by default those of *ae*, or if it has none :data:`SERVICES` and the storage of the common
        SOP Classes.
    :param ext_neg: the items.
    :param receive: the SOP Classes to receive by C-GET: a context and both roles are proposed for each.
    :raises TypeError: *contexts* or *receive* is one SOP Class in place of a list.
    """
    wanted = [_context(one) for one in _several(receive, "receive")]
    proposed: list[PresentationContext]
    if contexts is not None:
        proposed = [_context(one) for one in _several(contexts, "contexts")]
    elif ae.requested_contexts:
        proposed = ae.requested_contexts
    else:
        storage = () if wanted else common_storage_classes()
        proposed = [build_context(uid) for uid in (*SERVICES, *storage)]
    items = list(ext_neg or ())
    present = {context.abstract_syntax for context in proposed}
    roles = {item.sop_class_uid for item in items if isinstance(item, RoleSelection)}
    for context in wanted:
        uid = str(context.abstract_syntax)
        if uid not in present:
            proposed.append(context)
        if uid not in roles:
            roles.add(uid)
            items.append(build_role(uid, scu_role=True, scp_role=True))
    return proposed, items


def advise(association: Association, ae: AE, contexts: Iterable[ContextLike] | None) -> None:
    """Have the errors of *association* suggest what a caller of ``connect()`` can write."""
    association.proposal = Proposal.AE if contexts is None and ae.requested_contexts else Proposal.CONNECT


def _several(values: Iterable[ContextLike], name: str) -> list[ContextLike]:
    if isinstance(values, str | PresentationContext):
        raise TypeError(f"{name} is a list of presentation contexts or SOP Classes, not a single one: write [...]")
    return list(values)


def _context(value: ContextLike) -> PresentationContext:
    return build_context(value) if isinstance(value, str) else value
