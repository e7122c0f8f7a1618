"""Changes files at random, by the million if need be, and looks at what their readers make of them.

Each format has a reader's promise: what comes out is what the file means, or one clear error, within a second; never
another exception, and nothing that a checksum should have kept out.

    RESNET_BENCH_MUTATIONS=1000000 python -m tests.reliability.mutations
    python -m tests.reliability.mutations --seconds 600 --only png checkpoint

Prints a JSON object a format, of what was done with it. A mutation that breaks a promise is written to a file; the
exit status is then 1.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnet_bench.base.errors import UserError
from resnet_bench.data.cache import CacheEntry, CacheMiss
from resnet_bench.data.content import in_canonical_order
from resnet_bench.data.decode import decode_image, strict_decoding
from resnet_bench.data.sources import find_sources
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.changes import override, parse_assignments
from resnet_bench.recipe.files import load_benchmark, load_benchmark_file
from resnet_bench.reporting import reading
from resnet_bench.running.run_folder import RunFolder
from resnet_bench.tracking.cursor import CURSOR, Cursor
from resnet_bench.tracking.journal import Damage, Journal, metrics_record, read
from resnet_bench.tracking.store import Store
from resnet_bench.training import checkpoint
from resnet_bench.tuning.plan import load_study_file
from tests.data import builders
from tests.reliability import tiny

REPOSITORY = Path(__file__).resolve().parents[2]
MUTATIONS = int(os.environ.get("RESNET_BENCH_MUTATIONS", "0"))
"""Of each format; 0 for as many as the tier of the tests has time for."""
SECONDS = 1.0
"""What a reader may take for a file, of the processor's time, which other work on the machine does not lengthen."""

IMAGE_FORMATS = ("png", "webp", "jpeg", "bmp", "ppm")
TOKENS = (
    b"", b"\x00", b"\xff\xfe", b"\n", b'"', b'"""', b"[", b"]]", b"{", b"}", b"=", b".", b",", b"-1", b"nan", b"1e999",
    b"9" * 40, b"true", b"null", b"\\u0000", b"\xf0\x9f\x92\xa5", b"__proto__", b"../", b"0x", b"1979-05-27", b"[" * 99,
)  # fmt: skip

