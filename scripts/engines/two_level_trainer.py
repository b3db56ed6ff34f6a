"""Stage 2 of a rival, SIFA: predictions of two levels of S, each with a discriminator of its own."""

from __future__ import annotations

from typing import Any

from scripts.core.errors import SettingError
from scripts.engines.adversarial_trainer import frozen
from scripts.engines.alignment import PredictionAdversary
from scripts.engines.dual_alignment_trainer import DualAlignmentTrainer
from scripts.losses.adversarial import generator_loss
from scripts.losses.segmenter_loss import ForwardPass
from torch import Tensor

__all__ = ["TwoLevelTrainer"]

Losses = dict[str, Tensor]


class TwoLevelTrainer(DualAlignmentTrainer):
    """:class:`DualAlignmentTrainer` with a third adversary, which judges the second head of S as D2 judges the first.

    Args:
        auxiliary: the adversary of the second head. Its parameters may belong to the optimiser of D2: each updates only
            those that its own loss reaches.
        arguments: see :class:`DualAlignmentTrainer`; ``segmenter`` has at least two heads in training.

    Raises:
        SettingError: S has one head.

    The output of an iteration is the base class's and, with a target, ``alignment_auxiliary`` and ``auxiliary``.

    Source: Chen et al., Unsupervised bidirectional cross-modality adaptation via deeply synergistic image and feature
    alignment for medical image segmentation (SIFA), 2020.
    """

    def __init__(self, *, auxiliary: PredictionAdversary, **arguments: Any) -> None:
        if len(arguments["segmenter"].head_weights) < 2:
            remedy = "use scripts.networks.two_level_deeplab.TwoLevelDeepLab, or a U-Net with --network_def#heads 2"
            raise SettingError(setting="network_def", found="one head", expected="two heads to align", remedy=remedy)
        self.auxiliary = auxiliary
        super().__init__(**arguments)

    def alignment_losses(self, target: ForwardPass, ramp: float) -> tuple[Tensor, Losses]:
        """The adversarial loss of S and its parts, with weights scaled by ``ramp``."""
        total, parts = super().alignment_losses(target, ramp)
        with frozen(self.auxiliary.network):
            logits = self.auxiliary.network(self.auxiliary.see(target["heads"][1]))
        parts["alignment_auxiliary"] = generator_loss(logits, self.auxiliary.kind)
        return total + ramp * self.auxiliary.weight * parts["alignment_auxiliary"], parts

    def discriminator_steps(self, source: ForwardPass, target: ForwardPass) -> Losses:
        """Update D1, D2 and the auxiliary discriminator; their losses as ``d1``, ``d2`` and ``auxiliary``."""
        losses = super().discriminator_steps(source, target)
        pair = (self.auxiliary.see(source["heads"][1]), self.auxiliary.see(target["heads"][1]))
        return losses | {"auxiliary": self.discriminator_step(self.auxiliary, pair)}
