"""How good and how diverse generated examples are, measured on the host in float64.

A measure says little alone: set beside it that of real examples against other real ones (the
floor) and that of noise (the ceiling), on samples of the same sizes, for all of these depend on
the sizes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import rel_entr

from jaxdl import InputError, require

ROWS = 256
"""How many rows meet all others at a time, so that the distances fit in memory."""
ROUNDING = 1e-12
"""Of squared distances, as a share of the squared norms that they are worked out from."""


class Gaussian(NamedTuple):
    """Mean [D] and covariance [D, D], float64."""

    mean: np.ndarray
    covariance: np.ndarray


def fit_gaussian(features: Any) -> Gaussian:
    """The mean and the unbiased covariance (over N - 1) of features.

    Args:
      features: [N, D], one row an example. With N <= D the covariance is singular, and a Frechet
        distance from it leans on few examples.

    Raises:
      InputError: not [N, D], fewer than two rows, or a value that is not finite.
    """
    features = _rows("features", features)
    require(
        len(features) >= 2, f"features of {len(features)} example", "at least 2, for a covariance"
    )
    mean = features.mean(0)
    centered = features - mean
    return Gaussian(mean, centered.T @ centered / (len(features) - 1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared Frechet distance of two Gaussians, at least 0; it is 0 for equal ones.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Dowson and Landau 1982), which is called
    Frechet inception distance where the features are an Inception's (Heusel et al. 2017,
    arXiv:1706.08500).

    Args:
      a: from `fit_gaussian`.
      b: of as many features.

    Raises:
      InputError: the Gaussians are of different numbers of features.
    """
    same = a.mean.shape == b.mean.shape
    require(same, f"Gaussians of {a.mean.size} and {b.mean.size} features", "equal")
    # With C_a = A A' and C_b = B B', the eigenvalues of C_a C_b are the squared singular values of
    # A' B. No root is taken of a product's rounded, maybe negative, eigenvalue.
    root_of_product = np.linalg.norm(_root(a.covariance).T @ _root(b.covariance), "nuc")
    shift = np.sum(np.square(a.mean - b.mean))
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * root_of_product
    return max(0.0, float(shift + spread))


def precision_recall(real: Any, fake: Any, k: int = 3) -> tuple[float, float]:
    """How much of the fake looks real, and how much of the real is covered by the fake.

    Improved precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991). Around each
    example lies a ball that reaches its k-th nearest neighbour in its own set, itself not counted.
    Precision is the share of the fake in any ball of the real, recall the share of the real in any
    ball of the fake; the surface belongs to the ball.

    Args:
      real: features [N, D].
      fake: features [M, D]. The paper takes M = N; more examples make smaller balls.
      k: which neighbour; less than N and M.

    Returns:
      (precision, recall), each from 0 to 1.

    Raises:
      InputError: features that are not [., D] or not finite, of different D, or k out of range.
    """
    real, fake = _rows("real", real), _rows("fake", fake)
    same = real.shape[1] == fake.shape[1]
    require(same, f"real has {real.shape[1]} features, fake {fake.shape[1]}", "equal")
    given = f"k={k} of {len(real)} real and {len(fake)} fake examples"
    require(1 <= k < min(len(real), len(fake)), given, "1 to less than both")

    # From their middle, so that products round as little as they can.
    middle = real.mean(0)
    real, fake = real - middle, fake - middle
    return _covered(fake, real, k), _covered(real, fake, k)


def class_shares(classes: Any, num_classes: int) -> np.ndarray:
    """The share of each class among all examples.

    Args:
      classes: int [N], from 0, or -1 for an example that is of none of them; such examples count,
        so the shares then add up to less than 1.
      num_classes: C.

    Returns:
      float64 [C].

    Raises:
      InputError: no examples, or a class out of range.
    """
    classes = np.asarray(classes)
    ints = classes.ndim == 1 and classes.size > 0 and np.issubdtype(classes.dtype, np.integer)
    require(ints, f"classes {classes.dtype} of shape {classes.shape}", "int [N]")
    least, most = classes.min(), classes.max()
    known = least >= -1 and most < num_classes
    require(known, f"classes from {least} to {most}", f"-1 to {num_classes - 1}")
    return np.bincount(classes[classes >= 0], minlength=num_classes) / len(classes)


