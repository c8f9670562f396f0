"""`experiments.transfer` and its study: runs that start from runs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import cli, lenet, predict, resnet, training, transfer, transfer_study
from jaxdl import InputError, checkpoint, data, models, parallel, pretrained
from jaxdl.transfer import merged

OLD = ("--classes=0,1,2,3", "--augment=")
NEW = ("--classes=7,3,5", "--per_class=5", "--batch_size=15", "--steps=4", "--warmup_epochs=0")


def train(experiment, workdir, *flags):
    config, rest = cli.parse(experiment.Config, [*flags, f"--workdir={workdir}"])
    assert not rest
    summary = training.train(config, experiment.build)
    assert summary is not None
    return summary


def load(workdir):
    saved = checkpoint.load(workdir)
    return saved, merged(saved["params"], saved["extra"])


def leaves(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A LeNet-5 and a narrow residual network that know the digits 0 to 3."""
    folder = tmp_path_factory.mktemp("trained")
    train(lenet, folder / "lenet", *OLD, "--steps=40", "--learning_rate=0.05")
    narrow = ("--width=4", "--image_size=8", "--mean=0.3", "--norm_epsilon=0.01")
    train(resnet, folder / "resnet", *OLD, *narrow, "--steps=5")
    return folder


def started(config):
    """The state that a run would begin with."""
    problem = transfer.build(config, parallel.data_mesh())
    hparams = {name: jnp.float32(value) for name, value in problem.hparams.items()}
    return jax.jit(problem.task(None).init)(jax.random.key(config.seed), hparams)


def parse(*flags):
    return cli.parse(transfer.Config, flags)[0]


def test_a_run_starts_from_a_run_with_its_network_and_images(trained):
    config = parse(f"--from_run={trained}/resnet", *NEW)
    assert (config.model, config.image_size, config.mean) == ("resnet20_cifar", 8, (0.3,))
    assert config.model_arguments == {"width": 4, "norm_epsilon": 0.01}
    assert parse(f"--from_run={trained}/resnet", *NEW, "--image_size=12").image_size == 12
    _, source = load(trained / "resnet")
    state = started(config)
    begun, source = leaves(merged(state.params, state.extra)), leaves(source)
    assert begun.keys() == source.keys()
    for path in begun.keys() - {"params/fc/kernel", "params/fc/bias"}:
        np.testing.assert_array_equal(begun[path], source[path])
    kernel = np.asarray(begun["params/fc/kernel"])
    np.testing.assert_array_equal(kernel[:, 1], source["params/fc/kernel"][:, 3])  # of the digit 3
    assert kernel.shape == (16, 3)
    assert not np.isin(kernel[:, [0, 2]], source["params/fc/kernel"]).any()


@pytest.mark.parametrize(
    ("flags", "frozen"),
    [
        ((), ""),
        (("--freeze=c1|f6",), "c1 f6"),
        (("--freeze_up_to=c5",), "c1 c3 c5"),
        (("--head_only",), "c1 c3 c5 f6"),
        (("--freeze_up_to=c1", "--unfreeze_every=3", "--layer_decay=0.5"), "c1 c3 c5"),
        (("--stages=c1|c3,c5|f6,output", "--unfreeze_every=3"), "c1 c3"),
    ],
)
def test_flags_say_what_is_trained(trained, tmp_path, flags, frozen):
    """In the last two the head and the stage below it have had their turn in four steps."""
    train(transfer, tmp_path / "run", f"--from_run={trained}/lenet", *NEW, *flags)
    _, source = load(trained / "lenet")
    _, made = load(tmp_path / "run")
    same = {
        layer
        for layer in ("c1", "c3", "c5", "f6")
        if (made["params"][layer]["kernel"] == source["params"][layer]["kernel"]).all()
    }
    assert same == set(frozen.split())