Promise = Callable[[bytes], bool]
"""Hands a file to its reader; whether it was refused. Asserts that it was done as promised."""


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        originals: Whole ones.
        promise: Its reader's.
        quick: Mutations for the quick tests; all formats together have about 10,000 in a few seconds.
        refused: At least this share of the mutations is refused; a reader that takes everything proves nothing.
    """

    originals: list[bytes]
    promise: Promise
    quick: int
    refused: float = 0.05


def mutated(original: bytes, random: np.random.Generator) -> bytes:
    """A file cut off somewhere, with bytes changed, a piece of it moved or doubled, or something put into it."""
    data = bytearray(original)
    if random.random() < 0.2:
        del data[random.integers(1, len(data)) :]
    if random.random() < 0.2:
        start, end = sorted(random.integers(0, len(data) + 1, 2))
        piece = bytes(data[start:end][:200])
        if random.random() < 0.5:
            del data[start : start + len(piece)]
        place = random.integers(0, len(data) + 1)
        data[place:place] = piece
    if random.random() < 0.3:
        place = random.integers(0, len(data) + 1)
        data[place : place + random.integers(0, 4)] = TOKENS[random.integers(len(TOKENS))]
    if data == original or (data and random.random() < 0.7):
        # In a short text so many changes would always be nonsense.
        most = min(5, 1 + len(data) // 50)
        for position in random.integers(0, len(data), random.integers(1, most + 1)):
            data[position] = random.integers(0, 256)
    return bytes(data)


def refusal(call: Callable[[], Any]) -> tuple[str, Any]:
    """The sentence that a call ends with, or what it gives; any other exception breaks the promise."""
    try:
        return "", call()
    except UserError as error:
        said = str(error)
    assert 10 < len(said) < 3000, said
    return said, None


# --- what is promised of each format ---------------------------------------------------------------


def _image(image_format: str, _: Path) -> Format:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32), dtype=np.uint8)

    def promise(data: bytes) -> bool:
        with strict_decoding():
            said, image = refusal(lambda: decode_image(data, 32, "row 7"))
        assert said.startswith("row 7 is") if image is None else image.shape == (32, 32, 3)
        return image is None

    return Format([builders.encode(pixels, image_format)], promise, quick=900)


def _benchmark(folder: Path) -> Format:
    path = folder / "mutated.toml"

    def promise(data: bytes) -> bool:
        path.write_bytes(data)
        said, benchmark = refusal(lambda: load_benchmark_file(path))
        assert said.startswith(str(path)) if benchmark is None else isinstance(benchmark, Benchmark)
        return benchmark is None

    originals = [file.read_bytes() for file in sorted((REPOSITORY / "benchmarks").glob("*.toml"))]
    return Format(originals, promise, quick=120)


def _study(folder: Path) -> Format:
    path = folder / "mutated.toml"

    def promise(data: bytes) -> bool:
        path.write_bytes(data)
        said, study = refusal(lambda: load_study_file(path))
        assert said.startswith(str(path)) or study is not None
        return study is None

    originals = [file.read_bytes() for file in sorted((REPOSITORY / "studies").glob("*.toml"))]
    return Format(originals, promise, quick=400)


def _parquet(folder: Path) -> Format:
    info = dataclasses.replace(builders.small_info(), train_size=20, test_size=10)
    builders.write_parquet(folder / "cifar10", info, builders.random_content(info))
    shard = folder / "cifar10" / "test-00000-of-00001.parquet"

    def promise(data: bytes) -> bool:
        shard.write_bytes(data)
        said, content = refusal(lambda: next(find_sources(info, folder)).read(lambda _: None))
        if content is None:
            assert "test-" in said, said
            return True
        # A flip in a pixel is a valid image: what comes out then has another fingerprint, which is said.
        assert content.test.images.shape == (10, 3, 32, 32)
        assert set(content.test.labels) <= set(range(10))
        return False

    return Format([shard.read_bytes()], promise, quick=100)


def _cache(folder: Path) -> Format:
    info = dataclasses.replace(builders.small_info(), train_size=20, test_size=10)
    builders.write_parquet(folder / "cifar10", info, builders.random_content(info))
    source = next(find_sources(info, folder))
    entry = CacheEntry.of(source, folder / "cache")
    with entry.lock():
        entry.write(in_canonical_order(source.read(lambda _: None)), entry.identity())
    expected = entry.read()[1]
    names = sorted(path.name for path in entry.folder.iterdir())
    whole = {name: (entry.folder / name).read_bytes() for name in names}
    turn = iter(range(10**12))

    def promise(data: bytes) -> bool:
        # The original handed in is the manifest; the arrays take their turns with their changes.
        name = names[next(turn) % len(names)]
        if not name.endswith(".json"):
            other = bytearray(whole[name])
            other[int.from_bytes(data[:4], "big") % len(other)] ^= 1 + len(data) % 255
            data = bytes(other)
        path = entry.folder / name
        # A new file, as the old one may be mapped into memory.
        path.unlink()
        path.write_bytes(data)
        try:
            fingerprint = entry.read()[1]
        except CacheMiss:
            fingerprint = None
        finally:
            path.unlink()
            path.write_bytes(whole[name])
        # What changes in the manifest's white space changes nothing.
        assert fingerprint in (None, expected)
        return fingerprint is None

    return Format([content for name, content in whole.items() if name.endswith(".json")], promise, quick=300)


def _small_checkpoint(folder: Path) -> tuple[Path, bytes]:
    path = folder / "last.pt"
    weights = {"weight": torch.arange(12.0).view(3, 4), "steps": torch.tensor(7)}
    checkpoint.save({"network": weights, "position": {"step": 7}, "fingerprint": "abc"}, path)
    return path, path.read_bytes()


def _checkpoint(folder: Path) -> Format:
    path, original = _small_checkpoint(folder)

    def promise(data: bytes) -> bool:
        path.write_bytes(data)
        said, state = refusal(lambda: checkpoint.load(path))
        assert said.startswith(str(path)) or data == original
        return state is None

    return Format([original], promise, quick=800, refused=0.99)


def _sealed_checkpoint(folder: Path) -> Format:
    """An attacker who changes a checkpoint can make the hash fit; it then holds other values, or is refused."""
    path, original = _small_checkpoint(folder)

    def promise(data: bytes) -> bool:
        path.write_bytes(data + hashlib.sha256(data).hexdigest().encode("ascii"))
        said, state = refusal(lambda: checkpoint.load(path))
        assert said.startswith(str(path)) or isinstance(state, dict)
        return state is None

    return Format([original[: -len(hashlib.sha256().hexdigest())]], promise, quick=500)


def _journal(folder: Path) -> Format:
    path = folder / "journal.jsonl"
    records = [metrics_record("step", 10 * i, {"step/loss": [0.5] * 10}, timestamp=i, seconds=1.0) for i in range(4)]
    journal = Journal.open(path)
    for record in records:
        journal.append(record)
    journal.close()
    original = path.read_bytes()

    def promise(data: bytes) -> bool:
        path.write_bytes(data)
        found = list(read(path, final=True))
        assert all(isinstance(entry, Damage) or entry.record in records for entry in found)
        return any(isinstance(entry, Damage) for entry in found)

    return Format([original], promise, quick=900)


def _cursor(folder: Path) -> Format:
    (folder / "journal.jsonl").write_bytes(b"x" * 1000)
    whole = Cursor("a" * 32, arrived=500, underway=700, deferred=(100,))
    whole.save(folder)
    original = (folder / CURSOR).read_bytes()

    def promise(data: bytes) -> bool:
        (folder / CURSOR).write_bytes(data)
        found = Cursor.load(folder)
        # Trusted, a damaged one would skip records that never arrived.
        assert found == (whole if data == original else Cursor(underway=1000)), data
        return found != whole

    return Format([original], promise, quick=600, refused=0.9)


def _run_state(folder: Path) -> Format:
    facts = tiny.facts()
    run = RunFolder.create(folder, facts)
    run.update(status="killed", run_id="a" * 32)
    run.release()
    path = run.path / "run.json"

    def promise(data: bytes) -> bool:
        path.write_bytes(data)
        found = RunFolder.acquire(folder, facts)
        found.release()
        if found.path != run.path:
            shutil.rmtree(found.path)
            return True
        assert json.loads(data)["identity"] == facts.identity
        return False

    return Format([path.read_bytes()], promise, quick=400)


def _report_table(folder: Path) -> Format:
    reference = next((REPOSITORY / "reports" / "reference").glob("*/runs.parquet")).parent
    for path in reference.glob("*.parquet"):
        (folder / path.name).write_bytes(path.read_bytes())

    def promise(data: bytes) -> bool:
        (folder / "runs.parquet").write_bytes(data)
        said, tables = refusal(lambda: reading.read_folder(folder))
        assert "runs.parquet" in said or tables is not None
        return tables is None

    return Format([(folder / "runs.parquet").read_bytes()], promise, quick=100)


def _assignment(_: Path) -> Format:
    recipe = load_benchmark("resnet18-step-decay").recipe

    def promise(data: bytes) -> bool:
        text = data.decode("utf-8", "replace")
        said, changed = refusal(lambda: override(recipe, parse_assignments([text]), where="--set"))
        assert said.startswith("--set") if changed is None else changed.fingerprint
        return changed is None

    originals = [b"optimizer.lr=0.1", b"training.batch_size=64", b"model.options={width=2}", b"schedule.milestones=[1]"]
    return Format(originals, promise, quick=500)


def _tracking_uri(folder: Path) -> Format:
    def promise(data: bytes) -> bool:
        text = data.decode("utf-8", "replace").replace("\x00", "0") or "x"
        said, store = refusal(lambda: Store.resolve(text, folder))
        assert len(said.splitlines()) <= 1
        assert store is None or store.redacted_uri
        return store is None

    originals = [
        b"sqlite:///mlflow.db", b"https://ann:secret@host:5000/path?token=secret", b"mlruns/mlflow.db",
        b"postgresql+psycopg://ann:secret@host:5432/db?sslmode=require", b"file:///tmp/mlruns",
    ]  # fmt: skip
    return Format(originals, promise, quick=1000)


FORMATS: dict[str, Callable[[Path], Format]] = {
    **{name: functools.partial(_image, name) for name in IMAGE_FORMATS},
    "benchmark": _benchmark,
    "study": _study,
    "parquet": _parquet,
    "data cache": _cache,
    "checkpoint": _checkpoint,
    "sealed checkpoint": _sealed_checkpoint,
    "journal": _journal,
    "position of a delivery": _cursor,
    "state of a run": _run_state,
    "table of a report": _report_table,
    "assignment": _assignment,
    "tracking URI": _tracking_uri,
}


def all_formats(folder: Path) -> dict[str, Format]:
    """Every format, with files in a separate folder."""
    made = {}
    for name, make in FORMATS.items():
        own = folder / name.replace(" ", "-")
        own.mkdir()
        made[name] = make(own)
    return made


# --- doing it --------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What was done with one format."""

    mutations: int = 0
    refused: int = 0
    slowest: float = 0.0
    """Processor seconds of the mutation that took longest."""

    def check(self, form: Format) -> None:
        """Assert that enough was refused, and nothing took long."""
        assert self.refused >= form.refused * self.mutations, self
        assert self.slowest < SECONDS, self


