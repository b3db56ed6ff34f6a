"""Pictures of translations during the training of a translator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scripts.core.domains import SOURCE, TARGET
from scripts.evaluation.montage import NORMALISED, Panel
from scripts.handlers.panels import PeriodicPicture, slices_of
from scripts.networks.translators import Translator

__all__ = ["TranslationPanel"]


class TranslationPanel(PeriodicPicture):
    """Stage 1: slices of both domains, their translations with the labels' outlines, and the cycle back.

    ``generator`` is G, usually its moving average. Styles that it draws are the same in every picture of a run.
    """

    kind, columns = "translation", ("original", "translated", "cycle")

    def __init__(self, *, generator: Translator, domain_names: Sequence[str], **arguments: object) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self.generator, self.domain_names = generator, list(domain_names)

    def rows(self) -> tuple[list[list[Panel]], list[str]]:
        """Translate the sample both ways."""
        sample, rows, titles = self.sample_for(self.generator), [], []
        random = torch.Generator().manual_seed(0)
        for key, domain in (("image", SOURCE), ("target_image", TARGET)):
            image, other = sample[key], TARGET + SOURCE - domain
            own, foreign = (torch.full((len(image),), d, device=image.device) for d in (domain, other))
            style, own_style = self.generator.new_style(foreign, random), self.generator.own_style(image, own)
            translated = self.generator.decode(self.generator.encode(image, own), style)
            cycle = self.generator.decode(self.generator.encode(translated, foreign), own_style)
            has_labels = key == "image" and "label" in sample
            labels = slices_of(sample["label"]) if has_labels else [None] * len(image)
            for *outlined, back, label in zip(*map(slices_of, (image, translated, cycle)), labels, strict=True):
                panels = [Panel(image=each, labels=label, limits=NORMALISED) for each in outlined]
                rows.append([*panels, Panel(image=back, limits=NORMALISED)])
                titles.append(f"{self.domain_names[domain]} to {self.domain_names[other]}")
        return rows, titles
