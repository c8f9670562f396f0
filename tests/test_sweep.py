"""Lanes of one program are the runs that they would be alone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from networks import SHALLOW
from PIL import Image

from experiments import compare, gan, lenet, mlp, predict, resnet, seq2seq
from experiments.harness import cli, devices, group, study, summaries, sweep, training
from jaxdl import checkpoint, lifting, models, parallel
from jaxdl.data.lanes import Lanes
from jaxdl.writers import Writer, read_rows

all_devices = parallel.data_mesh

pytestmark = pytest.mark.usefixtures("one_device")

# A perceptron on digits, with all that a seed draws: weights, order, warps, dropout, a share.
MLP = (
    *("--experiment=mlp", "--width=8", "--image_size=8", "--warmup_epochs=0", "--batch_size=16"),
    *("--steps=20", "--log_every=5", "--eval_every=8", "--checkpoint_every=6", "--seeds=2"),
    *("--validation=0.1", "--optimizer=momentum", "--l2_penalty=1e-4", "--nohistograms"),
)
DROPOUT = (*MLP, "--flag=dropout", "--values=0.1,0.4")
RESNET = (
    *("--experiment=resnet", "--model=resnet20_cifar", "--width=4", "--image_size=8"),
    *("--batch_size=8", "--steps=20", "--log_every=10", "--eval_every=20", "--seeds=2"),
    *("--augment=flip,crop", "--per_class=8", "--ema_decay=0.9", "--nohistograms"),
)


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A folder to work in, and curves undrawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Writer, "curves", lambda self: None)


@pytest.fixture
def alone_trained(monkeypatch):
    """The folders of the runs that were trained alone."""
    folders = []
    train = training.train

    def counted(config, build):
        folders.append(config.run.workdir)
        return train(config, build)

    monkeypatch.setattr(training, "train", counted)
    return folders


def run(*flags, workdir, **changes):
    compare.run([*flags, f"--workdir={workdir}", *(f"--{k}={v}" for k, v in changes.items())])
    return Path(workdir)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A finished comparison whose runs were lanes."""
    folder = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", lambda *args: pytest.fail("trained alone"))
        return run(*DROPOUT, workdir=folder)


def folders_of(study_folder):
    return {str(p.relative_to(study_folder)): p for p in sorted(study_folder.glob("**/seed*"))}


def arrays_of(folder):
    tree = checkpoint.load(folder)
    return {jax.tree_util.keystr(k): v for k, v in jax.tree.leaves_with_path(tree)}


def assert_same_runs(some, others, atol):
    """The folders hold the same runs: parameters, metrics of every row, summaries."""
    assert folders_of(some).keys() == folders_of(others).keys()
    for name, folder in folders_of(some).items():
        other = folders_of(others)[name]
        one, two = arrays_of(folder), arrays_of(other)
        assert one.keys() == two.keys()
        for leaf in one:
            assert one[leaf].dtype == two[leaf].dtype
            np.testing.assert_allclose(one[leaf], two[leaf], 0, atol, err_msg=f"{name} {leaf}")
        rows, other_rows = read_rows(folder), read_rows(other)
        assert [list(row) for row in rows] == [list(row) for row in other_rows]
        for row, other_row in zip(rows, other_rows, strict=True):
            for key in row:
                if "per_second" not in key:
                    assert row[key] == pytest.approx(other_row[key], rel=1e-4, abs=10 * atol), key
        summaries = [json.loads((f / "summary.json").read_text()) for f in (folder, other)]
        assert summaries[0].keys() - summaries[1].keys() <= {"lanes"}
        for key in ("step", "best_step", "best_metric", "best_split", "parameters", "examples"):
            assert summaries[0][key] == summaries[1][key]
        for file in ("flags.txt", "inputs.json"):
            texts = [(f / file).read_text().replace(str(f), "") for f in (folder, other)]
            assert texts[0] == texts[1]


@pytest.fixture
def untouched(monkeypatch):
    """A CPU of 16 cores whose devices nobody has touched or counted; what JAX is told of them."""
    told = []
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(16))
    monkeypatch.setattr(jax.config, "update", lambda name, value: told.append((name, value)))
    monkeypatch.setattr(devices, "_cores_are_devices", False)
    return told


@pytest.mark.parametrize(("runs", "taken"), [(64, 16), (20, 10), (17, 9), (2, 2)])
def test_lanes_have_a_core_each_where_they_go_round(runs, taken, untouched):
    assert devices.of_a_run() is None
    devices.take_cores(runs)
    assert untouched == [("jax_num_cpu_devices", taken)]
    assert devices.of_a_run() == jax.devices()[:1]
    config = mlp.Config()
    assert devices.mesh_of(config).size == 1
    assert summaries._devices() == "1 cpu device"


