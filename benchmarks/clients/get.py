"""
Retrieve studies with C-GET and print how long it took: ``python -m benchmarks.clients.get PORT INSTANCES STUDY...``.

Each study has INSTANCES instances. By default all are retrieved on one association; with ``--each`` each study has its own, as
with getscu. Prints JSON: ``total``, from the first association request to the last release, in seconds.
"""

from __future__ import annotations

import argparse
import json
import time

from benchmarks.clients.wire import Wire, retrieving, secured


def _main(arguments: argparse.Namespace) -> None:
    request = retrieving()
    secure = secured(*arguments.tls) if arguments.tls else None
    began = time.perf_counter()
    wire = Wire(arguments.port, request, secure)
    for number, study in enumerate(arguments.studies):
        if number and arguments.each:
            wire.release()
            wire = Wire(arguments.port, request, secure)
        wire.get(study, arguments.instances)
    wire.release()
    print(json.dumps({"total": time.perf_counter() - began}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("instances", type=int)
    parser.add_argument("studies", nargs="+", metavar="STUDY")
    parser.add_argument("--each", action="store_true", help="an association for each study")
    parser.add_argument("--tls", nargs=3, metavar=("CA", "KEY", "CERTIFICATE"), help="paths of PEM files")
    _main(parser.parse_args())
