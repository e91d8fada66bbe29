"""How far a reconstruction is from a reference: in magnitude, up to one scale, on a support."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter

from sciflow.errors import UserError

__all__ = ["match_scale", "psnr", "ssim"]

_WINDOW = 7


def match_scale(image: ArrayLike, truth: ArrayLike, support: ArrayLike | None = None) -> NDArray[np.float64]:
    """The magnitude a |image| whose distance from |truth| on the support is least: a = <|image|, |truth|> / <|image|, |image|>.

    Phase and scale of a reconstruction are those of its coil maps, which are arbitrary.

    Arguments:
        image, truth: (y, x), real or complex.
        support: booleans (y, x); everywhere by default.

    Raises `UserError` if shapes differ, values are not finite, or nothing is in the support.

    >>> match_scale([[2.0j, 4.0]], [[1.0, 2.0]])
    array([[1., 2.]])
    """
    found, _, _ = _matched(image, truth, support)
    return found


def psnr(image: ArrayLike, truth: ArrayLike, support: ArrayLike | None = None) -> float:
    """10 log10(max |truth|^2 / mean (a |image| - |truth|)^2) in decibels, both over the support; a as in `match_scale`.

    Raises as `match_scale`.

    >>> round(psnr([[1.0, 1.0]], [[1.0, 3.0]]), 6)  # a = 2, so both errors are 1 and the maximum is 3
    9.542425
    """
    found, reference, inside = _matched(image, truth, support)
    error = float(np.mean(np.square(found - reference)[inside]))
    peak = float(reference[inside].max())
    return float("inf") if error == 0 else 10 * float(np.log10(peak**2 / error))


def ssim(image: ArrayLike, truth: ArrayLike, support: ArrayLike | None = None) -> float:
    r"""The structural similarity of a |image| and |truth|, averaged over the support:

        (2 m_x m_y + c_1) (2 s_xy + c_2) / ((m_x^2 + m_y^2 + c_1) (s_x^2 + s_y^2 + c_2))

    at each pixel, with means and (unbiased) covariances over a window of 7 x 7, c_1 = (.01 L)^2, c_2 = (.03 L)^2 and L the
    maximum of |truth| over the support. At the border images are mirrored. Windows of pixels near the edge of the support
    reach beyond it.

    Raises as `match_scale`.

    Source: Image quality assessment: from error visibility to structural similarity, Wang et al., IEEE Transactions on Image
    Processing 13, 2004.

    >>> round(ssim(np.eye(9), np.eye(9)), 6)
    1.0
    """
    x, y, inside = _matched(image, truth, support)
    count = _WINDOW**2
    mean_x, mean_y = uniform_filter(x, _WINDOW), uniform_filter(y, _WINDOW)
    unbiased = count / (count - 1)
    power_x = unbiased * (uniform_filter(x * x, _WINDOW) - mean_x**2)
    power_y = unbiased * (uniform_filter(y * y, _WINDOW) - mean_y**2)
    common = unbiased * (uniform_filter(x * y, _WINDOW) - mean_x * mean_y)
    level = float(y[inside].max())
    c_1, c_2 = (0.01 * level) ** 2, (0.03 * level) ** 2
    above = (2 * mean_x * mean_y + c_1) * (2 * common + c_2)
    below = (mean_x**2 + mean_y**2 + c_1) * (power_x + power_y + c_2)
    return float(np.mean((above / below)[inside]))


def _matched(
    image: ArrayLike, truth: ArrayLike, support: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    found, reference = (np.abs(np.asarray(value)).astype(np.float64) for value in (image, truth))
    inside = np.ones(reference.shape, dtype=bool) if support is None else np.asarray(support, dtype=bool)
    if found.shape != reference.shape or inside.shape != reference.shape or reference.ndim != 2:
        raise UserError(
            f"an image of shape {found.shape}, a truth of shape {reference.shape} and a support of shape {inside.shape} do not "
            "match, expected (y, x) for all"
        )
    if not inside.any() or not (np.isfinite(found).all() and np.isfinite(reference).all()):
        raise UserError("the support is empty, or image or truth has values that are not finite")
    if not reference[inside].any():
        raise UserError("the truth is zero on the support: nothing can be compared with it")
    power = float(np.sum(found[inside] ** 2))
    scale = float(np.sum(found[inside] * reference[inside])) / power if power > 0 else 0.0
    return scale * found, reference, inside
