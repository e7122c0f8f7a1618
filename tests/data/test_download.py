import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.data.archive import ArchiveFacts
from resnet_bench.data.content import Content
from resnet_bench.data.dataset import Dataset
from resnet_bench.recipe.datasets import DatasetFacts
from tests.data import builders

Load = Callable[..., Dataset]


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def published(
    info: DatasetFacts, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ArchiveFacts]:
    """The archive of a small dataset, on a server of this machine."""
    monkeypatch.setenv("no_proxy", "*")
    site = tmp_path / "site"
    archive = builders.write_extracted_archive(site, info, content)
    archive = builders.pack_archive(site, archive)
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(site))
    ) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield replace(archive, url=f"http://127.0.0.1:{server.server_port}/{archive.filename}")
        server.shutdown()
        thread.join()


def test_archive_is_downloaded_when_asked_for(
    info: DatasetFacts,
    published: ArchiveFacts,
    tmp_path: Path,
    load_small: Load,
    messages: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data"
    with pytest.raises(UserError, match="data prepare"):
        load_small(info, data, archive=published)
    assert not data.exists()
    dataset = load_small(info, data, archive=published, download=True)
    assert dataset.source == "torchvision archive"
    assert Path(dataset.location) == (data / published.filename).resolve()
    assert any("downloading http://127.0.0.1" in message for message in messages)
    assert "%" in capfd.readouterr().err
    assert not list(data.glob("*.part"))


@pytest.mark.parametrize("failure", ["not found", "wrong contents", "no server"])
def test_failed_download_is_explained_and_leaves_nothing(
    failure: str, info: DatasetFacts, published: ArchiveFacts, tmp_path: Path, load_small: Load, messages: list[str]
) -> None:
    data = tmp_path / "data"
    archive = {
        "not found": replace(published, url=published.url.replace("10", "11")),
        "wrong contents": replace(published, md5="0" * 32),
        "no server": replace(published, url="http://127.0.0.1:9/cifar-10-python.tar.gz"),
    }[failure]
    with pytest.raises(UserError, match=r"could not be downloaded to .*--data DIR"):
        load_small(info, data, archive=archive, download=True)
    assert [path.name for path in data.iterdir() if not path.name.endswith(".lock")] == []
    assert load_small(info, data, archive=archive, download=True, allow_generated=True).generated
    assert any("GENERATED IMAGES" in message and "could not be downloaded" in message for message in messages)


def test_nothing_is_downloaded_when_a_source_is_there(
    info: DatasetFacts, published: ArchiveFacts, content: Content, tmp_path: Path, load_small: Load
) -> None:
    builders.write_parquet(tmp_path / "data" / "cifar10", info, content)
    assert load_small(info, tmp_path / "data", archive=published, download=True).source == "parquet"
    assert not list((tmp_path / "data").glob("*.tar.gz"))