def test_a_head_on_features_is_the_head_of_the_frozen_network(trained, tmp_path):
    flags = (f"--from_run={trained}/lenet", *NEW, "--augment=")
    through = train(transfer, tmp_path / "through", *flags, "--head_only")
    on_top = train(transfer, tmp_path / "on_top", *flags, f"--bottleneck={tmp_path}/kept")
    assert through["test/loss"] == pytest.approx(on_top["test/loss"], rel=1e-4)
    assert through["test/accuracy"] == on_top["test/accuracy"]
    assert through["parameters"] == on_top["parameters"] == 255
    one, other = (leaves(load(tmp_path / run)[1]) for run in ("through", "on_top"))
    for path, x in one.items():
        np.testing.assert_allclose(x, other[path], rtol=1e-4, atol=1e-6, err_msg=path)
    assert {file.name for file in (tmp_path / "kept").iterdir()} == {"train.npz", "test.npz"}
    before = (tmp_path / "kept/train.npz").stat().st_mtime_ns
    train(transfer, tmp_path / "again", *flags, f"--bottleneck={tmp_path}/kept")
    assert (tmp_path / "kept/train.npz").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"kept/train\.npz are of another data$"):
        train(transfer, tmp_path / "other", *flags, "--seed=1", f"--bottleneck={tmp_path}/kept")


def test_a_run_that_froze_layers_goes_on_and_predicts(trained, tmp_path):
    flags = (f"--from_run={trained}/resnet", *NEW, "--freeze_up_to=layer2", "--ema_decay=0.9")
    first = ("--schedule=constant", "--eval_every=2", "--checkpoint_every=2")
    whole = train(transfer, tmp_path / "whole", *flags, *first)
    (tmp_path / "half").mkdir()
    config, _ = cli.parse(transfer.Config, [*flags, *first, f"--workdir={tmp_path}/half"])
    (tmp_path / "half/flags.txt").write_text(cli.to_flags(config))
    (tmp_path / "half/checkpoints").mkdir()
    (tmp_path / "whole/checkpoints/2").rename(tmp_path / "half/checkpoints/2")
    resumed = training.train(config, transfer.build)
    assert resumed is not None
    assert resumed["test/ema_loss"] == whole["test/ema_loss"]
    classify, class_names = predict.load_run(tmp_path / "whole")
    assert class_names == ["7", "3", "5"]
    example = data.load("digits").splits["test"][0]
    (tmp_path / "digit.png").write_bytes(example["image"])
    _, variables = load(tmp_path / "whole")
    model = models.create("resnet20_cifar", num_classes=3, width=4, norm_epsilon=0.01)
    with Image.open(tmp_path / "digit.png") as picture:
        pixels = np.asarray(picture)[None, :, :, None] / 255
    logits = model.apply(variables, (pixels - 0.3) / 0.5, train=False)
    expected = np.asarray(jax.nn.softmax(logits)[0])
    np.testing.assert_allclose(classify(str(tmp_path / "digit.png")), expected, rtol=1e-4)


def test_a_run_starts_from_published_weights(tmp_path):
    model = models.create("resnet18", num_classes=4)
    images = jnp.zeros((1, 32, 32, 3))
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(1))
    pretrained.save(tmp_path / "w.safetensors", pretrained.to_torch("resnet18", variables))
    (tmp_path / "labels").write_text("cat\n3\ndog\n7\n")
    weights = (f"--from_weights={tmp_path}/w.safetensors", "--image_size=32", *NEW)
    config = parse(*weights, "--model=resnet18", f"--from_labels={tmp_path}/labels")
    assert config.channels == 3
    assert config.crop_share == 224 / 256
    assert config.mean == (0.485, 0.456, 0.406)
    params = started(config).params
    np.testing.assert_array_equal(params["conv1"]["kernel"], variables["params"]["conv1"]["kernel"])
    old, new = variables["params"]["fc"]["kernel"], params["fc"]["kernel"]
    np.testing.assert_array_equal(new[:, :2], old[:, [3, 1]])
    with pytest.raises(InputError, match=r"w\.safetensors.* do not fit resnet34: \d+ missing"):
        started(parse(*weights, "--model=resnet34"))
    (tmp_path / "labels").write_text("cat\n")
    with pytest.raises(InputError, match="labels: it must be of 4 lines, a class each"):
        started(dataclasses.replace(config))


