"""The translators by name: what a config's key ``translator`` chooses between."""

from scripts.core.domains import SOURCE, TARGET
from scripts.core.errors import check_choice
from scripts.networks.cyclegan_generator import CycleGanGenerator
from scripts.networks.starganv2_generator import StarGanV2Generator
from scripts.networks.style_transfer_generator import StyleTransferGenerator
from scripts.networks.translator import Translator

__all__ = ["TRANSLATORS", "build_translator"]

TRANSLATORS = {"style": StyleTransferGenerator, "cyclegan": CycleGanGenerator, "starganv2": StarGanV2Generator}
"""Each has a file of its name in ``configs/translators``, with the losses that train it."""


def build_translator(
    *, translator: str, channels: int, num_blocks: int, from_domain: int = SOURCE, to_domain: int = TARGET
) -> Translator:
    """The generator of a translator.

    Args:
        translator: a key of ``TRANSLATORS``.
        channels: width at full resolution.
        num_blocks: residual blocks in an encoder, and again in a decoder.
        from_domain: the domain ``forward`` takes its images from.
        to_domain: the domain ``forward`` renders them in.

    Raises:
        InputError: another word for the translator.
    """
    check_choice("translator", translator, list(TRANSLATORS))
    return TRANSLATORS[translator](
        channels=channels, num_blocks=num_blocks, from_domain=from_domain, to_domain=to_domain
    )
