"""
``python -m fuzz [--seconds N] [--corpus FOLDER] [TARGET ...]``: fuzz each target for a while, in a process of its own.

This needs the extra ``fuzz``. Inputs that libFuzzer finds interesting are kept in the corpus for the next time. Inputs that
fail are written to the folder ``found`` in the corpus folder, and make the exit status 1. ``python -m fuzz --show TARGET FILE``
runs a target on one file, without the extra.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

#: The longest input, in bytes. Longer seeds are cut, because the interesting code reads headers.
MAX_LENGTH = 8192
#: The limits beyond which an input counts as a failure: its time in seconds, and the memory of the process in MiB.
TIMEOUT, MEMORY = 20, 1500


def _child(name: str, arguments: list[str]) -> None:
    """Fuzz one target; libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["dicomtwist"]):
        from fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


def _write_seeds(corpus: Path) -> list[str]:
    from fuzz.seeds import seeds

    found = seeds()
    for name, inputs in found.items():
        folder = corpus / name
        folder.mkdir(parents=True, exist_ok=True)
        for data in inputs:
            data = data[:MAX_LENGTH]
            (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)
    return list(found)


def main() -> int:
    """Parse the command line and fuzz."""
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=120, help="for each target (default: 120)")
    parser.add_argument("--corpus", type=Path, default=Path(".fuzz"), help="the folder of inputs (default: .fuzz)")
    parser.add_argument("--show", nargs=2, metavar=("TARGET", "FILE"), help="run a target on one input")
    options = parser.parse_args()
    if options.show:
        from fuzz.targets import TARGETS

        TARGETS[options.show[0]](Path(options.show[1]).read_bytes())
        return 0
    names = _write_seeds(options.corpus)
    unknown = set(options.targets) - set(names)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}: there are {', '.join(names)}")
    failed = []
    for name in options.targets or names:
        found = options.corpus / "found" / name
        found.mkdir(parents=True, exist_ok=True)
        arguments = [
            str(options.corpus / name),
            f"-max_total_time={options.seconds}",
            f"-max_len={MAX_LENGTH}",
            f"-timeout={TIMEOUT}",
            f"-rss_limit_mb={MEMORY}",
            f"-artifact_prefix={found}/",
            "-print_final_stats=1",
        ]
        print(f"== {name}", flush=True)
        source = "import sys; from fuzz.__main__ import _child; _child(sys.argv[1], sys.argv[2:])"
        with TemporaryDirectory() as folder:  # libFuzzer ends the process before it could clean up
            environment = {**os.environ, "TMPDIR": folder}
            child = [sys.executable, "-c", source, name, *arguments]
            if subprocess.run(child, check=False, env=environment).returncode:
                failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "nothing was found")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
