"""One worker for any scheduler: several share a study, and one concludes it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.stopping import Stop, Stopped
from resnet_bench.tracking.sharing_rule import check_shared
from resnet_bench.tuning.events import StudyFinished, TrialEnded
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.run import work_on_study
from tests.tuning.conftest import TinyStudy

MakePlan = Callable[..., Plan]
MakeStudy = Callable[..., TinyStudy]

pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.mark.slow
def test_workers_lay_a_study_out_share_it_and_one_concludes_it(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    study = study_of(tiny_plan(budget="budget = { trials = 3 }"))
    stop = Stop()
    first = work_on_study(study.name, study.plan, study.storage, replace(study.context, stop=stop))
    for event in first:
        if isinstance(event, TrialEnded):
            stop.reason = "the scheduler wants the machine"
            break
    with pytest.raises(Stopped):
        list(first)
    assert study.parent.info.status == "KILLED"
    assert study.stored.counts().waiting == 2
    events = list(work_on_study(study.name, study.plan, study.storage, study.context))
    assert sum(isinstance(event, TrialEnded) for event in events) == 2
    assert isinstance(events[-1], StudyFinished)
    study.assert_stores_agree()
    assert study.parent.info.status == "FINISHED"
    late = list(work_on_study(study.name, study.plan, study.storage, study.context))
    assert not any(isinstance(event, TrialEnded | StudyFinished) for event in late)
    assert study.parent.info.status == "FINISHED"


@pytest.mark.parametrize(
    ("stores", "instead"),
    [
        ({"tracking": "sqlite:////shared/mlflow.db"}, "an MLflow server, --tracking http://HOST:5000"),
        ({"storage": "sqlite:////shared/optuna.db"}, "PostgreSQL, --storage postgresql://USER@HOST/optuna"),
        ({"storage": "journal:/shared/optuna.log"}, "PostgreSQL, --storage postgresql://USER@HOST/optuna"),
    ],
)
def test_a_file_across_hosts_is_refused_with_what_to_use_instead(stores: dict[str, str], instead: str) -> None:
    with pytest.raises(UserError) as refused:
        check_shared(what="--launcher slurm", **stores)
    assert str(refused.value).startswith("--launcher slurm, and ")
    assert instead in str(refused.value)
    check_shared(tracking="http://host:5000", storage="postgresql+psycopg://host/optuna", what="--launcher slurm")


def test_a_file_on_a_network_file_system_is_refused(
    tiny_plan: MakePlan, study_of: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(tiny_plan())
    monkeypatch.setattr("resnet_bench.tracking.sharing_rule.network_file_system", lambda _: "nfs4")
    with pytest.raises(UserError, match=r"network file system \(nfs4\).*use an MLflow server"):
        next(work_on_study(study.name, study.plan, study.storage, study.context))
    assert not Path(str(study.storage.file)).exists()
