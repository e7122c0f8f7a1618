"""Whatever a user or a damaged disk hands in, a clear error comes out, within a second, and nothing wrong is used."""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnet_bench import cli, registry
from resnet_bench.benchmark import override
from resnet_bench.data.cache import CacheEntry
from resnet_bench.data.dataset import find_sources, load_dataset
from resnet_bench.data.decode import decode_image, strict_decoding
from resnet_bench.errors import UserError
from resnet_bench.launch.run_folder import RunFolder, RunIdentity
from resnet_bench.tracking import Store
from resnet_bench.tracking.shipper import CURSOR, Cursor
from tests.data import builders

MUTATIONS = int(os.environ.get("RESNET_BENCH_MUTATIONS", "1000"))
"""Of each image format and of Parquet; a nightly run sets a million."""
SECONDS = 1.0

fuzzed = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


Outcome = TypeVar("Outcome")


def outcome_of(call: Callable[[], Outcome]) -> tuple[str, Outcome | None]:
    """What a call gives, or the sentence that it ends with; any other exception is the test's failure."""
    try:
        return "", call()
    except UserError as error:
        return str(error), None


# --- the command line ------------------------------------------------------------------------------

KEYS = st.one_of(st.sampled_from(sorted(registry.load("resnet18-step-decay").recipe.flat())), st.text(max_size=20))
VALUES = st.one_of(st.text(max_size=30), st.sampled_from(["nan", "1e999", "[" * 500, "{a={a={}}}", "0x", "-1", "true"]))


@fuzzed
@given(key=KEYS, value=VALUES, equals=st.sampled_from(["=", "==", " = ", ""]))
def test_what_is_set_is_a_recipe_or_a_sentence(key: str, value: str, equals: str) -> None:
    recipe = registry.load("resnet18-step-decay").recipe
    said, changed = outcome_of(lambda: override(recipe, cli._assignments([f"{key}{equals}{value}"]), where="--set"))
    assert said.startswith("--set") if changed is None else changed.fingerprint


# --- tracking URIs ---------------------------------------------------------------------------------

SECRET = "t0pSecret"
SCHEMES = [
    "http",
    "https",
    "HTTPS",
    "postgresql",
    "postgresql+psycopg",
    "mysql",
    "postgres",
    "ftp",
    "sqlite",
    "file",
    "",
]
URIS = st.one_of(
    st.text(max_size=40).filter(lambda text: SECRET not in text),
    st.builds(
        "{}{}{}{}{}{}{}".format,
        st.sampled_from(SCHEMES),
        st.sampled_from(["://", ":", ":/", ":///", "//", ""]),
        # A name without a password is no secret of a database, and is one of a server: a token.
        st.sampled_from(["ann:", ":", "ann@corp:"]),
        st.sampled_from([SECRET, f"{SECRET}%40x", f"a/{SECRET}", f"{SECRET}#", f"1/{SECRET}"]),
        st.sampled_from(["@host", "@[::1", "@host:5432", "@host:port", "@@host", "@"]),
        st.sampled_from(["", "/db", "/../../etc", "/\n", "/\\"]),
        st.sampled_from(["", f"?password={SECRET}", f"?sslmode=require&token={SECRET}", f"?PWD={SECRET}&a"]),
    ),
)


@fuzzed
@given(uri=URIS)
def test_a_tracking_uri_is_a_store_or_a_sentence_and_shows_no_secret(uri: str, tmp_path: Path) -> None:
    sentence, store = outcome_of(lambda: Store.resolve(uri or "x", tmp_path))
    assert SECRET not in sentence
    if store is None:
        assert len(sentence.splitlines()) == 1
        return
    if store.uri.startswith("sqlite:"):
        # A file has no password; what looks like one is its path.
        return
    said = [store.shown, repr(store), store.run_url("abc"), store.sentence(OSError(f"cannot reach {store.uri}"))]
    assert all(SECRET not in text for text in said), said
    assert store.uri.partition(":")[0] in {
        "sqlite", "http", "https", "databricks", "postgresql", "postgresql+psycopg", "postgresql+psycopg2", "mysql",
        "mysql+pymysql", "mssql",
    }  # fmt: skip


# --- images ----------------------------------------------------------------------------------------


def mutated(original: bytes, random: np.random.Generator) -> bytes:
    """A file cut off somewhere, or with some bytes of it changed."""
    data = bytearray(original)
    if random.random() < 0.3:
        del data[random.integers(1, len(data)) :]
    for position in random.integers(0, len(data), random.integers(1, 6)):
        data[position] = random.integers(0, 256)
    return bytes(data)


