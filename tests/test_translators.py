"""Other translators: what each network uses, where each loss has gradients, and which passes are computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONFIGS
from monai.bundle import ConfigParser
from scripts.core.domains import SOURCE, TARGET
from scripts.engines.image_pool import ImagePool
from scripts.engines.schedules import averaged_model
from scripts.engines.style_transfer_trainer import StyleTransferTrainer
from scripts.inference.inferers import SliceWiseInferer
from scripts.losses.translation import Identity, StyleDiversity, StyleReconstruction, Translated, drawn_style
from scripts.networks.adain import adaptive_instance_norm
from scripts.networks.cyclegan_generator import CycleGanGenerator
from scripts.networks.domain_discriminator import DomainDiscriminator
from scripts.networks.style_mappings import CodeMapping, NoMapping
from scripts.networks.style_transfer_generator import StyleTransferGenerator
from scripts.networks.translators import TRANSLATORS, Translator, build_translator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

OTHERS = [name for name in TRANSLATORS if name != "style"]
MIXED = torch.tensor([TARGET, SOURCE, SOURCE, TARGET, SOURCE])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def build(name: str, **settings: int) -> Any:
    return build_translator(translator=name, channels=4, num_blocks=1, **settings)


def images(count: int, size: int = 16) -> Tensor:
    return torch.rand(count, 1, size, size) * 2 - 1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameters_of(*modules: nn.Module) -> set[int]:
    return {id(parameter) for module in modules for parameter in module.parameters()}


def learning(network: nn.Module) -> set[int]:
    """The parameters that a backward pass reached."""
    return {id(p) for p in network.parameters() if p.grad is not None and bool(p.grad.any())}


# --- by name ---------------------------------------------------------------------------------------------------------


def test_every_translator_has_a_file_of_its_name_and_the_base_trains_the_papers() -> None:
    files = {path.stem: path for path in (CONFIGS / "translators").glob("*.yaml")}
    assert files.keys() == TRANSLATORS.keys()
    base = ConfigParser.load_config_file(str(CONFIGS / "synthesis" / "train.yaml"))
    for name, path in files.items():
        overlay = ConfigParser.load_config_file(str(path))
        assert overlay["translator"] == name
        if name == base["translator"]:
            assert overlay == {key: base[key] for key in overlay}


def test_a_translator_is_built_by_its_name_and_another_word_is_refused() -> None:
    assert type(build("style")) is StyleTransferGenerator
    assert type(build("cyclegan", from_domain=TARGET, to_domain=SOURCE)) is CycleGanGenerator
    assert build("starganv2", from_domain=TARGET).from_domain == TARGET
    expected = r"'translator': 'cut'\. Expected one of style, demodulated, cyclegan, starganv2, munit, dritpp"
    with pytest.raises(ValueError, match=expected):
        build("cut")


# --- one interface ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRANSLATORS)
def test_a_mixed_batch_equals_separate_passes(name: str) -> None:
    translator, image = build(name), images(5)
    other = SOURCE + TARGET - MIXED
    style = translator.new_style(other, seeded())
    together = translator.decode(translator.encode(image, MIXED), style)
    apart = [
        translator.decode(translator.encode(image[i : i + 1], MIXED[i : i + 1]), style[i : i + 1]) for i in range(5)
    ]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-5)
    assert together.shape == image.shape
    assert together.abs().max() <= 1


@pytest.mark.parametrize("name", TRANSLATORS)
@pytest.mark.parametrize("source", [SOURCE, TARGET])
def test_forward_is_the_way_from_one_domain_to_the_other(name: str, source: int) -> None:
    translator, image = build(name, from_domain=source, to_domain=SOURCE + TARGET - source), images(2)
    own, other = torch.full((2,), source), torch.full((2,), SOURCE + TARGET - source)
    arguments = translator.volume_arguments(images(3)[:, 0], seed=0)
    style = arguments["style"].expand(2, -1) if arguments else translator.new_style(other)
    expected = translator.decode(translator.encode(image, own), style)
    torch.testing.assert_close(translator(image, **arguments), expected)
    assert translator.new_style(other).shape[0] == translator.own_style(image, own).shape[0] == 2


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", OTHERS)
def test_torchscript_is_equal_and_survives_saving(name: str, tmp_path: Path) -> None:
    translator, image = build(name).eval(), images(2)
    torch.jit.script(translator).save(str(tmp_path / "net.ts"))
    scripted = torch.jit.load(str(tmp_path / "net.ts"))
    with torch.no_grad():
        torch.testing.assert_close(scripted(image), translator(image))
        domain = torch.tensor([TARGET, SOURCE])
        torch.testing.assert_close(scripted.encode(image, domain), translator.encode(image, domain))


@pytest.mark.parametrize("name", ["cyclegan", "starganv2", "munit", "dritpp"])
def test_bf16_channels_last_is_close_to_float32(name: str) -> None:
    translator, image = build(name).eval(), images(2, size=32)
    with torch.no_grad():
        exact = translator(image)
        translator.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            close = translator(image.contiguous(memory_format=torch.channels_last))
    assert (close.float() - exact).square().mean().sqrt() / exact.std() < 0.05


def test_without_a_mapping_adain_is_instance_norm() -> None:
    x = torch.randn(2, 3, 5, 6)
    first, second = NoMapping([3, 7])(MIXED)
    assert (first[0].shape, second[1].shape) == ((1, 3), (1, 7))
    torch.testing.assert_close(adaptive_instance_norm(x, *first), F.instance_norm(x))


def test_a_code_is_mapped_linearly_in_the_order_of_the_layers() -> None:
    mapping = CodeMapping([2, 1], code_channels=1)
    with torch.no_grad():
        mapping.linear.weight.copy_(torch.arange(6.0)[:, None])
        mapping.linear.bias.fill_(10)
    styles = mapping(torch.tensor([[2.0]]))
    assert [[part.tolist() for part in pair] for pair in styles] == [[[[10, 12]], [[14, 16]]], [[[18]], [[20]]]]


# --- CycleGAN --------------------------------------------------------------------------------------------------------


def test_the_two_directions_of_cyclegan_share_no_parameter() -> None:
    network = build("cyclegan")
    to_target = parameters_of(network.encoders.of_domain[SOURCE], network.decoders.of_domain[TARGET])
    to_source = parameters_of(network.encoders.of_domain[TARGET], network.decoders.of_domain[SOURCE])
    assert to_target.isdisjoint(to_source)
    assert to_target | to_source == parameters_of(network)


def test_the_way_to_the_target_teaches_that_generator_alone() -> None:
    network = build("cyclegan")
    source, target = torch.full((2,), SOURCE), torch.full((2,), TARGET)
    network.decode(network.encode(images(2), source), target).square().sum().backward()
    assert learning(network) == parameters_of(network.encoders.of_domain[SOURCE], network.decoders.of_domain[TARGET])


# --- StarGAN v2 ------------------------------------------------------------------------------------------------------


def test_styles_differ_by_noise_and_by_domain_and_repeat_with_their_seed() -> None:
    network, image = build("starganv2"), images(1)
    target, source = torch.tensor([TARGET]), torch.tensor([SOURCE])
    one, again, another = (network.new_style(target, seeded(seed)) for seed in (0, 0, 1))
    assert one.shape == (1, 64)
    assert torch.equal(one, again)
    for different in (another, network.new_style(source, seeded(0))):
        assert not torch.allclose(one, different, atol=1e-2)
        content = network.encode(image, source)
        assert not torch.allclose(network.decode(content, one), network.decode(content, different), atol=1e-3)
    assert torch.equal(content, network.encode(image, target)), "content knows no domain"
    assert not torch.allclose(network.own_style(image, source), network.own_style(image, target), atol=1e-2)


def test_a_volume_has_one_style_by_its_voxels_and_the_seed() -> None:
    network, volume = build("starganv2"), images(3)[:, 0]
    style = network.volume_arguments(volume, seed=0)["style"]
    assert style.shape == (1, 64)
    assert torch.equal(style, network.volume_arguments(volume.clone(), seed=0)["style"])
    for other in (network.volume_arguments(volume, seed=1), network.volume_arguments(-volume, seed=0)):
        assert not torch.allclose(style, other["style"], atol=1e-2)


def test_slices_of_a_volume_agree_and_volumes_of_a_batch_do_not() -> None:
    network, one = build("starganv2").eval(), images(1)[..., None]
    volumes = torch.stack([one[0].expand(-1, -1, -1, 5), -one[0].expand(-1, -1, -1, 5)])
    with torch.no_grad():
        result = SliceWiseInferer(window_size=None, slice_batch_size=2, precision="float32", style_seed=3)(
            volumes, network
        )
        again = SliceWiseInferer(window_size=None, slice_batch_size=4, precision="float32", style_seed=3)(
            volumes, network
        )
        expected = network(one[..., 0], **network.volume_arguments(volumes[0], seed=3))
    torch.testing.assert_close(result[0].as_tensor(), expected[0, ..., None].expand(1, 16, 16, 5), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result, again, rtol=1e-4, atol=1e-5)
    styles = [network.volume_arguments(volume, seed=3)["style"] for volume in volumes]
    assert not torch.allclose(*styles, atol=1e-2)


def test_the_papers_translator_needs_no_style_for_a_volume() -> None:
    network, volume = build("style").eval(), images(1, size=32)[..., None].expand(-1, -1, -1, -1, 3)
    plain, asked = (
        SliceWiseInferer(window_size=None, precision="float32", style_seed=seed)(volume, network) for seed in (None, 0)
    )
    assert torch.equal(plain, asked)


class Toy(Translator):
    """Content is the image, a style a factor: 2, 3, 4, ... in turn; an image's own style is its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = 1

    def encode(self, image: Tensor, domain: Tensor) -> Tensor:
        return image

    def decode(self, content: Tensor, style: Tensor) -> Tensor:
        return content * style[:, None, None, None]

    def own_style(self, image: Tensor, domain: Tensor) -> Tensor:
        return image.mean((1, 2, 3))

    def new_style(self, domain: Tensor, random: torch.Generator | None = None) -> Tensor:
        self.drawn += 1
        return torch.full((len(domain),), float(self.drawn))


