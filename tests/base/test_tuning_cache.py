"""Choices on disk: kept, shared, and never a reason to fail."""

import pytest

from resnet_bench.base import files
from resnet_bench.base.tuning_cache import TuningCache, machine_tuning_cache


def test_the_first_value_stays_for_every_process(tmp_path) -> None:
    path = tmp_path / "folder" / "choices.json"
    one, other = TuningCache(path), TuningCache(path)
    assert one.put("shape", "product") == "product"
    assert other.put("shape", "library") == "product"
    assert other.put("another", 3) == 3
    assert TuningCache(path).get("another") == 3
    assert TuningCache(path).get("unknown") is None


@pytest.mark.parametrize("content", ["", "[1, 2]", "{", "\0"])
def test_a_damaged_file_is_started_from_scratch(tmp_path, content) -> None:
    path = tmp_path / "choices.json"
    path.write_text(content)
    memory = TuningCache(path)
    assert memory.get("shape") is None
    memory.put("shape", "product")
    assert TuningCache(path).get("shape") == "product"


def test_where_nothing_can_be_written_it_lasts_as_long_as_the_process(tmp_path) -> None:
    (tmp_path / "file").write_text("not a folder")
    memory = TuningCache(tmp_path / "file" / "choices.json")
    assert memory.put("shape", "product") == "product"
    assert memory.get("shape") == "product"


def test_machines_are_kept_apart(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine_tuning_cache.cache_clear()
    try:
        machine_tuning_cache("one CPU").put("shape", "product")
        assert machine_tuning_cache("another CPU").get("shape") is None
        machine_tuning_cache.cache_clear()
        assert machine_tuning_cache("one CPU").get("shape") == "product"
        assert machine_tuning_cache("one CPU").get("machine") == "one CPU"
        machine_tuning_cache.cache_clear()
        monkeypatch.setattr(files, "source_digest", lambda _: "of another version")
        assert machine_tuning_cache("one CPU").get("shape") is None
    finally:
        machine_tuning_cache.cache_clear()
