"""The label values that every loss and every batch agrees on: domains, real and fake, ignored pixels.

Literature and code differ (some give the source 0, some 1), so each is named once, here.
"""

from __future__ import annotations

__all__ = ["FAKE", "IGNORED", "REAL", "SOURCE", "TARGET"]

SOURCE = 0
"""Domain label of the labelled modality; also the channel of the domain discriminator that judges it."""

TARGET = 1
"""Domain label of the unlabelled modality."""

REAL = 1.0
"""Said of the distribution to imitate: real images (stage 1), source features and predictions (stage 2)."""

FAKE = 0.0
"""Said of the imitation: translated images (stage 1), target features and predictions (stage 2)."""

IGNORED = 255
"""The label of a pixel that takes no part in a loss: a pseudo-label that is not trusted."""
