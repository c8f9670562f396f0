"""Flags from dataclasses."""

import dataclasses

import pytest

from experiments import lenet, resnet
from experiments.harness import cli
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
    (tmp_path / cli.FLAGS_FILE).write_text(cli.to_flags(Config()))
    assert parse(f"--flagfile={tmp_path / cli.FLAGS_FILE}").given >= {"word", "on", "numbers"}
    cli.check_same_run(Config(), tmp_path)


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
    assert cli.find_recipe("resnet_digits") == cli.find_recipe("resnet_digits.flags") == recipe
    by_path = cli.parse(resnet.Config, [f"--flagfile={recipe}"])[0]
    for argv in (["--flagfile=resnet_digits"], ["-flagfile", "resnet_digits.flags"]):
        assert cli.parse(resnet.Config, argv)[0] == by_path
        # A recipe is a flagfile like others: what is given with it wins.
        changed = cli.parse(resnet.Config, [*argv, "--optimizer=adam", "--learning_rate=0.001"])[0]
        assert (changed.optimizer, changed.epochs) == ("adam", by_path.epochs)
        assert changed.l2_penalty != by_path.l2_penalty  # which belongs to the recipe's method
    # What follows `--` is no flag.
    assert cli.parse(Config, ["--", "--flagfile=zzz"])[1] == ["--flagfile=zzz"]
    (tmp_path / "resnet_digits").mkdir()  # as a workdir may be called
    assert cli.find_recipe("resnet_digits") == recipe
    (tmp_path / "lenet_digits").write_text("--count=7\n")
    assert cli.find_recipe("lenet_digits") == "lenet_digits"
    assert parse("--flagfile=lenet_digits").count == 7


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("resnet_digit", "did you mean the recipe resnet_digits"),
        ("experiments/flags/resnet_digits.flags", "did you mean the recipe resnet_digits"),
        ("../flags/vgg_digits", "did you mean the recipe vgg_digits"),
        ("~zzz/resnet", "there is no such file and no such recipe"),
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
    cli.check_same_run(Config(rate=5.0), tmp_path)
    with pytest.raises(InputError, match="holds a run with --count=3, not 4"):
        cli.check_same_run(Config(count=4), tmp_path)
    cli.check_same_run(Config(count=4), tmp_path, apart_from=("count",))


def test_two_experiments_in_one_process():
    assert cli.parse(resnet.Config, [])[0].model == "resnet20_cifar"
    assert cli.parse(lenet.Config, [])[0].model == "lenet5"


def test_every_flag_has_help(capsys):
    for config_type in (resnet.Config, lenet.Config):
        with pytest.raises(SystemExit) as end:
            cli.parse(config_type, ["--help"])
        assert end.value.code == 0
        text = capsys.readouterr().out
        for field in dataclasses.fields(config_type):
            if field.name != "given":
                assert f"--{field.name}=" in text
                assert field.metadata["help"]
