"""
Responses in DICOM JSON: their data sets, one after another, while they arrive.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

from pydicom import Dataset

from dicomtwist.dicomweb.client.errors import InvalidResponse
from dicomtwist.dicomweb.client.http import Response
from dicomtwist.dicomweb.json_model import ArrayCutter, JSONModelError, decode_json
from dicomtwist.eventloop.coroutines import deferred_items
from dicomtwist.runtime.executors import Executor

__all__ = ["datasets_of"]

#: The bytes of JSON that the reactor thread decodes itself, in about a millisecond; longer JSON goes to a thread.
MAX_INLINE: Final = 8 * 1024


@deferred_items
async def datasets_of(response: Response, executor: Executor) -> AsyncGenerator[Dataset, None]:
    """
    Yield the Datasets of a response in DICOM JSON as it arrives. Leaving the loop early closes the connection.

    :raises InvalidResponse: it is malformed, or cut off.
    :raises NoConnection: the connection was lost.
    """
    body, cutter = response.body, ArrayCutter()
    try:
        if response.status == 204:
            return
        with executor.in_use():
            async for piece in body:
                for dataset in await _decoded(cutter.feed(piece), executor):
                    yield dataset
        cutter.finish()
    except JSONModelError as error:
        raise InvalidResponse(f"the response is {error}") from None
    finally:
        body.abort()


async def _decoded(objects: list[bytes], executor: Executor) -> list[Dataset]:
    if sum(map(len, objects)) <= MAX_INLINE:
        return _decode_all(objects)
    return await executor.run(_decode_all, objects)


def _decode_all(objects: list[bytes]) -> list[Dataset]:
    return [dataset for one in objects for dataset in decode_json(one)]