def test_extra_losses_by_hand() -> None:
    toy, content = Toy(), torch.full((2, 1, 4, 4), 0.25)
    domain = torch.tensor([SOURCE, TARGET])
    style = toy.new_style(domain).requires_grad_()
    translation = toy.decode(content, style)
    batch = Translated(
        image=content,
        domain=domain,
        other=domain.flip(0),
        content=content,
        style=style,
        translation=translation,
        random=seeded(),
    )
    # As itself: 0.25 times its mean 0.25.
    assert Identity(weight=5.0)(toy, batch).item() == 0.25 - 0.0625
    # Rendered by 2, an image of 0.25 has the mean 0.5: |0.5 - 2| = 1.5; rendered by 3 it is 0.75: |0.5 - 0.75|.
    assert StyleReconstruction(weight=1.0)(toy, batch).item() == 1.5
    diversity = StyleDiversity(weight=-1.0)(toy, batch)
    assert diversity.item() == 0.25
    assert toy.drawn == 3
    # d mean|0.25 s - 0.75| / ds = -0.25 for each half of the batch; the second translation has no gradient to give.
    diversity.backward()
    assert style.grad.tolist() == [-0.125, -0.125]


# --- the trainer -----------------------------------------------------------------------------------------------------


def trainer_of(generator: Translator, iterations: int = 1, **changes: Any) -> StyleTransferTrainer:
    discriminator = DomainDiscriminator(channels=4)
    batches = [{"image": images(2, 32), "target_image": images(2, 32)} for _ in range(iterations)]
    parts = {
        "generator": generator,
        "discriminator": discriminator,
        "generator_optimizer": SGD(generator.parameters(), lr=1e-3),
        "discriminator_optimizer": SGD(discriminator.parameters(), lr=1e-3),
        "image_pool": ImagePool(size=0),
        "average": averaged_model(generator, 0.9),
        "device": "cpu",
        "max_epochs": 1,
        "epoch_length": iterations,
        "train_data_loader": batches,
        "precision": "float32",
    }
    return StyleTransferTrainer(**parts | changes)


