"""Study files: what is refused, and in which words."""

from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.tuning.plan import load_study, load_study_file, plan_study
from resnet_bench.tuning.study import Parameter

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"sampler": 'sampler = { name = "tpee" }'}, "sampler.name.*tpee.*did you mean 'tpe'"),
        ({"pruner": 'prunr = { name = "median" }'}, "unknown key 'prunr'; did you mean 'pruner'"),
        ({"budget": "budget = { trials = 0 }"}, "budget.trials"),
        ({"budget": 'budget = { trials = "20" }'}, "budget.trials: must be a whole number"),
        ({"budget": "budget = { epochs = 3 }"}, "budget.trials is missing"),
        ({"benchmark": 'benchmark = "resnet18-step-decai"'}, "unknown benchmark.*did you mean 'resnet18-step-decay'"),
        ({"retrain": "retrain = { seeds = 1, epoch = 2 }"}, "retrain.epoch.*did you mean 'retrain.epochs'"),
        (
            {"pruner": 'pruner = { name = "wilcoxon" }'},
            "wilcoxon compares trials seed by seed; it needs seeds = 3 or more",
        ),
        (
            {"sampler": 'objectives = ["validation_accuracy", "training_seconds"]'},
            "several objectives cannot be pruned",
        ),
        ({"sampler": 'objectives = ["training_seconds"]'}, "objectives starts with validation_accuracy"),
        ({"validation": "validation = { images = 60 }"}, "leaves nothing of the 60 training images"),
        ({"validation": ""}, "has no validation split; add \\[validation\\]"),
        ({"training": "training = { epoch = 3 }"}, "recipe: unknown key 'training.epoch'"),
        (
            {"optimizer.lr": 'optimizer.lr = { type = "float", low = 1, high = 0.1 }'},
            "space.optimizer.lr: low must lie below high",
        ),
        (
            {"optimizer.lr": 'optimizer.lr = { type = "log-float", low = 0, high = 0.1 }'},
            "space.optimizer.lr: the logarithm is searched",
        ),
        (
            {"optimizer.lr": 'optimizer.lr = { type = "float", low = 0.01 }'},
            "a parameter of type float takes low and high",
        ),
        ({"optimizer.lr": 'optimizer.lr = { type = "categorical", choices = [0.1, 0.1] }'}, "names a value twice"),
        ({"optimizer.lr": 'optimizer.lr = { type = "int", low = 0.1, high = 2 }'}, "must be whole numbers"),
        (
            {"optimizer.lr": 'optimizer.lrr = { type = "float", low = 0.01, high = 1 }'},
            "unknown recipe key 'optimizer.lrr'; did you mean 'optimizer.lr'",
        ),
        (
            {"optimizer.lr": 'optimizer.lr = { type = "float", low = 0.2, high = 1 }'},
            r"space.optimizer.lr: the source's value 0.1 is not among 0.2 … 1; choose low, high and step",
        ),
        (
            {"optimizer.lr": 'optimizer.lr = { type = "categorical", choices = [0.01, 0.02] }'},
            "the source's value 0.1 is not among the choices; add it",
        ),
        (
            {"optimizer.lr": 'optimizer.lr = { type = "categorical", choices = [0.1, "large"] }'},
            "space.optimizer.lr = large: optimizer.lr: must be a number",
        ),
        (
            {"optimizer.lr": 'training.clip_norm = { type = "float", low = 0.1, high = 1 }'},
            'only a categorical with "none" among its choices fits',
        ),
        (
            {"optimizer.lr": 'training.batch_size = { type = "int", low = 10, high = 41 }'},
            "training.batch_size = 41 is larger than the 40 images",
        ),
        (
            {"optimizer.lr": 'training.epochs = { type = "int", low = 1, high = 3 }'},
            "the budget decides how long a trial trains",
        ),
        (
            {"optimizer.lr": 'evaluation.batch_size = { type = "int", low = 1, high = 300 }'},
            "decides how a run is judged",
        ),
        (
            {
                "optimizer.momentum": (
                    'optimizer.momentum = { type = "categorical", choices = [0.9], '
                    'when = { key = "optimizer.nesterov", equals = true } }'
                )
            },
            "optimizer.nesterov must be a parameter of the space that stands before it",
        ),
        ({"sampler": 'sampler = { name = "tpe", options = { n_startup = 3 } }'}, "sampler.options.*n_startup_trials"),
        (
            {"sampler": 'sampler = { name = "tpe", options = { multivariate = 1 } }'},
            "sampler.options.multivariate: must be true or false, got 1",
        ),
        ({"sampler": 'sampler = { name = "random", options = { points = 2 } }'}, "random takes none"),
        (
            {"pruner": 'pruner = { name = "median", options = { n_startup_trials = -1 } }'},
            "pruner.options: .*cannot be negative",
        ),
        (
            {
                "optimizer": "optimizer = { weight_decay = 0.0 }",
                "optimizer.lr": 'optimizer.weight_decay = { type = "log-float", low = 5e-6, high = 2e-2 }',
            },
            "space.optimizer.weight_decay: the source's value 0.0 has no logarithm, and trial 0 runs it; write "
            'optimizer.weight_decay = { type = "categorical", choices = \\[0.0, 1e-05, 0.0001, 0.001, 0.01\\] }',
        ),
        (
            {
                "sampler": 'sampler = { name = "grid" }',
                "optimizer.momentum": 'optimizer.momentum = { type = "float", low = 0, high = 0.9, step = 1e-7 }',
            },
            r"sampler: a grid of 72,000,008 points is too large \(at most 100,000\); give fewer values",
        ),
        (
            {"sampler": 'sampler = { name = "grid", options = { points = 100000000 } }'},
            "sampler: a grid of 400,000,000 points is too large",
        ),
    ],
)
def test_what_is_wrong_is_refused_in_one_sentence(replaced: dict[str, str], message: str, write_study: Write) -> None:
    with pytest.raises(UserError, match=message) as caught:
        plan_study(load_study_file(write_study(**replaced)), "smoke")
    assert "\n" not in str(caught.value)


