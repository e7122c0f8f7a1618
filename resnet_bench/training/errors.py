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
    """The device has too little memory for the recipe."""

    def __init__(self, device: str, batch_size: int) -> None:
        """Name the batch size that did not fit."""
        super().__init__(
            f"{device} ran out of memory at training.batch_size = {batch_size}; "
            f"try --set training.batch_size={max(1, batch_size // 2)}, which is another recipe"
        )
