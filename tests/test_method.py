"""The flags of optimizers and schedules, and the picture of schedules."""

import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import char_rnn, densenet, inception, mlp, nin, resnet, schedule, vgg
from experiments.harness import cli, run_folder
from experiments.harness.method import MethodFlags, ScheduleArguments
from jaxdl import InputError, optim, parallel, schedules


def parse(*argv):
    return cli.parse(MethodFlags, argv)[0]


def test_there_is_a_flag_for_every_argument_and_no_other():
    of_schedules = {field.name for field in dataclasses.fields(ScheduleArguments)}
    flags = {field.name for field in dataclasses.fields(MethodFlags)} - of_schedules
    known = {argument for name in optim.OPTIMIZERS for argument in optim.arguments(name)}
    common = {"optimizer", "learning_rate", "weight_decay", "l1_penalty", "l2_penalty"}
    common |= {"decay_all", "clip_value", "clip_norm", "clip_global_norm"}
    common |= {"schedule", "least_momentum"}
    assert flags == known | common
    known = {a for name in schedules.SCHEDULES for a in schedules.arguments(name)}
    assert of_schedules == {f"schedule_{argument}" for argument in known}


def test_given_flags_become_hyperparameters():
    assert parse().hparams == {"learning_rate": 0.1, "momentum": 0.9}
    assert parse("--optimizer=rmsprop", "--decay=0.5").hparams == {
        "learning_rate": 0.1,
        "momentum": 0.0,
        "decay": 0.5,
    }
    given = ("--optimizer=ftrl", "--l1=0.01", "--l2_penalty=0.1", "--weight_decay=0")
    assert parse(*given).hparams == {
        "learning_rate": 0.1,
        "l1": 0.01,
        "l2_penalty": 0.1,
        "weight_decay": 0.0,
    }
    assert parse(*given).optimizer_arguments == {"l1": 0.01}


def test_the_optimizer_and_the_schedule_are_those_of_the_flags():
    config = parse(
        *("--optimizer=sgd", "--clip_value=0.5", "--clip_norm=2", "--clip_global_norm=3"),
        *("--decay_all", "--weight_decay=0.1", "--learning_rate=1"),
    )
    transform = config.make_optimizer()(config.hparams)
    params = jnp.zeros(100) + 2
    updates, _ = transform.update(jnp.ones(100), transform.init(params), params)
    # 0.5 each by value: norm 5, cut to 2; and the decay of a bias.
    np.testing.assert_allclose(updates, -0.2 - 0.2, rtol=1e-6)
    config = parse("--schedule=step", "--schedule_boundaries=0.2,0.4", "--schedule_factor=0.5")
    assert config.schedule_arguments == {"boundaries": (0.2, 0.4), "factor": 0.5}
    scheduled = config.make_schedule(110, warmup_steps=10)
    hparams = {"learning_rate": 1.0, "momentum": 0.9}
    rates = [float(scheduled(hparams, step)["learning_rate"]) for step in (9, 29, 30, 50)]
    np.testing.assert_allclose(rates, [10 / 11, 1.0, 0.5, 0.25], rtol=1e-6)
    moved = parse("--least_momentum=0.8").make_schedule(100, 0)({**hparams}, 0)
    assert float(moved["momentum"]) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "nesterov with l2_penalty 0.0005"),
        (["--optimizer=sgd"], "sgd with l2_penalty 0.0005"),
        (["--optimizer=adam"], "adam with no decay"),
        (["--optimizer=lars"], "lars with no decay"),
        (["--optimizer=lion"], "lion with weight_decay 0.001"),
        (["--optimizer=adamw", "--weight_decay=0.05"], "adamw with weight_decay 0.05"),
        (["--optimizer=adamw", "--weight_decay=0"], "adamw with no decay"),
        (["--weight_decay=0.05"], "nesterov with weight_decay 0.05"),
        (["--optimizer=ftrl", "--l2=0.1"], "ftrl with l2 0.1"),
        (
            ["--optimizer=adamw", "--l2_penalty=5e-4", "--weight_decay=0.05"],
            "adamw with weight_decay 0.05 and l2_penalty 0.0005",
        ),
    ],
)
def test_a_penalty_that_was_not_asked_for_is_of_its_own_method_alone(argv, words, tmp_path):
    config = cli.parse(resnet.Config, argv)[0]
    assert config.method.in_words() == words
    (tmp_path / run_folder.FLAGS_FILE).write_text(cli.to_flags(config))
    assert cli.parse(resnet.Config, [f"--flagfile={tmp_path / run_folder.FLAGS_FILE}"])[0] == config


