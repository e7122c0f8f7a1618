"""The file that a run's measurements go to first: one checked record a line, appended and never rewritten.

A line is ``crc32 length json``: both numbers as eight hexadecimal digits, taken over the JSON text. With them a
reader tells a damaged record from a good one and finds the next one, so that damage costs the record it hit
and no other.
"""

import contextlib
import json
import os
import re
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from resnet_bench.base.files import write_atomically

Record = dict[str, Any]
Axis = Literal["step", "epoch", "sample"]

_HEADER = re.compile(rb"([0-9a-f]{8}) ([0-9a-f]{8}) ")
_HEADER_LENGTH = 18
_TAIL_BYTES = 4096
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


@dataclass(frozen=True)
class Entry:
    """A record and where it stands in the file, in bytes."""

    record: Record
    start: int
    end: int


@dataclass(frozen=True)
class Damage:
    """Bytes that are not a record: what was written there is lost."""

    start: int
    end: int


@dataclass(frozen=True)
class Point:
    """One value of a metric."""

    key: str
    value: float
    timestamp: int
    """Milliseconds since 1970."""
    step: int


def metrics_record(
    axis: Axis, first_step: int, values: Mapping[str, list[float]], *, timestamp: int, seconds: float = 0.0
) -> Record:
    """Values of one or several metrics at consecutive steps.

    Args:
        axis: What the steps count: optimizer steps, epochs, or samples of the machine's state.
        first_step: The step of the first value.
        values: A list of values a metric, all of the same length, at least 1.
        timestamp: When the last value was measured, milliseconds since 1970.
        seconds: How long the steps took together; their timestamps are spread over it.
    """
    length = len(next(iter(values.values())))
    spacing = 1000 * seconds / length
    return {
        "kind": "metrics",
        "axis": axis,
        "first_step": first_step,
        "first_timestamp": timestamp - round(spacing * (length - 1)),
        "spacing": round(spacing, 3),
        "values": values,
    }


def points(record: Record) -> list[Point]:
    """The values of a metrics record, in the order of their steps.

    The same record always gives the same points: to the store, being sent them again is not news.
    """
    values: dict[str, list[float]] = record["values"]
    first_step, first_timestamp, spacing = record["first_step"], record["first_timestamp"], record["spacing"]
    return [
        Point(key, value, first_timestamp + round(i * spacing), first_step + i)
        for i, row in enumerate(zip(*values.values(), strict=True))
        for key, value in zip(values, row, strict=True)
    ]


def thinned(record: Record) -> list[Point]:
    """The values of a metrics record that are sent to a server: of those per step, one per second at most.

    Longer runs send fewer: ``every`` in the record says of how many steps one value is enough to draw a curve. Which
    values are kept follows from the record alone, so that a replay sends the same ones.
    """
    every, spacing = record.get("every", 1), record["spacing"]
    if record["axis"] != "step":
        return points(record)
    return [
        point
        for point in points(record)
        if point.step % every == 0 and point.timestamp // 1000 != (point.timestamp - round(every * spacing)) // 1000
    ]


