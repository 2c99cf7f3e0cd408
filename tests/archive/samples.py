"""Instances for tests of the archive, and functions that store and query them without a network."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.filereader import read_dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.record import Record, make_record, scanner_for
from dicomtwist.archive.instance import ReceivedInstance
from dicomtwist.archive.query.answer_reader import AnswerReader, identifiers
from dicomtwist.archive.query.compiler import BASELINE, Model, Negotiated, compile_find
from dicomtwist.archive.query.search import Search
from dicomtwist.datasets import encode_dataset
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def dataset(number: int = 1, series: int = 1, study: int = 1, **elements: Any) -> Dataset:
    """Return a small instance; each of *elements* is set, or removed if its value is ``None``."""
    made = Dataset()
    made.SOPClassUID = SECONDARY_CAPTURE
    made.StudyInstanceUID = f"1.2.{study}"
    made.SeriesInstanceUID = f"1.2.{study}.{series}"
    made.SOPInstanceUID = f"1.2.{study}.{series}.{number}"
    made.Modality = "OT"
    made.InstanceNumber = number
    made.PatientID = "P"
    made.PatientName = "Doe^John"
    for keyword, value in elements.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    return made


def encoded(made: Dataset, transfer_syntax: str = ExplicitVRLittleEndian) -> tuple[Record, list[bytes]]:
    """Return the index record of an instance, and its file in two pieces."""
    data = encode_dataset(made, transfer_syntax)
    scanner = scanner_for(transfer_syntax)
    if not scanner.feed(data):
        scanner.finish()
    meta = FileMeta(str(made.SOPClassUID), str(made.SOPInstanceUID), str(transfer_syntax), "1.2.3")
    return make_record(scanner.values, transfer_syntax), [encode_preamble_and_meta(meta), data]


def handed(made: Dataset, transfer_syntax: str = ExplicitVRLittleEndian) -> ReceivedInstance:
    """Return an instance as it is handed to an archive."""
    record, content = encoded(made, transfer_syntax)
    return ReceivedInstance(record.uids, str(transfer_syntax), content, lambda: record, record.length)


def keep(archive: Archive, made: Dataset, transfer_syntax: str = ExplicitVRLittleEndian) -> BaseException | None:
    """Store an instance; return the error, ``None`` if there is none."""
    outcomes: list[BaseException | None] = []
    archive.keep(handed(made, transfer_syntax), outcomes.append)
    (outcome,) = outcomes
    return outcome


def ask(
    archive: Archive,
    level: str,
    *,
    model: Model = Model.STUDY_ROOT,
    negotiated: Negotiated = BASELINE,
    transfer_syntax: str = ExplicitVRLittleEndian,
    **keys: Any,
) -> list[Dataset]:
    """Query the index; each of *keys* is a key of the identifier, None for universal matching."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    archive.catch_up()
    search = Search(archive.index.engine, compile_find(identifier, model, negotiated))
    answers = AnswerReader(search, identifiers("ARCHIVE", transfer_syntax)).read(search.numbers())
    implicit, little = transfer_syntax == "1.2.840.10008.1.2", transfer_syntax != "1.2.840.10008.1.2.2"
    decoded = [read_dataset(BytesIO(answer), implicit, little) for answer in answers]
    for answer in decoded:
        answer.decode()
    return decoded


def files(root: Path) -> list[Path]:
    """Return all files in an archive except locks and the index."""
    found = (path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    return sorted(path for path in found if ".index" not in path.parts)
