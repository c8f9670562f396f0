"""Generative adversarial networks: two players in one State, their losses, and one pure step.

    players = linen_players(generator, discriminator, latent_size=100, sample_shape=(32, 32, 1))
    optimizers = optim.optimizer("adam"), optim.optimizer("adam")
    task = adversarial(players, LOSSES["non_saturating"], optimizers)
    task = parallel.jit(task, parallel.data_mesh())  # or pmap, scan, vmap, as any other Task

Goodfellow et al. 2014, "Generative Adversarial Nets", arXiv:1406.2661.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxdl import optim
from jaxdl.losses import SOWN, masked_mean
from jaxdl.task import (
    Batch,
    Init,
    Mean,
    Metrics,
    Optimizer,
    Schedule,
    State,
    Task,
    constant,
    initial_state,
    keyed,
)

EVAL_STREAM = 2**31 - 1
"""What a run's key is folded with for the latents of evaluation; steps fold in 0, 1, 2 ..."""


class Pair(NamedTuple):
    """What each of the two players has: parameters, batch statistics, optimizer state, gradient."""

    generator: Any
    discriminator: Any


PLAYERS = Pair._fields
"""Their order, and the names of their hyperparameters and metrics."""


class AdversarialLoss(NamedTuple):
    """What the two players minimize, from the discriminator's logits, in float32.

    Attributes:
      discriminator: (real logits [B], generated logits [B], smoothing) -> [B].
      generator: (generated logits [B]) -> [B].
      boundary: the logit above which the discriminator says "real"; None where it says no such
        thing.
      smooths: whether `smoothing` has a meaning: one-sided label smoothing (Salimans et al. 2016,
        arXiv:1606.03498), which moves the target of real examples alone, from 1 to 1 - smoothing.
    """

    discriminator: Callable[[jax.Array, jax.Array, Any], jax.Array]
    generator: Callable[[jax.Array], jax.Array]
    boundary: float | None = 0.0
    smooths: bool = False


def _cross_entropy(real: jax.Array, fake: jax.Array, smoothing: Any) -> jax.Array:
    smoothed = (1 - smoothing) * nn.softplus(-real) + smoothing * nn.softplus(real)
    return smoothed + nn.softplus(fake)


LOSSES: dict[str, AdversarialLoss] = {
    "minimax": AdversarialLoss(_cross_entropy, lambda fake: -nn.softplus(fake), smooths=True),
    "non_saturating": AdversarialLoss(
        _cross_entropy, lambda fake: nn.softplus(-fake), smooths=True
    ),
    "least_squares": AdversarialLoss(
        lambda real, fake, smoothing: ((real - (1 - smoothing)) ** 2 + fake**2) / 2,
        lambda fake: (fake - 1) ** 2 / 2,
        boundary=0.5,
        smooths=True,
    ),
    "hinge": AdversarialLoss(
        lambda real, fake, smoothing: nn.relu(1 - real) + nn.relu(1 + fake), lambda fake: -fake
    ),
    "wasserstein": AdversarialLoss(
        lambda real, fake, smoothing: fake - real, lambda fake: -fake, boundary=None
    ),
}
"""Each from logits, finite wherever float32 holds them and their squares.

minimax and non_saturating: Goodfellow et al. 2014, equation 1 and the end of section 3; both teach
the discriminator by cross-entropy. least_squares: Mao et al. 2016, arXiv:1611.04076, with targets 0
and 1. hinge: Lim and Ye 2017, arXiv:1705.02894. wasserstein: Arjovsky et al. 2017,
arXiv:1701.07875, which needs a penalty (here) or clipped weights to bound the critic's slope.
"""

Penalty = Literal["", "gradient", "r1"]
"""On the slopes of the discriminator's logits, times the hyperparameter `penalty_weight`.

gradient: (|slope| - 1)^2 at a random point between each real and generated example (Gulrajani et
al. 2017, arXiv:1704.00028). r1: |slope|^2 / 2 at real examples (Mescheder et al. 2018,
arXiv:1801.04406). Both are of one example's slope, which batch normalization does not have.
"""


