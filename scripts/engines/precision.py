"""bf16 autocast on hardware where it is fast."""

from __future__ import annotations

import torch
from scripts.core.errors import check_choice

__all__ = ["autocast", "bf16_is_fast"]


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the device has bf16 matrix units: any recent GPU, a CPU with AMX or AVX-512 bf16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(device: torch.device | str, precision: str = "auto") -> torch.autocast:
    """The autocast context of a step.

    Args:
        device: where the step runs.
        precision: ``bf16``, ``float32``, or ``auto``: bf16 where it is fast. fp16 is not offered, because squared
            adversarial losses overflow in it.
    """
    device = torch.device(device)
    check_choice("precision", precision, ("auto", "bf16", "float32"))
    enabled = precision == "bf16" or (precision == "auto" and bf16_is_fast(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
