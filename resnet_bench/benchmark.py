"""What a benchmark is: a source, its claims and one recipe, as a strict schema.

Everything that decides a result is a field of :class:`Recipe`; nothing that only decides the speed is.
Two runs whose recipes have the same :meth:`Recipe.fingerprint` are repeats of one experiment.
"""

import difflib
import hashlib
import json
import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from resnet_bench.errors import UserError

DatasetName = Literal["cifar10", "cifar100"]
ProfileName = Literal["full", "smoke"]
SplitName = Literal["train", "validation", "test"]

PROFILES: tuple[ProfileName, ...] = get_args(ProfileName)
NUM_CLASSES: Mapping[str, int] = {"cifar10": 10, "cifar100": 100}
TRAIN_IMAGES = 50_000
TEST_IMAGES = 10_000
IMAGE_SIZE = 32
REPRODUCTION_MARGIN = 1.0
"""Points by which our mean may miss a claimed number and still reproduce it (see docs/statistics.md)."""

FINGERPRINT_VERSION = 1

NAME_PATTERN = r"^[a-z0-9]+(-[a-z0-9]+)*$"
"""What a benchmark may be called; its file has the same name."""
MAX_NAME_LENGTH = 80
_OPTION = r"^[a-z][a-z0-9_]*$"
_ADDRESS = r"^https://\S+$"
_PRINTED_NUMBER = r"^\d{1,3}(\.\d+)?$"

NOT_GIVEN = "none"
"""How a file that extends another, or ``--set``, takes an optional key of a recipe away: TOML has no null."""


def _absent(value: Any) -> Any:
    return None if isinstance(value, str) and value == NOT_GIVEN else value


def _given(options: Any) -> Any:
    if not isinstance(options, Mapping):
        return options
    return {key: value for key, value in options.items() if _absent(value) is not None}


def _one_reason(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError:
        # pydantic would give one reason for each type of the union.
        raise ValueError(f"must be true, false, a finite number or a string, got {shown(value)}") from None


Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
RGB = Annotated[tuple[float, float, float], Field(strict=False)]
OptionValue = Annotated[bool | Annotated[int, Field(ge=-(2**63), lt=2**63)] | float | str, WrapValidator(_one_reason)]
MaybeNotGiven = BeforeValidator(_absent)


class Schema(BaseModel):
    """A frozen model that refuses unknown keys and converts nothing but whole numbers to floats."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


# --- where the numbers come from -----------------------------------------------------------------


class Fact(Schema):
    """One fact of a recipe and how sure it is."""

    fact: str
    status: Literal["stated", "recovered", "inferred", "ambiguous"]
    keys: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Dotted recipe keys that rest on this fact, such as ``optimizer.lr``."""
    alternative: str | None = None
    """For an ambiguous fact: the other reading, and the benchmark that runs it where there is one."""


class Source(Schema):
    """Who published the recipe, and what its parts rest on."""

    title: str
    kind: Literal["tutorial", "blog", "course", "paper", "variant", "tuned", "ours"]
    author: str | None = None
    published: str | None = None
    url: Annotated[str, Field(pattern=_ADDRESS)] | None = None
    notes: str | None = None
    compares_with: Annotated[str, Field(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)] | None = None
    """The benchmark of a source that reaches for the same accuracy, for a recipe of our own."""
    facts: Annotated[tuple[Fact, ...], Field(strict=False)] = ()


class Curve(Schema):
    """A published learning curve: accuracy in percent at the end of each of these epochs."""

    epochs: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]
    values: Annotated[tuple[Annotated[float, Field(ge=0, le=100)], ...], Field(strict=False)]
    note: str | None = None
    """What the curve belongs to, where that is not exactly this recipe."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.epochs) != len(self.values) or not self.epochs:
            raise ValueError(
                f"a curve needs as many values as epochs, got {len(self.epochs)} epochs and {len(self.values)} values"
            )
        if not _rises(self.epochs):
            raise ValueError(f"the epochs of a curve must rise, got {shown(list(self.epochs))}")
        return self


class Claim(Schema):
    """What a source says its recipe reaches, in percent.

    Exactly one of ``value``, ``at_least`` and ``range`` is given. ``value`` is the number as it is printed,
    a string, because its last digit says how far it was rounded.
    """

    metric: Literal["accuracy", "accuracy_augmented"] = "accuracy"
    """``accuracy_augmented`` is the accuracy with the recipe's test-time augmentation."""
    split: SplitName = "test"
    value: Annotated[str, Field(pattern=_PRINTED_NUMBER)] | None = None
    at_least: Annotated[float, Field(ge=0, le=100)] | None = None
    range: (
        Annotated[
            tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=100)]],
            Field(strict=False),
        ]
        | None
    ) = None
    selection: Literal["last", "best", "epoch", "unknown"] = "last"
    """Which epoch of the source's run the number is taken from."""
    epoch: Annotated[int, Field(ge=0)] | None = None
    runs: Annotated[int, Field(ge=1)] = 1
    """How many runs of the source stand behind the number."""
    curve: Curve | None = None
    wall_seconds: Annotated[float, Field(gt=0)] | None = None
    quote: str | None = None
    """The claim in few words, as a reader would look for it in the source."""

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        given = [name for name in ("value", "at_least", "range") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a claim needs exactly one of value, at_least and range, got {', '.join(given) or 'none'}"
            )
        if self.value is not None and float(self.value) > 100:
            raise ValueError(f"value is a percentage, got {self.value!r}")
        if self.range is not None and self.range[0] > self.range[1]:
            raise ValueError(f"range runs from low to high, got {list(self.range)}")
        if (self.selection == "epoch") != (self.epoch is not None):
            raise ValueError('epoch = … and selection = "epoch" are given together')
        return self

    @property
    def interval(self) -> tuple[float, float]:
        """The values, in percent, that the printed claim stands for: lowest and highest."""
        if self.at_least is not None:
            return self.at_least, math.inf
        if self.range is not None:
            return self.range
        assert self.value is not None
        digits = len(self.value.partition(".")[2])
        half_unit = 0.5 * 10.0**-digits
        return float(self.value) - half_unit, float(self.value) + half_unit

    @property
    def margin(self) -> float:
        """Points added on both sides of the interval before a mean is held against it."""
        return REPRODUCTION_MARGIN if self.value is not None else 0.0

    @property
    def text(self) -> str:
        """The claim as a table shows it, such as ``82.87%``, ``≥ 90%``, ``62–63%`` or ``≥ 94% (TTA)``."""
        augmented = " (TTA)" if self.metric == "accuracy_augmented" else ""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}%{augmented}"
        if self.range is not None:
            return f"{self.range[0]:g}–{self.range[1]:g}%{augmented}"
        return f"{self.value}%{augmented}"


