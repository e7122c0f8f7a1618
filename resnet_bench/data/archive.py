"""CIFAR as published: the Python archive, packed or extracted, laid out as torchvision leaves it."""

import hashlib
import http.client
import io
import pickle  # only behind a checksum, and with an unpickler that imports nothing  # nosec B403
import socket
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from filelock import FileLock

from resnet_bench.base.errors import UserError
from resnet_bench.data.content import Content, Progress, SplitArrays, check_complete
from resnet_bench.recipe.datasets import DatasetFacts

_DOWNLOAD_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class ArchiveSource:
    """The archive itself, or the folder that was extracted from it.

    Attributes:
        info: The dataset.
        location: The archive file, or the extracted folder.
    """

    info: DatasetFacts
    location: Path
    kind = "torchvision archive"

    def files(self) -> list[Path]:
        """Every file that is read."""
        if self.location.is_file():
            return [self.location]
        return [self.location / name for name, _ in _batches(self.info)]

    def read(self, progress: Progress) -> Content:
        """Verifies all checksums, then unpickles with nothing allowed but what the batches hold.

        Raises:
            UserError: A checksum differs, a file is missing, or a batch holds something else.
        """
        progress(f"verifying and reading {self.location}")
        read = self._read_packed if self.location.is_file() else self._read_extracted
        batches = {name: _unpickle(data, f"{name} of {self.location}") for name, data in read().items()}
        self._check_class_names(batches[self.info.meta_batch[0]])
        return Content(
            self._split("train", [batches[name] for name, _ in self.info.train_batches]),
            self._split("test", [batches[name] for name, _ in self.info.test_batches]),
        )

    def _read_packed(self) -> dict[str, bytes]:
        """The batches' bytes, without writing a file."""
        with self.location.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != self.info.archive_sha256:
                raise UserError(
                    f"{self.location} is not the published archive (its SHA-256 differs): delete it and download "
                    "it again with: resnet-bench data prepare"
                )
            file.seek(0)
            try:
                with tarfile.open(fileobj=file, mode="r:gz") as archive:
                    return self._members(archive)
            except tarfile.TarError as error:
                raise UserError(f"{self.location} cannot be unpacked ({error})") from error

    def _members(self, archive: tarfile.TarFile) -> dict[str, bytes]:
        checksums = dict(_batches(self.info))
        found: dict[str, bytes] = {}
        for member in archive:
            path = PurePosixPath(member.name)
            # Nothing is written here, but whoever extracts this archive by other means would be attacked.
            if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
                raise UserError(f"{self.location} holds {member.name!r}, which no archive of CIFAR does")
            file = archive.extractfile(member)
            if file is not None and str(path.parent) == self.info.archive_folder and path.name in checksums:
                found[path.name] = file.read()
        for name, checksum in checksums.items():
            if name not in found:
                raise UserError(f"{self.location} lacks {self.info.archive_folder}/{name}")
            _check_md5(found[name], checksum, f"{name} of {self.location}")
        return found

    def _read_extracted(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for name, checksum in _batches(self.info):
            path = self.location / name
            if not path.is_file():
                raise UserError(
                    f"{path} is missing: {self.location} was extracted in part; delete it and get it again with: "
                    "resnet-bench data prepare"
                )
            found[name] = path.read_bytes()
            _check_md5(found[name], checksum, str(path))
        return found

    def _check_class_names(self, meta: dict[str, Any]) -> None:
        if tuple(meta.get(self.info.meta_key, ())) != self.info.class_names:
            raise UserError(f"{self.location} names other classes than those of {self.info.name}")

    def _split(self, split_name: str, batches: list[dict[str, Any]]) -> SplitArrays:
        size = self.info.image_size
        images = []
        labels = []
        for batch in batches:
            pixels, batch_labels = batch.get("data"), np.asarray(batch.get(self.info.label_key))
            if (
                not isinstance(pixels, np.ndarray)
                or pixels.dtype != np.uint8
                or pixels.shape != (len(pixels), 3 * size * size)
                or batch_labels.shape != pixels.shape[:1]
                or batch_labels.dtype.kind != "i"
            ):
                raise UserError(f"{self.location} holds a {split_name} batch that is not laid out as CIFAR's are")
            wrong = np.flatnonzero((batch_labels < 0) | (batch_labels >= self.info.num_classes))
            if wrong.size:
                raise UserError(
                    f"{self.location} holds label {batch_labels[wrong[0]]} in row {wrong[0]} of a {split_name} "
                    f"batch, and labels of {self.info.name} lie below {self.info.num_classes}"
                )
            images.append(pixels.reshape(-1, 3, size, size))
            labels.append(batch_labels.astype(np.int64))
        split = SplitArrays(np.concatenate(images), np.concatenate(labels))
        check_complete(self.info, split_name, len(split.images), str(self.location))
        return split


def find_archive(info: DatasetFacts, folder: Path) -> ArchiveSource | None:
    """The archive of a dataset in a folder or in its subfolder of the dataset's name.

    An extracted folder with all its files comes before the packed archive, as in torchvision.
    """
    incomplete = None
    for root in (folder, folder / info.name):
        extracted = ArchiveSource(info, root / info.archive_folder)
        if extracted.location.is_dir():
            if all(path.is_file() for path in extracted.files()):
                return extracted
            incomplete = extracted
        if (root / info.archive_filename).is_file():
            return ArchiveSource(info, root / info.archive_filename)
    return incomplete


def download_archive(info: DatasetFacts, folder: Path, progress: Progress) -> None:
    """Downloads the archive into a folder through torchvision, which shows a progress bar.

    The file appears under its name when it is whole and verified. Of several processes one downloads.

    Raises:
        UserError: The download failed; the message says why.
    """
    from torchvision.datasets.utils import check_integrity, download_url

    archive = folder / info.archive_filename
    partial = archive.with_name(f"{archive.name}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(archive.with_name(f".{archive.name}.lock")), _socket_timeout(_DOWNLOAD_TIMEOUT_SECONDS):
            if check_integrity(archive, info.archive_md5):
                return
            progress(f"downloading {info.archive_url} to {archive}")
            try:
                download_url(info.archive_url, folder, partial.name, info.archive_md5)
                partial.replace(archive)
            finally:
                partial.unlink(missing_ok=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise UserError(f"{info.archive_url} could not be downloaded to {folder} ({error})") from error


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Bounds every wait for a host; torchvision itself would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _batches(info: DatasetFacts) -> tuple[tuple[str, str], ...]:
    return (*info.train_batches, *info.test_batches, info.meta_batch)


def _check_md5(data: bytes, expected: str, where: str) -> None:
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != expected:
        raise UserError(
            f"{where} is not the published file (its MD5 differs): delete it and get it again with: "
            "resnet-bench data prepare"
        )


class _BatchUnpickler(pickle.Unpickler):
    """Builds plain containers and NumPy arrays, and refuses to import anything else."""

    _RECONSTRUCT = np.empty(0).__reduce__()[0]
    _ALLOWED: dict[tuple[str, str], Any] = {  # noqa: RUF012 - a constant of the class
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return self._ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}") from None


def _unpickle(data: bytes, where: str) -> dict[str, Any]:
    try:
        batch = _BatchUnpickler(io.BytesIO(data), encoding="latin1").load()
    # A pickle is a program: a broken one may raise anything.
    except Exception as error:
        raise UserError(f"{where} is not a batch of CIFAR and was not loaded ({error})") from error
    if not isinstance(batch, dict):
        raise UserError(f"{where} is not a batch of CIFAR: it holds a {type(batch).__name__}")
    return batch
