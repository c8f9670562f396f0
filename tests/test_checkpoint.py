"""Checkpoints: whole, exact, on any number of devices, and honest about damage."""

import asyncio
import gc
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdl import InputError, checkpoint, parallel, saved, trees
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
    with Checkpoints(workdir, keep=5) as checkpoints:
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
    _, state = prepare()
    spread = lambda devices: NamedSharding(parallel.data_mesh(jax.devices()[:devices]), P())
    state = jax.device_put(state, spread(saved_on))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    template = jax.device_put(state, spread(restored_on))
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(template)
    assert_same(restored, state)
    for leaf in jax.tree.leaves(restored):
        assert leaf.sharding == spread(restored_on)


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


def test_what_a_kill_left_beside_the_latest_and_the_best_is_removed(tmp_path):
    """Between a save and the removal of the older; a finished run saves no more."""
    task, state = prepare()
    with Checkpoints(tmp_path, keep=9, best="accuracy") as checkpoints:
        for batch, accuracy in zip(tiny.batches(), (0.1, 0.8, 0.8, 0.2, 0.3, 0.4), strict=False):
            state, _ = task.train(state, batch)
            checkpoints.save(state, {"accuracy": accuracy})
    with Checkpoints(tmp_path, keep=2, best="accuracy") as checkpoints:
        assert checkpoint.steps(tmp_path) == [3, 5, 6]  # of two that are as good the later
        assert checkpoints.best == 3


def test_readers_take_the_step_that_a_run_came_to(run, broken, capsys):
    """Until the run goes on, which it does from the newest."""
    _, template = prepare()
    with Checkpoints(broken, keep=5) as checkpoints:
        checkpoints.came_to(2)
    assert int(checkpoint.load(broken)["step"]) == 2
    assert int(checkpoint.load(broken, 5)["step"]) == 5
    assert_same(checkpoint.restore(broken, template), run[1][2])
    with Checkpoints(broken, keep=5) as checkpoints:
        newest = checkpoints.restore(template)
        assert int(newest.step) == 5
        checkpoints.save(newest)  # is saved already
        checkpoints.wait()
        assert int(checkpoint.load(broken)["step"]) == 2
        checkpoints.save(newest._replace(step=jnp.int32(6)))
    assert int(checkpoint.load(broken)["step"]) == 6
    assert capsys.readouterr().err == ""


def test_where_a_run_came_to_cannot_be_read_the_newest_is(broken, capsys):
    with Checkpoints(broken, keep=5) as checkpoints:
        checkpoints.came_to(2)
    damage(broken, 2, "flip")
    assert int(checkpoint.load(broken)["step"]) == 5
    assert "checkpoints/2 is damaged" in capsys.readouterr().err
    shutil.rmtree(broken / "checkpoints" / "2")
    assert int(checkpoint.load(broken)["step"]) == 5
    (broken / "checkpoints" / checkpoint.CAME_TO).write_bytes(b"\xff")
    with pytest.raises(InputError, match="came_to is damaged"):
        checkpoint.load(broken)


@pytest.mark.parametrize("least", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_the_best(tmp_path, bad, least):
    _, state = prepare()
    scores = [0.5, bad, 0.9, 0.7] if least else [0.9, bad, 0.5, 0.7]
    with Checkpoints(tmp_path, 1, "eval/score", least) as checkpoints:
        for step, score in enumerate(scores):
            checkpoints.save(state._replace(step=jnp.int32(step)), {"eval/score": score})
        assert checkpoints.best == 0
    assert checkpoint.steps(tmp_path) == [0, 3]


def test_a_changed_metric_is_damage(tmp_path, capsys):
    _, state = prepare()
    with Checkpoints(tmp_path, 1, "eval/score") as checkpoints:
        for step, score in enumerate([0.5, 0.25]):
            checkpoints.save(state._replace(step=jnp.int32(step)), {"eval/score": score})
    path = tmp_path / "checkpoints" / "1" / "metrics" / "metrics"
    path.write_text(path.read_text().replace("0.25", "0.75"))
    with Checkpoints(tmp_path, 1, "eval/score") as checkpoints:
        assert checkpoints.best == checkpoints.latest == 0
    assert "metrics are not those saved" in capsys.readouterr().err


ERRORS = {
    "memory": (MemoryError("no memory"), MemoryError),
    "device": (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), OSError),
    "network": (OSError(5, "Input/output error"), OSError),
    "files": (ValueError("RESOURCE_EXHAUSTED: [OS error 24: EMFILE Too many open files]"), OSError),
    "rights": (ValueError("PERMISSION_DENIED: [OS error 13: EACCES]"), OSError),
}


