"""
The instances of a retrieval that can be given: those whose files can be read, each with the representations that the client
accepts.

A response has what the files say. The index may say something else, if somebody has replaced or changed the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from twisted.logger import Logger

from dicomtwist.archive.query.search import StoredInstance
from dicomtwist.archive.reading.stored_file import CHECK, FileHead, NotStored
from dicomtwist.dicomweb.media_types import DICOM, ZIP, Accept, Category, Representation
from dicomtwist.errors import loggable
from dicomtwist.web.problems import Problem
from dicomtwist.web.request import DICOMwebRequest
from dicomtwist.web.services import Services
from dicomtwist.web.wado.delivery import DAMAGED, NOT_ACCEPTABLE, reading
from dicomtwist.web.wado.transcoding import convertible, is_transcoded

__all__ = ["MISSING", "Chosen", "Selection", "representations", "select", "within"]

_log = Logger()

#: The words about instances that are found, and whose files are not there.
MISSING: Final = "the files were removed"


class Chosen(NamedTuple):
    """
    An instance that can be given.

    :ivar instance: the instance, as the index has it.
    :ivar head: the beginning of its file.
    :ivar alternatives: its acceptable representations, the best first.
    """

    instance: StoredInstance
    head: FileHead
    alternatives: tuple[Representation, ...]

    @property
    def representation(self) -> Representation:
        """The best representation."""
        return self.alternatives[0]

    @property
    def syntax(self) -> str:
        """The UID of the transfer syntax of the file."""
        return self.head.meta.transfer_syntax_uid

    @property
    def is_kept(self) -> bool:
        """Whether it is given as it is stored."""
        return self.representation.transfer_syntax in (None, self.syntax)


def representations(accept: Accept, services: Services, stored: str, *, single: bool) -> tuple[Representation, ...]:
    """Return the acceptable representations of an instance, the best first; *stored* is its transfer syntax."""
    return accept.alternatives(
        Category.INSTANCES, stored=stored, convertible=convertible(services, stored), single=single, offers=(ZIP,)
    )


@dataclass(slots=True)
class Selection:
    """
    The instances of one or several pages.

    :ivar chosen: the instances that can be given.
    :ivar missing: the number of those whose files are missing.
    :ivar damaged: the SOP Instance UIDs of those whose files cannot be read, each with the reason.
    :ivar changed: the number of those whose files are not those that the index knows. They are given.
    :ivar refused: the number of those that have no acceptable representation.
    """

    chosen: list[Chosen] = field(default_factory=list)
    missing: int = 0
    damaged: list[tuple[str, Exception]] = field(default_factory=list)
    changed: int = 0
    refused: int = 0

    def add(
        self,
        instances: Iterable[StoredInstance],
        heads: Iterable[FileHead | Exception],
        accept: Accept,
        services: Services,
        media_type: str,
    ) -> None:
        """
        Add a page.

        :param heads: the beginnings of the files, from :meth:`~dicomtwist.archive.reading.stored_file.StoredFiles.heads`.
        :param media_type: the media type of the body: that of a ZIP archive, or of the parts. The header of a member of an
            archive states its length, so that it is not transcoded.
        """
        # A study has few transfer syntaxes, and the negotiation takes as long as the rest of this.
        found: dict[str, tuple[Representation, ...]] = {}
        for instance, head in zip(instances, heads, strict=True):
            if isinstance(head, NotStored):
                self.missing += 1
            elif isinstance(head, Exception):
                self.damaged.append((instance.sop_instance_uid, head))
            else:
                syntax = head.meta.transfer_syntax_uid
                self.changed += syntax != instance.transfer_syntax or head.size != instance.size
                possible = found.get(syntax)
                if possible is None:
                    possible = within(representations(accept, services, syntax, single=False), syntax, media_type)
                    found[syntax] = possible
                if possible:
                    self.chosen.append(Chosen(instance, head, possible))
                else:
                    self.refused += 1

    @property
    def left_out(self) -> int:
        """The number of those that cannot be given."""
        return self.missing + len(self.damaged) + self.refused

    def log(self, uids: Sequence[str]) -> None:
        """
        Log what is not as it should be, a line for each kind.

        :param uids: the UIDs of the study, the series and the instance that are asked for.
        """
        of = "/".join(uids)
        if self.missing:
            _log.warn("{count} files of a retrieval are missing, of {uids}", count=self.missing, uids=of)
        if self.damaged:
            uid, error = self.damaged[0]
            _log.error(
                "{count} files of {uids} cannot be read, and are left out of a retrieval; the first is that of instance"
                " {instance}: {reason}; {check}",
                count=len(self.damaged),
                uids=of,
                instance=uid,
                reason=loggable(error),
                check=CHECK,
            )
        if self.changed:
            _log.warn(
                "{count} files of {uids} are not those that the index knows, and are given as they are; {check}",
                count=self.changed,
                uids=of,
                check=CHECK,
            )

    def warn(self, request: DICOMwebRequest) -> None:
        """Say to the client what it does not get."""
        if self.missing:
            request.warn(f"{self.missing} instances whose files are missing are left out")
        if self.damaged:
            request.warn(f"{len(self.damaged)} instances whose files cannot be read are left out")
        if self.refused:
            request.warn("instances that cannot be converted to an acceptable transfer syntax are left out")
        if self.changed:
            request.warn(f"the files of {self.changed} instances have changed since they were stored")

    @property
    def problem(self) -> Problem:
        """The problem of a response that would be empty: its reason is the most serious one."""
        if self.damaged:
            return Problem(500, DAMAGED)
        if self.refused:
            return Problem(406, NOT_ACCEPTABLE)
        return Problem(404, MISSING)


def within(found: Iterable[Representation], syntax: str, media_type: str) -> tuple[Representation, ...]:
    """Return the representations that a body of *media_type* may have."""
    if media_type == ZIP:
        return tuple(one for one in found if one.media_type == ZIP and not is_transcoded(syntax, one.transfer_syntax))
    return tuple(one for one in found if one.media_type == DICOM and one.multipart)


async def select(
    request: DICOMwebRequest,
    services: Services,
    selection: Selection,
    instances: Sequence[StoredInstance],
    media_type: str,
) -> None:
    """Add a page to *selection*; the files are looked at in a thread."""
    heads = await reading(request, services).run_admitted(
        services.files.heads, [instance.uids for instance in instances]
    )
    selection.add(instances, heads, request.accept, services, media_type)
