"""Decoded images on disk, so that a dataset is decoded once.

An entry is a folder of four raw arrays and a manifest, which is written last and holds the hash of each array and
of itself: an entry that was cut short, overwritten or altered is recognised and built again. Arrays are mapped into
memory, so that several processes share one copy.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from resnet_bench.base import files
from resnet_bench.data.content import Content, Progress, SplitArrays, fingerprint, sha256_of_array
from resnet_bench.recipe.datasets import DatasetFacts

_FORMAT = 1
_MANIFEST = "manifest.json"
_DTYPES: dict[str, np.dtype[Any]] = {"images": np.dtype(np.uint8), "labels": np.dtype("<i8")}

CacheState = Literal["missing", "outdated", "damaged", "ready"]


class DataSource(Protocol):
    """One place that a dataset can be read from."""

    @property
    def kind(self) -> str:
        """What a run names as its source."""

    @property
    def info(self) -> DatasetFacts:
        """The dataset."""

    @property
    def location(self) -> Path:
        """The file or folder."""

    def files(self) -> list[Path]:
        """Every file that is read."""

    def read(self, progress: Progress) -> Content:
        """Reads and checks everything; `UserError` names the file and row that are wrong."""


class CacheMiss(Exception):
    """An entry cannot be used as it is."""

    def __init__(self, state: CacheState) -> None:
        super().__init__(state)
        self.state = state


@dataclass(frozen=True)
class CacheEntry:
    """The cached arrays of one source.

    Attributes:
        source: Where the images come from.
        folder: The entry's folder.
    """

    source: DataSource
    folder: Path

    @classmethod
    def of(cls, source: DataSource, cache_folder: Path) -> "CacheEntry":
        """The entry of a source in a cache folder, whether it exists or not."""
        place = hashlib.sha256(f"{source.kind}/{source.location}".encode()).hexdigest()
        return cls(source, cache_folder / f"{source.info.name}-{place[:12]}")

    def lock(self) -> FileLock:
        """What a process holds while it builds the entry.

        Raises:
            OSError: The cache folder cannot be made or written to.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        files.mark_as_cache(self.folder.parent)
        return FileLock(self.folder.with_suffix(".lock"))

    def manifest(self) -> dict[str, Any]:
        """The manifest of an entry that belongs to the source's files as they are now.

        Raises:
            CacheMiss: There is none, it is damaged, or the source's files have changed.
        """
        try:
            document = json.loads((self.folder / _MANIFEST).read_bytes())
        except FileNotFoundError:
            raise CacheMiss("missing") from None
        except (OSError, ValueError):
            raise CacheMiss("damaged") from None
        if not isinstance(document, dict):
            raise CacheMiss("damaged")
        manifest = document.get("manifest")
        if not isinstance(manifest, dict) or document.get("sha256") != _sha256_of_json(manifest):
            raise CacheMiss("damaged")
        if manifest.get("format") != _FORMAT or manifest["identity"] != self.identity():
            raise CacheMiss("outdated")
        return manifest

    def read(self) -> tuple[Content, str]:
        """The arrays, mapped into memory and compared with their hashes, and the dataset's fingerprint.

        Writing into the arrays changes this process's copy alone.

        Raises:
            CacheMiss: The entry cannot be used.
        """
        manifest = self.manifest()
        content = Content(*(self._map_split(name, manifest["splits"][name]) for name in Content._fields))
        return content, manifest["fingerprint"]

    def write(self, content: Content, identity: str) -> None:
        """Writes an entry while the lock is held; a reader finds the old entry or the new one, never a mixture.

        Args:
            content: What the source holds.
            identity: `identity()` from before the source was read, so that a file changed meanwhile is noticed.

        Raises:
            OSError: The disk is full, or the folder cannot be written to.
        """
        self.folder.mkdir(exist_ok=True)
        for leftover in self.folder.glob(f".*{files.UNFINISHED}"):
            leftover.unlink()
        splits: dict[str, dict[str, Any]] = {}
        for name, split in content._asdict().items():
            splits[name] = {"shape": list(split.images.shape)}
            for part, dtype in _DTYPES.items():
                array = np.ascontiguousarray(getattr(split, part), dtype=dtype)
                splits[name][part] = sha256_of_array(array)
                files.write_atomically(self._array_file(name, part), array.reshape(-1).view(np.uint8).data)
        manifest = {
            "format": _FORMAT,
            "identity": identity,
            "fingerprint": fingerprint(self.source.info.name, content),
            "splits": splits,
        }
        document = {"sha256": _sha256_of_json(manifest), "manifest": manifest}
        files.write_atomically(self.folder / _MANIFEST, memoryview(json.dumps(document, indent=1).encode()))

    def identity(self) -> str:
        """Changes whenever a file of the source is added, removed, resized or written to."""
        root = self.source.location
        found = []
        for path in self.source.files():
            # A missing file is reported when the source is read.
            stat = path.stat() if path.exists() else None
            found.append((str(path.relative_to(root)), stat and (stat.st_size, stat.st_mtime_ns)))
        return _sha256_of_json([self.source.kind, str(root), found])

    def _array_file(self, split_name: str, part: str) -> Path:
        return self.folder / f"{split_name}-{part}.bin"

    def _map_split(self, name: str, entry: dict[str, Any]) -> SplitArrays:
        return SplitArrays(
            self._map_array(name, "images", tuple(entry["shape"]), entry["images"]),
            self._map_array(name, "labels", tuple(entry["shape"][:1]), entry["labels"]),
        )

    def _map_array(self, split_name: str, part: str, shape: tuple[int, ...], sha256: str) -> npt.NDArray[Any]:
        path = self._array_file(split_name, part)
        dtype = _DTYPES[part]
        try:
            if path.stat().st_size != int(np.prod(shape)) * dtype.itemsize:
                raise CacheMiss("damaged")
            array: npt.NDArray[Any] = np.memmap(path, dtype=dtype, mode="c", shape=shape)
        except (OSError, ValueError):
            raise CacheMiss("damaged") from None
        if sha256_of_array(array) != sha256:
            raise CacheMiss("damaged")
        return array


def default_cache_folder(folder: Path) -> Path:
    """`.resnet-bench-cache` in the data folder, or in the user's cache folder if that one is not to be written to."""
    # The superuser may write anywhere; a folder that its owner has made read-only is left alone all the same.
    if folder.is_dir() and os.access(folder, os.W_OK) and folder.stat().st_mode & 0o222:
        return folder / ".resnet-bench-cache"
    return files.cache_folder()


def _sha256_of_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
