"""Fidelity and diversity against hands, loops, SciPy's matrix root and scikit-learn."""

import numpy as np
import pytest
from scipy import linalg
from sklearn.neighbors import NearestNeighbors

from jaxdl import InputError, fidelity
from jaxdl.fidelity import Gaussian, fit_gaussian, frechet_distance, precision_recall, stride_energy


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def covariance(size, rank, seed):
    root = np.random.default_rng(seed).normal(size=(size, rank))
    return root @ root.T


def reference_distance(a, b):
    """The formula as it is written, by the root of a matrix that is not symmetric."""
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    spread = np.trace(a.covariance + b.covariance - 2 * root)
    return np.sum((a.mean - b.mean) ** 2) + spread


def test_frechet_distance_by_hand():
    """1 + 4 for the means, (2 - 1)^2 + (3 - 4)^2 for the standard deviations."""
    a = Gaussian(np.array([1.0, 2.0]), np.diag([4.0, 9.0]))
    b = Gaussian(np.array([2.0, 0.0]), np.diag([1.0, 16.0]))
    assert frechet_distance(a, b) == pytest.approx(7, rel=1e-14)


@pytest.mark.parametrize("size", [1, 5, 84])
def test_frechet_distance_is_the_formula(size, rng):
    a, b = (Gaussian(rng.normal(size=size), covariance(size, 2 * size, seed)) for seed in (1, 2))
    assert frechet_distance(a, b) == pytest.approx(reference_distance(a, b), rel=1e-11)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-13)
    assert 0 <= frechet_distance(a, a) <= 1e-12 * np.trace(a.covariance)


def test_frechet_distance_of_singular_covariances(rng):
    mean = np.zeros(12)
    a, b = Gaussian(mean, covariance(12, 4, 1)), Gaussian(mean, covariance(12, 7, 2))
    none = Gaussian(mean, np.zeros((12, 12)))
    filled = [Gaussian(mean, x.covariance + 1e-12 * np.eye(12)) for x in (a, b)]
    assert frechet_distance(a, b) == pytest.approx(reference_distance(*filled), rel=1e-5)
    assert frechet_distance(a, none) == pytest.approx(np.trace(a.covariance), rel=1e-14)
    assert 0 <= frechet_distance(a, a) <= 1e-12 * np.trace(a.covariance)
    # Of vv' and ww' the product's root has the trace |v'w|.
    v, w = rng.normal(size=(2, 12))
    a, b = Gaussian(mean, np.outer(v, v)), Gaussian(mean, np.outer(w, w))
    assert frechet_distance(a, b) == pytest.approx(v @ v + w @ w - 2 * abs(v @ w), rel=1e-6)


def test_frechet_distance_is_never_negative():
    """Rounding takes the bare sum below 0 for a third of these."""
    for seed in range(20):
        a = Gaussian(np.zeros(30), 1e3 * covariance(30, 20, seed))
        assert frechet_distance(a, a) >= 0


def test_fit_gaussian(rng):
    features = rng.normal(size=(9, 4)).astype(np.float32)
    fitted = fit_gaussian(features)
    assert fitted.mean.dtype == fitted.covariance.dtype == np.float64
    np.testing.assert_allclose(fitted.mean, features.astype(np.float64).mean(0), rtol=1e-14)
    np.testing.assert_allclose(
        fitted.covariance, np.cov(features, rowvar=False, dtype=np.float64), rtol=1e-12, atol=1e-15
    )
    assert fit_gaussian([[0.0], [2.0]]).covariance == [[2.0]]


def by_loops(real, fake, k):
    def covered(points, centers):
        radii = [sorted(np.linalg.norm(c - centers, axis=1))[k] for c in centers]
        hits = [
            any(np.linalg.norm(p - c) <= r for c, r in zip(centers, radii, strict=True))
            for p in points
        ]
        return sum(hits) / len(points)

    return covered(fake, real), covered(real, fake)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_recall_is_the_definition(k, rng):
    real, fake = rng.normal(size=(300, 3)), 1 + 0.8 * rng.normal(size=(270, 3))
    expected = by_loops(real, fake, k)
    assert precision_recall(real, fake, k) == expected
    assert 0.2 < min(expected) < max(expected) < 0.98


def test_precision_recall_by_hand():
    """The balls reach 1, 1, 1, 8 around the real and 4, 0.5, 0.5, 1, 1 around the fake."""
    real = np.array([[0], [1], [2], [10]])
    fake = np.array([[-1], [3], [3.5], [30], [29]])
    assert precision_recall(real, fake, k=1) == (3 / 5, 3 / 4)


def test_a_ball_ends_in_its_surface_wherever_it_lies(rng):
    """Copies lie on surfaces, in balls of no size: rounding must not move them out."""
    real = rng.normal(size=(300, 5)).repeat(4, axis=0)
    for far in (0, 1e4):
        assert precision_recall(real + far, rng.permutation(real) + far) == (1, 1)
    a, b = np.array([[0.1], [0.4], [0.7]]), np.array([[-0.2], [0.1], [1.0]])
    for scale in (1, 3, 1e7, 1 / 3):
        # The balls around a reach 0.3, and so to either end of b; those of b 0.3, 0.3, 0.9.
        assert precision_recall(scale * a, scale * b, k=1) == (1, 1)


