"""Mode collapse on the ring: seeds trained as one, what is counted, and what is drawn."""

import itertools
import json
import statistics

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import cli, mode_collapse
from jaxdl import InputError, data, fidelity, parallel
from jaxdl.pictures import POINT, REFERENCE

TINY = ["--steps=6", "--frames=2", "--batch_size=16", "--latent_size=3", "--width=8"]
TINY += ["--discriminator_width=4", "--depth=2", "--seeds=2"]


def tiny_config(*flags):
    config, _ = cli.parse(mode_collapse.Config, [*TINY, *flags])
    return config


def around(centres, counts, offset):
    """Points at an offset from the centres, so many of each."""
    return np.repeat(centres, counts, axis=0) + np.float32(offset)


@pytest.mark.parametrize("title", ["minimax", "minimax + spectral norm", "Wasserstein + penalty"])
def test_seeds_trained_as_one_are_the_single_trainings(title, monkeypatch):
    monkeypatch.setattr(mode_collapse, "SAMPLES", 64)
    config, setup = tiny_config("--learning_rate=0.01"), mode_collapse.SETUPS[title]
    together = mode_collapse.train(config, setup, parallel.data_mesh())
    assert together.shape == (2, 2, 64, 2)

    task, hparams = mode_collapse.make_task(config, setup)
    step, players = jax.jit(task.train), mode_collapse.make_players(config, setup)
    latents = jax.random.normal(jax.random.key(config.seeds), (64, config.latent_size))
    for seed in range(2):
        state = task.init(jax.random.key(seed), hparams)
        for i, batch in enumerate(itertools.islice(data.Ring(16).train(), 6)):
            state, _ = step(state, batch)
            if i % 3 == 2:
                average = state.average
                points, _ = players.generate(
                    average["params"], average["extra"], latents, None, False
                )
                spread = float(np.std(points))
                np.testing.assert_allclose(together[i // 3, seed], points, atol=1e-3 * spread)
    # They differ, by the seed and by the steps between.
    assert np.abs(together[0] - together[1]).max() > 0.1 * spread
    assert np.abs(together[:, 0] - together[:, 1]).max() > 0.1 * spread


def test_setups_differ_in_what_their_titles_say():
    assert len(set(mode_collapse.SETUPS.values())) == len(mode_collapse.SETUPS) == 9
    config = tiny_config()
    ring = next(data.Ring(16).train())
    for title, setup in mode_collapse.SETUPS.items():
        assert title.startswith(
            {"wasserstein": "Wasserstein"}.get(setup.loss, setup.loss.replace("non_", "non-")[:5])
        )
        assert ("R1" in title) == (setup.penalty == "r1")
        assert ("+ penalty" in title) == (setup.penalty == "gradient")
        assert ("spectral" in title) == (setup.norm == "spectral")
        task, hparams = mode_collapse.make_task(config, setup)
        metrics = jax.eval_shape(
            lambda h, t=task: t.train(t.init(jax.random.key(0), h), ring), hparams
        )[1]
        assert ("penalty" in metrics) == bool(setup.penalty)
    assert float(hparams["generator"]["learning_rate"]) == np.float32(0.001)
    assert float(hparams["discriminator"]["learning_rate"]) == np.float32(0.002)
