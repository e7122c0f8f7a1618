"""A dataset by name: found, decoded, cached, verified."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout

from resnet_bench.base import files
from resnet_bench.base.errors import UserError
from resnet_bench.base.text import plural
from resnet_bench.data.archive import ARCHIVE, ARCHIVES, ArchiveFacts, download_archive, find_archive
from resnet_bench.data.cache import CacheEntry, CacheMiss, CacheState, default_cache_folder
from resnet_bench.data.content import (
    Content,
    Progress,
    SplitArrays,
    count_shared_images,
    fingerprint,
    in_canonical_order,
)
from resnet_bench.data.generated import GENERATED, GeneratedSource
from resnet_bench.data.own import find_own
from resnet_bench.data.sources import DataSource, find_sources, how_to_get
from resnet_bench.recipe.dataset_files import dataset_facts, dataset_files, facts_of, load_dataset_file
from resnet_bench.recipe.datasets import DATASETS, DatasetFacts, is_published

_WORTH_CACHING = 10_000
"""Generated images; fewer are generated faster than they are read and verified."""


@dataclass(frozen=True)
class Split:
    """Images and labels on the CPU.

    Attributes:
        images: uint8 `[N, 3, H, W]`, RGB; perhaps mapped into memory from the cache.
        labels: int64 `[N]`.
        rows: Each image's index in the source's order, int64 `[N]`; None where that is not known.
    """

    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({len(self)} images of {' x '.join(map(str, self.images.shape[1:]))})"

    def take(self, indices: npt.NDArray[np.int64]) -> "Split":
        """Copy the images and labels at some indices, in the order given."""
        chosen = torch.from_numpy(indices)
        return Split(self.images[chosen], self.labels[chosen], None if self.rows is None else self.rows[chosen])

    def first(self, count: int) -> "Split":
        """Return the first images and labels, without a copy."""
        return Split(self.images[:count], self.labels[:count], None if self.rows is None else self.rows[:count])


@dataclass(frozen=True)
class Dataset:
    """Training and test images, equal to the last bit whatever source they were read from.

    Images are sorted by the SHA-256 of their pixels: the first ones of a split are a fair sample of it.

    Attributes:
        name: Name in `DATASETS`, or of a user's dataset.
        train: Training images.
        test: Test images.
        class_names: Names of the classes by label.
        source: "torchvision archive", "parquet", "image folder", "matlab", "numpy" or "generated".
        location: The file or folder that was read; how they were made for generated images.
        fingerprint: SHA-256 over name, shapes, images and labels, in hexadecimal.
        origin: What was read; None where that is not known.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    source: str
    location: str
    fingerprint: str
    origin: DataSource | None = field(default=None, repr=False)

    @property
    def generated(self) -> bool:
        """Whether the images are generated; every number that they give must say so."""
        return self.source == GENERATED

    @property
    def official(self) -> bool:
        """Whether these are exactly the published images of CIFAR, all of them and unaltered."""
        return is_published(self.name, self.fingerprint)

    @property
    def official_order(self) -> bool:
        """Whether the `rows` of the splits are the images' indices in the published dataset."""
        return self.source == ARCHIVE and self.train.rows is not None and self.test.rows is not None

    def place(self, split_name: Literal["train", "test"], index: int) -> str:
        """Name an image in its source, such as ``image 17 of the test set`` or its file.

        Args:
            split_name: The split of this dataset.
            index: Its index in that split.
        """
        split = self.train if split_name == "train" else self.test
        if self.origin is None or split.rows is None:
            return f"image {index} of {split_name}, sorted by content"
        return self.origin.place(split_name, int(split.rows[index]))


@dataclass(frozen=True)
class DataStatus:
    """What a data folder has of a dataset.

    Attributes:
        name: Name in `DATASETS`, or of a user's dataset.
        sources: Kind and location of every source found; the first one is used.
        cache: State of the decoded copy of the first source: "missing", "outdated" (the source has changed),
            "damaged" or "ready". The arrays' hashes are only compared when the dataset is loaded.
        cache_folder: Where that copy is or would be.
        fingerprint: Content fingerprint, known when the cache is ready.
        problem: Why your own dataset cannot be read.
    """

    name: str
    sources: tuple[tuple[str, str], ...]
    cache: CacheState
    cache_folder: str
    fingerprint: str | None
    problem: str | None = None


