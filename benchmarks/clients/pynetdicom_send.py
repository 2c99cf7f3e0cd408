"""
Send files with pynetdicom, otherwise like :mod:`benchmarks.clients.send`:
``python -m benchmarks.clients.pynetdicom_send PORT FOLDER``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE

from benchmarks.harness import MAX_PDU


def _main(port: int, folder: Path) -> None:
    paths = sorted(folder.glob("*.dcm"))
    ae = AE("BENCHMARK")
    ae.maximum_pdu_size = MAX_PDU
    ae.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    began = time.perf_counter()
    association = ae.associate("127.0.0.1", port)
    if not association.is_established:
        raise SystemExit("no association")
    statuses = [association.send_c_store(path).Status for path in paths]
    association.release()
    ended = time.perf_counter()
    if any(statuses):
        raise SystemExit("not every status is success")
    print(json.dumps({"total": ended - began}))


if __name__ == "__main__":
    _main(int(sys.argv[1]), Path(sys.argv[2]))