def test_a_run_from_when_all_methods_had_the_penalty_keeps_it(tmp_path):
    flags = tmp_path / run_folder.FLAGS_FILE
    flags.write_text("--optimizer=adamw\n--weight_decay=0.05\n--l2_penalty=0.0005\n")
    for again in ([], ["--epochs=5"], ["--optimizer=adamw"], ["--weight_decay=0.05"]):
        config = cli.parse(resnet.Config, [f"--flagfile={flags}", *again])[0]
        assert (config.method.l2_penalty, config.method.weight_decay) == (0.0005, 0.05)


def test_a_warm_up_that_was_asked_for_is_not_cut():
    def begun(*flags):
        config = cli.parse(resnet.Config, flags)[0]
        return resnet.build(config, parallel.data_mesh()).learner.method

    penalty = "nesterov with l2_penalty 0.0005"
    assert begun() == f"{penalty} and 45 steps of warm-up"
    assert begun("--warmup_epochs=0") == penalty
    assert begun("--steps=20") == f"{penalty} and 19 steps of warm-up"  # only a default
    assert begun("--steps=91", "--warmup_epochs=2") == f"{penalty} and 90 steps of warm-up"
    with pytest.raises(
        InputError,
        match=r"--warmup_epochs=2.0: it must be less than 1, the 45 steps of the run$",
    ):
        begun("--epochs=1", "--warmup_epochs=2")
    text = ["--text=README.md", "--steps=20", "--warmup_steps=30", "--batch_size=8"]
    with pytest.raises(
        InputError, match="--warmup_steps=30: it must be less than 20, the 20 steps"
    ):
        char_rnn.build(cli.parse(char_rnn.Config, text)[0], parallel.data_mesh())


@pytest.mark.parametrize(
    ("experiment", "flag", "accepted"),
    [
        (vgg, "--width=-2", "more than 0"),
        (nin, "--width=-3", "more than 0"),
        (inception, "--width=0.0", "more than 0"),
        (densenet, "--growth_rate=0", "more than 0"),
        (resnet, "--width=0", "more than 0"),
        (resnet, "--learning_rate=1e+300", r"less than 3e\+38, to be finite in float32"),
        (resnet, "--seed=4294967296", r"at least 0 and less than 2\*\*32"),  # it would be seed 0
        (resnet, "--steps=2147483648", r"at least 1 and less than 2\*\*31"),
        (resnet, "--rand_magnitude=11.0", "at least 0 and at most 10"),
    ],
)
def test_values_that_no_run_could_have_are_refused(experiment, flag, accepted):
    with pytest.raises(InputError, match=f"^{re.escape(flag)}: it must be {accepted}$"):
        cli.parse(experiment.Config, [flag])


def test_components_that_are_not_there():
    with pytest.raises(InputError, match=r"^/no/such holds no color components; "):
        cli.parse(resnet.Config, ["--augment=pca_color", "--pca_file=/no/such"])


RECIPE = "--optimizer=momentum\n--momentum=0.8\n--l2_penalty=1e-4\n--schedule=step\n"
RECIPE += "--schedule_factor=0.2\n--learning_rate=0.3\n"


