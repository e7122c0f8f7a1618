"""What can go wrong while a network is trained."""


class TrainingError(Exception):
    """A run cannot go on; the message is one sentence that says why."""


class Diverged(TrainingError):
    """The training loss is no longer a finite number.

    Attributes:
        step: The optimizer step whose loss it is, from 1.
        learning_rate: The learning rate of that step.
    """

    def __init__(self, step: int, learning_rate: float, loss: float) -> None:
        """Describe the step that diverged."""
        super().__init__(f"the loss became {loss} at step {step}, at learning rate {learning_rate:g}")
        self.step = step
        self.learning_rate = learning_rate


class OutOfMemory(TrainingError):
    """The device has too little memory for the recipe.

    Attributes:
        setting: The setting that decides how much is needed: ``training.batch_size`` or ``evaluation.batch_size``.
        batch_size: Its value, which did not fit.
        fitting: A value that was tried and fits, or None where no batch does.
    """

    def __init__(
        self, device: str, model: str, batch_size: int, fitting: int | None, *, setting: str = "training.batch_size"
    ) -> None:
        """Say what did not fit and what does."""
        advice = f"; {fitting} does (measured): --set {setting}={fitting}, which is another recipe, not judged"
        nothing = ", nor did any smaller batch"
        super().__init__(
            f"{device} ran out of memory: {setting} = {batch_size} of {model} did not fit"
            + (f"{advice} against the claim" if fitting else nothing)
        )
        self.setting = setting
        self.batch_size = batch_size
        self.fitting = fitting
