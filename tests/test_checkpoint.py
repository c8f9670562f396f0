"""Checkpoints: whole, exact, on any number of devices, and honest about damage."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxdl import InputError, checkpoint, parallel
from jaxdl.checkpoint import Checkpoints
from jaxdl.task import State

KEY = jax.random.key(7)


def prepare(devices=1):
    """A task on so many devices, and its first state."""
    task = tiny.jitted(devices)
    return task, task.init(KEY, tiny.hparams())


def leaves(state):
    plain = state._replace(key=jax.random.key_data(state.key))
    return [np.asarray(x) for x in jax.tree.leaves(plain)]


def assert_same(a, b):
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a checkpoint of each of five steps, saved while training went on."""
    workdir = tmp_path_factory.mktemp("run")
    task, state = prepare()
    copies = {}
    with Checkpoints(workdir, keep=5) as checkpoints:
        for batch in tiny.batches()[:5]:
            state, _ = task.train(state, batch)
            checkpoints.save(state)
            copies[int(state.step)] = jax.tree.map(jnp.copy, state)
    return workdir, copies


@pytest.fixture
def broken(run, tmp_path):
    """A copy of that folder, to be damaged."""
    workdir = tmp_path / "run"
    shutil.copytree(run[0], workdir)
    return workdir


def damage(workdir, step, how):
    """Damages the largest file of a checkpoint, which holds its arrays."""
    files = [p for p in (workdir / "checkpoints" / str(step)).rglob("*") if p.is_file()]
    path = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 0x10
    elif how == "cut":
        content = content[: len(content) // 2]
    path.write_bytes(content) if how != "delete" else path.unlink()


def test_every_saved_state_is_that_of_its_step(run):
    """Saving every step in the background while the next donates the buffers being saved."""
    workdir, copies = run
    _, template = prepare()
    with Checkpoints(workdir) as checkpoints:
        assert_same(checkpoints.restore(template), copies[5])
    for step, state in copies.items():
        loaded = checkpoint.load(workdir, step)
        kernel = loaded["params"]["Conv_0"]["kernel"]
        np.testing.assert_array_equal(kernel, state.params["Conv_0"]["kernel"])


def test_load_needs_no_model_and_gives_numpy(run):
    loaded = checkpoint.load(run[0])
    assert set(loaded) == set(State._fields)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))
    assert int(loaded["step"]) == 5
    assert loaded["extra"]["batch_stats"]["BatchNorm_0"]["mean"].shape == (8,)
    assert int(checkpoint.load(run[0], step=2)["step"]) == 2
    with pytest.raises(InputError, match=r"no checkpoint of step 9 .*there are 1, 2, 3, 4, 5"):
        checkpoint.load(run[0], step=9)


@pytest.mark.parametrize(("saved_on", "restored_on"), [(8, 1), (1, 8)])
def test_another_number_of_devices(tmp_path, saved_on, restored_on):
    task, state = prepare(saved_on)
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = task.train(state, tiny.batches()[0])
        checkpoints.save(state)
    task, template = prepare(restored_on)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(template)
    assert_same(restored, state)
    assert len(jax.tree.leaves(restored.params)[0].sharding.device_set) == restored_on
    task.train(restored, tiny.batches()[1])


@pytest.mark.parametrize("least", [False, True])
def test_keeps_the_latest_and_the_best(tmp_path, least):
    task, state = prepare()
    scores = {2: 0.5, 3: 0.9, 4: 0.9, 5: 0.7, 7: 0.1}
    if least:
        scores = {step: -score for step, score in scores.items()}
    with Checkpoints(tmp_path, 2, "eval/score", least) as checkpoints:
        for batch in tiny.batches()[:8]:
            state, _ = task.train(state, batch)
            score = scores.get(int(state.step))
            checkpoints.save(state, None if score is None else {"eval/score": score})
            if int(state.step) == 4:
                fourth = jax.tree.map(jnp.copy, state)
        assert checkpoints.best == 4  # of equals the later
        assert_same(checkpoints.restore_best(state), fourth)
        assert checkpoints.latest == 8
    kept = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
    assert kept == [4, 7, 8]


