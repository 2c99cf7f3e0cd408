"""
Targets in the archive: identifiers of queries, files of a worklist, performed procedure steps. Like the archive itself, they
need the extra ``archive``.
"""

from __future__ import annotations

import json
import os
import warnings
from array import array
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from pydicom import Dataset

from dicomtwist.archive.archive import Archive
from dicomtwist.archive.index.record import IndexRow, make_record, scanner_for
from dicomtwist.archive.instance import ReceivedInstance
from dicomtwist.archive.query.answer_reader import AnswerReader, identifiers
from dicomtwist.archive.query.compiler import InvalidIdentifier, Model, Negotiated, compile_find, compile_retrieve
from dicomtwist.archive.query.json_answers import json_answers
from dicomtwist.archive.query.search import Part, Search
from dicomtwist.archive.services.mpps import FOLDER, PerformedProcedureSteps, _status_for
from dicomtwist.archive.services.worklist import answer, compile_query
from dicomtwist.archive.services.worklist_folder import read_item
from dicomtwist.archive.storage.types import Durability, InvalidUID
from dicomtwist.datasets import decode_dataset, encode_dataset
from dicomtwist.datasets.header_scanner import HeaderError
from dicomtwist.datasets.identifier import encode_identifier
from dicomtwist.dicomweb.parameters import ParameterError, parse_search, search_query
from dicomtwist.errors import DataSetError, Refused
from dicomtwist.part10 import FileMeta, encode_preamble_and_meta
from dicomtwist.settings import Settings

#: Implicit and Explicit VR Little Endian; one bit of the input chooses between them.
SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
_EXPLICIT = SYNTAXES[1]
_MODELS = list(Model)


class Place:
    """
    A folder with an archive of two instances.

    :ivar archive: the open archive.
    :ivar path: the path of a file that a target may write.
    :ivar steps: keeps performed procedure steps in the storage of the archive.
    """

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="fuzz-")
        root = Path(self._folder.name)
        self.path = os.fspath(root / "file")
        self.archive = Archive(root / "archive", durability=Durability.NONE)
        self.archive.open()
        for number, name in enumerate(("Doe^John", "Yamada^Tarou=山田^太郎"), 1):
            outcomes: list[BaseException | None] = []
            self.archive.keep(_handed(number, name), outcomes.append)
            assert outcomes == [None]
        self.archive.catch_up()
        self.steps = PerformedProcedureSteps(self.archive.store, None)  # type: ignore[arg-type]  # no threads are needed


#: A key of each kind, for the answers to a query.
_ALL_KEYS: dict[str, str] = dict.fromkeys(
    (
        "PatientName", "PatientID", "OtherPatientIDs", "PatientComments", "StudyDate", "StudyTime", "StudyDescription",
        "PatientWeight", "ProcedureCodeSequence", "SeriesDescription", "RequestAttributesSequence", "InstanceNumber", "Rows",
        "AcquisitionDateTime", "ImageComments", "ConceptNameCodeSequence",
    ),
    "",
)  # fmt: skip


@cache
def _place() -> Place:
    return Place()


def _handed(number: int, name: str) -> ReceivedInstance:
    """Return an instance in the form in which the archive keeps it."""
    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.4.{number}"
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.3", f"1.2.3.{number}"
    made.PatientName, made.PatientID, made.Modality = name, f"P{number}", "CT"
    made.StudyDate, made.StudyTime, made.InstanceNumber = "20240101", "101500", number
    made.PatientWeight, made.StudyDescription = "70", "Head"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "C1", "99TEST"
    made.ProcedureCodeSequence = [code]
    data = encode_dataset(made, _EXPLICIT)
    scanner = scanner_for(_EXPLICIT)
    if not scanner.feed(data):
        scanner.finish()
    record = make_record(scanner.values, _EXPLICIT)
    meta = encode_preamble_and_meta(FileMeta(str(made.SOPClassUID), str(made.SOPInstanceUID), _EXPLICIT, "1.2.3"))
    return ReceivedInstance(record.uids, _EXPLICIT, [meta, data], lambda: record, record.length)


def _two(data: bytes) -> tuple[bytes, bytes]:
    """Split *data* into two parts; the first two bytes are the length of the first part."""
    end = 2 + int.from_bytes(data[:2], "big")
    return data[2:end], data[end:]


