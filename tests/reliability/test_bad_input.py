"""Whatever a user or a damaged disk hands in, a clear error comes out, within a second, and nothing wrong is used."""

import dataclasses
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_bench.base.errors import UserError
from resnet_bench.data.cache import CacheEntry
from resnet_bench.data.dataset import ImageLocation, load
from resnet_bench.data.sources import find_sources
from resnet_bench.recipe.changes import override, parse_assignments
from resnet_bench.recipe.files import load_benchmark
from resnet_bench.running.run_folder import RunFolder
from resnet_bench.tracking.store import Store
from tests.data import builders
from tests.reliability import mutations, tiny

fuzzed = settings(max_examples=100)


Outcome = TypeVar("Outcome")


def outcome_of(call: Callable[[], Outcome]) -> tuple[str, Outcome | None]:
    """What a call gives, or the sentence that it ends with; any other exception is the test's failure."""
    try:
        return "", call()
    except UserError as error:
        return str(error), None


# --- the command line ------------------------------------------------------------------------------

KEYS = st.one_of(st.sampled_from(sorted(load_benchmark("resnet18-step-decay").recipe.flat())), st.text(max_size=20))
VALUES = st.one_of(st.text(max_size=30), st.sampled_from(["nan", "1e999", "[" * 500, "{a={a={}}}", "0x", "-1", "true"]))


@fuzzed
@given(key=KEYS, value=VALUES, equals=st.sampled_from(["=", "==", " = ", ""]))
def test_what_is_set_is_a_recipe_or_a_sentence(key: str, value: str, equals: str) -> None:
    recipe = load_benchmark("resnet18-step-decay").recipe
    said, changed = outcome_of(lambda: override(recipe, parse_assignments([f"{key}{equals}{value}"]), where="--set"))
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
        # A name without a password is not a secret of a database, and is one of a server: a token.
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
    said = [
        store.redacted_uri,
        repr(store),
        store.run_url("abc", "0"),
        store.describe_error(OSError(f"cannot reach {store.uri}")),
    ]
    assert all(SECRET not in text for text in said), said
    assert store.uri.partition(":")[0] in {
        "sqlite", "http", "https", "databricks", "postgresql", "postgresql+psycopg", "postgresql+psycopg2", "mysql",
        "mysql+pymysql", "mssql",
    }  # fmt: skip


# --- files -----------------------------------------------------------------------------------------

NAMES = sorted(mutations.FORMATS)


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, mutations.Format]:
    return mutations.all_formats(tmp_path_factory.mktemp("formats"))


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """A reader that continues after damage warns of it each time."""
    caplog.set_level(logging.ERROR, logger="resnet_bench")


@pytest.mark.parametrize("name", NAMES)
def test_a_mutated_file_is_read_as_promised(name: str, formats: dict[str, mutations.Format]) -> None:
    form = formats[name]
    mutations.mutate(name, form, form.quick).check(form)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_mutated_files_are_read_as_promised(name: str, formats: dict[str, mutations.Format]) -> None:
    form = formats[name]
    tally = mutations.mutate(name, form, mutations.MUTATIONS or 8 * form.quick, seed=2)
    tally.check(form)


def test_the_quick_tests_mutate_ten_thousand_files(formats: dict[str, mutations.Format]) -> None:
    assert set(formats) == set(NAMES)
    assert sum(form.quick for form in formats.values()) >= 10_000


def test_a_reader_that_breaks_its_promise_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(data: bytes) -> bool:
        return len(data.decode("ascii")) < 5

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    form = mutations.Format([b"abcdefgh"], careless, quick=1)
    with pytest.raises(UnicodeDecodeError) as caught:
        mutations.mutate("text", form, 1000)
    (kept,) = tmp_path.iterdir()
    assert str(kept) in caught.value.__notes__[0]
    with pytest.raises(UnicodeDecodeError):
        careless(kept.read_bytes())
    credulous = mutations.Format([b"abcdefgh"], lambda _: False, quick=1)
    with pytest.raises(AssertionError, match="refused=0"):
        mutations.mutate("text", credulous, 100).check(credulous)


def test_parquet_whose_columns_have_names_that_are_no_text_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """Found by mutating."""
    info = dataclasses.replace(builders.small_info(), train_size=20, test_size=10)
    builders.write_parquet(tmp_path / "cifar10", info, builders.random_content(info))
    shard = tmp_path / "cifar10" / "test-00000-of-00001.parquet"
    shard.write_bytes(shard.read_bytes().replace(b"path", b"\xd4ath"))
    with pytest.raises(UserError, match=r"test-00000-of-00001\.parquet is not a readable Parquet file"):
        next(find_sources(info, tmp_path)).read(lambda _: None)


# --- what the product wrote itself -----------------------------------------------------------------


def test_flipped_bits_in_the_data_cache_are_never_trained_on(tmp_path: Path) -> None:
    info = dataclasses.replace(builders.small_info(), train_size=20, test_size=10)
    builders.write_parquet(tmp_path / "cifar10", info, builders.random_content(info))

    def fingerprint() -> str:
        dataset = load(info, ImageLocation(tmp_path), said.append)
        return f"{dataset.fingerprint} {int(dataset.train.images.sum())} {int(dataset.test.labels.sum())}"

    said: list[str] = []
    expected = fingerprint()
    entry = CacheEntry.of(next(find_sources(info, tmp_path)), tmp_path / ".resnet-bench-cache")
    random = np.random.default_rng(3)
    files = sorted(path for path in entry.folder.iterdir())
    assert len(files) == 7
    rebuilt = 0
    for number in range(50):
        path = files[number % 7]
        data = bytearray(path.read_bytes())
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        # A new file, as the old one may be mapped into memory.
        path.unlink()
        path.write_bytes(data)
        said.clear()
        assert fingerprint() == expected
        rebuilt += any("decoding" in text for text in said)
    # A flip in the manifest's white space changes nothing.
    assert rebuilt > 40


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
    found = RunFolder.acquire(tmp_path / "runs", tiny.facts())
    assert found.path.name != "a"
    found.release()
    shutil.rmtree(found.path)
