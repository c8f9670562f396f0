"""Recipes, and the mistakes of commands, each told in one line."""

import importlib
import re
from pathlib import Path

import pytest

from experiments import lenet
from experiments.harness import cli, training
from jaxdl import InputError

ROOT = Path(__file__).parent.parent

EXPERIMENTS = ("alexnet", "densenet", "gan", "inception", "lenet", "mlp", "nin", "resnet", "vgg")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_flags_is_the_flagfile(name):
    config_type = importlib.import_module(f"experiments.{name}").Config
    flagfile = ROOT / "experiments" / "flags" / f"{name}_digits.flags"
    config, _ = cli.parse(config_type, [f"--flagfile={flagfile}"])
    assert config == cli.parse(config_type, [f"--workdir={config.run.workdir}"])[0]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments" / "flags").glob("*.flags")), ids=lambda p: p.stem
)
def test_flagfiles_parse_and_have_honest_headers(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    command = next(line for line in header if "python -m experiments." in line)
    assert f"--flagfile=experiments/flags/{path.name}" in command
    experiment = importlib.import_module(command.split("-m ")[1].split()[0])
    cli.parse(experiment.Config, [f"--flagfile={path}"])
    text = " ".join(header)
    assert "Hardware:" in text
    assert "Expect:" in text
    assert "Run:" in text


# (recipe, what the rate is multiplied with in its epochs), as the papers have it
RATES = {
    "inception_v3_imagenet": {1.9: 1.0, 2.1: 0.94, 50.1: 0.94**25, 99.9: 0.94**49},
    "densenet121_imagenet": {29.9: 1.0, 30.1: 0.1, 59.9: 0.1, 60.1: 0.01},
    "densenet_cifar10": {149.9: 1.0, 150.1: 0.1, 224.9: 0.1, 225.1: 0.01},
    "alexnet_imagenet": {20: 1.0, 89.9: 1e-3},
    "vgg16_imagenet": {18: 1.0, 73.9: 1e-3},
}


@pytest.mark.parametrize("name", RATES)
def test_rates_of_recipes_fall_when_they_should(name):
    path = ROOT / "experiments" / "flags" / f"{name}.flags"
    experiment = re.search(r"python -m (experiments\.\w+)", path.read_text()).group(1)
    config_type = importlib.import_module(experiment).Config
    config, _ = cli.parse(config_type, [f"--flagfile={path}"])
    schedule = config.method.make_schedule(100 * round(config.run.epochs), 0)
    for epoch, factor in RATES[name].items():
        at = schedule({"learning_rate": 1.0}, round(100 * epoch))["learning_rate"]
        assert float(at) == pytest.approx(factor, rel=1e-5), epoch
    assert config.classifier.warmup_epochs == 0


MISTAKES = {
    "unknown flag": (["--modle=x"], "no flag --modle; did you mean --mode?"),
    "unknown model": (
        ["--model=resnet21_cifar"],
        "no model 'resnet21_cifar'; near it: resnet32_cifar, resnet20_cifar",
    ),
    "unknown optimizer": (["--optimizer=sdg"], "should be one of"),
    "model without that argument": (
        ["--model=plain20_cifar", "--shortcut=B"],
        "plain20_cifar does not take shortcut",
    ),
    "stray word": (["run"], "'run' is no flag"),
    "unprepared set": (["--dataset=cifar10", "--data_dir=no"], "tfds build cifar10"),
    "no folder": (["--dataset=folder:/no/such"], "/no/such"),
    "uneven batch": (["--batch_size=30"], "30 does not divide by the 8 devices; take 24 or 32"),
    "large batch": (["--batch_size=2000"], "1437"),
    "three means for one channel": (
        ["--mean=0.1,0.2,0.3"],
        "--mean=0.1,0.2,0.3: it must be one number",
    ),
    "warm-up": (["--schedule=sine"], "should be one of"),
    "resume must": (["--resume=must", "--workdir=new"], "there is no run in new"),
    "eval nothing": (["--mode=eval", "--workdir=new"], "no run in new"),
    "eval without folder": (["--mode=eval"], "--workdir=: it must be a run's, for --mode=eval"),
    "grad_accum": (["--grad_accum=3"], "a divisor of the batch_size 32"),
    "early stop on test": (["--early_stop=3"], "by the test split; give --validation"),
    "early stop on the fold": (
        ["--folds=3", "--early_stop=3", "--workdir=new"],
        "--early_stop would choose by the fold held out; give --validation",
    ),
    "factor without plateau": (["--plateau_factor=0.5"], "it must be left out without --plateau"),
    "endless": (["--epochs=inf"], "--epochs=inf: it must be finite"),
    "no number": (["--mean=nan"], "--mean=nan: it must be finite"),
    "plateau of test": (["--plateau=3"], "--plateau would choose by the test split"),
    "fold without folds": (["--fold=1"], "--fold=1: it must be given with --folds"),
    "fold beyond": (["--fold=5", "--folds=5"], "at least 0 and less than --folds=5"),
    "argument of another optimizer": (
        ["--optimizer=sgd", "--momentum=0.9"],
        "optimizer sgd takes no momentum",
    ),
    "argument of another schedule": (["--schedule_cycles=2"], "schedule cosine takes no cycles"),
    "unknown augmentation": (["--augment=warp,blur"], "'blur' should be one of"),
    "argument of another augmentation": (
        ["--cutout_size=4"],
        "--cutout_size=4: it must be left out without --augment=cutout",
    ),
    "color of gray images": (["--augment=pca_color"], "images of 1 channels"),
    "components that are none": (
        ["--augment=pca_color", "--pca_file=/dev/null"],
        "/dev/null holds no color components",
    ),
    "unknown initializer": (["--init=he"], "should be one of"),
    "unknown class": (["--classes=3,x"], "x"),
    "too many of a class": (["--per_class=1000"], "1000"),
    "hosts": (["--coordinator=localhost:1"], "needs --num_processes and --process_id"),
}


def is_told(done, message):
    """Whether a command failed for a mistake, told in one line."""
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_exit_1(experiment, name):
    flags, message = MISTAKES[name]
    devices = 8 if name == "uneven batch" else 1
    is_told(experiment("resnet", *flags, check=False, devices=devices), message)
    assert not (experiment.folder / "new").exists()


def test_a_real_command_tells_a_mistake_in_one_line_too(command):
    is_told(command("resnet", *MISTAKES["unprepared set"][0], check=False), "tfds build cifar10")


@pytest.mark.parametrize("way", ["jit", "pmap"])
@pytest.mark.parametrize("folds", [[], ["--folds=3"]])
def test_a_batch_is_not_cut_into_parts_that_do_not_go_round(way, folds, tmp_path):
    flags = [f"--parallel={way}", "--batch_size=16", "--grad_accum=4", f"--workdir={tmp_path}/new"]
    config, _ = cli.parse(lenet.Config, [*flags, *folds])
    train = training.cross_validate if folds else training.train
    with pytest.raises(InputError, match=r"the 2 rows that each of the 8 .*take grad_accum 2, or"):
        train(config, lenet.build)
    assert not list(tmp_path.iterdir())