def query(data: bytes) -> None:
    """
    Compile and run a query. The first byte chooses information model, transfer syntax and kind of query, the second the
    negotiated options, and the rest is the identifier. A query that compiles gets responses that can be decoded.
    """
    if len(data) < 2:
        return
    syntax, model = SYNTAXES[data[0] & 1], _MODELS[(data[0] >> 2) % len(_MODELS)]
    negotiated = Negotiated.from_bytes(bytes(data[1] >> bit & 1 for bit in range(6)))
    compile_query = compile_retrieve if data[0] & 2 else compile_find
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compiled = compile_query(decode_dataset(data[2:], syntax), model, negotiated)
        except (DataSetError, InvalidIdentifier):
            return
        search = Search(_place().archive.index.engine, compiled)
        numbers = search.numbers()
        if data[0] & 2:
            search.instances(_place().archive.store, numbers)
            return
        for found in AnswerReader(search, identifiers("FUZZ", syntax)).read(numbers):
            decode_dataset(found, syntax).decode()


def search(data: bytes) -> None:
    """
    Search as DICOMweb does. The first byte chooses the level and the part of the matches, and the rest is the query of the
    URL. A query that compiles gets answers that are JSON.
    """
    if not data:
        return
    level = ("STUDY", "SERIES", "IMAGE")[(data[0] & 3) % 3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            asked = parse_search(data[1:], level, study="1.2.3" if data[0] & 4 else "")
            options = Negotiated(relational=True, fuzzy=asked.fuzzy, empty_values=asked.empty_values)
            compiled = compile_find(asked.identifier, Model.STUDY_ROOT, options)
        except (ParameterError, InvalidIdentifier):
            return
        part = Part(asked.limit, asked.offset, newest_first=bool(data[0] & 8), counted=2)
        one = Search(_place().archive.index.engine, compiled, part)
        numbers = array("q")
        turns = one.in_turns()
        while True:
            try:
                next(turns)
            except StopIteration as end:
                numbers = end.value
                break
        assert asked.limit is None or len(numbers) <= asked.limit + 3
        for found in AnswerReader(one, json_answers("/dicom-web")).read(numbers):
            assert Dataset.from_json(found.decode()).StudyInstanceUID


def worklist(data: bytes) -> None:
    """Match an identifier against a file of a worklist. If both can be read and compiled, the query gets a response."""
    keys, content = _two(data)
    path = _place().path
    with open(path, "wb") as file:
        file.write(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            item = read_item(path)
        except ValueError:
            return
        try:
            identifier = decode_dataset(keys, _EXPLICIT)
        except DataSetError:
            return
        try:
            identifier.decode()
        except Exception:
            return  # pydicom may raise anything for bytes that are not an identifier
        try:
            matches = compile_query(identifier)
        except ValueError:
            return
        for at in matches(item):
            try:
                encode_identifier(answer(item, at, identifier), _EXPLICIT)
            except DataSetError:
                pass


def steps(data: bytes) -> None:
    """Create and change a performed procedure step by N-CREATE and N-SET. Each refusal has a status that says why."""
    created, changed = _two(data)
    keeper, uid = _place().steps, "1.2.3.4.5"
    assoc = SimpleNamespace(settings=Settings(), remote=SimpleNamespace(ae_title="FUZZ"))
    context = SimpleNamespace(transfer_syntax=_EXPLICIT)
    event: Any = SimpleNamespace(sop_instance_uid=uid, assoc=assoc, context=context, attribute_identifiers=[])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            event.attribute_list = decode_dataset(created, _EXPLICIT)
            event.modification_list = decode_dataset(changed, _EXPLICIT)
            keeper._exclusively(keeper._create, event)
            decode_dataset(keeper._get(event)[1], _EXPLICIT)
            keeper._exclusively(keeper._set, event)
            decode_dataset(keeper._get(event)[1], _EXPLICIT)
        except (Refused, DataSetError, InvalidUID) as error:
            assert _status_for(error) is not None
    kept = _place().archive.root / FOLDER / f"{uid}.dcm"
    kept.unlink(missing_ok=True)


def rows(data: bytes) -> None:
    """
    Index any data set, and query its row. The first byte chooses the transfer syntax, the default character set and
    the level of the query. A data set whose header can be scanned has a row that the database takes, and answers that can be
    decoded.
    """
    if len(data) < 2:
        return
    syntax = (*SYNTAXES, "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.4.50")[data[0] & 3]
    scanner = scanner_for(syntax)
    try:
        if not scanner.feed(data[1:]):
            scanner.finish()
    except HeaderError:
        pass  # the values before the error are indexed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = make_record(scanner.values, syntax, ("", "", "ISO_IR 192", "ISO_IR 13")[data[0] >> 2 & 3])
        index = _place().archive.index
        before = index.counts()
        index.add([IndexRow(record, syntax, len(data), replaces=True)])
        level = ("PATIENT", "STUDY", "SERIES", "IMAGE")[data[0] >> 4 & 3]
        query = compile_find(_items(QueryRetrieveLevel=level, **_ALL_KEYS), Model.PATIENT_ROOT, Negotiated(True))
        search = Search(index.engine, query)
        numbers = search.numbers()
        found = AnswerReader(search, identifiers("FUZZ", _EXPLICIT)).read(numbers)
        assert len(found) == len(numbers)
        for one in found:
            decode_dataset(one, _EXPLICIT)
        if level != "PATIENT":
            for answer in AnswerReader(search, json_answers("/dicom-web")).read(numbers):
                json.loads(answer.decode(), parse_constant=_no_constant)
        index.remove([record.uids])
        assert index.counts() == before


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


ARCHIVE_TARGETS = {"rows": rows, "query": query, "search": search, "worklist": worklist, "steps": steps}


# --- seeds


def _items(**elements: Any) -> Dataset:
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def _identifiers() -> list[Dataset]:
    code = _items(CodeValue="C*", CodingSchemeDesignator="99TEST", CodeMeaning="")
    return [
        _items(QueryRetrieveLevel="PATIENT", PatientID="P?", PatientName="Doe*", NumberOfPatientRelatedStudies=""),
        _items(QueryRetrieveLevel="STUDY", StudyDate="20230101-20240601", StudyTime="-1200", StudyInstanceUID=""),
        _items(QueryRetrieveLevel="STUDY", PatientID="P1", StudyInstanceUID=["1.2.3", "1.2.4"], ModalitiesInStudy="CT"),
        _items(QueryRetrieveLevel="STUDY", PatientName="山*=*", SpecificCharacterSet="ISO_IR 192", StudyDescription="H*"),
        _items(QueryRetrieveLevel="STUDY", ProcedureCodeSequence=[code], PatientWeight="70.0", PatientAge=""),
        _items(
            QueryRetrieveLevel="STUDY", StudyDate="20240101", StudyTime="10-11", TimezoneOffsetFromUTC="-0530",
            PatientBirthDate='""',
        ),
        _items(
            QueryRetrieveLevel="SERIES", StudyInstanceUID="1.2.3", Modality="CT\\MR", SeriesNumber="",
            RequestAttributesSequence=[_items(ScheduledProcedureStepID="S?")],
        ),
        _items(
            QueryRetrieveLevel="IMAGE", StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.1", InstanceNumber="1",
            SOPInstanceUID="1.2.3.4.1", AcquisitionDateTime="2024-",
        ),
    ]  # fmt: skip


def _instances() -> list[Dataset]:
    code = _items(CodeValue="C1", CodingSchemeDesignator="99TEST", CodeMeaning="Größe")
    uids = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "SOPInstanceUID": "1.2.9.4", "StudyInstanceUID": "1.2.9",
        "SeriesInstanceUID": "1.2.9.1",
    }  # fmt: skip
    values = {"StudyDate": "20240101", "StudyTime": "1015", "InstanceNumber": 1, "Rows": 512, "PatientWeight": "70"}
    return [
        _items(SpecificCharacterSet=term, PatientName=name, ProcedureCodeSequence=[code], **uids, **values)
        for term, name in (
            ("ISO_IR 192", "王^小东=="), ("ISO_IR 100", "Müller"), (["", "ISO 2022 IR 87"], "Yamada=山田"),
            (["", "ISO 2022 IR 149"], "Hong=洪"), ("GB18030", "王"),
        )
    ]  # fmt: skip


def _scheduled(**elements: Any) -> Dataset:
    return _items(
        ScheduledStationAETitle=["AA32", "AA33"], Modality="CT", ScheduledProcedureStepStartDate="20240105",
        ScheduledProcedureStepStartTime="085600", ScheduledProcedureStepID="S1", **elements,
    )  # fmt: skip


def _worklists() -> list[tuple[Dataset, Dataset]]:
    item = _items(
        SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Käthe", PatientID="M1", AccessionNumber="1",
        ScheduledProcedureStepSequence=[_scheduled(), _scheduled(ScheduledProcedureStepLocation="HERE")],
    )  # fmt: skip
    moment = _items(
        ScheduledProcedureStepStartDate="20240101-20240201", ScheduledProcedureStepStartTime="08-17", Modality="C?"
    )
    keys = [
        _items(PatientName="m*", ScheduledProcedureStepSequence=[moment], SpecificCharacterSet="ISO_IR 192"),
        _items(
            AccessionNumber="1\\2",
            PatientID="",
            ScheduledProcedureStepSequence=[_items(ScheduledStationAETitle="AA33")],
        ),
        _items(ScheduledProcedureStepSequence=[], RequestedProcedureCodeSequence=[_items(CodeValue="A")]),
    ]
    return [(one, item) for one in keys]


def _performed() -> list[tuple[Dataset, Dataset]]:
    scheduled = _items(
        StudyInstanceUID="1.2.3", ReferencedStudySequence=[], AccessionNumber="A1", RequestedProcedureID="",
        RequestedProcedureDescription="", ScheduledProcedureStepID="S1", ScheduledProcedureStepDescription="",
        ScheduledProtocolCodeSequence=[],
    )  # fmt: skip
    step = _items(
        SpecificCharacterSet="ISO_IR 100", ScheduledStepAttributesSequence=[scheduled], PatientName="Müller^Käthe",
        PatientID="P1", PatientBirthDate="19500101", PatientSex="F", ReferencedPatientSequence=[], StudyID="",
        PerformedProcedureStepID="PPS1", PerformedStationAETitle="MODALITY", PerformedStationName="", PerformedLocation="",
        PerformedProcedureStepStartDate="20240501", PerformedProcedureStepStartTime="101500", Modality="CT",
        PerformedProcedureStepStatus="IN PROGRESS", PerformedProcedureStepDescription="", ProcedureCodeSequence=[],
        PerformedProcedureTypeDescription="", PerformedProcedureStepEndDate="", PerformedProcedureStepEndTime="",
        PerformedProtocolCodeSequence=[], PerformedSeriesSequence=[],
    )  # fmt: skip
    series = _items(ProtocolName="Head", SeriesInstanceUID="1.2.3.1")
    return [
        (step, _items(PerformedProcedureStepDescription="More", SpecificCharacterSet="ISO_IR 192", PatientID="P1")),
        (
            step,
            _items(
                PerformedProcedureStepStatus="COMPLETED", PerformedProcedureStepEndDate="20240501",
                PerformedProcedureStepEndTime="103000", PerformedSeriesSequence=[series],
            ),
        ),
    ]  # fmt: skip


def _joined(first: bytes, second: bytes) -> bytes:
    return len(first).to_bytes(2, "big") + first + second


def archive_seeds() -> dict[str, list[bytes]]:
    """Return the seeds of each of these targets."""
    items = [(encode_dataset(keys, _EXPLICIT), encode_dataset(item, _EXPLICIT)) for keys, item in _worklists()]
    meta = encode_preamble_and_meta(FileMeta("1.2.276.0.7230010.3.1.0.1", "1.2.3", _EXPLICIT, "1.2.3"))
    return {
        "query": [
            bytes((kind, negotiated)) + encode_dataset(identifier, SYNTAXES[kind & 1])
            for identifier in _identifiers()
            for kind, negotiated in ((0, 0), (5, 0x3F), (3, 1), (6, 0))
        ],
        "search": [
            bytes((kind,)) + search_query(identifier, limit=limit, offset=limit or 0).encode()
            for identifier in _identifiers()
            for kind, limit in ((0, None), (1, 1), (6, 0), (10, 2))
        ],
        "rows": [
            bytes((kind,)) + encode_dataset(made, SYNTAXES[kind & 1])
            for made in _instances()
            for kind in (0x30, 0x31, 0x15, 0x29, 0x0D)
        ],
        "worklist": [_joined(keys, start + item) for keys, item in items for start in (b"", meta)],
        "steps": [
            _joined(encode_dataset(step, _EXPLICIT), encode_dataset(change, _EXPLICIT)) for step, change in _performed()
        ],
    }
