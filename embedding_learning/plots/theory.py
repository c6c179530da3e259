"""Wu et al. (2017), section 4: the density of distances, and how noisy gradients are."""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial.legendre import leggauss
from scipy.special import betaln, xlog1py, xlogy

# Nodes of the quadrature. Beyond so many of its widths an integrand is below rounding.
_NODES, _WIDTHS = 64, 9.0


def density(distance: np.ndarray, dimension: int) -> np.ndarray:
    """q(D) of Wu et al. (2017), section 4: how distances of random points are distributed.

    D^(n-2) (1 - D²/4)^((n-3)/2), divided by its integral over [0, 2], which is
    2^(n-2) B((n-1)/2, (n-1)/2). Computed by logarithms, since its factors leave the range of floats
    from about 1000 dimensions on.

    Parameters
    ----------
    distance : array (m,)
        Within [0, 2].
    dimension : int
        n, of the space around the sphere; at least 2. With 2 the density at D = 2 is infinite.

    Returns
    -------
    float64 array (m,)
    """
    if dimension < 2:
        raise ValueError(f"random points have no density of distances in {dimension} dimensions")
    distance = np.asarray(distance, np.float64)
    half = (dimension - 1) / 2
    with np.errstate(divide="ignore"):
        log_density = xlogy(dimension - 2, distance) + xlog1py(half - 1, -(distance**2) / 4)
    log_integral = (dimension - 2) * math.log(2.0) + betaln(half, half)
    return np.exp(log_density - log_integral)


def direction_variance(distance: np.ndarray, noise: float, dimension: int) -> np.ndarray:
    r"""How far noise decides which way the gradient of a negative points (section 4 of the paper).

    That way is h / |h|, where h is the anchor less the negative and |h| = D. With noise z from
    N(0, noise² I) it is u = (h + z) / |h + z|. The variance is the nuclear norm of u's covariance
    matrix, which is its trace: 1 - |E u|². It goes from 0, where h decides, to 1, where z does.

    E u is parallel to h. By 1/|v| = sqrt(2/pi) times the integral of exp(-r²|v|²/2) over all r > 0,
    the mean over z taken and r = tan(phi),

    .. math:: |E u| = \sqrt{2/\pi}\,\mu \int_0^{\pi/2} e^{-\mu^2 \sin^2(\phi) / 2} \cos^n \phi\,
        d\phi, \quad \mu = D / noise

    Parameters
    ----------
    distance : array (m,)
    noise : float
        Standard deviation of each of z's components; above 0.
    dimension : int
        n, of the embedding.

    Returns
    -------
    float64 array (m,), exact to ten digits after the point
    """
    ratio = np.asarray(distance, np.float64)[:, None] / noise
    end = np.minimum(math.pi / 2, _WIDTHS / np.sqrt(ratio**2 + dimension))
    nodes, weights = leggauss(_NODES)
    phi = end * (nodes + 1) / 2
    values = np.exp(-((ratio * np.sin(phi)) ** 2) / 2) * np.cos(phi) ** dimension
    mean = math.sqrt(2 / math.pi) * (ratio * end / 2 * values) @ weights
    return 1.0 - mean**2
