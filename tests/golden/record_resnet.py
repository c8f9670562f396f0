"""Record resnet.npz: what torchvision's and timm's ResNets compute with weights.py's weights.

Run in an environment that has them; the tests never import this file:

    python tests/golden/record_resnet.py

Recorded with torch 2.13.0, torchvision 0.28.0, timm 1.0.31, on a CPU.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from weights import images, weight

# torchvision does not import where its compiled operators do not load, as beside another build of
# torch, unless these two names exist. No classifier uses them.
operators = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        operators.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")

import timm  # noqa: E402
import torchvision  # noqa: E402


def load(build: Any) -> Any:
    """Return a model of ten classes with weights.py's weights, in evaluation mode."""
    model = build(num_classes=10)
    state = {
        key: torch.from_numpy(weight(key, tuple(value.shape)))
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    model.load_state_dict(state, strict=False)  # without the counters, which BatchNorm here ignores
    return model.eval()


def nchw(size: int) -> Any:
    """Return weights.py's images as torch has them."""
    return torch.from_numpy(images(size)).permute(0, 3, 1, 2).contiguous()


def keys(model: Any) -> np.ndarray:
    """Return the sorted names of everything the model stores but the counters."""
    stored = [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]
    return np.array(sorted(stored))


def main() -> None:
    """Write resnet.npz beside this file."""
    golden: dict[str, Any] = {}
    for name, build, sizes in (
        ("resnet18", torchvision.models.resnet18, (64, 75)),
        ("resnet34", torchvision.models.resnet34, (64,)),
        ("resnet50", torchvision.models.resnet50, (64, 75)),
        ("resnet18_v2", timm.models.resnetv2_18, (64, 75)),
        ("resnet50_v2", timm.models.resnetv2_50, (64,)),
    ):
        model = load(build)
        golden[f"{name}/keys"] = keys(model)
        for size in sizes:
            with torch.no_grad():
                golden[f"{name}/logits/{size}"] = model(nchw(size)).numpy()

    for name, last_bn in {"resnet18": "layer4.1.bn2", "resnet50": "layer4.2.bn3"}.items():
        # In float64: a gradient through fifty norms over a few values each is 1% off in float32.
        model = load(getattr(torchvision.models, name)).train().double()
        logits = model(nchw(75).double())
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([3, 7]))
        loss.backward()
        model.float()  # the gradients too
        golden[f"{name}/train/loss"] = loss.detach().float().numpy()
        for bn in ("bn1", last_bn):
            for stat in ("running_mean", "running_var"):
                golden[f"{name}/train/{bn}.{stat}"] = model.get_buffer(f"{bn}.{stat}").numpy()[:64]
        for key in ("conv1.weight", "layer3.1.conv2.weight"):
            golden[f"{name}/train/grad/{key}"] = model.get_parameter(key).grad.numpy()[:8, :3]

    path = Path(__file__).with_name("resnet.npz")
    np.savez_compressed(path, **golden)
    print(f"{path}: {len(golden)} arrays, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
