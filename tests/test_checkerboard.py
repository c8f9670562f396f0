"""`experiments.studies.checkerboard`: its runs, its table, and what it measures."""

import dataclasses
import json
import statistics
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import gan
from experiments.harness import cli, run_folder, study, training
from experiments.studies import checkerboard
from jaxdl import InputError, checkpoint, fidelity, pictures

UPSAMPLINGS = checkerboard.UPSAMPLINGS


pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """(a folder without classes, its training images)"""
    folder = tmp_path_factory.mktemp("images")
    images = np.random.default_rng(0).integers(0, 256, (72, 16, 16, 3), np.uint8)
    for i, pixels in enumerate(images):
        path = folder / ("train" if i < 64 else "test") / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder, images[:64]


def arguments_of(images, workdir):
    arguments = [f"--workdir={workdir}", f"--dataset=folder:{images[0]}", "--width=4"]
    return [*arguments, "--image_size=16", "--steps=2", "--seeds=1"]


def drawn(run):
    """What a run is taken to have drawn: waves at first, and noise at last, each its own."""
    rng = np.random.default_rng([run.seed, list(UPSAMPLINGS).index(run.setup)])
    noise = rng.uniform(-1, 1, (20, 16, 16, 3))
    return 0.5 * noise + np.array([0.5, -0.5] * 8)[:, None], noise


