"""`experiments.transfer` and its study: runs that start from runs."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import mlp, transfer
from experiments.harness import cli, serving, training
from experiments.studies import transfer as transfer_study
from jaxdl import InputError, checkpoint, data, models, parallel, pretrained
from jaxdl.transfer import merged

# A perceptron of three hidden layers with norms, on digits of 8x8.
SOURCE = ("--width=8", "--depth=3", "--batch_norm", "--dropout=0", "--image_size=8", "--mean=0.3")
SOURCE += ("--norm_epsilon=0.01", "--classes=0,1,2,3", "--augment=", "--steps=20")
SOURCE += ("--nohistograms",)
NEW = ("--classes=7,3,5", "--per_class=5", "--batch_size=15", "--steps=4", "--warmup_epochs=0")
NEW += ("--nohistograms",)
slowly = functools.partial(pytest.param, marks=pytest.mark.slow)


pytestmark = pytest.mark.usefixtures("one_device")


def train(experiment, workdir, *flags):
    config, rest = cli.parse(experiment.Config, [*flags, f"--workdir={workdir}"])
    assert not rest
    summary = training.train(config, experiment.build)
    assert summary is not None
    return summary


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The folder of a run that knows the digits 0 to 3."""
    folder = tmp_path_factory.mktemp("source")
    train(mlp, folder, *SOURCE, "--ema_decay=0.9")
    return folder


def variables_of(workdir):
    """Those that predict: the averages, where the run kept them."""
    saved = checkpoint.load(workdir)
    trained = saved["average"] or saved
    return leaves(merged(trained["params"], trained["extra"]))