def test_mistakes_are_named_before_training(trained, tmp_path):
    start = f"--from_run={trained}/lenet"

    def refused(match, *flags):
        with pytest.raises(InputError, match=match) as refusal:
            train(transfer, tmp_path / "run", *flags)
        assert "\n" not in str(refusal.value)

    refused("give --from_run=WORKDIR, or --from_weights=FILE and its --model=NAME", *NEW)
    refused("no run in nowhere", "--from_run=nowhere")
    refused("--from_run and --from_weights say where", start, "--from_weights=a.npz")
    refused("--freeze and --head_only say what", start, "--freeze=c1", "--head_only")
    refused("pattern 'c9' matches nothing; the layers are c1, c3", start, *NEW, "--freeze=c9")
    refused("'.*' freezes everything; leave some of c1, c3", start, *NEW, "--freeze=.*")
    refused("pattern 'c9' matches nothing; the layers are", start, *NEW, "--freeze_up_to=c9")
    refused("--layer_decay=0.0: it must be more than 0", start, "--layer_decay=0")
    refused("--unfreeze_every=0: it must be at least 1", start, "--unfreeze_every=0")
    both = ("--unfreeze_every=2", "--clip_global_norm=1")
    refused("--clip_global_norm=1.0: it must be left out with", start, *both)
    refused("--stages=c1: it must be of --layer_decay", start, "--stages=c1")
    refused("--augment=flip: it must be empty with", start, "--bottleneck=b", "--augment=flip")
    refused("--from_labels=a: it must be given with --from_weights", start, "--from_labels=a")
    refused(
        "the weights are not this network's: params/bn1/", start, *NEW, "--model=resnet20_cifar"
    )
    refused(r"a\.npz: there is no such file", "--from_weights=a.npz", "--model=resnet18", *NEW)
    refused("no published weights for 'lenet5'", "--from_weights=a.npz", "--model=lenet5")


def test_the_study_tables_its_runs_and_trains_none_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "prepare_jax", lambda config: None)
    flags = [f"--workdir={tmp_path}", "--seeds=2", "--per_class=5,6", "--steps=3"]
    flags += ["--pretraining_epochs=1"]
    transfer_study.run(flags)
    record = json.loads((tmp_path / "table.json").read_text())["test/accuracy"]
    assert list(record) == ["scratch", "head only", "top layers", "all layers"]
    lines = (tmp_path / "table.md").read_text().splitlines()
    for way, line in zip(record, lines[-4:], strict=True):
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert name == way
        for count, cell in zip((5, 6), cells, strict=True):
            folders = [
                tmp_path / f"{count}_per_class" / way.replace(" ", "_") / f"seed{seed}"
                for seed in (0, 1)
            ]
            summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
            accuracies = [summary["test/accuracy"] for summary in summaries]
            assert record[way][str(count)] == accuracies
            assert {summary["examples"]["train"] for summary in summaries} == {5 * count}
            spread = abs(accuracies[0] - accuracies[1]) / np.sqrt(2)
            assert cell == f"{sum(accuracies) / 2:.3f} ± {spread:.3f}"
    with Image.open(tmp_path / "transfer.png") as picture:
        assert picture.size[0] > 400
    capsys.readouterr()
    monkeypatch.setattr(training, "train", None)  # so that it cannot be called
    (tmp_path / "table.md").unlink()
    transfer_study.run(flags)
    assert (tmp_path / "table.md").read_text().splitlines() == lines
    with pytest.raises(InputError, match="holds a run with --steps=3, not 4"):
        transfer_study.run([*flags, "--steps=4"])
    with pytest.raises(InputError, match="--per_class=4: it must be at least 5"):
        transfer_study.run(["--per_class=4"])
    with pytest.raises(InputError, match="'more' is no flag"):
        transfer_study.run(["more"])
