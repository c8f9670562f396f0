"""Transfer learning: what is frozen stays bit for bit, what is not trains as if it were alone."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import InputError, bottleneck, cost, data, losses, models, parallel, task, transfer
from jaxdl.checkpoint import Checkpoints, load

KEY = jax.random.key(3)
HPARAMS = {"learning_rate": jnp.float32(0.1), "label_smoothing": jnp.float32(0.0)}
SHAPE = (6, 6, 1)


class Net(nn.Module):
    """Three stages and a head; `fixed` norms were built to use their running averages."""

    num_classes: int = 3
    fixed: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x, *, train):
        def norm(name):
            fixed = name in self.fixed or not train
            return nn.BatchNorm(fixed, momentum=0.9, name=name)

        x = nn.relu(norm("bn1")(nn.Conv(4, (3, 3), use_bias=False, name="conv1")(x)))
        for name in ("layer1_0", "layer1_1"):
            x = nn.relu(nn.Conv(4, (3, 3), name=name)(x))
        x = nn.relu(norm("bn2")(nn.Conv(5, (3, 3), use_bias=False, name="layer2_0")(x)))
        x = x.mean((1, 2))
        self.sow("intermediates", "features", x)
        return nn.Dense(self.num_classes, name="fc")(x)


def normalize(images):
    return images.astype(jnp.float32) / 255 - 0.5


def parts(**fields):
    return losses.classification(Net(**fields), SHAPE, normalize)


NET = transfer.outline(Net, SHAPE)


def adamw(hparams):
    return optax.adamw(hparams["learning_rate"], weight_decay=0.1)


def momentum(hparams):
    return optax.sgd(hparams["learning_rate"], 0.9)


def batches(count, size=8, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        label = rng.integers(0, 3, size).astype(np.int32)
        image = rng.integers(0, 90, (size, *SHAPE)) + 60 * label[:, None, None, None]
        yield {
            "image": image.astype(np.uint8),
            "label": label,
            "mask": np.ones(size, np.float32),
        }


BATCH = next(batches(1))


compiled = functools.cache(jax.jit)


def run(problem, count=3, state=None):
    """The states before the first step and after each."""
    step = compiled(problem.train)
    states = [problem.init(KEY, HPARAMS) if state is None else state]
    start = int(states[0].step)
    for batch in itertools.islice(batches(start + count), start, None):
        states.append(step(states[-1], batch)[0])
    return states


def flat(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def moved(before, after):
    """The layers of which something changed, in params and in batch statistics."""
    pairs = flat(before), flat(after)
    assert pairs[0].keys() == pairs[1].keys()
    return {path.split("/")[0] for path, x in pairs[0].items() if (x != pairs[1][path]).any()}


# Outlines and patterns.


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("conv1|layer1", "conv1/kernel", True),
        ("conv1|layer1", "layer1_0/conv2/kernel", True),
        ("conv1|layer1", "layer2_0/conv1/kernel", False),
        ("conv1", "conv10/kernel", False),
        ("layer1_0", "layer1_01/conv1/kernel", False),
        ("layer1_0/conv1", "layer1_0/conv1/kernel", True),
        ("layer1_0/conv1", "layer1_0/conv2/kernel", False),
        (".*/bias", "fc/bias", True),
        (".*/bias", "fc/kernel", False),
        ("layer[12]", "layer2_3", True),
    ],
)
def test_patterns(pattern, path, matches):
    assert transfer.matches(pattern, path) is matches


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def test_outline():
    assert NET.layers == ("conv1", "bn1", "layer1_0", "layer1_1", "layer2_0", "bn2", "fc")
    assert NET.head == {"fc/kernel": 1, "fc/bias": 0}
    stages = [[x for x in NET.layers if transfer.matches(s, x)] for s in NET.stages]
    assert stages == [["conv1", "bn1"], ["layer1_0", "layer1_1"], ["layer2_0", "bn2"], ["fc"]]
    up_to = NET.up_to("layer1")
    assert [x for x in NET.layers if transfer.matches(up_to, x)] == list(NET.layers[:4])
    assert NET.without(up_to).layers == ("layer2_0", "bn2", "fc")
    assert NET.without(NET.all_but_head).paths == ("fc/kernel", "fc/bias")
    for name in ("layer9", "layer1_0/kernel"):  # within a layer there is no order
        with pytest.raises(InputError, match=f"'{name}' matches nothing; the layers are conv1, b"):
            NET.up_to(name)


@pytest.mark.parametrize(
    ("name", "size", "head", "num_stages"),
    [
        ("resnet20_cifar", 16, ["fc"], 5),
        slow("resnet18_v2", 32, ["fc"], 6),
        slow("vgg11_bn", 32, ["fc8"], 8),
        slow("densenet40_bc_cifar", 16, ["classifier"], 7),
        slow("googlenet", 224, ["fc"], 13),
        slow("inception_v3", 299, ["AuxLogits/fc", "fc"], 17),
        ("nin_cifar", 32, ["cccp6"], 9),
        ("lenet5", 32, ["output"], 5),
    ],
)
def test_outlines_of_networks(name, size, head, num_stages):
    options = {"aux_logits": True} if name == "inception_v3" else {}
    build = lambda n: models.create(name, num_classes=n, **options)
    net = transfer.outline(build, (size, size, 3))
    assert sorted({path.rpartition("/")[0] for path in net.head}) == head
    assert len(net.stages) == num_stages
    for path in net.paths:  # each is of just one stage, and those of the heads of the last
        (stage,) = [i for i, stage in enumerate(net.stages) if transfer.matches(stage, path)]
        assert stage == num_stages - 1 or path not in net.head


def test_outlines_of_names_that_continue_one_another():
    """And with an auxiliary head, which belongs to the highest stage and to no lower part."""
    paths = ["repeat_0", "repeat_1", "aux/conv", "aux/fc", "repeat_1_0", "norm", "fc"]
    paths = tuple(f"{path}/{'scale' if path == 'norm' else 'kernel'}" for path in paths)
    net = transfer.Outline(paths, {"aux/fc/kernel": 1, "fc/kernel": 1})
    matched = [[i for i, s in enumerate(net.stages) if transfer.matches(s, p)] for p in paths]
    assert matched == [[0], [0], [2], [2], [1], [1], [2]]
    low, high = net.up_to("repeat_1(?=/|$)"), net.up_to("repeat_1")
    assert [transfer.matches(low, path) for path in paths] == [True] * 2 + [False] * 5
    assert [transfer.matches(high, path) for path in paths] == [1, 1, 0, 0, 1, 0, 0]
    assert [p for p in paths if not transfer.matches(net.all_but_head, p)] == list(net.head)


def test_a_network_without_a_head():
    with pytest.raises(InputError, match="the network has no head"):
        _ = transfer.Outline(("f6/kernel",), {}).all_but_head


# Starting points.


def variables_of(init, key=KEY):
    params, extra = init(key)
    return {"params": params, **extra}


def test_replaced_heads_keep_the_classes_both_know():
    old = variables_of(parts(num_classes=4)[0])
    fresh = variables_of(parts(num_classes=3)[0], jax.random.key(9))
    made = transfer.replace_head(old, fresh, NET.head, "abcd", "xdb")
    np.testing.assert_array_equal(
        made["params"]["conv1"]["kernel"], old["params"]["conv1"]["kernel"]
    )
    np.testing.assert_array_equal(
        made["batch_stats"]["bn1"]["mean"], old["batch_stats"]["bn1"]["mean"]
    )
    kernel = made["params"]["fc"]["kernel"]
    np.testing.assert_array_equal(kernel[:, 0], fresh["params"]["fc"]["kernel"][:, 0])
    np.testing.assert_array_equal(kernel[:, 1], old["params"]["fc"]["kernel"][:, 3])
    np.testing.assert_array_equal(kernel[:, 2], old["params"]["fc"]["kernel"][:, 1])
    biased = jax.tree.map(lambda x: x, old)
    biased["params"]["fc"]["bias"] = jnp.arange(4.0)
    bias = transfer.replace_head(biased, fresh, NET.head, "abcd", "xdb")["params"]["fc"]["bias"]
    np.testing.assert_array_equal(bias, [0, 3, 1])
    untouched = transfer.replace_head(old, fresh, NET.head)["params"]["fc"]
    np.testing.assert_array_equal(untouched["kernel"], fresh["params"]["fc"]["kernel"])


def test_weights_of_another_network_are_refused_in_one_line():
    old, fresh = variables_of(parts()[0]), variables_of(parts()[0])
    del old["params"]["bn1"]["scale"]
    old["params"]["conv1"]["kernel"] = np.zeros((3, 3, 3, 4))
    old["params"]["mine"] = {"kernel": np.zeros(2)}
    with pytest.raises(InputError) as refused:
        transfer.replace_head(old, fresh, NET.head)
    assert str(refused.value) == (
        "the weights are not this network's: params/bn1/scale is absent there and [4] here; "
        "params/conv1/kernel is [3, 3, 3, 4] there and [3, 3, 1, 4] here; "
        "params/mine/kernel is [2] there and absent here"
    )
    with pytest.raises(InputError, match=r"params/fc/bias is \[3\] there and \[classes\] here"):
        transfer.replace_head(fresh, fresh, NET.head, "ab", "abc")
    others = variables_of(
        lambda key: (dict(parts()[0](key)[0], fc={"kernel": np.zeros((9, 3))}), {})
    )
    with pytest.raises(InputError, match=r"fc/kernel is \[9, classes\] there and \[5, classes\]"):
        transfer.replace_head(others | {"batch_stats": fresh["batch_stats"]}, fresh, NET.head)


@pytest.mark.slow
def test_training_starts_from_a_saved_run(tmp_path):
    """What was frozen in it is back in its place."""
    init, loss = parts()
    problem = task.supervised(*transfer.freeze(init, loss, "conv1|bn1"), adamw)
    state = run(problem)[-1]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    saved = load(tmp_path)
    variables = transfer.merged(saved["params"], saved["extra"])
    begun = transfer.start_from(parts(num_classes=4)[0], variables, NET.head, "012", "0312")
    params, extra = jax.jit(begun)(jax.random.key(8))
    whole = transfer.merged(state.params, state.extra)
    logits = Net().apply(whole, normalize(BATCH["image"]), train=False)
    more = Net(4).apply({"params": params, **extra}, normalize(BATCH["image"]), train=False)
    np.testing.assert_array_equal(more[:, [0, 2, 3]], logits)


# Freezing.


@pytest.mark.parametrize(
    ("pattern", "frozen"),
    [
        ("conv1|bn1", {"conv1", "bn1"}),
        ("layer1", {"layer1_0", "layer1_1"}),  # in the middle
        (NET.up_to("layer1"), {"conv1", "bn1", "layer1_0", "layer1_1"}),
        (NET.all_but_head, {"conv1", "bn1", "layer1_0", "layer1_1", "layer2_0", "bn2"}),
    ],
)
def test_frozen_layers_do_not_change_in_anything(pattern, frozen):
    problem = task.supervised(*transfer.freeze(*parts(), pattern), adamw)
    first, *_, last = run(problem)
    assert set(last.params) == set(NET.layers) - frozen
    assert {path.split("/")[0] for path in flat(last.extra["frozen"])} == frozen
    assert moved(first.params, last.params) == set(last.params)
    assert moved(first.extra["frozen"], last.extra["frozen"]) == set()
    assert moved(first.extra["batch_stats"], last.extra["batch_stats"]) == {"bn1", "bn2"} - frozen
    of_optimizer = {part for path in flat(last.opt_state) for part in path.split("/")}
    assert not of_optimizer & frozen
    assert set(last.params) <= of_optimizer


def test_frozen_norms_use_their_running_averages():
    """As a network does whose norm was built so, and the other norm is not touched."""
    init, loss = parts()
    problem = task.supervised(*transfer.freeze(init, loss, "conv1|bn1"), momentum)
    reference = task.supervised(*parts(fixed=("bn1",)), momentum)
    state, expected = problem.init(KEY, HPARAMS), reference.init(KEY, HPARAMS)
    stats = {"mean": jnp.linspace(-0.2, 0.2, 4), "var": jnp.linspace(0.5, 2, 4)}
    for some in (state, expected):
        some.extra["batch_stats"]["bn1"] = stats
    grads = flat(compiled(problem.gradient)(state, BATCH))
    all_grads = flat(compiled(reference.gradient)(expected, BATCH))
    assert grads.keys() == {p for p in all_grads if not p.startswith(("conv1", "bn1"))}
    for path, gradient in grads.items():
        np.testing.assert_allclose(gradient, all_grads[path], rtol=1e-6, atol=1e-8)
    after, _ = compiled(problem.train)(state, BATCH)
    expected, _ = compiled(reference.train)(expected, BATCH)
    np.testing.assert_allclose(
        after.extra["batch_stats"]["bn2"]["var"], expected.extra["batch_stats"]["bn2"]["var"], 1e-6
    )
    # Naming a norm's scale and bias alone leaves its statistics to move.
    affine = task.supervised(*transfer.freeze(init, loss, "bn1/(scale|bias)"), momentum)
    first, second = run(affine, 1)
    assert moved(first.extra["batch_stats"], second.extra["batch_stats"]) == {"bn1", "bn2"}


def multiply_adds(pattern=None):
    pair = transfer.freeze(*parts(), pattern) if pattern else parts()
    problem = task.supervised(*pair, momentum)
    return cost.cost(problem.train, jax.eval_shape(problem.init, KEY, HPARAMS), BATCH).multiply_adds


def test_nothing_is_differentiated_below_the_lowest_trained_layer():
    rows = {row.path: row.multiply_adds * 8 for row in cost.layers(Net(), SHAPE)}
    forward = sum(rows.values())
    # Each layer costs as much again for the gradient of its kernel, and all above the lowest
    # trained one as much again for that of their inputs.
    assert multiply_adds() == 3 * forward - rows["conv1"]
    assert multiply_adds(NET.all_but_head) == forward + rows["fc"]
    assert multiply_adds(NET.up_to("layer1")) == forward + rows["layer2_0"] + 2 * rows["fc"]
    assert multiply_adds("layer1_0") == 3 * forward - rows["conv1"] - rows["layer1_0"]
    stages = [multiply_adds(NET.up_to(name)) for name in ("conv1", "layer1_0", "layer1", "layer2")]
    assert [multiply_adds(), *stages] == sorted([multiply_adds(), *stages], reverse=True)
    assert len(set(stages)) == 4


@pytest.mark.slow
def test_frozen_training_is_the_same_on_eight_devices_and_in_parts():
    whole = run(task.supervised(*transfer.freeze(*parts(), "conv1|bn1|layer2|bn2"), momentum))[-1]
    pair = transfer.freeze(*parts(), "conv1|bn1|layer2|bn2")
    parted = run(task.supervised(*pair, momentum, accumulate=2))[-1]  # no norm is left to differ
    spread = parallel.jit(task.supervised(*pair, momentum), parallel.data_mesh())
    state = spread.init(KEY, HPARAMS)
    for batch in batches(3):
        state, _ = spread.train(state, batch)
    for other in (parted, state):
        for path, x in flat(other.params).items():
            np.testing.assert_allclose(x, flat(whole.params)[path], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("layer7", "'layer7' matches nothing; the layers are conv1, bn1, layer1_0"),
        (".*", "'.*' freezes everything; leave some of conv1, bn1, layer1_0"),
        ("conv(", r"'conv\(' is no regular expression \(missing \)"),
    ],
)
def test_unfit_patterns_are_named(pattern, message):
    problem = task.supervised(*transfer.freeze(*parts(), pattern), momentum)
    with pytest.raises(InputError, match=message):
        problem.init(KEY, HPARAMS)


# Rates of layers.


def test_layer_rates_are_learning_rates_of_their_own():
    rates = [("conv1", 0.0), ("layer1_0", 0.5), ("layer1", 0.25)]
    rated = task.supervised(*parts(), transfer.layer_rates(adamw, rates))
    (state,) = run(rated, 0)
    grads, params = flat(compiled(rated.gradient)(state, BATCH)), flat(state.params)
    after = flat(compiled(rated.train)(state, BATCH)[0].params)
    for path, gradient in grads.items():
        layer = path.split("/")[0]
        factor = {"conv1": 0.0, "layer1_0": 0.5, "layer1_1": 0.25}.get(layer, 1.0)
        # Adam's first step, by hand, and its decoupled decay.
        update = gradient / (np.abs(gradient) + 1e-8) + 0.1 * params[path]
        expected = params[path] - factor * 0.1 * update
        np.testing.assert_allclose(after[path], expected, rtol=1e-5, atol=1e-6)
    wrong = task.supervised(*parts(), transfer.layer_rates(adamw, [("layer7", 0.5)]))
    with pytest.raises(InputError, match="'layer7' matches nothing"):
        wrong.init(KEY, HPARAMS)


def test_discriminative_rates_fall_from_the_head_down():
    assert transfer.discriminative(["low", "middle", "top"], 0.5) == [
        ("top", 1.0),
        ("middle", 0.5),
        ("low", 0.25),
    ]


# Gradual unfreezing.


def constant(hparams, step):
    return dict(hparams)


@functools.cache
def gradually(optimizer, every=2, stages=NET.stages):
    init, loss = parts()
    loss, optimizer, schedule = transfer.gradual(loss, optimizer, constant, stages, every)
    return task.supervised(init, loss, optimizer, schedule)


STAGES = ({"fc"}, {"layer2_0", "bn2"}, {"layer1_0", "layer1_1"}, {"conv1", "bn1"})


def test_a_stage_holds_still_until_its_turn():
    problem = gradually(adamw)
    states = run(problem, 9)
    for step in range(9):
        before, after = states[step], states[step + 1]
        thawed = set().union(*STAGES[: 1 + step // 2])
        assert moved(before.params, after.params) == thawed
        assert moved(before.extra["batch_stats"], after.extra["batch_stats"]) == (
            thawed & {"bn1", "bn2"}
        )
        for depth in range(4):
            was, now = (
                s.opt_state.inner_states[str(depth)].inner_state.inner_state
                for s in (before, after)
            )
            same = all((flat(was)[path] == flat(now)[path]).all() for path in flat(was))
            assert same == (depth > step // 2)
    metrics = compiled(problem.train)(states[5], BATCH)[1]
    assert float(metrics["thawed"].value) == 3


@pytest.mark.slow
def test_gradual_unfreezing_equals_trainings_that_follow_one_another():
    """The head alone; then the stage below it joins, with no momentum yet."""
    states = run(gradually(momentum), 4)
    head = task.supervised(*transfer.freeze(*parts(), NET.all_but_head), momentum)
    first = run(head, 2)[-1]
    two = task.supervised(*transfer.freeze(*parts(), NET.up_to("layer1")), momentum)
    joined = two.init(KEY, HPARAMS)
    joined = joined._replace(
        step=first.step, extra=joined.extra | {"batch_stats": first.extra["batch_stats"]}
    )
    joined.params["fc"] = first.params["fc"]
    joined.opt_state[0].trace["fc"] = first.opt_state[0].trace["fc"]
    last = run(two, 2, joined)[-1]
    gradual_at = lambda state: transfer.merged(state.params, state.extra)
    for expected, got in ((first, states[2]), (last, states[4])):
        expected = flat(transfer.merged(expected.params, expected.extra))
        for path, x in flat(gradual_at(got)).items():
            np.testing.assert_allclose(x, expected[path], rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.slow
def test_a_thawed_stage_counts_its_own_steps():
    """Adam's first step is the sign of the gradient, whenever it comes."""
    rate = lambda hparams: optax.adam(hparams["learning_rate"])
    problem = gradually(rate)
    *_, before = run(problem, 2)
    after, _ = compiled(problem.train)(before, BATCH)
    grads = flat(compiled(problem.gradient)(before, BATCH))
    for path in ("layer2_0/kernel", "bn2/scale"):
        gradient = grads[path]
        step = -0.1 * gradient / (np.abs(gradient) + 1e-8)
        change = flat(after.params)[path] - flat(before.params)[path]
        np.testing.assert_allclose(change, step, rtol=1e-4, atol=1e-6)
    assert not grads["conv1/kernel"].any()


