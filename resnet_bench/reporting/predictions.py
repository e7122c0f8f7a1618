"""Compare the kept predictions of two runs, image by image."""

import csv
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from resnet_bench.base.describe_error import describe_error
from resnet_bench.base.errors import UserError
from resnet_bench.judging.networks import Labels, NetworkComparison, compare_classes, compare_networks
from resnet_bench.reporting.mlflow_reader import StoreReader
from resnet_bench.reporting.run_artifacts import CONFUSION_MATRIX, PREDICTIONS
from resnet_bench.tracking.finished_runs import Tags, find_run, finished_runs
from resnet_bench.tracking.store import Store
from resnet_bench.tracking.vocabulary import PREFIX

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class KeptPredictions:
    """What the network of one run predicts for its test images.

    Attributes:
        run_id: The MLflow run.
        name: The run's name.
        recipe: Fingerprint of the recipe.
        images: Fingerprint of the dataset.
        index: Which image each row is, int64 [N].
        labels: True classes, int64 [N].
        predicted: Predicted classes, int64 [N].
        places: What each image is called in its source; empty where the run kept no names, as those of 0.1.0.
    """

    run_id: str
    name: str
    recipe: str
    images: str
    index: Labels
    labels: Labels
    predicted: Labels
    places: tuple[str, ...] = ()


@dataclass(frozen=True)
class DifferingImage:
    """An image for which two networks predict different classes, by their names."""

    index: int
    image: str | None
    """What it is called in its source: its file, or its place in one; None where neither run kept that."""
    label: str
    a: str
    b: str


@dataclass(frozen=True)
class ImageComparison:
    """Two networks on the same images, in all and by class."""

    first: KeptPredictions
    second: KeptPredictions
    overall: NetworkComparison
    classes: dict[int, NetworkComparison]
    floor: NetworkComparison | None
    """The first network and that of another seed of its recipe, whose churn is the floor; None where the store has no
    other beside the second network."""
    names: tuple[str, ...] = ()
    """Names of the classes, as the first run kept them."""

    def class_name(self, label: int) -> str:
        """Return the name of a class; its number where the run kept none."""
        return self.names[label] if 0 <= label < len(self.names) else str(label)

    @property
    def differing(self) -> list[DifferingImage]:
        """Every image for which the two predict different classes."""
        places = self.first.places or self.second.places
        return [
            DifferingImage(
                index=int(self.first.index[row]),
                image=places[row] if places else None,
                label=self.class_name(int(self.first.labels[row])),
                a=self.class_name(int(self.first.predicted[row])),
                b=self.class_name(int(self.second.predicted[row])),
            )
            for row in self.overall.differing
        ]


def compare_images(first: str, second: str, store: Store) -> ImageComparison:
    """Compare the networks of two runs on the same images.

    Args:
        first: Id of an MLflow run, or its beginning.
        second: Id of another run.
        store: The store that has both.

    Raises:
        UserError: A run does not exist or kept no predictions, or the runs saw different images.
    """
    client = StoreReader(store).client
    with TemporaryDirectory(prefix="resnet-bench-predictions-") as scratch:
        runs = finished_runs(client)
        a, b = (_read(client, find_run(runs, name), Path(scratch)) for name in (first, second))
        if a.images != b.images or not np.array_equal(a.index, b.index) or not np.array_equal(a.labels, b.labels):
            raise UserError(
                f"{a.name} and {b.name} were tested on different images, so they cannot be compared by image"
            )
        return ImageComparison(
            first=a,
            second=b,
            overall=compare_networks(a.labels, a.predicted, b.predicted),
            classes=compare_classes(a.labels, a.predicted, b.predicted),
            floor=_floor(
                client, {run_id: tags for run_id, tags in runs.items() if run_id != b.run_id}, a, Path(scratch)
            ),
            names=_class_names(client, a.run_id, Path(scratch)),
        )


def _read(client: "MlflowClient", found: tuple[str, Tags], scratch: Path) -> KeptPredictions:
    run_id, tags = found
    folder = scratch / run_id
    folder.mkdir(exist_ok=True)
    try:
        table = pd.read_parquet(client.download_artifacts(run_id, PREDICTIONS, str(folder)))
        index, labels, predicted = (table[name].to_numpy(np.int64) for name in ("index", "label", "predicted"))
        places = tuple(map(str, table["image"])) if "image" in table else ()
    except Exception as error:  # whatever the artifact store, pyarrow or pandas raises
        raise UserError(
            f"{tags['name']}: its predictions ({PREDICTIONS}) cannot be read: {describe_error(error)}"
        ) from None
    return KeptPredictions(
        run_id=run_id,
        name=tags["name"],
        recipe=tags.get(f"{PREFIX}fingerprint", ""),
        images=tags.get(f"{PREFIX}data_fingerprint", ""),
        index=index,
        labels=labels,
        predicted=predicted,
        places=places,
    )


def _class_names(client: "MlflowClient", run_id: str, scratch: Path) -> tuple[str, ...]:
    """Return the header of a run's confusion matrix; nothing where the run has none that can be read."""
    try:
        path = client.download_artifacts(run_id, CONFUSION_MATRIX, str(scratch / run_id))
        with Path(path).open(encoding="utf-8", newline="") as file:
            return tuple(next(csv.reader(file), ()))
    except Exception:  # whatever the artifact store raises: classes then have numbers
        return ()


def _floor(
    client: "MlflowClient", runs: dict[str, Tags], first: KeptPredictions, scratch: Path
) -> NetworkComparison | None:
    """Compare the first network with another seed of its recipe on the same images."""
    own = runs[first.run_id]
    for run_id, tags in runs.items():
        same = all(tags.get(PREFIX + key) == own.get(PREFIX + key) for key in ("fingerprint", "data_fingerprint"))
        if not same or tags.get(f"{PREFIX}seed") == own.get(f"{PREFIX}seed"):
            continue
        try:
            other = _read(client, (run_id, tags), scratch)
        except UserError:
            continue
        if np.array_equal(other.index, first.index):
            return compare_networks(first.labels, first.predicted, other.predicted)
    return None
