"""The phantom's anatomy: every structure of one person, in painting order."""

from __future__ import annotations

from collections.abc import Iterator

from scripts.lab.phantom.heart import Heart
from scripts.lab.phantom.shapes import Grid, smooth_union
from scripts.lab.phantom.thorax import Thorax
from scripts.lab.phantom.types import Layer, Subject

__all__ = ["anatomy"]


def anatomy(grid: Grid, subject: Subject) -> Iterator[Layer]:
    """All structures of one person on one grid, from the skin inwards; later ones cover earlier ones."""
    thorax = Thorax(grid=grid, subject=subject)
    heart = Heart(grid=grid, subject=subject)
    yield from thorax.outline()
    yield from thorax.abdomen()
    sac = grid.spread(heart.patch, heart.sac() - 0.5)
    yield from thorax.lungs(smooth_union(sac, thorax.descending_course(), 12), heart.hila())
    yield from thorax.bones()
    yield from thorax.vessels(heart.arch_end())
    yield from heart.layers()
