"""Mappings from a style to the parameters of adaptive instance normalisation (section 3.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CodeMapping", "NoMapping", "StyleMapping"]


class StyleMapping(nn.Module):
    """MLP from a domain label to the AdaIN parameters of a whole encoder or decoder (section 3.1).

    One-hot domain -> ``hidden_channels`` -> ``hidden_channels`` -> two numbers per normalised feature; ReLU in between.

    Args:
        num_features: channels of each AdaIN layer, in execution order.
        hidden_channels: width of the two hidden layers.
        num_domains: number of domains.
    """

    def __init__(self, num_features: Sequence[int], *, hidden_channels: int = 64, num_domains: int = 2) -> None:
        super().__init__()
        self.num_domains = num_domains
        self.sizes = [2 * features for features in num_features]
        self.first = nn.Linear(num_domains, hidden_channels)
        self.second = nn.Linear(hidden_channels, hidden_channels)
        self.last = nn.Linear(hidden_channels, sum(self.sizes))

    def forward(self, domain: Tensor) -> list[tuple[Tensor, Tensor]]:
        """One ``(scale, shift)`` pair per AdaIN layer, each (B, C of that layer).

        Args:
            domain: int64 domain labels, (B,).
        """
        one_hot = F.one_hot(domain, self.num_domains).to(self.first.weight.dtype)
        hidden = F.relu(self.second(F.relu(self.first(one_hot))))
        return _split(self.last(hidden), self.sizes)


class CodeMapping(nn.Module):
    """Linear layer from a style code to the AdaIN parameters of a whole encoder or decoder.

    Args:
        num_features: channels of each AdaIN layer, in execution order.
        code_channels: length of a style code.

    Source: Choi et al., StarGAN v2: diverse image synthesis for multiple domains, 2020.
    """

    def __init__(self, num_features: Sequence[int], *, code_channels: int) -> None:
        super().__init__()
        self.sizes = [2 * features for features in num_features]
        self.linear = nn.Linear(code_channels, sum(self.sizes))

    def forward(self, code: Tensor) -> list[tuple[Tensor, Tensor]]:
        """One ``(scale, shift)`` pair per AdaIN layer, each (B, C of that layer).

        Args:
            code: (B, code_channels).
        """
        return _split(self.linear(code), self.sizes)


class NoMapping(nn.Module):
    """Scale and shift 0 for every style: AdaIN becomes plain instance normalisation.

    Args:
        num_features: channels of each AdaIN layer, in execution order.
    """

    def __init__(self, num_features: Sequence[int]) -> None:
        super().__init__()
        self.num_features = list(num_features)

    def forward(self, style: Tensor) -> list[tuple[Tensor, Tensor]]:
        """One ``(scale, shift)`` pair of zeros per AdaIN layer, each (1, C of that layer).

        Args:
            style: used for its device only.
        """
        styles: list[tuple[Tensor, Tensor]] = []
        for features in self.num_features:
            zeros = torch.zeros(1, features, device=style.device)
            styles.append((zeros, zeros))
        return styles


def _split(parameters: Tensor, sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    styles: list[tuple[Tensor, Tensor]] = []
    for part in torch.split(parameters, sizes, dim=1):
        scale, shift = torch.chunk(part, 2, dim=1)
        styles.append((scale, shift))
    return styles
