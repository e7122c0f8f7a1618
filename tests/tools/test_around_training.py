"""The timing of what surrounds training."""

import pytest

from tools import around_training
from tools.around_training import Row, Seconds, measure, time_command, time_end, time_start

GENERATED = ("--profile", "smoke", "--set", "data.train_images=256")


def test_a_table_has_medians_and_says_what_is_over_its_limit() -> None:
    turns = {
        "quick": iter([Seconds(9.0, 9.0), Seconds(0.1, 0.6), Seconds(0.3, 0.4), Seconds(0.2, 0.5)]),
        "slow": iter([Seconds(1.0, 9.0)] * 4),
    }
    rows = [
        Row("quick", 0.3, lambda: next(turns["quick"])),
        Row("slow", 0.5, lambda: next(turns["slow"])),
    ]
    title, *lines = measure(rows, repeats=3)
    assert title.split() == ["limit", "CPU", "s", "wall", "s"]
    # The first turn, which compiles and decodes, is not counted.
    assert [line.split() for line in lines] == [
        ["quick", "0.3", "0.20", "0.50"],
        ["slow", "0.5", "1.00", "9.00", "over"],
    ]


def test_five_parts_have_a_limit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    typed = []

    def marks(event: str, command: list[str]) -> list[Seconds]:
        typed.append((event, command[1]))
        return [Seconds(1.0, 0.0)] * (2 if event == "Finished" else 1)

    monkeypatch.setattr(around_training, "marks", marks)
    monkeypatch.setattr(around_training, "time_command", lambda words: typed.append(words) or Seconds(0.1, 0.1))
    monkeypatch.setattr("sys.argv", ["around_training.py", "--repeats", "1"])
    around_training.main()
    limits = [line[45:51].strip() for line in capsys.readouterr().out.splitlines()]
    assert limits == ["limit", "", "0.3", "0.3", "3", "10", "2"]
    assert ("Started", "resnet9-onecycle-adam") in typed
    assert ("Finished", "speedrun-90") in typed


def test_cpu_time_is_that_of_the_process_and_wall_time_is_not() -> None:
    found = time_command(("-c", "import time; time.sleep(1)"))
    assert found.cpu < 0.9 < found.wall


@pytest.mark.slow
def test_a_run_is_timed_by_its_parts() -> None:
    start = time_start(["he-resnet20"], GENERATED)
    end = time_end("he-resnet20", ())
    assert min(start.cpu, start.wall, end.cpu, end.wall) > 0
