"""`experiments.studies.checkerboard`: its runs, its table, and what it measures."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import gan
from experiments.harness import cli, training
from experiments.studies import checkerboard
from jaxdl import InputError, checkpoint, fidelity, parallel, pictures

UPSAMPLINGS = checkerboard.UPSAMPLINGS


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """JAX as the tests have set it up, without the work of going round eight devices."""
    mesh = parallel.data_mesh(jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "data_mesh", lambda: mesh)
        patch.setattr(training, "prepare_jax", lambda config: None)
        yield


@pytest.fixture(scope="module")
def ways():
    """Two of the four ways, which is enough to compile."""
    names = "transposed 4x4", "resize 3x3"
    with pytest.MonkeyPatch.context() as patch:
        chosen = {name: UPSAMPLINGS[name] for name in names}
        patch.setattr(checkerboard, "UPSAMPLINGS", chosen)
        yield names


@pytest.fixture(scope="module")
def done(tmp_path_factory, ways):
    """(arguments, workdir, the images it was of) of a study on a folder without classes."""
    folder = tmp_path_factory.mktemp("checkerboard")
    images = np.random.default_rng(0).integers(0, 256, (72, 16, 16, 3), np.uint8)
    for i, pixels in enumerate(images):
        path = folder / "images" / ("train" if i < 64 else "test") / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    workdir = folder / "study"
    arguments = [f"--workdir={workdir}", f"--dataset=folder:{folder / 'images'}", "--width=4"]
    arguments += ["--image_size=16", "--steps=2", "--seeds=1"]
    checkerboard.run(arguments)
    return arguments, workdir, images[:64]


def test_the_study_writes_what_it_measured(done, ways):
    _, workdir, images = done
    record = json.loads((workdir / "table.json").read_text())
    found = record["stride_energy"]
    assert [*found] == [*ways, "training images", "white noise"]
    share = fidelity.stride_energy(images / 127.5 - 1)
    assert found["training images"] == pytest.approx(share, rel=1e-5)
    assert found["white noise"] == pytest.approx((16 + 16 - 1) / (16 * 16 - 1), rel=0.02)
    first, last = (found[way][0]["initialization"] for way in ways)
    assert first > 0.2 > found["white noise"] > last
    text = (workdir / "table.md").read_text()
    trained = 100 * found["resize 3x3"][0]["training"]
    assert f"| resize 3x3 | {100 * last:.3g} | {trained:.3g} |" in text
    assert f"| training images |  | {100 * share:.3g} |" in text
    assert pictures.read_png(workdir / "checkerboard.png").shape[1] == 1000


def test_images_are_the_averaged_generators(done, ways):
    """Of the weights in the checkpoint, and of those that the seed alone gives."""
    arguments, workdir, _ = done
    config = cli.parse(checkerboard.Config, arguments)[0].training("resize 3x3", 0)
    initial, trained = checkerboard.generated(config)
    assert initial.shape == trained.shape == (checkerboard.IMAGES, 16, 16, 3)
    generator, _ = gan.make_networks(config, (16, 16, 3), 0, None)
    init_key, run_key = jax.random.split(jax.random.key(0))
    keys = jax.random.split(jax.random.fold_in(run_key, 2**31 - 1), checkerboard.IMAGES)
    latents = jax.vmap(lambda key: jax.random.normal(key, (config.latent_size,)))(keys)
    begun = generator.init(jax.random.split(init_key)[0], latents[:1], train=False)
    average = checkpoint.load(workdir / "resize_3x3" / "seed0")["average"]
    saved = {"params": average["params"], **average["extra"]}
    for images, variables in ((initial, begun), (trained, saved)):
        expected = jax.jit(lambda v: generator.apply(v, latents, train=False))(variables)
        np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-7)
    record = json.loads((workdir / "table.json").read_text())["stride_energy"]["resize 3x3"]
    energies = [fidelity.stride_energy(images) for images in (initial, trained)]
    assert energies[0] != pytest.approx(energies[1], rel=1e-3)
    assert [*record[0].values()] == pytest.approx(energies)


def test_a_study_goes_on_where_it_was_stopped(done, monkeypatch, capsys):
    """What is not done is trained, and a stop is told; what is done is not trained again."""
    arguments, workdir, _ = done
    table = (workdir / "table.md").read_text()
    unfinished = workdir / "resize_3x3" / "seed0"
    asked = []

    def stopped(config, build):
        asked.append(config.workdir)
        raise cli.Interrupted(15)

    monkeypatch.setattr(training, "train", stopped)
    (unfinished / training.SUMMARY_FILE).rename(unfinished / "aside")
    with pytest.raises(cli.Interrupted):
        checkerboard.run(arguments)
    assert asked == [str(unfinished)]
    assert capsys.readouterr().out.endswith("and with the study: the same command\n")
    (unfinished / "aside").rename(unfinished / training.SUMMARY_FILE)
    (workdir / "table.md").unlink()
    checkerboard.run(arguments)
    assert asked == [str(unfinished)]
    assert (workdir / "table.md").read_text() == table
    with pytest.raises(InputError, match="holds a run with --steps=2, not 3"):
        checkerboard.run([*arguments, "--steps=3"])


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
        "| --- | --- | --- |",
        "| a | 40 ± 14 | 1 ± 0 |",
        "| data |  | 0.123 |",
    ]


def test_the_ways_are_those_they_are_called(monkeypatch):
    monkeypatch.setattr(checkerboard, "UPSAMPLINGS", UPSAMPLINGS)
    config = checkerboard.Config(width=8)
    for name in UPSAMPLINGS:
        run = config.training(name, seed=1)
        generator, discriminator = gan.make_networks(run, (32, 32, 1), 0, None)
        size = generator.kernel_size
        assert name == f"{generator.upsampling.replace('_', ' ')} {size}x{size}"
        assert generator.width == discriminator.width == 8
        assert run.seed == 1
        assert run.workdir.endswith(f"{name.replace(' ', '_')}/seed1")


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
