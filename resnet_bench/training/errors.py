"""Errors of training."""


class TrainingError(Exception):
    """A run cannot continue; the message gives the reason in one sentence."""


class Diverged(TrainingError):
    """The training loss is not finite.

    Attributes:
        step: The optimizer step with this loss, from 1.
        learning_rate: The learning rate of that step.
    """

    def __init__(self, step: int, learning_rate: float, loss: float) -> None:
        """Name the step, its learning rate and its loss."""
        super().__init__(f"the loss became {loss} at step {step}, at learning rate {learning_rate:g}")
        self.step = step
        self.learning_rate = learning_rate


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