class Generate(Protocol):
    """Makes samples of latents; players that are not told the class need no labels."""

    def __call__(
        self, params: Any, extra: Any, latents: jax.Array, labels: jax.Array | None, train: bool, /
    ) -> tuple[jax.Array, Any]:
        """(params, extra, latents [B, Z], labels int [B], train) -> (samples [B, ...], extra)."""


class Discriminate(Protocol):
    """Tells real samples from generated ones; labels are as for the generator."""

    def __call__(
        self,
        params: Any,
        extra: Any,
        samples: jax.Array,
        labels: jax.Array | None,
        key: jax.Array,
        train: bool,
        /,
    ) -> tuple[jax.Array, Any]:
        """(params, extra, samples [B, ...], labels int [B], key, train) -> (logits [B], extra)."""


class Players(NamedTuple):
    """Two networks as pure functions.

    Attributes:
      init: (key) -> (params, extra), each a Pair.
      latents: (keys [B]) -> what the generator makes samples of, [B, Z].
      generate: (params, extra, latents, labels [B], train) -> (samples, extra).
      discriminate: (params, extra, samples, labels [B], key, train) -> (logits [B], extra).
    """

    init: Init
    latents: Callable[[jax.Array], jax.Array]
    generate: Generate
    discriminate: Discriminate


def signed(images: jax.Array) -> jax.Array:
    """uint8 images as float32 in [-1, 1]; floats as they are."""
    return images.astype(jnp.float32) / 127.5 - 1 if images.dtype == jnp.uint8 else images


def linen_players(
    generator: nn.Module,
    discriminator: nn.Module,
    latent_size: int,
    sample_shape: tuple[int, ...],
) -> Players:
    """The players that two Linen modules are, such as those of `jaxdl.models.gan`.

    Args:
      generator: called as `apply(variables, latents [B, Z], labels [B], train=...)`.
      discriminator: called as `apply(variables, samples, labels [B], train=...)`; its random
        stream is `dropout`.
      latent_size: Z. Latents are standard normal; both papers draw them uniformly.
      sample_shape: of one sample, without the batch axis.
    """

    def init(key):
        labels = jnp.zeros(1, jnp.int32)
        inputs = jnp.zeros((1, latent_size)), jnp.zeros((1, *sample_shape))
        modules = generator, discriminator
        params, extra = [], []
        for module, value, own in zip(modules, inputs, jax.random.split(key), strict=True):
            variables = dict(module.init(own, value, labels, train=False))
            variables.pop(SOWN, None)
            params.append(variables.pop("params"))
            extra.append(variables)
        return Pair(*params), Pair(*extra)

    def apply(module, params, extra, inputs, labels, train, rngs):
        outputs, updated = module.apply(
            {"params": params, **extra},
            inputs,
            labels,
            train=train,
            rngs=rngs,
            mutable=[*extra] if train else [],
        )
        return outputs.astype(jnp.float32), updated if train else extra

    def generate(params, extra, latents, labels, train):
        return apply(generator, params, extra, latents, labels, train, {})

    def discriminate(params, extra, samples, labels, key, train):
        return apply(discriminator, params, extra, samples, labels, train, {"dropout": key})

    latents = jax.vmap(lambda key: jax.random.normal(key, (latent_size,)))
    return Players(init, latents, generate, discriminate)


