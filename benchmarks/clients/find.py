"""
Query with our client and print how long it took: ``python -m benchmarks.clients.find PORT ANSWERS``.

Prints JSON: ``total``, from the association request to the release, in seconds.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from pydicom import Dataset
from twisted.internet.defer import Deferred
from twisted.internet.task import react

from benchmarks.harness import MAX_PDU
from benchmarks.programs import QUERY
from dicomtwist import AE
from dicomtwist.sop_class import StudyRootQueryRetrieveInformationModelFind


async def _find(port: int, answers: int) -> None:
    identifier = Dataset()
    for key in QUERY:
        keyword, _, value = key.partition("=")
        setattr(identifier, keyword, value)
    ae = AE("BENCHMARK")
    ae.maximum_pdu_size = MAX_PDU
    ae.add_requested_context(StudyRootQueryRetrieveInformationModelFind)
    began = time.perf_counter()
    async with await ae.associate("127.0.0.1", port, ae_title="DCMQRSCP") as association:
        found = await association.send_c_find(identifier, StudyRootQueryRetrieveInformationModelFind).collect()
        uids = {answer.SOPInstanceUID for answer in found}
    ended = time.perf_counter()
    if len(uids) != answers:
        raise SystemExit(f"{len(uids)} of {answers} answers came")
    print(json.dumps({"total": ended - began}))


def _main(reactor: Any, port: str, answers: str) -> Deferred[None]:
    return Deferred.fromCoroutine(_find(int(port), int(answers)))


if __name__ == "__main__":
    react(_main, sys.argv[1:])
