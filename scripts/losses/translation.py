"""The objective of the synthesis stage (section 3.2)."""

from __future__ import annotations

import torch
from scripts.losses.adversarial import discriminator_loss, generator_loss
from torch import Tensor
from torch.nn import functional as F

__all__ = ["domain_discriminator_loss", "generator_translation_loss"]


def generator_translation_loss(
    *,
    image: Tensor,
    content: Tensor,
    fake_logits: Tensor,
    reconstruction: Tensor | None = None,
    cycle: Tensor | None = None,
    content_of_translation: Tensor | None = None,
    reconstruction_weight: float,
    cycle_weight: float,
    content_weight: float,
    adversarial_weight: float,
    kind: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Generator loss of a batch of images x of domain i, translated to domain j (section 3.2).

    * ``reconstruction``: L_rec_im = |GD(GE(x, i), i) - x|.
    * ``cycle``: L_cyc = |GD(GE(x_ij, j), i) - x| with the translation x_ij = GD(GE(x, i), j). The paper prints the
      labels i, i, j, i, so that x_ij would never appear; this order follows its text.
    * ``content``: L_rec_c = |GE(x_ij, j) - c| with c = GE(x, i), gradients through both.
    * ``adversarial``: L_adv, D(x_ij | j) against the label real.

    Each is a mean over all values. Any of the first three with weight 0 is omitted and its input may be None.

    Args:
        image: x, (B, C, H, W) in [-1, 1].
        content: GE(x, i), (B, F, h, w).
        fake_logits: raw logits D(x_ij | j), any shape.
        reconstruction: x decoded in its own domain, (B, C, H, W).
        cycle: x after the round trip, (B, C, H, W).
        content_of_translation: GE(x_ij, j), (B, F, h, w).
        reconstruction_weight: the paper's 20.
        cycle_weight: the paper's 20.
        content_weight: the paper's 1.
        adversarial_weight: the paper's 1.
        kind: one of ``ADVERSARIAL_KINDS``.

    Returns:
        The weighted total and its unweighted parts by name, float32 scalars.
    """
    pairs = {
        "reconstruction": (reconstruction_weight, reconstruction, image),
        "cycle": (cycle_weight, cycle, image),
        "content": (content_weight, content_of_translation, content),
    }
    parts: dict[str, Tensor] = {}
    total = torch.zeros(())
    for name, (weight, found, wanted) in pairs.items():
        if weight != 0 and found is not None:
            parts[name] = F.l1_loss(found.float(), wanted.float())
            total = total + weight * parts[name]
    parts["adversarial"] = generator_loss(fake_logits, kind)
    return total + adversarial_weight * parts["adversarial"], parts


def domain_discriminator_loss(
    *, real_logits: Tensor, fake_logits: Tensor, kind: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """Discriminator loss: real images x_j against translations x_ij, both under label j (section 3.2).

    Args:
        real_logits: raw logits D(x_j | j), any shape.
        fake_logits: raw logits D(x_ij | j) of detached translations, any shape.
        kind: one of ``ADVERSARIAL_KINDS``.

    Returns:
        The loss, and the same under the name ``discriminator``.
    """
    total = discriminator_loss(real_logits, fake_logits, kind)
    return total, {"discriminator": total}
