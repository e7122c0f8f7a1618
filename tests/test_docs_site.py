"""The documentation as a site, and the tutorial, typed as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import resnet_bench as rb

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"


def navigation(entries: list[dict[str, object]]) -> list[str]:
    return [
        page
        for entry in entries
        for target in entry.values()
        for page in (navigation(target) if isinstance(target, list) else [str(target)])
    ]


def test_every_page_is_in_the_navigation_once() -> None:
    pages = navigation(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"])
    assert len(set(pages)) == len(pages)
    assert {path.name for path in DOCS.glob("*.md")} <= set(pages)
    schemas = {f"reference/{path.stem}-files.md" for path in (REPOSITORY / "schemas").glob("*.json")}
    assert schemas <= set(pages)


def test_links_between_pages_lead_to_files() -> None:
    """As a viewer of the repository has them, which knows no page that is made for the site."""
    found = 0
    for page in [
        *DOCS.glob("*.md"),
        REPOSITORY / "README.md",
        REPOSITORY / "CONTRIBUTING.md",
        REPOSITORY / "AGENTS.md",
    ]:
        for address in re.findall(r"\]\(([^()\s]+)\)", page.read_text()):
            path = address.partition("#")[0]
            if path and not re.match(r"[a-z]+:", path):
                assert (page.parent / path).exists(), f"{page.name}: {address}"
                found += 1
    assert found > 30


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_no_network(tmp_path: Path) -> None:
    pytest.importorskip("material")
    site = tmp_path / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}
    loaded = re.compile(
        r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//|<link\b[^>]*\bhref=\"?(?:https?:)?//"
    )
    assert not [name for name, text in pages.items() if loaded.search(text)]
    assert all(
        f'id="{name}"' in pages["reference/cli.html"] for name in ("run", "study-run", "record-check", "runs-prune")
    )
    assert "--seeds-per-device" in pages["reference/cli.html"]
    assert all(f'id="resnet_bench.api.{name}"' in pages["reference/python.html"] for name in rb.__all__)
    assert "recipe.optimizer (muon)" in pages["reference/benchmark-files.html"]
    assert "data:image/png" not in pages["notebook.html"]
    assert (site / "assets" / "notebook-0.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.real_data
def test_the_tutorial_ends_in_a_judged_recipe(tmp_path: Path, real_data_folder: Path) -> None:
    """Every block of it, in order, in one folder; two programs of `.venv` stand in for an installation of 5 GB."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (
        ("make", 'test "$*" = setup && test -f Makefile && mkdir -p .venv/bin && touch .venv/bin/activate'),
        ("resnet-bench", f'exec "{sys.executable}" -P -m resnet_bench "$@"'),
        ("git", 'test "$1 $2 $3" = "clone ADDRESS resnet-bench" && mkdir resnet-bench && touch resnet-bench/Makefile'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    script = ["set -e"]
    for kind, block in re.findall(r"```(\w+)\n(.*?)```", (DOCS / "tutorial.md").read_text(), re.DOTALL):
        assert kind in ("bash", "toml")
        script.append(
            block if kind == "bash" else f"mkdir -p benchmarks; cat > benchmarks/my-tenth.toml <<'E'\n{block}E"
        )
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "RESNET_BENCH_DATA": str(real_data_folder),
            "COLUMNS": "120",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout
    store = str(tmp_path / "resnet-bench" / "mlflow.db")
    (row,) = (row for row in rb.judge(store, benchmarks=["my-tenth"]) if row.verdict.n == 3)
    assert row.verdict.word == "reproduced", row
    assert "reproduced" in done.stdout
    assert (tmp_path / "resnet-bench" / "reports" / "my-tenth" / "index.html").is_file()
