"""Record classic.npz: what AlexNet, VGG, NIN and DenseNet compute in torch.

The weights are those of weights.py, so that only what comes out is stored.
Networks that torchvision has are torchvision's. The others are written here from their papers,
layer by layer and under our names, in nothing but torch's own layers.

Run in an environment that has torch; the tests never import this file:

    python tests/golden/record_classic.py

Recorded with torch 2.13.0, torchvision 0.28.0, on a CPU.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from weights import images, weight

# torchvision does not import where its compiled operators do not load, as beside another build of
# torch, unless these two names exist. No classifier uses them.
operators = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        operators.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")

import torchvision  # noqa: E402 (it needs those operators)
from torchvision.models import densenet, vgg  # noqa: E402 (it needs those operators)

CLASSES = 10

TORCHVISION = (
    *("alexnet", "vgg11", "vgg13", "vgg16", "vgg19"),
    *("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
)


def narrow_vgg(column: str, batch_norm: bool) -> nn.Module:
    """Return torchvision's VGG with a quarter of the features in every layer."""
    layers = [v if v == "M" else v // 4 for v in vgg.cfgs[column]]
    model = vgg.VGG(vgg.make_layers(layers, batch_norm), num_classes=CLASSES, dropout=0.0)
    model.classifier[0] = nn.Linear(128 * 7 * 7, 1024)
    model.classifier[3] = nn.Linear(1024, 1024)
    model.classifier[6] = nn.Linear(1024, CLASSES)
    return model


def narrow_densenet() -> nn.Module:
    """Return torchvision's DenseNet with fewer and narrower layers."""
    return densenet.DenseNet(8, (2, 3, 3, 2), 16, num_classes=CLASSES)


def densenet100_bc_cifar() -> nn.Module:
    """Return torchvision's DenseNet with the CIFAR stem: one 3x3 convolution."""
    model = densenet.DenseNet(12, (16, 16, 16), 24, num_classes=CLASSES)
    model.features.conv0 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
    del model.features.norm0, model.features.relu0, model.features.pool0
    return model


def alexnet_paper() -> nn.Module:
    """Return the network of 2012 with a quarter of its features."""

    def norm():
        return nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0)

    model = nn.Sequential()
    for name, layer in (
        ("conv1", nn.Conv2d(3, 24, 11, stride=4)),
        ("relu1", nn.ReLU()),
        ("norm1", norm()),
        ("pool1", nn.MaxPool2d(3, stride=2)),
        ("conv2", nn.Conv2d(24, 64, 5, padding=2, groups=2)),
        ("relu2", nn.ReLU()),
        ("norm2", norm()),
        ("pool2", nn.MaxPool2d(3, stride=2)),
        ("conv3", nn.Conv2d(64, 96, 3, padding=1)),
        ("relu3", nn.ReLU()),
        ("conv4", nn.Conv2d(96, 96, 3, padding=1, groups=2)),
        ("relu4", nn.ReLU()),
        ("conv5", nn.Conv2d(96, 64, 3, padding=1, groups=2)),
        ("relu5", nn.ReLU()),
        ("pool5", nn.MaxPool2d(3, stride=2)),
        ("mean", nn.AdaptiveAvgPool2d(6)),
        ("flatten", nn.Flatten()),
        ("fc6", nn.Linear(64 * 6 * 6, 1024)),
        ("relu6", nn.ReLU()),
        ("fc7", nn.Linear(1024, 1024)),
        ("relu7", nn.ReLU()),
        ("fc8", nn.Linear(1024, CLASSES)),
    ):
        model.add_module(name, layer)
    return model