@pytest.mark.parametrize("runs", [0, 1])
def test_one_run_takes_no_cores(runs, untouched):
    devices.take_cores(runs)
    assert untouched == []
    assert devices.of_a_run() is None


def test_devices_that_were_counted_or_touched_stay(untouched, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    devices.take_cores(4)
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.undo()  # and JAX has its devices
    monkeypatch.delenv("XLA_FLAGS")
    devices.take_cores(4)
    assert untouched == []
    assert devices.of_a_run() is None


@pytest.mark.parametrize(
    ("module", "flags", "large"),
    [
        (resnet, ["--model=resnet20_cifar", "--image_size=32", "--batch_size=32"], True),
        (resnet, ["--model=resnet20_cifar", "--image_size=16", "--batch_size=32"], False),
        (lenet, ["--image_size=32", "--batch_size=256"], False),
        (lenet, ["--image_size=32", "--batch_size=512"], True),
        (mlp, ["--image_size=32", "--batch_size=512"], False),
        (seq2seq, [], False),
        (gan, ["--batch_size=32"], True),
        (gan, ["--dataset=ring", "--batch_size=64"], False),
    ],
)
def test_flags_tell_whether_steps_are_large(module, flags, large):
    assert devices.are_steps_large(cli.parse(module.Config, flags)[0]) is large


def uncounted(xla_flags):
    """These flags, but without a number of devices."""
    return " ".join(flag for flag in xla_flags.split() if "device_count" not in flag)


@pytest.mark.slow
def test_lanes_on_cores_are_the_runs_alone(together, tmp_path, environment):
    """As a command of its own, for which two cores are two devices."""
    own = environment | {"XLA_FLAGS": uncounted(environment["XLA_FLAGS"])}
    flags = [*DROPOUT, f"--workdir={tmp_path / 'cores'}"]
    code = "import os; os.sched_getaffinity = lambda process: {0, 1}\nimport runpy, sys\n"
    code += "runpy.run_module('experiments.compare', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, *flags]
    done = subprocess.run(command, env=own, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_runs(tmp_path / "cores", together, 1e-5)


def test_lanes_are_the_runs_alone(together, tmp_path, alone_trained):
    in_turn = run(*DROPOUT, workdir=tmp_path / "in_turn", vectorize="never")
    assert len(alone_trained) == 4
    assert_same_runs(together, in_turn, 1e-5)
    # No two lanes are one: dropout and seed both matter.
    kernels = [arrays_of(f)["['params']['fc1']['kernel']"] for f in folders_of(together).values()]
    assert all((a != b).any() for i, a in enumerate(kernels) for b in kernels[:i])
    tables = [json.loads((f / "table.json").read_text())["results"] for f in (together, in_turn)]
    for value in ("0.1", "0.4"):
        for figure in ("final", "best", "train_loss"):
            one, two = (table[value][figure]["seeds"] for table in tables)
            assert one == pytest.approx(two, rel=1e-4)


@pytest.mark.slow
def test_a_network_with_batch_norm_and_averages_in_lanes(tmp_path, alone_trained, monkeypatch):
    # Of each stage one block, which compiles sooner.
    monkeypatch.setitem(models.MODELS, "resnet20_cifar", SHALLOW["resnet20_cifar"])
    # Two steps, for such a network makes a last bit large within some more.
    flags = (*RESNET, "--flag=learning_rate", "--values=0.001,0.003")
    flags += ("--steps=2", "--log_every=1", "--eval_every=2", "--seeds=1")
    assert_same_runs(
        run(*flags, workdir=tmp_path / "lanes"),
        run(*flags, workdir=tmp_path / "in_turn", vectorize="never"),
        2e-3,
    )
    assert len(alone_trained) == 2


def lanes_of(module, *flags):
    """Runs as lanes, one for each tuple of flags."""
    runs = [study.Run("some", n, Path("some"), module, [*own]) for n, own in enumerate(flags)]
    firsts: dict = {}
    return [sweep._prepare(one, firsts) for one in runs]


@pytest.mark.parametrize(
    ("module", "flags", "kinds"),
    [
        # Numbers, wherever they are written: hyperparameters, layers, schedules, augmentation.
        (
            mlp,
            ["", "--learning_rate=0.1", "--dropout=0.5", "--degrees=20", "--clip_norm=2"],
            "00001",
        ),
        (mlp, ["", "--warmup_epochs=0.1", "--label_smoothing=0", "--schedule_end=0.1"], "0000"),
        (mlp, ["--init=he_normal", "--init=he_normal --init_scale=3", "--init=constant"], "001"),
        # The program: none instead of a little, other layers, other optimizers, other lengths.
        (mlp, ["", "--dropout=0", "--width=9", "--optimizer=sgd", "--steps=7"], "01234"),
        (
            mlp,
            ["", "--batch_size=64", "--weight_decay=0.1", "--augment=", "--eval_every=9"],
            "01234",
        ),
        (resnet, ["", "--norm_epsilon=0.1", "--norm_momentum=0.5", "--per_class=5"], "0001"),
    ],
)
def test_programs_tell_what_may_be_lanes(module, flags, kinds):
    common = ("--image_size=8", "--steps=9", "--width=4", "--augment=warp")
    lanes = lanes_of(module, *((*common, *own.split()) for own in flags))
    found: dict = {}
    kinds_found = [(lane.kind, lane.operations) for lane in lanes]
    numbers = [found.setdefault(kind, len(found)) for kind in kinds_found]
    assert "".join(map(str, numbers)) == kinds


def test_what_begins_like_no_other_is_not_traced_further(tmp_path, monkeypatch):
    begun = []
    prepare = sweep._prepare
    monkeypatch.setattr(
        sweep, "_prepare", lambda *given: begun.append(prepare(*given)) or begun[-1]
    )
    flags = ("--image_size=8", "--steps=2", "--augment=")
    runs = [
        study.Run("some", n, tmp_path, mlp, [*flags, f"--width={width}"])
        for n, width in enumerate((4, 5, 5))
    ]
    monkeypatch.setattr(sweep, "_train_kind", lambda *given: None)
    sweep.train(runs, tmp_path, lambda run, how: None)
    assert ["programs" in vars(lane) for lane in begun] == [False, True, True]


def test_what_is_one_function_is_traced_once(monkeypatch):
    traced = []
    trace = lifting.trace
    monkeypatch.setattr(
        lifting,
        "trace",
        lambda function, *given: traced.append(function) or trace(function, *given),
    )
    flags = ("--image_size=8", "--steps=2", "--augment=")
    more = ["--seed=1", "--learning_rate=0.1 --seed=2", "--dropout=0.4", "--dropout=0.4 --seed=1"]
    lanes = lanes_of(mlp, flags, *((*flags, *own.split()) for own in more))
    assert len({lane.operations for lane in lanes}) == 1
    assert len(traced) == 6  # `init`, `train` and `eval`, of each rate of dropout
    assert [lanes.index(lane.first) if lane.first else None for lane in lanes] == [
        *(None, 0, 0, None, 3)
    ]


def test_batches_of_several_shapes_are_no_lane():
    small = ("--count=200", "--features=8", "--embedding=4", "--steps=2")
    several, one = lanes_of(seq2seq, small, (*small, "--buckets=1"))
    assert several is None
    assert one is not None


class Crash(Exception):
    """As a kill would end it."""


def crash_at(monkeypatch, owner, method, when):
    """Ends the sweep in the call of a method that has this number, from 1."""
    calls, whole = [], getattr(owner, method)

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) == when:
            raise Crash
        return whole(*args, **kwargs)

    monkeypatch.setattr(owner, method, counted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "method", "when"),
    [
        (group.Reports, "send", 1),  # before the first save
        (group.Reports, "send", 4),  # after that of step 12
        (group.Checkpoints, "save", 7),  # some are saved, some are not
        (group.Group, "_sum_up", 3),  # two of four are at their end
    ],
)
def test_what_was_killed_goes_on_bit_for_bit(
    owner, method, when, together, tmp_path, monkeypatch, alone_trained
):
    monkeypatch.setattr(group, "SAVE_SECONDS", 0)
    with monkeypatch.context() as patch:
        crash_at(patch, owner, method, when)
        with pytest.raises(Crash):
            run(*DROPOUT, workdir=tmp_path / "killed")
    again = run(*DROPOUT, workdir=tmp_path / "killed")
    assert alone_trained == []
    assert_same_runs(together, again, 0)