def test_a_file_names_its_study_itself(write_study: Write) -> None:
    path = write_study()
    path.write_text('name = "other"\n' + path.read_text())
    with pytest.raises(UserError, match="a study is named after its file"):
        load_study_file(path)


def test_an_unknown_study_brings_the_nearest_name() -> None:
    with pytest.raises(UserError, match="unknown study 'resnet18-step-decay-gpu'; did you mean 'resnet18-step-decay"):
        load_study("resnet18-step-decay-gpu")


def test_a_profile_is_the_study_with_its_differences(write_study: Write) -> None:
    more = "budget = { trials = 2 }\n\n[profiles.smoke.space]\noptimizer.lr = { high = 0.5 }\n"
    study = load_study_file(write_study(more=more))
    smoke = study.for_profile("smoke")
    assert study.budget.trials == 3
    assert smoke.budget.trials == 2
    assert smoke.space["optimizer.lr"] == study.space["optimizer.lr"].model_copy(update={"high": 0.5})
    assert smoke.space["optimizer.momentum"] == study.space["optimizer.momentum"]


@pytest.mark.parametrize(
    ("parameter", "inside", "outside"),
    [
        (Parameter(type="float", low=0.0, high=1.0), [0.0, 0.5, 1], [-0.1, 1.1, True, "a"]),
        (Parameter(type="float", low=0.1, high=0.7, step=0.2), [0.1, 0.3, 0.5, 0.7], [0.2, 0.6]),
        (Parameter(type="log-float", low=1e-5, high=1e-1), [1e-5, 1e-3, 0.1], [0.0, 1e-6]),
        (Parameter(type="int", low=2, high=8, step=2), [2, 4, 8], [3, 9, 4.5]),
        (Parameter(type="categorical", choices=(1, "none", False)), [1, 1.0, "none", False], [True, 0, "None"]),
    ],
)
def test_parameters_know_their_values(parameter: Parameter, inside: list[object], outside: list[object]) -> None:
    assert all(parameter.contains(value) for value in inside)
    assert not any(parameter.contains(value) for value in outside)
