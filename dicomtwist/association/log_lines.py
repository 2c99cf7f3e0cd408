"""
The lines of the log about an association, and the words for what was negotiated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from twisted.logger import Logger

from dicomtwist.association.explanations import syntax_names, uid_name
from dicomtwist.association.service_user import ServiceUser
from dicomtwist.presentation import PresentationContext
from dicomtwist.settings import Settings

#: The most refused presentation contexts that one line names.
MAX_REFUSED_NAMED: Final = 5

#: Why a context was not accepted, by its result (PS3.8 Table 9-18). An acceptor of this library gives 1 for roles only.
_REFUSALS: Final[dict[int | None, str]] = {
    1: "refused by the user of the acceptor, as for its roles",
    2: "no answer, or no reason",
    3: "abstract syntax not supported",
}


def refusal(context: PresentationContext) -> str:
    """Return why *context* was not accepted."""
    if context.result == 4:
        # A text of the peer that is no UID is replaced first.
        names = syntax_names(uid_name(str(uid)) for uid in context.transfer_syntax)
        return f"none of its transfer syntaxes is supported: {names}"
    return _REFUSALS.get(context.result, context.status)


class LogLines:
    """
    The lines of the log about the peer of an association, bounded.

    :ivar log: the logger.
    :ivar settings: the settings of the association.
    """

    log: Logger
    settings: Settings
    _tolerated: tuple[str, ...] = ()
    _refusals_logged = 0

    @property
    def remote(self) -> ServiceUser:
        """The peer."""
        raise NotImplementedError

    @property
    def accepted_contexts(self) -> list[PresentationContext]:
        """The accepted presentation contexts."""
        raise NotImplementedError

    @property
    def rejected_contexts(self) -> list[PresentationContext]:
        """The presentation contexts that were not accepted."""
        raise NotImplementedError

    def log_refused_contexts(self) -> None:
        """Log the presentation contexts that were not accepted, in one line."""
        refused = self.rejected_contexts
        words = list(dict.fromkeys(f"{uid_name(str(one.abstract_syntax))} ({refusal(one)})" for one in refused))
        more = len(words) - MAX_REFUSED_NAMED
        self.log.info(
            "{peer!r} at {address}: {refused} of {proposed} presentation contexts not accepted: {contexts}{more}",
            peer=self.remote.ae_title,
            address=self.remote.address,
            refused=len(refused),
            proposed=len(refused) + len(self.accepted_contexts),
            contexts="; ".join(words[:MAX_REFUSED_NAMED]),
            more=f"; and {more} more" if more > 0 else "",
        )

    def log_deviation(self, what: Sequence[str]) -> None:
        """
        Log deviations of the peer from the standard, each one once for an association.

        :param what: descriptions of them, in none of which is text from the peer.
        """
        news = tuple(words for words in what if words not in self._tolerated)
        if news:
            self._tolerated += news
            self.log.info(
                "{peer!r} at {address}: tolerated a deviation from the standard: {what}",
                peer=self.remote.ae_title,
                address=self.remote.address,
                what="; ".join(news),
            )

    def log_refusal(self, emit: Callable[..., None], message: str, *details: object, **fields: object) -> None:
        """
        Log a line about an operation of the peer that is refused or fails, unless the association has had its share of them.

        :param emit: the method of a logger to call with the other arguments, such as ``self.log.info``.
        """
        most = self.settings.maximum_refusals_logged
        self._refusals_logged += 1
        if self._refusals_logged <= most:
            emit(message, *details, association=self, **fields)
        elif self._refusals_logged == most + 1:
            self.log.info(
                "{peer!r} at {address}: more operations are refused; further ones on this association are not logged",
                peer=self.remote.ae_title,
                address=self.remote.address,
            )