@pytest.mark.slow
def test_a_signal_saves_all_lanes(together, tmp_path, monkeypatch, capsys):
    send = group.Reports.send

    def send_and_ask(self, steps, metrics):
        send(self, steps, metrics)
        if 13 in steps:
            signal.raise_signal(signal.SIGTERM)

    folder = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(group.Reports, "send", send_and_ask)
        with pytest.raises(cli.Interrupted):
            run(*DROPOUT, workdir=folder)
    out = capsys.readouterr().out
    assert "stopped after step 16, and 4 runs saved\n" in out
    assert out.splitlines()[-1].startswith("and with the study: python -m experiments.compare")
    assert all(max(checkpoint.steps(f)) == 16 for f in folders_of(folder).values())
    assert_same_runs(together, run(*DROPOUT, workdir=folder), 0)


@pytest.mark.slow
def test_a_lane_that_diverges_stops_alone(tmp_path, capsys, alone_trained):
    flags = (*MLP, "--flag=learning_rate", "--values=0.05,1e30", "--steps=10", "--eval_every=5")
    folder = run(*flags, workdir=tmp_path / "rates")
    assert alone_trained == []
    figures = json.loads((folder / "table.json").read_text())["results"]
    assert figures["0.05"]["diverged"] == {}
    assert all(figures["0.05"]["final"]["seeds"])
    for seed in (0, 1):
        told = figures["1e30"]["diverged"][str(seed)]
        lane = folder / "learning_rate=1e30" / f"seed{seed}"
        assert told == (lane / study.DIVERGED_FILE).read_text().strip()
        assert " at step " in told
        assert "nothing was saved; a lower learning_rate" in told
        assert f"diverged: {lane}: {told}" in capsys.readouterr().out or seed
        assert not (lane / "summary.json").exists()
    # The others do not notice.
    one = run(*flags[:-3], "--values=0.05,0.06", *flags[-2:], workdir=tmp_path / "sound")
    name = "learning_rate=0.05/seed0"
    some, others = arrays_of(folder / name), arrays_of(one / name)
    assert all((some[leaf] == others[leaf]).all() for leaf in some)
    run(*flags, workdir=folder)
    assert "seed0, which is done" in capsys.readouterr().out


