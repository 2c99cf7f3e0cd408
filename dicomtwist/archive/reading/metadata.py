"""
The metadata of stored instances as DICOM JSON (PS3.18 10.4.1.1.2), with a mark in place of the beginning of each BulkDataURI.
"""

from __future__ import annotations

import json
from typing import Final

from dicomtwist.archive.reading.stored_file import StoredFile
from dicomtwist.archive.storage.types import InstanceUIDs
from dicomtwist.dicomweb.bulk_data import path_text
from dicomtwist.dicomweb.json_encoder import JSONEncoder

__all__ = ["MetadataEncoder", "with_base_url"]

#: The character that stands for the URL of the service. In JSON it is written with an escape, and a quotation mark within a
#: text is, too, so that no text of a data set has the bytes of :data:`_MARKED`.
_MARK: Final = "\x01"
_BEFORE: Final = b'"BulkDataURI":"'
_MARKED: Final = _BEFORE + json.dumps(_MARK)[1:-1].encode()


def with_base_url(metadata: bytes, base_url: str) -> bytes:
    """
    Return metadata whose BulkDataURIs begin with *base_url*.

    :param metadata: from :meth:`MetadataEncoder.encode`, of any number of instances.
    :param base_url: the URL of the service without a slash at its end.
    """
    return metadata.replace(_MARKED, _BEFORE + json.dumps(base_url)[1:-1].encode())


class MetadataEncoder:
    """
    Encodes the metadata of instances, best of those of one series, which have much in common. One thread at a time uses it.

    :param default_charset: the character set of text without one, see :class:`dicomtwist.archive.archive.Archive`.
    """

    def __init__(self, default_charset: str = "") -> None:
        self._default_charset = default_charset
        self._encoders: dict[str, JSONEncoder] = {}
        self._prefix = ""

    def encode(self, uids: InstanceUIDs, stored: StoredFile) -> bytes:
        """
        Return a JSON object. A BulkDataURI begins with a mark, see :func:`with_base_url`.

        :raises DataSetError: the data set cannot be read.
        :raises OSError: the file cannot be read.
        """
        syntax = stored.data_syntax
        encoder = self._encoders.get(syntax)
        if encoder is None:
            encoder = JSONEncoder(syntax, self._bulk_data, default_charset=self._default_charset)
            self._encoders[syntax] = encoder
        study, series, instance = uids
        self._prefix = f"{_MARK}/studies/{study}/series/{series}/instances/{instance}/bulkdata/"
        return encoder.encode(stored.data.read)

    def _bulk_data(self, path: tuple[int, ...], vr: str, offset: int, length: int | None) -> str:
        return self._prefix + path_text(path)