CYCLE_ALONE = {"reconstruction_weight": 0.0, "cycle_weight": 10.0, "content_weight": 0.0}


@pytest.mark.parametrize(
    ("weights", "encoded", "decoded"),
    [
        ({}, [4, 4], [8, 4]),  # the paper's: two encoder passes and three decoder passes over 2 + 2 images
        (CYCLE_ALONE, [4, 4], [4, 4]),
        (CYCLE_ALONE | {"cycle_weight": 0.0, "content_weight": 1.0}, [4, 4], [4]),
        (CYCLE_ALONE | {"cycle_weight": 0.0, "reconstruction_weight": 1.0}, [4], [8]),
    ],
)
def test_passes_of_weight_0_are_not_made(weights: dict[str, float], encoded: list[int], decoded: list[int]) -> None:
    trainer, seen = trainer_of(build("style"), **weights), {"encode": [], "decode": []}
    for name, sizes in seen.items():
        method = getattr(trainer.generator, name)

        def counted(x: Tensor, style: Tensor, method: Any = method, sizes: list[int] = sizes) -> Tensor:
            sizes.append(len(x))
            return method(x, style)

        setattr(trainer.generator, name, counted)
    trainer.run()
    assert seen == {"encode": encoded, "decode": decoded}
    names = {"reconstruction": 20.0, "cycle": 20.0, "content": 1.0}
    expected = {name for name, paper in names.items() if weights.get(f"{name}_weight", paper) > 0}
    assert trainer.state.output[0].keys() & names.keys() == expected


