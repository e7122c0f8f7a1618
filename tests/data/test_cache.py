import dataclasses
import errno
import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from resnet_bench.data import cache
from resnet_bench.data.cache import CacheEntry, CacheMiss
from resnet_bench.data.content import Content
from resnet_bench.data.dataset import Dataset, ImageLocation, load
from resnet_bench.data.parquet import ParquetSource
from resnet_bench.data.sources import find_sources
from resnet_bench.recipe.datasets import DatasetFacts
from tests.data import builders

Load = Callable[..., Dataset]


@pytest.fixture
def folder(info: DatasetFacts, content: Content, tmp_path: Path) -> Path:
    """A data folder with Parquet files."""
    builders.write_parquet(tmp_path / "data" / "cifar10", info, content)
    return tmp_path / "data"


def entry_of(info: DatasetFacts, folder: Path) -> CacheEntry:
    source = next(find_sources(info, folder.resolve()))
    return CacheEntry.of(source, folder.resolve() / ".resnet-bench-cache")


def state_of(entry: CacheEntry) -> str:
    """The fingerprint of an entry that can be read, or why it cannot."""
    try:
        return entry.read()[1]
    except CacheMiss as miss:
        return miss.state


def decodings(messages: list[str]) -> int:
    return sum(message.startswith("decoding cifar10 from") for message in messages)


def assert_equal(dataset: Dataset, other: Dataset) -> None:
    assert dataset.fingerprint == other.fingerprint
    for split, expected in ((dataset.train, other.train), (dataset.test, other.test)):
        assert torch.equal(split.images, expected.images)
        assert torch.equal(split.labels, expected.labels)
        assert split.rows is not None
        assert expected.rows is not None
        assert torch.equal(split.rows, expected.rows)


def test_images_are_decoded_once(info: DatasetFacts, folder: Path, load_small: Load, messages: list[str]) -> None:
    first = load_small(info, folder)
    second = load_small(info, folder)
    assert decodings(messages) == 1
    assert_equal(first, second)
    assert second.source == "parquet"


@pytest.mark.parametrize("change", ["touched", "rewritten", "added"])
def test_changed_source_is_decoded_again(
    change: str, info: DatasetFacts, content: Content, folder: Path, load_small: Load, messages: list[str]
) -> None:
    first = load_small(info, folder)
    if change == "touched":
        os.utime(folder / "cifar10" / "test-00000-of-00001.parquet", ns=(0, 0))
    elif change == "rewritten":
        builders.write_parquet(folder / "cifar10", info, builders.random_content(info, seed=1))
    else:
        (folder / "cifar10" / "train-00002-of-00003.parquet").write_bytes(
            (folder / "cifar10" / "train-00000-of-00002.parquet").read_bytes()
        )
        info = dataclasses.replace(info, train_size=90)
    second = load_small(info, folder)
    assert decodings(messages) == 2
    assert any("outdated" in message for message in messages)
    assert (second.fingerprint == first.fingerprint) == (change == "touched")


def test_writing_into_a_loaded_dataset_leaves_the_cache_alone(
    info: DatasetFacts, folder: Path, load_small: Load
) -> None:
    first = load_small(info, folder)
    before = first.train.images.clone()
    first.train.images.zero_()
    assert torch.equal(load_small(info, folder).train.images, before)


@pytest.mark.parametrize(
    "file", ["train-images", "train-labels", "train-rows", "test-images", "test-labels", "test-rows"]
)
@pytest.mark.parametrize("damage", ["flipped", "shortened", "deleted"])
def test_damaged_array_is_noticed_and_built_again(
    file: str, damage: str, info: DatasetFacts, folder: Path, load_small: Load, messages: list[str]
) -> None:
    first = load_small(info, folder)
    # The arrays of `first` are the files themselves, so that what damages one changes the other.
    expected = dataclasses.replace(
        first, train=first.train.take(np.arange(len(first.train))), test=first.test.take(np.arange(len(first.test)))
    )
    path = entry_of(info, folder).folder / f"{file}.bin"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 3] ^= 0x10
        path.write_bytes(data)
    elif damage == "shortened":
        replacement = path.with_suffix(".new")
        replacement.write_bytes(data[:-1])
        replacement.replace(path)
    else:
        path.unlink()
    second = load_small(info, folder)
    assert_equal(second, expected)
    assert decodings(messages) == 2
    assert any("damaged" in message for message in messages)
    load_small(info, folder)
    assert decodings(messages) == 2