def adversarial(
    players: Players,
    loss: AdversarialLoss,
    optimizers: tuple[Optimizer, Optimizer],
    schedules: tuple[Schedule, Schedule] = (constant, constant),
    *,
    discriminator_steps: int = 1,
    penalty: Penalty = "",
    axis_name: str | None = None,
) -> Task:
    """Builds the Task in which a generator learns from a discriminator that learns to tell.

    A step is `discriminator_steps` updates of the discriminator and then one of the generator. Its
    batch is that many times as large as one update's, and cut as `supervised` cuts micro-batches.
    The generator is updated on the samples that the last of those updates saw, so that nothing is
    computed twice: for each real example the generator runs once forward and, in the last part,
    once backward; the discriminator runs forward on the real, on the generated, and with its new
    parameters once more on the generated, of which then only the slopes by the samples are taken.
    Algorithm 1 of the paper draws new latents for the generator.

    The discriminator sees real and generated examples in calls of their own, so that batch
    statistics are of one kind. Its running statistics are those of real examples.

    `State.params`, `extra` and `opt_state` are each a Pair. `State.average` holds the moving
    averages of the generator's `params` and `extra`, which `eval` measures and samples should come
    from. The latents of `eval` follow from the examples it is shown, so that its batches may be of
    any size.

    Args:
      players: the two networks.
      loss: what they minimize.
      optimizers: the generator's and the discriminator's.
      schedules: likewise, of each one's hyperparameters.
      discriminator_steps: updates of the discriminator for each of the generator.
      penalty: on the discriminator's slopes; see `Penalty`.
      axis_name: the mapped axis that the batch is spread over, if there is one.

    Returns:
      A Task. Its hyperparameters are dicts `generator` and `discriminator` of each one's own, and
      `ema_decay` of the averages, `label_smoothing`, and with a penalty `penalty_weight`. Batches
      hold `image` (uint8, which is scaled to [-1, 1], or floats), `label` int [B] and `mask` [B].

      `train` reports for each player `NAME_loss`, `NAME_gradient_norm` and `NAME_learning_rate`,
      `penalty` before its weight, and where logits mean a decision `real_accuracy` and
      `fake_accuracy`: how often real and generated examples were told for what they are. `eval`
      reports the losses, without penalty, and the accuracies.
    """
    discriminator_total = functools.partial(_discriminator_total, players, loss, penalty)
    generator_total = functools.partial(_generator_total, players, loss)

    def psum(tree):
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    def updated(optimizer, grads, mean, opt_state, params):
        """Sums over devices and divides by the global count; a batch may be masked altogether."""
        grads, count = psum((grads, mean.count))
        grads = jax.tree.map(lambda g: g / jnp.maximum(count, 1), grads)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return grads, opt_state, optax.apply_updates(params, updates)

    def play(state, batch):
        """One step: the new state, what it reports, and both players' gradients."""
        hparams = _each(lambda name, schedule: schedule(state.hparams[name], state.step), schedules)
        transforms = [optimizer(own) for optimizer, own in zip(optimizers, hparams, strict=True)]
        key = jax.random.fold_in(state.key, state.step)
        batch, key = keyed(batch | {"image": signed(batch["image"])}, key, axis_name)
        (g_params, d_params), (g_extra, d_extra) = state.params, state.extra
        g_opt_state, d_opt_state = state.opt_state

        def generate(part, params):
            latents = players.latents(part["key"])
            return players.generate(params, g_extra, latents, part["label"], True)

        # Part j takes rows j, j + k, j + 2k ...: rows of every device, so nothing moves.
        parts = jax.tree.map(lambda x: x.reshape(-1, discriminator_steps, *x.shape[1:]), batch)
        sums: list[Metrics] = []
        for j in range(discriminator_steps):
            part = jax.tree.map(lambda x, j=j: x[:, j], parts)
            part_key = jax.random.fold_in(key, j)
            if j < discriminator_steps - 1:
                fake, _ = generate(part, g_params)
            else:
                fake, pull, g_extra_after = jax.vjp(
                    functools.partial(generate, part), g_params, has_aux=True
                )
            d_grads, (d_extra, told) = jax.grad(discriminator_total, has_aux=True)(
                d_params, d_extra, fake, part, part_key, state.hparams
            )
            d_grads, d_opt_state, d_params = updated(
                transforms[1], d_grads, told["discriminator_loss"], d_opt_state, d_params
            )
            sums.append(psum(told) | _of_update("discriminator", d_grads, hparams[1]))

        key = jax.random.fold_in(key, discriminator_steps)
        slopes, mean = jax.grad(generator_total, has_aux=True)(fake, d_params, d_extra, part, key)
        g_grads, g_opt_state, g_params = updated(
            transforms[0], pull(slopes)[0], mean, g_opt_state, g_params
        )
        told = jax.tree.map(lambda *parts: sum(parts), *sums)
        tricked = {"generator_loss": psum(mean)} | _of_update("generator", g_grads, hparams[0])
        bad = [psum(jnp.sum(~jnp.isfinite(values))) > 0 for values in (fake, slopes)]
        to_average = {"params": g_params, "extra": g_extra_after}
        decay = state.hparams["ema_decay"]
        new = state._replace(
            step=state.step + 1,
            params=Pair(g_params, d_params),
            extra=Pair(g_extra_after, d_extra),
            opt_state=Pair(g_opt_state, d_opt_state),
            average=optim.ema_update(state.average, to_average, decay, state.step),
        )
        return new, _blamed(told, tricked, *bad), Pair(g_grads, d_grads)

    return Task(
        init=functools.partial(_begin, players, optimizers),
        train=lambda state, batch: play(state, batch)[:2],
        eval=lambda state, batch: psum(_evaluated(players, loss, state, batch)),
        gradient=lambda state, batch: play(state, batch)[2],
    )


