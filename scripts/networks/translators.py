"""The translators by name: the choices of the config key ``translator``."""

from importlib import import_module

from scripts.core.domains import SOURCE, TARGET
from scripts.core.errors import SettingError, check_choice
from scripts.networks.translator import Translator

__all__ = ["TRANSLATORS", "build_translator"]

# Module and class of each in this package; a packed bundle contains only its own.
#
# Each has a file of its name in ``configs/translators``, with its losses.
TRANSLATORS = {
    "style": "style_transfer_generator.StyleTransferGenerator",
    "demodulated": "demodulated_generator.DemodulatedGenerator",
    "cyclegan": "cyclegan_generator.CycleGanGenerator",
    "starganv2": "starganv2_generator.StarGanV2Generator",
}


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
    network: Translator = generator(
        channels=channels, num_blocks=num_blocks, from_domain=from_domain, to_domain=to_domain
    )
    return network