def test_precision_recall_tells_diversity_from_quality(rng):
    centers = np.array([[0, 0], [9, 0], [0, 9], [9, 9]])
    draw = lambda modes: np.repeat(centers[:modes], 100, 0) + rng.normal(size=(100 * modes, 2))
    real = draw(4)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 1000) == (0, 0)
    assert min(precision_recall(real, draw(4))) > 0.95
    precision, recall = precision_recall(real, draw(3))
    assert precision > 0.95
    assert 0.7 < recall <= 0.75
    noisy = np.concatenate([draw(4), rng.uniform(-100, 100, (400, 2))])
    precision, recall = precision_recall(real, noisy)
    assert precision < 0.55
    assert recall > 0.95


def test_class_shares_count_those_of_no_class():
    shares = fidelity.class_shares([0, 2, 2, -1, -1], 4)
    np.testing.assert_array_equal(shares, [0.2, 0, 0.4, 0])


def test_modes_covered():
    data = np.full(10, 0.1)
    assert fidelity.modes_covered(data, data) == 10
    # The second is at the bound, the third below it, the fourth absent.
    shares = np.array([0.9, 0.01, 0.009, 0])
    assert fidelity.modes_covered(shares, np.full(4, 0.1)) == 2
    assert fidelity.modes_covered(shares, np.full(4, 0.1), least=0) == 3
    assert fidelity.modes_covered(shares, np.full(4, 0.1), least=1) == 1
    # A rare class needs little, and one that the data lacks is no mode.
    assert fidelity.modes_covered([0.5, 0.01, 0.49], [0.95, 0.05, 0]) == 2


def test_class_divergence_by_hand(rng):
    divergence = fidelity.class_divergence
    expected = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    assert divergence([0.75, 0.25], [0.5, 0.5]) == pytest.approx(expected, rel=1e-14)
    assert divergence([0.3, 0.1], [0.2, 0.2]) == pytest.approx(expected, rel=1e-14)
    assert divergence([1, 0], [0.5, 0.5]) == pytest.approx(np.log(2), rel=1e-14)
    assert divergence([0.2, 0.8], [0.2, 0.8]) == 0
    assert divergence([0.5, 0.5], [1, 0]) == np.inf
    assert divergence([0, 0], [0.5, 0.5]) == np.inf
    data = rng.dirichlet(np.ones(10), 50)
    assert all(0 <= divergence(shares * (1 + 1e-15), shares) < 1e-15 for shares in data)


def test_nearest_by_hand():
    """Bytes do not wrap around; of two that are equally near the first comes first."""
    references = np.array([12, 9, 8, 200], np.uint8).reshape(4, 1, 1)
    indices, distances = fidelity.nearest(np.array([[[10]]], np.uint8), references, 3)
    np.testing.assert_array_equal(indices, [[1, 0, 2]])
    np.testing.assert_array_equal(distances, [[1, 2, 2]])
    references = np.resize([2, 1], 200)[:, None, None, None] * np.ones((1, 3, 4, 1))
    indices, distances = fidelity.nearest(np.zeros((1, 3, 4, 1)), references, 5)
    np.testing.assert_array_equal(indices, [[1, 3, 5, 7, 9]])
    np.testing.assert_allclose(distances, np.full((1, 5), np.sqrt(12)))


def test_nearest_is_scikit_learns(rng):
    images, references = rng.normal(size=(300, 4, 4, 2)), rng.normal(size=(90, 4, 4, 2))
    images[280] = references[40]
    indices, distances = fidelity.nearest(images, references, 5)
    search = NearestNeighbors(n_neighbors=5, algorithm="kd_tree").fit(references.reshape(90, -1))
    expected_distances, expected = search.kneighbors(images.reshape(300, -1))
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-12)
    assert (indices[280, 0], distances[280, 0]) == (40, 0)


def test_diversity_by_hand(rng):
    """2 + 0 over 0 + 8; and the sizes of the samples do not matter."""
    assert fidelity.diversity([[0, 5], [2, 5]], [[0, 0], [0, 4]]) == 0.25
    assert fidelity.diversity([[0], [2]], [[0], [3], [3]]) == pytest.approx(2 / 3)
    bytes_ = np.array([[0], [255]], np.uint8)
    assert fidelity.diversity(bytes_, bytes_.astype(float)) == 1
    assert fidelity.diversity(np.ones((5, 4, 4, 1)), rng.normal(size=(9, 4, 4, 1))) == 0


def wave(period, height=8, width=12):
    """A cosine across the columns, [1, H, W, 1]."""
    return np.broadcast_to(np.cos(2 * np.pi * np.arange(width) / period), (height, width))[
        None, :, :, None
    ]