# --- the recipe: everything that decides the result ----------------------------------------------


class HeldOut(Schema):
    """A validation split taken from the training images.

    The first ``images`` of the training images in the order of ``numpy.random.RandomState(seed).shuffle``.
    """

    images: Count
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42


class Data(Schema):
    """Which images, how they are split, and the constants that normalise them."""

    dataset: DatasetName
    mean: RGB
    std: RGB
    validation: Annotated[HeldOut | None, MaybeNotGiven] = None
    train_images: Annotated[Annotated[int, Field(ge=2, le=TRAIN_IMAGES)] | None, MaybeNotGiven] = None
    """Use only this many training images (the validation split is taken from them)."""
    test_images: Annotated[Annotated[int, Field(ge=1, le=TEST_IMAGES)] | None, MaybeNotGiven] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {list(self.std)}")
        if self.validation is not None and self.validation.images >= self.available_images:
            raise ValueError(
                f"validation.images = {self.validation.images} leaves nothing of the "
                f"{self.available_images} training images to train on"
            )
        return self

    @property
    def available_images(self) -> int:
        """Training images before a validation split is taken away."""
        return self.train_images or TRAIN_IMAGES

    @property
    def num_train(self) -> int:
        """Images trained on in an epoch."""
        return self.available_images - (self.validation.images if self.validation else 0)

    @property
    def num_test(self) -> int:
        """Images of the test set that are used."""
        return self.test_images or TEST_IMAGES

    @property
    def num_classes(self) -> int:
        """Classes of the dataset."""
        return NUM_CLASSES[self.dataset]


class ImageSize(Schema):
    """A stretch of training on images of one size."""

    pixels: Annotated[int, Field(ge=8, le=IMAGE_SIZE)]
    """Side that training images are downsampled to (bilinear, antialiased, as Pillow does)."""
    epochs: Annotated[float, Field(gt=0)]
    """How long; a part of an epoch is a part of its steps."""


def relative_area(sizes: Iterable[tuple[int, float]], *, full_size: int, epochs: int) -> float:
    """Pixels of a training image, on average over the run, as a part of those of an image of the full size.

    Args:
        sizes: Rows of the images and for how many epochs, as in a recipe; none where all are of the full size.
        full_size: Rows and columns of a test image.
        epochs: Of the whole run.
    """
    pixels = sum(size**2 * length for size, length in sizes)
    return pixels / (full_size**2 * epochs) if pixels else 1.0


class Jitter(Schema):
    """Brightness and contrast that vary from image to image, by chance; after hiverge/cifar10-speedrun.

    Both act on the normalised image, brightness first.
    """

    brightness: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Most that is added to an image's values or taken from them, in standard deviations of a pixel."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Most that the factor of an image's values is above or below 1."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.brightness and not self.contrast:
            raise ValueError("a jitter without brightness and contrast changes nothing; leave it out")
        return self


class Augmentation(Schema):
    """What happens to a training image; ``resize`` happens to a test image too."""

    resize: Annotated[Annotated[int, Field(ge=8, le=512)] | None, MaybeNotGiven] = None
    """Side in pixels that every image is resized to (bilinear, antialiased, as Pillow does); where ``sizes`` are given,
    every test image."""
    crop_padding: Annotated[int, Field(ge=0, lt=IMAGE_SIZE)] = 0
    """Pixels padded on each side before a random crop of the original size."""
    padding_mode: Literal["zeros", "reflect"] = "zeros"
    flip: bool = False
    """Mirror left to right with probability one half."""
    flip_mode: Annotated[Literal["random", "alternating"] | None, MaybeNotGiven] = None
    """``alternating``: chance decides for the first epoch only, and then every image is mirrored in every other epoch
    (K. Jordan, arXiv 2404.00498). ``random`` where it is not given: chance decides every time."""
    jitter: Annotated[Jitter | None, MaybeNotGiven] = None
    sizes: Annotated[Annotated[tuple[ImageSize, ...], Field(strict=False, min_length=1)] | None, MaybeNotGiven] = None
    """Train on smaller images at first; together as long as the run. Test images keep their size, or that of
    ``resize``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.flip_mode is not None and not self.flip:
            raise ValueError(f'flip_mode = "{self.flip_mode}" needs flip = true')
        return self


class Whitening(Schema):
    """A frozen convolution before the network that whitens the patches of training images.

    Its filters are the eigenvectors of the patches' covariance, each divided by the root of its eigenvalue, and
    their negatives (D. Page, "How to train your ResNet"; K. Jordan, arXiv 2404.00498). Its bias is trained: it is the
    parameter ``whitening.bias``.
    """

    kernel_size: Annotated[int, Field(ge=2, le=5)] = 2
    padding: Annotated[int, Field(ge=0, le=2)] = 0
    images: Annotated[int, Field(ge=1, le=TRAIN_IMAGES)] = 5000
    """How many training images the covariance is taken from; fewer where there are not as many."""
    eps: Annotated[float, Field(gt=0)] = 5e-4
    """Added to the eigenvalues."""


class Network(Schema):
    """The network, by its name in ``resnet_bench.models``."""

    name: str
    whitening: Annotated[Whitening | None, MaybeNotGiven] = None
    num_classes: Annotated[Annotated[int, Field(ge=2, le=1_000_000)] | None, MaybeNotGiven] = None
    """Outputs of the last layer; the dataset's classes where it is not given."""
    allow_unused_classes: bool = False
    """Says that an output layer with more outputs than classes is meant."""
    options: Annotated[dict[Annotated[str, Field(pattern=_OPTION)], OptionValue], BeforeValidator(_given)] = Field(
        default_factory=dict
    )
    """Arguments of the network's own, such as ``dropout``."""


class SGDSettings(Schema):
    """The arguments of ``torch.optim.SGD``."""

    lr: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true needs a momentum above 0")
        return self


class SGD(SGDSettings):
    """``torch.optim.SGD``."""

    name: Literal["sgd"]


class AdamFamily(Schema):
    """What ``torch.optim.Adam`` and ``torch.optim.AdamW`` share."""

    lr: Annotated[float, Field(gt=0)]
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], Field(strict=False)
    ] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class Adam(AdamFamily):
    """``torch.optim.Adam``: weight decay is coupled, an L2 term in the gradient."""

    name: Literal["adam"]


class AdamW(AdamFamily):
    """``torch.optim.AdamW``: weight decay is decoupled from the gradient."""

    name: Literal["adamw"]


class Muon(SGDSettings):
    """Muon for the filters of convolutions, SGD for everything else (K. Jordan, kellerjordan.github.io/posts/muon).

    A filter tensor [out, in, h, w] is seen as a matrix [out, in·h·w]; its momentum, orthogonalised, is its update.
    """

    name: Literal["muon"]
    steps: Annotated[int, Field(ge=1, le=10)] = 3
    """Newton–Schulz iterations."""
    normalize_filters: bool = True
    """Bring each filter tensor to the norm √out before its update."""
    rest: SGDSettings
    """For biases, BatchNorm's parameters and whatever else is no filter."""
    head: Annotated[SGDSettings | None, MaybeNotGiven] = None
    """For the weights of linear layers; like the rest where it is not given."""


Optimizer = Annotated[SGD | Adam | AdamW | Muon, Field(discriminator="name")]


class Constant(Schema):
    """The learning rate of the optimizer throughout."""

    name: Literal["constant"]


class OneCycle(Schema):
    """``torch.optim.lr_scheduler.OneCycleLR`` over the whole run, stepped every batch.

    Its peak is the learning rate of the optimizer; the defaults are torch's.
    """

    name: Literal["one_cycle"]
    rising_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    initial_divisor: Annotated[float, Field(gt=1)] = 25.0
    final_divisor: Annotated[float, Field(gt=1)] = 1e4
    cycle_momentum: bool = True
    base_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.85
    max_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.cycle_momentum and self.base_momentum > self.max_momentum:
            raise ValueError(f"base_momentum = {self.base_momentum} is above max_momentum = {self.max_momentum}")
        return self


class MultiStep(Schema):
    """``torch.optim.lr_scheduler.MultiStepLR``: the rate is multiplied by ``factor`` at each milestone."""

    name: Literal["multi_step"]
    milestones: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)]
    """Epochs after which the rate changes, rising."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if not _rises(self.milestones):
            raise ValueError(f"milestones must rise, got {shown(list(self.milestones))}")
        return self


class Phase(Schema):
    """A stretch of epochs at one learning rate."""

    epochs: Count
    factor: Annotated[float, Field(gt=0)]
    """The rate, as a multiple of the optimizer's learning rate."""


class Phases(Schema):
    """Phases started by hand one after another, each with a fresh optimizer where the momentum restarts."""

    name: Literal["phases"]
    phases: Annotated[tuple[Phase, ...], Field(strict=False, min_length=1)]
    restart_momentum: bool = True


class Plateau(Schema):
    """``torch.optim.lr_scheduler.ReduceLROnPlateau`` on the loss of the first evaluated split."""

    name: Literal["plateau"]
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience: Annotated[int, Field(ge=0, le=1_000_000_000)] = 10
    threshold: Annotated[float, Field(ge=0)] = 1e-4
    min_lr: Annotated[float, Field(ge=0)] = 0.0


class Cosine(Schema):
    """``torch.optim.lr_scheduler.CosineAnnealingLR`` over the whole run, stepped every batch."""

    name: Literal["cosine"]
    final_factor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The rate at the end, as a multiple of the optimizer's learning rate."""


class Linear(Schema):
    """The learning rate rises linearly, if it shall, and then falls linearly, stepped every batch."""

    name: Literal["linear"]
    rising_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The part of the run in which the rate rises from 0 to the optimizer's."""
    final_factor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The rate at the end, as a multiple of the optimizer's learning rate."""


Schedule = Annotated[
    Constant | OneCycle | MultiStep | Phases | Plateau | Cosine | Linear,
    Field(discriminator="name"),
]


class Freeze(Schema):
    """Parameters that are no longer trained from some point on."""

    parameters: Annotated[str, Field(min_length=1, max_length=200)]
    """Their names, or a shell pattern such as ``group1.*``."""
    after_epochs: Annotated[float, Field(ge=0)]
    """How long they are trained; a part of an epoch is a part of its steps."""


class Training(Schema):
    """The training loop."""

    epochs: Count
    batch_size: Count
    last_batch: Literal["keep", "drop"] = "keep"
    """Whether a smaller batch at the end of an epoch is trained on."""
    clip_value: Annotated[Annotated[float, Field(gt=0)] | None, MaybeNotGiven] = None
    """Clip each gradient entry to ± this (``torch.nn.utils.clip_grad_value_``)."""
    clip_norm: Annotated[Annotated[float, Field(gt=0)] | None, MaybeNotGiven] = None
    """Scale all gradients so that their joint 2-norm is at most this."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    freeze: Annotated[Annotated[tuple[Freeze, ...], Field(strict=False, min_length=1)] | None, MaybeNotGiven] = None
    """Where all parameters below a layer are frozen, the backward pass ends there."""
    reported_loss: Literal["mean", "last_batch"] = "mean"
    """What the source prints as an epoch's training loss; the mean is logged as well."""
    train_accuracy: Literal["running", "separate_pass"] = "running"
    """``separate_pass``: after each epoch the training set is run through once more, shuffled and augmented as
    for training, in the mode of the evaluation."""

    @model_validator(mode="after")
    def _one_clip(self) -> Self:
        if self.clip_value is not None and self.clip_norm is not None:
            raise ValueError("give clip_value or clip_norm, not both")
        return self


class Views(Schema):
    """Views of an image over which the network's outputs are averaged, after the last epoch."""

    mirror: bool = True
    """Average each view with its mirror image."""
    shift: Annotated[int, Field(ge=0, le=8)] = 0
    """Give half of the weight to the image moved by so many pixels, up and left, and down and right (reflected at the
    border)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.mirror and not self.shift:
            raise ValueError("neither mirror nor shift is asked for; leave test_time_augmentation out")
        return self


class Evaluation(Schema):
    """How accuracy is measured, the source's way. The plain way is always measured beside it."""

    batch_size: Count
    mode: Literal["eval", "batch_statistics"] = "eval"
    """``batch_statistics``: the source never calls ``eval()``, so BatchNorm uses the statistics of the batch
    and dropout stays active."""
    averaging: Literal["images", "batches"] = "images"
    """``batches``: the unweighted mean of the batches' means, which over-weights a smaller last batch."""
    shuffle: bool = False
    before_training: bool = False
    """Evaluate once before the first step; the curve then starts at epoch 0."""
    splits: Annotated[tuple[Literal["validation", "test"], ...], Field(strict=False)] = ("test",)
    """Splits evaluated while training; ``test`` here means that the source looks at its test set."""
    every: Count = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""
    test_at_end: bool = True
    test_time_augmentation: Annotated[Views | None, MaybeNotGiven] = None
    """Also measure the accuracy over several views of each image, and report it apart from the plain one."""