def vgg_paper(stages: Any) -> nn.Module:
    """Return a VGG with a quarter of the features, its stages given as windows and "LRN"."""
    model, channels = nn.Sequential(), 3
    for s, (features, layers) in enumerate(zip((16, 32, 64, 128, 128), stages, strict=True), 1):
        for i, layer in enumerate(layers, 1):
            if layer == "LRN":
                model.add_module("norm", nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0))
            else:
                conv = nn.Conv2d(channels, features, layer, padding="same")
                model.add_module(f"conv{s}_{i}", conv)
                model.add_module(f"relu{s}_{i}", nn.ReLU())
                channels = features
        model.add_module(f"pool{s}", nn.MaxPool2d(2))
    for name, layer in (
        ("mean", nn.AdaptiveAvgPool2d(7)),
        ("flatten", nn.Flatten()),
        ("fc6", nn.Linear(128 * 7 * 7, 1024)),
        ("relu6", nn.ReLU()),
        ("fc7", nn.Linear(1024, 1024)),
        ("relu7", nn.ReLU()),
        ("fc8", nn.Linear(1024, CLASSES)),
    ):
        model.add_module(name, layer)
    return model


def nin_from(*layers: Any) -> nn.Module:
    """Return a network of these pools and (name, convolution) pairs, and global means."""
    model = nn.Sequential()
    for i, layer in enumerate(layers):
        if isinstance(layer, tuple):
            model.add_module(*layer)
            model.add_module(f"relu{i}", nn.ReLU())
        else:
            model.add_module(f"pool{i}", layer)
    model.add_module("mean", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    return model


def nin() -> nn.Module:
    """Return the authors' ImageNet model in its full width."""
    return nin_from(
        ("conv1", nn.Conv2d(3, 96, 11, stride=4)),
        ("cccp1", nn.Conv2d(96, 96, 1)),
        ("cccp2", nn.Conv2d(96, 96, 1)),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        ("conv2", nn.Conv2d(96, 256, 5, padding=2)),
        ("cccp3", nn.Conv2d(256, 256, 1)),
        ("cccp4", nn.Conv2d(256, 256, 1)),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        ("conv3", nn.Conv2d(256, 384, 3, padding=1)),
        ("cccp5", nn.Conv2d(384, 384, 1)),
        ("cccp6", nn.Conv2d(384, 384, 1)),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        ("conv4", nn.Conv2d(384, 1024, 3, padding=1)),
        ("cccp7", nn.Conv2d(1024, 1024, 1)),
        ("cccp8", nn.Conv2d(1024, CLASSES, 1)),
    )


def nin_cifar() -> nn.Module:
    """Return the authors' CIFAR-10 model in its full width."""
    return nin_from(
        ("conv1", nn.Conv2d(3, 192, 5, padding=2)),
        ("cccp1", nn.Conv2d(192, 160, 1)),
        ("cccp2", nn.Conv2d(160, 96, 1)),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        ("conv2", nn.Conv2d(96, 192, 5, padding=2)),
        ("cccp3", nn.Conv2d(192, 192, 1)),
        ("cccp4", nn.Conv2d(192, 192, 1)),
        nn.AvgPool2d(3, stride=2, ceil_mode=True),
        ("conv3", nn.Conv2d(192, 192, 3, padding=1)),
        ("cccp5", nn.Conv2d(192, 192, 1)),
        ("cccp6", nn.Conv2d(192, CLASSES, 1)),
    )


def load(model: nn.Module) -> nn.Module:
    """Return the model with weights.py's weights, in evaluation mode."""
    state = {
        key: torch.from_numpy(weight(key, tuple(value.shape)))
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    model.load_state_dict(state, strict=False)  # without the counters, which BatchNorm here ignores
    return model.eval()


def nchw(size: int, scale: float) -> torch.Tensor:
    """Return weights.py's images as torch has them."""
    return scale * torch.from_numpy(images(size)).permute(0, 3, 1, 2).contiguous()


def entries(model: nn.Module) -> np.ndarray:
    """Return the sorted keys and shapes of all the model stores but the counters, as text."""
    stored = (
        f"{key} {list(value.shape)}"
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    )
    return np.frombuffer("\n".join(sorted(stored)).encode(), np.uint8)


def operations() -> dict[str, np.ndarray]:
    """Return what torch's own functions make of maps [2, 6, 5, 9], NHWC as ours."""
    x = 100 * torch.from_numpy(weight("maps", (2, 6, 5, 9))).permute(0, 3, 1, 2)
    made = {}
    for size in range(1, 7):
        y = functional.local_response_norm(x, size, alpha=0.01, beta=0.6, k=1.5)
        made[f"local_response_norm/{size}"] = y
    for height, width in ((1, 1), (2, 3), (4, 4), (6, 5), (7, 7)):
        y = functional.adaptive_avg_pool2d(x, (height, width))
        made[f"adaptive_avg_pool/{height}x{width}"] = y
    # Sides of 6 and 5 are where rounding up and down differ, and where they agree.
    made["max_pool"] = functional.max_pool2d(x, 3, stride=2, ceil_mode=True)
    made["avg_pool"] = functional.avg_pool2d(x, 3, stride=2, ceil_mode=True)
    return {name: y.permute(0, 2, 3, 1).numpy() for name, y in made.items()}


def main() -> None:
    """Write classic.npz beside this file."""
    golden: dict[str, Any] = operations()
    for name in TORCHVISION:
        with torch.device("meta"):
            golden[f"{name}/entries"] = entries(getattr(torchvision.models, name)())

    a_lrn = ((3, "LRN"), (3,), (3, 3), (3, 3), (3, 3))
    c = ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1))
    # Response normalization does little to images of unit variance, so its networks see brighter.
    for name, model, sizes, scale in (
        ("alexnet", torchvision.models.alexnet(num_classes=CLASSES), (224, 255), 1),
        ("alexnet_paper", alexnet_paper(), (227, 99), 100),
        ("vgg11", narrow_vgg("A", False), (224, 75), 1),
        ("vgg16_bn", narrow_vgg("D", True), (224, 75), 1),
        ("vgg11_lrn", vgg_paper(a_lrn), (75,), 100),
        ("vgg16_c", vgg_paper(c), (75,), 1),
        ("nin", nin(), (224, 75), 1),
        ("nin_cifar", nin_cifar(), (32, 45), 1),
        ("densenet121", torchvision.models.densenet121(num_classes=CLASSES), (224, 75), 1),
        ("densenet161", torchvision.models.densenet161(num_classes=CLASSES), (64,), 1),
        ("densenet100_bc_cifar", densenet100_bc_cifar(), (32, 45), 1),
    ):
        load(model)
        golden.setdefault(f"{name}/entries", entries(model))
        for size in sizes:
            with torch.no_grad():
                golden[f"{name}/logits/{size}"] = model(nchw(size, scale)).numpy()

    deep_layer = "features.denseblock3.denselayer2.conv2"
    deep_norm = "features.denseblock4.denselayer2.norm2"
    for name, model, size, scale, layers, norms in (
        ("alexnet_paper", alexnet_paper(), 99, 100, ("conv1", "conv4", "fc6"), ()),
        (
            *("vgg16_bn", narrow_vgg("D", True), 75, 1),
            ("features.0", "features.27", "classifier.0"),
            ("features.1", "features.41"),
        ),
        ("nin_cifar", nin_cifar(), 45, 1, ("conv1", "conv2", "cccp5"), ()),
        (
            *("narrow_densenet", narrow_densenet(), 75, 1),
            ("features.conv0", "features.transition2.conv", deep_layer),
            ("features.norm0", deep_norm, "features.norm5"),
        ),
    ):
        # In float64, as the gradients of deep networks in float32 are a percent off.
        load(model).train().double()
        logits = model(nchw(size, scale).double())
        loss = functional.cross_entropy(logits, torch.tensor([3, 7]))
        loss.backward()
        model.float()  # the gradients too
        golden.setdefault(f"{name}/entries", entries(model))
        golden[f"{name}/train/loss"] = loss.detach().float().numpy()
        for key in (f"{layer}.weight" for layer in layers):
            golden[f"{name}/train/grad/{key}"] = model.get_parameter(key).grad.numpy()[:8, :3]
        for norm in norms:
            for stat in ("running_mean", "running_var"):
                value = model.get_buffer(f"{norm}.{stat}").numpy()
                golden[f"{name}/train/{norm}.{stat}"] = value[:64]

    path = Path(__file__).with_name("classic.npz")
    np.savez_compressed(path, **golden)
    print(f"{path}: {len(golden)} arrays, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
