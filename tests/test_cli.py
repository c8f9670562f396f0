"""Flags from dataclasses."""

import dataclasses
import importlib
import json
from pathlib import Path

import pytest

from experiments import lenet, resnet
from experiments.harness import cli, recipes, run_folder
from experiments.harness.cli import flag
from jaxdl import InputError


@dataclasses.dataclass(frozen=True)
class Config:
    """A config with a field of each kind."""

    word: str = flag("a b=c", "any word")
    choice: str = flag("x", "one of two", ("x", "y"))
    count: int = flag(3, "an int")
    maybe: int | None = flag(None, "an int, or none")
    rate: float = flag(1e-4, "a float", part_of_run=False)
    on: bool = flag(True, "a switch")
    words: tuple[str, ...] = flag(("p",), "some of three", ("p", "q", "r"))
    numbers: tuple[float, ...] = flag((), "floats")
    given: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)

    def __post_init__(self) -> None:
        cli.require(self, "count", self.count > 0, "more than 0")


def parse(*argv):
    return cli.parse(Config, argv)[0]


def test_defaults_and_values():
    assert parse() == Config()
    given = parse(
        "--count=5", "--maybe", "7", "--noon", "--words=q,r", "--numbers=1,2.5", "--rate=2"
    )
    assert given == Config(
        count=5, maybe=7, on=False, words=("q", "r"), numbers=(1.0, 2.5), rate=2.0
    )
    assert parse("--words=").words == ()
    assert cli.parse(Config, ["--count=1", "more", "words"])[1] == ["more", "words"]


@pytest.mark.parametrize(
    "config", [Config(), Config(maybe=4, on=False, words=(), numbers=(0.1, 1e-30), word="--x # y")]
)
def test_written_flags_are_read_back(tmp_path, config):
    (tmp_path / "flags.txt").write_text(cli.to_flags(config))
    assert parse(f"--flagfile={tmp_path / 'flags.txt'}") == config


def test_values_that_are_not_the_defaults():
    assert cli.changed(Config()) == {}
    assert cli.changed(Config(maybe=4, on=False, words=("p",), numbers=(0.1,))) == {
        "maybe": 4,
        "on": False,
        "numbers": (0.1,),
    }
    # The defaults are those of the experiment; the penalty is the method's.
    of_lenet = {"seed": 3, "l2_penalty": 5e-4}
    assert cli.changed(cli.parse(lenet.Config, ["--seed=3"])[0]) == of_lenet


def test_later_flags_win_over_a_flagfile(tmp_path):
    (tmp_path / "f").write_text("# a remark\n--count=9\n--choice=y\n")
    assert parse(f"--flagfile={tmp_path / 'f'}", "--count=2") == Config(count=2, choice="y")