def test_stride_energy_by_hand():
    impulse = np.zeros((4, 4))
    impulse[:, 1] = 1  # all of its frequencies but 0 are equally strong: v = 1, 2, 3
    assert stride_energy(impulse[None, :, :, None]) == pytest.approx(1 / 3)
    # Mean squares: 9/2 of period 4, and 1 of period 2.
    mixed = 5 + 3 * wave(4) + wave(2)
    assert stride_energy(mixed) == pytest.approx(1 / 5.5)
    assert stride_energy(mixed.swapaxes(1, 2)) == pytest.approx(1 / 5.5)
    assert stride_energy(mixed, stride=4) == pytest.approx(1)
    # Energies add up, over images and channels; each has its own mean.
    for axis in (0, 3):
        both = np.concatenate([3 * wave(4), 7 + wave(2)], axis)
        assert stride_energy(both) == pytest.approx(1 / 5.5)


@pytest.mark.parametrize("stride", [2, 3])
def test_stride_energy_of_noise(stride, rng):
    noise = rng.normal(size=(2000, 12, 18, 1))
    expected = (stride - 1) * (12 + 18 - stride + 1) / (12 * 18 - 1)
    assert stride_energy(noise, stride) == pytest.approx(expected, rel=0.02)
    enlarged = noise.repeat(stride, 1).repeat(stride, 2)
    assert stride_energy(enlarged, stride) < 1e-25


def test_stride_energy_of_a_transposed_convolution():
    """A kernel of 3 overlaps every second pixel; resizing a constant first leaves it constant."""
    constant, taps = np.ones(16), np.array([0.5, 1.0, 0.7])
    stuffed = np.zeros(32)
    stuffed[::2] = constant
    around = lambda x: np.convolve(np.pad(x, 1, mode="wrap"), taps, mode="valid")
    transposed, resized = around(stuffed), around(constant.repeat(2))
    assert stride_energy(np.multiply.outer(transposed, transposed)[None, :, :, None]) > 1 - 1e-12
    assert stride_energy(np.multiply.outer(resized, resized)[None, :, :, None]) == 0


def test_stride_energy_of_checkers_and_smooth_images():
    places = np.arange(32)
    checkers = ((places[:, None] + places) % 2)[None, :, :, None]
    blob = np.exp(-(((places - 15) / 5) ** 2))
    blob = np.multiply.outer(blob, blob)[None, :, :, None]
    assert stride_energy(checkers) == pytest.approx(1)
    assert stride_energy(blob) < 1e-6
    assert stride_energy(np.full((2, 7, 14, 3), 0.3), stride=7) == 0


TWO, NAN = np.zeros((2, 3)), np.full((2, 3), np.nan)
BAD = {
    "one example": (lambda: fit_gaussian(TWO[:1]), "1 example: expected at least 2, for a"),
    "no features": (lambda: fit_gaussian([1.0, 2.0]), r"shape \(2,\): expected \[examples, feat"),
    "nan": (lambda: fit_gaussian(NAN), "2 of 2 examples hold values that are not finite"),
    "gaussians": (
        lambda: frechet_distance(fit_gaussian(TWO), fit_gaussian(TWO[:, :2])),
        "Gaussians of 3 and 2 features",
    ),
    "k": (lambda: precision_recall(np.eye(3), np.eye(4, 3), 3), "k=3 of 3 real and 4 fake"),
    "k 0": (lambda: precision_recall(np.eye(3), np.eye(4, 3), 0), "k=0"),
    "widths": (lambda: precision_recall(TWO, TWO[:, :2], 1), "real has 3 features, fake 2"),
    "nan fake": (lambda: precision_recall(TWO, NAN, 1), "fake: 2 of 2 examples"),
    "class": (lambda: fidelity.class_shares([0, 4], 4), "classes from 0 to 4: expected -1 to 3"),
    "class -2": (lambda: fidelity.class_shares([0, -2], 4), "classes from -2 to 0"),
    "no class": (lambda: fidelity.class_shares([], 4), r"classes float64 of shape \(0,\)"),
    "real class": (lambda: fidelity.class_shares([0.5], 4), "classes float64"),
    "shares": (lambda: fidelity.modes_covered([0.5, 0.5], [1.0]), r"shapes \(2,\) and \(1,\)"),
    "no data": (lambda: fidelity.class_divergence([0.5, 0.5], [0, 0]), "no class has a share"),
    "count": (lambda: fidelity.nearest(TWO, TWO, 3), "count=3 of 2 references: expected 1 to"),
    "count 0": (lambda: fidelity.nearest(TWO, TWO, 0), "count=0"),
    "shapes": (lambda: fidelity.nearest(TWO, TWO[:, :2], 1), r"\(2, 3\), references \(2, 2\)"),
    "nan image": (lambda: fidelity.nearest(NAN, TWO, 1), "not finite"),
    "one image": (lambda: fidelity.diversity(TWO[:1], TWO), "1 images and 2 references"),
    "same": (lambda: fidelity.diversity(TWO, TWO), "all 2 references are the same"),
    "stride": (lambda: stride_energy(np.zeros((1, 6, 9, 1))), "stride=2 of images of 6 by 9"),
    "stride 1": (lambda: stride_energy(np.zeros((1, 6, 9, 1)), 1), "stride=1"),
    "no images": (lambda: stride_energy(TWO), r"shape \(2, 3\): expected \[N, H, W, C\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case):
    call, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
