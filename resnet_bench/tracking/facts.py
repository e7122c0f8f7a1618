"""What a run is: the params and tags that it has in MLflow from its first moment on."""

import colorsys
import getpass
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from resnet_bench.base.machine import this_process
from resnet_bench.recipe.benchmark import Benchmark, ProfileName
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.tracking.environment import code_fingerprint, code_version, environment, package_version
from resnet_bench.tracking.vocabulary import EXPERIMENT, PREFIX


def params_of(recipe: Recipe) -> dict[str, str]:
    """Every field of a recipe under its dotted key; what is no string is written as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in recipe.flat().items()}


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """One recipe × one seed × one execution, and the images it runs on.

    Attributes:
        benchmark: The benchmark that the recipe belongs to.
        recipe: The recipe as it is run, with profile and overrides applied.
        profile: ``full`` or ``smoke``.
        seed: The run's seed.
        execution: Device, precision and so on, as plain values.
        device_name: The device as a person would call it, such as ``NVIDIA H200``.
        dataset_name: ``cifar10`` or ``cifar100``.
        data_source: Where the images come from, such as ``torchvision archive``.
        data_fingerprint: Fingerprint of the images and labels.
        generated: Whether the images are generated.
        role: ``run``, ``study``, ``trial`` or ``retrain``.
        run_name: The run's name; ``<benchmark> seed <k>`` by default.
        experiment: Name of the MLflow experiment.
        parent_run_id: MLflow id of the run that this one is nested in.
        seeds_per_device: How many runs share the device at a time.
        tags: Further tags; a name without a dot gets the prefix ``resnet_bench.``.
    """

    benchmark: Benchmark
    recipe: Recipe
    profile: ProfileName
    seed: int
    execution: Mapping[str, Any]
    device_name: str
    dataset_name: str
    data_source: str
    data_fingerprint: str
    generated: bool
    role: str = "run"
    run_name: str | None = None
    experiment: str = EXPERIMENT
    parent_run_id: str | None = None
    seeds_per_device: int = 1
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run_name or f"{self.benchmark.name} seed {self.seed}"

    @property
    def judges_claims(self) -> bool:
        """Whether the run can be held against what its source claims."""
        return self.profile == "full" and not self.generated and self.recipe == self.benchmark.recipe

    def params(self) -> dict[str, str]:
        """Every field of the recipe under its dotted key; what is no string is written as JSON."""
        return params_of(self.recipe)

    def all_tags(self) -> dict[str, str]:
        """Every tag that is known before training starts."""
        commit, dirty = code_version()
        ours = {
            "benchmark": self.benchmark.name,
            "role": self.role,
            "profile": self.profile,
            "seed": str(self.seed),
            "fingerprint": self.recipe.fingerprint,
            "device": self.device_name,
            "device_type": str(self.execution.get("device", "cpu")).partition(":")[0],
            "precision": str(self.execution.get("precision", "fp32")),
            "dataset": self.dataset_name,
            "data_source": self.data_source,
            "data_fingerprint": self.data_fingerprint,
            "generated": _boolean(self.generated),
            "code_commit": commit,
            "code_dirty": "unknown" if dirty is None else _boolean(dirty),
            "code_fingerprint": code_fingerprint(),
            "version": package_version(),
            "source_title": self.benchmark.source.title,
        }
        if self.benchmark.claims:
            ours["claim"] = self.benchmark.claims[0].text
        further = {key if "." in key else f"{PREFIX}{key}": value for key, value in self.tags.items()}
        return {
            **{f"{PREFIX}{key}": value for key, value in ours.items()},
            **self.process_tags(),
            **self._mlflow_tags(commit),
            **further,
        }

    def process_tags(self) -> dict[str, str]:
        """The tags that change when another process goes on with the run."""
        tags = {
            "execution": json.dumps(dict(self.execution), sort_keys=True),
            "environment": json.dumps(environment(), sort_keys=True),
            **this_process(),
        }
        if self.seeds_per_device > 1:
            # Never taken back: times of a run that shared the device for a while are not those of one that had it.
            tags["seeds_per_device"] = str(self.seeds_per_device)
        return {f"{PREFIX}{key}": value for key, value in tags.items()}

    def _mlflow_tags(self, commit: str) -> dict[str, str]:
        tags = {
            "mlflow.note.content": self._note(),
            "mlflow.source.name": f"resnet-bench run {self.benchmark.name}",
            "mlflow.source.type": "LOCAL",
            "mlflow.source.git.commit": commit,
            "mlflow.user": _user(),
        }
        if self.parent_run_id:
            tags["mlflow.parentRunId"] = self.parent_run_id
        if self.role == "run":
            # Repeats of one benchmark share a colour, so that their curves are seen as one bundle.
            tags["mlflow.runColor"] = _color(self.benchmark.name)
        return tags

    def _note(self) -> str:
        source = self.benchmark.source
        title = f"[{source.title}]({source.url})" if source.url else source.title
        lines = [f"**{self.benchmark.name}**, seed {self.seed}, profile {self.profile}.", f"Source: {title}."]
        if self.benchmark.claims:
            lines.append(f"Claim: {self.benchmark.claims[0].text} {self.benchmark.claims[0].split} accuracy.")
        if self.generated:
            lines.append("Trained on **generated images**: its numbers say nothing about CIFAR.")
        elif self.profile == "smoke":
            lines.append("The **smoke** profile tries the software; it judges no claim.")
        return "\n\n".join(lines)


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container may run under a number that has no name.
        return "unknown"


def _color(name: str) -> str:
    hue = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 16**8
    red, green, blue = colorsys.hls_to_rgb(hue, 0.45, 0.65)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
