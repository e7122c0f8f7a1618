"""The baseline loop: training as the sources do it.

Pillow images go through torchvision's transforms one at a time, in as many loader processes as the source has. The
model is fp32, contiguous and eager; the optimizer is torch's default; and `.item()` syncs every step.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from resnet_bench.base.machine import ensure_sockets
from resnet_bench.data.dataset import Split
from resnet_bench.execution.execution import Execution
from resnet_bench.models.of_recipe import build_network
from resnet_bench.recipe.benchmark import Benchmark
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.recipe.settings import Jitter
from resnet_bench.training.optimizers import build_optimizer, clip_gradients
from resnet_bench.training.schedules import build_schedule

LOADER_WORKERS: Mapping[str, int] = {"resnet9-onecycle-adam": 3, "cifar100-resnet": 4}
"""`num_workers` in the sources' listings; the other two give none, which is 0."""


def loader_workers(benchmark: Benchmark) -> int:
    """Return the loader processes of a benchmark's source; a variant has those of its parent."""
    return LOADER_WORKERS.get(benchmark.name, LOADER_WORKERS.get(benchmark.extends or "", 0))


class RandomJitter:
    """Brightness and contrast of a normalized image, as a transform: torchvision's own is for images before that."""

    def __init__(self, jitter: Jitter) -> None:
        self._jitter = jitter

    def __call__(self, image: Tensor) -> Tensor:
        brightness, contrast = (2 * torch.rand(2) - 1).tolist()
        return image.add(self._jitter.brightness * brightness).mul(1 + self._jitter.contrast * contrast)


class PillowImages(TorchDataset[tuple[Tensor, int]]):
    """Images as `torchvision.datasets.CIFAR10` keeps and returns them, with the recipe's transforms."""

    def __init__(self, split: Split, recipe: Recipe) -> None:
        from torchvision import transforms

        augmentation = recipe.augmentation
        steps: list[object] = []
        if augmentation.resize:
            steps.append(transforms.Resize((augmentation.resize, augmentation.resize)))
        if augmentation.crop_padding:
            size = split.images.shape[-1]
            mode = {"zeros": "constant"}.get(augmentation.padding_mode, augmentation.padding_mode)
            steps.append(transforms.RandomCrop(size, padding=augmentation.crop_padding, padding_mode=mode))
        if augmentation.flip:
            steps.append(transforms.RandomHorizontalFlip())
        steps += [transforms.ToTensor(), transforms.Normalize(recipe.data.mean, recipe.data.std)]
        if augmentation.jitter is not None:
            steps.append(RandomJitter(augmentation.jitter))
        self.transform = transforms.Compose(steps)
        self._pixels = np.ascontiguousarray(split.images.permute(0, 2, 3, 1).numpy())
        self._targets = split.labels.tolist()

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self._pixels[index])), self._targets[index]


class SourceLoader(DataLoader[tuple[Tensor, int]]):
    """PyTorch's loader without its advice, printed for each pass, to use no more processes than cores."""

    def check_worker_number_rationality(self) -> None:
        """Accept every number of processes: it is the source's choice."""


class BaselineLoop:
    """A source's training loop, step by step, within ``execution.applied()``.

    Args:
        recipe: What is trained.
        execution: Device and threads; the rest is the source's.
        split: The training images.
        workers: Loader processes.
    """

    def __init__(self, recipe: Recipe, execution: Execution, split: Split, *, workers: int) -> None:
        self._recipe = recipe
        self._device = torch.device(execution.device)
        if workers:
            # They hand tensors over through sockets.
            ensure_sockets()
        self.loader = SourceLoader(
            PillowImages(split, recipe),
            recipe.training.batch_size,
            shuffle=True,
            num_workers=workers,
            pin_memory=self._device.type == "cuda",
            drop_last=True,
        )
        self.network = build_network(recipe).to(self._device)
        self.optimizer = build_optimizer(recipe.optimizer, self.network, fused=False)
        self._schedule = build_schedule(recipe, self.optimizer)
        self._schedule.start_epoch(1)
        self.losses: list[float] = []
        self.learning_rates: list[float] = []

    def steps(self) -> Iterator[int]:
        """Train an epoch; yield the number of images of each step when it is done."""
        training = self._recipe.training
        self.network.train()
        correct = 0.0
        for images, labels in self.loader:
            images, labels = images.to(self._device), labels.to(self._device)
            outputs = self.network(images)
            loss = F.cross_entropy(outputs, labels, label_smoothing=training.label_smoothing)
            torch.autograd.backward(loss)
            clip_gradients(training, self.network)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.learning_rates.append(float(self.optimizer.param_groups[0]["lr"]))
            self._schedule.after_step()
            self.losses.append(loss.item())
            correct += (outputs.argmax(1) == labels).sum().item()
            yield len(labels)