@pytest.mark.slow
def test_gradual_states_are_saved_and_restored(tmp_path):
    problem = parallel.jit(gradually(adamw), parallel.data_mesh())
    state = problem.init(KEY, HPARAMS)
    for batch in batches(3):
        state, _ = problem.train(state, batch)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(problem.init(KEY, HPARAMS))
    assert moved(state.opt_state, restored.opt_state) == set()
    assert (
        moved(problem.train(state, BATCH)[0].params, problem.train(restored, BATCH)[0].params)
        == set()
    )


def test_the_first_stage_that_matches_counts():
    stages = ("conv1|bn.*", "layer1", "layer.*", "fc")
    state = gradually(momentum, stages=stages).init(KEY, HPARAMS)
    of_stage = {
        depth: {path.split("/")[-2] for path in flat(inner) if "trace" in path}
        for depth, inner in state.opt_state.inner_states.items()
    }
    low = {"conv1", "bn1", "bn2"}
    assert of_stage == {"0": {"fc"}, "1": {"layer2_0"}, "2": {"layer1_0", "layer1_1"}, "3": low}


def test_unfit_stages_are_named():
    with pytest.raises(InputError, match="'layer7' matches nothing"):
        gradually(momentum, stages=("layer7", *NET.stages)).init(KEY, HPARAMS)
    with pytest.raises(InputError, match="no stage matches conv1/kernel"):
        gradually(momentum, stages=NET.stages[1:]).init(KEY, HPARAMS)


