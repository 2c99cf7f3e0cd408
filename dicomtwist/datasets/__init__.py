"""Data sets as bytes and streams: encoded and decoded, received into sinks, sent from sources."""

from dicomtwist.datasets.codec import (
    CHUNK,
    MAX_INFLATED,
    UNCOMPRESSED,
    CollectingSink,
    DataSetSink,
    DataSetStream,
    StreamPauser,
    decode_dataset,
    encode_dataset,
    file_meta_dataset,
)
from dicomtwist.datasets.sources import (
    BytesSource,
    Chunk,
    DataSetSource,
    FileSource,
    OpenedInstance,
    convert_file,
    open_file_like,
    open_instance,
    open_path,
)

__all__ = [
    "BytesSource",
    "CHUNK",
    "Chunk",
    "CollectingSink",
    "convert_file",
    "DataSetSink",
    "DataSetSource",
    "DataSetStream",
    "decode_dataset",
    "encode_dataset",
    "file_meta_dataset",
    "FileSource",
    "MAX_INFLATED",
    "open_file_like",
    "open_instance",
    "open_path",
    "OpenedInstance",
    "StreamPauser",
    "UNCOMPRESSED",
]
