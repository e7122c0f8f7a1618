"""``resnet-bench compare`` as a user types it: every way to name a side, on stores in which one benchmark got worse."""

import html
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from resnet_bench.cli import screen
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.reporting import reading, report
from tests.conftest import Result
from tests.reporting import synthetic
from tests.reporting.synthetic import FakeRun

BEFORE, AFTER = "a1" * 20, "b2" * 20
BOTH = "--from before/mlflow.db --from after/mlflow.db"


@pytest.fixture(scope="module")
def folder(empty_database: Path, benchmarks: dict[str, Benchmark], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of two commits, ``after`` worse by two points in one of two benchmarks, and their tables."""
    from mlflow import MlflowClient

    made = tmp_path_factory.mktemp("compared")
    before = [
        FakeRun(benchmarks[name], seed=seed, final=final, commit=BEFORE, tags={"team": "red"})
        for name in ("nine-onecycle", "ranged")
        for seed, final in enumerate((90.1, 90.4, 90.2))
    ]
    after = [
        replace(run, final=run.final - 2 * (run.benchmark.name == "ranged") + 0.06, commit=AFTER, tags={"team": "blue"})
        for run in before
    ]
    for name, runs, hours in (("before", before, 0), ("after", after, 1)):
        uri = synthetic.database(empty_database, made / name)
        client = MlflowClient(uri)
        for minute, run in enumerate(runs, start=60 * hours):
            synthetic.log(client, run, minute)
        (made / f"{name}-report").mkdir()
        for table_name, content in report.table_files(reading.read([uri])).items():
            (made / f"{name}-report" / table_name).write_bytes(content)
    return made


@pytest.fixture
def compare(folder: Path, invoke: Callable[[str], Result], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Result]:
    """Type the command's arguments in the folder of the stores."""
    monkeypatch.chdir(folder)
    # It has looked at the terminal when it was imported.
    monkeypatch.setattr(screen.console, "width", 200)
    return lambda arguments: invoke(f"compare {arguments}")


@pytest.mark.parametrize(
    ("a", "b", "where"),
    [
        ("before/mlflow.db", "after/mlflow.db", ""),
        ("before-report", "after-report", ""),
        ("before-report/runs.parquet", "after/mlflow.db", ""),
        ("team=red", "team=blue", BOTH),
        ("a1a1", "b2b2b2", BOTH),
        ("a1a1", "team=blue", "--from before/mlflow.db --from after-report"),
    ],
    ids=["stores", "tables", "table and store", "tags", "commits", "commit and tag of two sources"],
)
def test_every_way_to_name_two_sides_finds_the_regression(compare, a: str, b: str, where: str) -> None:
    found = compare(f"{a} {b} {where} --format json --fail-on-regression")
    assert found.code == 1
    data = json.loads(found.out)
    tested = {row["benchmark"]: row for row in data["rows"] if row["metric"] == "test accuracy"}
    assert data["regressions"] == 1
    assert data["rows"][0] == tested["ranged"], "regressions come first"
    assert (tested["ranged"]["word"], tested["nine-onecycle"]["word"]) == ("worse", "same")
    assert tested["ranged"]["difference"] == pytest.approx(-1.94)
    assert tested["ranged"]["a_runs"] == tested["ranged"]["b_runs"] == 3
    assert {"name": "code_commit", "a": BEFORE, "b": AFTER} in data["environment"]


def test_the_exit_code_speaks_of_regressions_only_when_asked_to(compare) -> None:
    assert compare("before-report after-report").code == 0
    assert compare("before-report after-report --fail-on-regression").code == 1
    assert compare("before-report after-report --fail-on-regression --benchmark nine-onecycle").code == 0
    assert compare("after-report before-report --fail-on-regression").code == 0, "better is not a regression"
    assert compare("before-report before-report --fail-on-regression").code == 0


LIMITS = """
[[limits]]
benchmark = "ranged"
drop = {drop}
[[limits]]
benchmark = "nine-onecycle"
device = "Test GPU"
drop = 1.0
time_factor = 1.2
"""


@pytest.mark.parametrize(("drop", "word", "code"), [(3.0, "kept", 0), (0.5, "broken", 1), (1.9, "unclear", 0)])
def test_a_file_of_limits_decides_what_fails(compare, drop: float, word: str, code: int, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(LIMITS.format(drop=drop))
    arguments = f"before-report after-report --limits {file}"
    assert compare(arguments).code == 0, "only --fail-on-regression fails"
    found = compare(f"{arguments} --fail-on-regression --json")
    assert found.code == code
    rows = {(row["benchmark"], row["metric"]): row for row in json.loads(found.out)["limits"]}
    assert rows["ranged", "test accuracy"]["word"] == word
    assert rows["nine-onecycle", "test accuracy"]["word"] == "kept"
    assert rows["nine-onecycle", "epoch time"]["word"] == "unclear"
    assert "fewer than 6 runs per side" in rows["nine-onecycle", "epoch time"]["note"]
    for style in ("table", "markdown"):
        out = html.unescape(compare(f"{arguments} --format {style}").out)
        line = next(line for line in out.splitlines() if "ranged" in line and word in line)
        assert f"−{drop:.2f}" in line
        assert "−1.94 (3, 3)" in line
        assert "limits: " in out


def test_limits_are_found_in_the_working_directory(compare, folder: Path) -> None:
    file = folder / "limits.toml"
    file.write_text(LIMITS.format(drop=3.0))
    try:
        assert compare("before-report after-report --fail-on-regression").code == 0
        assert "limits:" not in compare("before-report after-report").out, "read where they decide something"
        file.write_text(LIMITS.format(drop=3.0).replace("ranged", "rangd"))
        code, out, err = compare("before-report after-report --fail-on-regression")
        assert (code, out) == (2, "")
        assert "limits[0].benchmark: unknown benchmark 'rangd'; did you mean 'ranged'?" in " ".join(err.split())
    finally:
        file.unlink()


def test_the_history_of_two_commits_has_a_step(invoke, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(screen.console, "width", 200)
    both = "--from before-report --from after-report"
    found = invoke(f"history ranged {both} --json")
    assert found.code == 0
    (one,) = json.loads(found.out)["histories"]
    first, second = one["points"]
    assert (first["commit"], second["commit"]) == (BEFORE, AFTER)
    assert (first["torch"], first["accuracy"]["runs"], first["accuracy"]["change"]) == ("2.15.0", 3, None)
    assert second["accuracy"]["change"]["step"] is True
    assert second["accuracy"]["change"]["value"] == pytest.approx(-1.94)
    assert second["throughput"]["mean"] == second["throughput_by_machine"][0]["mean"] > 0
    table = invoke(f"history ranged {both}").out
    assert "−1.94 ▼ step" in table
    assert BEFORE[:12] in table
    assert "step" not in invoke(f"history nine-onecycle {both}").out.partition("Step:")[0]
    mistake = invoke(f"history rangd {both}")
    assert (mistake.code, mistake.out) == (2, "")
    assert "did you mean 'ranged'?" in mistake.err
    written = invoke(f"report {both} --output {folder / 'both'}")
    assert written.code == 0
    section = (folder / "both" / "report.md").read_text("utf-8").partition("## History")[2].partition("\n## ")[0]
    assert "−1.94 ▼ step" in section
    assert "nine-onecycle" in section


@pytest.mark.parametrize("style", ["table", "markdown"])
def test_people_read_the_same_numbers(compare, style: str) -> None:
    out = html.unescape(compare(f"before-report after-report --format {style}").out)
    worse, same = (
        next(line for line in out.splitlines() if f"{name} " in line) for name in ("ranged", "nine-onecycle")
    )
    for part in ("90.23 (3)", "88.29 (3)", "−1.94", "−2.29 to −1.59", "<0.001", "worse"):
        assert part in worse
    assert "+0.06 " in same
    assert out.index("code") < out.index("ranged"), "environments come first"
    assert "1 worse, 1 same, 2 not tested" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("before-report nowhere.db", "'nowhere.db' is not a store, folder, tag or commit"),
        (f"team=green team=red {BOTH}", "team=green: there is no finished run"),
        (f"a1a1 c3c3 {BOTH}", "c3c3: there is no finished run"),
        ("a1a1 b2b2 --from none.db", "none.db does not exist"),
        ("a1a1 b2b2", "mlflow.db does not exist; the first run creates it; name another store"),
        ("before before-report", "before holds no report table (runs.parquet) and is not a tracking URI"),
        ("before-report after-report --format xml", "'xml' is not one of 'table', 'markdown', 'json'"),
        ("before-report after-report --since yesterday", "'yesterday' is not a date"),
        ("before-report after-report --benchmark rangd", "did you mean 'ranged'?"),
        ("before-report after-report --limits none.toml", "none.toml: cannot be read: No such file"),
        ("before-report after-report --json --format markdown", "--json and --format markdown: give one of them"),
        ("a b --images --limits none.toml", "--limits is about runs of several seeds"),
        ("a b --images --fail-on-regression", "--fail-on-regression is about runs of several seeds"),
        ("a b --images --since 7d", "--since is about runs of several seeds"),
        ("a b --images --benchmark speedrun-90", "--benchmark is about runs of several seeds"),
        ("a b --images --format markdown", "leave --format markdown out"),
        ("a b --images --from a.db --from b.db", "give --from once"),
    ],
)
def test_a_mistake_is_one_sentence(compare, arguments: str, sentence: str) -> None:
    code, out, err = compare(arguments)
    assert (code, out) == (2, "")
    assert sentence in " ".join(err.split())
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_a_commit_that_is_two_is_no_side(compare, monkeypatch: pytest.MonkeyPatch) -> None:
    read = reading.read

    def with_a_like_commit(*arguments, **options):
        tables = read(*arguments, **options)
        commits = tables.runs["code_commit"].str.replace(AFTER, BEFORE[:-1] + "f")
        return replace(tables, runs=tables.runs.assign(code_commit=commits))

    monkeypatch.setattr(reading, "read", with_a_like_commit)
    code, _, err = compare(f"a1a1 team=blue {BOTH}")
    assert code == 2
    assert f"a1a1: 2 commits begin so: {BEFORE}, {BEFORE[:-1]}f; write more digits of one" in " ".join(err.split())
