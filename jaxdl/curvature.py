"""The curvature of a loss: products with its Hessian H, eigenvalues, spectrum and trace.

    f = lambda params: loss(params, batch)               # of any tree of arrays, to a scalar
    hvp(f, params, v)                                    # H v, a tree as the parameters
    top_eigenvalues(f, params, k=3).values               # needs nothing but such products
    spectrum(f, params).density(points, width)

    f = lambda params, batch: loss(params, batch)        # to a `task.Mean`
    top_eigenvalues(f, params, k=3, batches=lambda: pipeline.evaluate("train"))

With `batches`, which gives them anew for each pass, H is that of the mean over all that the batches
count: totals and counts are summed over batches, and over the devices that these are spread over,
and divided once.

`hvp` and `gauss_newton_product` are as pure as the loss and may be traced. The others run on the
host: the products are compiled, once for each f that is the same function, and the vectors that
they make are kept there.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxdl import Batch, InputError, require
from jaxdl.task import Mean

MOST_BYTES = 2**30
"""The greatest Hessian that `hessian` makes."""
AT_ONCE = 16
"""How many products `hessian` and `trace` make in one pass over the data."""
GUARDS = 2
"""Vectors beside the first k: of one alone, chance may leave the greatest eigenvalue's out."""

Function = Callable[..., Any]
"""(params) -> a scalar; (params, batch) -> Mean where there are batches."""
Batches = Callable[[], Iterable[Batch]]
"""Gives all batches, each time that it is called."""


def hvp(f: Callable[[Any], Any], params: Any, v: Any) -> Any:
    """The Hessian of f times a vector, by forward over reverse mode.

    Pearlmutter 1994, "Fast exact multiplication by the Hessian", Neural Computation 6: it takes
    the time of a few gradients, and no more memory.

    >>> hvp(lambda x: x[0] ** 2 * x[1], jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0]))
    Array([4., 2.], dtype=float32)

    Args:
      f: (params) -> a scalar.
      params: where H is taken, a tree of float arrays.
      v: a tree as `params`.

    Returns:
      H v, a tree as `params`.
    """
    return jax.jvp(jax.grad(f), (params,), (v,))[1]


def gauss_newton_product(
    outputs: Callable[[Any], Any], loss: Callable[[Any], Any], params: Any, v: Any
) -> Any:
    """The generalized Gauss-Newton matrix of loss(outputs(params)) times a vector.

    It is J^T L J, with J the Jacobian of the outputs and L the Hessian of the loss by them: the
    Hessian without what the curvature of the network itself adds, and positive semidefinite where
    the loss is convex in the outputs.

    Schraudolph 2002, "Fast curvature matrix-vector products for second-order gradient descent",
    Neural Computation 14.

    Args:
      outputs: (params) -> a tree of arrays, such as logits; differentiable by forward mode.
      loss: (such a tree) -> a scalar.
      params: where it is taken, a tree of float arrays.
      v: a tree as `params`.

    Returns:
      J^T L J v, a tree as `params`.
    """
    values, tangents = jax.jvp(outputs, (params,), (v,))
    return jax.vjp(outputs, params)[1](hvp(loss, values, tangents))[0]


def mean_over(product: Callable[[Batch], Mean], batches: Batches) -> Any:
    """The mean over the batches of what is summed over the examples of each.

    For products that the functions below do not make, such as with a Gauss-Newton matrix:

        product = jax.jit(lambda batch: Mean(gauss_newton_product(..., params, v), count))

    Args:
      product: (batch) -> Mean, whose total is any tree of arrays.
      batches: gives the batches.

    Returns:
      A tree as the totals: their sum, divided by the sum of the counts.

    Raises:
      InputError: there are no batches, or none counts anything.
    """
    summed = None
    for batch in batches():
        part = product(batch)
        summed = part if summed is None else _add(summed, part)
    if summed is None or not summed.count > 0:
        raise InputError("the batches hold no example to measure the curvature of")
    return jax.tree.map(lambda total: total / summed.count, summed.total)


@jax.jit
def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


class _Operator(NamedTuple):
    """A Hessian as what it does to vectors: `products` of [N, P], in `dtype`, are [N, P]."""

    size: int
    dtype: np.dtype
    products: Callable[[np.ndarray], np.ndarray]


