"""Errors of training."""


class TrainingError(Exception):
    """A run cannot continue; the message gives the reason in one sentence."""


class Diverged(TrainingError):
    """The training loss, or what an evaluation measured, is not finite.

    Attributes:
        step: Optimizer steps done: the loss is that of the last one, the evaluation followed it.
    """

    def __init__(self, step: int, learning_rate: float, value: float, *, what: str = "the loss") -> None:
        """Name the step, its learning rate, and what became of which measurement."""
        super().__init__(f"{what} became {value} at step {step}, at learning rate {learning_rate:g}")
        self.step = step


class OutOfMemory(TrainingError):
    """The device does not have enough memory for the recipe.

    Attributes:
        setting: The recipe key of the batch size: ``training.batch_size`` or ``evaluation.batch_size``.
        batch_size: The value that did not fit.
        fitting: A value that has been tried and fits; None where even the smallest does not.
    """

    def __init__(
        self, device: str, model: str, batch_size: int, fitting: int | None, *, setting: str = "training.batch_size"
    ) -> None:
        """Name the batch size that did not fit, and the one that does."""
        advice = f"; {fitting} does (measured): --set {setting}={fitting}, which is another recipe, not judged"
        nothing = ", nor did any smaller batch"
        super().__init__(
            f"{device} ran out of memory: {setting} = {batch_size} of {model} did not fit"
            + (f"{advice} against the claim" if fitting else nothing)
        )
        self.setting = setting
        self.batch_size = batch_size
        self.fitting = fitting
