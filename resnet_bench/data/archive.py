"""CIFAR as published: the Python archive, packed or extracted, laid out as torchvision leaves it."""

import hashlib
import http.client
import io
import pickle  # only behind a checksum, and with an unpickler that imports nothing  # nosec B403
import socket
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from filelock import FileLock

from resnet_bench.base.errors import UserError
from resnet_bench.data.content import Content, Progress, SplitArrays, check_complete
from resnet_bench.data.decode import check_not_a_pointer
from resnet_bench.recipe.datasets import DatasetFacts

ARCHIVE = "torchvision archive"
"""What a dataset names as its source that was read from the published archive."""

_DOWNLOAD_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class ArchiveFacts:
    """The published Python archive of a dataset; checksums and file names are those that torchvision uses.

    Attributes:
        url: Address of the archive.
        md5: Checksum of the archive that torchvision states.
        sha256: SHA-256 of the same file, as Keras and TensorFlow Datasets state it.
        folder: The folder inside the archive.
        train_batches: Pickled training batches inside that folder, each with its MD5.
        test_batches: The same for the test images.
        meta_batch: The pickled list of class names, with its MD5.
        meta_key: Key of the class names in `meta_batch`.
        label_key: Key of the labels in a batch.
    """

    url: str
    md5: str
    sha256: str
    folder: str
    train_batches: tuple[tuple[str, str], ...]
    test_batches: tuple[tuple[str, str], ...]
    meta_batch: tuple[str, str]
    meta_key: str
    label_key: str

    @property
    def filename(self) -> str:
        """File name of the archive, the last part of its address."""
        return self.url.rpartition("/")[2]

    @property
    def batches(self) -> tuple[tuple[str, str], ...]:
        """Every file that is read, with its MD5."""
        return (*self.train_batches, *self.test_batches, self.meta_batch)