def _each(function: Callable[[str, Any], Any], of_players: tuple[Any, Any]) -> Pair:
    """A function of each player's name and of what is its own."""
    return Pair(*(function(*own) for own in zip(PLAYERS, of_players, strict=True)))


def _begin(
    players: Players, optimizers: tuple[Optimizer, Optimizer], key: Any, hparams: Any
) -> State:
    init_key, key = jax.random.split(key)
    params, extra = players.init(init_key)
    opt_state = _each(
        lambda name, optimizer: optimizer(hparams[name]).init(getattr(params, name)), optimizers
    )
    state = initial_state(key, hparams, params, extra, opt_state)
    return state._replace(average={"params": params.generator, "extra": extra.generator})


def _discriminator_total(
    players: Players,
    loss: AdversarialLoss,
    penalty: Penalty,
    params: Any,
    extra: Any,
    fake: jax.Array,
    batch: Batch,
    key: jax.Array,
    hparams: Any,
) -> tuple[jax.Array, tuple[Any, Metrics]]:
    """What the discriminator minimizes, and its new `extra` and what it reports."""

    def score(images, extra, stream):
        own = jax.random.fold_in(key, stream)
        return players.discriminate(params, extra, images, batch["label"], own, True)

    real, mask, slope_costs = batch["image"], batch["mask"], None
    if penalty == "r1":
        real_logits, slopes_of, extra = jax.vjp(
            lambda images, extra=extra: score(images, extra, 0), real, has_aux=True
        )
        (slopes,) = slopes_of(jnp.ones_like(real_logits))
        slope_costs = jnp.sum(slopes**2, range(1, slopes.ndim)) / 2
    else:
        real_logits, extra = score(real, extra, 0)
    fake_logits, _ = score(fake, extra, 1)
    if penalty == "gradient":
        keys = jax.vmap(jax.random.fold_in, (0, None))(batch["key"], 1)
        shares = jax.vmap(jax.random.uniform)(keys).reshape(-1, *[1] * (real.ndim - 1))
        between = real + shares * (fake - real)
        slopes = jax.grad(lambda images: jnp.sum(score(images, extra, 2)[0]))(between)
        norms = optax.safe_norm(slopes.reshape(len(slopes), -1), 1e-12, axis=1)
        slope_costs = (norms - 1) ** 2

    costs = loss.discriminator(real_logits, fake_logits, hparams["label_smoothing"])
    reported = _decisions(loss, real_logits, fake_logits, mask)
    if slope_costs is not None:
        costs += hparams["penalty_weight"] * slope_costs
        reported["penalty"] = masked_mean(slope_costs, mask)
    reported["discriminator_loss"] = masked_mean(costs, mask)
    return reported["discriminator_loss"].total, (extra, reported)


