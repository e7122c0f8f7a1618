"""Where a dataset can be read from: the sources under a folder, and what looks like one without being one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from resnet_bench.base.names import nearest
from resnet_bench.data.archive import ARCHIVES, ArchiveFacts, find_archive
from resnet_bench.data.class_folders import find_class_folders
from resnet_bench.data.content import Content, Progress
from resnet_bench.data.parquet import find_parquet
from resnet_bench.recipe.datasets import DatasetFacts

_OTHER_VERSIONS = {"binary": "the C version", "bin": "the C version", "matlab": "the MATLAB version"}
_PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
_MAX_ENTRIES = 200
"""A folder with more entries is not a data folder, and is not searched for near misses."""


class DataSource(Protocol):
    """One place that a dataset can be read from."""

    @property
    def kind(self) -> str:
        """What a run names as its source."""

    @property
    def facts(self) -> DatasetFacts:
        """The dataset."""

    @property
    def location(self) -> Path:
        """The file or folder."""

    def files(self) -> list[Path]:
        """List every file that is read."""

    def read(self, progress: Progress) -> Content:
        """Read and check everything, in the source's order; `UserError` names the file and row that are wrong."""

    def place(self, split_name: str, row: int) -> str:
        """Name the image in a row of a split, counted in the source's order: its file, or its row in one."""


def find_sources(facts: DatasetFacts, folder: Path, archive: ArchiveFacts | None = None) -> Iterator[DataSource]:
    """Yield every source of a dataset under a folder, in the order of preference.

    Args:
        facts: The dataset.
        folder: The data folder.
        archive: The published archive; by default that of the dataset's name.
    """
    sources: tuple[DataSource | None, ...] = (find_archive(facts, folder, archive),)
    yield from filter(None, sources)
    for find in (find_parquet, find_class_folders):
        source: DataSource | None = find(facts, folder)
        if source is not None:
            yield source


def how_to_get(facts: DatasetFacts, folder: Path, *, can_download: bool = True) -> str:
    """Say what to do where a folder has no source of a dataset, what looks like one in front.

    Args:
        facts: The dataset.
        folder: The folder without a source.
        can_download: Whether to advise a download; not after one that failed.
    """
    archive = ARCHIVES.get(facts.name)
    hint = _near_miss(facts, folder)
    places = (
        f"{hint}put {archive.filename if archive else 'the archive'} there, or Parquet files "
        f"({facts.name}/train-*.parquet and {facts.name}/test-*.parquet), or class folders "
        f"({facts.name}/train/<class>/*.png and {facts.name}/test/<class>/*.png), or name the folder that has them "
        "with --data DIR"
    )
    return f"{places}, or download them with: resnet-bench data prepare" if can_download else places


def _near_miss(facts: DatasetFacts, folder: Path) -> str:
    """Describe what is there and almost a source, with what to type; empty where there is nothing."""
    if not folder.is_dir():
        return ""
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if len(entries) > _MAX_ENTRIES:
        return ""
    for nearby in (folder.parent, folder.parent.parent, *(entry for entry in entries if entry.is_dir())):
        if nearby != folder and next(find_sources(facts, nearby), None) is not None:
            return f"{nearby} has it, try --data {nearby}; or "
    for entry in entries:
        if reason := _why_not(facts, entry):
            return f"{entry} {reason}; "
    return ""


def _why_not(facts: DatasetFacts, path: Path) -> str:
    archive = ARCHIVES.get(facts.name)
    name = path.name.lower()
    compact = name.translate(str.maketrans("", "", "-_."))
    if archive is None or facts.name not in compact:
        return ""
    # CIFAR-100 and CIFAR-10.1 are other datasets.
    if facts.name == "cifar10" and ("cifar100" in compact or "cifar101" in compact):
        return ""
    for word, version in _OTHER_VERSIONS.items():
        if word in name:
            return f"is {version}, which is not read: take the Python version"
    if path.suffix.lower() in _PACKED and path.is_file():
        if nearest(path.name, [archive.filename], cutoff=0.8):
            return f"is perhaps the archive under another name: call it {archive.filename}"
        return "is packed: unpack it"
    return "is not laid out as any of these"
