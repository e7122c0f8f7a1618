"""Read the small artifacts of runs, none of which is trusted to be what it should be."""

import base64
import binascii
import csv
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from resnet_bench.base.describe_error import describe_error
from resnet_bench.judging.networks import Labels
from resnet_bench.recipe.benchmark import Benchmark

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_ARTIFACT_BYTES = 4_000_000
MAX_MISTAKES = 24
MAX_PREDICTIONS = 100_000
"""Images; a small file may hold very many rows."""
PREDICTIONS = "predictions.parquet"
CONFUSION_MATRIX = "confusion_matrix.csv"
IMAGE_SIDES = range(8, 65)


class Mistake(BaseModel):
    """One entry of the artifact ``confident_mistakes.json``."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    index: int = Field(ge=0)
    image: str = Field("", max_length=4096)
    """What the image is called in its source; empty in runs of version 0.1.0."""
    label: str | int
    predicted: str | int
    confidence: float = Field(ge=0, le=1)
    png_base64: str = Field(max_length=40_000)


class RunArtifacts:
    """Reads artifacts through an MLflow client; what cannot be read is named in ``problems``."""

    def __init__(
        self, client: "MlflowClient", scratch: Path, problems: list[str], locations: Mapping[str, str]
    ) -> None:
        """Start without having read anything.

        Args:
            client: Of the store.
            scratch: Where downloads are kept.
            problems: Takes a sentence for each artifact that cannot be read.
            locations: Where the artifacts of each run are, as the store has it.
        """
        self._locations = locations
        self.client = client
        self.scratch = scratch
        self.problems = problems
        self._sizes: dict[str, dict[str, int]] = {}

    def benchmark(self, run_id: str) -> str:
        """Return the benchmark that a run recorded, as JSON; empty where there is none or it is damaged."""
        text = self._text(run_id, "benchmark.json")
        if text is None:
            return ""
        try:
            Benchmark.model_validate_json(text)
        except ValidationError as error:
            self._report(run_id, "benchmark.json", describe_error(error, limit=160))
            return ""
        return text

    def confusion(self, run_id: str) -> list[dict[str, Any]]:
        """Return the confusion matrix of a run as rows of a table."""
        text = self._text(run_id, CONFUSION_MATRIX)
        if text is None:
            return []
        try:
            names, *rows = csv.reader(io.StringIO(text))
            counts = np.array([[int(count) for count in row] for row in rows], dtype=np.int64)
        except (ValueError, OverflowError, csv.Error) as error:
            self._report(run_id, CONFUSION_MATRIX, describe_error(error, limit=160))
            return []
        if counts.shape != (len(names), len(names)) or counts.min() < 0:
            self._report(run_id, CONFUSION_MATRIX, "it is not a square of counts")
            return []
        return [
            {
                "run_id": run_id,
                "label": names[label],
                "predicted": names[predicted],
                "label_index": label,
                "predicted_index": predicted,
                "images": counts[label, predicted],
            }
            for label, predicted in np.argwhere(counts > 0)
        ]

    def predictions(self, run_id: str) -> tuple[Labels, Labels] | None:
        """Return the labels and the predicted classes of the test images of a run; None where it kept none."""
        path = self._downloaded(run_id, PREDICTIONS)
        if path is None:
            return None
        try:
            file = pq.ParquetFile(path)
            rows = file.metadata.num_rows
            if rows > MAX_PREDICTIONS:
                self._report(run_id, PREDICTIONS, f"it has {rows:,} rows, more than {MAX_PREDICTIONS:,}")
                return None
            table = file.read(["index", "label", "predicted"]).to_pandas().sort_values("index")
            labels, predicted = (table[name].to_numpy(np.int64) for name in ("label", "predicted"))
        except Exception as error:  # whatever pyarrow or pandas raises for a damaged file
            self._report(run_id, PREDICTIONS, describe_error(error, limit=160))
            return None
        return labels, predicted

    def mistakes(self, run_id: str) -> list[dict[str, Any]]:
        """Return the most confidently wrong images of a run, most confident first."""
        text = self._text(run_id, "confident_mistakes.json")
        if text is None:
            return []
        try:
            entries = TypeAdapter(list[Mistake]).validate_json(text)
            entries = sorted(entries, key=lambda entry: -entry.confidence)[:MAX_MISTAKES]
            return [
                {
                    "run_id": run_id,
                    "index": entry.index,
                    "image": entry.image,
                    "label": str(entry.label),
                    "predicted": str(entry.predicted),
                    "confidence": entry.confidence,
                    "png_base64": redrawn_png(entry.png_base64),
                }
                for entry in entries
            ]
        except (ValidationError, ValueError) as error:
            self._report(run_id, "confident_mistakes.json", describe_error(error, limit=160))
            return []

    def _text(self, run_id: str, name: str) -> str | None:
        """Return the text of an artifact, or None where it is missing or cannot be read."""
        path = self._downloaded(run_id, name)
        try:
            return None if path is None else path.read_text("utf-8")
        except (OSError, ValueError) as error:
            self._report(run_id, name, describe_error(error, limit=160))
            return None

    def _downloaded(self, run_id: str, name: str) -> Path | None:
        """Return a small artifact as a file, or None where it is missing or cannot be read."""
        from mlflow.utils.file_utils import get_local_path_or_none

        try:
            # MLflow's client needs milliseconds for each file, which add up over thousands of runs.
            root = get_local_path_or_none(self._locations.get(run_id, "databricks:"))  # type: ignore[no-untyped-call]
            here = None if root is None else Path(root) / name
            size = self._listed(run_id).get(name) if here is None else here.stat().st_size if here.is_file() else None
            if size is None:
                return None
            if size > MAX_ARTIFACT_BYTES:
                self._report(run_id, name, f"it has {size:,} bytes, more than {MAX_ARTIFACT_BYTES:,}")
                return None
            if here is not None:
                return here
            folder = self.scratch / run_id
            folder.mkdir(exist_ok=True)
            return Path(self.client.download_artifacts(run_id, name, str(folder)))
        except Exception as error:  # whatever the artifact store's client raises
            self._report(run_id, name, describe_error(error, limit=160))
            return None

    def _listed(self, run_id: str) -> dict[str, int]:
        if run_id not in self._sizes:
            self._sizes[run_id] = {}
            listing = self.client.list_artifacts(run_id)
            self._sizes[run_id] = {entry.path: entry.file_size or 0 for entry in listing if not entry.is_dir}
        return self._sizes[run_id]

    def _report(self, run_id: str, name: str, why: str) -> None:
        self.problems.append(f"run {run_id}: the artifact {name} cannot be read: {why}")


def redrawn_png(encoded: str) -> str:
    """Decode a small PNG in base64 and encode only its pixels again, so that nothing else of the file is kept.

    Raises:
        ValueError: It is not base64, not a PNG, or not a small square-ish picture.
    """
    from PIL import Image

    try:
        data = base64.b64decode(encoded, validate=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                if image.width not in IMAGE_SIDES or image.height not in IMAGE_SIDES:
                    raise ValueError(f"an image has {image.width}×{image.height} pixels, not 8 to 64 per side")
                pixels = image.convert("RGB")
    except (binascii.Error, OSError, SyntaxError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"an image is not a PNG in base64 ({describe_error(error, limit=160)})") from error
    buffer = io.BytesIO()
    pixels.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