def _generator_total(
    players: Players,
    loss: AdversarialLoss,
    fake: jax.Array,
    params: Any,
    extra: Any,
    batch: Batch,
    key: jax.Array,
) -> tuple[jax.Array, Mean]:
    """What the generator minimizes by its samples: of the discriminator's `params` and `extra`."""
    logits, _ = players.discriminate(params, extra, fake, batch["label"], key, True)
    mean = masked_mean(loss.generator(logits), batch["mask"])
    return mean.total, mean


def _evaluated(players: Players, loss: AdversarialLoss, state: State, batch: Batch) -> Metrics:
    """The losses and the decisions on a batch beside samples of the averaged generator."""
    key = jax.random.fold_in(state.key, EVAL_STREAM)
    images, labels, mask = signed(batch["image"]), batch["label"], batch["mask"]
    # Latents by what an example shows, not where it stands: the same in batches of any size.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, _fingerprints(images))
    latents, average = players.latents(keys), state.average
    fake, _ = players.generate(average["params"], average["extra"], latents, labels, False)
    params, extra = state.params.discriminator, state.extra.discriminator
    real_logits, fake_logits = (
        players.discriminate(params, extra, samples, labels, key, False)[0]
        for samples in (images, fake)
    )
    costs = loss.discriminator(real_logits, fake_logits, state.hparams["label_smoothing"])
    return {
        "discriminator_loss": masked_mean(costs, mask),
        "generator_loss": masked_mean(loss.generator(fake_logits), mask),
        **_decisions(loss, real_logits, fake_logits, mask),
    }


def _decisions(loss: AdversarialLoss, real_logits: Any, fake_logits: Any, mask: Any) -> Metrics:
    """How often examples are told for what they are, where the logits mean a decision."""
    if loss.boundary is None:
        return {}
    return {
        "real_accuracy": masked_mean(real_logits > loss.boundary, mask),
        "fake_accuracy": masked_mean(fake_logits <= loss.boundary, mask),
    }


def _blamed(told: Metrics, tricked: Metrics, bad_samples: Any, bad_slopes: Any) -> Metrics:
    """What both players report, so that a run that diverges names the player at fault.

    That is the generator for samples that are not finite, whatever came of them, and the
    discriminator for what it makes of those that are.
    """
    bad_slopes = ~bad_samples & bad_slopes
    reported = _void(told, bad_samples) | _void(tricked, bad_slopes)
    mean = reported["discriminator_loss"]
    total = jnp.where(bad_slopes, jnp.nan, mean.total)
    return reported | {"discriminator_loss": mean._replace(total=total)}


def _void(reported: Metrics, void: Any) -> Metrics:
    """The same, counted as nothing where `void`."""
    return jax.tree.map(lambda x: jnp.where(void, 0, x), reported)


def _fingerprints(images: jax.Array) -> jax.Array:
    """A number for each float32 image, uint32 [B], that follows from all of its values."""
    words = jax.lax.bitcast_convert_type(images, jnp.uint32).reshape(len(images), -1)
    weights = 2 * jax.lax.iota(jnp.uint32, words.shape[1]) + 1
    return jnp.sum(words * weights[None], axis=1, dtype=jnp.uint32)


def _of_update(name: str, grads: Any, hparams: Any) -> Metrics:
    """The size and the rate of a player's update."""
    reported = {f"{name}_gradient_norm": Mean(optax.tree.norm(grads), jnp.float32(1))}
    if "learning_rate" in hparams:
        reported[f"{name}_learning_rate"] = Mean(hparams["learning_rate"], jnp.float32(1))
    return reported
