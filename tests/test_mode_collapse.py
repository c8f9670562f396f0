"""Mode collapse on the ring: seeds trained as one, what is counted, and what is drawn."""

import itertools
import json
import statistics

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageSequence
from scipy import stats

from experiments.harness import cli, training
from experiments.studies import mode_collapse
from experiments.studies.mode_collapse import PANEL, SETUPS, TITLE_HEIGHT, Setup
from jaxdl import InputError, data, parallel
from jaxdl.pictures import POINT, REFERENCE

TINY = ["--steps=6", "--frames=2", "--batch_size=16", "--latent_size=3", "--width=8"]
TINY += ["--discriminator_width=4", "--depth=1", "--seeds=2"]


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    """Few samples, and JAX as the tests have set it up."""
    monkeypatch.setattr(mode_collapse, "SAMPLES", 64)
    monkeypatch.setattr(training, "prepare_jax", lambda *config, **how: None)


def cells_of(text):
    """The cells of the table in a text, by its lines."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def tiny_config(*flags):
    config, _ = cli.parse(mode_collapse.Config, [*TINY, *flags])
    return config


@pytest.mark.slow
def test_seeds_trained_as_one_are_the_single_trainings():
    config = tiny_config("--learning_rate=0.01", "--first_seed=3")
    # Slopes of slopes, and a state that is no parameter: what no title has both of.
    setup, mesh = Setup("wasserstein", "gradient", 0.1, "spectral"), parallel.data_mesh()
    together = mode_collapse.train(config, setup, mesh)
    assert together.shape == (2, 2, 64, 2)

    task, hparams = mode_collapse.make_task(config, setup)
    step, players = jax.jit(task.train), mode_collapse.make_players(config, setup)
    latents = jax.random.normal(jax.random.key(2), (64, 3))
    alone = []
    for seed in (3, 4):
        state = task.init(jax.random.key(seed), hparams)
        for i, batch in enumerate(itertools.islice(data.Ring(16).train(), 6)):
            state, _ = step(state, batch)
            if i in (2, 5):
                average = state.average
                draw = players.generate(
                    average["params"], average["extra"], latents, np.zeros(64, int), False
                )
                alone.append(draw[0])
    alone = np.reshape(alone, (2, 2, 64, 2)).swapaxes(0, 1)  # frames first
    size = np.abs(alone).max()
    np.testing.assert_allclose(together, alone, atol=1e-3 * size, rtol=0)
    # That holds for no wrong reason: frames differ, and so do seeds.
    assert np.abs(together[0] - together[1]).max() > 0.05 * size
    assert np.abs(together[:, 0] - together[:, 1]).max() > 0.05 * size


def test_setups_are_what_their_titles_say():
    config, batch = tiny_config(), next(data.Ring(16).train())
    assert len(set(SETUPS.values())) == 9
    for title, setup in SETUPS.items():
        assert "," not in title
        assert title.split(" + ")[0].lower().replace("-", "_").replace(" ", "_") == setup.loss
        added = {"": "", "r1": "R1", "gradient": "penalty"}[setup.penalty]
        added += {"none": "", "spectral": "spectral norm"}[setup.norm]
        assert title.partition(" + ")[2] == added

        task, hparams = mode_collapse.make_task(config, setup)
        key = jax.random.key(0)
        init = jax.eval_shape(task.init, key, hparams)
        assert bool(init.extra[1]) == (setup.norm == "spectral")
        _, metrics = jax.eval_shape(task.train, init, batch)
        assert ("penalty" in metrics) == (setup.penalty != "")
        assert float(hparams["penalty_weight"]) == np.float32(setup.penalty_weight)
        assert (setup.penalty_weight > 0) == (setup.penalty != "")
    rates = {name: float(hparams[name]["learning_rate"]) for name in ("generator", "discriminator")}
    assert rates == pytest.approx({"generator": 0.001, "discriminator": 0.002})


def test_samples_are_counted_by_hand():
    ring = data.Ring(16, held_out=4096)
    # Two std off a centre is near it, four is not. A mode has 1/8 of the data, so 1/80 is enough.
    counts = np.array([200, 190, 6, 3, 0, 0, 0, 0])
    near = np.repeat(ring.centres, counts, axis=0) + np.float32([2 * ring.std, 0])
    far = ring.centres[:1] + np.float32([4 * ring.std, 0])
    everywhere = np.repeat(ring.centres, 50, axis=0)
    nowhere = np.zeros((400, 2), np.float32)
    measured = mode_collapse.measure(ring, [np.concatenate([near, far]), everywhere, nowhere])
    assert measured["modes_covered"] == [3, 8, 0]
    assert measured["share_near"] == pytest.approx([399 / 400, 1.0, 0.0])
    batches = list(ring.evaluate("test"))
    points, labels = (np.concatenate([b[name] for b in batches]) for name in ("image", "label"))
    inside = np.linalg.norm(points - ring.centres[labels], axis=1) <= 3 * ring.std
    of_data = np.bincount(labels[inside])
    expected = [stats.entropy(counts, of_data), stats.entropy(np.ones(8), of_data), np.inf]
    assert measured["class_divergence"] == pytest.approx(expected, abs=1e-9)


def test_the_table_has_means_deviations_and_the_worst():
    modes, near, divergence = [8, 3, 6], [0.5, 0.75, 1.0], [0.1, 0.2, 0.6]
    found = {
        "some": {"modes_covered": modes, "share_near": near, "class_divergence": divergence},
        "lost": {
            "modes_covered": [0, 1],
            "share_near": [0.0, 0.1],
            "class_divergence": [np.inf, 2.0],
        },
        "one": {"modes_covered": [7], "share_near": [0.25], "class_divergence": [0.5]},
    }
    head, _, *rows = cells_of(mode_collapse.table(found))
    assert head == [
        *("", "modes covered", "fewest", "share near a centre", "least"),
        *("class divergence", "greatest"),
    ]
    spread = statistics.stdev(modes)
    assert rows == [
        ["some", f"5.7 ± {spread:.1f}", "3", "0.750 ± 0.250", "0.500", "0.300 ± 0.265", "0.600"],
        ["lost", "0.5 ± 0.7", "0", "0.050 ± 0.071", "0.000", "inf", "inf"],
        ["one", "7.0", "7", "0.250", "0.250", "0.500", "0.500"],
    ]


def test_floor_and_ceiling_are_other_points_and_noise(monkeypatch):
    monkeypatch.setattr(mode_collapse, "SAMPLES", 2048)
    ring = data.Ring(16, held_out=2048)
    found = mode_collapse.floor_and_ceiling(ring, 3)
    assert found["training data"]["modes_covered"] == [8, 8, 8]
    assert found["noise"]["modes_covered"] == [0, 0, 0]
    # Three std of the plane's two axes hold 98.9 %; eight such discs are 1.1 % of the square.
    np.testing.assert_allclose(found["training data"]["share_near"], 0.989, atol=0.01)
    np.testing.assert_allclose(found["noise"]["share_near"], 0.011, atol=0.008)
    for measured in found.values():
        assert len(set(measured["class_divergence"])) == 3  # each seed has points of its own
    assert 0 < max(found["training data"]["class_divergence"]) < 0.02


def test_a_frame_has_a_titled_panel_for_each_setup():
    ring = data.Ring(16, held_out=512)
    corner, all_modes = np.ones((64, 2), np.float32), np.repeat(ring.centres, 8, axis=0)
    samples = {"a": corner, "b": all_modes, "c": corner, "d": corner}
    picture = mode_collapse.frame(samples, ring)
    height, width = TITLE_HEIGHT + PANEL + 1, PANEL + 1
    assert picture.shape == (2 * height + 1, 3 * width + 1, 3)
    panels = [picture[1:height, 1 + i * width : (i + 1) * width] for i in range(3)]
    panels += [picture[1 + height : 2 * height, 1:width]]
    for panel, points in zip(panels, samples.values(), strict=True):
        dots = panel[TITLE_HEIGHT:]
        assert (panel[:TITLE_HEIGHT].min(axis=-1) < 128).sum() > 20  # letters
        assert (dots[0, -1] == POINT).all() == (points is corner)
        # The mode on the right is under samples, or it shows.
        right = dots[PANEL // 2, round(1.7 * (PANEL - 1) / 2)]
        np.testing.assert_array_equal(right, POINT if points is all_modes else REFERENCE)
    # A title tells its setup and the count: "a: 0 of 8", "b: 8 of 8".
    titles = {panel[:TITLE_HEIGHT].tobytes() for panel in panels}
    assert len(titles) == 4
    again = mode_collapse.frame({"a": all_modes}, ring)
    assert again[1 : 1 + TITLE_HEIGHT, 1:width].tobytes() not in titles


def test_the_command_writes_what_the_last_frame_measures(tmp_path, capsys, monkeypatch):
    ring = data.Ring(16, held_out=64)
    # Of frames, seeds: on one mode, nowhere; then on all modes, on two.
    points = [[ring.centres[[0] * 8], np.zeros((8, 2))], [ring.centres, ring.centres[[0, 4] * 4]]]
    points = np.asarray(points, np.float32)
    trained = {"minimax": points, "hinge": 0.5 * points}
    trained = {SETUPS[title]: samples for title, samples in trained.items()}
    monkeypatch.setattr(mode_collapse, "train", lambda config, setup, mesh: trained[setup])
    mode_collapse.run([*TINY, f"--workdir={tmp_path}", "--setups=minimax,hinge"])
    out = capsys.readouterr().out
    assert "minimax: 8 2 modes covered" in out
    assert "hinge: 0 0 modes covered" in out
    text = (tmp_path / "table.md").read_text()
    assert text in out
    rows = cells_of(text)[2:]
    assert [row[0] for row in rows] == ["minimax", "hinge", "training data", "noise"]
    assert rows[0][1:5] == ["5.0 ± 4.2", "2", "1.000 ± 0.000", "1.000"]
    record = json.loads((tmp_path / "table.json").read_text())
    assert record["measured"]["minimax"] == mode_collapse.measure(ring, points[1])
    assert record["measured"]["hinge"]["class_divergence"] == [None, None]
    assert (record["steps"], record["setups"]) == (6, ["minimax", "hinge"])
    frames = [
        mode_collapse.frame({"minimax": now[0], "hinge": 0.5 * now[0]}, ring) for now in points
    ]
    assert 5_000 < (tmp_path / "mode_collapse.png").stat().st_size < 100_000
    mode_collapse.draw({"minimax": points[1][0]}, ring, figure := Figure())
    (axes,) = figure.axes
    (covered,) = mode_collapse.measure(ring, [points[1][0]])["modes_covered"]
    assert axes.get_title() == f"minimax\n{covered} of 8"
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), points[1][0])
    with Image.open(tmp_path / "mode_collapse.gif") as gif:
        drawn = [np.asarray(f.convert("RGB")) for f in ImageSequence.Iterator(gif)]
    np.testing.assert_array_equal(drawn, frames)
    with pytest.raises(InputError, match="holds a study with --steps=6, not 4"):
        mode_collapse.run([*TINY, f"--workdir={tmp_path}", "--steps=4"])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is no folder"):
        mode_collapse.run([*TINY, f"--workdir={tmp_path / 'file'}"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--setups=minimax,maximin"], "--setups=minimax,maximin: it must be out of minimax, "),
        (["--steps=100"], "--steps=100: it must be a multiple of --frames=40"),
        (["--steps=0"], "--steps=0: it must be a multiple"),
        (["--frames=0"], "--frames=0: it must be at least 1"),
        (["--seeds=0"], "--seeds=0: it must be at least 1"),
        (["--first_seed=-1"], "--first_seed=-1: it must be at least 0"),
        (["--depth=0"], "--depth=0: it must be at least 1"),
        (["--b1=1"], "--b1=1.0: it must be at least 0 and less than 1"),
        (["--discriminator_learning_rate=-1"], "=-1.0: it must be at least 0"),
        (["--learning_rate=nan"], "--learning_rate=nan: it must be"),
        (["--batch_size=12"], "batch_size 12 does not divide by the 8 devices"),
        (["more"], "'more' is no flag"),
    ],
)
def test_bad_input_is_one_line(flags, message, tmp_path):
    with pytest.raises(InputError) as error:
        mode_collapse.run([f"--workdir={tmp_path}/run", *flags])
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