@dataclass(frozen=True)
class ImageLocation:
    """Where each process finds images.

    Attributes:
        folder: The data folder; it need not exist.
        allow_generated: Generate images where there are none, unless the folder was typed. They have the dataset's
            full size, so that splits and epochs have the shape of the real ones.
        generated: Generate this many training and test images, whatever there is.
        download: Download the archive into the folder where no source is there.
        typed: Whether the user named the folder: images that are not there are an error then, never replaced.
        cache_folder: Where decoded images are kept; by default `.resnet-bench-cache` in the data folder if it is the
            user's own, else the user's cache folder. Where neither can be written, nothing is kept.
    """

    folder: Path
    allow_generated: bool = False
    generated: tuple[int, int] | None = None
    download: bool = False
    typed: bool = False
    cache_folder: Path | None = None


def load_images(name: str, images: ImageLocation, progress: Progress | None = None) -> Dataset:
    """Load a dataset by name; see :func:`load`."""
    return load(dataset_facts(name), images, progress)


def load_dataset(
    name: str,
    folder: Path,
    *,
    cache_folder: Path | None = None,
    download: bool = False,
    allow_generated: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Load a dataset by name from a folder; see :func:`load` and :class:`ImageLocation`."""
    images = ImageLocation(folder, allow_generated, download=download, cache_folder=cache_folder)
    return load(dataset_facts(name), images, progress)


def load(
    facts: DatasetFacts, images: ImageLocation, progress: Progress | None = None, archive: ArchiveFacts | None = None
) -> Dataset:
    """Load a dataset from the first source under a folder.

    In this order: the Python archive (`cifar-10-python.tar.gz` or `cifar-10-batches-py/`), Parquet in the layouts of
    the hub (such as `cifar10/train-*.parquet`) or of pandas (`cifar10/train.parquet`), and class folders
    (`cifar10/train/<class>/*.png`). A source that is there and damaged is an error: the next one is not tried. The
    files of a user's dataset are where its description says, and are never replaced by generated images.

    Args:
        facts: The dataset.
        images: Where to look.
        progress: Called with a line of text now and then, above all when images are generated.
        archive: The published archive; by default that of the dataset's name.

    Returns:
        The dataset, which names the source that was used.

    Raises:
        UserError: No source is there, or a source is damaged; the message says what to do.
    """
    progress = progress or (lambda _: None)
    if images.generated is not None:
        return _load(GeneratedSource(facts, *images.generated, seed=0), images, progress)
    folder = _resolved(images.folder)
    failure = ""
    if not facts.built_in:
        with _readable(folder):
            return _load(find_own(facts, folder), images, progress)
    with _readable(folder):
        source = next(find_sources(facts, folder, archive), None)
        archive = archive or ARCHIVES.get(facts.name)
        if source is None and images.download and archive is not None:
            try:
                download_archive(archive, folder, progress)
                source = find_archive(facts, folder, archive)
            except UserError as error:
                failure = f"{error}; "
        if source is not None:
            return _load(source, images, progress)
        advice = f"{failure}there is no {facts.name} in {folder}: {how_to_get(facts, folder, can_download=not failure)}"
    if not images.allow_generated or images.typed:
        raise UserError(advice)
    progress(f"GENERATED IMAGES are used in place of {facts.name}, and no result counts: {advice}")
    return _load(GeneratedSource(facts, facts.train_size, facts.test_size, seed=0), images, progress)


def dataset_status(folder: Path, *, cache_folder: Path | None = None) -> list[DataStatus]:
    """Describe for each dataset what a folder has of it; nothing is decoded or written.

    Args:
        folder: The data folder; it need not exist.
        cache_folder: As in `load`.

    Raises:
        UserError: A file that must be opened to know what it is cannot be read.
    """
    folder = _resolved(folder)
    with _readable(folder):
        cache_folder = _resolved(cache_folder or default_cache_folder(folder))
        built_in = [_status(facts, folder, cache_folder) for facts in DATASETS.values()]
        return [*built_in, *(_own_status(path, folder, cache_folder) for path in dataset_files().values())]


def generate_dataset(
    dataset: str | DatasetFacts, *, train_size: int = 4096, test_size: int = 1024, seed: int = 0
) -> Dataset:
    """Generate a dataset: deterministic, learnable images with as many classes as the named dataset has.

    Args:
        dataset: Its facts, or its name.
        train_size: Number of training images.
        test_size: Number of test images.
        seed: Another seed gives other images.

    Raises:
        UserError: The name is unknown.
    """
    facts = dataset_facts(dataset) if isinstance(dataset, str) else dataset
    source = GeneratedSource(facts, train_size, test_size, seed)
    return _dataset(source, *_decoded(source, lambda _: None))


def _resolved(folder: Path) -> Path:
    return files.expanded(folder).resolve()


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn the errors of a path that cannot be looked at into a sentence."""
    try:
        yield
    except OSError as error:
        name = str(error.filename or folder)
        shown = name if len(name) < 300 else f"{name[:100]}…"
        raise UserError(f"{shown}: cannot be read ({error.strerror or error})") from None


def _load(source: DataSource, images: ImageLocation, progress: Progress) -> Dataset:
    if isinstance(source, GeneratedSource):
        if source.train_size + source.test_size < _WORTH_CACHING:
            return _dataset(source, *_decoded(source, progress))
        # Every data folder without images shares them.
        cache_folder = images.cache_folder or files.cache_folder()
    else:
        cache_folder = images.cache_folder or default_cache_folder(_resolved(images.folder))
    dataset = _dataset(source, *_cached_content(CacheEntry.of(source, _resolved(cache_folder)), progress))
    if source.facts.built_in and not dataset.generated and dataset.fingerprint != source.facts.fingerprint:
        progress(
            f"ANOTHER DATASET: the images in {dataset.location} are not the published ones of {dataset.name}, so that "
            "no result from them is compared with a claim"
        )
    return dataset


def _cached_content(entry: CacheEntry, progress: Progress) -> tuple[Content, str]:
    """Read the content of a source and its fingerprint from the cache; build the entry if it is not there."""
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
    """Acquire the lock on an entry; None where no cache can be kept."""
    try:
        lock = entry.lock()
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress(f"waiting for another process that is decoding {entry.source.facts.name}")
            lock.acquire()
    except OSError as error:
        progress(f"the decoded images cannot be kept in {entry.folder.parent} ({error})")
        return None
    return lock


def _build(entry: CacheEntry, progress: Progress) -> tuple[Content, str]:
    """Read an entry or build it; the caller has its lock."""
    try:
        return entry.read()
    except CacheMiss as miss:
        if miss.state != "missing":
            progress(f"the decoded images in {entry.folder} are {miss.state} and are made again")
    identity = entry.identity()
    content, content_fingerprint = _decoded(entry.source, progress)
    try:
        entry.write(content, identity)
        for abandoned, place in entry.abandoned():
            progress(f"{abandoned} has decoded images of {place}, which nothing reads; remove it: rm -r {abandoned}")
        return entry.read()
    except (OSError, CacheMiss) as error:
        progress(f"the decoded images cannot be kept in {entry.folder} ({error})")
        return content, content_fingerprint


def _decoded(source: DataSource, progress: Progress) -> tuple[Content, str]:
    if not isinstance(source, GeneratedSource):
        progress(f"decoding {source.facts.name} from {source.location} ({source.kind})")
    try:
        content = in_canonical_order(source.read(progress))
    except OSError as error:
        raise UserError(f"{source.location} cannot be read ({error})") from error
    found = fingerprint(source.facts.name, content)
    published = is_published(source.facts.name, found)
    if not isinstance(source, GeneratedSource) and not published and (shared := count_shared_images(content)):
        progress(
            f"{source.location}: {shared:,} of {plural(len(content.test.images), 'test image')} "
            f"{'is' if shared == 1 else 'are'} among the training images too, so that their accuracy says little"
        )
    return content, found


def _dataset(source: DataSource, content: Content, content_fingerprint: str) -> Dataset:
    return Dataset(
        name=source.facts.name,
        train=_split(content.train),
        test=_split(content.test),
        class_names=source.facts.class_names,
        source=source.kind,
        location=str(source.location),
        fingerprint=content_fingerprint,
        origin=source,
    )


def _split(arrays: SplitArrays) -> Split:
    rows = None if arrays.rows is None else torch.from_numpy(arrays.rows)
    return Split(torch.from_numpy(arrays.images), torch.from_numpy(arrays.labels), rows)


def _own_status(path: Path, folder: Path, cache_folder: Path) -> DataStatus:
    try:
        file = load_dataset_file(path)
        return _status(facts_of(path.stem, file.description), folder, cache_folder)
    except UserError as error:
        return DataStatus(path.stem, (), "missing", str(cache_folder), None, str(error))


def _status(facts: DatasetFacts, folder: Path, cache_folder: Path) -> DataStatus:
    sources = list(find_sources(facts, folder)) if facts.built_in else [find_own(facts, folder)]
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
        name=facts.name,
        sources=tuple((source.kind, str(source.location)) for source in sources),
        cache=state,
        cache_folder=str(cache_folder),
        fingerprint=content_fingerprint,
    )