def modes_covered(shares: Any, of_data: Any, least: float = 0.1) -> int:
    """How many of the data's classes are generated often enough.

    Args:
      shares: of the generated examples, [C] (`class_shares`).
      of_data: of the data, [C]; a class that the data lacks is no mode of it.
      least: the part of its share in the data that a class has to have.

    Raises:
      InputError: the shares are not of as many classes, or the data has no class.
    """
    shares, of_data = _shares(shares, of_data)
    bound = least * of_data * (1 - 1e-9)  # 0.1 * 0.1 is more than 0.01
    return int(np.sum((of_data > 0) & (shares > 0) & (shares >= bound)))


def class_divergence(shares: Any, of_data: Any) -> float:
    """The divergence KL(generated || data) of the classes, in nats, at least 0.

    Examples of no class do not count: both histograms are made to add up to 1.

    Args:
      shares: of the generated examples, [C] (`class_shares`).
      of_data: of the data, [C].

    Returns:
      inf where a class is generated that the data lacks, or none of the classes is generated.

    Raises:
      InputError: the shares are not of as many classes, or the data has no class.
    """
    shares, of_data = _shares(shares, of_data)
    if not shares.any():
        return float("inf")
    terms = rel_entr(shares / shares.sum(), of_data / of_data.sum())
    return max(0.0, float(terms.sum()))  # nearly equal ones round to less than 0


