"""Networks and a training step as a person would write them in torch; imported where that is.

Networks have the layers and names of torchvision's, which are taken where torchvision is installed.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from experiments.harness.bench import Side, torch_device


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class Basic(nn.Module):
    """The residual block of two 3x3 convolutions, beside a shortcut that pads with zeros."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.stride, self.added = stride, width - inputs
        self.conv1, self.bn1 = _conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3), nn.BatchNorm2d(width)

    def forward(self, x: Any) -> Any:
        """[B, C, H, W] to [B, width, H / stride, W / stride]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        beside = (self.added // 2, self.added - self.added // 2)
        x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *beside))
        return torch.relu(x + y)


class Bottleneck(nn.Module):
    """The residual block of 1x1, 3x3 and 1x1, beside a shortcut that projects where it must."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = _conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _conv(width, outputs, 1), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            projected = _conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            self.downsample = nn.Sequential(*projected)

    def forward(self, x: Any) -> Any:
        """[B, C, H, W] to [B, 4 width, H / stride, W / stride]."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


def _stages(block: Any, inputs: int, width: int, depths: tuple[int, ...]) -> dict[str, Any]:
    """The residual stages, each of twice the width and half the size of the one before."""
    stages = {}
    for number, depth in enumerate(depths):
        blocks = []
        for place in range(depth):
            stride = 2 if number and not place else 1
            blocks.append(block(inputs, width << number, stride))
            inputs = (width << number) * block.expansion
        stages[f"layer{number + 1}"] = nn.Sequential(*blocks)
    return stages


def _named(**layers: Any) -> nn.Module:
    """The layers one after another, by these names."""
    network = nn.Sequential()
    for name, layer in layers.items():
        network.add_module(name, layer)
    return network


def resnet20_cifar(channels: int, num_classes: int) -> nn.Module:
    """He et al. 2015, section 4.2, with shortcuts A."""
    stem = {"conv1": _conv(channels, 16, 3), "bn1": nn.BatchNorm2d(16), "relu": nn.ReLU()}
    head = {"avgpool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    return _named(
        **stem, **_stages(Basic, 16, 16, (3, 3, 3)), **head, fc=nn.Linear(64, num_classes)
    )


def resnet50(channels: int, num_classes: int) -> nn.Module:
    """He et al. 2015, with the stride on the 3x3 convolutions."""
    stem = {
        "conv1": nn.Conv2d(channels, 64, 7, 2, 3, bias=False),
        "bn1": nn.BatchNorm2d(64),
        "relu": nn.ReLU(inplace=True),
        "maxpool": nn.MaxPool2d(3, 2, 1),
    }
    head = {"avgpool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    stages = _stages(Bottleneck, 64, 64, (3, 4, 6, 3))
    return _named(**stem, **stages, **head, fc=nn.Linear(2048, num_classes))


class DenseLayer(nn.Module):
    """Adds `growth` maps to those that it is given."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, 4 * growth, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), _conv(4 * growth, growth, 3)

    def forward(self, x: Any) -> Any:
        """[B, C, H, W] to [B, C + growth, H, W]."""
        y = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], 1)


def densenet121(channels: int, num_classes: int) -> nn.Module:
    """Huang et al. 2016."""
    growth, width = 32, 64
    features = {
        "conv0": nn.Conv2d(channels, width, 7, 2, 3, bias=False),
        "norm0": nn.BatchNorm2d(width),
        "relu0": nn.ReLU(inplace=True),
        "pool0": nn.MaxPool2d(3, 2, 1),
    }
    for block, depth in enumerate((6, 12, 24, 16), 1):
        if block > 1:
            halved = nn.BatchNorm2d(width), nn.ReLU(inplace=True), _conv(width, width // 2, 1)
            features[f"transition{block - 1}"] = nn.Sequential(*halved, nn.AvgPool2d(2))
            width //= 2
        layers = [DenseLayer(width + place * growth, growth) for place in range(depth)]
        features[f"denseblock{block}"] = nn.Sequential(*layers)
        width += depth * growth
    features["norm5"] = nn.BatchNorm2d(width)
    head = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(_named(**features), *head, nn.Linear(width, num_classes))


def alexnet(channels: int, num_classes: int) -> nn.Module:
    """Krizhevsky 2014, as torchvision has it."""
    relu = lambda: nn.ReLU(inplace=True)
    features = [
        *(nn.Conv2d(channels, 64, 11, 4, 2), relu(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(64, 192, 5, padding=2), relu(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(192, 384, 3, padding=1), relu()),
        *(nn.Conv2d(384, 256, 3, padding=1), relu()),
        *(nn.Conv2d(256, 256, 3, padding=1), relu(), nn.MaxPool2d(3, 2)),
    ]
    dense = [
        *(nn.Dropout(), nn.Linear(9216, 4096), relu(), nn.Dropout(), nn.Linear(4096, 4096), relu()),
        nn.Linear(4096, num_classes),
    ]
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(6), nn.Flatten(), *dense)


def vgg11(channels: int, num_classes: int) -> nn.Module:
    """Simonyan, Zisserman 2014, column A."""
    layers: list[nn.Module] = []
    for width in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    layers += [nn.AdaptiveAvgPool2d(7), nn.Flatten()]
    for inputs in (512 * 49, 4096):
        layers += [nn.Linear(inputs, 4096), nn.ReLU(inplace=True), nn.Dropout()]
    return nn.Sequential(*layers, nn.Linear(4096, num_classes))


def lenet5(channels: int, num_classes: int) -> nn.Module:
    """LeCun et al. 1998, as it is taught: `jaxdl.models.lenet.LeNet5`."""
    pooled = lambda inputs, outputs: (nn.Conv2d(inputs, outputs, 5), nn.Tanh(), nn.AvgPool2d(2))
    convolutions = *pooled(channels, 6), *pooled(6, 16), nn.Conv2d(16, 120, 5), nn.Tanh()
    dense = nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, num_classes)
    return nn.Sequential(*convolutions, nn.Flatten(), *dense)


def mlp(inputs: int, width: int, depth: int, dropout: float, num_classes: int) -> nn.Module:
    """`jaxdl.models.mlp.MLP` of flat inputs."""
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, num_classes))