class Recipe(Schema):
    """Everything that decides the result of a training run."""

    data: Data
    augmentation: Augmentation = Augmentation()
    model: Network
    optimizer: Optimizer
    schedule: Schedule
    training: Training
    evaluation: Evaluation

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for problem in _inconsistencies(self):
            raise ValueError(problem)
        return self

    @property
    def num_outputs(self) -> int:
        """Outputs of the network's last layer."""
        return self.model.num_classes or self.data.num_classes

    @property
    def image_size(self) -> int:
        """Side, in pixels, of the images that the network sees."""
        return self.augmentation.resize or IMAGE_SIZE

    @property
    def relative_area(self) -> float:
        """Pixels of a training image, on average over the run, as a part of those of a test image."""
        sizes = [(size.pixels, size.epochs) for size in self.augmentation.sizes or ()]
        return relative_area(sizes, full_size=self.image_size, epochs=self.training.epochs)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        whole, rest = divmod(self.data.num_train, self.training.batch_size)
        return whole + (1 if rest and self.training.last_batch == "keep" else 0)

    @property
    def canonical(self) -> str:
        """The recipe as text in one spelling, whatever the order of keys or the way its numbers are written.

        Optional fields that are not given are left out, so that a field added later with no effect by
        default changes no fingerprint.
        """
        return json.dumps(_canonical(self.model_dump(exclude_none=True)), sort_keys=True, separators=(",", ":"))

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that two recipes share exactly when all their fields agree."""
        text = f"resnet-bench recipe {FINGERPRINT_VERSION}\n{self.canonical}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def flat(self) -> dict[str, Any]:
        """Every field under its dotted key, such as ``optimizer.lr``; what is not given is left out."""
        return dict(_flatten(self.model_dump(exclude_none=True, mode="json")))


class Tuned(Schema):
    """What the study that found a tuned recipe measured; written by ``resnet-bench study export``."""

    study: str
    trials: Annotated[int, Field(ge=1)]
    validation_source: float
    """Validation accuracy of the source's settings in the study, percent."""
    validation_tuned: float
    test_source: float | None = None
    """Mean test accuracy of the source's settings retrained with fresh seeds, percent."""
    test_tuned: float | None = None
    test_difference: float | None = None
    test_interval: Annotated[tuple[float, float], Field(strict=False)] | None = None
    """95% interval of the difference, points."""
    seeds: Annotated[int, Field(ge=0)] = 0


class Benchmark(Schema):
    """One file of ``benchmarks/``: a source, its claims and one recipe."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=MAX_NAME_LENGTH)]
    extends: str | None = None
    source: Source
    claims: Annotated[tuple[Claim, ...], Field(strict=False)] = ()
    recipe: Recipe
    profiles: dict[Literal["smoke"], Recipe] = Field(default_factory=dict)
    """The whole recipe of each profile, its differences already merged in."""
    tuned: Tuned | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for claim in self.claims:
            if claim.epoch is not None and claim.epoch > self.recipe.training.epochs:
                raise ValueError(
                    f"claims: epoch {claim.epoch} lies beyond training.epochs = {self.recipe.training.epochs}"
                )
            if claim.curve is not None and claim.curve.epochs[-1] > self.recipe.training.epochs:
                raise ValueError(
                    f"claims: the curve runs to epoch {claim.curve.epochs[-1]}, beyond training.epochs = "
                    f"{self.recipe.training.epochs}"
                )
            if claim.metric == "accuracy_augmented" and self.recipe.evaluation.test_time_augmentation is None:
                raise ValueError('claims: metric = "accuracy_augmented" needs evaluation.test_time_augmentation')
            if claim.metric == "accuracy_augmented" and claim.selection != "last":
                raise ValueError('claims: metric = "accuracy_augmented" is measured after the last epoch only')
            if claim.split == "validation" and self.recipe.data.validation is None:
                raise ValueError('claims: split = "validation" needs recipe.data.validation')
        valid = recipe_keys()
        for fact in self.source.facts:
            for key in fact.keys:
                if key not in valid and not key.startswith(OPTIONS_PREFIX):
                    raise ValueError(f"source.facts: {unknown_name('recipe key', key, valid)}")
        return self

    def recipe_for(self, profile: ProfileName) -> Recipe:
        """The recipe of a profile.

        Raises:
            UserError: The benchmark has no such profile.
        """
        if profile == "full":
            return self.recipe
        if profile not in self.profiles:
            raise UserError(f"benchmark {self.name} has no [profiles.{profile}] table; add one or run --profile full")
        return self.profiles[profile]


# --- building and changing recipes ---------------------------------------------------------------

Model = TypeVar("Model", bound=BaseModel)

OPTIONS_PREFIX = "model.options."
"""The options of a network are its own affair: ``resnet_bench.models`` knows their names."""


def parse(schema: type[Model], table: Mapping[str, Any], *, where: str) -> Model:
    """Validate a table against a schema.

    Args:
        schema: The pydantic model to build.
        table: Nested tables as ``tomllib`` returns them.
        where: File or option that the table comes from, named in the error.

    Raises:
        UserError: The first thing that is wrong: where, which key, why, and the nearest valid name.
    """
    try:
        return schema.model_validate(dict(table))
    except ValidationError as error:
        # A mistyped key is also a missing one: it is the unknown key that says what to type.
        order = {"extra_forbidden": 0, "missing": 2}
        problems = sorted(error.errors(include_url=False), key=lambda problem: order.get(problem["type"], 1))
        first = _sentence(schema, problems[0])
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{where}: {first}{more}") from None


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one nested table over another.

    A table that is given another ``name`` (another optimizer, say) replaces the old one, because the old
    one's keys mean nothing to it.
    """
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        renamed = (
            isinstance(below, Mapping)
            and isinstance(value, Mapping)
            and "name" in value
            and value["name"] != below.get("name")
        )
        if isinstance(below, Mapping) and isinstance(value, Mapping) and not renamed:
            merged[key] = merge(below, value)
        else:
            merged[key] = value
    return merged


