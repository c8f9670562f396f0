"""Record inception.npz: what GoogLeNet and the Inceptions compute in torch.

The weights are those of weights.py, so that only what comes out is stored. Networks that
torchvision or timm has are theirs. GoogLeNet as its paper has it is torchvision's
with the paper's parts put in; Inception v2 is written here from its paper's Figure 5.

Run in an environment that has torch; the tests never import this file:

    python tests/golden/record_inception.py

Recorded with torch 2.13.0, torchvision 0.28.0, timm 1.0.31, on a CPU.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record_resnet import keys, nchw, timm, torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.googlenet import (
    BasicConv2d,
    GoogLeNet,
    Inception,
    InceptionAux,
)
from weights import weight


class PaperConv(nn.Module):
    """A convolution with bias, and a relu; 5x5 where torchvision's third branch has its slip."""

    def __init__(self, inputs: int, outputs: int, **kwargs: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, **kwargs)

    def forward(self, x: Any) -> Any:
        return F.relu(self.conv(x))


class PaperInception(Inception):
    """torchvision's module with 5x5 convolutions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        reduced = self.branch3[1].conv
        inputs, outputs = reduced.in_channels, reduced.out_channels
        self.branch3[1] = PaperConv(inputs, outputs, kernel_size=5, padding=2)


class PaperAux(InceptionAux):
    """torchvision's auxiliary head on averages of 5x5 windows every 3 pixels, which are 4x4."""

    def forward(self, x: Any) -> Any:
        return super().forward(F.avg_pool2d(x, 5, 3))


def googlenet_paper(**kwargs: Any) -> nn.Module:
    """Return the paper's GoogLeNet."""
    blocks = [
        PaperConv,
        partial(PaperInception, conv_block=PaperConv),
        partial(PaperAux, conv_block=PaperConv),
    ]
    model = GoogLeNet(blocks=blocks, **kwargs)
    model.maxpool4 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    for layer in (model.maxpool1, model.conv3):
        layer.register_forward_hook(lambda layer, x, y: F.local_response_norm(y, 5, 1e-4, 0.75, 1))
    return model


# Figure 5: 1x1, 3x3 reduce, 3x3, double 3x3 reduce, double 3x3, pool, its projection. Those with no
# 1x1 have stride 2.
FIGURE_5 = {
    "inception3a": (64, 64, 64, 64, 96, "avg", 32),
    "inception3b": (64, 64, 96, 64, 96, "avg", 64),
    "inception3c": (0, 128, 160, 64, 96, "max", 0),
    "inception4a": (224, 64, 96, 96, 128, "avg", 128),
    "inception4b": (192, 96, 128, 96, 128, "avg", 128),
    "inception4c": (160, 128, 160, 128, 160, "avg", 96),
    "inception4d": (96, 128, 192, 160, 192, "avg", 96),
    "inception4e": (0, 128, 192, 192, 256, "max", 0),
    "inception5a": (352, 192, 320, 160, 224, "avg", 128),
    "inception5b": (352, 192, 320, 192, 224, "max", 128),
}


class InceptionV2(nn.Module):
    """The network of Figure 5."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        conv = BasicConv2d
        self.conv1_depthwise = nn.Conv2d(3, 24, 7, 2, 3, groups=3, bias=False)
        self.conv1 = conv(24, 64, kernel_size=1)
        self.conv2 = conv(64, 64, kernel_size=1)
        self.conv3 = conv(64, 192, kernel_size=3, padding=1)
        inputs = 192
        for name, (n1, r3, n3, r33, n33, _, proj) in FIGURE_5.items():
            stride = 1 if n1 else 2
            module = nn.ModuleDict()
            module["branch2_0"] = conv(inputs, r3, kernel_size=1)
            module["branch2_1"] = conv(r3, n3, kernel_size=3, padding=1, stride=stride)
            module["branch3_0"] = conv(inputs, r33, kernel_size=1)
            module["branch3_1"] = conv(r33, n33, kernel_size=3, padding=1)
            module["branch3_2"] = conv(n33, n33, kernel_size=3, padding=1, stride=stride)
            if n1:
                module["branch1"] = conv(inputs, n1, kernel_size=1)
                module["branch4"] = conv(inputs, proj, kernel_size=1)
            setattr(self, name, module)
            inputs = n1 + n3 + n33 + (proj or inputs)
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(self.conv1(self.conv1_depthwise(x)), 3, 2, 1)
        x = F.max_pool2d(self.conv3(self.conv2(x)), 3, 2, 1)
        for name, (n1, *_, kind, _) in FIGURE_5.items():
            module = getattr(self, name)
            branches = [
                module["branch2_1"](module["branch2_0"](x)),
                module["branch3_2"](module["branch3_1"](module["branch3_0"](x))),
            ]
            if kind == "avg":
                pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            else:
                pooled = F.max_pool2d(x, 3, 1 if n1 else 2, 1)
            if n1:
                branches = [module["branch1"](x), *branches, module["branch4"](pooled)]
            else:
                branches.append(pooled)
            x = torch.cat(branches, 1)
        return self.fc(x.mean((2, 3)))


def load(build: Any) -> Any:
    """Return a model of ten classes with weights.py's weights, in evaluation mode.

    Kernels are multiplied by the root of two, which makes up for what relu takes from the variance:
    without it the biases drown the image in networks as deep as these.
    """
    model = build(num_classes=10)
    state = {}
    for key, value in model.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            gain = np.float32(2**0.5) if value.ndim == 4 else np.float32(1)
            state[key] = torch.from_numpy(gain * weight(key, tuple(value.shape)))
    model.load_state_dict(state, strict=False)  # without the counters, which BatchNorm here ignores
    return model.eval()


WITH_AUX = {"aux_logits": True, "init_weights": False, "dropout": 0.0}
BUILDS: dict[str, Any] = {
    "googlenet": partial(GoogLeNet, dropout_aux=0.0, **WITH_AUX),
    "googlenet_paper": partial(googlenet_paper, dropout_aux=0.0, **WITH_AUX),
    "inception_v2": InceptionV2,
    "inception_v3": partial(torchvision.models.inception_v3, **WITH_AUX),
    "inception_v4": timm.models.inception_v4,
    "inception_resnet_v2": timm.models.inception_resnet_v2,
}
SIZES = {
    **dict.fromkeys(("googlenet", "googlenet_paper", "inception_v2"), (224, 97)),
    **dict.fromkeys(("inception_v3", "inception_v4", "inception_resnet_v2"), (299, 110)),
}
# Name, image size, norms whose statistics and kernels whose gradients are recorded after one step.
MIXED_4B = "inception4b.branch3.1.conv.weight"
TRAINING = (
    (
        "googlenet",
        64,
        ("conv1.bn", "aux2.conv.bn", "inception5b.branch4.1.bn"),
        (MIXED_4B, "aux1.fc1.weight"),
    ),
    ("googlenet_paper", 224, (), (MIXED_4B, "aux1.fc1.weight")),
    (
        "inception_v3",
        110,
        ("Conv2d_1a_3x3.bn", "Mixed_7c.branch_pool.bn"),
        ("Mixed_6c.branch7x7dbl_3.conv.weight",),
    ),
    ("inception_v3", 299, ("AuxLogits.conv0.bn", "AuxLogits.conv1.bn"), ()),
)


def main() -> None:
    """Write inception.npz beside this file."""
    golden: dict[str, Any] = {}
    for name, build in BUILDS.items():
        model = load(build)
        golden[f"{name}/keys"] = keys(model)
        for size in SIZES[name]:
            with torch.no_grad():
                golden[f"{name}/logits/{size}"] = model(nchw(size)).numpy()

    # In float64: a gradient through so many norms over a few values each is off in float32.
    for name, size, bns, kernels in TRAINING:
        model = load(BUILDS[name]).train().double()
        if (name, size) == ("inception_v3", 110):
            model.AuxLogits = None  # it takes no images below 299
        outputs = model(nchw(size).double())._asdict()
        prefix = f"{name}/train/{size}"
        labels = torch.tensor([3, 7])
        losses = {
            head: F.cross_entropy(logits, labels)
            for head, logits in outputs.items()
            if logits is not None
        }
        for head in losses:
            golden[f"{prefix}/{head}"] = outputs[head].detach().float().numpy()
        if kernels:
            aux_loss = sum(loss for head, loss in losses.items() if head != "logits")
            (losses["logits"] + 0.3 * aux_loss).backward()
        model.float()  # the gradients too
        for bn in bns:
            for stat in ("running_mean", "running_var"):
                golden[f"{prefix}/{bn}.{stat}"] = model.get_buffer(f"{bn}.{stat}").numpy()[:64]
        for key in kernels:
            golden[f"{prefix}/grad/{key}"] = model.get_parameter(key).grad.numpy()[:8, :40]

    path = Path(__file__).with_name("inception.npz")
    np.savez_compressed(path, **golden)
    print(f"{path}: {len(golden)} arrays, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