OWN: dict[str, Callable[[int, int], nn.Module]] = {
    network.__name__: network
    for network in (lenet5, resnet20_cifar, resnet50, densenet121, alexnet, vgg11)
}


def network(name: str, channels: int, num_classes: int) -> nn.Module | None:
    """torchvision's network of that name, or the one above; None where there is neither."""
    try:
        from torchvision import models
    except ImportError:
        models = None
    if hasattr(models, name) and channels == 3:
        extra = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
        return getattr(models, name)(num_classes=num_classes, **extra)
    return OWN[name](channels, num_classes) if name in OWN else None


def count(model: nn.Module) -> int:
    """How many parameters a network has."""
    return sum(parameter.numel() for parameter in model.parameters())


def training(name: str, model: nn.Module, batch: dict[str, Any], precision: str) -> Side:
    """Steps of momentum and weight decay on one batch, at what is fastest on the device.

    On a GPU that is channels last; other precisions than float32 are autocast.

    Args:
      name: of the side.
      model: the network, compiled or not.
      batch: `image`, float [B, H, W, C], and `label`, int [B], as NumPy arrays.
      precision: of the computation.
    """
    device = torch_device(torch)
    layout = torch.channels_last if device == "cuda" else torch.contiguous_format
    image = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).to(device)
    image = image.contiguous(memory_format=layout)
    label = torch.from_numpy(batch["label"]).long().to(device)
    model = model.to(device, memory_format=layout).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    dtype, narrow = getattr(torch, precision), precision != "float32"

    def run(steps: int) -> None:
        for _ in range(steps):
            with torch.autocast(device, dtype, enabled=narrow):
                loss = nn.functional.cross_entropy(model(image).float(), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()  # waits for it

    kept = [*model.parameters(), *model.parameters(), *model.buffers(), image, label]  # momentum
    held = sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def peak() -> int:
        torch.cuda.reset_peak_memory_stats()
        run(1)
        return torch.cuda.max_memory_allocated()

    return Side(name, run, held, peak if device == "cuda" else None)


def train(
    name: str,
    splits: dict[str, tuple[np.ndarray, np.ndarray]],
    batch_size: int,
    steps: int,
    learning_rate: float,
    seed: int,
) -> float:
    """Trains the perceptron or LeNet-5 on images in memory, as the experiments of that name do.

    Args:
      name: "mlp" or "lenet".
      splits: `train` and `test`: images, float32 [N, H, W, 1], and labels, int [N].
      batch_size: images a step.
      steps: how many.
      learning_rate: of Adam for the perceptron, of momentum for LeNet-5.
      seed: of weights and order.

    Returns:
      The accuracy on `test`.
    """
    torch.manual_seed(seed)
    device = torch_device(torch)
    (images, labels), (tests, truths) = (
        (torch.from_numpy(x).permute(0, 3, 1, 2).contiguous().to(device), torch.from_numpy(y))
        for x, y in (splits["train"], splits["test"])
    )
    labels = labels.long().to(device)
    if name == "mlp":
        model = mlp(images[0].numel(), 256, 2, 0.2, 10).to(device)
        optimizer: Any = torch.optim.Adam(model.parameters(), lr=learning_rate)
    else:
        model = lenet5(1, 10).to(device)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
    smoothing = 0.1 if name == "mlp" else 0.0
    epochs = steps * batch_size // len(images) + 1
    order = torch.cat([torch.randperm(len(images)) for _ in range(epochs)])
    for step in range(steps):
        rows = order[step * batch_size : (step + 1) * batch_size].to(device)
        loss = nn.functional.cross_entropy(
            model(images[rows]), labels[rows], label_smoothing=smoothing
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        guesses = model.eval()(tests).argmax(1).cpu()
    return (guesses == truths).float().mean().item()


class Files:
    """A folder of JPEGs in folders of their classes, as a data set of torch's.

    Args:
      folder: it.
      size: height and width of the crops.
    """

    def __init__(self, folder: str, size: int):
        self.size, self.names = size, sorted(map(str, Path(folder).glob("*/*.jpg")))
        classes = sorted({Path(name).parent.name for name in self.names})
        self.labels = [classes.index(Path(name).parent.name) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """A random crop, uint8 [size, size, 3], and its label."""
        with Image.open(self.names[index]) as file:
            picture = file.convert("RGB")
        crop = picture.crop(self._box(*picture.size))
        crop = crop.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(crop)), self.labels[index]

    @staticmethod
    def _box(width: int, height: int) -> tuple[int, int, int, int]:
        """As torchvision's RandomResizedCrop draws it: 8% to 100% of the area, 3/4 to 4/3."""
        draw = lambda low, high: torch.empty(1).uniform_(low, high).item()
        for _ in range(10):
            area = width * height * draw(0.08, 1.0)
            aspect = math.exp(draw(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left = int(torch.randint(width - w + 1, (1,)))
                top = int(torch.randint(height - h + 1, (1,)))
                return left, top, left + w, top + h
        return 0, 0, width, height


def batches(files: Files, batch_size: int, workers: int) -> Iterator[Any]:
    """The batches of one epoch after another, read by worker processes."""
    # Spawned, for JAX's threads do not survive a fork.
    loader = torch.utils.data.DataLoader(
        files,
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader
