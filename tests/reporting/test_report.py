"""The written report: the page's markup, the Markdown and the tables."""

import html.parser
import json
import re
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from resnet_bench.base.errors import UserError
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.datasets import DATASETS
from resnet_bench.reporting import page as pages
from resnet_bench.reporting import reading, report
from resnet_bench.reporting.anonymize import public_name
from resnet_bench.reporting.report import ReportResult
from resnet_bench.reporting.runs import Run
from resnet_bench.reporting.tables import Tables
from tests.reporting.synthetic import FakeRun, log_all


class Outline(html.parser.HTMLParser):
    """What a page is made of: tags, attributes, the text of scripts, and its visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text: list[str] = []
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self._inside != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def page(written: ReportResult) -> Outline:
    return Outline(written.page.read_text("utf-8"))


@pytest.fixture(scope="module")
def nasty(nasty_uri: str, benchmarks_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ReportResult:
    return report.write(nasty_uri, tmp_path_factory.mktemp("nasty-report"), benchmarks_folder=benchmarks_folder)


def test_result_names_what_was_written(written: ReportResult) -> None:
    assert written.runs == 40
    assert written.problems == ()
    assert sorted(path.name for path in written.page.parent.iterdir()) == [
        "churn.parquet",
        "confusion.parquet",
        "index.html",
        "metrics.csv",
        "metrics.parquet",
        "mistakes.parquet",
        "report.md",
        "runs.csv",
        "runs.parquet",
    ]


def test_a_folder_that_cannot_be_written_is_one_sentence(
    written: ReportResult, benchmarks_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file in the place of the folder")
    with pytest.raises(UserError, match="taken: the report cannot be written there: "):
        report.write(written.page.parent, tmp_path / "taken", benchmarks_folder=benchmarks_folder)


def test_every_section_is_there(page: Outline) -> None:
    ids = [attributes.get("id") for tag, attributes in page.tags if tag == "section"]
    assert ids == ["claims", "curves", "comparison", "classes", "costs", "studies", "runs"]


def test_mistakes_name_their_images_as_the_source_does(page: Outline) -> None:
    assert "99% sure test/cat/0 & more.png" in page.words
    pictures = [attributes["alt"] or "" for tag, attributes in page.tags if tag == "img"]
    assert pictures
    assert all(text.startswith("test/cat/") for text in pictures)


def test_claims_say_word_reason_and_command(page: Outline) -> None:
    for words in (
        "not reproduced",
        "the 90% CI of our mean, 90.26 to 90.56, lies in 89.45 to 91.55",
        "2 seeds: 82.40, 82.90",
        "resnet-bench run too-few --profile full --seeds 5",
        "resnet-bench run unseen --profile full --seeds 5",
        "only smoke runs or generated images so far",
        "changed recipe: optimizer.lr",
    ):
        assert words in page.words


def test_rows_open_to_their_provenance(page: Outline, benchmarks: dict[str, Benchmark]) -> None:
    for words in (
        benchmarks["nine-onecycle"].recipe.fingerprint,
        "optimizer.weight_decay",
        "0.1 in the summary",
        "ambiguous",
        "aaaaaaaaaaaa",
        DATASETS["cifar10"].fingerprint[:12],
        "2.15.0",
        "Bootstrap interval",
        "seeds from several devices",
    ):
        assert words in page.words


def test_cost_and_time_to_accuracy(page: Outline) -> None:
    flops = 3 * 2 * 379_261_952 * 25_000
    assert f"{flops / 1e12:.1f} TFLOP/s" in page.words
    assert f"{100 * flops / 7.9e14:.1f}%" in page.words
    assert "52.0 kJ GPU board" in page.words
    assert "52.0 kJ CPU packages" in page.words
    assert "0 of 3 held it" in page.words
    assert "2 of 2 held it 36 min 0 s" in page.words


def test_study_and_unfinished_runs(page: Outline) -> None:
    assert "Tuning gain on the test set: +1.40 pp" in page.words
    assert "7 completed, 2 pruned, 1 failed ; pruning saved 12 epochs" in page.words.replace("failed;", "failed ;")
    assert "loss is not finite at step 17" in page.words
    assert "interrupted from the keyboard" in page.words


def test_plotly_is_there_once_and_nothing_is_loaded_from_elsewhere(page: Outline, written: ReportResult) -> None:
    assert len([1 for attributes, _ in page.scripts if attributes.get("id") == "plotly"]) == 1
    for tag, attributes in page.tags:
        assert tag not in {"iframe", "object", "embed", "base"}
        for name in ("src", "href"):
            value = attributes.get(name)
            if value is None:
                continue
            if tag == "a":
                assert value.startswith(("#", "https://example.org/")) or value in {"runs.csv", "metrics.csv"}
            else:
                assert value.startswith("data:")
    assert written.page.stat().st_size < 3_000_000


def test_policy_allows_exactly_the_scripts_of_the_page(page: Outline) -> None:
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "script-src 'unsafe" not in policy
    assert "unsafe-eval" not in policy
    executed = [text for attributes, text in page.scripts if "type" not in attributes]
    assert len(executed) == 1
    assert policy.split("script-src ")[1].split(";")[0] == f"{pages.csp_hash(executed[0])} 'strict-dynamic'"


def test_every_plot_has_its_place_and_its_words(page: Outline) -> None:
    places = [attributes for tag, attributes in page.tags if "data-plot" in attributes]
    (specs,) = [json.loads(text) for attributes, text in page.scripts if attributes.get("id") == "specs"]
    assert sorted(place["data-plot"] or "" for place in places) == sorted(specs)
    assert len(specs) > 40
    assert all(place["role"] == "img" and place["aria-label"] for place in places)


def test_markup_is_balanced_and_ids_are_unique(page: Outline) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    headings = [tag for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == "h1"
    assert all(int(after[1]) - int(before[1]) <= 1 for before, after in pairwise(headings))


def test_smoke_and_generated_runs_are_marked(page: Outline) -> None:
    badges = page.words.count("smoke profile : not judged") + page.words.count("smoke profile: not judged")
    assert badges >= 3
    assert "generated images: not judged" in page.words


# --- nothing gets out of its place ---------------------------------------------------------------


def test_no_name_or_tag_becomes_markup(nasty: ReportResult) -> None:
    page = Outline(nasty.page.read_text("utf-8"))
    assert [tag for tag, _ in page.tags].count("script") == 4, "specs, theme, plotly and the page's own"
    executed = [text for attributes, text in page.scripts if "type" not in attributes]
    assert executed == [(pages.TEMPLATES / "page.js").read_text("utf-8")]
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        if tag == "img":
            assert (attributes["src"] or "").startswith("data:image/png;base64,")
    assert 'document.title="owned"' in page.words, "it is shown, as text"


def test_no_name_or_tag_becomes_markdown(nasty: ReportResult) -> None:
    text = nasty.markdown.read_text("utf-8")
    outside_code = re.sub(r"`[^`]*`", "", text)
    assert "<script" not in text
    assert "<img" not in outside_code
    for is_table, rows in groupby(text.splitlines(), lambda line: line.startswith("|")):
        counts = [len(re.split(r"(?<!\\)\|", row)) for row in rows] if is_table else []
        assert len(set(counts)) <= 1, "a name or tag splits a cell"


def test_plotly_is_embedded_without_its_wrapping() -> None:
    library = get_plotlyjs()
    body = pages.unwrapped(library)
    assert "root, factory" not in body[:2000]
    assert body.startswith("/**\n* plotly.js v")
    assert "Licensed under the MIT license" in body[:200]
    assert body.endswith("window.Plotly = Plotly;\n")
    assert len(library) - 500 < len(body) < len(library)


def test_a_library_wrapped_in_another_way_is_embedded_as_it_is() -> None:
    other = "/* MIT */ (function(f) { f(); })(() => {});"
    assert pages.unwrapped(other) == other


def test_a_tag_that_is_no_benchmarks_name_becomes_no_command(
    fresh_uri: str, benchmarks: dict[str, Benchmark], benchmarks_folder: Path
) -> None:
    name = "x`<img src=x onerror=alert(1)>`"
    run = FakeRun(benchmarks["too-few"], tags={"resnet_bench.benchmark": name})
    log_all(fresh_uri, run)
    made = report.build(reading.read([fresh_uri]), benchmarks_folder=benchmarks_folder)
    (row,) = made.claims.rows
    assert (row.benchmark, row.verdict.word, row.command) == (name, "not judged", None)
    assert "<img" not in pages.render_markdown(made)


def test_markup_of_the_page_is_not_escaped(written: ReportResult) -> None:
    page = written.page.read_text("utf-8")
    assert '<th scope="row" class="second">' in page
    assert "class=&#34;" not in page


def test_markdown_text_means_nothing() -> None:
    assert pages.markdown_text("a|b*c_d`e`[x](y)\n<i>") == r"a\|b\*c\_d\`e\`\[x\](y) &lt;i&gt;"


# --- the other files -----------------------------------------------------------------------------


def test_markdown_has_the_same_numbers(written: ReportResult) -> None:
    text = written.markdown.read_text("utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| nine-onecycle |"))
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "nine-onecycle", "90.5%", "90.41 ± 0.19", "6", "● reproduced", "−0.09", "18.0 s", "25,000",
    ]  # fmt: skip
    for heading in ("## Claims", "## Comparison", "## Costs", "## Studies", "## Runs"):
        assert f"\n{heading}\n" in text
    assert "\n\n\n" not in text
    table_lines = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in table_lines)


def test_tables_are_written_as_parquet_and_csv(written: ReportResult, store_tables: Tables) -> None:
    folder = written.page.parent
    pd.testing.assert_frame_equal(reading.read_folder(folder).metrics, store_tables.metrics)
    assert len(pd.read_csv(folder / "metrics.csv")) == len(store_tables.metrics)
    assert len(pd.read_csv(folder / "runs.csv")) == len(store_tables.runs)
    assert "benchmark_json" not in pd.read_csv(folder / "runs.csv")


def body(page: Path, *stores: str) -> str:
    """A page without what says when and from where it was made."""
    text = re.sub(r"made \d{4}-\d\d-\d\d \d\d:\d\d UTC", "", page.read_text("utf-8"))
    for store in stores:
        text = text.replace(store, "STORE")
    return text


def test_a_report_of_its_own_tables_is_the_same_page(
    written: ReportResult, benchmarks_folder: Path, tmp_path: Path, store_uri: str
) -> None:
    again = report.write(written.page.parent, tmp_path, benchmarks_folder=benchmarks_folder)
    stores = (store_uri, public_name(store_uri), public_name(str(written.page.parent)))
    assert body(again.page, *stores) == body(written.page, *stores)


# --- little or nothing to report -----------------------------------------------------------------


def write(uri: str, tmp_path: Path, benchmarks_folder: Path, **options: Any) -> tuple[ReportResult, str]:
    written = report.write([uri], tmp_path / "out", benchmarks_folder=benchmarks_folder, **options)
    return written, Outline(written.page.read_text("utf-8")).words


def test_smoke_runs_alone_make_a_whole_report(
    fresh_uri: str, benchmarks: dict[str, Benchmark], benchmarks_folder: Path, tmp_path: Path
) -> None:
    log_all(fresh_uri, FakeRun(benchmarks["ranged"], profile="smoke", final=40.0))
    written, words = write(fresh_uri, tmp_path, benchmarks_folder)
    assert written.claims.rows == ()
    assert "No benchmark has been judged yet." in words
    assert "No run has used the full profile on real images yet" in words
    assert "There are no full runs on real images, so these are from the smoke profile" in words
    assert "resnet-bench run ranged --profile full --seeds 5" in words


def test_without_a_finished_run_whatever_there_is_is_reported(
    fresh_uri: str, benchmarks: dict[str, Benchmark], benchmarks_folder: Path, tmp_path: Path
) -> None:
    log_all(fresh_uri, FakeRun(benchmarks["ranged"], status="FAILED", reason="out of memory at batch 4096"))
    written, words = write(fresh_uri, tmp_path, benchmarks_folder)
    assert written.problems == ("no benchmark run has finished yet, so there is nothing to judge or to compare",)
    assert "out of memory at batch 4096" in words
    assert "No finished run." in words


def test_an_empty_store_is_one_sentence(fresh_uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run: make one with"):
        report.write([fresh_uri], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_problems_are_named_in_the_report(
    store_uri: str, fresh_uri: str, benchmarks: dict[str, Benchmark], benchmarks_folder: Path, tmp_path: Path
) -> None:
    log_all(fresh_uri, FakeRun(benchmarks["ranged"], artifacts={"confusion_matrix.csv": "broken\n1,2,3\n"}))
    gone = f"sqlite:///{tmp_path / 'gone.db'}"
    written = report.write([fresh_uri, gone], tmp_path / "out", benchmarks_folder=benchmarks_folder)
    assert len(written.problems) == 2
    words = Outline(written.page.read_text("utf-8")).words
    text = written.markdown.read_text("utf-8")
    assert "Not everything could be read." in words
    assert "gone.db does not exist" in words
    assert "gone.db does not exist" in text
    assert "the artifact confusion_matrix.csv cannot be read" in words


def test_a_broken_benchmark_file_is_named_and_the_rest_reported(
    store_uri: str, benchmarks_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "broken.toml").write_text("[recipe\n")
    built = report.build(reading.read([store_uri], benchmarks=["ranged"]), benchmarks_folder=folder)
    assert any("broken.toml" in problem for problem in built.problems)
    assert len(built.claims.rows) == 1


def test_filters_reach_the_page(store_uri: str, benchmarks_folder: Path, tmp_path: Path) -> None:
    written, words = write(store_uri, tmp_path, benchmarks_folder, benchmarks=["ranged", "unseen"])
    assert {row.benchmark for row in written.claims.rows} == {"ranged"}
    assert [missing.benchmark.name for missing in written.claims.missing] == ["unseen"]
    assert "at-least" not in words


def test_two_stores_are_compared_on_one_page(
    store_uri: str, fresh_uri: str, benchmarks: dict[str, Benchmark], benchmarks_folder: Path
) -> None:
    log_all(fresh_uri, *(FakeRun(benchmarks["too-few"], seed=s, final=82.6, device="Laptop") for s in (1, 5, 6)))
    built = report.build(reading.read([store_uri, fresh_uri], benchmarks=["too-few"]))
    (row,) = built.claims.rows
    assert row.verdict.n == 4, "seed 1 counts once"
    (costs,) = [view.values["table"] for section, view in built.sections if section.id == "costs"]
    assert {(row[1].text, row[3].text) for row in costs.rows} == {("Laptop", "3"), ("Test GPU", "2")}
    assert len(built.stores) == 2


def repeated(tables: Tables, count: int) -> Tables:
    """A group of that many runs, each a copy of one."""
    (source, *_) = tables.runs.query("benchmark == 'too-few'")["run_id"]

    def copies(frame: pd.DataFrame) -> pd.DataFrame:
        rows = frame[frame["run_id"] == source]
        return pd.concat([rows.assign(run_id=f"run-{number}") for number in range(count)], ignore_index=True)

    runs = copies(tables.runs)
    seeds = pd.Series(range(count), dtype="UInt64")
    return replace(
        tables,
        runs=runs.assign(seed=seeds),
        metrics=copies(tables.metrics),
        confusion=copies(tables.confusion),
        mistakes=tables.mistakes.head(0),
    )


def test_the_work_for_a_report_grows_with_its_runs_and_no_faster(
    store_tables: Tables, benchmarks_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up = []
    accuracy = Run.accuracy

    def counted(run: Run, *arguments: Any) -> dict[int, float]:
        looked_up.append(run.id)
        return accuracy(run, *arguments)

    monkeypatch.setattr(Run, "accuracy", counted)
    work = []
    for count in (10, 40):
        looked_up.clear()
        built = report.build(repeated(store_tables, count), benchmarks_folder=benchmarks_folder)
        assert built.runs == count
        work.append(len(looked_up))
    assert work[1] <= 4 * work[0]