ARCHIVES: Mapping[str, ArchiveFacts] = {
    "cifar10": ArchiveFacts(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        folder="cifar-10-batches-py",
        train_batches=(
            ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
            ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
            ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
            ("data_batch_4", "634d18415352ddfa80567beed471001a"),
            ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
        ),
        test_batches=(("test_batch", "40351d587109b95175f43aff81a1287e"),),
        meta_batch=("batches.meta", "5ff9c542aee3614f3951f8cda6e48888"),
        meta_key="label_names",
        label_key="labels",
    ),
    "cifar100": ArchiveFacts(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        folder="cifar-100-python",
        train_batches=(("train", "16019d7e3df5f24257cddd939b257f8d"),),
        test_batches=(("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
        meta_batch=("meta", "7973b15100ade9c7d40fb424638fde48"),
        meta_key="fine_label_names",
        label_key="fine_labels",
    ),
}


@dataclass(frozen=True)
class ArchiveSource:
    """The archive itself, or the folder that was extracted from it.

    Attributes:
        facts: The dataset.
        location: The archive file, or the extracted folder.
        archive: The published archive.
    """

    facts: DatasetFacts
    location: Path
    archive: ArchiveFacts
    kind = ARCHIVE

    def files(self) -> list[Path]:
        """List every file that is read."""
        if self.location.is_file():
            return [self.location]
        return [self.location / name for name, _ in self.archive.batches]

    def read(self, progress: Progress) -> Content:
        """Verify all checksums, then unpickle with nothing allowed but what the batches contain.

        Raises:
            UserError: A checksum differs, a file is missing, or a batch contains something else.
        """
        progress(f"verifying and reading {self.location}")
        read = self._read_packed if self.location.is_file() else self._read_extracted
        batches = {name: unpickle_batch(data, f"{name} of {self.location}") for name, data in read().items()}
        self._check_class_names(batches[self.archive.meta_batch[0]])
        return Content(
            self._split("train", [batches[name] for name, _ in self.archive.train_batches]),
            self._split("test", [batches[name] for name, _ in self.archive.test_batches]),
        )

    def place(self, split_name: str, row: int) -> str:
        """Name an image by its index in the published split."""
        return f"image {row} of the {'training' if split_name == 'train' else split_name} set"

    def _read_packed(self) -> dict[str, bytes]:
        """Read the batches' bytes, without writing a file."""
        check_not_a_pointer(self.location)
        is_compressed = self.location.suffix == ".gz"
        with self.location.open("rb") as file:
            # Browsers decompress the archive; its batches have checksums, too.
            if is_compressed and hashlib.file_digest(file, "sha256").hexdigest() != self.archive.sha256:
                raise UserError(
                    f"{self.location} is not the published archive (its SHA-256 differs): delete it and download "
                    "it again with: resnet-bench data prepare"
                )
            file.seek(0)
            try:
                with tarfile.open(fileobj=file, mode="r:gz" if is_compressed else "r:") as archive:
                    return self._members(archive)
            except tarfile.TarError as error:
                raise UserError(f"{self.location} cannot be unpacked ({error})") from error

    def _members(self, archive: tarfile.TarFile) -> dict[str, bytes]:
        checksums = dict(self.archive.batches)
        found: dict[str, bytes] = {}
        for member in archive:
            path = PurePosixPath(member.name)
            # Nothing is written here, but anyone who extracts this archive by other means would be attacked.
            if path.is_absolute() or ".." in path.parts or not (member.isreg() or member.isdir()):
                raise UserError(f"{self.location} contains {member.name!r}, which no archive of CIFAR does")
            file = archive.extractfile(member)
            if file is not None and str(path.parent) == self.archive.folder and path.name in checksums:
                found[path.name] = file.read()
        for name, checksum in checksums.items():
            if name not in found:
                raise UserError(f"{self.location} lacks {self.archive.folder}/{name}")
            _check_md5(found[name], checksum, f"{name} of {self.location}")
        return found

    def _read_extracted(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for name, checksum in self.archive.batches:
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
        if tuple(meta.get(self.archive.meta_key, ())) != self.facts.class_names:
            raise UserError(f"{self.location} names other classes than those of {self.facts.name}")

    def _split(self, split_name: str, batches: list[dict[str, Any]]) -> SplitArrays:
        size = self.facts.image_size
        images = []
        labels = []
        for batch in batches:
            pixels, batch_labels = batch.get("data"), np.asarray(batch.get(self.archive.label_key))
            if (
                not isinstance(pixels, np.ndarray)
                or pixels.dtype != np.uint8
                or pixels.shape != (len(pixels), 3 * size * size)
                or batch_labels.shape != pixels.shape[:1]
                or batch_labels.dtype.kind != "i"
            ):
                raise UserError(f"{self.location} contains a {split_name} batch that is not laid out as CIFAR's are")
            wrong = np.flatnonzero((batch_labels < 0) | (batch_labels >= self.facts.num_classes))
            if wrong.size:
                raise UserError(
                    f"{self.location} has label {batch_labels[wrong[0]]} in row {wrong[0]} of a {split_name} "
                    f"batch, and labels of {self.facts.name} lie below {self.facts.num_classes}"
                )
            images.append(pixels.reshape(-1, 3, size, size))
            labels.append(batch_labels.astype(np.int64))
        split = SplitArrays(np.concatenate(images), np.concatenate(labels))
        check_complete(self.facts, split_name, len(split.images), str(self.location))
        return split


def find_archive(facts: DatasetFacts, folder: Path, archive: ArchiveFacts | None = None) -> ArchiveSource | None:
    """Find the archive of a dataset: in a folder or its subfolder of the dataset's name, or the given path itself.

    An extracted folder with all its files comes before the packed archive, as in torchvision.

    Args:
        facts: The dataset.
        folder: The data folder, the extracted folder, or the archive file.
        archive: The published archive; by default that of the dataset's name.
    """
    archive = archive or ARCHIVES.get(facts.name)
    if archive is None:
        return None
    packed = (archive.filename, archive.filename.removesuffix(".gz"))
    if folder.name in packed and folder.is_file():
        return ArchiveSource(facts, folder, archive)
    incomplete = None
    for root in (folder, folder / facts.name, *([folder.parent] if folder.name == archive.folder else [])):
        extracted = ArchiveSource(facts, root / archive.folder, archive)
        if extracted.location.is_dir():
            if all(path.is_file() for path in extracted.files()):
                return extracted
            incomplete = extracted
        for name in packed:
            if (root / name).is_file():
                return ArchiveSource(facts, root / name, archive)
    return incomplete


def download_archive(archive: ArchiveFacts, folder: Path, progress: Progress) -> None:
    """Download the archive into a folder through torchvision, which shows a progress bar.

    The file appears under its name when it is complete and verified. Of several processes one downloads.

    Raises:
        UserError: The download failed; the message says why.
    """
    from torchvision.datasets.utils import check_integrity, download_url

    file = folder / archive.filename
    partial = file.with_name(f"{file.name}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_name(f".{file.name}.lock")), _socket_timeout(_DOWNLOAD_TIMEOUT_SECONDS):
            if check_integrity(file, archive.md5):
                return
            progress(f"downloading {archive.url} to {file}")
            try:
                download_url(archive.url, folder, partial.name, archive.md5)
                partial.replace(file)
            finally:
                partial.unlink(missing_ok=True)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise UserError(f"{archive.url} could not be downloaded to {folder} ({error})") from error


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Bound every wait for a host; torchvision itself would wait forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _check_md5(data: bytes, expected: str, where: str) -> None:
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != expected:
        raise UserError(
            f"{where} is not the published file (its MD5 differs): delete it and get it again with: "
            "resnet-bench data prepare"
        )


class _BatchUnpickler(pickle.Unpickler):
    """Builds plain containers and NumPy arrays, and imports nothing else."""

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


def unpickle_batch(data: bytes, where: str) -> dict[str, Any]:
    """Load a batch whose checksum is known to be the published one."""
    try:
        batch = _BatchUnpickler(io.BytesIO(data), encoding="latin1").load()
    # A pickle is a program: a broken one may raise anything.
    except Exception as error:
        raise UserError(f"{where} is not a batch of CIFAR and was not loaded ({error})") from error
    if not isinstance(batch, dict):
        raise UserError(f"{where} is not a batch of CIFAR: it contains a {type(batch).__name__}")
    return batch
