"""What an exported network says of itself: a model card with the Hub's metadata, and results for its leaderboards.

The Hub's forms: https://huggingface.co/docs/hub/model-cards and https://huggingface.co/docs/hub/eval-results.
"""

import json
import statistics
from collections.abc import Iterator, Mapping

from resnet_bench.base.text import listed, percent, plural
from resnet_bench.running.trained import TrainedRun

ACCURACY_NAMES: Mapping[str, str] = {
    "accuracy_standard": "standard: eval mode, per image",
    "accuracy": "by the source's protocol",
    "accuracy_tta": "with test-time augmentation",
}

PLAIN_TORCH = """import json
from pathlib import Path

import torch

network = torch.export.load("model.pt2").module()
classes = json.loads(Path("config.json").read_text())["classes"]

logits = network(images)  # RGB, uint8 tensor [N, 3, {side}, {side}]
predicted = [classes[i] for i in logits.argmax(1)]"""

ONNX = """import json
from pathlib import Path

import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
classes = json.loads(Path("config.json").read_text())["classes"]

(logits,) = session.run(None, {{"images": images}})  # RGB, uint8 array [N, 3, {side}, {side}]
predicted = [classes[i] for i in logits.argmax(1)]"""

SAFETENSORS = """import resnet_bench as rb

network = rb.load(".")

logits = network(images)  # RGB tensor [N, 3, {side}, {side}], uint8 or floats from 0 to 1
predicted = [network.class_names[i] for i in logits.argmax(1)]"""

LOADING: Mapping[str, tuple[str, str]] = {
    "torch": ("With PyTorch alone", PLAIN_TORCH),
    "onnx": ("With `onnxruntime` alone", ONNX),
    "safetensors": ("With resnet-bench, which has the architecture", SAFETENSORS),
}
"""For each format what it takes, and the lines."""


def model_card(trained: TrainedRun, format: str) -> str:  # noqa: A002 - as the option is called
    """Write the README.md of an exported network, with the metadata that the Hub reads."""
    return "\n".join([*_metadata(trained), "", *_body(trained, format), ""])


def eval_results(trained: TrainedRun) -> str | None:
    """Write the YAML of ``.eval_results/``, which feeds the leaderboard of a dataset on the Hub.

    Returns:
        The text; None unless the network was trained by the whole recipe and tested on a whole published test set.
    """
    data = trained.benchmark.recipe.data
    is_whole = trained.tag("profile") == "full" and data.num_test == data.facts.test_size
    hub = _hub(trained)
    if not is_whole or hub is None or "accuracy_standard" not in trained.accuracies:
        return None
    notes = [f"{ACCURACY_NAMES['accuracy_standard']}, seed {trained.tag('seed')}, last epoch"]
    if "accuracy_tta" in trained.accuracies:
        notes.append(f"{percent(trained.accuracies['accuracy_tta'])} with test-time augmentation")
    return (
        f"- dataset:\n    id: {hub[0]}\n    task_id: default\n"
        f"  value: {_number(trained.accuracies['accuracy_standard'])}\n"
        f"  notes: {json.dumps('; '.join(notes))}\n"
    )


def _hub(trained: TrainedRun) -> tuple[str, str] | None:
    """Name and configuration of the images on the Hub, where they are those that were trained on."""
    facts = trained.benchmark.recipe.data.facts
    return facts.hub if trained.tag("data_fingerprint") == facts.fingerprint else None


def _metadata(trained: TrainedRun) -> Iterator[str]:
    data, standard = trained.benchmark.recipe.data, trained.accuracies.get("accuracy_standard")
    yield "---"
    yield "library_name: pytorch"
    yield "pipeline_tag: image-classification"
    yield f"tags: [resnet-bench, {json.dumps(trained.benchmark.recipe.model.name)}]"
    if hub := _hub(trained):
        hub_name, configuration = hub
        yield f"datasets: [{hub_name}]"
        dataset = f"{{type: {hub_name}, name: {data.dataset}, config: {configuration}, split: test}}"
    else:
        dataset = f"{{type: {data.dataset}, name: {json.dumps(_images(trained))}, split: test}}"
    if standard is not None:
        yield "metrics: [accuracy]"
        yield "model-index:"
        yield f"- name: {trained.benchmark.name}"
        yield "  results:"
        yield "  - task: {type: image-classification}"
        yield f"    dataset: {dataset}"
        yield "    metrics:"
        for name, value in trained.accuracies.items():
            yield f"    - {{type: accuracy, name: {json.dumps(ACCURACY_NAMES[name])}, value: {_number(value)}}}"
    yield "---"