def _operator(f: Function, params: Any, batches: Batches | None) -> _Operator:
    compiled = _compiled(f, batches is not None)
    flat = jax.eval_shape(lambda tree: ravel_pytree(tree)[0], params)
    require(flat.size > 0, "parameters without a number", "at least one")

    def products(vectors):
        product = functools.partial(compiled, params, vectors.astype(flat.dtype))
        found = np.asarray(mean_over(product, batches or (lambda: [{}])))
        if not np.isfinite(found).all():
            raise FloatingPointError("a product with the Hessian is not finite at these parameters")
        return found

    return _Operator(flat.size, flat.dtype, products)


@functools.lru_cache(maxsize=16)  # what is looked at again and again is compiled once
def _compiled(f: Function, has_batches: bool) -> Callable[[Any, Any, Batch], Mean]:
    """(params, vectors [N, P], batch) -> the products' totals [N, P] and their count."""

    @jax.jit
    def products(params, vectors, batch):
        flat, unravel = ravel_pytree(params)

        def total(flat):
            mean = f(unravel(flat), batch) if has_batches else Mean(f(unravel(flat)), 1.0)
            return mean.total, mean.count

        gradient = jax.grad(total, has_aux=True)
        _, push, count = jax.linearize(gradient, flat, has_aux=True)
        return Mean(jax.vmap(push)(vectors), jnp.asarray(count))

    return products


def hessian(f: Function, params: Any, *, batches: Batches | None = None) -> np.ndarray:
    """The whole Hessian of a small model.

    Args:
      f: (params) -> a scalar, or with batches (params, batch) -> Mean.
      params: where it is taken, a tree of P float numbers.
      batches: gives the batches that f is the mean over.

    Returns:
      [P, P], symmetric; rows and columns in the order of `jax.flatten_util.ravel_pytree`.

    Raises:
      InputError: it takes more than `MOST_BYTES`; or as `mean_over`.
      FloatingPointError: a product is not finite.
    """
    operator = _operator(f, params, batches)
    size = operator.size
    needed = size**2 * operator.dtype.itemsize
    if needed > MOST_BYTES:
        raise InputError(
            f"the Hessian of {size:,} parameters takes {needed:,} bytes: expected at most "
            f"{MOST_BYTES:,}; top_eigenvalues, spectrum and trace do without it"
        )
    blocks = [operator.products(np.eye(AT_ONCE, size, i)) for i in range(0, size, AT_ONCE)]
    rows = np.concatenate(blocks)[:size]
    return (rows + rows.T) / 2  # which differ by rounding


class Ritz(NamedTuple):
    """What block Lanczos has found of a symmetric matrix of P x P: its m Ritz pairs.

    Attributes:
      values: float64 [m], the Ritz values, ascending.
      errors: float64 [m], norms of the residuals: within each of its value lies an eigenvalue.
      coordinates: float64 [m, m], column i the vector of value i in the basis.
      basis: [m, P], orthonormal rows; the first are the start.
    """

    values: np.ndarray
    errors: np.ndarray
    coordinates: np.ndarray
    basis: np.ndarray


def lanczos(
    products: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    steps: int,
    done: Callable[[Ritz], bool] = lambda found: False,
) -> Ritz:
    """Projects a symmetric matrix on the space that it makes of some vectors.

    Lanczos's method on several vectors at once, which finds eigenvalues as often as they occur, up
    to as many times as there are vectors (Golub and Underwood 1977, "The block Lanczos method for
    computing eigenvalues"). New vectors are made orthogonal to all before, three times over.
    Without that, rounding brings eigenvalues up again that were found. Memory: the basis, of
    `steps * N` vectors at most.

    Args:
      products: the matrix times each of the rows of [N, P], as [N, P].
      start: [N, P] of full rank, N at most P.
      steps: how often to call `products` at most; it ends before where the basis spans everything.
      done: whether what was found is enough.

    Returns:
      The Ritz pairs of the space.
    """
    width, size = start.shape
    basis = np.zeros((min(steps * width, size), size), start.dtype)
    projected = np.zeros((len(basis), len(basis)))
    rng, count, block = np.random.default_rng(0), 0, start
    while True:
        block = _orthonormal(block[: len(basis) - count], basis[:count])
        here, count = count, count + len(block)
        basis[here:count] = block
        images = products(block)
        known = basis[:count]
        part = known @ images.T
        projected[:count, here:count], projected[here:count, :count] = part, part.T
        rest = images - part.T @ known
        values, coordinates = np.linalg.eigh(projected[:count, :count])
        # A Ritz vector's image leaves the space by the last block's alone.
        last = coordinates[here:]
        gram = (rest @ rest.T).astype(np.float64)
        errors = np.sqrt(np.maximum(np.einsum("im,ij,jm->m", last, gram, last), 0))
        found = Ritz(values, errors, coordinates, known)
        if count == len(basis) or done(found):
            return found
        # Where the space is closed nothing but rounding is left, of which this makes directions.
        noise = np.finfo(rest.dtype).eps * (np.abs(images).max() or 1)
        block = rest + noise * rng.standard_normal(rest.shape).astype(rest.dtype)


