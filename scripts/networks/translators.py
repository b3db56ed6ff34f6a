"""Translators: the interface of a generator of stage 1 (section 3.1), and the choices of the key ``translator``."""

from importlib import import_module
from typing import Any, Dict, Optional

import torch
from scripts.core.domains import SOURCE, TARGET
from scripts.core.errors import SettingError, check_choice
from torch import Tensor, nn

__all__ = ["TRANSLATORS", "Translator", "build_translator"]

# Module and class of each in this package; a packed bundle contains only its own.
#
# Each has a file of its name in ``configs/translators``, with its losses.
TRANSLATORS = {
    "style": "style_transfer_generator.StyleTransferGenerator",
    "demodulated": "demodulated_generator.DemodulatedGenerator",
    "cyclegan": "cyclegan_generator.CycleGanGenerator",
    "starganv2": "starganv2_generator.StarGanV2Generator",
    "munit": "munit_generator.MunitGenerator",
    "dritpp": "dritpp_generator.DritppGenerator",
}


class Translator(nn.Module):
    """A generator in two halves: image to content, content and a style to image.

    A subclass defines what a style is. Here it is the domain label: one style per domain, as in the paper. A translator
    with many styles per domain overrides ``own_style``, ``new_style`` and ``volume_arguments``.

    Args:
        from_domain: domain of the input of ``forward``.
        to_domain: domain of the output of ``forward``.
    """

    def __init__(self, *, from_domain: int = SOURCE, to_domain: int = TARGET) -> None:
        super().__init__()
        self.from_domain = from_domain
        self.to_domain = to_domain

    def encode(self, image: Tensor, domain: Tensor) -> Tensor:
        """The content of an image, ideally independent of the domain: (B, C, h, w).

        Args:
            image: (B, in_channels, H, W) in [-1, 1].
            domain: int64 domain labels, (B,).
        """
        raise NotImplementedError

    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        """A content rendered in a style, (B, in_channels, H, W) in [-1, 1].

        Args:
            content: output of ``encode``.
            style: one per sample, first axis B.
        """
        raise NotImplementedError

    def own_style(self, image: Tensor, domain: Tensor) -> Tensor:
        """The style that renders each image as itself.

        Args:
            image: (B, in_channels, H, W) in [-1, 1].
            domain: int64 domain labels, (B,).
        """
        return domain

    def new_style(self, domain: Tensor, random: Optional[torch.Generator] = None) -> Tensor:
        """A style of each given domain, drawn at random where a domain has several.

        Args:
            domain: int64 domain labels, (B,).
            random: generator on the CPU; PyTorch's own by default.
        """
        return domain

    def volume_arguments(self, volume: Tensor, seed: int) -> Dict[str, Any]:
        """Further arguments of ``forward``, shared by all slices of a volume.

        Args:
            volume: (in_channels, H, W, D) in [-1, 1].
            seed: seed of a style that is drawn.
        """
        return {}

    def forward(self, image: Tensor) -> Tensor:
        """Translate images of ``from_domain`` to ``to_domain``: (B, in_channels, H, W) in [-1, 1] to the same."""
        domain = torch.full((image.shape[0],), self.from_domain, dtype=torch.int64, device=image.device)
        content = self.encode(image, domain)
        return self.decode(content, torch.full_like(domain, self.to_domain))


def build_translator(
    *, translator: str, channels: int, num_blocks: int, from_domain: int = SOURCE, to_domain: int = TARGET
) -> Translator:
    """The generator of a translator.

    Args:
        translator: a key of ``TRANSLATORS``.
        channels: width at full resolution.
        num_blocks: residual blocks in an encoder, and again in a decoder.
        from_domain: domain of the input of ``forward``.
        to_domain: domain of the output of ``forward``.

    Raises:
        InputError: another name, or a translator that this bundle was not packed with.
    """
    check_choice("translator", translator, list(TRANSLATORS))
    module, name = TRANSLATORS[translator].split(".")
    try:
        generator = getattr(import_module(f"scripts.networks.{module}"), name)
    except ModuleNotFoundError as error:
        raise SettingError(
            setting="translator",
            found=f"{translator!r}, which is not part of this bundle",
            expected="the translator that the bundle was packed with",
            remedy="pack a bundle with weights of this translator",
        ) from error
    sizes = {"channels": channels, "num_blocks": num_blocks}
    network: Translator = generator(**sizes, from_domain=from_domain, to_domain=to_domain)
    return network