@pytest.mark.parametrize("name", ERRORS)
def test_only_damage_is_damage(run, broken, monkeypatch, capsys, name):
    """What a read fails for otherwise is raised as itself, and nothing is renamed."""
    error, raised = ERRORS[name]

    def failing(*args, **kwargs):
        raise error

    monkeypatch.setattr(saved.orbax().PyTreeCheckpointHandler, "restore", failing)
    with pytest.raises(raised) as caught, Checkpoints(broken, keep=5):
        pass
    assert not isinstance(caught.value, InputError)
    with pytest.raises(raised):
        checkpoint.load(broken)
    monkeypatch.undo()
    assert capsys.readouterr().err == ""
    assert checkpoint.steps(broken) == [1, 2, 3, 4, 5]


def test_restoring_computes_nothing_on_the_device(run, monkeypatch):
    monkeypatch.setattr(trees, "_fingerprint_on_device", None)
    assert int(checkpoint.load(run[0])["step"]) == 5


@pytest.mark.slow
def test_a_damaged_checkpoint_of_many_arrays_is_one_line(tmp_path):
    """Orbax leaves a complaint for each array that it had begun to read to the interpreter."""
    code = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from jaxdl import checkpoint
from jaxdl.task import initial_state
params = {str(i): jnp.asarray(np.random.default_rng(i).normal(size=(90, 90))) for i in range(60)}
state = initial_state(jax.random.key(0), {}, params, {}, ())
with checkpoint.Checkpoints("run") as checkpoints:
    for step in range(2):
        checkpoints.save(state._replace(step=jnp.int32(step)))
