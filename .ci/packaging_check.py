"""
Checks that the package, once installed, gives ``twist`` its ``dicom`` command.

A wheel is built and installed in a fresh environment, and the sources are installed in another with
``pip install -e``. In both ``twist`` is asked from the folder ``/``: in the project's own folder it finds the
plugin even when that is not installed at all. The wheel must hold the package and nothing else.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

# Only sources: what an earlier build or test left in the folder must not decide what the wheel holds.
SOURCES = [
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "dicomtwist",
    "twisted",
    "tests",
    "docs",
    "benchmarks",
]
REQUIRED = ["dicomtwist/__init__.py", "dicomtwist/py.typed", "twisted/plugins/dicomtwist_plugin.py"]


def run(*command: str | Path, cwd: Path | str = "/") -> str:
    """
    Run a command that must succeed and return what it prints.
    """
    print("+", *command, flush=True)
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nfailed with exit code {done.returncode}")
    return done.stdout


def copy_sources(target: Path) -> None:
    """
    Copy the sources, without anything that was generated.
    """
    target.mkdir()
    for name in SOURCES:
        source = PROJECT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.pyc", "dropin.cache", "_build")
            shutil.copytree(source, target / name, ignore=ignore)
        elif source.exists():
            shutil.copy2(source, target / name)


def check_wheel(wheel: Path) -> None:
    """
    Demand that a wheel holds the whole package and nothing beside it.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    extra = [
        name
        for name in names
        if not name.startswith("dicomtwist/")
        and not name.split("/")[0].endswith(".dist-info")
        and name != "twisted/plugins/dicomtwist_plugin.py"
    ]
    if extra:
        raise SystemExit(f"the wheel holds what it should not: {extra}")
    modules = (path.relative_to(PROJECT).as_posix() for path in (PROJECT / "dicomtwist").rglob("*.py"))
    pages = PROJECT / "dicomtwist" / "web" / "pages"
    files = (path.relative_to(PROJECT).as_posix() for path in pages.glob("[st]*/*"))
    missing = [name for name in (*REQUIRED, *modules, *files) if name not in names]
    if missing:
        raise SystemExit(f"the wheel lacks {missing}")


def check_install(environment: Path, *requirement: str | Path) -> None:
    """
    Install into a fresh environment and ask ``twist`` for its commands.
    """
    venv.create(environment, with_pip=True)
    run(environment / "bin" / "python", "-m", "pip", "install", "-q", *requirement)
    commands = run(environment / "bin" / "twist", "--help")
    if not any(line.split()[:1] == ["dicom"] for line in commands.splitlines()):
        raise SystemExit(f"twist does not know the command dicom:\n{commands}")
    if "--storage" not in run(environment / "bin" / "twist", "dicom", "--help"):
        raise SystemExit("twist dicom --help does not show its options")


def main() -> None:
    """
    Run all checks in a temporary folder.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = folder / "sources"
        copy_sources(sources)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "dist", sources)
        (wheel,) = (folder / "dist").glob("*.whl")
        check_wheel(wheel)
        check_install(folder / "from-wheel", f"{wheel}[archive]")
        check_install(folder / "editable", "-e", f"{sources}[archive]")
    print("package-check: the wheel and the editable install both give twist its dicom command")


if __name__ == "__main__":
    main()