@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_damaged_newest_is_reported_and_the_one_before_used(run, broken, capsys, how):
    damage(broken, 5, how)
    task, template = prepare()
    with Checkpoints(broken, keep=5) as checkpoints:
        restored = checkpoints.restore(template)
        assert_same(restored, run[1][4])
        message = capsys.readouterr().err
        assert "checkpoints/5 is damaged" in message
        assert message.count("\n") == 1
        state, _ = task.train(restored, tiny.batches()[4])
        checkpoints.save(state)  # its place is free again
    assert (broken / "checkpoints" / "5.damaged").is_dir()
    np.testing.assert_array_equal(
        checkpoint.load(broken)["params"]["Dense_0"]["kernel"],
        run[1][5].params["Dense_0"]["kernel"],
    )


# Orbax leaves the callbacks of reads that failed to a closed event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_any_flipped_byte_is_found_or_harmless(run, broken):
    """Flips a byte in each file in turn: what is read back is right, or is refused."""
    expected = checkpoint.load(run[0], 5)
    refused = 0
    for path in sorted((broken / "checkpoints" / "5").rglob("*")):
        if not path.is_file() or not path.stat().st_size:
            continue
        content = path.read_bytes()
        for place in (0, len(content) // 3, len(content) - 2):
            flipped = bytearray(content)
            flipped[place] ^= 0x04
            path.write_bytes(flipped)
            try:
                found = checkpoint.load(broken, 5)
            except InputError:
                refused += 1
            else:
                jax.tree.map(np.testing.assert_array_equal, found, expected)
        path.write_bytes(content)
    assert refused > 0


def test_flipped_byte_in_a_large_array_is_found(tmp_path):
    """Orbax keeps large arrays as plain floats and restores them whatever became of them."""
    _, state = prepare()
    noise = np.random.default_rng(0).normal(size=(64, 1000)).astype(np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state._replace(params={"w": jnp.asarray(noise)}))
    damage(tmp_path, 0, "flip")
    with pytest.raises(InputError, match="arrays are not those that were saved"):
        checkpoint.load(tmp_path)


def test_half_written_checkpoint_is_not_seen(run, broken):
    """What a kill leaves of a save: a folder under Orbax's temporary name."""
    (broken / "checkpoints" / "5").rename(
        broken / "checkpoints" / "5.orbax-checkpoint-tmp-1234567890"
    )
    _, template = prepare()
    with Checkpoints(broken) as checkpoints:
        assert int(checkpoints.restore(template).step) == 4
    assert int(checkpoint.load(broken)["step"]) == 4


def test_all_damaged(broken):
    for step in range(1, 6):
        damage(broken, step, "delete")
    _, template = prepare()
    with pytest.raises(InputError, match="is damaged"):
        checkpoint.load(broken)
    before = sorted(p.name for p in (broken / "checkpoints").iterdir())
    for _ in range(2):  # what could not be used is not renamed, and the next start tells the same
        with pytest.raises(InputError, match="every checkpoint"), Checkpoints(broken):
            pass
    assert sorted(p.name for p in (broken / "checkpoints").iterdir()) == before


def test_nothing_saved(tmp_path):
    _, template = prepare()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(template) is None
        assert checkpoints.latest is None
        assert checkpoints.best is None
    with pytest.raises(InputError, match="no checkpoint in"):
        checkpoint.load(tmp_path)


def test_another_model_or_optimizer_is_refused_by_name(run, broken):
    task = tiny.build(optimizer="adam")
    with (
        Checkpoints(broken) as checkpoints,
        pytest.raises(InputError, match=r"another model or optimizer: opt_state/.* absent there"),
    ):
        checkpoints.restore(jax.jit(task.init)(KEY, tiny.hparams()))
    assert int(checkpoint.load(broken)["step"]) == 5  # it was not taken for damage


def test_fingerprint_sees_every_word_and_its_place():
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros(3, jnp.bfloat16), "c": jnp.int32(4)}
    first = int(checkpoint.fingerprint(tree))
    assert int(checkpoint.fingerprint(jax.tree.map(np.asarray, tree))) == first
    changes = [
        tree | {"a": tree["a"].at[1, 2].set(np.nextafter(np.float32(5), np.float32(6)))},
        tree | {"a": tree["a"][::-1]},
        tree | {"b": tree["b"].at[0].set(-0.0)},
        tree | {"c": jnp.int32(5)},
    ]
    assert all(int(checkpoint.fingerprint(changed)) != first for changed in changes)
    spread = jax.device_put(jnp.arange(16.0), parallel.batch_sharding(parallel.data_mesh()))
    assert checkpoint.fingerprint(spread) == checkpoint.fingerprint(jnp.arange(16.0))
