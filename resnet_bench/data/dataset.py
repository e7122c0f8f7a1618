"""A dataset by name: found, decoded, cached, verified."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import nearest
from resnet_bench.data.archive import ARCHIVES, ArchiveFacts, download_archive, find_archive
from resnet_bench.data.cache import CacheEntry, CacheMiss, CacheState, DataSource, default_cache_folder
from resnet_bench.data.class_folders import find_class_folders
from resnet_bench.data.content import Content, Progress, SplitArrays, fingerprint, in_canonical_order
from resnet_bench.data.generated import generate_content
from resnet_bench.data.parquet import find_parquet
from resnet_bench.recipe.datasets import DATASETS, DatasetFacts

GENERATED = "generated"
"""What a generated dataset names as its source."""


@dataclass(frozen=True)
class Split:
    """Images and labels on the CPU.

    Attributes:
        images: uint8 `[N, 3, H, W]`, RGB; perhaps mapped into memory from the cache.
        labels: int64 `[N]`.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: npt.NDArray[np.int64]) -> "Split":
        """A copy of the images and labels at some indices, in the order given."""
        chosen = torch.from_numpy(indices)
        return Split(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Dataset:
    """Training and test images, equal to the last bit whatever source they were read from.

    Images are sorted by the SHA-256 of their pixels: the first ones of a split are a fair sample of it.

    Attributes:
        name: Name in `DATASETS`.
        train: Training images.
        test: Test images.
        class_names: Names of the classes by label.
        source: "torchvision archive", "parquet", "image folder" or "generated".
        location: The file or folder that was read; how they were made for generated images.
        fingerprint: SHA-256 over name, shapes, images and labels, in hexadecimal.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    source: str
    location: str
    fingerprint: str

    @property
    def generated(self) -> bool:
        """Whether the images were made up; every number that comes of them must say so."""
        return self.source == GENERATED

    @property
    def official(self) -> bool:
        """Whether these are exactly the published images, all of them and unaltered."""
        return self.fingerprint == DATASETS[self.name].fingerprint


@dataclass(frozen=True)
class DataStatus:
    """What a data folder holds of a dataset.

    Attributes:
        name: Name in `DATASETS`.
        sources: Kind and location of every source found; the first one is used.
        cache: State of the decoded copy of the first source: "missing", "outdated" (the source has changed),
            "damaged" or "ready". The arrays' hashes are only compared when the dataset is loaded.
        cache_folder: Where that copy is or would be.
        fingerprint: Content fingerprint, known when the cache is ready.
    """

    name: str
    sources: tuple[tuple[str, str], ...]
    cache: CacheState
    cache_folder: str
    fingerprint: str | None

    @property
    def official(self) -> bool:
        """Whether the cached images are exactly the published ones."""
        return self.fingerprint == DATASETS[self.name].fingerprint


@dataclass(frozen=True)
class ImageLocation:
    """Where each process finds images.

    Attributes:
        folder: The data folder; it need not exist.
        allow_generated: Generate images where there are none.
        generated: Generate this many training and test images, whatever there is.
        download: Download the archive into the folder where no source is there.
    """

    folder: Path
    allow_generated: bool = False
    generated: tuple[int, int] | None = None
    download: bool = False


def load_images(name: str, images: ImageLocation, progress: Progress | None = None) -> Dataset:
    """Load a dataset from where its images are.

    Args:
        name: Name in `DATASETS`.
        images: Where to look.
        progress: Called with a line of text now and then.

    Raises:
        UserError: There are no images, or they are damaged.
    """
    if images.generated is not None:
        train, test = images.generated
        return generate_dataset(name, train_size=train, test_size=test, seed=0)
    return load_dataset(
        name,
        images.folder,
        download=images.download,
        allow_generated=images.allow_generated,
        progress=progress,
    )


def load_dataset(
    name: str,
    folder: Path,
    *,
    cache_folder: Path | None = None,
    download: bool = False,
    allow_generated: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Loads a dataset from the first source under a folder.

    In this order: the Python archive (`cifar-10-python.tar.gz` or `cifar-10-batches-py/`), Parquet in the hub's layout
    (`cifar10/train-*.parquet`, or in `cifar10/data/` or `cifar10/plain_text/`), and class folders
    (`cifar10/train/<class>/*.png`). A source that is there and damaged is an error: the next one is not tried.

    Args:
        name: Name in `DATASETS`.
        folder: The data folder; it need not exist.
        cache_folder: Where decoded images are kept; by default `.resnet-bench-cache` in the data folder, or
            `~/.cache/resnet-bench` if the data folder is read-only. Where neither can be written, nothing is kept.
        download: Download the archive into the folder if no source is there.
        allow_generated: Make images up if no source is there and the download was not asked for or failed. They come
            in the dataset's full size, 50,000 and 10,000, so that splits and epochs have the shape of the real ones.
        progress: Called with a line of text now and then, above all when images are generated.

    Returns:
        The dataset, which names the source that was used.

    Raises:
        UserError: The name is unknown, no source is there, or a source is damaged; the message says what to do.
    """
    return load(
        _info(name),
        folder,
        cache_folder=cache_folder,
        download=download,
        allow_generated=allow_generated,
        progress=progress or _say_nothing,
    )


def load(
    info: DatasetFacts,
    folder: Path,
    *,
    cache_folder: Path | None,
    download: bool,
    allow_generated: bool,
    progress: Progress,
    archive: ArchiveFacts | None = None,
) -> Dataset:
    """`load` for a dataset that need not be in `DATASETS`."""
    folder = folder.expanduser().resolve()
    source = next(find_sources(info, folder, archive), None)
    failure = ""
    archive = archive or ARCHIVES.get(info.name)
    if source is None and download and archive is not None:
        try:
            download_archive(archive, folder, progress)
            source = find_archive(info, folder, archive)
        except UserError as error:
            failure = f"{error}; "
    if source is not None:
        entry = CacheEntry.of(source, (cache_folder or default_cache_folder(folder)).expanduser().resolve())
        content, content_fingerprint = _cached_content(entry, progress)
        dataset = _dataset(info, content, content_fingerprint, source.kind, str(source.location))
        if dataset.fingerprint != info.fingerprint:
            progress(f"the images in {dataset.location} are not exactly the published ones of {info.name}")
        return dataset
    advice = f"{failure}there is no {info.name} in {folder}: {_how_to_get(info, can_download=not failure)}"
    if not allow_generated:
        raise UserError(advice)
    progress(f"GENERATED IMAGES are used in place of {info.name}, and no result counts: {advice}")
    return _generated(info, info.train_size, info.test_size, seed=0)


def dataset_status(folder: Path, *, cache_folder: Path | None = None) -> list[DataStatus]:
    """Says for each dataset what a folder holds of it; decodes nothing and writes nothing.

    Args:
        folder: The data folder; it need not exist.
        cache_folder: As in `load`.

    Raises:
        UserError: A file that must be opened to know what it is cannot be read.
    """
    folder = folder.expanduser().resolve()
    cache_folder = (cache_folder or default_cache_folder(folder)).expanduser().resolve()
    return [_status(info, folder, cache_folder) for info in DATASETS.values()]


def generate_dataset(name: str, *, train_size: int = 4096, test_size: int = 1024, seed: int = 0) -> Dataset:
    """Makes a dataset up: deterministic, learnable images with as many classes as the named dataset has.

    Args:
        name: Name in `DATASETS`.
        train_size: Number of training images.
        test_size: Number of test images.
        seed: Another seed gives other images.

    Raises:
        UserError: The name is unknown.
    """
    return _generated(_info(name), train_size, test_size, seed)


def find_sources(info: DatasetFacts, folder: Path, archive: ArchiveFacts | None = None) -> Iterator[DataSource]:
    """Every source of a dataset under a folder, in the order in which they are preferred."""
    found = find_archive(info, folder, archive)
    if found is not None:
        yield found
    finders: tuple[Callable[[DatasetFacts, Path], DataSource | None], ...] = (find_parquet, find_class_folders)
    for find in finders:
        if source := find(info, folder):
            yield source


def _info(name: str) -> DatasetFacts:
    if name in DATASETS:
        return DATASETS[name]
    near = nearest(name, DATASETS)
    suggestion = f"did you mean {near}? " if near else ""
    raise UserError(f"there is no dataset {name!r}: {suggestion}known ones are {', '.join(DATASETS)}")


def _cached_content(entry: CacheEntry, progress: Progress) -> tuple[Content, str]:
    """The content of a source and its fingerprint, from the cache if it is there and else into it."""
    try:
        return entry.read()
    except CacheMiss:
        pass
    lock = _acquire_lock(entry, progress)
    if lock is None:
        return _decoded(entry.source, progress)
    try:
        return _build(entry, progress)
    finally:
        lock.release()


def _acquire_lock(entry: CacheEntry, progress: Progress) -> FileLock | None:
    """The lock on an entry, or nothing where no cache can be kept."""
    try:
        lock = entry.lock()
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress(f"waiting for another process that is decoding {entry.source.info.name}")
            lock.acquire()
    except OSError as error:
        progress(f"the decoded images cannot be kept in {entry.folder.parent} ({error})")
        return None
    return lock


def _build(entry: CacheEntry, progress: Progress) -> tuple[Content, str]:
    """Reads an entry or makes it; the caller holds its lock."""
    try:
        return entry.read()
    except CacheMiss as miss:
        if miss.state != "missing":
            progress(f"the decoded images in {entry.folder} are {miss.state} and are made again")
    identity = entry.identity()
    content, content_fingerprint = _decoded(entry.source, progress)
    try:
        entry.write(content, identity)
        return entry.read()
    except (OSError, CacheMiss) as error:
        progress(f"the decoded images cannot be kept in {entry.folder} ({error})")
        return content, content_fingerprint


def _decoded(source: DataSource, progress: Progress) -> tuple[Content, str]:
    progress(f"decoding {source.info.name} from {source.location} ({source.kind})")
    try:
        train, test = source.read(progress)
    except OSError as error:
        raise UserError(f"{source.location} cannot be read ({error})") from error
    content = Content(in_canonical_order(train), in_canonical_order(test))
    return content, fingerprint(source.info.name, content)


def _generated(info: DatasetFacts, train_size: int, test_size: int, seed: int) -> Dataset:
    content = generate_content(info, train_size, test_size, seed)
    return _dataset(info, content, fingerprint(info.name, content), GENERATED, f"generated with seed {seed}")


def _dataset(info: DatasetFacts, content: Content, content_fingerprint: str, source: str, location: str) -> Dataset:
    return Dataset(
        name=info.name,
        train=_split(content.train),
        test=_split(content.test),
        class_names=info.class_names,
        source=source,
        location=location,
        fingerprint=content_fingerprint,
    )


def _split(arrays: SplitArrays) -> Split:
    return Split(torch.from_numpy(arrays.images), torch.from_numpy(arrays.labels))


def _status(info: DatasetFacts, folder: Path, cache_folder: Path) -> DataStatus:
    sources = list(find_sources(info, folder))
    state: CacheState = "missing"
    content_fingerprint = None
    if sources:
        entry = CacheEntry.of(sources[0], cache_folder)
        cache_folder = entry.folder
        try:
            content_fingerprint = entry.manifest()["fingerprint"]
            state = "ready"
        except CacheMiss as miss:
            state = miss.state
    return DataStatus(
        name=info.name,
        sources=tuple((source.kind, str(source.location)) for source in sources),
        cache=state,
        cache_folder=str(cache_folder),
        fingerprint=content_fingerprint,
    )


def _how_to_get(info: DatasetFacts, *, can_download: bool) -> str:
    places = (
        f"put {ARCHIVES[info.name].filename} there, or Parquet files ({info.name}/train-*.parquet and "
        f"{info.name}/test-*.parquet), or class folders ({info.name}/train/<class>/*.png and "
        f"{info.name}/test/<class>/*.png), or name the folder that has them with --data DIR"
    )
    return f"{places}, or download them with: resnet-bench data prepare" if can_download else places


def _say_nothing(_: str) -> None:
    """Stands in where nobody wants to know."""