# Bottleneck features.


def dataset(seed=0, count=20):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    images = (rng.integers(0, 90, (count, *SHAPE)) + 60 * labels[:, None, None, None]).astype(
        np.uint8
    )
    return data.from_arrays(images, labels, test=(images[:7].copy(), labels[:7].copy()))


def pipeline(images=None, **options):
    return data.Pipeline(images or dataset(), data.Preprocess(6, 1), 8, seed=5, **options)


def trained():
    return variables_of(parts()[0])


def features(folder, variables=None, batches=None, scale=1.0, **options):
    return bottleneck.features(
        Net(),
        NET,
        variables or trained(),
        batches or pipeline(),
        lambda images: scale * normalize(images),
        folder,
        **options,
    )


def test_features_are_what_goes_into_the_head(tmp_path):
    images, variables = dataset(), trained()
    over_eight = parallel.batch_sharding(parallel.data_mesh())
    found = features(tmp_path, variables, pipeline(sharding=over_eight))
    for split, count in (("train", 20), ("test", 7)):
        values, labels = found[split]
        np.testing.assert_array_equal(labels, data.labels(images.splits[split]))
        pixels = np.stack([images.splits[split][i]["image"] for i in range(count)])
        logits = Net().apply(variables, normalize(pixels), train=False)
        head = variables["params"]["fc"]
        np.testing.assert_allclose(
            values @ np.asarray(head["kernel"]) + np.asarray(head["bias"]),
            logits,
            rtol=1e-5,
            atol=1e-6,
        )