def override(recipe: Recipe, changes: Mapping[str, Any], *, where: str = "override") -> Recipe:
    """A recipe with some dotted keys changed.

    Where the number of epochs changes and the schedule is not named, the milestones or phases of the
    schedule are scaled to the new length; image sizes and freezing likewise.

    Args:
        recipe: The recipe to start from; it stays as it is.
        changes: Values under dotted keys, such as ``{"optimizer.lr": 0.02}``.
        where: What to call the origin of the changes in an error.

    Raises:
        UserError: An unknown key, a value of the wrong type, or an impossible combination.
    """
    valid = recipe_keys()
    nested: dict[str, Any] = {}
    for key, value in changes.items():
        if key not in valid and not key.startswith(OPTIONS_PREFIX):
            raise UserError(f"{where}: {unknown_name('recipe key', key, valid)}")
        *parents, leaf = key.split(".")
        above = next(
            (".".join(parents[:i]) for i in range(1, len(parents) + 1) if ".".join(parents[:i]) in changes), None
        )
        if above is not None:
            raise UserError(f"{where}: {above} and {key}, which is a part of it, are both given; give one")
        table = nested
        for parent in parents:
            table = table.setdefault(parent, {})
        table[leaf] = value
    return override_nested(recipe, nested, where=where)


def override_nested(recipe: Recipe, changes: Mapping[str, Any], *, where: str) -> Recipe:
    """Like :func:`override`, with the changes as nested tables."""
    base = recipe.model_dump(exclude_none=True)
    table = merge(base, changes)
    epochs = changes.get("training", {}).get("epochs") if isinstance(changes.get("training"), Mapping) else None
    if isinstance(epochs, int) and 0 < epochs <= 1_000_000_000 and "schedule" not in changes:
        table["schedule"] = _scaled_schedule(recipe, epochs)
    if isinstance(epochs, int) and 0 < epochs <= 1_000_000_000:
        _scale_stretches(recipe, epochs, table, changes)
    return parse(Recipe, table, where=where)


def recipe_keys() -> list[str]:
    """Every dotted key that a recipe may have, over all optimizers and schedules."""
    return sorted(set(_keys(Recipe)))


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Dotted keys by as few of their last parts as tell them apart: ``lr``, or ``optimizer.lr`` and ``head.lr``."""

    def ending(key: str, parts: int) -> str:
        return ".".join(key.split(".")[-parts:])

    def shortest(key: str) -> str:
        lengths = range(1, key.count(".") + 2)
        others = [other for other in keys if other != key]
        return next(
            (ending(key, n) for n in lengths if ending(key, n) not in {ending(other, n) for other in others}), key
        )

    return {key: shortest(key) for key in keys}


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> str:
    """One sentence for a name that does not exist, with the nearest that does."""
    names = sorted(valid)
    near = nearest(name, names)
    if near is not None:
        hint = f"; did you mean {near!r}?"
    elif not names:
        hint = ""
    else:
        more = f", … ({len(names)} in all)" if len(names) > 25 else ""
        hint = f"; there are: {', '.join(names[:25])}{more}"
    return f"unknown {kind} {shown(name)}{hint}"


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that looks most like this one, if any does."""
    names = list(valid)
    # Matching takes time quadratic in the length, and no name of ours is this long.
    close = difflib.get_close_matches(name[:120], names, n=1, cutoff=0.5)
    if close:
        return close[0]
    leaf = name.rpartition(".")[2]
    # The shallowest: optimizer.lr rather than optimizer.head.lr.
    same_leaf = [candidate for candidate in names if candidate.rpartition(".")[2] == leaf]
    return min(same_leaf, key=lambda candidate: candidate.count("."), default=None)


def _scaled_schedule(recipe: Recipe, epochs: int) -> dict[str, Any]:
    schedule = recipe.schedule
    ratio = epochs / recipe.training.epochs
    if isinstance(schedule, MultiStep):
        milestones = sorted({round(milestone * ratio) for milestone in schedule.milestones})
        kept = [milestone for milestone in milestones if 0 < milestone < epochs]
        return {**schedule.model_dump(), "milestones": kept} if kept else {"name": "constant"}
    if isinstance(schedule, Phases):
        ends = [round(sum(p.epochs for p in schedule.phases[: i + 1]) * ratio) for i in range(len(schedule.phases))]
        lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        kept_phases = [
            {"epochs": length, "factor": phase.factor}
            for length, phase in zip(lengths, schedule.phases, strict=True)
            if length > 0
        ]
        return {**schedule.model_dump(), "phases": kept_phases}
    return schedule.model_dump()


