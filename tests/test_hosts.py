"""Several hosts: what each of them does when another one stops, fails, dies or finds damage."""

import contextlib
import json
import os
import signal
from typing import ClassVar

import jax
import numpy as np
import pytest
from PIL import Image

from jaxdl import InputError, checkpoint, hosts
from jaxdl.data import RowPipeline
from jaxdl.data.rows import Field

FLAGS = ("--steps=80", "--eval_every=40", "--checkpoint_every=10", "--log_every=5", "--width=8")


def steps(folder):
    return sorted(int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdecimal())


def read_until(host, text):
    for line in host.stdout:
        if text in line:
            return
    raise AssertionError(host.stderr.read())


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        if isinstance(a[name], dict):
            assert_same(a[name], b[name])
        else:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.slow
def test_two_train_as_one_and_go_on_exactly(two_hosts, experiment, tmp_path):
    """Two processes of two devices each, that are killed, stopped and meet damage, too."""
    first, second = two_hosts("mlp", *FLAGS, "--workdir=whole")
    assert "4 cpu devices" in first
    assert second == ""
    experiment("mlp", *FLAGS, "--workdir=one")
    one, two = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("one", "whole"))
    assert two["eval/loss"] == pytest.approx(one["eval/loss"], rel=1e-4)
    ours, theirs = (checkpoint.load(tmp_path / name)["params"] for name in ("whole", "one"))
    np.testing.assert_allclose(ours["fc2"]["kernel"], theirs["fc2"]["kernel"], rtol=0, atol=1e-4)
    run, flags = tmp_path / "run", (*FLAGS, "--workdir=run")

    # One is killed: the other one ends with one line, long before collectives time out.
    both = two_hosts.start("mlp", *flags)
    read_until(both[0], "step 10/")
    both[1].kill()
    (_, said), _ = two_hosts.end(both, (1, -signal.SIGKILL))
    assert said == f"error: {hosts.GONE.format('process 1')}\n"

    # Ctrl-C at one: both save the same step, and the flags are those of a run on any number.
    both = two_hosts.start("mlp", *flags)
    read_until(both[0], "step 30/")
    both[1].send_signal(signal.SIGINT)
    (first, _), _ = two_hosts.end(both, (128 + signal.SIGTERM, 128 + signal.SIGINT))
    stopped_at = steps(run)[-1]
    assert f"stopped at step {stopped_at} and saved; go on with: python -m" in first
    assert "--coordinator=\n" in (run / "flags.txt").read_text()
    assert "--process_id" not in (run / "flags.txt").read_text()

    # The newest checkpoint is damaged: the first sets it aside, and both read the one before.
    before = steps(run)[-2]
    for path in (run / "checkpoints" / str(stopped_at)).rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    (first, err), (second, silence) = two_hosts.end(two_hosts.start("mlp", *flags))
    assert f"set aside as {stopped_at}.damaged" in err
    assert err.count("\n") == 1
    assert f"steps {before} to 80" in first
    assert second == silence == ""
    assert_same(checkpoint.load(run), checkpoint.load(tmp_path / "whole"))


