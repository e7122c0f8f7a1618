"""The sections of a recipe: data, augmentation, model, optimizer, schedule, training, evaluation."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from resnet_bench.base.errors import UserError
from resnet_bench.base.names import shown, unknown_name
from resnet_bench.recipe.dataset_files import (
    FOLDER,
    DatasetDescription,
    describe_folder,
    facts_of,
    find_dataset_file,
    known_datasets,
    load_dataset_file,
)
from resnet_bench.recipe.datasets import DATASETS, DatasetFacts
from resnet_bench.recipe.schema import (
    OPTION_PATTERN,
    RGB,
    Count,
    MaybeNotGiven,
    OptionValue,
    Schema,
    rises,
    without_absent,
)

SplitName = Literal["train", "validation", "test"]


def _known_dataset(name: str, info: ValidationInfo) -> str:
    # What is described needs no file: a report reads recipes on another machine.
    if name not in DATASETS and "description" in info.data and info.data["description"] is None:
        raise ValueError(unknown_name("value", name, known_datasets()))
    return name


DatasetName = Annotated[str, AfterValidator(_known_dataset)]


class ValidationSplit(Schema):
    """A validation split taken from the training images.

    The first ``images`` of the training images in the order of ``numpy.random.RandomState(seed).shuffle``.
    """

    images: Count
    """How many."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed that draws them."""


