"""What several networks share: the input without MONAI's metadata, and a convolution of spectral norm 1."""

import torch
from monai.data import MetaTensor
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SpectralConv2d", "as_plain_tensor"]


def as_plain_tensor(image: Tensor) -> Tensor:
    """The same values without metadata, which cost time in each operation; under TorchScript there are none.

    Gradients flow through.
    """
    if not torch.jit.is_scripting() and isinstance(image, MetaTensor):
        return image.as_tensor()
    return image


class SpectralConv2d(nn.Conv2d):
    """A 2D convolution whose weight, as an (out, in * k * k) matrix, is divided by its largest singular value.

    TorchScript can compile it, unlike torch's own spectral normalisation.
    Each forward pass in training mode updates the singular vector by one power iteration; evaluation does not.
    The arguments are those of ``nn.Conv2d``.

    Source: Miyato et al., Spectral normalization for generative adversarial networks, 2018.
    """

    left: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=bias)
        matrix = self.weight.detach().flatten(1)
        left, _, _ = torch.linalg.svd(matrix, full_matrices=False)
        self.register_buffer("left", left[:, 0].clone())

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, in, H, W) with the normalised weight."""
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            right = F.normalize(torch.mv(matrix.t(), self.left), dim=0)
            left = F.normalize(torch.mv(matrix, right), dim=0)
            if self.training:
                self.left.copy_(left)
        # Products and sums rather than a dot product: under autocast they stay in float32.
        sigma = (left[:, None] * matrix * right[None, :]).sum()
        return F.conv2d(x, self.weight / sigma, self.bias, self.stride, self.padding)