@pytest.mark.slow
def test_sharded_states_are_saved_by_all_and_read_by_any_number(two_hosts, experiment, tmp_path):
    """Four processes, then two, then one: as one process trains that holds the whole state."""
    flags = ("--width=128", "--dropout=0", "--augment=", "--schedule=constant", "--eval_every=4")
    flags = (*flags, "--warmup_epochs=0", "--checkpoint_every=4", "--ema_decay=0.9")
    experiment("mlp", *flags, "--steps=12", "--workdir=whole")
    sharded = (*flags, "--shard=fsdp", "--workdir=run", "--resume=auto")
    first, *others = two_hosts("mlp", *sharded, "--steps=4", count=4, devices=1)
    assert "4 cpu devices" in first
    assert others == ["", "", ""]
    longer = (*sharded[:-1], "--resume=extend")
    first, second = two_hosts("mlp", *longer, "--steps=8")
    assert "steps 4 to 8" in first
    assert second == ""
    experiment("mlp", *longer, "--steps=12", devices=2)
    assert "--shard=fsdp\n" in (tmp_path / "run" / "flags.txt").read_text()
    evaluated = experiment("mlp", "--mode=eval", "--workdir=run").stdout  # on one, which holds all
    assert evaluated.startswith("test at step 12: ")
    ours, theirs = (checkpoint.load(tmp_path / name) for name in ("run", "whole"))
    assert int(ours["step"]) == int(theirs["step"]) == 12
    for kind in ("params", "average"):
        leaves = [jax.tree.leaves(tree[kind]) for tree in (ours, theirs)]
        for one, other in zip(*leaves, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


def slurm(process):
    return {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "localhost,other[1-3]",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(process),
        "SLURM_LOCALID": str(process),
        "SLURM_STEP_NUM_NODES": "1",
    }


def open_mpi(process):
    return {
        "OMPI_MCA_orte_hnp_uri": f"{(os.getpid() + 7) * 4096}.0;tcp://127.0.0.1,10.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(process),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(process),
    }


@pytest.mark.slow
@pytest.mark.parametrize("cluster", [slurm, open_mpi])
def test_clusters_tell_the_processes_who_they_are(two_hosts, cluster):
    flags = ("--steps=2", "--width=8", "--augment=", "--eval_every=2", "--workdir=run")
    first, second = two_hosts("mlp", *flags, cluster=cluster, devices=1)
    assert "2 cpu devices" in first
    assert second == ""


def test_what_is_said_by_hand_is_what_jax_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(hosts, "_end_quietly", lambda: None)
    monkeypatch.setattr(
        hosts.jax.distributed, "initialize", lambda *args, **kwargs: told.append(args)
    )
    hosts.start(None, None, None)
    assert told == []
    hosts.start("host0:1234", 4, 3)
    hosts.start("auto", None, None)
    assert told == [("host0:1234", 4, 3), (None, None, None)]

    def refuse(*args, **kwargs):
        raise ValueError("coordinator_address\nshould be defined.")

    monkeypatch.setattr(hosts.jax.distributed, "initialize", refuse)
    with pytest.raises(InputError, match="could not join at auto: coordinator_address should be"):
        hosts.start("auto", None, None)


class Counted:
    """Rows that tell who opened them."""

    schema: ClassVar = {"x": Field((), np.float32)}
    random = False

    def __init__(self):
        self.opened = []

    def __len__(self):
        return 4096

    def read(self, index, generator):
        self.opened.append(int(index))
        return {"x": np.float32(index)}

    def name(self, index):
        return str(index)


@pytest.mark.parametrize("processes", [2, 4])
def test_each_process_opens_its_own_rows_alone(processes):
    """Of the first batches of a pass no two processes open one row, and none opens one twice."""
    batch, opened = 8, []
    share = batch // processes
    for process in range(processes):
        rows, train = slice(process * share, (process + 1) * share), Counted()
        splits = {"train": train, "test": Counted()}
        pipeline = RowPipeline(splits, batch, backend="grain", rows=rows)
        with contextlib.closing(pipeline.train(0)) as batches:
            seen = [float(x) for _ in range(10) for x in next(batches)["x"]]
        assert len(seen) == 10 * share
        assert set(seen) <= set(train.opened)
        opened += train.opened[: 4096 // processes]  # of what is read ahead those of this pass
    assert len(opened) >= 10 * batch
    assert len(set(opened)) == len(opened)


@pytest.mark.slow
def test_what_one_host_cannot_read_ends_both_with_its_line(two_hosts, tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in "ab":
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(0, 255, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    # Evaluation takes rows in order, a batch of 16: the last is the second host's.
    (tmp_path / "set" / "test" / "b" / "7.png").write_bytes(b"no image")
    flags = ("--dataset=folder:set", "--batch_size=16", "--backend=grain", "--steps=2")
    both = two_hosts.start("mlp", *flags, "--eval_every=1", "--workdir=run")
    (_, first), (_, second) = two_hosts.end(both, (1, 1))
    assert second.startswith("error: set/test/b/7.png is not an image")
    assert first == "error: process 1 failed: " + second.removeprefix("error: ")


def test_who_is_dead_is_read_from_the_log():
    text = (
        b"E1129 The following tasks are unhealthy (stopped sending heartbeats):\n%s\nThe tasks have"
    )
    assert hosts._dead(text % b"3\n12") == "process 3, 12"
    assert hosts._dead(text % b"/job:jax_worker/replica:0/task:7") == "process 7"
    assert hosts._dead(b"JAX distributed service: connection refused") == "another process"


def test_alone_there_is_nothing_to_agree_on():
    assert hosts.agree(lambda: (1, 2)) == (1, 2)
    assert hosts.agree_on({"loss": np.float32(0.5)}) == {"loss": 0.5}
    hosts.wait()
    assert hosts.is_first()
    assert not hosts.are_several()
    assert not hosts.is_consequence(ValueError("Gloo AllGather failed"))

    def refuse():
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        hosts.agree(refuse)