def _scale_stretches(recipe: Recipe, epochs: int, table: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Let image sizes and freezing, where the changes do not name them, keep their shares of the run."""
    ratio = epochs / recipe.training.epochs

    def named(section: str, key: str) -> bool:
        below = changes.get(section)
        return isinstance(below, Mapping) and key in below

    if recipe.augmentation.sizes is not None and not named("augmentation", "sizes"):
        scaled = [{"pixels": size.pixels, "epochs": size.epochs * ratio} for size in recipe.augmentation.sizes]
        if isinstance(table["augmentation"], dict):
            table["augmentation"] = {**table["augmentation"], "sizes": scaled}
    if recipe.training.freeze is not None and not named("training", "freeze"):
        frozen = [
            {"parameters": freeze.parameters, "after_epochs": freeze.after_epochs * ratio}
            for freeze in recipe.training.freeze
        ]
        table["training"] = {**table["training"], "freeze": frozen}


def _inconsistencies(recipe: Recipe) -> Iterable[str]:
    data, training, evaluation, schedule = recipe.data, recipe.training, recipe.evaluation, recipe.schedule
    if training.batch_size > data.num_train:
        yield f"training.batch_size = {training.batch_size} is larger than the {data.num_train} images to train on"
    if training.batch_size == 1:
        yield "training.batch_size = 1 is too small: BatchNorm cannot train on a single image"
    if training.last_batch == "keep" and data.num_train % training.batch_size == 1:
        yield (
            f"training.batch_size = {training.batch_size} leaves a last batch of one image of {data.num_train}, "
            'which BatchNorm cannot train on; take another size or training.last_batch = "drop"'
        )
    if "validation" in evaluation.splits and data.validation is None:
        yield 'evaluation.splits has "validation", which needs data.validation = {images = …, seed = …}'
    if evaluation.mode == "batch_statistics":
        for split, images in _evaluated(recipe).items():
            if min(images, evaluation.batch_size) == 1 or images % evaluation.batch_size == 1:
                yield (
                    f"evaluation.batch_size = {evaluation.batch_size} leaves a batch of one image of the {images} of "
                    f'the {split} split, which has no batch statistics; take another size or evaluation.mode = "eval"'
                )
    if not evaluation.splits and not evaluation.test_at_end:
        yield "evaluation.splits is empty and evaluation.test_at_end is false: nothing would be measured"
    if len(set(evaluation.splits)) != len(evaluation.splits):
        yield f"evaluation.splits names a split twice: {list(evaluation.splits)}"
    if evaluation.every > training.epochs:
        yield f"evaluation.every = {evaluation.every} is longer than the run, training.epochs = {training.epochs}"
    if isinstance(schedule, OneCycle):
        steps = recipe.steps_per_epoch * training.epochs
        if schedule.rising_fraction * steps <= 1:
            yield (
                f'schedule.name = "one_cycle" has no step to rise in: schedule.rising_fraction = '
                f"{schedule.rising_fraction} of {steps} steps; train for more steps"
            )
    if isinstance(schedule, MultiStep) and schedule.milestones[-1] >= training.epochs:
        yield (
            f"schedule.milestones = {shown(list(schedule.milestones))} run past the last epoch, "
            f"training.epochs = {training.epochs}"
        )
    if isinstance(schedule, Phases) and (total := sum(p.epochs for p in schedule.phases)) != training.epochs:
        longer = "longer" if total > training.epochs else "shorter"
        yield (f"schedule.phases add up to {total} epochs, {longer} than the run, training.epochs = {training.epochs}")
    sizes = recipe.augmentation.sizes
    if sizes is not None and not math.isclose(total_sizes := sum(size.epochs for size in sizes), training.epochs):
        longer = "longer" if total_sizes > training.epochs else "shorter"
        yield (
            f"augmentation.sizes add up to {total_sizes:g} epochs, {longer} than the run, "
            f"training.epochs = {training.epochs}"
        )
    for freeze in training.freeze or ():
        if freeze.after_epochs >= training.epochs:
            yield (
                f"training.freeze: after_epochs = {freeze.after_epochs:g} of {freeze.parameters!r} is no shorter than "
                f"the run, training.epochs = {training.epochs}"
            )
    if isinstance(recipe.optimizer, Muon) and isinstance(schedule, Cosine | Plateau | OneCycle):
        yield (
            f'schedule.name = "{schedule.name}" sets one learning rate, and optimizer.name = "muon" has several; '
            "take constant, linear, multi_step or phases"
        )
    if isinstance(schedule, Plateau) and not evaluation.splits:
        yield 'schedule.name = "plateau" needs a split in evaluation.splits to watch'
    if recipe.num_outputs < data.num_classes:
        yield (
            f"model.num_classes = {recipe.num_outputs} is fewer than the {data.num_classes} classes of {data.dataset}"
        )
    if recipe.num_outputs > data.num_classes and not recipe.model.allow_unused_classes:
        yield (
            f"model.num_classes = {recipe.num_outputs} on the {data.num_classes} classes of {data.dataset}; "
            "if that is meant, say model.allow_unused_classes = true"
        )


def _evaluated(recipe: Recipe) -> dict[str, int]:
    """The number of images of every split that is measured the way of the evaluation."""
    data, evaluation = recipe.data, recipe.evaluation
    images = {"test": data.num_test, "validation": data.validation.images if data.validation else 0}
    splits = {*evaluation.splits, *(["test"] if evaluation.test_at_end else [])}
    train = {"train": data.num_train} if recipe.training.train_accuracy == "separate_pass" else {}
    return {split: images[split] for split in sorted(splits)} | train


def _rises(numbers: Sequence[int]) -> bool:
    return list(numbers) == sorted(set(numbers))


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _canonical(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(below) for below in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        # 1 and 1.0 are one number, and so are -0.0 and 0.0; an integer beyond a float's digits stays one.
        return float(value) + 0.0 if float(value) == value else value
    return value


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _keys(annotation: Any, prefix: str = "") -> Iterable[str]:
    for model in _models_in(annotation):
        for name, field in model.model_fields.items():
            yield f"{prefix}{name}"
            yield from _keys(field.annotation, f"{prefix}{name}.")


def _models_in(annotation: Any, *, items: bool = False) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif items or getattr(annotation, "__origin__", None) not in (tuple, dict):
        # The keys of an item of a list, such as a phase's, have no dotted name of their own.
        for argument in get_args(annotation):
            yield from _models_in(argument, items=items)


def _sentence(schema: type[BaseModel], problem: Mapping[str, Any]) -> str:
    path, siblings = _place(schema, problem["loc"])
    key = _dotted(part for part in path if part != "[key]")
    kind = problem["type"]
    if kind == "extra_forbidden":
        return _unknown_key(schema, path, siblings)
    if kind == "missing":
        return f"{key} is missing"
    if kind == "union_tag_invalid":
        context = problem["ctx"]
        tags = [tag.strip(" '") for tag in str(context["expected_tags"]).split(",")]
        return unknown_name(f"{key}.name", str(context["tag"]), tags)
    if kind == "union_tag_not_found":
        return f"{key}.name is missing"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(problem["ctx"]["expected"]))
        if isinstance(problem["input"], str):
            return f"{key}: {unknown_name('value', problem['input'], choices)}"
        return f"{key}: must be one of {', '.join(choices)}, got {shown(problem['input'])}"
    if kind == "value_error":
        return f"{key}: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"])
    if kind == "string_pattern_mismatch":
        return f"{key}: {_PATTERNS[problem['ctx']['pattern']]}, got {shown(problem['input'])}"
    message = _PLAIN_MESSAGES.get(kind, str(problem["msg"]).removeprefix("Input "))
    return f"{key}: {message}, got {shown(problem['input'])}"


_PLAIN_MESSAGES = {
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "dict_type": "must be a table",
    "tuple_type": "must be a list",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "string_type": 'must be a string, in "quotes"',
    "too_long": "has too many values",
    "too_short": "has too few values",
}

_PATTERNS = {
    NAME_PATTERN: "a name is lower-case letters, digits and hyphens, such as resnet9-dropout",
    _OPTION: "the name of an option is lower-case letters, digits and underscores",
    _ADDRESS: "an address starts with https://",
    _PRINTED_NUMBER: 'must be the number as it is printed, such as "82.87"',
}


def _place(schema: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], set[str]]:
    """Where in the file a problem is: the keys that lead there, and the valid keys beside the last of them."""
    path: list[str] = []
    owners: list[type[BaseModel]] = []
    candidates = [schema]
    for part in location:
        tagged = [model for model in candidates if _tag(model) == part]
        if len(candidates) > 1 and tagged:
            # The tag of a discriminated union stands in the location but is no key of the file.
            candidates = tagged
            continue
        path.append(str(part))
        owners = candidates
        below = [
            found
            for model in candidates
            if part in model.model_fields
            for found in _models_in(model.model_fields[str(part)].annotation, items=True)
        ]
        candidates = below or candidates
    return path, {name for model in owners for name in model.model_fields}


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("name")
    values = get_args(field.annotation) if field is not None else ()
    return values[0] if len(values) == 1 and isinstance(values[0], str) else None


def _unknown_key(schema: type[BaseModel], path: Sequence[str], siblings: Iterable[str]) -> str:
    *parents, name = path
    key, beside = _dotted(path), {sibling: _dotted([*parents, sibling]) for sibling in siblings}
    known = sorted(set(_keys(schema)))
    if key in known:
        return f"{key} means nothing to this {_dotted(parents)}.name; there are: {', '.join(sorted(beside.values()))}"
    near = nearest(name, beside)
    elsewhere = [other for other in known if other.rpartition(".")[2] == name]
    if elsewhere:
        return f"unknown key {shown(key)}; did you mean {min(elsewhere, key=lambda other: other.count('.'))!r}?"
    return unknown_name("key", key, beside.values() if near is None else [beside[near]])


def _dotted(path: Iterable[str]) -> str:
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", ".".join(path))


def shown(value: Any) -> str:
    """The value short enough for an error sentence, whatever a file holds."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlist = 2, 120, 80, 8
    if isinstance(value, bool):
        return str(value).lower()
    try:
        return short.repr(value)
    except ValueError:  # Python prints no whole number of more than 4300 digits.
        return "a number of thousands of digits"