@pytest.mark.parametrize(
    ("argv", "left"),
    [
        ([], {"momentum": 0.8, "l2_penalty": 1e-4, "schedule_factor": 0.2}),
        (["--optimizer=momentum"], {"momentum": 0.8, "l2_penalty": 1e-4, "schedule_factor": 0.2}),
        (["--optimizer=nesterov"], {"momentum": 0.8, "l2_penalty": 1e-4, "schedule_factor": 0.2}),
        (["--optimizer=adamw"], {"schedule_factor": 0.2}),
        (["--optimizer=adamw", "--l2_penalty=1e-3"], {"l2_penalty": 1e-3, "schedule_factor": 0.2}),
        (["--weight_decay=0.05"], {"momentum": 0.8, "weight_decay": 0.05, "schedule_factor": 0.2}),
        (["--schedule=cosine"], {"momentum": 0.8, "l2_penalty": 1e-4}),
    ],
)
@pytest.mark.parametrize("form", ["--flagfile={}", "-flagfile {}"])
def test_what_a_recipe_says_of_its_method_is_not_for_another(argv, left, form, tmp_path):
    (tmp_path / "recipe").write_text(RECIPE)
    config = cli.parse(resnet.Config, [*form.format(tmp_path / "recipe").split(), *argv])[0]
    names = ("momentum", "l2_penalty", "weight_decay", "schedule_factor")
    values = {name: cli.to_dict(config)[name] for name in names}
    assert {name: value for name, value in values.items() if value is not None} == left
    assert config.run.given & set(names) == left.keys()
    assert config.method.learning_rate == 0.3
    (tmp_path / "more").write_text("--optimizer=adam\n")
    files = [f"--flagfile={tmp_path / name}" for name in ("more", "recipe")]
    assert cli.parse(resnet.Config, files)[0].method.l2_penalty == 1e-4  # both are the person's own
    assert cli.parse(mlp.Config, ["--optimizer=momentum"])[0].method.l2_penalty == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--optimizer=sgd", "--beta=1"], "optimizer sgd takes no beta; it takes no argument"),
        (["--momentum=0.5", "--b1=0.5"], "optimizer nesterov takes no b1; it takes momentum"),
        (["--schedule_power=2"], "schedule cosine takes no power; it takes end"),
        (["--noschedule_staircase"], "schedule cosine takes no staircase"),
        (["--momentum=1"], "--momentum=1.0: it must be at least 0 and less than 1"),
        (["--learning_rate=nan"], "--learning_rate=nan: it must be at least 0"),
        (["--weight_decay=-1"], "--weight_decay=-1.0: it must be at least 0"),
        (["--clip_norm=0"], "--clip_norm=0.0: it must be more than 0"),
        (["--optimizer=ftrl", "--learning_rate=0"], "more than 0 for ftrl"),
        (["--optimizer=ftrl", "--learning_rate_power=1"], "it must be at most 0"),
        (["--optimizer=ftrl", "--initial_accumulator_value=0"], "it must be more than 0"),
        (["--least_momentum=1"], "--least_momentum=1.0: it must be at least 0 and less than 1"),
        (["--optimizer=sgd", "--least_momentum=0.8"], "sgd has no momentum"),
        (["--optimizer=adm"], "adm"),
    ],
)
def test_bad_flags_are_named(argv, message):
    with pytest.raises(InputError, match=message):
        parse(*argv)


def test_rates_that_are_drawn():
    flags = ["--schedule=cosine,polynomial", "--schedule_end=0.5", "--schedule_power=1"]
    lengths = ["--steps=110", "--warmup_steps=10", "--learning_rate=0.4"]
    config, _ = cli.parse(schedule.Config, [*flags, *lengths])
    curves = schedule.rates(config)
    assert list(curves) == ["cosine", "polynomial"]
    for curve in curves.values():
        assert curve.shape == (110,)
        np.testing.assert_allclose(np.asarray(curve)[[0, 10, 60]], [0.4 / 11, 0.4, 0.3], rtol=1e-6)
    lines = schedule.draw(config).axes[0].lines
    assert [line.get_label() for line in lines] == ["cosine", "polynomial"]
    np.testing.assert_array_equal(lines[1].get_ydata(), curves["polynomial"])


def test_every_schedule_is_drawn_into_a_file(tmp_path, capsys):
    path = tmp_path / "all.png"
    names = ",".join(schedules.SCHEDULES)
    schedule.run([f"--schedule={names}", "--steps=50", "--log_scale", f"--output={path}"])
    with Image.open(path) as image:
        assert image.size == (1050, 600)
    assert capsys.readouterr().out == f"wrote {path}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--schedule=sine"], "sine"),
        (["--schedule="], "--schedule=: it must be among constant, linear"),
        (["--schedule=cosine,step", "--schedule_power=1"], "takes no power"),
        (["--output=a.txt"], "--output=a.txt: it must be a .png, .pdf or .svg file"),
        (["--steps=0"], "--steps=0: it must be at least 1"),
        (["--warmup_steps=1000"], "a warm-up of 1000 steps does not fit in 1000 steps"),
        (["cosine"], "'cosine' is no flag"),
    ],
)
def test_what_cannot_be_drawn_is_named(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        schedule.run(argv)
    assert not list(tmp_path.iterdir())
