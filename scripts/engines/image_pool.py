"""Pool of earlier translations for training the domain discriminator."""

from __future__ import annotations

import torch
from scripts.core.processes import all_gather_batch, local_shard
from scripts.data.slices import iteration_generator

__all__ = ["ImagePool"]


class ImagePool:
    """Replace half of the new images by earlier ones, so that D does not forget earlier outputs of G.

    All processes keep the same pool of the images of all processes.

    Args:
        size: number of images kept; 0 returns every new image.
        seed: seed of the choices; a draw depends on the seed and the iteration only.

    Source: Shrivastava et al., Learning from simulated and unsupervised images through adversarial training, 2017.
    """

    def __init__(self, *, size: int = 50, seed: int = 0) -> None:
        self.size, self.seed = size, seed
        self.images = torch.empty(0)
        self.domains = torch.empty(0, dtype=torch.int64)

    def query(self, images: torch.Tensor, domains: torch.Tensor, iteration: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Exchange some of the new images for kept ones.

        Args:
            images: (B, 1, H, W), detached; the first half rendered in one domain, the second half in the other.
            domains: (B,) the domain each image was rendered in.
            iteration: seeds the choice.

        Returns:
            Images and domains of the same shapes.
        """
        if self.size == 0:
            return images, domains
        shown, shown_domains = self._exchange(all_gather_batch(images, 2), all_gather_batch(domains, 2), iteration)
        return local_shard(shown, 2), local_shard(shown_domains, 2)

    def _exchange(
        self, images: torch.Tensor, domains: torch.Tensor, iteration: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if len(self.images) < self.size:
            room = self.size - len(self.images)
            self.images = torch.cat([self.images.to(images), images[:room]])
            self.domains = torch.cat([self.domains.to(domains), domains[:room]])
            return images, domains
        generator = iteration_generator(self.seed, iteration, stream=1)
        exchanged = (torch.rand(len(images), generator=generator) < 0.5).nonzero().flatten()[: self.size]
        places = torch.randperm(self.size, generator=generator)[: len(exchanged)]
        # A resumed pool comes from the host.
        self.images, self.domains = self.images.to(images), self.domains.to(domains)
        images, domains = images.clone(), domains.clone()
        kept_images, kept_domains = self.images[places].clone(), self.domains[places].clone()
        self.images[places], self.domains[places] = images[exchanged], domains[exchanged]
        images[exchanged], domains[exchanged] = kept_images, kept_domains
        return images, domains

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The kept images and their domains."""
        return {"images": self.images, "domains": self.domains}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Restore the kept images."""
        self.images, self.domains = state["images"], state["domains"]