@pytest.mark.parametrize("image_format", ["png", "webp", "jpeg", "bmp", "ppm"])
def test_a_mutated_image_is_pixels_or_a_sentence(image_format: str) -> None:
    random = np.random.default_rng(1)
    original = builders.encode(random.integers(0, 256, (3, 32, 32), dtype=np.uint8), image_format)
    refused, slowest = 0, 0.0
    with strict_decoding():
        for _ in range(MUTATIONS):
            began = time.perf_counter()
            sentence, image = outcome_of(lambda: decode_image(mutated(original, random), 32, "row 7"))
            assert sentence.startswith("row 7 is") if image is None else image.shape == (32, 32, 3)
            refused += image is None
            slowest = max(slowest, time.perf_counter() - began)
    assert refused > MUTATIONS / 20
    assert slowest < SECONDS


def test_mutated_parquet_is_the_dataset_or_a_sentence_that_names_the_file(tmp_path: Path) -> None:
    """A flip in a pixel is a valid image: what comes out then is another fingerprint, which is said."""
    info = dataclasses.replace(builders.small_info(), train_size=20, test_size=10)
    content = builders.random_content(info)
    builders.write_parquet(tmp_path / "cifar10", info, content)
    shard = tmp_path / "cifar10" / "test-00000-of-00001.parquet"
    original, random = shard.read_bytes(), np.random.default_rng(2)
    named, slowest = 0, 0.0
    for _ in range(max(60, MUTATIONS // 20)):
        shard.write_bytes(mutated(original, random))
        began = time.perf_counter()
        sentence, read = outcome_of(lambda: next(find_sources(info, tmp_path)).read(lambda _: None))
        named += read is None
        if read is None:
            assert "test-" in sentence, sentence
        else:
            assert read.test.images.shape == (10, 3, 32, 32)
            assert set(read.test.labels) <= set(range(10))
        slowest = max(slowest, time.perf_counter() - began)
    assert named > 10
    assert slowest < SECONDS


# --- what the product wrote itself -----------------------------------------------------------------


def test_flipped_bits_in_the_data_cache_are_never_trained_on(tmp_path: Path) -> None:
    info = dataclasses.replace(builders.small_info(), train_size=20, test_size=10)
    builders.write_parquet(tmp_path / "cifar10", info, builders.random_content(info))

    def load() -> str:
        dataset = load_dataset(
            info, tmp_path, cache_folder=None, download=False, allow_generated=False, progress=said.append
        )
        return f"{dataset.fingerprint} {int(dataset.train.images.sum())} {int(dataset.test.labels.sum())}"

    said: list[str] = []
    expected = load()
    entry = CacheEntry.of(next(find_sources(info, tmp_path)), tmp_path / ".resnet-bench-cache")
    random = np.random.default_rng(3)
    files = sorted(path for path in entry.folder.iterdir())
    assert len(files) == 5
    rebuilt = 0
    for number in range(50):
        path = files[number % 5]
        data = bytearray(path.read_bytes())
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        # A new file, as the old one may be mapped into memory.
        path.unlink()
        path.write_bytes(data)
        said.clear()
        assert load() == expected
        rebuilt += any("decoding" in text for text in said)
    # A flip in the manifest's white space changes nothing.
    assert rebuilt > 40


@fuzzed
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=3))
def test_a_damaged_position_of_the_delivery_is_noticed(flips: list[tuple[int, int]], tmp_path: Path) -> None:
    """Trusted, it would skip records that never arrived."""
    (tmp_path / "journal.jsonl").write_bytes(b"x" * 1000)
    cursor = Cursor("a" * 32, arrived=500, underway=700, deferred=(100,))
    cursor.save(tmp_path)
    assert Cursor.load(tmp_path) == cursor
    data = bytearray((tmp_path / CURSOR).read_bytes())
    for position, mask in flips:
        data[position % len(data)] ^= mask
    if bytes(data) == (tmp_path / CURSOR).read_bytes():
        return
    (tmp_path / CURSOR).write_bytes(data)
    assert Cursor.load(tmp_path) == Cursor(underway=1000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["identity", "status", "x"]), inner),
    max_leaves=5,
)


@fuzzed
@given(content=st.one_of(JSON.map(lambda value: json.dumps(value).encode()), st.binary(max_size=50)))
def test_a_damaged_state_of_a_run_is_no_run(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True, exist_ok=True)
    (tmp_path / "runs" / "a" / "run.json").write_bytes(content)
    identity = RunIdentity("tiny", "full", 0, "f", "d", "run", "cpu fp32", "code")
    found: Any = RunFolder.find(tmp_path / "runs", identity)
    assert found is None
