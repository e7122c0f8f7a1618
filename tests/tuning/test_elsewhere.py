"""A study whose workers are jobs of a cluster: watched from a machine that does none of the work."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from resnet_bench.recipe.recipe import Recipe
from resnet_bench.running.events import Event
from resnet_bench.running.launchers.cluster import CLUSTERS, JobState, packs
from resnet_bench.running.launchers.event_log import decode, encode
from resnet_bench.running.launchers.following import Follower
from resnet_bench.running.launchers.launch import Handle, Launch
from resnet_bench.running.launchers.on_node import do_tasks
from resnet_bench.running.launchers.options import LauncherOptions, SlurmOptions
from resnet_bench.running.stopping import Stop
from resnet_bench.tuning.elsewhere import StudyShare, run_study_elsewhere
from resnet_bench.tuning.events import Retrained, StudyFinished, StudyOpened, TrialEnded, TrialStarted
from resnet_bench.tuning.plan import Plan
from tests.golden import typed
from tests.tuning.conftest import TinyStudy

MakePlan = Callable[..., Plan]
MakeStudy = Callable[..., TinyStudy]


class HereCluster:
    """A scheduler whose jobs run one after another, in this process, while they are submitted."""

    def __init__(self, options: LauncherOptions) -> None:
        pass

    def submit(self, launch: Launch, packs: Sequence[tuple[int, ...]]) -> list[Handle]:
        for pack in packs:
            do_tasks(launch.path, pack, 0, Stop())
        return [Handle(str(number), pack) for number, pack in enumerate(packs)]

    def fetch(self, launch: Launch) -> None:
        pass

    def events(self, launch: Launch, stop: Stop) -> Iterator[tuple[int, Event]]:
        yield from Follower(launch).read(cancelled=False)

    def states(self, handles: Sequence[Handle]) -> Mapping[str, JobState]:
        return {}

    def cancel(self, handles: Sequence[Handle]) -> None:
        pass


@pytest.mark.slow
@pytest.mark.usefixtures("without_plots")
def test_workers_of_a_cluster_lay_a_study_out_and_their_watcher_shows_it_all(
    tiny_plan: MakePlan,
    study_of: MakeStudy,
    scripted_training: list[Recipe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(CLUSTERS, "slurm", f"{__name__}:HereCluster")
    study = study_of(tiny_plan(budget="budget = { trials = 3 }"))
    options = SlurmOptions(gpus_per_node=0)

    def run() -> list[object]:
        return [*run_study_elsewhere(study.name, study.plan, study.storage, study.context, options, workers=2)]

    events = run()
    opened, *_, finished = events
    assert isinstance(opened, StudyOpened)
    assert isinstance(finished, StudyFinished)
    assert sum(isinstance(event, StudyOpened | StudyFinished) for event in events) == 2
    assert finished.result.counts.finished == opened.wanted == 3
    told = [event.number for event in [*opened.earlier, *events] if isinstance(event, TrialEnded)]
    assert sorted(told) == [0, 1, 2]
    assert study.parent.info.status == "FINISHED"
    study.assert_stores_agree()
    again = run()
    assert isinstance(again[-1], StudyFinished)
    assert not any(isinstance(event, TrialStarted | TrialEnded | Retrained) for event in again)


def test_what_a_worker_tells_is_read_as_it_was_written() -> None:
    for event in (
        TrialStarted(3, {"optimizer.lr": 0.1, "optimizer.nesterov": True}, is_source=False),
        TrialEnded(3, {"optimizer.lr": 0.1}, is_source=True, state="PRUNED", values=(0.5, 12.0), reason="worse"),
        Retrained("tuned", 1000, None, "it diverged"),
        StudyOpened("tiny", "http://x", 3, ()),
    ):
        line = encode(event)
        assert line is not None
        assert decode(line) == event


def test_each_worker_has_its_own_place(tiny_plan: MakePlan, study_of: MakeStudy) -> None:
    study = study_of(tiny_plan())
    shares = [StudyShare(study.name, study.plan, study.storage, 3, number) for number in range(3)]
    assert packs(shares, SlurmOptions(runs_per_job=4, gpus_per_node=1)) == [(0,), (1,), (2,)]
    assert packs(shares, SlurmOptions(gpus_per_node=2)) == [(0, 1), (2,)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--launcher slurm", "--launcher slurm runs on other hosts"),
        ("--launcher ray --tracking http://127.0.0.1:9", "use PostgreSQL, --storage postgresql://USER@HOST/optuna"),
        ("--launcher processes", "a study on this machine takes --workers N alone"),
    ],
)
def test_what_hosts_cannot_share_is_refused_before_anything_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = typed(f"study run resnet18-step-decay {options}")
    assert (found.code, found.out) == (2, "")
    assert says in found.err
    assert not (tmp_path / "runs").exists()
