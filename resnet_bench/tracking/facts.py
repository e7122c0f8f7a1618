"""What a run is: the params and tags that it has in MLflow from its first moment on."""

import colorsys
import functools
import getpass
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from resnet_bench.base.machine import this_process
from resnet_bench.judging.verdict import may_judge
from resnet_bench.recipe.benchmark import Benchmark, ProfileName
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.tracking.environment import code_fingerprint, code_version, environment, package_version
from resnet_bench.tracking.vocabulary import EXPERIMENT, PREFIX, current_execution, recipe_params

ASKED = ("benchmark", "profile", "seed", "role", "study")
"""Tags that two runs of one experiment share, whatever they were run on."""


def params_of(recipe: Recipe) -> dict[str, str]:
    """Every field of a recipe under its dotted key; what is not a string is written as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in recipe.flat().items()}


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """One recipe × one seed × one execution, and the images, device and code as they were found.

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
        run_name: The run's name; by default the benchmark, the profile where it is not ``full``, the seed, and
            whether the recipe was changed.
        experiment: Name of the MLflow experiment.
        parent_run_id: MLflow id of the run that this one is nested in.
        seeds_per_device: How many runs share the device at a time.
        more_tags: Further tags; a name without a dot gets the prefix ``resnet_bench.``.
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
    more_tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name."""
        if self.run_name:
            return self.run_name
        profile = "" if self.profile == "full" else f" {self.profile}"
        changed = " (--set)" if self.is_changed else ""
        return f"{self.benchmark.name}{profile} seed {self.seed}{changed}"

    @property
    def is_changed(self) -> bool:
        """Whether the recipe is not the one that the benchmark has for this profile."""
        published = self.benchmark.recipe if self.profile == "full" else self.benchmark.profiles.get(self.profile)
        return published is not None and self.recipe != published

    @property
    def judges_claims(self) -> bool:
        """Whether the run can be compared with what its source claims."""
        return may_judge(self.profile, generated=self.generated, changed=["recipe"] if self.is_changed else [])

    def params(self) -> dict[str, str]:
        """Every field of the recipe under its dotted key; what is not a string is written as JSON."""
        return params_of(self.recipe)

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """What two runs must share to be the same experiment: what is asked for, and what decides its result."""
        tags = self.tags()
        return {**{name: tags.get(f"{PREFIX}{name}", "") for name in ASKED}, **_deciding(tags)}

    def differences(self, tags: Mapping[str, str], params: Mapping[str, str] | None = None) -> list[str]:
        """Return how another run differs from this one in what decides its result, as phrases.

        Args:
            tags: The other run's tags.
            params: The other run's params, to name the recipe keys that differ.

        Returns:
            Phrases such as ``precision differs (bf16 then, fp32 now)``; none where the runs are repeats to the bit.
        """
        then = _deciding(tags)
        found = {name: (then[name], self.identity[name]) for name in then if then[name] != self.identity[name]}
        if "determinism" in found:
            # Which kernels there are follows from it.
            found.pop("kernels", None)
        if "recipe" in found:
            # Which images validate, and which share a batch, follows from it.
            found.pop("validation order", None)
            found.pop("test order", None)
        return [self._phrase(name, before, today, params or {}) for name, (before, today) in found.items()]

    def _phrase(self, name: str, then: str, now: str, params: Mapping[str, str]) -> str:
        if name == "recipe":
            ours, theirs = self.params(), recipe_params(params)
            keys = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)) if theirs else []
            return f"recipe differs ({', '.join(keys) or 'its data profile'})"
        if name == "code":
            return "code changed"
        if name == "images":
            return "images differ"
        if name == "generated":
            return "images were generated then" if then == "true" else "images are generated now"
        return f"{name} differs ({then or 'unknown'} then, {now} now)"

    def tags(self) -> dict[str, str]:
        """Return every tag that is known before training starts."""
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
        further = {key if "." in key else f"{PREFIX}{key}": value for key, value in self.more_tags.items()}
        return {
            **{f"{PREFIX}{key}": value for key, value in ours.items()},
            **self.process_tags(),
            **self._mlflow_tags(commit),
            **further,
        }

    def process_tags(self) -> dict[str, str]:
        """The tags that change when another process resumes the run."""
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


def _deciding(tags: Mapping[str, str]) -> dict[str, str]:
    """Everything that decides a run's result besides its seed, from its tags, by the name that people read."""
    execution, environment = current_execution(_json(tags, "execution")), _json(tags, "environment")
    kernels = sorted(name for name, value in execution.items() if value is True and name != "deterministic")
    return {
        "recipe": tags.get(f"{PREFIX}fingerprint", ""),
        "device": tags.get(f"{PREFIX}device_type", ""),
        "precision": tags.get(f"{PREFIX}precision", ""),
        "determinism": "deterministic" if execution.get("deterministic") else "not deterministic",
        "kernels": ", ".join(kernels) or "as torch has them",
        "images": tags.get(f"{PREFIX}data_fingerprint", "")[:12],
        "generated": tags.get(f"{PREFIX}generated", ""),
        "validation order": tags.get(f"{PREFIX}validation_order", ""),
        "test order": tags.get(f"{PREFIX}test_order", ""),
        "code": tags.get(f"{PREFIX}code_fingerprint", ""),
        "torch": str(environment.get("torch", "")),
    }


def _json(tags: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        value = json.loads(tags.get(PREFIX + name, "{}"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


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
