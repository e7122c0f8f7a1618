"""A frozen first layer that whitens patches of the images, for any network."""

import torch
from torch import Tensor, nn

from resnet_bench.base.errors import UserError


class PatchWhitening(nn.Conv2d):
    """A convolution whose filters decorrelate patches and give each direction the same variance.

    Its filters are the eigenvectors of the covariance of patches, over the roots of their eigenvalues, and the
    negatives of these, so that an activation behind it loses nothing. They are not trained; the bias is.
    After D. Page, "How to train your ResNet 8", and K. Jordan (arXiv 2404.00498).
    """

    def __init__(self, channels: int, *, kernel_size: int, padding: int) -> None:
        super().__init__(channels, 2 * channels * kernel_size**2, kernel_size, padding=padding)
        self.weight.requires_grad = False
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]  # it has one

    @torch.no_grad()
    def fit(self, images: Tensor, *, eps: float) -> None:
        """Set the filters from normalized images `[N, channels, H, W]`; `eps` is added to the eigenvalues."""
        size = self.kernel_size[0]
        # In float64 and on the CPU the eigenvectors are the same for all devices.
        pixels = images.cpu().double()
        patches = pixels.unfold(2, size, 1).unfold(3, size, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, self.num_values)
        covariance = patches.T @ patches / len(patches)
        eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
        filters = (eigenvectors / torch.sqrt(eigenvalues + eps)).T.reshape(-1, self.in_channels, size, size)
        self.weight.copy_(torch.cat([filters, -filters]))

    @property
    def num_values(self) -> int:
        """Values of a patch."""
        return self.in_channels * self.kernel_size[0] ** 2


class Whitened(nn.Module):
    """A network behind a whitening layer and an activation."""

    def __init__(self, whitening: PatchWhitening, network: nn.Module) -> None:
        super().__init__()
        self.whitening = whitening
        self.activation = nn.GELU()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of normalized images `[N, 3, H, W]`."""
        logits: Tensor = self.network(self.activation(self.whitening(images)))
        return logits


def whitened(network: nn.Module, *, kernel_size: int, padding: int) -> Whitened:
    """Put a whitening layer before a network, whose first convolution is replaced to take its channels.

    Args:
        network: A network that begins with a convolution of RGB images; it is changed.
        kernel_size: Side of the patches.
        padding: Pixels added at each border. With a 2x2 kernel and none, the network gets maps of one pixel less.

    Raises:
        UserError: The network has no convolution of three input channels.
    """
    layer = PatchWhitening(3, kernel_size=kernel_size, padding=padding)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            first = type(module)(
                layer.out_channels,
                module.out_channels,
                module.kernel_size,  # type: ignore[arg-type]  # torch keeps it as a tuple of any length
                stride=module.stride,  # type: ignore[arg-type]
                padding=module.padding,  # type: ignore[arg-type]
                bias=module.bias is not None,
            )
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, first)
            return Whitened(layer, network)
    raise UserError(
        f"{type(network).__name__} has no convolution of RGB images to put a whitening layer before; "
        'leave model.whitening out, or write whitening = "none"'
    )