@pytest.mark.slow
def test_lanes_too_many_are_trained_in_groups(together, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:  # memory for three, so two groups of two
        patch.setattr(group.Program, "_needs", lambda self, size: size)
        patch.setattr(group, "_free_memory", lambda: 3 / group.MEMORY_SHARE)
        folder = run(*DROPOUT, workdir=tmp_path / "groups")
    assert "group 2 of 2: 2 runs as one program" in capsys.readouterr().out
    groups = json.loads((folder / sweep.LANES_FILE).read_text())["groups"]
    assert [(len(of["runs"]), of["size"]) for of in groups] == [(2, 2), (2, 2)]
    assert_same_runs(together, folder, 1e-6)


def test_lanes_take_turns_where_their_states_fill_a_cache(together, tmp_path, monkeypatch):
    lanes = lanes_of(mlp, *(["--image_size=8", "--steps=9", "--width=8"],) * 2)
    program = group.Program(lanes, parallel.data_mesh())
    assert [program.round(count) for count in (1, 2, 7)] == [1, 2, 7]  # all of them at once
    monkeypatch.setattr(group, "CACHE_BYTES", 1)
    program = group.Program(lanes, parallel.data_mesh())
    assert [program.round(count) for count in (1, 2, 7)] == [1, 2, 8]  # two at once
    assert_same_runs(together, run(*DROPOUT, workdir=tmp_path / "turns"), 1e-5)


def test_no_call_of_lanes_goes_beyond_what_is_due(together, tmp_path, monkeypatch):
    sent = []
    send = group.Reports.send
    monkeypatch.setattr(
        group.Reports, "send", lambda self, *given: sent.append(given[0]) or send(self, *given)
    )
    folder = run(*DROPOUT, workdir=tmp_path / "blocks")
    assert sent == [
        range(1, 7),
        range(7, 9),
        range(9, 13),
        range(13, 17),
        range(17, 19),
        range(19, 21),
    ]
    assert_same_runs(together, folder, 0)
    monkeypatch.setattr(group, "STEPS_A_CALL", 1)
    assert_same_runs(together, run(*DROPOUT, workdir=tmp_path / "singly"), 1e-5)


@pytest.mark.slow
def test_lanes_go_round_the_devices(together, tmp_path, monkeypatch):
    mesh = all_devices(jax.devices()[:4])
    monkeypatch.setattr(parallel, "data_mesh", lambda: mesh)
    flags = [f for f in DROPOUT if not f.startswith("--seeds")]
    folder = run(*flags, "--seeds=3", workdir=tmp_path / "devices")  # six lanes, and two more
    for name, lane in folders_of(together).items():
        one, two = arrays_of(lane), arrays_of(folder / name)
        for leaf in one:
            np.testing.assert_allclose(one[leaf], two[leaf], 0, 1e-5, err_msg=leaf)


@pytest.mark.slow
def test_a_lane_stops_early_alone(tmp_path, alone_trained):
    flags = (*MLP, "--flag=learning_rate", "--values=0,0.05", "--early_stop=1", "--plateau=1")
    flags = (*flags, "--steps=24", "--eval_every=6")
    lanes = run(*flags, workdir=tmp_path / "lanes")
    assert alone_trained == []
    in_turn = run(*flags, workdir=tmp_path / "in_turn", vectorize="never")
    assert_same_runs(lanes, in_turn, 1e-5)
    steps = [row["step"] for row in read_rows(lanes / "learning_rate=0" / "seed0")]
    assert max(steps) < 24  # at a rate of 0 nothing gets better


def test_a_folder_of_a_lane_is_that_of_a_run(together, tmp_path, capsys):
    lane = together / "dropout=0.4" / "seed1"
    summary = json.loads((lane / "summary.json").read_text())
    config, _ = cli.parse(mlp.Config, [f"--flagfile={lane / 'flags.txt'}", "--mode=eval"])
    training.evaluate(config, mlp.build)
    out = capsys.readouterr().out
    assert f"test at step 20: loss {summary['test/loss']:.4g}" in out
    Image.new("L", (8, 8), 255).save(tmp_path / "white.png")
    predict.run([f"--workdir={lane}", f"--images={tmp_path / 'white.png'}"])
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'white.png'}\t")
    config, _ = cli.parse(mlp.Config, [f"--flagfile={lane / 'flags.txt'}"])
    assert training.train(config, mlp.build)["test/loss"] == pytest.approx(summary["test/loss"])