def test_the_study_writes_what_it_measured_and_trains_none_twice(images, tmp_path, monkeypatch):
    """What it trains is recorded here and not trained."""
    trained = []

    def train(config, build):
        trained.append(config)
        folder = Path(config.run.workdir)
        folder.mkdir(parents=True)
        (folder / run_folder.FLAGS_FILE).write_text(cli.to_flags(config))
        (folder / run_folder.SUMMARY_FILE).write_text('{"step": 2}')

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(checkerboard, "generated", drawn)
    arguments = [*arguments_of(images, tmp_path), "--seeds=2"]
    checkerboard.run(arguments)
    assert [config.run.workdir for config in trained] == [
        f"{tmp_path}/{way.replace(' ', '_')}/seed{seed}" for seed in (0, 1) for way in UPSAMPLINGS
    ]
    record = json.loads((tmp_path / "table.json").read_text())
    found = record["stride_energy"]
    assert [*found] == [*UPSAMPLINGS, "training images", "white noise"]
    share = fidelity.stride_energy(images[1] / 127.5 - 1)
    assert found["training images"] == pytest.approx(share, rel=1e-5)
    assert found["white noise"] == pytest.approx((16 + 16 - 1) / (16 * 16 - 1), rel=0.02)
    runs = checkerboard.plan(cli.parse(checkerboard.Config, arguments)[0])
    energies = [[fidelity.stride_energy(seen) for seen in drawn(run)] for run in runs]
    of_seeds = [[*measured.values()] for way in UPSAMPLINGS for measured in found[way]]
    np.testing.assert_allclose(of_seeds, [energies[i + 4 * j] for i in range(4) for j in (0, 1)])
    text = (tmp_path / "table.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    of_resize = [100 * measured["initialization"] for measured in found["resize 3x3"]]
    mean, std = statistics.mean(of_resize), statistics.stdev(of_resize)
    assert rows[4][:2] == ["resize 3x3", f"{mean:.3g} ± {std:.2g}"]
    assert rows[6] == ["training images", "", f"{100 * share:.3g}"]
    assert pictures.read_png(tmp_path / "checkerboard.png").shape[1] == 700

    (tmp_path / "table.md").unlink()
    (Path(runs[2].workdir) / run_folder.SUMMARY_FILE).unlink()
    monkeypatch.setattr(training, "train", lambda config, build: again.append(config.run.workdir))
    again = []
    checkerboard.run(arguments)
    assert again == [str(runs[2].workdir)]
    assert (tmp_path / "table.md").read_text() == text
    with pytest.raises(InputError, match="holds a study with --steps=2, not 3"):
        checkerboard.run([*arguments, "--steps=3"])


@pytest.mark.slow
def test_images_are_the_averaged_generators(images, tmp_path):
    """Of the weights in the checkpoint, and of those that the seed alone gives."""
    config = cli.parse(checkerboard.Config, arguments_of(images, tmp_path))[0]
    run = checkerboard.plan(config)[2]
    run = dataclasses.replace(run, arguments=[*run.arguments, "--nohistograms"])
    study.train([run])
    initial, trained = checkerboard.generated(run)
    assert initial.shape == trained.shape == (checkerboard.IMAGES, 16, 16, 3)
    generator, _ = gan.make_networks(run.config, (16, 16, 3), 0, None)
    init_key, run_key = jax.random.split(jax.random.key(0))
    keys = jax.random.split(jax.random.fold_in(run_key, 2**31 - 1), checkerboard.IMAGES)
    size = cli.to_dict(run.config)["latent_size"]
    latents = jax.vmap(lambda key: jax.random.normal(key, (size,)))(keys)
    init = jax.jit(lambda key: generator.init(key, latents[:1], train=False))
    begun = init(jax.random.split(init_key)[0])
    average = checkpoint.load(run.workdir)["average"]
    saved = {"params": average["params"], **average["extra"]}
    apply = jax.jit(lambda variables: generator.apply(variables, latents, train=False))
    for drawn, variables in ((initial, begun), (trained, saved)):
        np.testing.assert_allclose(drawn, apply(variables), rtol=1e-4, atol=1e-7)
    energies = [fidelity.stride_energy(drawn) for drawn in (initial, trained)]
    assert energies[0] != pytest.approx(energies[1], rel=1e-3)


def test_transposed_convolutions_begin_with_a_checkerboard():
    """As the flags of each way have it, a resized map leaves less than noise has."""
    energies = []
    for run in checkerboard.plan(
        cli.replace(checkerboard.Config(), width=4, image_size=16, seeds=1)
    )[1:3]:
        generator, _ = gan.make_networks(run.config, (16, 16, 1), 0, None)
        latents = jax.random.normal(jax.random.key(0), (64, 64))
        draw = lambda key, net=generator, z=latents: net.init_with_output(key, z, train=False)[0]
        energies.append(checkerboard.look(np.asarray(jax.jit(draw)(jax.random.key(1)))).energy)
    assert energies[0] > 0.2 > 31 / 255 > energies[1]


def test_a_look_by_hand():
    """A checkerboard's energy is all at one frequency, a wave's at two, and noise's anywhere."""
    signs = np.array([1.0, -1.0])
    checkers = 0.3 + np.tile(np.multiply.outer(signs, signs), (4, 4))[None, :, :, None]
    seen = checkerboard.look(checkers)
    expected = np.zeros((8, 8))
    expected[0, 0] = 1
    np.testing.assert_allclose(seen.spectrum, expected, atol=1e-12)
    assert seen.energy == pytest.approx(1)
    column = np.cos(np.pi / 4 * np.arange(8))
    waves = checkerboard.look(np.tile(column[None, :, None, None], (2, 1, 8, 1))).spectrum
    assert waves[3, 4] == waves[5, 4] == pytest.approx(0.5)
    noise = np.random.default_rng(0).normal(size=(20, 8, 6, 3))
    seen = checkerboard.look(noise)
    assert seen.spectrum.sum() == pytest.approx(1)
    assert seen.spectrum[4, 3] < 1e-25
    with_stride = seen.spectrum[0].sum() + seen.spectrum[1:, 0].sum()
    assert seen.energy == pytest.approx(with_stride)
    np.testing.assert_array_equal(seen.samples, noise[: checkerboard.SHOWN])
    assert not checkerboard.look(np.full((2, 8, 8, 1), 0.5)).spectrum.any()


def test_the_table_by_hand():
    look = lambda energy: checkerboard.Look(energy, np.zeros(0), np.zeros(0))
    found = {"a": [(look(0.5), look(0.01)), (look(0.3), look(0.01))]}
    assert checkerboard.table(found, {"data": look(0.0012345)}).splitlines() == [
        "| upsampling | at initialization | after training |",
        "| ---------- | ----------------- | -------------- |",
        "| a          | 40 ± 14           | 1 ± 0          |",
        "| data       |                   | 0.123          |",
    ]


def test_the_ways_are_those_they_are_called():
    runs = checkerboard.plan(cli.replace(checkerboard.Config(), width=8, seeds=1, first_seed=1))
    assert [run.setup for run in runs] == [*UPSAMPLINGS]
    for run in runs:
        generator, discriminator = gan.make_networks(run.config, (32, 32, 1), 0, None)
        size = generator.kernel_size
        assert run.setup == f"{generator.upsampling.replace('_', ' ')} {size}x{size}"
        assert generator.width == discriminator.width == 8
        assert cli.to_dict(run.config)["seed"] == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataset=ring",), "--dataset=ring: it must be one of images"),
        (("--steps=0",), "--steps=0: it must be at least 1"),
        (("--seeds=0",), "--seeds=0: it must be at least 1"),
        (("--image_size=20",), "image_size out of 16, 32, 64, not 20"),
        (("--width=0",), "width of at least 1, not 0"),
        (("extra",), "'extra' is no flag"),
    ],
)
def test_bad_input(flags, message):
    with pytest.raises(InputError, match=message):
        checkerboard.run([*flags])
