"""Make the archive of what a version leaves behind: ``python -m tests.golden.make_store FILE.tar.xz``.

Not a part of ``--update-golden``: later versions are to read what 0.1.0 wrote, so its archive is made once.
"""

import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from tests import golden

LEFT_OUT = ("checkpoints", "model", "plots", "inputs.png", "confusion_matrix.png")
"""Artifacts that no report reads; they are most of the bytes."""


def make(archive: Path) -> None:
    """Run everything in a folder of a neutral name, and pack what it leaves."""
    project = Path(golden.STORE_HOME)
    project.mkdir()
    try:
        with tempfile.TemporaryDirectory() as patches:
            # The archive names no machine and no user.
            (Path(patches) / "sitecustomize.py").write_text("import socket\nsocket.gethostname = lambda: 'golden'\n")
            os.environ.update(PYTHONPATH=patches, LOGNAME="golden", USER="golden")
            golden.command(golden.ORDINARY, project)
            golden.command(golden.STUDY, project)
            shutil.rmtree(project / "runs")
            golden.interrupted(golden.LONG, project)
            golden.command("report --out report", project)
        with tarfile.open(archive, "w:xz", preset=9) as file:
            for path in sorted(project.rglob("*")):
                inside = path.relative_to(project)
                if path.is_file() and _is_kept(inside):
                    file.add(path, inside.as_posix(), filter=_anonymous)
    finally:
        shutil.rmtree(project)


def _is_kept(path: Path) -> bool:
    if path.parts[0] == "report":
        return path.suffix == ".parquet"
    if path.parts[0] == "mlartifacts":
        return not any(part in LEFT_OUT for part in path.parts)
    return path.parts[0] == "runs" or path.suffix == ".db"


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    make(Path(sys.argv[1]).absolute())