class Data(Schema):
    """Which images, how they are split, and the constants that normalize them."""

    description: Annotated[DatasetDescription | None, MaybeNotGiven] = None
    """What your own dataset is: read from ``datasets/NAME.toml``, or from the folder at ``path``."""
    path: Annotated[Annotated[str, Field(min_length=1)] | None, MaybeNotGiven] = None
    """With ``dataset = "folder"``: the folder that has ``train/<class>`` and ``test/<class>``. It decides no result
    and is not in the fingerprint."""
    dataset: DatasetName
    """``cifar10``, ``cifar100``, the name of a file in ``datasets/``, or ``folder``."""
    mean: RGB
    """Of each channel, of pixels between 0 and 1; the dataset's own where it is not given."""
    std: RGB
    """Likewise."""
    validation: Annotated[ValidationSplit | None, MaybeNotGiven] = None
    """Training images that are held out."""
    train_images: Annotated[Annotated[int, Field(ge=2)] | None, MaybeNotGiven] = None
    """Use only this many training images (the validation split is taken from them)."""
    test_images: Annotated[Annotated[int, Field(ge=1)] | None, MaybeNotGiven] = None
    """Number of test images to use; all by default."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, table: Any) -> Any:
        if not isinstance(table, Mapping):
            return table
        name = table.get("dataset")
        if not isinstance(name, str):
            return table
        if name in DATASETS:
            return {"mean": DATASETS[name].mean, "std": DATASETS[name].std, **table}
        try:
            return _with_description(name, table)
        except UserError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {list(self.std)}")
        self._check_description()
        sizes = {"train_images": self.facts.train_size, "test_images": self.facts.test_size}
        for key, size in sizes.items():
            if (wanted := getattr(self, key)) is not None and wanted > size:
                raise ValueError(f"{key} = {shown(wanted)} is more than the {size} of {self.dataset}")
        if self.validation is not None and self.validation.images >= self.available_images:
            raise ValueError(
                f"validation.images = {self.validation.images} leaves nothing of the "
                f"{self.available_images} training images to train on"
            )
        return self

    def _check_description(self) -> None:
        if self.dataset in DATASETS and self.description is not None:
            raise ValueError(f"description: {self.dataset} is built in; only your own dataset has a description")
        if self.path is not None and self.dataset != FOLDER:
            raise ValueError(f'path: only dataset = "{FOLDER}" takes one, and this is {self.dataset}')
        if self.description is not None and self.description.train_images is None:
            raise ValueError(_no_training_images(self.dataset))

    @property
    def facts(self) -> DatasetFacts:
        """The facts of the dataset."""
        if self.description is None:
            return DATASETS[self.dataset]
        return facts_of(self.dataset, self.description, self.path)

    @property
    def available_images(self) -> int:
        """Training images before the validation split is removed."""
        return self.train_images or self.facts.train_size

    @property
    def num_train(self) -> int:
        """Images trained on per epoch."""
        return self.available_images - (self.validation.images if self.validation else 0)

    @property
    def num_test(self) -> int:
        """Images of the test set that are used."""
        return self.test_images or self.facts.test_size


def _no_training_images(name: str) -> str:
    return f"{name} has no training images; test a trained run on it with: resnet-bench evaluate RUN --dataset {name}"


def _with_description(name: str, table: Mapping[str, Any]) -> Mapping[str, Any]:
    """Describe a dataset that is not built in, unless the table does."""
    given = table.get("description")
    given = given if isinstance(given, Mapping) else {}
    if "classes" in given:
        return table
    if name == FOLDER:
        if not isinstance(path := table.get("path"), str):
            raise UserError(f'path is missing: with dataset = "{FOLDER}" it names the folder')
        for key in ("mean", "std"):
            if key not in table:
                raise UserError(f"{key} is missing; resnet-bench data describe {path} prints it")
        return {**table, "description": describe_folder(path, given)}
    file = find_dataset_file(name)
    if file is None:
        return table
    found = load_dataset_file(file)
    if found.train is None:
        raise UserError(_no_training_images(name))
    statistics = {"mean": found.mean, "std": found.std} if found.mean is not None else {}
    return {**statistics, **table, "description": {**found.description.model_dump(exclude_none=True), **given}}


class ResizeStage(Schema):
    """A stage of training on images of one size."""

    pixels: Annotated[int, Field(ge=8)]
    """Side that training images are downsampled to (bilinear, antialiased, equal to Pillow's)."""
    epochs: Annotated[float, Field(gt=0)]
    """Length; a fraction of an epoch is a fraction of its steps."""


def relative_pixels(sizes: Iterable[tuple[int, float]], *, full_size: int, epochs: int) -> float:
    """Compute the relative pixel count of a run: the mean over its epochs, as a fraction of the full size.

    Args:
        sizes: Side of the images in pixels and number of epochs of each stage; empty where all are of the full size.
        full_size: Side of a test image in pixels.
        epochs: Epochs of the whole run.
    """
    pixels = sum(size**2 * length for size, length in sizes)
    return pixels / (full_size**2 * epochs) if pixels else 1.0


class Jitter(Schema):
    """Random brightness and contrast per image, after hiverge/cifar10-speedrun.

    Both apply to the normalized image, brightness first.
    """

    brightness: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Largest value added to or subtracted from an image, in standard deviations of a pixel."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest distance of an image's factor from 1."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.brightness and not self.contrast:
            raise ValueError("a jitter without brightness and contrast changes nothing; leave it out")
        return self


class Augmentation(Schema):
    """What happens to a training image; ``resize`` happens to a test image too."""

    resize: Annotated[Annotated[int, Field(ge=8, le=512)] | None, MaybeNotGiven] = None
    """Side in pixels that every image is resized to (bilinear, antialiased, equal to Pillow's). Where ``sizes`` is
    given, it applies to test images only."""
    crop_padding: Annotated[int, Field(ge=0)] = 0
    """Pixels padded on each side before a random crop of the original size."""
    padding_mode: Literal["zeros", "reflect"] = "zeros"
    """What the padding holds."""
    flip: bool = False
    """Flip left to right with probability one half."""
    flip_mode: Annotated[Literal["random", "alternating"] | None, MaybeNotGiven] = None
    """``alternating``: the first epoch is random, and then every image is flipped in every other epoch
    (K. Jordan, arXiv 2404.00498). ``random``, the default: every epoch is random."""
    jitter: Annotated[Jitter | None, MaybeNotGiven] = None
    """Random changes of color per image."""
    sizes: Annotated[Annotated[tuple[ResizeStage, ...], Field(strict=False, min_length=1)] | None, MaybeNotGiven] = None
    """Progressive resizing: train on smaller images first. The stages add up to the run. Test images keep their size,
    or that of ``resize``."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.flip_mode is not None and not self.flip:
            raise ValueError(f'flip_mode = "{self.flip_mode}" needs flip = true')
        return self


class Whitening(Schema):
    """A frozen convolution before the model that whitens the patches of training images.

    Its filters are the eigenvectors of the patches' covariance, each divided by the root of its eigenvalue, and
    their negatives (D. Page, "How to train your ResNet"; K. Jordan, arXiv 2404.00498). Its bias is trained: it is the
    parameter ``whitening.bias``.
    """

    kernel_size: Annotated[int, Field(ge=2, le=5)] = 2
    padding: Annotated[int, Field(ge=0, le=2)] = 0
    images: Count = 5000
    """Training images that the covariance is computed from; all of them where there are fewer."""
    eps: Annotated[float, Field(gt=0)] = 5e-4
    """Added to the eigenvalues."""


class ModelConfig(Schema):
    """The model, by its name in ``resnet_bench.models``."""

    name: str
    """The network."""
    whitening: Annotated[Whitening | None, MaybeNotGiven] = None
    """A frozen first layer that whitens patches."""
    num_classes: Annotated[Annotated[int, Field(ge=2, le=1_000_000)] | None, MaybeNotGiven] = None
    """Outputs of the last layer; the dataset's classes where it is not given."""
    allow_unused_classes: bool = False
    """Allow an output layer with more outputs than classes."""
    options: Annotated[
        dict[Annotated[str, Field(pattern=OPTION_PATTERN)], OptionValue], BeforeValidator(without_absent)
    ] = Field(default_factory=dict)
    """Arguments of the model's constructor, such as ``dropout``."""


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


class MuonConfig(SGDSettings):
    """Muon for the filters of convolutions, SGD for everything else (K. Jordan, kellerjordan.github.io/posts/muon).

    A filter tensor [out, in, h, w] is seen as a matrix [out, in·h·w]; its momentum, orthogonalised, is its update.
    """

    name: Literal["muon"]
    steps: Annotated[int, Field(ge=1, le=10)] = 3
    """Newton–Schulz iterations."""
    normalize_filters: bool = True
    """Bring each filter tensor to the norm √out before its update."""
    rest: SGDSettings
    """For biases, BatchNorm parameters and everything else that is not a filter."""
    head: Annotated[SGDSettings | None, MaybeNotGiven] = None
    """For the weights of linear layers; the rest's by default."""


Optimizer = Annotated[SGD | Adam | AdamW | MuonConfig, Field(discriminator="name")]


class Constant(Schema):
    """The learning rate of the optimizer throughout."""

    name: Literal["constant"]


class OneCycle(Schema):
    """``torch.optim.lr_scheduler.OneCycleLR`` over the whole run, stepped per batch.

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
        if not rises(self.milestones):
            raise ValueError(f"milestones must rise, got {shown(list(self.milestones))}")
        return self


class Phase(Schema):
    """Epochs at one learning rate."""

    epochs: Count
    factor: Annotated[float, Field(gt=0)]
    """The rate, as a multiple of the optimizer's learning rate."""


class Phases(Schema):
    """Phases that the source starts by hand, each with a new optimizer where the momentum restarts."""

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
    """``torch.optim.lr_scheduler.CosineAnnealingLR`` over the whole run, stepped per batch."""

    name: Literal["cosine"]
    final_factor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The rate at the end, as a multiple of the optimizer's learning rate."""


class Linear(Schema):
    """A linear warm-up, if any, and a linear decay, stepped per batch."""

    name: Literal["linear"]
    rising_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of the run in which the rate rises from 0 to the optimizer's."""
    final_factor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The rate at the end, as a multiple of the optimizer's learning rate."""


Schedule = Annotated[
    Constant | OneCycle | MultiStep | Phases | Plateau | Cosine | Linear,
    Field(discriminator="name"),
]


class Freeze(Schema):
    """Parameters that are frozen after some epochs."""

    parameters: Annotated[str, Field(min_length=1, max_length=200)]
    """Their names, or a shell pattern such as ``group1.*``."""
    after_epochs: Annotated[float, Field(ge=0)]
    """Epochs that they are trained for; a fraction of an epoch is a fraction of its steps."""


class Training(Schema):
    """The training loop."""

    epochs: Count
    """Passes over the training images."""
    batch_size: Count
    """Images per step."""
    last_batch: Literal["keep", "drop"] = "keep"
    """Whether to train on a smaller batch at the end of an epoch."""
    clip_value: Annotated[Annotated[float, Field(gt=0)] | None, MaybeNotGiven] = None
    """Clip each gradient entry to ± this (``torch.nn.utils.clip_grad_value_``)."""
    clip_norm: Annotated[Annotated[float, Field(gt=0)] | None, MaybeNotGiven] = None
    """Scale all gradients so that their joint 2-norm is at most this."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that is spread over all classes."""
    freeze: Annotated[Annotated[tuple[Freeze, ...], Field(strict=False, min_length=1)] | None, MaybeNotGiven] = None
    """The backward pass ends at a layer below which all parameters are frozen."""
    reported_loss: Literal["mean", "batches", "last_batch"] = "mean"
    """What the source prints as an epoch's training loss: the mean over images, the plain mean of the batches' means,
    or that of the last batch. The mean over images is logged as well."""
    train_accuracy: Literal["running", "separate_pass"] = "running"
    """``separate_pass``: evaluate the training set in a second pass after each epoch, shuffled and augmented as in
    training, in the mode of the evaluation."""

    @model_validator(mode="after")
    def _one_clip(self) -> Self:
        if self.clip_value is not None and self.clip_norm is not None:
            raise ValueError("give clip_value or clip_norm, not both")
        return self


class TestTimeAugmentation(Schema):
    """Views of an image over which the model's outputs are averaged, after the last epoch."""

    mirror: bool = True
    """Average each view with its flipped copy."""
    shift: Annotated[int, Field(ge=0, le=8)] = 0
    """Give half of the weight to the image shifted by so many pixels, up and left, and down and right (reflected at
    the border)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.mirror and not self.shift:
            raise ValueError("neither mirror nor shift is asked for; leave test_time_augmentation out")
        return self


class Evaluation(Schema):
    """The source's protocol for measuring accuracy. The standard accuracy is always measured beside it."""

    batch_size: Count
    """Images per batch."""
    mode: Literal["eval", "batch_statistics"] = "eval"
    """``batch_statistics``: the source never calls ``eval()``, so BatchNorm uses the statistics of the batch
    and dropout stays active."""
    averaging: Literal["images", "batches"] = "images"
    """``batches``: the unweighted mean of the batches' means, which over-weights a smaller last batch."""
    shuffle: bool = False
    """Whether images are evaluated in random order, as a source may do."""
    before_training: bool = False
    """Evaluate once before the first step; the curve then starts at epoch 0."""
    splits: Annotated[tuple[Literal["validation", "test"], ...], Field(strict=False)] = ("test",)
    """Splits evaluated while training; ``test`` here means that the source looks at its test set."""
    every: Count = 1
    """Epochs between two evaluations; the last epoch is always evaluated."""
    test_at_end: bool = True
    """Whether the test images are evaluated after the last epoch, whatever ``splits`` says."""
    test_time_augmentation: Annotated[TestTimeAugmentation | None, MaybeNotGiven] = None
    """Also measure the TTA accuracy, and report it beside the standard one."""

    @property
    def depends_on_order(self) -> bool:
        """Whether the accuracy depends on which images share a batch, and their order says which do."""
        return self.mode == "batch_statistics" and not self.shuffle