def test_no_damage_to_the_manifest_goes_unnoticed(info: DatasetFacts, folder: Path, load_small: Load) -> None:
    expected = load_small(info, folder).fingerprint
    entry = entry_of(info, folder)
    path = entry.folder / "manifest.json"
    intact = path.read_bytes()
    damaged = [intact[:length] for length in range(0, len(intact), 5)]
    damaged += [intact[:i] + bytes([intact[i] ^ 1 << i % 8]) + intact[i + 1 :] for i in range(0, len(intact), 2)]
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        state = state_of(entry)
        # A flip in the white space changes nothing.
        assert state in ("damaged", expected)
        refused += state == "damaged"
    assert refused > 0.8 * len(damaged)


def test_read_only_data_folder_uses_the_cache_of_the_user(
    info: DatasetFacts, folder: Path, load_small: Load, messages: list[str], user_cache_folder: Path
) -> None:
    folder.chmod(0o555)
    load_small(info, folder)
    load_small(info, folder)
    folder.chmod(0o755)
    assert decodings(messages) == 1
    assert list(user_cache_folder.glob("cifar10-*/manifest.json"))
    assert not (folder / ".resnet-bench-cache").exists()


def test_images_stay_in_memory_where_no_cache_can_be_kept(
    info: DatasetFacts, folder: Path, load_small: Load, messages: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    dataset = load_small(info, folder, cache_folder=tmp_path / "file")
    assert_equal(dataset, load_small(info, folder))
    assert any("cannot be kept" in message for message in messages)


# --- faults ---------------------------------------------------------------------------------------------------------


class FullDisk:
    """A file of which half a write arrives."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, data: memoryview) -> None:
        self.file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@contextmanager
def fault(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fails the given one of all writes, fsyncs and renames; the list has the ones that were reached."""
    reached: list[str] = []
    open_path, replace, fsync = Path.open, Path.replace, os.fsync

    def reach(name: str) -> bool:
        reached.append(name)
        return len(reached) == number

    @contextmanager
    def faulty_open(path: Path, mode: str = "r", **options: Any) -> Iterator[Any]:
        with open_path(path, mode, **options) as file:
            yield FullDisk(file) if mode == "wb" and reach("write") else file

    def faulty_replace(path: Path, target: Path) -> Path:
        if reach("replace"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return replace(path, target)

    def faulty_fsync(descriptor: int) -> None:
        if reach("fsync"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", faulty_open)
        patch.setattr(Path, "replace", faulty_replace)
        patch.setattr(os, "fsync", faulty_fsync)
        yield reached


def test_every_write_fault_leaves_no_entry_or_a_whole_one(
    info: DatasetFacts, folder: Path, load_small: Load, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_small(info, folder, cache_folder=folder / "elsewhere")
    number = 0
    while True:
        number += 1
        entry = entry_of(info, folder)
        for path in entry.folder.glob("*"):
            path.unlink()
        with fault(number, monkeypatch) as reached:
            assert_equal(load_small(info, folder), expected)
        if len(reached) < number:
            break
        assert "cannot be kept" in messages[-2]
        assert state_of(entry) in ("missing", expected.fingerprint)
        assert_equal(load_small(info, folder), expected)
        assert not list(entry.folder.glob(".*"))
    # Seven files, each written, synchronized, renamed, and synchronized with its folder.
    assert number - 1 == 28


def load_slowly(info: DatasetFacts, folder: Path, go_on: Event, results: Any) -> None:
    """Runs in another process."""
    messages: list[str] = []
    read = ParquetSource.read

    def slow_read(source: ParquetSource, progress: Any) -> Content:
        results.put("reading")
        assert go_on.wait(600)
        return read(source, progress)

    ParquetSource.read = slow_read  # type: ignore[method-assign]
    dataset = load(info, ImageLocation(folder), messages.append)
    results.put((dataset.fingerprint, int(dataset.train.images.sum(dtype=torch.int64)), messages))


@pytest.fixture
def decoding(info: DatasetFacts, folder: Path) -> Iterator[tuple[BaseProcess, Event, Any]]:
    """Another process that has begun to decode, and ends it when the event is set."""
    context = multiprocessing.get_context("spawn")
    go_on, results = context.Event(), context.Queue()
    process = context.Process(target=load_slowly, args=(info, folder, go_on, results))
    process.start()
    try:
        assert results.get(timeout=300) == "reading"
        yield process, go_on, results
    finally:
        process.kill()
        process.join()


def test_of_two_processes_one_decodes_and_the_other_waits(
    info: DatasetFacts, content: Content, folder: Path, decoding: tuple[BaseProcess, Event, Any]
) -> None:
    process, go_on, results = decoding
    messages: list[str] = []

    def say(message: str) -> None:
        messages.append(message)
        if "waiting" in message:
            go_on.set()

    dataset = load(info, ImageLocation(folder), say)
    fingerprint, total, other_messages = results.get(timeout=300)
    process.join()
    assert process.exitcode == 0
    assert dataset.fingerprint == fingerprint
    assert int(dataset.train.images.sum(dtype=torch.int64)) == total == int(content.train.images.sum(dtype="int64"))
    assert (decodings(messages), decodings(other_messages)) == (0, 1)
    assert go_on.is_set()


@pytest.mark.slow
def test_a_killed_process_holds_no_one_up(
    info: DatasetFacts, folder: Path, load_small: Load, decoding: tuple[BaseProcess, Event, Any]
) -> None:
    process, _, _ = decoding
    assert (entry_of(info, folder).folder.with_suffix(".lock")).exists()
    process.kill()
    process.join()
    assert len(load_small(info, folder).train) == 60


def test_source_that_changes_while_it_is_read_is_decoded_again(
    info: DatasetFacts, folder: Path, load_small: Load, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ParquetSource.read

    def read_and_replace(source: ParquetSource, progress: Any) -> Content:
        content = read(source, progress)
        builders.write_parquet(folder / "cifar10", info, builders.random_content(info, seed=1))
        return content

    with monkeypatch.context() as patch:
        patch.setattr(ParquetSource, "read", read_and_replace)
        old = load_small(info, folder)
    assert load_small(info, folder).fingerprint != old.fingerprint
    assert decodings(messages) == 2


def test_leftovers_of_a_killed_process_are_cleared(info: DatasetFacts, folder: Path, load_small: Load) -> None:
    entry = entry_of(info, folder)
    entry.folder.mkdir(parents=True)
    (entry.folder / ".train-images.bin.unfinished").write_bytes(b"half")
    (entry.folder / "train-images.bin").write_bytes(b"no manifest yet")
    load_small(info, folder)
    assert entry.read()
    assert not list(entry.folder.glob(".*"))


def test_entry_of_another_format_is_built_again(
    info: DatasetFacts, folder: Path, load_small: Load, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(cache, "FORMAT", 0)
        load_small(info, folder)
    load_small(info, folder)
    assert decodings(messages) == 2


# --- where entries are ----------------------------------------------------------------------------------------------


def test_a_renamed_data_folder_keeps_its_entry(
    info: DatasetFacts, folder: Path, load_small: Load, messages: list[str]
) -> None:
    first = load_small(info, folder)
    renamed = folder.rename(folder.with_name("renamed"))
    assert load_small(info, renamed).fingerprint == first.fingerprint
    assert decodings(messages) == 1


def test_an_old_copy_is_noticed_and_its_removal_offered(
    info: DatasetFacts, folder: Path, load_small: Load, messages: list[str], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    load_small(info, folder, cache_folder=elsewhere)
    (old,) = elsewhere.glob("cifar10-*/")
    load_small(info, folder.rename(folder.with_name("renamed")), cache_folder=elsewhere)
    (message,) = (message for message in messages if "nothing reads" in message)
    assert f"of {folder.resolve()}/cifar10" in message
    assert message.endswith(f"rm -r {old.resolve()}")


def test_a_copy_of_an_earlier_version_is_noticed(
    info: DatasetFacts, folder: Path, load_small: Load, messages: list[str]
) -> None:
    load_small(info, folder)
    entry = entry_of(info, folder)
    old = entry.folder.with_name("cifar10-0123456789ab")
    entry.folder.rename(old)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "FORMAT", 3)
        load_small(info, folder)
    assert any("of an earlier version, which nothing reads" in message for message in messages)


def test_caches_say_that_they_are_caches(info: DatasetFacts, folder: Path, load_small: Load) -> None:
    load_small(info, folder)
    kept = folder / ".resnet-bench-cache"
    assert (kept / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")
    assert (kept / ".gitignore").read_text() == "*\n"


def test_a_data_folder_of_another_user_uses_the_cache_of_the_user(
    info: DatasetFacts,
    folder: Path,
    load_small: Load,
    messages: list[str],
    user_cache_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for _ in range(2):
        load_small(info, folder)
    assert decodings(messages) == 1
    assert list(user_cache_folder.glob("cifar10-*/manifest.json"))
    assert not (folder / ".resnet-bench-cache").exists()
