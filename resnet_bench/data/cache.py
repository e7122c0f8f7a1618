"""Decoded images on disk, so that a dataset is decoded once.

An entry is a folder of raw arrays and a manifest, which is written last and has the hash of each array and of itself:
an entry that was cut short, overwritten or altered is recognized and built again. Arrays are mapped into memory, so
that several processes share one copy.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from resnet_bench.base import files
from resnet_bench.data.content import Content, SplitArrays, fingerprint, sha256_of_array
from resnet_bench.data.sources import DataSource

IN_DATA_FOLDER = ".resnet-bench-cache"
"""Name of the cache in a data folder."""

FORMAT = 2
_MANIFEST = "manifest.json"
_DTYPES: dict[str, np.dtype[Any]] = {
    "images": np.dtype(np.uint8),
    "labels": np.dtype("<i8"),
    "rows": np.dtype("<i8"),
}

CacheState = Literal["missing", "outdated", "damaged", "ready"]


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
        """Return the entry of a source in a cache folder, whether it exists or not.

        An entry in the data folder is named by its place in that folder, so that the folder may be renamed.
        """
        place = hashlib.sha256(f"{source.kind}/{_place(source, cache_folder)}".encode()).hexdigest()
        return cls(source, cache_folder / f"{source.facts.name}-{place[:12]}")

    def lock(self) -> FileLock:
        """Return the lock to hold while the entry is built.

        Raises:
            OSError: The cache folder cannot be made or written to.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        files.mark_as_cache(self.folder.parent)
        return FileLock(self.folder.with_suffix(".lock"))

    def abandoned(self) -> list[tuple[Path, str]]:
        """Find entries beside this one that nothing reads any longer: their folders, and where their images were."""
        found = []
        for path in sorted(self.folder.parent.glob(f"{self.source.facts.name}-*/{_MANIFEST}")):
            manifest = _read_manifest(path)
            if path.parent == self.folder or manifest is None:
                continue
            place = manifest.get("place")
            if manifest.get("format") != FORMAT:
                found.append((path.parent, "an earlier version"))
            elif isinstance(place, str) and not (self.folder.parent.parent / place).exists():
                found.append((path.parent, place))
        return found

    def manifest(self) -> dict[str, Any]:
        """Read the manifest of an entry that belongs to the source's files as they are now.

        Raises:
            CacheMiss: There is none, it is damaged, or the source's files have changed.
        """
        if not (self.folder / _MANIFEST).exists():
            raise CacheMiss("missing")
        manifest = _read_manifest(self.folder / _MANIFEST)
        if manifest is None:
            raise CacheMiss("damaged")
        if manifest.get("format") != FORMAT or manifest["identity"] != self.identity():
            raise CacheMiss("outdated")
        return manifest

    def read(self) -> tuple[Content, str]:
        """Map the arrays into memory, compare them with their hashes, and return them with the dataset's fingerprint.

        Writing into the arrays changes this process's copy only.

        Raises:
            CacheMiss: The entry cannot be used.
        """
        manifest = self.manifest()
        content = Content(*(self._map_split(name, manifest["splits"][name]) for name in Content._fields))
        return content, manifest["fingerprint"]

    def write(self, content: Content, identity: str) -> None:
        """Write an entry while the lock is held; a reader finds the old entry or the new one, never a mixture.

        Args:
            content: The source's images, in canonical order.
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
            "format": FORMAT,
            "identity": identity,
            "fingerprint": fingerprint(self.source.facts.name, content),
            "place": str(_place(self.source, self.folder.parent)) if self.source.location.is_absolute() else None,
            "splits": splits,
        }
        document = {"sha256": _sha256_of_json(manifest), "manifest": manifest}
        files.write_atomically(self.folder / _MANIFEST, memoryview(json.dumps(document, indent=1).encode()))

    def identity(self) -> str:
        """Compute a digest that changes whenever a file of the source is added, removed, resized or written to."""
        root = self.source.location
        found = []
        for path in self.source.files():
            # A missing file is reported when the source is read.
            stat = path.stat() if path.exists() else None
            found.append((str(path.relative_to(root)), stat and (stat.st_size, stat.st_mtime_ns)))
        facts = self.source.facts
        # Two descriptions of the same files give other pixels and labels.
        described = [] if facts.built_in else [[facts.class_names, facts.image_size, facts.fit]]
        return _sha256_of_json([self.source.kind, found, *described])

    def _array_file(self, split_name: str, part: str) -> Path:
        return self.folder / f"{split_name}-{part}.bin"

    def _map_split(self, name: str, entry: dict[str, Any]) -> SplitArrays:
        shape = tuple(entry["shape"])
        shapes = {"images": shape, "labels": shape[:1], "rows": shape[:1]}
        return SplitArrays(*(self._map_array(name, part, shapes[part], entry[part]) for part in _DTYPES))

    def _map_array(self, split_name: str, part: str, shape: tuple[int, ...], sha256: str) -> npt.NDArray[Any]:
        path = self._array_file(split_name, part)
        dtype = _DTYPES[part]
        try:
            if path.stat().st_size != int(np.prod(shape)) * dtype.itemsize:
                raise CacheMiss("damaged")
            if 0 in shape:
                # An empty file cannot be mapped.
                return np.empty(shape, dtype)
            array: npt.NDArray[Any] = np.memmap(path, dtype=dtype, mode="c", shape=shape)
        except (OSError, ValueError):
            raise CacheMiss("damaged") from None
        if sha256_of_array(array) != sha256:
            raise CacheMiss("damaged")
        return array


def default_cache_folder(folder: Path) -> Path:
    """Choose where decoded images are kept: in the data folder if it is the user's own, else in the user's cache."""
    own = folder / IN_DATA_FOLDER
    return own if _is_own(folder) and (not own.exists() or _is_own(own)) else files.cache_folder()


def _is_own(folder: Path) -> bool:
    """Check whether a folder belongs to the user, who has not made it read-only."""
    # The superuser may write anywhere, and a group into a shared folder: the mode and the owner say whose it is.
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return False
    status = folder.stat()
    return bool(status.st_mode & 0o222) and (not hasattr(os, "geteuid") or status.st_uid == os.geteuid())


def _place(source: DataSource, cache_folder: Path) -> Path:
    """Return where a source is, relative to the data folder if the cache lies in it."""
    inside = cache_folder.name == IN_DATA_FOLDER and source.location.is_relative_to(cache_folder.parent)
    return source.location.relative_to(cache_folder.parent) if inside else source.location


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """Read a manifest; None where it is damaged."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    manifest = document.get("manifest") if isinstance(document, dict) else None
    is_whole = isinstance(manifest, dict) and document.get("sha256") == _sha256_of_json(manifest)
    return manifest if is_whole else None


def _sha256_of_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
