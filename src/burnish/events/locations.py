"""Regions of highest density from samples of a place, and how well they cover.

A highest-density region at level q is the smallest set that holds mass q. With a density estimate f and samples x_j,
the region is {x : f(x) >= c} with c the (1-q)-quantile of f(x_j); an observed place y is inside exactly if the rank of
f(y) among the f(x_j) is above 1-q. The rank is all that coverage needs; no grid is involved (SMASH, arXiv 2310.16310,
integrates on a grid of 100 x 100, which is equal in the limit).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

from burnish.events.maths.sphere import embedded, local

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LocationRegion:
    """Density of the next place on a grid, and the threshold of the region.

    Attributes:
        x, y: grid axes.
        density: (len(y), len(x)).
        threshold: the region is where the density is at least this.
        samples: what the density was estimated from.
    """

    x: Array
    y: Array
    density: Array
    threshold: float
    samples: Array

    @property
    def inside(self) -> NDArray[np.bool_]:
        return self.density >= self.threshold


def highest_density_region(samples: Array, q: float, *, grid: int = 64) -> LocationRegion:
    """The region of level q from samples (m, 2), by a Gaussian kernel density with Scott's bandwidth."""
    kde = gaussian_kde(samples.T)
    low, high = samples.min(0), samples.max(0)
    margin = 0.1 * (high - low) + 1e-9
    x = np.linspace(low[0] - margin[0], high[0] + margin[0], grid)
    y = np.linspace(low[1] - margin[1], high[1] + margin[1], grid)
    points = np.stack(np.meshgrid(x, y), axis=0).reshape(2, -1)
    threshold = float(np.quantile(kde(samples.T), 1 - q))
    return LocationRegion(x, y, kde(points).reshape(grid, grid), threshold, samples)


def density_rank(samples: Array, observed: Array, between: float = 0.5) -> float:
    """The level of the smallest region that holds `observed`: uniform over events for the true law.

    Half of the samples make the density, the other half are ranked against it, so that a sample's own kernel does not
    raise its density. m samples leave m + 1 places for what was observed: its rank is within one of them, `between` of
    the way, for which a uniform draw makes the rank exactly uniform.
    """
    half = len(samples) // 2
    kde = gaussian_kde(samples[:half].T)
    denser = int((kde(samples[half:].T) > kde(observed[:, None])).sum())
    return (denser + between) / (len(samples) - half + 1)


def location_scores(samples: Array, observed: Array, *, sphere: bool = False) -> dict[str, Array]:
    """Rank, distance of the mean and energy score of every event.

    Args:
        samples: (n, m, 2).
        observed: (n, 2).
        sphere: whether they are longitudes and latitudes.
    """
    from burnish.events.metrics import energy_score

    between = np.random.default_rng(0).random(len(samples))
    if sphere:
        flat = [(local(s, y), np.zeros(2)) for s, y in zip(samples, observed, strict=True)]
        samples, observed = embedded(samples), embedded(observed)
    else:
        flat = list(zip(samples, observed, strict=True))
    return {
        "location_rank": np.array([density_rank(s, y, u) for (s, y), u in zip(flat, between, strict=True)]),
        "location_error": np.linalg.norm(samples.mean(1) - observed, axis=1),
        "energy_score": energy_score(samples, observed),
    }