@pytest.mark.slow
def test_a_cache_is_used_only_for_what_it_was_made_of(tmp_path, capsys):
    found = features(tmp_path)
    marked = {}
    for split in ("train", "test"):  # a mark in the file shows whether it is read
        with np.load(tmp_path / f"{split}.npz") as file:
            marked[split] = dict(file)
        marked[split]["values"] = marked[split]["values"] + 1

    def mark():
        for split, arrays in marked.items():
            np.savez(tmp_path / f"{split}.npz", **arrays)

    mark()
    np.testing.assert_array_equal(features(tmp_path)["train"].values, found["train"].values + 1)
    another_head = trained()
    another_head["params"]["fc"]["kernel"] = jnp.ones((5, 3))
    np.testing.assert_array_equal(
        features(tmp_path, another_head)["test"].values, found["test"].values + 1
    )
    assert capsys.readouterr().err == ""

    weights = trained()
    weights["batch_stats"]["bn1"]["mean"] = weights["batch_stats"]["bn1"]["mean"].at[0].add(1e-6)
    one_pixel, one_label = pipeline(), pipeline()
    one_pixel.dataset.splits["train"].images[3, 2, 2, 0] ^= 1
    one_label.dataset.splits["train"].labels[3] ^= 1
    other_resize = data.Pipeline(dataset(), data.Preprocess(6, 1, crop_share=0.9), 8, seed=5)
    for changes, part in (
        ({"variables": weights}, "weights"),
        ({"scale": 2.0}, "program"),
        ({"batches": one_pixel}, "data"),
        ({"batches": one_label}, "data"),
        ({"batches": other_resize}, "data"),
        ({"variables": weights, "scale": 2.0}, "program and weights"),
    ):
        mark()
        with pytest.raises(
            InputError, match=f"train.npz are of another {part}; take another folder$"
        ):
            features(tmp_path, on_unfit="fail", **changes)
        anew = features(tmp_path, **changes)["train"]
        assert np.abs(anew.values - marked["train"]["values"]).max() > 0.5
        told = capsys.readouterr().err.splitlines()
        assert (
            told[0]
            == f"the features in {tmp_path}/train.npz are of another {part}; computing it anew"
        )
        only_train = changes.get("batches") in (one_pixel, one_label)
        assert len(told) == (1 if only_train else 2)