def _body(trained: TrainedRun, format: str) -> Iterator[str]:  # noqa: A002
    benchmark, recipe = trained.benchmark, trained.benchmark.recipe
    source = benchmark.source
    title = f"[{source.title}]({source.url})" if source.url else source.title
    yield f"# {benchmark.name}, seed {trained.tag('seed')}"
    yield ""
    yield f"`{recipe.model.name}`, trained on {_images(trained)} by resnet-bench. Source of the recipe: {title}."
    if trained.tag("generated") == "true":
        yield ""
        yield "**Trained on generated images: its numbers say nothing about the dataset.**"
    elif trained.tag("profile") != "full":
        yield ""
        yield f"**Trained in the {trained.tag('profile')} profile, which tries the software.**"
    yield ""
    yield "## Accuracy"
    yield ""
    yield f"On {plural(recipe.data.num_test, 'test image')}, after the last epoch:"
    yield ""
    yield "| accuracy | this network |"
    yield "|---|--:|"
    for name, words in ACCURACY_NAMES.items():
        if name in trained.accuracies:
            yield f"| {words} | {percent(trained.accuracies[name])} |"
    yield ""
    if trained.repeats:
        yield _seeds(trained)
        yield ""
    what, lines = LOADING[format]
    yield f"## Load it\n\n{what}:\n"
    yield f"```python\n{lines.format(side=recipe.data.facts.image_size)}\n```"
    yield ""
    yield "The preprocessing (resizing, mean and standard deviation) is part of the network; `config.json` lists it."
    yield ""
    yield "## Train it again"
    yield ""
    yield f"`recipe.toml` has the whole recipe, fingerprint `{recipe.fingerprint}`:"
    yield ""
    yield f"```bash\nresnet-bench run recipe.toml --profile full --seed {trained.tag('seed')}\n```"
    yield ""
    yield from _keys(trained)
    yield ""
    yield "## Environment"
    yield ""
    yield from _environment(trained)


def _images(trained: TrainedRun) -> str:
    data = trained.benchmark.recipe.data
    if trained.tag("generated") == "true":
        return f"generated images in the shape of {data.dataset}"
    return f"{data.dataset} ({plural(data.num_train, 'image')})"


def _seeds(trained: TrainedRun) -> str:
    values = list(trained.repeats.values())
    if len(values) < 2:
        return "The store has this seed of its recipe alone."
    seeds = listed([str(seed) for seed in trained.repeats], 10)
    sd = statistics.stdev(values)
    return (
        f"Seeds {seeds} of the same recipe reach {percent(statistics.fmean(values))} in the mean, with a standard "
        f"deviation of {100 * sd:.2f} pp (standard accuracy)."
    )


def _keys(trained: TrainedRun) -> Iterator[str]:
    recipe = trained.benchmark.recipe
    yield "| key | value |"
    yield "|---|---|"
    for section in ("model", "optimizer", "schedule", "training"):
        for key, value in recipe.flat().items():
            if key.startswith(f"{section}."):
                yield f"| `{key}` | {json.dumps(value) if not isinstance(value, str) else value} |"


def _environment(trained: TrainedRun) -> Iterator[str]:
    try:
        found = json.loads(trained.tag("environment") or "{}")
    except ValueError:
        found = {}
    named = {
        "device": trained.tag("device"),
        "precision": trained.tag("precision"),
        "torch": found.get("torch"),
        "python": found.get("python"),
        "resnet-bench": trained.tag("version"),
        "commit": trained.tag("code_commit"),
    }
    yield "| | |"
    yield "|---|---|"
    for name, value in named.items():
        if value:
            yield f"| {name} | {value} |"


def _number(value: float) -> str:
    return f"{value:.6g}"