def leaves(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def parse(*flags):
    return cli.parse(transfer.Config, flags)[0]


def values(config, *names):
    """Those of some flags."""
    return tuple(cli.to_dict(config)[name] for name in names)


def begin(config):
    """The problem that a run is of, its task, and the state that it would begin with."""
    problem = transfer.build(config, parallel.data_mesh())
    hparams = {name: jnp.float32(value) for name, value in problem.learner.hparams.items()}
    task = problem.learner.task(None)
    return problem, task, jax.jit(task.init)(jax.random.key(config.run.seed), hparams)


def test_a_run_starts_from_a_run_with_its_network_and_images(source, tmp_path):
    config = parse(f"--from_run={source}", *NEW)
    assert values(config, "model", "image_size", "mean") == ("mlp", 8, (0.3,))
    expected = {"width": 8, "depth": 3, "batch_norm": True, "norm_epsilon": 0.01}
    assert expected.items() <= config.model_arguments.items()
    assert parse(f"--from_run={source}", "--image_size=12").images.image_size == 12
    # Given is given, be it at the default, and what the run wrote down comes back.
    given = parse(f"--from_run={source}", "--image_size=16", "--mean=0.5")
    assert values(given, "image_size", "mean", "model") == (16, (0.5,), "mlp")
    (tmp_path / "flags.txt").write_text(cli.to_flags(given))
    assert parse(f"--flagfile={tmp_path / 'flags.txt'}") == given
    _, _, state = begin(config)
    begun, trained = leaves(merged(state.params, state.extra)), variables_of(source)
    assert begun.keys() == trained.keys()
    for path in begun.keys() - {"params/fc/kernel", "params/fc/bias"}:
        np.testing.assert_array_equal(begun[path], trained[path])
    kernel = begun["params/fc/kernel"]
    np.testing.assert_array_equal(kernel[:, 1], trained["params/fc/kernel"][:, 3])  # the digit 3
    assert kernel.shape == (8, 3)
    assert not np.isin(kernel[:, [0, 2]], trained["params/fc/kernel"]).any()


@pytest.mark.parametrize(
    ("flags", "moving"),
    [
        slowly(("--freeze=fc1|bn2",), "bn1 fc2 fc3 bn3 fc"),
        (("--freeze_up_to=fc2",), "bn2 fc3 bn3 fc"),
        slowly(("--head_only",), "fc"),
        slowly(("--unfreeze_every=3", "--freeze_up_to=bn2", "--layer_decay=0.5"), "fc3 bn3 fc"),
        slowly(("--unfreeze_every=2", "--stages=fc1|bn1|fc2,bn2|fc3|bn3,fc"), "bn2 fc3 bn3 fc"),
    ],
)
def test_flags_say_what_is_trained(source, flags, moving):
    """Of the last two the stage below the head has had its turn in four steps."""
    problem, task, state = begin(parse(f"--from_run={source}", *NEW, *flags))
    batches, step = problem.feed.train(0), jax.jit(task.train)
    for _ in range(4):
        state, _ = step(state, next(batches))
    after, before = leaves(merged(state.params, state.extra)), variables_of(source)
    same = {p for p, x in after.items() if x.shape == before[p].shape and (x == before[p]).all()}
    assert {path.split("/")[1] for path in after.keys() - same} == set(moving.split())


@pytest.mark.slow
def test_layer_decay_is_a_share_of_the_learning_rate(source):
    flags = (f"--from_run={source}", *NEW, "--optimizer=sgd", "--schedule=constant")
    kernels = []
    for decay in ("1", "0.5"):
        problem, task, state = begin(parse(*flags, "--l2_penalty=0", f"--layer_decay={decay}"))
        after, _ = jax.jit(task.train)(state, next(problem.feed.train(0)))
        change = jax.tree.map(np.subtract, after.params, state.params)
        kernels.append([change[layer]["kernel"] for layer in ("fc1", "fc2", "fc3", "fc")])
    for whole, part, factor in zip(*kernels, (0.125, 0.25, 0.5, 1), strict=True):
        np.testing.assert_allclose(part, factor * whole, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_a_head_on_features_is_the_head_of_the_frozen_network(source, tmp_path):
    flags = (f"--from_run={source}", *NEW, "--augment=")
    through = train(transfer, tmp_path / "through", *flags, "--head_only")
    on_top = train(transfer, tmp_path / "on_top", *flags, f"--bottleneck={tmp_path}/kept")
    assert through["test/loss"] == pytest.approx(on_top["test/loss"], rel=1e-4)
    assert through["test/accuracy"] == on_top["test/accuracy"]
    assert through["parameters"] == on_top["parameters"] == 8 * 3 + 3
    one, other = variables_of(tmp_path / "through"), variables_of(tmp_path / "on_top")
    assert one.keys() == other.keys()
    for path, x in one.items():
        np.testing.assert_allclose(x, other[path], rtol=1e-4, atol=1e-6, err_msg=path)
    kept = tmp_path / "kept"
    assert {file.name for file in kept.iterdir()} == {"train.npz", "test.npz"}
    before = (kept / "train.npz").stat().st_mtime_ns
    begin(parse(*flags, f"--bottleneck={kept}", "--learning_rate=1"))
    assert (kept / "train.npz").stat().st_mtime_ns == before
    with pytest.raises(
        InputError, match=r"kept/train\.npz are of another data; take another folder$"
    ):
        begin(parse(*flags, "--seed=1", f"--bottleneck={kept}"))


@pytest.mark.slow
def test_each_fold_keeps_features_of_its_own(source, tmp_path):
    kept = tmp_path / "kept"
    flags = (f"--from_run={source}", *NEW, "--folds=2", f"--bottleneck={kept}")
    config = cli.replace(parse(*flags), workdir=str(tmp_path / "run"))
    training.cross_validate(config, transfer.build)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["folds"]["eval/accuracy"]) == 2
    assert sorted(folder.name for folder in kept.iterdir()) == ["fold0", "fold1"]
    training.cross_validate(config, transfer.build)  # whose features fit


@pytest.mark.slow
def test_a_run_that_froze_layers_goes_on_and_predicts(source, tmp_path):
    flags = [f"--from_run={source}", *NEW, "--freeze_up_to=fc2", "--ema_decay=0.9"]
    flags += ["--eval_every=2", "--checkpoint_every=2"]
    whole = train(transfer, tmp_path / "whole", *flags)
    half = tmp_path / "half"
    (half / "checkpoints").mkdir(parents=True)
    config = parse(*flags, f"--workdir={half}")
    (half / "flags.txt").write_text(cli.to_flags(config))
    (tmp_path / "whole/checkpoints/2").rename(half / "checkpoints/2")
    resumed = training.train(config, transfer.build)
    assert resumed is not None
    for name in ("test/loss", "test/ema_loss"):
        assert resumed[name] == whole[name]

    server = serving.of_run(half)
    classify, class_names = server.classify(), server.class_names
    assert list(class_names) == ["7", "3", "5"]
    digit = data.load("digits").splits["test"][0]["image"]
    (tmp_path / "digit.png").write_bytes(digit)
    average = checkpoint.load(half)["average"]
    model = models.create(
        "mlp", num_classes=3, width=8, depth=3, batch_norm=True, norm_epsilon=0.01
    )
    with Image.open(tmp_path / "digit.png") as picture:
        pixels = np.asarray(picture)[None, :, :, None] / 255
    variables = merged(average["params"], average["extra"])
    logits = model.apply(variables, (pixels - 0.3) / 0.5, train=False)
    expected = np.asarray(jax.nn.softmax(logits)[0])
    np.testing.assert_allclose(classify(str(tmp_path / "digit.png")), expected, rtol=1e-4)


@pytest.mark.slow
def test_a_run_starts_from_published_weights(tmp_path):
    model = models.create("resnet18", num_classes=4)
    images, rng = jnp.zeros((1, 32, 32, 3)), np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    draw = lambda shape: rng.normal(size=shape.shape).astype(np.float32)
    variables = jax.tree.map(draw, shapes)  # with no program for it
    pretrained.save(tmp_path / "w.safetensors", pretrained.to_torch("resnet18", variables))
    (tmp_path / "labels").write_text("cat\n3\ndog\n7\n")
    weights = (f"--from_weights={tmp_path}/w.safetensors", "--image_size=32", *NEW)
    config = parse(*weights, "--model=resnet18", f"--from_labels={tmp_path}/labels")
    assert config.images.channels == 3
    assert config.images.crop_share == 224 / 256
    assert config.classifier.mean == (0.485, 0.456, 0.406)
    problem, _, state = begin(config)
    assert next(problem.feed.train(0))["image"].shape == (15, 32, 32, 3)
    old, new = variables["params"], state.params
    np.testing.assert_array_equal(new["conv1"]["kernel"], old["conv1"]["kernel"])
    np.testing.assert_array_equal(new["fc"]["kernel"][:, :2], old["fc"]["kernel"][:, [3, 1]])
    with pytest.raises(InputError, match=r"w\.safetensors.* do not fit resnet34: \d+ missing"):
        begin(parse(*weights, "--model=resnet34"))
    (tmp_path / "labels").write_text("cat\n")
    with pytest.raises(InputError, match="labels: it must be of 4 lines, a class each"):
        begin(cli.replace(config))


def test_mistakes_are_named_before_training(source):
    start = f"--from_run={source}"

    def refused(match, *flags):
        with pytest.raises(InputError, match=match) as refusal:
            begin(parse(*NEW, *flags))
        assert "\n" not in str(refusal.value)

    refused("give --from_run=WORKDIR, or --from_weights=FILE and its --model=NAME")
    refused("no run in nowhere", "--from_run=nowhere")
    refused("--from_run and --from_weights say where", start, "--from_weights=a.npz")
    refused("--freeze and --head_only say what", start, "--freeze=fc1", "--head_only")
    refused("pattern 'c9' matches nothing; the layers are fc1, bn1, fc2", start, "--freeze=c9")
    refused(r"'.\*' freezes everything; leave some of fc1, bn1", start, "--freeze=.*")
    refused("pattern 'c9' matches nothing; the layers are", start, "--freeze_up_to=c9")
    refused("--layer_decay=0.0: it must be more than 0", start, "--layer_decay=0")
    refused("--unfreeze_every=0: it must be at least 1", start, "--unfreeze_every=0")
    both = ("--unfreeze_every=2", "--clip_global_norm=1")
    refused("--clip_global_norm=1.0: it must be left out with", start, *both)
    refused("--stages=fc1: it must be of --layer_decay", start, "--stages=fc1")
    refused("--augment=flip: it must be empty with", start, "--bottleneck=b", "--augment=flip")
    warped = ("--bottleneck=b", "--augment=warp")
    refused("--augment=warp: it must be empty with", start, *warped)
    refused("--from_labels=a: it must be given with --from_weights", start, "--from_labels=a")
    refused("the weights are not this network's: params/fc1/kernel is", start, "--image_size=9")
    refused(r"a\.npz: there is no such file", "--from_weights=a.npz", "--model=resnet18")
    refused("no published weights for 'lenet5'", "--from_weights=a.npz", "--model=lenet5")


def test_the_study_tables_its_runs_and_trains_none_twice(tmp_path, monkeypatch):
    """What it trains is recorded here and not trained; the other tests train."""
    trained, inputs = [], {"image_shape": [16, 16, 1], "class_names": list("01234")}

    def train(config, build):
        trained.append(config)
        workdir = Path(config.run.workdir)
        workdir.mkdir(parents=True)
        (workdir / "flags.txt").write_text(cli.to_flags(config))
        (workdir / "inputs.json").write_text(json.dumps(inputs))
        summary = {"step": 3, "test/accuracy": len(trained) ** 2 / 1000}
        (workdir / "summary.json").write_text(json.dumps(summary))
        return summary

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(transfer_study, "CLOTHES", tmp_path / "none")
    arguments = [f"--workdir={tmp_path}", "--seeds=2", "--per_class=5,6", "--steps=3"]
    transfer_study.run(arguments)
    assert len(trained) == 2 * (1 + 2 * 4)
    flags = [cli.to_dict(config) for config in trained]
    assert [of_run["seed"] for of_run in flags] == [0] * 9 + [1] * 9
    assert {of_run["workdir"] for of_run in flags[::9]} == {
        f"{tmp_path}/pretrained/digits/seed{seed}" for seed in (0, 1)
    }
    assert {of_run["classes"] for of_run in flags[::9]} == {tuple("01234")}
    for of_run in [*flags[1:9], *flags[10:]]:
        assert of_run["classes"] == tuple("56789")
        assert f"/{of_run['per_class']}_per_class/" in of_run["workdir"]
        scratch = of_run["experiment"] != "transfer"
        expected = "" if scratch else f"{tmp_path}/pretrained/digits/seed{of_run['seed']}"
        assert of_run.get("from_run", "") == expected
        assert (of_run["steps"], of_run["batch_size"]) == (3, 25)
    record = json.loads((tmp_path / "table.json").read_text())["test/accuracy"]
    assert list(record) == ["scratch", "head only", "top layers", "all layers"]
    of_second = [(16**2) / 1000, (7**2) / 1000]  # run 7: seed 0, 6 per class, the head only
    assert record["head only"]["6"] == of_second[::-1]
    spread = (of_second[0] - of_second[1]) / np.sqrt(2)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[-3].endswith(f"| {sum(of_second) / 2:.3f} ± {spread:.3f} |")
    assert lines[-3].startswith("| head only ")
    with Image.open(tmp_path / "transfer.png") as picture:
        assert picture.size[0] > 400

    (tmp_path / "table.md").unlink()
    transfer_study.run(arguments)
    assert len(trained) == 18

    assert (tmp_path / "table.md").read_text().splitlines() == lines
    monkeypatch.setattr(transfer_study, "CLOTHES", tmp_path)  # a folder that there is
    config, _ = cli.parse(transfer_study.Config, arguments)
    runs = transfer_study.plan(config)
    assert len(runs) == 2 * (2 + 2 * 6)
    clothes = tmp_path / "pretrained/clothes/seed0"
    started = [run for run in runs if f"--from_run={clothes}" in run.arguments]
    assert {run.setup[0] for run in started} == {*transfer_study.FROM_CLOTHES}
    monkeypatch.setattr(transfer_study, "CLOTHES", tmp_path / "none")
    with pytest.raises(InputError, match="holds a study with --steps=3, not 4"):
        transfer_study.run([*arguments, "--steps=4"])

    def stopped(config, build):
        raise cli.Interrupted(15)

    monkeypatch.setattr(training, "train", stopped)
    with pytest.raises(cli.Interrupted):
        transfer_study.run([f"--workdir={tmp_path}/other"])
    assert not (tmp_path / "other" / "table.md").exists()
    with pytest.raises(InputError, match="--per_class=4: it must be at least 5"):
        transfer_study.run(["--per_class=4"])
    with pytest.raises(InputError, match="--per_class=5,5: it must be each given once"):
        transfer_study.run(["--per_class=5,5"])
    with pytest.raises(InputError, match="200 train examples of each class of digits"):
        transfer_study.run([f"--workdir={tmp_path}/many", "--per_class=5,200"])
    assert not (tmp_path / "many").exists()
    with pytest.raises(InputError, match="'more' is no flag"):
        transfer_study.run(["more"])
