import errno
import itertools
import json
import os
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_bench.tracking.journal import (
    Damage,
    Entry,
    Journal,
    last_entry,
    last_steps,
    metrics_record,
    points,
    read,
    thinned,
)

RECORDS = [
    {"kind": "run", "name": "a run", "tags": {"x": "line\nbreak, ünïcode"}},
    metrics_record("step", 1, {"step/loss": [2.5, 2.25, 2.0]}, timestamp=1_000_000, seconds=0.3),
    {"kind": "tags", "values": {}},
    metrics_record("step", 4, {"step/loss": [float("inf")], "step/learning_rate": [0.1]}, timestamp=1_000_900),
    metrics_record("epoch", 1, {"test/accuracy": [0.5]}, timestamp=1_001_000),
    metrics_record("sample", 7, {"system/cpu": [12.0]}, timestamp=1_001_000),
]


def append_all(journal: Journal, records: list[dict]) -> None:
    for record in records:
        journal.append(record)


def write(path: Path, records: list[dict]) -> bytes:
    journal = Journal.open(path)
    append_all(journal, records)
    journal.close()
    return path.read_bytes()


def intact(path: Path) -> list[dict]:
    return [found.record for found in read(path, final=True) if isinstance(found, Entry)]


def damages(path: Path) -> list[Damage]:
    return [found for found in read(path, final=True) if isinstance(found, Damage)]


def test_what_was_appended_is_read_back_in_order(tmp_path: Path) -> None:
    write(tmp_path / "journal", RECORDS)
    assert intact(tmp_path / "journal") == RECORDS
    assert damages(tmp_path / "journal") == []


def test_reading_resumes_where_it_stopped(tmp_path: Path) -> None:
    write(tmp_path / "journal", RECORDS)
    entries = list(read(tmp_path / "journal", final=True))
    for entry, rest in zip(entries, itertools.count(1), strict=False):
        later = [found.record for found in read(tmp_path / "journal", entry.end, final=True)]
        assert later == RECORDS[rest:]


def test_the_last_record_is_found_from_the_end(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.touch()
    assert last_entry(path) is None
    long = {"kind": "tags", "values": {"x": "y" * 10_000}}
    for records in (RECORDS[:1], RECORDS, [*RECORDS, long], [long, long, RECORDS[0]]):
        path.unlink()
        content = write(path, records)
        assert last_entry(path) == list(read(path, final=True))[-1]
        path.write_bytes(content[:-1])
        assert last_entry(path).record == records[-1]
        path.write_bytes(content[:-5])
        assert isinstance(last_entry(path), Damage)


def test_a_journal_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert list(read(tmp_path / "journal", final=True)) == []


def test_cut_off_at_every_byte_only_the_cut_record_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    whole = write(path, RECORDS)
    ends = [found.end for found in read(path, final=True)]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        # The newline behind a record may be missing: the record itself is all there.
        complete = sum(end - 1 <= length for end in ends)
        assert intact(path) == RECORDS[:complete], length
        cut_inside = length not in {0, *ends, *(end - 1 for end in ends)}
        assert len(damages(path)) == cut_inside, length
        waiting = [found.record for found in read(path, final=False)]
        assert waiting == RECORDS[: sum(end <= length for end in ends)], length


def test_a_journal_with_a_torn_end_takes_further_records(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    whole = write(path, RECORDS[:2])
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        before = intact(path)
        journal = Journal.open(path)
        journal.append({"kind": "tags", "values": {"later": "yes"}})
        journal.close()
        assert intact(path) == [*before, {"kind": "tags", "values": {"later": "yes"}}], length


def test_damaged_at_every_byte_only_the_hit_record_is_lost_and_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    whole = write(path, RECORDS)
    entries = list(read(path, final=True))
    generator = random.Random(0)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        # A newline is the worst that can appear, and a random byte the likeliest.
        for value in {ord("\n"), ord(" "), generator.randrange(256)} - {whole[position]}:
            damaged[position] = value
            path.write_bytes(damaged)
            hit = next(i for i, entry in enumerate(entries) if position < entry.end)
            is_separator = position == entries[hit].end - 1
            expected = RECORDS if is_separator else RECORDS[:hit] + RECORDS[hit + 1 :]
            assert intact(path) == expected, (position, value)
            assert is_separator or damages(path), (position, value)


@given(
    values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=20),
    text=st.text(max_size=30),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=3),
)
def test_damage_never_gives_a_record_that_was_not_written(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], text: str, flips: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    records = [
        {"kind": "tags", "values": {"text": text}},
        metrics_record("step", 1, {"loss": values}, timestamp=5, seconds=1.0),
        {"kind": "tags", "values": {"text": text[::-1]}},
    ]
    damaged = bytearray(write(path, records))
    for position, mask in flips:
        damaged[position % len(damaged)] ^= mask
    path.write_bytes(damaged)
    for record in intact(path):
        assert record in records


def test_points_are_spread_over_the_time_that_the_steps_took() -> None:
    record = metrics_record(
        "step", 11, {"loss": [3.0, 2.0, 1.0], "rate": [0.3, 0.2, 0.1]}, timestamp=10_000, seconds=0.9
    )
    found = [(point.key, point.value, point.timestamp, point.step) for point in points(record)]
    assert found == [
        ("loss", 3.0, 9_400, 11),
        ("rate", 0.3, 9_400, 11),
        ("loss", 2.0, 9_700, 12),
        ("rate", 0.2, 9_700, 12),
        ("loss", 1.0, 10_000, 13),
        ("rate", 0.1, 10_000, 13),
    ]


