"""Workers of a study whose trainings are a script, for whatever launcher."""

import itertools
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from resnet_bench.running import run
from resnet_bench.running.context import Context
from resnet_bench.tuning.elsewhere import StudyShare
from resnet_bench.tuning.events import StudyEvent
from tests.tuning.conftest import script_training, skip_plots

HELD = 2
"""So many workers stop in the middle of their third trial, until there is the file ``go`` in the folder of the runs."""


def held(run_dir: Path, number: int) -> Path:
    """What the first attempt of a worker that is held leaves."""
    return run_dir / f"held-{number}"


@dataclass(frozen=True)
class ScriptedShare(StudyShare):
    """A worker that trains no network."""

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
                if number == 3:
                    mark.touch()
                    while not (mark.parent / "go").exists():
                        time.sleep(0.1)

        patch.setattr("resnet_bench.running.run.train", train_until_held)