@pytest.mark.slow
def test_damaged_caches_are_not_used(tmp_path, capsys):
    found = features(tmp_path)
    path = tmp_path / "train.npz"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(found["train"].values.tobytes()[:16]) + 3] ^= 1
    for damaged in (whole[: len(whole) // 2], bytes(flipped), b"", b"no zip"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"train\.npz are damaged"):
            features(tmp_path, on_unfit="fail")
        np.testing.assert_array_equal(features(tmp_path)["train"].values, found["train"].values)
        assert "are damaged" in capsys.readouterr().err
    assert path.read_bytes() == whole
    assert {file.name for file in tmp_path.iterdir()} == {"train.npz", "test.npz"}


@pytest.mark.slow
def test_a_head_on_features_trains_as_in_the_frozen_network(tmp_path):
    init, loss = parts()
    started = transfer.start_from(init, trained(), NET.head)
    through = task.supervised(*transfer.freeze(started, loss, NET.all_but_head), adamw)
    found = features(tmp_path, trained())
    on_top = task.supervised(*bottleneck.head(started, NET, 5), adamw)
    sharding = parallel.batch_sharding(parallel.data_mesh())
    sources = pipeline(), bottleneck.Batches(found, 8, 5, sharding)
    states, metrics = [], []
    for problem, source in zip((through, on_top), sources, strict=True):
        state, step = problem.init(KEY, HPARAMS), compiled(problem.train)
        stream = source.train(2)
        for _ in range(6):
            state, _ = step(state, next(stream))
        measure = compiled(problem.eval)
        totals = [measure(state, batch)["accuracy"] for batch in source.evaluate("train")]
        metrics.append([np.asarray(part) for total in totals for part in total])
        states.append(state)
    np.testing.assert_allclose(*metrics)
    assert sum(metrics[0][1::2]) == 20
    one, other = (flat((state.params, state.extra, state.opt_state)) for state in states)
    assert one.keys() == other.keys()
    for path, x in one.items():
        np.testing.assert_allclose(x, other[path], rtol=1e-4, atol=1e-5, err_msg=path)
    assert moved(through.init(KEY, HPARAMS).params, states[1].params) == {"fc"}
    for a, b in zip(sources[0].evaluate("train"), sources[1].evaluate("train"), strict=True):
        np.testing.assert_array_equal(a["label"], b["label"])
        np.testing.assert_array_equal(a["mask"], b["mask"])
        assert not b["image"][b["mask"] == 0].any()


def test_unfit_networks_have_no_features(tmp_path):
    class Silent(nn.Module):
        num_classes: int

        @nn.compact
        def __call__(self, x, *, train):
            if self.num_classes == 5:
                self.sow("intermediates", "features", x)
            return nn.Dense(self.num_classes, name="fc")(x.mean((1, 2)))

    def compute(num_classes):
        model, net = Silent(num_classes), transfer.outline(Silent, SHAPE)
        variables = model.init(KEY, jnp.zeros((1, *SHAPE)), train=False)
        bottleneck.features(
            model, net, {"params": variables["params"]}, pipeline(), normalize, tmp_path
        )

    with pytest.raises(InputError, match="Silent sows no features; expected"):
        compute(3)
    with pytest.raises(InputError, match=r"Silent sows features \[1, 6, 6, 1\]; expected"):
        compute(5)
    with pytest.raises(InputError, match=r"\[9, classes\]; the network has fc \[5, 3\]"):
        bottleneck.head(parts()[0], NET, 9)
    nin = lambda n: models.create("nin_cifar", num_classes=n)
    init, _ = losses.classification(nin(3), (32, 32, 3), normalize)
    with pytest.raises(InputError, match=r"the network has cccp6 \[1, 1, 192, 3\]"):
        bottleneck.head(init, transfer.outline(nin, (32, 32, 3)), 192)
