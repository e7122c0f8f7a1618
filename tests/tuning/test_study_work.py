"""One worker for any scheduler: several share a study, and one concludes it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from resnet_bench.base.errors import UserError
from resnet_bench.base.machine import this_process
from resnet_bench.data.dataset import Dataset
from resnet_bench.execution.options import ExecutionOptions
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.stopping import Stop, Stopped
from resnet_bench.tracking.sharing_rule import check_shared
from resnet_bench.tracking.store import Store
from resnet_bench.tuning.events import StudyFinished, TrialEnded
from resnet_bench.tuning.mlflow_sync import MlflowSync
from resnet_bench.tuning.plan import Plan
from resnet_bench.tuning.run import work_on_study
from resnet_bench.tuning.storage import OpenStorage, StudyStorage
from resnet_bench.tuning.trial_queue import TrialQueue
from resnet_bench.tuning.turns import take_turn
from tests.tuning.conftest import TinyStudy, sgd

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


def test_a_wall_time_that_is_up_starts_no_trial(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    study = study_of(tiny_plan(budget="budget = { trials = 3, wall_seconds = 1e-6 }"))
    with pytest.raises(UserError, match="the time was up"):
        list(work_on_study(study.name, study.plan, study.storage, study.context))
    assert not scripted_training
    assert study.stored.counts().waiting == 3


@pytest.mark.slow
def test_a_conclusion_that_fails_is_made_by_the_next_worker(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(tiny_plan(budget="budget = { trials = 1 }"))
    with monkeypatch.context() as full:

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        full.setattr("resnet_bench.tuning.run.write_artifacts", fail)
        with pytest.raises(OSError, match="No space left"):
            list(work_on_study(study.name, study.plan, study.storage, study.context))
    assert study.stored.get_attr("concluded") is None
    with take_turn("conclusion", study.stored, study.context.run_dir / "studies" / study.name) as turn:
        assert turn is not None
        others = list(work_on_study(study.name, study.plan, study.storage, study.context))
        assert not any(isinstance(event, StudyFinished) for event in others), "another worker concludes it"
    events = list(work_on_study(study.name, study.plan, study.storage, study.context))
    assert isinstance(events[-1], StudyFinished)
    assert study.parent.info.status == "FINISHED"


@pytest.mark.slow
def test_a_study_is_concluded_again_after_more_retraining(
    tiny_plan: MakePlan, study_of: MakeStudy, scripted_training: list[Recipe]
) -> None:
    def work(seeds: int) -> list[int]:
        """Work with so many new seeds; return those of each conclusion."""
        study = study_of(tiny_plan(budget="budget = { trials = 2 }", retrain=f"retrain = {{ seeds = {seeds} }}"))
        events = list(work_on_study(study.name, study.plan, study.storage, study.context))
        ends = [event for event in events if isinstance(event, StudyFinished)]
        assert not ends or study.parent.data.metrics["study/test_difference"] == pytest.approx(
            ends[-1].result.comparison.difference.value
        )
        return [len(end.result.comparison.tuned) for end in ends]

    study_of(tiny_plan(budget="budget = { trials = 2 }")).script(sgd(0.01))
    assert work(2) == [2]
    assert work(2) == []
    assert work(3) == [3]
    assert work(3) == []
    assert work(2) == [2], "MLflow has what the definition asks for now"


def test_the_turn_of_a_killed_process_is_free_where_the_storage_knows_no_heartbeats(tmp_path: Path) -> None:
    proxied = OpenStorage(StudyStorage("grpc://127.0.0.1:13000"), optuna.storages.InMemoryStorage())
    stored = SimpleNamespace(storage=proxied, name="a study")

    def free() -> bool:
        with take_turn("abc-1", stored, tmp_path) as turn:  # type: ignore[arg-type]
            return turn is not None

    with take_turn("abc-1", stored, tmp_path) as held:  # type: ignore[arg-type]
        assert held is not None
        assert not free()
        gone = {**this_process(), "pid_start": this_process()["pid_start"] + "0"}
        proxied.optuna.set_trial_user_attr(held.trial_id, "worker", gone)
        assert free()
        assert not held.is_ours()


def test_who_waits_for_a_studys_maker_is_not_in_its_way(
    tiny_plan: MakePlan, store: Store, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where the lock of a server's studies is.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    server = OpenStorage(StudyStorage("grpc://127.0.0.1:13000"), optuna.storages.InMemoryStorage())
    queue = TrialQueue.begin("waited-for", tiny_plan(), server, dataset)
    execution = ExecutionOptions(device="cpu", autotune=False).resolve()

    def run_id(is_maker: bool) -> str:
        return MlflowSync.open(store, queue.stored, dataset, execution, is_maker=is_maker).run_id

    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(run_id, False)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=1)
        made = pool.submit(run_id, True).result(timeout=30)
        assert waiting.result() == made


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