def test_cyclegans_identity_loss_shows_each_generator_what_it_should_make() -> None:
    network, image = build("cyclegan"), images(2)
    domain, other = torch.tensor([SOURCE, TARGET]), torch.tensor([TARGET, SOURCE])
    batch = Translated(
        image=image, domain=domain, other=other, content=image, style=other, translation=image, random=seeded()
    )
    to_source = network.decoders.of_domain[SOURCE](network.encoders.of_domain[TARGET](image[:1], other[:1]), domain[:1])
    to_target = network.decoders.of_domain[TARGET](network.encoders.of_domain[SOURCE](image[1:], other[1:]), domain[1:])
    expected = (torch.cat([to_source, to_target]) - image).abs().mean()
    torch.testing.assert_close(Identity(weight=5.0)(network, batch), expected)


def test_cyclegan_learns_both_directions_from_cycle_and_discriminator() -> None:
    trainer = trainer_of(build("cyclegan"), **CYCLE_ALONE)
    trainer.run()
    output = trainer.state.output[0]
    torch.testing.assert_close(output["loss"], 10 * output["cycle"] + output["adversarial"])
    assert sorted(output) == ["adversarial", "content_std", "cycle", "discriminator", "loss"]
    assert learning(trainer.generator) == parameters_of(trainer.generator)


def test_extra_losses_are_in_the_total_with_their_schedule_and_reach_every_network() -> None:
    extra = {
        "style": StyleReconstruction(weight=3.0),
        "diversity": StyleDiversity(weight=-1.0, schedule=lambda i: 0.5 ** (i + 1)),
    }
    trainer = trainer_of(build("starganv2"), iterations=2, extra_losses=extra, **CYCLE_ALONE)
    trainer.run()
    output = trainer.state.output[0]
    # Iteration 2 is number 1 from 0: the diversity counts -1 * 0.25.
    expected = 10 * output["cycle"] + output["adversarial"] + 3 * output["style"] - 0.25 * output["diversity"]
    torch.testing.assert_close(output["loss"], expected)
    assert output["diversity"] > 0
    assert learning(trainer.generator) == parameters_of(trainer.generator)


def test_each_process_draws_its_part_of_the_styles_that_one_would(as_process: Callable[[int, int], None]) -> None:
    network, both = build("starganv2"), torch.tensor([TARGET, SOURCE])
    whole = drawn_style(
        network, both.repeat_interleave(4), seeded()
    )  # two processes' samples: two of each domain from either
    for place, rows in enumerate([[0, 1, 4, 5], [2, 3, 6, 7]]):
        as_process(place, 2)
        torch.testing.assert_close(drawn_style(network, both.repeat_interleave(2), seeded()), whole[rows])
    assert not torch.allclose(whole[:2], whole[2:4])


def test_drawn_styles_depend_on_seed_and_iteration_alone() -> None:
    drawn: dict[int, list[Tensor]] = {}
    for run, seed in enumerate((0, 0, 1)):
        trainer = trainer_of(build("starganv2"), iterations=2, seed=seed)
        new_style, drawn[run] = trainer.generator.new_style, []

        def noted(domain: Tensor, random: torch.Generator, new_style: Any = new_style, run: int = run) -> Tensor:
            drawn[run].append(torch.randn(3, generator=random))
            return new_style(domain, random)

        trainer.generator.new_style = noted
        trainer.run()
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert not torch.equal(drawn[0][0], drawn[0][1])
    assert not torch.equal(drawn[0][0], drawn[2][0])
