"""Label values of domains, of real and generated distributions, and of ignored pixels."""

from __future__ import annotations

__all__ = ["FAKE", "IGNORED", "REAL", "SOURCE", "TARGET"]

# Domain label of the labelled modality, and the channel of the domain discriminator for it.
SOURCE = 0

# Domain label of the unlabelled modality.
TARGET = 1

# Discriminator label of real images (stage 1), and of source features and predictions (stage 2).
REAL = 1.0

# Discriminator label of translated images (stage 1), and of target features and predictions (stage 2).
FAKE = 0.0

# Label of a pixel that takes no part in a loss, such as an untrusted pseudo-label.
IGNORED = 255
