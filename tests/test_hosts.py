"""Several hosts: what each of them does when another one stops, fails, dies or finds damage."""

import signal

import numpy as np
import pytest
from PIL import Image

from jaxdl import InputError, checkpoint, hosts

FLAGS = ("--steps=100", "--eval_every=40", "--checkpoint_every=20", "--log_every=10")


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
def test_killed_stopped_and_damaged_runs_go_on_exactly(two_hosts, tmp_path):
    two_hosts("lenet", *FLAGS, "--workdir=whole")
    run, flags = tmp_path / "run", (*FLAGS, "--workdir=run")

    # One is killed: the other one ends with one line, long before collectives time out.
    both = two_hosts.start("lenet", *flags)
    read_until(both[0], "step 20/")
    both[1].kill()
    (_, said), _ = two_hosts.end(both, (1, -signal.SIGKILL))
    assert said == f"error: {hosts.GONE}\n"

    # Ctrl-C at one: both save the same step, and the flags are those of a run on any number.
    both = two_hosts.start("lenet", *flags)
    read_until(both[0], "step 60/")
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
    (first, err), (second, silence) = two_hosts.end(two_hosts.start("lenet", *flags))
    assert f"set aside as {stopped_at}.damaged" in err
    assert err.count("\n") == 1
    assert f"steps {before} to 100" in first
    assert second == silence == ""
    assert_same(checkpoint.load(run), checkpoint.load(tmp_path / "whole"))


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
    both = two_hosts.start("lenet", *flags, "--eval_every=1", "--workdir=run")
    (_, first), (_, second) = two_hosts.end(both, (1, 1))
    assert second.startswith("error: set/test/b/7.png is not an image")
    assert first == "error: process 1 failed: " + second.removeprefix("error: ")


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