def test_what_was_given_is_known(tmp_path, capsys):
    (tmp_path / "f").write_text("--count=3\n--noon\n")
    config = parse(f"--flagfile={tmp_path / 'f'}", "--maybe", "4", "--choice=x", "--words=")
    assert config.given == {"count", "on", "maybe", "choice", "words"}
    assert dataclasses.replace(config, count=5).given == config.given
    assert config == Config(maybe=4, on=False, words=())
    assert parse().given == Config().given == frozenset()
    assert "given" not in cli.to_flags(config)
    assert "given" not in cli.to_dict(config)
    with pytest.raises(InputError, match="no flag --given"):
        parse("--given=count")
    with pytest.raises(SystemExit):
        parse("--help")
    assert "given" not in capsys.readouterr().out
    # What a run wrote down was all given to it; that makes no other run of it.
    (tmp_path / run_folder.FLAGS_FILE).write_text(cli.to_flags(Config()))
    assert parse(f"--flagfile={tmp_path / run_folder.FLAGS_FILE}").given >= {
        "word",
        "on",
        "numbers",
    }
    run_folder.check_same_run(Config(), tmp_path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--cuont=3"], "no flag --cuont; did you mean --count?"),
        (["--zzz=3"], "no flag --zzz; see --help"),
        (["--count=three"], "--count=three"),
        (["--choice=z"], "should be one of <x|y>"),
        (["--words=p,z"], "'z' should be one of <p|q|r>"),
        (["--numbers=1,two"], "'two' is no float"),
        (["--count=0"], "--count=0: it must be more than 0"),
        (["--rate=inf"], "--rate=inf: it must be finite"),
        (["--numbers=1,nan"], "--numbers=1.0,nan: it must be finite"),
        (["--flagfile=/no/such/file"], "/no/such/file"),
    ],
)
def test_mistakes_are_one_line(argv, message):
    with pytest.raises(InputError) as error:
        parse(*argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "ERROR" not in str(error.value)


def test_a_recipe_is_found_by_name_unless_a_file_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = resnet.__file__.replace("resnet.py", "flags/resnet_digits.flags")
    assert recipes.find("resnet_digits") == recipes.find("resnet_digits.flags") == recipe
    by_path = cli.parse(resnet.Config, [f"--flagfile={recipe}"])[0]
    for argv in (["--flagfile=resnet_digits"], ["-flagfile", "resnet_digits.flags"]):
        assert cli.parse(resnet.Config, argv)[0] == by_path
        # A recipe is a flagfile like others: what is given with it wins.
        changed = cli.parse(resnet.Config, [*argv, "--optimizer=adam", "--learning_rate=0.001"])[0]
        assert changed.method.optimizer == "adam"
        assert changed.run.epochs == by_path.run.epochs
        # It belongs to the method of the recipe.
        assert changed.method.l2_penalty != by_path.method.l2_penalty
    # What follows `--` is no flag.
    assert cli.parse(Config, ["--", "--flagfile=zzz"])[1] == ["--flagfile=zzz"]
    (tmp_path / "resnet_digits").mkdir()  # as a workdir may be called
    assert recipes.find("resnet_digits") == recipe
    (tmp_path / "lenet_digits").write_text("--count=7\n")
    assert recipes.find("lenet_digits") == "lenet_digits"
    assert parse("--flagfile=lenet_digits").count == 7


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("resnet_digit", "did you mean the recipe resnet_digits"),
        ("experiments/flags/resnet_digits.flags", "did you mean the recipe resnet_digits"),
        ("../flags/vgg_digits", "did you mean the recipe vgg_digits"),
        ("zzz", "there is no such file and no such recipe"),
        ("", "there is no such file and no such recipe"),
    ],
)
def test_an_unknown_recipe_is_told_with_close_ones(path, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        parse(f"--flagfile={path}")
    assert str(error.value).startswith(f"--flagfile={path}: ")
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_picture_is_no_flagfile(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\xff")
    with pytest.raises(InputError, match=r"a flagfile is no text: .*a\.png"):
        parse(f"--flagfile={tmp_path / 'a.png'}")


def test_same_run_but_for_flags_that_may_change(tmp_path):
    (tmp_path / "flags.txt").write_text(cli.to_flags(Config()))
    run_folder.check_same_run(Config(rate=5.0), tmp_path)
    with pytest.raises(InputError, match="holds a run with --count=3, not 4"):
        run_folder.check_same_run(Config(count=4), tmp_path)
    run_folder.check_same_run(Config(count=4), tmp_path, apart_from=("count",))


@dataclasses.dataclass(frozen=True)
class Pace:
    """A group of flags."""

    kind: str = flag("walk", "how", ("walk", "run"))
    speed: float = flag(1.0, "how fast")
    stride: float | None = flag(None, "of its kind", belongs_to=lambda values: values["kind"])
    note: str = dataclasses.field(default="", compare=False)  # no flag

    def __post_init__(self) -> None:
        cli.require(self, "speed", self.speed > 0, "more than 0")
        if self.stride == 13:
            raise InputError("no luck in that")


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two groups, the second like the first where it is not said to be otherwise."""

    first: Pace = Pace(speed=2.0, note="kept")
    second: Pace = cli.group(Pace(), prefix="second_", like="first")
    count: int = flag(3, "a flag of no group")

    def __post_init__(self) -> None:
        if self.count == 0:
            cli.settle(self, count=1, second_speed=9.0)


def pair(*argv):
    return cli.parse(Pair, argv)[0]


def test_groups_are_flattened_into_flags():
    assert [known.name for known in cli.flags_of(Pair)] == [
        *("kind", "speed", "stride"),
        *("second_kind", "second_speed", "second_stride", "count"),
    ]
    config = pair("--speed=3", "--second_kind=run", "--count=4")
    assert config == Pair(Pace(speed=3.0), Pace("run", 3.0), 4)
    assert config.first.note == "kept"
    assert pair("--kind=run").second == Pace("run", 2.0)
    assert cli.to_dict(config)["second_speed"] == 3.0
    assert cli.default(Pair, "speed") == 2.0


def test_what_belongs_to_another_kind_is_not_taken_over(tmp_path):
    assert pair("--stride=2").second.stride == 2
    config = pair("--stride=2", "--second_kind=run")
    assert (config.first.stride, config.second.stride) == (2, None)
    assert pair("--stride=2", "--second_kind=run", "--second_stride=4").second.stride == 4
    # What a flagfile leaves empty, as older ones do, is not given.
    (tmp_path / "f").write_text("--kind=run\n--second_kind=\n")
    assert pair(f"--flagfile={tmp_path / 'f'}").second.kind == "run"
    (tmp_path / "f").write_text("--stride=2\n")
    assert pair(f"--flagfile={tmp_path / 'f'}", "--kind=run").first.stride is None


@pytest.mark.parametrize("argv", [[], ["--stride=2"], ["--stride=2", "--second_kind=run"]])
def test_groups_are_written_and_read_back(argv, tmp_path):
    config = pair(*argv)
    (tmp_path / "f").write_text(cli.to_flags(config))
    assert pair(f"--flagfile={tmp_path / 'f'}") == config
    # Only where it is not like the first is the second written down, or told of.
    assert ("--second_kind=" in cli.to_flags(config)) == ("--second_kind=run" in argv)
    told = {argument.split("=")[0].removeprefix("--") for argument in argv}
    assert cli.changed(config).keys() == told | ({"second_stride"} if len(argv) == 2 else set())


def test_flags_of_groups_are_replaced_and_settled():
    config = cli.replace(pair("--second_kind=run"), speed=5.0, second_stride=1.0, count=7)
    assert config == Pair(Pace(speed=5.0), Pace("run", 2.0, 1.0), 7)
    assert pair("--count=0") == Pair(Pace(speed=2.0), Pace(speed=9.0), 1)


def test_a_group_refuses_under_its_prefix():
    with pytest.raises(InputError, match=r"^--speed=-1.0: it must be more than 0$"):
        pair("--speed=-1")
    with pytest.raises(InputError, match=r"^--second_speed=-1.0: it must be more than 0$"):
        pair("--second_speed=-1")
    with pytest.raises(InputError, match=r"^second: no luck in that$"):
        pair("--second_stride=13")
    with pytest.raises(InputError, match=r"did you mean --second_speed\?$"):
        pair("--secnd_speed=1")


# What each experiment wrote into flags.txt, run without a flag, before configs held groups.
BEFORE = json.loads((Path(__file__).parent / "golden" / "flags.json").read_text())


@pytest.mark.parametrize("name", BEFORE)
def test_flags_of_runs_of_before_say_what_they_said(name, tmp_path):
    (tmp_path / run_folder.FLAGS_FILE).write_text("\n".join(BEFORE[name]))
    config_type = importlib.import_module(f"experiments.{name}").Config
    config, rest = cli.parse(config_type, [f"--flagfile={tmp_path / run_folder.FLAGS_FILE}"])
    assert rest == []
    assert run_folder.experiment_of(tmp_path) == config.run.experiment == name
    values = {flag: cli.to_text(value) for flag, value in cli.to_dict(config).items()}
    said = dict(line.removeprefix("--").split("=", 1) for line in BEFORE[name])
    # What was left empty said that the discriminator is like the generator.
    assert {flag: values[flag] for flag, value in said.items() if value} == {
        flag: value for flag, value in said.items() if value
    }
    run_folder.check_same_run(config, tmp_path)


def test_two_experiments_in_one_process():
    assert cli.parse(resnet.Config, [])[0].network.model == "resnet20_cifar"
    assert cli.parse(lenet.Config, [])[0].network.model == "lenet5"


def test_every_flag_has_help(capsys):
    for config_type in (resnet.Config, lenet.Config):
        with pytest.raises(SystemExit) as end:
            cli.parse(config_type, ["--help"])
        assert end.value.code == 0
        text = capsys.readouterr().out
        for known in cli.flags_of(config_type):
            assert f"--{known.name}=" in text
            assert known.help