for path in Path("run/checkpoints/1/default").rglob("d/*"):
    content = bytearray(path.read_bytes())
    for place in (len(content) // 3, len(content) // 2):
        content[place] ^= 16
    path.write_bytes(content)
with checkpoint.Checkpoints("run") as checkpoints:
    assert int(checkpoints.restore(state).step) == 0
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert "set aside as 1.damaged" in done.stderr


def test_of_failed_reads_asyncio_tells_those_of_others_alone(run, caplog):
    """Where several arrays of a checkpoint fail at once, one error alone is retrieved."""

    def abandon(path, message="DATA_LOSS"):
        code = compile(f"async def read(): raise ValueError({message!r})", path, "exec")
        scope = {}
        exec(code, scope)
        loop = asyncio.new_event_loop()
        failed = [loop.create_task(scope["read"]())]
        loop.run_until_complete(asyncio.wait(failed))
        failed.clear()
        gc.collect()
        loop.close()

    checkpoint.load(run[0])
    abandon("/packages/orbax/checkpoint/serialization.py")
    abandon("tasks.py", 'DATA_LOSS: Error reading "params.3/.zarray" in OCDBT database')
    assert not caplog.records
    abandon("/home/someone/server.py")
    assert "exception was never retrieved" in caplog.text


def test_a_full_disk_is_told_at_once_and_loses_nothing(tmp_path, monkeypatch):
    _, state = prepare()
    usage = shutil.disk_usage(tmp_path)

    def fill_the_disk():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(state)
            checkpoints.wait()
            monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
            checkpoints.save(state._replace(step=jnp.int32(1)))

    with pytest.raises(OSError, match=r"no space left: it takes [\d,]+ bytes and 100 are free"):
        fill_the_disk()
    assert checkpoint.steps(tmp_path) == [0]
    monkeypatch.undo()
    with Checkpoints(tmp_path) as checkpoints:
        assert int(checkpoints.restore(state).step) == 0
        checkpoints.save(state._replace(step=jnp.int32(1)))
    assert checkpoint.steps(tmp_path) == [0, 1]


def test_a_save_that_fails_in_the_background_is_one_line(tmp_path):
    _, state = prepare()
    noise = np.random.default_rng(0).normal(size=(300, 1000)).astype(np.float32)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def outgrow_the_limit():
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(state)
            checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
            try:
                large = state._replace(step=jnp.int32(1), params={"w": jnp.asarray(noise)})
                checkpoints.save(large)
                checkpoints.wait()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    with pytest.raises(OSError, match=r"could not be written .*those of steps 0 are kept") as told:
        outgrow_the_limit()
    assert "\n" not in str(told.value)
    gc.collect()  # what Orbax's tasks died of is logged when they go: here, not in another test
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["0"]  # and no remains


def test_remains_that_are_still_written_to_are_removed_again(broken, monkeypatch):
    """As a failed save's are, by those of Orbax's threads that did not fail."""
    remains = broken / "checkpoints" / "6.orbax-checkpoint-tmp"
    remains.mkdir()
    remove, times = shutil.rmtree, []

    def too_soon(path, **how):
        times.append(path)
        if len(times) > 1:
            remove(path, **how)

    monkeypatch.setattr(shutil, "rmtree", too_soon)
    checkpoint._remove_unfinished(broken / "checkpoints")
    assert times == [remains, remains]
    assert not remains.exists()


def test_remains_of_a_killed_save_are_removed(broken):
    remains = broken / "checkpoints" / "6.orbax-checkpoint-tmp-123"
    remains.mkdir()
    checkpoint.load(broken)
    assert remains.exists()  # a reader does not know whose they are
    with Checkpoints(broken, keep=5):
        assert not remains.exists()


def test_a_reader_follows_the_run_it_reads(broken, monkeypatch):
    """The checkpoint that it was about to read is gone: the run has newer ones."""
    read, workdir = saved.read, broken

    def vanishing(path):
        if path.name == "5" and path.exists():
            path.rename(path.with_name("6"))
        return read(path)

    monkeypatch.setattr(saved, "read", vanishing)
    assert int(checkpoint.load(workdir)["step"]) == 5  # as it calls itself
    assert checkpoint.steps(workdir) == [1, 2, 3, 4, 6]


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
    with Checkpoints(broken, keep=5) as checkpoints:
        assert int(checkpoints.restore(template).step) == 4
    assert int(checkpoint.load(broken)["step"]) == 4


def test_all_damaged(broken):
    for step in range(1, 6):
        damage(broken, step, "delete")
    with pytest.raises(InputError, match="is damaged"):
        checkpoint.load(broken)
    before = sorted(p.name for p in (broken / "checkpoints").iterdir())
    for _ in range(2):  # what could not be used is not renamed, and the next start tells the same
        with pytest.raises(InputError, match="every checkpoint"), Checkpoints(broken, keep=5):
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
        Checkpoints(broken, keep=5) as checkpoints,
        pytest.raises(InputError, match=r"another model or optimizer: opt_state/.* absent there"),
    ):
        checkpoints.restore(jax.jit(task.init)(KEY, tiny.hparams()))
    assert int(checkpoint.load(broken)["step"]) == 5  # it was not taken for damage


def test_fingerprint_sees_every_word_and_its_place():
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros(3, jnp.bfloat16), "c": jnp.int32(4)}
    first = int(trees.fingerprint(tree))
    assert int(trees.fingerprint(jax.tree.map(np.asarray, tree))) == first
    # As accelerators compute it.
    assert int(trees._fingerprint_on_device(tree)) == first
    changes = [
        tree | {"a": tree["a"].at[1, 2].set(np.nextafter(np.float32(5), np.float32(6)))},
        tree | {"a": tree["a"][::-1]},
        tree | {"b": tree["b"].at[0].set(-0.0)},
        tree | {"c": jnp.int32(5)},
    ]
    for changed in changes:
        other = int(trees.fingerprint(changed))
        assert int(trees._fingerprint_on_device(changed)) == other != first
    wide = {"d": np.array([1.0, 2.0])}  # float64: a change in either half shows
    for flipped in (1 << 1, 1 << 40):
        words = wide["d"].view(np.uint64) ^ np.array([0, flipped], np.uint64)
        assert trees.fingerprint({"d": words.view(np.float64)}) != trees.fingerprint(wide)
    spread = jax.device_put(jnp.arange(16.0), parallel.batch_sharding(parallel.data_mesh()))
    assert trees.fingerprint(spread) == trees.fingerprint(jnp.arange(16.0))