@pytest.mark.slow
def test_feeds_of_lanes_are_those_alone():
    for flags in (["--validation=0.1"], ["--backend=grain"]):
        lanes = lanes_of(mlp, *(["--image_size=8", "--steps=9", *flags],) * 2)
        feeds = [lane.problem.feed for lane in lanes]
        many = Lanes(feeds, parallel.batch_sharding(parallel.data_mesh()))
        for start in (0, 62):  # over the seam of two blocks, and of two epochs
            streams = [feed.train(start) for feed in feeds]
            for length, stacked in zip((2, 3, 1), many.train(start, (2, 3, 1), 3), strict=True):
                assert stacked["mask"].shape[:2] == (2, 3)
                for step in range(length):
                    for place, batch in enumerate(map(next, streams)):
                        for name in batch:
                            own = stacked[name][place, step]
                            np.testing.assert_array_equal(own, batch[name])
        for split in lanes[0].problem.splits:
            passes = [many.evaluate(split), *(feed.evaluate(split) for feed in feeds)]
            for stacked, *own in zip(*passes, strict=True):
                for place, batch in enumerate(own):
                    for name in batch:
                        np.testing.assert_array_equal(stacked[name][place], batch[name])


def test_rows_that_lanes_share_are_held_once():
    lanes = lanes_of(mlp, *(["--image_size=8", "--steps=9", "--validation=0.1"],) * 3)
    many = Lanes([x.problem.feed for x in lanes], parallel.batch_sharding(parallel.data_mesh()))
    rows = 1437
    next(many.train(0, [1], 1))
    storage, places = many._stored["train"]
    own = lanes[0].problem.feed.examples("train")
    assert len(storage["image"]) <= rows + 1 < 3 * own
    assert places.shape == (3, own + 1)


@pytest.mark.slow
def test_a_grid_is_drawn_as_a_heat_map(tmp_path):
    flags = [f for f in MLP if not f.startswith("--l2")]
    grid = ("--flag=learning_rate", "--values=0.05,1e30", "--by=l2_penalty", "--by_values=0,0.1,1")
    folder = run(*flags, *grid, "--steps=8", workdir=tmp_path / "grid")
    record = json.loads((folder / "table.json").read_text())
    assert list(record["results"]) == [
        f"{r}, {d}" for r in ("0.05", "1e30") for d in ["0", "0.1", "1"]
    ]
    runs = folders_of(folder)
    assert len(runs) == 12
    assert (
        "--l2_penalty=0.1\n"
        in (runs["learning_rate=0.05/l2_penalty=0.1/seed0"] / "flags.txt").read_text()
    )
    assert (folder / "heatmap.png").read_bytes()[:4] == b"\x89PNG"
    assert not (folder / "compare.png").exists()


def test_families_of_a_training_step_differ_where_its_flags_do():
    lanes = lanes_of(mlp, *(["--image_size=8", "--steps=9", f"--dropout={d}"] for d in (0.1, 0.4)))
    numbers = lifting.Family([lane.programs[1] for lane in lanes]).numbers
    assert all(np.allclose(array, [0.9, 0.6]) for array in numbers)
    assert numbers