def mutate(name: str, form: Format, count: int, *, seconds: float = float("inf"), seed: int = 1) -> Tally:
    """Hand so many mutations to a format's reader, or as many as there is time for.

    Raises:
        AssertionError: A promise was broken; the mutation that broke it lies in a file, whose name is said.
    """
    random = np.random.default_rng([seed, *name.encode()])
    tally, began = Tally(), time.monotonic()
    while tally.mutations < count and time.monotonic() - began < seconds:
        data = mutated(form.originals[random.integers(len(form.originals))], random)
        try:
            started = time.process_time()
            tally.refused += form.promise(data)
            tally.slowest = max(tally.slowest, time.process_time() - started)
        except BaseException as error:
            kept = Path(tempfile.mkstemp(prefix="mutation-", suffix=f".{name.replace(' ', '-')}")[1])
            kept.write_bytes(data)
            error.add_note(f"a mutation of {name}, kept in {kept}")
            raise
        tally.mutations += 1
    return tally


def main() -> None:
    """Mutate every format, each for its share of the time, and print the tallies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after about this long")
    parser.add_argument("--only", nargs="*", help="formats; all by default")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # A reader that continues after damage warns of it each time.
    logging.getLogger("resnet_bench").setLevel(logging.ERROR)
    ends = time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory() as folder:
        formats = all_formats(Path(folder))
        left = [name for name in formats if not arguments.only or name in arguments.only]
        broken = 0
        while left:
            share = (ends - time.monotonic()) / len(left)
            name = left.pop(0)
            form, began = formats[name], time.process_time()
            try:
                tally = mutate(name, form, MUTATIONS or form.quick, seconds=share, seed=arguments.seed)
                tally.check(form)
            except Exception:
                traceback.print_exc()
                broken += 1
                continue
            rate = round(tally.mutations / (time.process_time() - began))
            row = {"format": name, **dataclasses.asdict(tally), "a processor second": rate}
            print(json.dumps(row), flush=True)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