def nearest(images: Any, references: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The references that are most like each image, as training images beside samples.

    Args:
      images: [N, ...].
      references: [M, ...], of the same shape and scale.
      count: how many of them, at most M.

    Returns:
      (indices [N, count], distances [N, count]), the nearest first and of equally near ones the
      first. A distance is Euclidean, over all of an image's numbers.

    Raises:
      InputError: images of different shapes, a value that is not finite, or count out of range.
    """
    images, references = _alike(images, references)
    fits = 1 <= count <= len(references)
    require(fits, f"count={count} of {len(references)} references", "1 to as many")
    images, references = (x.reshape(len(x), -1).astype(np.float64) for x in (images, references))
    closest = lambda part: np.argsort(cdist(part, references), kind="stable")[:, :count]
    indices = _by_rows(closest, images)
    return indices, np.linalg.norm(images[:, None] - references[indices], axis=-1)


def diversity(images: Any, references: Any) -> float:
    """The total variance of images over that of references: near 0 when a generator collapsed.

    Args:
      images: [N, ...].
      references: [M, ...], of the same shape and scale.

    Returns:
      The quotient of the unbiased variances of each number of an image, added up over all numbers.

    Raises:
      InputError: images of different shapes, fewer than two, a value that is not finite, or
        references that are all the same.
    """
    images, references = _alike(images, references)
    given = f"{len(images)} images and {len(references)} references"
    require(min(len(images), len(references)) >= 2, given, "at least 2 of each")
    own, of_data = (
        float(np.var(x, axis=0, dtype=np.float64, ddof=1).sum()) for x in (images, references)
    )
    if of_data == 0:
        raise InputError(f"all {len(references)} references are the same: they have no variance")
    return own / of_data


def stride_energy(images: Any, stride: int = 2) -> float:
    """The share of the images' energy that repeats every `stride` pixels: checkerboards.

    A transposed convolution with this stride treats the pixels of a period differently, and so
    prints a pattern of that period (Odena et al. 2016, Distill, "Deconvolution and checkerboard
    artifacts"). Its energy is that of the discrete Fourier transform's frequencies (u, v) of which
    u, v or both are a harmonic of 1/stride cycles a pixel, from 1/stride to (stride - 1)/stride;
    at stride 2 that is the Nyquist frequency of the rows, of the columns or of both. The whole is
    all but the frequency (0, 0), each channel's mean.

    Args:
      images: [N, H, W, C], H and W multiples of the stride.
      stride: in pixels, at least 2.

    Returns:
      From 0 to 1, of all images together; 0 for images without contrast. White noise has
      (s - 1)(H + W - s + 1) / (H W - 1), and what was only enlarged s-fold by repeating pixels 0.

    Raises:
      InputError: images that are not [N, H, W, C] or not finite, or a stride that does not divide
        them.
    """
    images = np.asarray(images, np.float64)
    pictures = images.ndim == 4 and images.size > 0 and bool(np.isfinite(images).all())
    require(pictures, f"images of shape {images.shape}", "[N, H, W, C], finite")
    height, width = images.shape[1:3]
    divides = stride >= 2 and height % stride == width % stride == 0
    given = f"stride={stride} of images of {height} by {width}"
    require(divides, given, "at least 2, dividing both")
    # Less the first pixel instead of the mean: flat images then are 0 without rounding.
    spectrum = np.fft.fft2(images - images[:, :1, :1], axes=(1, 2))
    energy = np.sum(np.square(np.abs(spectrum)), axis=(0, 3))
    energy[0, 0] = 0.0
    rows, columns = (np.arange(n) * stride % n == 0 for n in (height, width))
    rows[0] = columns[0] = False
    total = energy.sum()
    return float(energy[rows[:, None] | columns].sum() / total) if total else 0.0


def _root(covariance: np.ndarray) -> np.ndarray:
    """A matrix A with A A' the covariance; what rounding made negative is 0."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def _covered(points: np.ndarray, centers: np.ndarray, k: int) -> float:
    """The share of points in any ball around a center that reaches the center's k-th neighbour.

    By |p - c|^2 = |p|^2 + |c|^2 - 2 p c, as matrix products take a tenth of the time of distances.
    """
    norms, of_points = (np.square(x).sum(1) for x in (centers, points))
    doubled = 2 * centers.T
    # The nearest of all, at 0, is the center itself.
    kth = _by_rows(lambda part: np.partition(norms - part @ doubled, k)[:, k], centers)
    # What lies on the surface may be outside by a rounding of the norms.
    bounds = norms * (1 - ROUNDING) - (norms + kth)
    least = _by_rows(lambda part: np.min(bounds - part @ doubled, axis=1), points)
    return float(np.mean(least <= -of_points * (1 - ROUNDING)))


def _by_rows(function: Callable[[np.ndarray], np.ndarray], points: np.ndarray) -> np.ndarray:
    return np.concatenate([function(points[i : i + ROWS]) for i in range(0, len(points), ROWS)])


def _rows(name: str, values: Any) -> np.ndarray:
    values = np.asarray(values, np.float64)
    is_matrix = values.ndim == 2 and values.size > 0
    require(is_matrix, f"{name} of shape {values.shape}", "[examples, features]")
    if not np.isfinite(values).all():
        wrong = len(values) - int(np.isfinite(values).all(1).sum())
        raise InputError(
            f"{name}: {wrong} of {len(values)} examples hold values that are not finite"
        )
    return values


def _alike(images: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
    images, references = np.asarray(images), np.asarray(references)
    alike = images.shape[1:] == references.shape[1:] and images.size > 0 and references.size > 0
    given = f"images of shape {images.shape}, references {references.shape}"
    require(alike, given, "[N, ...] and [M, ...], at least one of each")
    if not (np.isfinite(images).all() and np.isfinite(references).all()):
        raise InputError("images or references hold values that are not finite")
    return images, references


def _shares(shares: Any, of_data: Any) -> tuple[np.ndarray, np.ndarray]:
    shares, of_data = np.asarray(shares, np.float64), np.asarray(of_data, np.float64)
    alike = shares.ndim == 1 and shares.shape == of_data.shape
    require(alike, f"shares of shapes {shares.shape} and {of_data.shape}", "[C] twice")
    if not of_data.any():
        raise InputError("of_data: no class has a share in the data")
    return shares, of_data
