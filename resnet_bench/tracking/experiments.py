"""How the MLflow experiments of the suite look on MLflow's pages."""

import hashlib
import json
from collections.abc import Collection, Mapping

from resnet_bench.tracking.vocabulary import EXPERIMENT, NOTE, STUDIES_EXPERIMENT, final_metric, tag

VIEW_KEY = "resnet-bench"
"""Names the view of the runs page that the link of ``make ui`` opens."""
_VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"

_DESCRIPTIONS: Mapping[str, str] = {
    EXPERIMENT: (
        "Benchmark runs: one recipe × one seed × one execution each, below the mean of their seeds. Accuracies are "
        "fractions. "
        f"`{final_metric('test')}` follows the source's protocol, "
        f"`{final_metric('test', 'accuracy_standard')}` is in eval mode, per image. "
        f"`{tag('claim')}` is what the source says. A `smoke` profile and generated images judge no claim."
    ),
    STUDIES_EXPERIMENT: (
        "Studies: the parent run is the study, its children are the trials and the retraining runs with new seeds. "
        f"A pruned trial is marked KILLED and says why in `{tag('reason')}`."
    ),
}
_EARLIER_DESCRIPTIONS = {"b07510e8109b5e74", "49ef92339ebb8a83", "9bf33fad7988cf81"}
"""Digests of what earlier versions wrote; what somebody else wrote is not replaced."""

_COLUMNS: Mapping[str, Mapping[str, int]] = {
    EXPERIMENT: {
        "metrics.`final/test_accuracy`": 150,
        "metrics.`summary/test_accuracy_sd`": 220,
        "metrics.`summary/seeds`": 120,
        "metrics.`final/test_accuracy_standard`": 215,
        "metrics.`final/train_seconds`": 135,
        "metrics.`final/images_per_second`": 165,
        "tags.`resnet_bench.claim`": 150,
        "tags.`resnet_bench.profile`": 150,
        "tags.`resnet_bench.device`": 170,
        "tags.`resnet_bench.generated`": 170,
        "tags.`resnet_bench.reason`": 300,
    },
    STUDIES_EXPERIMENT: {
        "metrics.`validation/accuracy`": 150,
        "metrics.`final/test_accuracy`": 150,
        "metrics.`final/train_seconds`": 150,
        "tags.`resnet_bench.role`": 130,
        "tags.`resnet_bench.trial_state`": 160,
        "tags.`resnet_bench.seed`": 130,
        "tags.`resnet_bench.reason`": 300,
    },
}
"""The columns of the runs page and their widths in pixels."""

_CHART_SECTIONS: Mapping[str, tuple[str, ...]] = {
    EXPERIMENT: ("test", "final", "train", "step", "summary", "time", "memory"),
    STUDIES_EXPERIMENT: ("validation", "study", "train", "step", "test", "final", "time", "memory"),
}
"""The order of MLflow's charts, by what the names of metrics begin with; it puts those of other names behind them."""

_FIRST_COLUMNS = {"attributes.`Run Name`": 320, "runDateAndNestInfo": 140, "duration": 90}


def experiment_tags(name: str) -> dict[str, str]:
    """Return what MLflow's pages read of a new experiment: its kind, its description and the columns of its runs."""
    return {"mlflow.experimentKind": "custom_model_development", **_texts(name)}


def outdated_tags(name: str, found: Mapping[str, str], searched: Collection[str] = ()) -> dict[str, str]:
    """Return the tags to set on an experiment that exists; a description that a user wrote stays.

    Args:
        name: The experiment's name.
        found: The tags that it has.
        searched: Recipe keys that a study searches, to be columns besides those of the studies before it.
    """
    texts = _texts(name, [*_params_shown(found), *map(_param_column, searched)])
    description = found.get(NOTE)
    if description is not None and hashlib.sha256(description.encode()).hexdigest()[:16] not in _EARLIER_DESCRIPTIONS:
        texts.pop(NOTE, None)
    return {key: text for key, text in texts.items() if found.get(key) != text}


def _texts(name: str, params: Collection[str] = ()) -> dict[str, str]:
    if name not in _DESCRIPTIONS:
        return {}
    # MLflow keeps a view that a user shares under such a tag; a link that names it shows these columns.
    return {
        NOTE: _DESCRIPTIONS[name],
        _VIEW_TAG: json.dumps(_view(name, params), sort_keys=True),
    }


def runs_page(base: str, experiment_id: str) -> str:
    """The address of an experiment's runs, with the columns that matter.

    Args:
        base: The server, such as ``http://127.0.0.1:5000``.
        experiment_id: MLflow's number of the experiment.
    """
    query = f"workflowType=machine_learning&viewStateShareKey={VIEW_KEY}"
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def _params_shown(found: Mapping[str, str]) -> list[str]:
    """Return the columns with recipe keys that an experiment's view has."""
    try:
        columns = json.loads(found[_VIEW_TAG])["selectedColumns"]
        return [column for column in columns if column.startswith("params.")]
    except (KeyError, ValueError, TypeError, AttributeError):
        return []


def _param_column(key: str) -> str:
    return f"params.`{key}`"


def _view(name: str, params: Collection[str]) -> dict[str, object]:
    # What was searched stands beside the score.
    score, *others = _COLUMNS[name].items()
    columns = dict([score, *((column, 130) for column in params), *others])
    widths = {**_FIRST_COLUMNS, **columns}
    return {
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "lifecycleFilter": "Active",
        "selectedColumns": list(columns),
        "columnOrder": list(widths),
        "columnWidths": widths,
        # MLflow puts a chart for each metric there is into these.
        "compareRunCharts": [],
        "compareRunSections": [_chart_section(section) for section in _CHART_SECTIONS[name]],
        "isAccordionReordered": True,
    }


def _chart_section(name: str) -> dict[str, object]:
    return {
        "uuid": f"{VIEW_KEY} {name}",
        "name": name,
        "display": True,
        "isReordered": False,
        "deleted": False,
        "isGenerated": True,
    }
