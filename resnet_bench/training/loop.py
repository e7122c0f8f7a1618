"""The training loop, from a recipe to a trained network, as a generator of events.

To watch a run, iterate over it; to stop it, stop iterating. Measurements stay on the device and are read once per
chunk of steps, so watching costs nothing.
"""

from collections.abc import Generator, Iterator

from resnet_bench.data.dataset import Dataset
from resnet_bench.execution.execution import Execution
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.training.cuda_graphs import build_step
from resnet_bench.training.evaluation import Evaluator
from resnet_bench.training.events import Event, State
from resnet_bench.training.memory import MemoryShortage, Part, out_of_memory, ran_out_of_memory
from resnet_bench.training.session import Session
from resnet_bench.training.steps import EagerStep


def train(
    recipe: Recipe, execution: Execution, seed: int, dataset: Dataset, *, resume: State | None = None
) -> Generator[Event, None, None]:
    """Train a recipe once.

    Args:
        recipe: What to train; with the seed it decides the result.
        execution: How: device, precision and the like; it decides speed and rounding.
        seed: Decides initialization, order, augmentation and dropout, and nothing else.
        dataset: The images of ``recipe.data.dataset``.
        resume: A snapshot from an event of an earlier run. Training resumes after that event. On the same machine,
            with the same execution, its remaining events and final weights are bit-identical.

    Yields:
        ``Started``; ``Steps`` as they are done; at the end of each epoch ``Evaluated`` per split, then
        ``EpochEnded``; finally ``Finished``. Call an event's ``snapshot`` before advancing the generator; only
        ``Finished`` gives one after it has ended.

    Raises:
        Diverged: The loss, or what an evaluation measured, is not finite.
        OutOfMemory: The batch size does not fit; the error names one that does, which has been tried.
        UserError: The dataset has too few images, or the snapshot belongs to another recipe or seed.
    """
    with execution.applied():
        part: Part = "training"
        try:
            yield from _events(recipe, execution, seed, dataset, resume)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            if isinstance(error, MemoryShortage):
                part = error.part
        else:
            return

        def attempt(smaller: Recipe, eager: Execution) -> None:
            session = Session(smaller, eager, seed, dataset)
            evaluator = Evaluator(session)
            EagerStep(session).try_out()
            evaluator.try_out()

        # Outside of the clause, so that the error, its frames and with them the session and its memory are gone.
        raise out_of_memory(recipe, execution, part, attempt)


def _events(recipe: Recipe, execution: Execution, seed: int, dataset: Dataset, resume: State | None) -> Iterator[Event]:
    """The whole run, event by event. A resumed position has steps and evaluations done already; they are skipped."""
    session = Session(recipe, execution, seed, dataset, resume)
    evaluator = Evaluator(session)
    step = build_step(session)
    training, evaluation, position = recipe.training, recipe.evaluation, session.position

    yield session.started()
    if evaluation.before_training and position.step == 0:
        yield from evaluator.evaluate_all(epoch=0)

    while position.epoch <= training.epochs:
        session.start_epoch()
        for chunk in step.epoch(position):
            yield session.count(chunk)
        if position.epoch % evaluation.every == 0 or position.epoch == training.epochs:
            yield from evaluator.evaluate_all(position.epoch)
        accuracy = evaluator.train_accuracy()
        session.schedule.after_epoch(next(iter(position.evaluated.values()), None))
        yield session.end_epoch(accuracy)

    if evaluation.test_at_end and session.predictions is None:
        yield evaluator.evaluate("test", training.epochs)
    # Consumers work with ``Finished`` while this generator waits; they need the memory of CUDA graphs more.
    del step
    yield session.finished()