def test_points_are_the_same_before_and_after_the_disk(tmp_path: Path) -> None:
    record = metrics_record("step", 1, {"loss": [1 / 3, 2 / 7, 1e-300]}, timestamp=1_763_000_000_123, seconds=1 / 7)
    write(tmp_path / "journal", [record])
    (read_back,) = intact(tmp_path / "journal")
    assert points(read_back) == points(record)


def test_cutting_back_to_a_checkpoint_takes_later_values_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal.open(path)
    kept = metrics_record("step", 1, {"loss": [9.0, 8.0]}, timestamp=1000, seconds=2.0)
    crossing = metrics_record("step", 3, {"loss": [7.0, 6.0, 5.0]}, timestamp=4000, seconds=3.0)
    for record in (
        kept,
        crossing,
        metrics_record("epoch", 1, {"accuracy": [0.1]}, timestamp=4100),
        metrics_record("step", 6, {"loss": [4.0]}, timestamp=5000),
        metrics_record("epoch", 2, {"accuracy": [0.2]}, timestamp=5100),
        metrics_record("sample", 50, {"cpu": [1.0]}, timestamp=5200),
        {"kind": "tags", "values": {"x": "y"}},
    ):
        journal.append(record)
    journal.truncate_after_step(4, 1)
    journal.append(metrics_record("step", 5, {"loss": [5.5]}, timestamp=9000))
    journal.close()

    records = intact(path)
    found = {(point.key, point.step): point for record in records if "axis" in record for point in points(record)}
    assert {key: point.value for key, point in found.items()} == {
        ("loss", 1): 9.0,
        ("loss", 2): 8.0,
        ("loss", 3): 7.0,
        ("loss", 4): 6.0,
        ("loss", 5): 5.5,
        ("accuracy", 1): 0.1,
        ("cpu", 50): 1.0,
    }
    # What stays keeps the time at which it was measured.
    assert [found["loss", step].timestamp for step in (3, 4)] == [p.timestamp for p in points(crossing)[:2]]
    assert {"kind": "tags", "values": {"x": "y"}} in records


def test_what_may_be_in_the_store_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal.open(path)
    for step in range(1, 7):
        journal.append(metrics_record("step", step, {"loss": [1.0 / step]}, timestamp=step))
    delivered = [found.end for found in read(path, final=True)][3]
    journal.truncate_after_step(2, 0, delivered=delivered)
    journal.close()
    assert last_steps(read(path, final=True)) == {"loss": 4}


def test_damage_stays_visible_when_the_journal_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    whole = bytearray(write(path, RECORDS))
    position = next(read(path, final=True)).end + 30
    whole[position] ^= 1
    path.write_bytes(whole)
    journal = Journal.open(path)
    journal.truncate_after_step(100, 100)
    journal.close()
    assert len(damages(path)) == 1
    assert intact(path) == [RECORDS[0], *RECORDS[2:]]


def test_several_threads_append_whole_records(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal")

    def append(thread: int) -> None:
        for i in range(200):
            journal.append({"kind": "tags", "values": {"thread": str(thread), "i": str(i)}})

    threads = [threading.Thread(target=append, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    seen = [(record["values"]["thread"], int(record["values"]["i"])) for record in intact(tmp_path / "journal")]
    for thread in range(4):
        assert [i for name, i in seen if name == str(thread)] == list(range(200))


class FullDisk:
    """Writes so many bytes, then says that the disk is full, in the middle of a record as disks do."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.write = os.write

    def __call__(self, descriptor: int, content: bytes) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.write(descriptor, content[: self.room])
        self.room -= written
        return written


def test_a_full_disk_at_every_byte_leaves_the_records_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = len(write(tmp_path / "whole", RECORDS))
    for room in range(total):
        path = tmp_path / f"journal-{room}"
        journal = Journal.open(path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", FullDisk(room))
            with pytest.raises(OSError, match="No space left"):
                append_all(journal, RECORDS)
        appended = intact(path)
        assert appended == RECORDS[: len(appended)]
        assert damages(path) == []
        # Room again: the journal continues.
        journal.append({"kind": "tags", "values": {}})
        journal.close()
        assert intact(path) == [*appended, {"kind": "tags", "values": {}}]


def test_a_record_half_written_on_a_disk_that_cannot_take_it_back_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    journal = Journal.open(path)
    journal.append(RECORDS[0])

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", FullDisk(30))
        patch.setattr(os, "ftruncate", broken)
        with pytest.raises(OSError, match="No space left"):
            journal.append(RECORDS[1])
    journal.append(RECORDS[4])
    journal.close()
    assert intact(path) == [RECORDS[0], RECORDS[4]]
    assert len(damages(path)) == 1


def test_a_line_is_json_that_a_person_can_read(tmp_path: Path) -> None:
    write(tmp_path / "journal", RECORDS)
    for line, record in zip((tmp_path / "journal").read_text("ascii").splitlines(), RECORDS, strict=True):
        assert json.loads(line.split(" ", 2)[2]) == record


@pytest.mark.parametrize(
    ("seconds", "every", "kept"), [(10.0, 1, 10), (10.0, 50, 10), (10.0, 200, 5), (1000.0, 1, 1000)]
)
def test_a_server_gets_a_value_per_second_and_fewer_of_long_runs(seconds: float, every: int, kept: int) -> None:
    values = {"step/loss": [float(step) for step in range(1, 1001)]}
    record = {**metrics_record("step", 1, values, timestamp=1_000_000, seconds=seconds), "every": every}
    found = thinned(record)
    assert abs(len(found) - kept) <= 1
    assert set(found) <= set(points(record))
    assert all(point.step % every == 0 for point in found)
    assert found == thinned(record)


def test_a_server_gets_every_value_per_epoch() -> None:
    record = metrics_record("epoch", 1, {"test/accuracy": [0.1, 0.2, 0.3]}, timestamp=1_000_000)
    assert thinned(record) == points(record)
