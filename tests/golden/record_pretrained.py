"""Record pretrained.npz: what torchvision's and timm's models store, and what their images become.

Run in an environment that has them; the tests never import this file:

    python tests/golden/record_pretrained.py

Recorded with torch 2.13.0, torchvision 0.28.0, timm 1.0.31, Pillow 13.0.0, on a CPU.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

# torchvision does not import where its compiled operators do not load, as beside another build of
# torch, unless these two names exist. No classifier uses them.
operators = torch.library.Library("torchvision", "FRAGMENT")
for name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, name):
        operators.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")

import timm  # noqa: E402 (it needs those operators)
import torchvision  # noqa: E402 (it needs those operators)
from torchvision import transforms  # noqa: E402 (it needs those operators)

TORCHVISION = (
    *("alexnet", "googlenet", "inception_v3"),
    *("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("densenet121", "densenet161", "densenet169", "densenet201"),
)
TIMM = {
    **{f"resnet{depth}_v2": f"resnetv2_{depth}" for depth in (18, 34, 50, 101, 152)},
    **{name: name for name in ("inception_v4", "inception_resnet_v2")},
}


def contents(model: Any) -> np.ndarray:
    """Return the names and shapes of everything a model stores: bytes, `key 64 3 7 7` to a line."""
    lines = [" ".join(map(str, (key, *value.shape))) for key, value in model.state_dict().items()]
    return np.frombuffer("\n".join(lines).encode(), np.uint8)


def photograph(height: int, width: int) -> Any:
    """Return a picture that the test draws too."""
    noise = np.random.RandomState(width).randint(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise)


def main() -> None:
    """Write pretrained.npz beside this file."""
    golden: dict[str, Any] = {}
    for name in (*TORCHVISION, *TIMM):
        with torch.device("meta"):
            if name in TIMM:
                model = timm.create_model(TIMM[name])
            elif name in ("googlenet", "inception_v3"):
                build = getattr(torchvision.models, name)
                model = build(aux_logits=True, init_weights=False, transform_input=True)
            else:
                model = getattr(torchvision.models, name)()
        golden[f"{name}/contents"] = contents(model)

        if name in TIMM:
            config = timm.data.resolve_data_config(model=model)
            transform = timm.data.create_transform(**config)
        else:
            weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
            transform = weights.transforms()
        image = transform(photograph(301, 407))[None]
        if name in ("googlenet", "inception_v3"):
            image = model._transform_input(image)  # from ImageNet's mean to the one they know
        golden[f"{name}/image"] = image[0].permute(1, 2, 0).numpy()[::32, ::32]

    for interpolation in ("bilinear", "bicubic"):
        for height, width in ((23, 37), (41, 18), (20, 20), (7, 9)):
            resize = transforms.Resize(17, transforms.InterpolationMode(interpolation))
            crop = transforms.CenterCrop(14)(resize(photograph(height, width)))
            golden[f"{interpolation}/{height}x{width}"] = np.asarray(crop)

    path = Path(__file__).with_name("pretrained.npz")
    np.savez_compressed(path, **golden)
    print(f"{path}: {len(golden)} arrays, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
