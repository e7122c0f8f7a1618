"""A trained network with its preprocessing: images as they are stored in, logits out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_bench.data.resize import pillow_weights, weigh_pixels
from resnet_bench.models.of_recipe import build_network
from resnet_bench.recipe.recipe import Recipe
from resnet_bench.training.events import State


class Classifier(nn.Module):
    """A network that resizes and normalizes its images itself.

    Its arithmetic is that of the loader that evaluates a run, so that it predicts what the run predicted.

    Args:
        recipe: Mean, standard deviation and size of the images, and the names of the classes.
        network: Maps normalized images to logits.

    Attributes:
        network: The same network.
        class_names: What the first outputs mean, in order.
    """

    def __init__(self, recipe: Recipe, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.class_names = recipe.data.facts.class_names
        self._size = recipe.augmentation.resize
        # They belong to the recipe, and are not among the weights.
        for name in ("mean", "std"):
            values = torch.tensor(getattr(recipe.data, name)).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        if self._size is not None:
            weights, half = pillow_weights(recipe.data.facts.image_size, self._size, torch.device("cpu"))
            self.register_buffer("resize_weights", weights, persistent=False)
            self.register_buffer("resize_halves", half, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[N, classes]`.

        Args:
            images: RGB, `[N, 3, H, W]` of the dataset's size: uint8, or floats from 0 to 1.

        Raises:
            ValueError: They have another shape, or floats lie outside of that range: normalized already,
                or meant as bytes.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"the images must be RGB, [N, 3, H, W]; these are {list(images.shape)}")
        if images.dtype == torch.uint8:
            if self._size is not None:
                images = weigh_pixels(images, self.get_buffer("resize_weights"), self.get_buffer("resize_halves"))
            pixels = images.float() / 255
        else:
            if not torch.compiler.is_exporting() and (images.min() < 0 or images.max() > 1):
                raise ValueError("the images must be uint8, or floats from 0 to 1: the model normalizes them itself")
            pixels = images.float()
            if self._size is not None:
                pixels = F.interpolate(pixels, (self._size, self._size), mode="bilinear", antialias=True)
        logits: Tensor = self.network((pixels - self.get_buffer("mean")) / self.get_buffer("std"))
        return logits


def classifier_of(recipe: Recipe, weights: State) -> Classifier:
    """Build the classifier of a recipe with trained weights, on the CPU and in eval mode.

    Args:
        recipe: As it was trained.
        weights: The network's state, as a checkpoint has it.
    """
    with torch.random.fork_rng(devices=[]):
        network = build_network(recipe, pretrained=False)
    network.load_state_dict(weights)
    return Classifier(recipe, network).eval()
