"""Data sets as bytes and streams: encoded and decoded, received into sinks, sent from sources."""

from dicomtwist.datasets.codec import (
    MAX_INFLATED,
    UNCOMPRESSED,
    decode_dataset,
    encode_dataset,
    file_meta_dataset,
)
from dicomtwist.datasets.conversion.files import convert_file
from dicomtwist.datasets.outgoing_instance import (
    InstanceLike,
    OutgoingInstance,
    open_file_like,
    open_instance,
    open_path,
)
from dicomtwist.datasets.sources import (
    BytesSource,
    Chunk,
    DataSetSource,
    FileSource,
)
from dicomtwist.datasets.stream import (
    CHUNK,
    CollectingSink,
    DataSetSink,
    DataSetStream,
    StreamPauser,
)

#: The name that :class:`OutgoingInstance` had before, when it was the result of :func:`open_instance` alone.
OpenedInstance = OutgoingInstance

__all__ = [
    "CHUNK",
    "MAX_INFLATED",
    "UNCOMPRESSED",
    "BytesSource",
    "Chunk",
    "CollectingSink",
    "DataSetSink",
    "DataSetSource",
    "DataSetStream",
    "FileSource",
    "InstanceLike",
    "OpenedInstance",
    "OutgoingInstance",
    "StreamPauser",
    "convert_file",
    "decode_dataset",
    "encode_dataset",
    "file_meta_dataset",
    "open_file_like",
    "open_instance",
    "open_path",
]
