"""Workers of a study whose trainings are a script, for whatever launcher."""

import itertools
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from resnet_bench.running import run
from resnet_bench.running.context import Context
from resnet_bench.tracking.store import Store
from resnet_bench.tuning.elsewhere import StudyShare
from resnet_bench.tuning.events import StudyEvent
from resnet_bench.tuning.plan import load_study_file, plan_study
from resnet_bench.tuning.storage import StudyStorage
from tests.tuning.conftest import TinyStudy, script_training, skip_plots, tiny_study, write_tiny

HELD = 2
"""So many workers stop in the middle of a trial, until there is the file ``go`` in the folder of the runs."""


def held(run_dir: Path, number: int) -> Path:
    """What the first attempt of a worker that is held leaves."""
    return run_dir / f"held-{number}"


@dataclass(frozen=True)
class ScriptedShare(StudyShare):
    """A worker that trains no network, held in the third trial that it would train."""

    held_in: ClassVar[int] = 3

    def events(self, context: Context) -> Generator[StudyEvent, None, None]:
        with pytest.MonkeyPatch.context() as patch:
            script_training(patch)
            skip_plots(patch)
            mark = held(context.run_dir, self.number)
            if self.number < HELD and not mark.exists():
                self._hold(patch, mark)
            yield from super().events(context)

    def _hold(self, patch: pytest.MonkeyPatch, mark: Path) -> None:
        train, begun = run.train, itertools.count(1)

        def train_until_held(*arguments: Any, **named: Any) -> Iterator[Any]:
            number = next(begun)
            for event in train(*arguments, **named):
                yield event
                if number == self.held_in:
                    mark.touch()
                    while not (mark.parent / "go").exists():
                        time.sleep(0.1)

        patch.setattr("resnet_bench.running.run.train", train_until_held)


class EarlyHeldShare(ScriptedShare):
    """Held in the first."""

    held_in = 1


def make_study(folder: Path, store: Store, database: str, trials: int, name: str) -> TinyStudy:
    """Lay a tiny study out, whose trials are lost after seconds of silence."""
    written = write_tiny(folder, budget=f"budget = {{ trials = {trials} }}", retrain="retrain = { seeds = 1 }")
    storage = StudyStorage(database, heartbeat_seconds=1, grace_seconds=8)
    return tiny_study(plan_study(load_study_file(written), "smoke"), name, folder, store, storage=storage)