class Journal:
    """A run's journal, open for appending. Several threads may append.

    What was appended is with the operating system at once, and so survives the end of the process; what was
    appended before :meth:`sync` survives the end of the machine too.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._torn = not _ends_with_a_line(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a journal for appending, making it where there is none.

        Raises:
            OSError: The file cannot be written.
        """
        return cls(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666))

    def append(self, record: Record) -> None:
        """Write a record behind the others.

        Raises:
            OSError: The disk is full or broken; the journal is as it was.
        """
        payload = _encode(record).encode("ascii")
        line = b"%08x %08x %b\n" % (zlib.crc32(payload), len(payload), payload)
        with self._lock:
            if self._torn:
                line = b"\n" + line
            written = os.write(self._descriptor, line)
            if written != len(line):
                self._finish(line, written)
            self._torn = False

    def _finish(self, line: bytes, written: int) -> None:
        start = os.fstat(self._descriptor).st_size - written
        try:
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError:
            try:
                os.ftruncate(self._descriptor, start)
            except OSError:
                self._torn = True
            raise

    def sync(self) -> None:
        """Wait until everything appended so far is on the disk.

        Raises:
            OSError: The disk refuses.
        """
        os.fsync(self._descriptor)

    def truncate_after_step(self, step: int, epoch: int, *, delivered: int = 0) -> None:
        """Take back what was measured behind a checkpoint, because the resumed run will measure it again.

        Args:
            step: The checkpoint's optimizer step; values of later steps go.
            epoch: The last epoch that was finished at the checkpoint; values of later epochs go.
            delivered: What may already be in the store cannot be taken back: records that begin before this
                byte stay.

        Raises:
            OSError: The file cannot be written; the journal is as it was.
        """
        limits: dict[str, int] = {"step": step, "epoch": epoch}
        with self._lock:
            content = self.path.read_bytes()
            kept = [content[:delivered]]
            for found in read(self.path, delivered, final=True):
                if isinstance(found, Damage):
                    kept.append(content[found.start : found.end].rstrip(b"\n") + b"\n")
                elif (record := _up_to(found.record, limits)) is not None:
                    payload = _encode(record).encode("ascii")
                    kept.append(b"%08x %08x %b\n" % (zlib.crc32(payload), len(payload), payload))
            write_atomically(self.path, b"".join(kept))
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND)
            os.close(self._descriptor)
            self._descriptor = descriptor
            self._torn = not _ends_with_a_line(self.path)

    def close(self) -> None:
        """Close the file; nothing can be appended any more."""
        with self._lock, contextlib.suppress(OSError):
            os.close(self._descriptor)
            self._descriptor = -1


def read(path: Path, start: int = 0, *, final: bool) -> Iterator[Entry | Damage]:
    """Read a journal.

    Args:
        path: The journal; one that is not there holds no records.
        start: The byte to begin at, the end of an entry or damage found before.
        final: Whether its writer is done. Else an unfinished last record is left for the next reading.

    Yields:
        The records in order, and the damage between them.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(start)
        position = start
        while line := file.readline():
            end = position + len(line)
            if line == b"\n":
                position = end
                continue
            payload = _payload(line)
            complete = line.endswith(b"\n")
            if payload is not None and (complete or final):
                # Where the line is longer than its record, the newline behind the record is what was damaged.
                end = min(end, position + _HEADER_LENGTH + len(payload) + 1)
                file.seek(end)
                yield Entry(json.loads(payload), position, end)
            elif complete or final:
                yield Damage(position, end)
            else:
                return
            position = end


def last_entry(path: Path) -> Entry | Damage | None:
    """Return the last record of a journal whose writer is done, without reading those before it."""
    with path.open("rb") as file:
        start = end = file.seek(0, os.SEEK_END)
        tail = b""
        # The newline that ends the last record is not the one before it.
        while start > 0 and b"\n" not in tail[:-1]:
            start = max(0, start - _TAIL_BYTES)
            file.seek(start)
            tail = file.read(end - start)
    last = None
    for last in read(path, start + tail.rfind(b"\n", 0, max(0, len(tail) - 1)) + 1, final=True):  # noqa: B007
        pass
    return last


def last_steps(entries: Iterable[Entry | Damage]) -> dict[str, int]:
    """The highest step of each metric."""
    highest: dict[str, int] = {}
    for entry in entries:
        if isinstance(entry, Entry) and entry.record["kind"] == "metrics":
            for key, series in entry.record["values"].items():
                last = entry.record["first_step"] + len(series) - 1
                highest[key] = max(last, highest.get(key, last))
    return highest


def last_values(entries: Iterable[Entry | Damage]) -> dict[str, float]:
    """The last value of each metric, as a store shows it."""
    records = [entry.record for entry in entries if isinstance(entry, Entry)]
    series = [record["values"] for record in records if record["kind"] == "metrics"]
    return {key: values[-1] for each in series for key, values in each.items()}


def _payload(line: bytes) -> bytes | None:
    header = _HEADER.match(line)
    if header is None:
        return None
    length = int(header[2], 16)
    payload = line[_HEADER_LENGTH : _HEADER_LENGTH + length]
    intact = len(payload) == length and zlib.crc32(payload) == int(header[1], 16)
    return payload if intact else None


def _up_to(record: Record, limits: Mapping[str, int]) -> Record | None:
    if record["kind"] != "metrics" or record["axis"] not in limits:
        return record
    length = limits[record["axis"]] - record["first_step"] + 1
    if length <= 0:
        return None
    return {**record, "values": {key: series[:length] for key, series in record["values"].items()}}


def _ends_with_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