def _orthonormal(vectors: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Orthonormal rows that span, with those of `basis`, what these vectors [N, P] and it do."""
    for _ in range(3):
        vectors = vectors - (vectors @ basis.T) @ basis
        vectors = np.linalg.qr(vectors.T)[0].T
    return vectors


class Eigenvalues(NamedTuple):
    """The greatest eigenvalues of a Hessian.

    Attributes:
      values: float64 [k], the greatest first.
      errors: float64 [k], bounds: within each of its value lies an eigenvalue.
      vectors: a tree as the parameters with an axis [k] in front, of norm 1.
    """

    values: np.ndarray
    errors: np.ndarray
    vectors: Any


def top_eigenvalues(
    f: Function,
    params: Any,
    k: int = 1,
    *,
    tolerance: float = 1e-3,
    steps: int = 100,
    seed: int = 0,
    batches: Batches | None = None,
) -> Eigenvalues:
    """The greatest eigenvalues of the Hessian of f, by `lanczos` on k + `GUARDS` random vectors.

    The first of them is the sharpness.

    Args:
      f: (params) -> a scalar, or with batches (params, batch) -> Mean.
      params: where it is taken, a tree of P float numbers.
      k: how many, from 1 to P; an eigenvalue counts as often as it occurs.
      tolerance: of the errors, as a share of the eigenvalue that is the greatest in magnitude. The
        values are better than that: they err by about the square of it.
      steps: of a product with each vector, at most; what has not converged says so by its error.
      seed: of the vectors.
      batches: gives the batches that f is the mean over, once in each step.

    Returns:
      The eigenvalues and their vectors.

    Raises:
      InputError: k, steps or tolerance out of range; or as `mean_over`.
      FloatingPointError: a product is not finite.
    """
    operator = _operator(f, params, batches)
    require(1 <= k <= operator.size, f"k={k}", f"1 to {operator.size}, the number of parameters")
    require(steps >= 1, f"steps={steps}", "at least 1")
    require(tolerance > 0, f"tolerance={tolerance}", "more than 0")
    width = min(k + GUARDS, operator.size)
    start = np.random.default_rng(seed).standard_normal((width, operator.size))

    def done(found):
        bound = tolerance * np.abs(found.values).max()
        return len(found.values) >= k and bool((found.errors[-k:] <= bound).all())

    found = lanczos(operator.products, start.astype(operator.dtype), steps, done)
    vectors = found.coordinates[:, : -k - 1 : -1].T.astype(operator.dtype) @ found.basis
    unravel = ravel_pytree(params)[1]
    return Eigenvalues(
        found.values[: -k - 1 : -1], found.errors[: -k - 1 : -1], jax.vmap(unravel)(vectors)
    )


class Spectrum(NamedTuple):
    """The eigenvalues of a Hessian as a distribution, by a quadrature for each probe.

    Attributes:
      values: float64 [probes, m], where its weights are.
      weights: float64 [probes, m], at least 0; those of a probe have the sum 1.
    """

    values: np.ndarray
    weights: np.ndarray

    def density(self, points: np.ndarray, width: float) -> np.ndarray:
        """The share of the eigenvalues per unit, each spread as a Gaussian of a width.

        Args:
          points: [N], where.
          width: standard deviation of the Gaussians, in units of the eigenvalues.

        Returns:
          float64 [N], the mean over the probes, with the integral 1.

        Raises:
          InputError: the width is not more than 0.
        """
        require(width > 0, f"width={width}", "more than 0")
        distances = (np.asarray(points)[:, None, None] - self.values[None]) / width
        gaussians = np.exp(-0.5 * distances**2) / (width * np.sqrt(2 * np.pi))
        return (gaussians * self.weights[None]).sum(-1).mean(-1)


def spectrum(
    f: Function,
    params: Any,
    *,
    probes: int = 4,
    steps: int = 80,
    seed: int = 0,
    batches: Batches | None = None,
) -> Spectrum:
    """The distribution of the Hessian's eigenvalues, by stochastic Lanczos quadrature.

    The Ritz values of `lanczos` on one random vector, with the squares of their vectors' first
    coordinates, are the Gauss quadrature of the vector's spectral measure (Golub and Meurant 2010,
    "Matrices, moments and quadrature"), of which the mean over random vectors is the spectrum
    (Ghorbani, Krishnan, Xiao 2019, arXiv:1901.10159).

    Args:
      f: (params) -> a scalar, or with batches (params, batch) -> Mean.
      params: where it is taken, a tree of P float numbers.
      probes: random vectors, of signs.
      steps: of each, a product each; P at most. The more, the finer the values.
      seed: of the vectors.
      batches: gives the batches that f is the mean over, once in each step of each probe.

    Returns:
      The distribution.

    Raises:
      InputError: probes or steps below 1; or as `mean_over`.
      FloatingPointError: a product is not finite.
    """
    operator = _operator(f, params, batches)
    for name, value in (("probes", probes), ("steps", steps)):
        require(value >= 1, f"{name}={value}", "at least 1")
    rng, found = np.random.default_rng(seed), []
    for _ in range(probes):
        start = _signs(rng, 1, operator) / np.sqrt(operator.size).astype(operator.dtype)
        found.append(lanczos(operator.products, start, steps))
    weights = [ritz.coordinates[0] ** 2 for ritz in found]
    return Spectrum(np.stack([ritz.values for ritz in found]), np.stack(weights))


class Trace(NamedTuple):
    """An estimate of a Hessian's trace.

    Attributes:
      value: the mean over the probes.
      error: its standard error.
    """

    value: float
    error: float


def trace(
    f: Function, params: Any, *, probes: int = 64, seed: int = 0, batches: Batches | None = None
) -> Trace:
    """The sum of the Hessian's eigenvalues, by Hutchinson's estimator.

    It is the mean of z^T H z over vectors z of random signs (Hutchinson 1989, "A stochastic
    estimator of the trace of the influence matrix for Laplacian smoothing splines"), which is exact
    for a diagonal H.

    Args:
      f: (params) -> a scalar, or with batches (params, batch) -> Mean.
      params: where it is taken, a tree of float numbers.
      probes: how many vectors, at least 2 for there to be an error.
      seed: of the vectors.
      batches: gives the batches that f is the mean over, once for every `AT_ONCE` probes.

    Returns:
      The estimate.

    Raises:
      InputError: fewer than 2 probes; or as `mean_over`.
      FloatingPointError: a product is not finite.
    """
    require(probes >= 2, f"probes={probes}", "at least 2")
    operator, rng, found = _operator(f, params, batches), np.random.default_rng(seed), []
    for done in range(0, probes, AT_ONCE):
        signs = _signs(rng, min(AT_ONCE, probes - done), operator)
        images = operator.products(signs)
        found.append(np.einsum("np,np->n", signs, images, dtype=np.float64))
    values = np.concatenate(found)
    return Trace(float(values.mean()), float(values.std(ddof=1) / np.sqrt(probes)))


def _signs(rng: np.random.Generator, count: int, operator: _Operator) -> np.ndarray:
    return rng.choice(np.array([-1, 1], operator.dtype), (count, operator.size))


def step_size_range(
    greatest_eigenvalue: float, momentum: float = 0.0, *, nesterov: bool = False
) -> tuple[float, float]:
    """The learning rates with which gradient descent converges on a quadratic, ends excluded.

    A step multiplies the distance along an eigenvector by 1 - rate x eigenvalue, so what decides is
    the greatest: rate < 2 / greatest (LeCun, Bottou, Orr, Müller 1998, "Efficient BackProp",
    section 5). With a momentum b it is 2 (1 + b) / greatest (Polyak 1964, "Some methods of speeding
    up the convergence of iteration methods"), and in Nesterov's form 2 (1 + b) / ((1 + 2 b)
    greatest) (Cohen et al. 2021, arXiv:2103.00065, appendix B).

    >>> step_size_range(4.0), step_size_range(4.0, momentum=0.9)
    ((0.0, 0.5), (0.0, 0.95))

    Args:
      greatest_eigenvalue: of the Hessian, more than 0; none is to be less than 0.
      momentum: share of the last update kept, in [0, 1).
      nesterov: whether the momentum is Nesterov's.

    Returns:
      The least and the greatest learning rate, neither of which converges itself.

    Raises:
      InputError: a value out of range.
    """
    accepted = "a finite number more than 0"
    holds = 0 < greatest_eigenvalue < np.inf
    require(holds, f"greatest_eigenvalue={greatest_eigenvalue}", accepted)
    require(0 <= momentum < 1, f"momentum={momentum}", "at least 0 and less than 1")
    limit = 2 * (1 + momentum) / greatest_eigenvalue
    return 0.0, limit / (1 + 2 * momentum) if nesterov else limit
