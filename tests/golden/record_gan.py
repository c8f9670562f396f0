"""Record gan.npz: what the players of gan.py compute in torch.

The networks are written here in torch's own layers, the unconditional pair as in torch's DCGAN
example, and are narrow and small. Layers bear our names; weights are those of weights.py, so that
only what comes out is stored: outputs, gradients of their product with a direction, and the running
statistics of one training call; of spectral norms the outputs after many power iterations.

Run in an environment that has torch; the tests never import this file:

    python tests/golden/record_gan.py

Recorded with torch 2.13.0 on a CPU.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations
from weights import weight

CLASSES = 3
LABELS = torch.tensor([2, 0, 2])


class Generator(nn.Module):
    """A DCGAN's generator."""

    def __init__(self, image_size, channels, width, upsampling, latents, norm=True):
        super().__init__()
        doublings = {16: 2, 32: 3}[image_size]
        features = width * 2 ** (doublings - 1)
        if norm:
            self.project = nn.ConvTranspose2d(latents, features, 4, 1, 0, bias=False)
        else:
            linear = nn.Linear(latents, 16 * features)
            self.project = nn.Sequential(nn.Flatten(), linear, nn.Unflatten(1, (4, 4, features)))
        for i in range(1, doublings + 1):
            last = i == doublings
            out, bias = (channels, False) if last else (features // 2, not norm)
            if upsampling == "transposed":
                up = nn.ConvTranspose2d(features, out, 4, 2, 1, bias=bias)
            elif upsampling == "resize":
                conv = nn.Conv2d(features, out, 3, 1, 1, bias=bias)
                up = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv)
            else:
                conv = nn.Conv2d(features, 4 * out, 3, 1, 1, bias=bias)
                up = nn.Sequential(conv, nn.PixelShuffle(2))
            self.add_module(f"norm{i}", nn.BatchNorm2d(features) if norm else nn.Identity())
            self.add_module(f"up{i}", up)
            features = out
        self.doublings, self.norm = doublings, norm

    def forward(self, latents):
        x = self.project(latents[:, :, None, None])
        if not self.norm:
            x = x.permute(0, 3, 1, 2)
        for i in range(1, self.doublings + 1):
            x = torch.relu(getattr(self, f"norm{i}")(x))
            x = getattr(self, f"up{i}")(x)
        return torch.tanh(x).permute(0, 2, 3, 1)


class Discriminator(nn.Module):
    """A DCGAN's discriminator, and a projection discriminator if it has classes."""

    def __init__(self, image_size, channels, width, norm, classes=0):
        super().__init__()
        self.halvings = {16: 2, 32: 3}[image_size]
        wrap = parametrized if norm == "spectral" else lambda layer: layer
        features = width
        for i in range(1, self.halvings + 1):
            bias = i > 1 and norm not in ("batch", "layer")
            conv = nn.Conv2d(channels, features, 4, 2, 1, bias=bias)
            self.add_module(f"conv{i}", wrap(conv))
            if i > 1 and norm == "batch":
                self.add_module(f"norm{i}", nn.BatchNorm2d(features))
            elif i > 1 and norm == "layer":
                self.add_module(f"norm{i}", nn.GroupNorm(1, features))
            else:
                self.add_module(f"norm{i}", nn.Identity())
            channels, features = features, 2 * features
        self.logit = wrap(nn.Conv2d(channels, 1, 4, 1, 0, bias=False))
        self.projection = wrap(nn.Embedding(classes, channels)) if classes else None

    def forward(self, images):
        x = images.permute(0, 3, 1, 2)
        for i in range(1, self.halvings + 1):
            x = getattr(self, f"conv{i}")(x)
            x = nn.functional.leaky_relu(getattr(self, f"norm{i}")(x), 0.2)
        logits = self.logit(x).flatten()
        if self.projection is not None:
            logits = logits + (x.sum((2, 3)) * self.projection(LABELS)).sum(1)
        return logits


class MLPGenerator(nn.Module):
    """Layers of relus and a tanh."""

    def __init__(self, latents, width, outputs):
        super().__init__()
        self.fc1 = nn.Linear(latents, width)
        self.fc2 = nn.Linear(width, width)
        self.fc = nn.Linear(width, outputs)

    def forward(self, latents):
        return torch.tanh(self.fc(torch.relu(self.fc2(torch.relu(self.fc1(latents))))))


class MLPDiscriminator(nn.Module):
    """Layers of maxout units without dropout, and a projection."""

    def __init__(self, inputs, width, pieces, norm):
        super().__init__()
        wrap = parametrized if norm == "spectral" else lambda layer: layer
        layer_norm = norm == "layer"
        for i in (1, 2):
            linear = nn.Linear(inputs, width * pieces, bias=not layer_norm)
            self.add_module(f"fc{i}", wrap(linear))
            identity = nn.Identity()
            self.add_module(f"norm{i}", nn.LayerNorm(width * pieces) if layer_norm else identity)
            inputs = width
        self.fc = wrap(nn.Linear(width, 1))
        self.projection = wrap(nn.Embedding(CLASSES, width))
        self.pieces = pieces

    def forward(self, x):
        for i in (1, 2):
            x = getattr(self, f"norm{i}")(getattr(self, f"fc{i}")(x))
            x = x.unflatten(1, (-1, self.pieces)).amax(2)
        return self.fc(x).flatten() + (x * self.projection(LABELS)).sum(1)


def parametrized(layer):
    """Return the layer with torch's spectral norm, of which each training call iterates once."""
    return parametrizations.spectral_norm(layer, n_power_iterations=1)


def noise(seed, *shape):
    """Return uniform values in [-1, 1), the inputs and directions that tests use too."""
    return np.random.RandomState(seed).uniform(-1, 1, shape).astype(np.float32)


def with_labels(latents):
    """Return the latents with one-hot labels beside them."""
    one_hot = nn.functional.one_hot(LABELS, CLASSES).float().numpy()
    return np.concatenate([latents, one_hot], axis=1)


def fill(model):
    """Give the model the weights of weights.py, under our names."""
    with torch.no_grad():
        for path, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.ndim and "parametrizations.weight.0" not in path:
                value.copy_(torch.from_numpy(weight(name(path), tuple(value.shape))))


def name(path):
    """Return our layer and torch's parameter: fc1.weight."""
    parts = path.split(".")
    return f"{parts[0]}.{'weight' if parts[-1] == 'original' else parts[-1]}"


def record(case, model, inputs, out):
    """Store what the model computes in evaluation and, at first, in training."""
    fill(model)
    inputs = torch.from_numpy(inputs)
    with torch.no_grad():
        for _ in range(1000 if "spectral" in case else 0):
            model(inputs)
        if "spectral" in case or "running_var" in str(model.state_dict().keys()):
            out[f"{case}/eval"] = model.eval()(inputs)
    for path, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(partial(record_statistics, f"{case}/stats/{path}", out))
    outputs = out[f"{case}/train"] = model.train()(inputs)
    direction = torch.from_numpy(noise(1, *outputs.shape))
    (outputs * direction).sum().backward()
    for path, parameter in model.named_parameters():
        out[f"{case}/grad/{name(path)}"] = parameter.grad


def record_statistics(path, out, layer, inputs, output):
    """Store the running statistics; the variance with the batch's biased one, which Flax keeps."""
    values = inputs[0].numel() / layer.num_features
    old = torch.from_numpy(weight(path.split("/")[-1] + ".running_var", layer.running_var.shape))
    of_batch = (layer.running_var - 0.9 * old) * (values - 1) / values
    out[f"{path}.running_mean"] = layer.running_mean.clone()
    out[f"{path}.running_var"] = 0.9 * old + of_batch


def main():
    """Record all cases."""
    out = {}
    latents = noise(0, 3, 5)
    record("transposed_16", Generator(16, 3, 3, "transposed", 5), latents, out)
    record("transposed_32", Generator(32, 1, 2, "transposed", 5), latents, out)
    record("resize_16", Generator(16, 2, 3, "resize", 8), with_labels(latents), out)
    record("pixel_shuffle_16", Generator(16, 2, 3, "pixel_shuffle", 5), latents, out)
    record("plain_16", Generator(16, 2, 3, "transposed", 5, norm=False), latents, out)
    record("batch_16", Discriminator(16, 3, 3, "batch"), noise(0, 3, 16, 16, 3), out)
    record("batch_32", Discriminator(32, 1, 2, "batch"), noise(0, 3, 32, 32, 1), out)
    for norm in ("layer", "spectral", "none"):
        model = Discriminator(16, 2, 3, norm, CLASSES)
        record(f"{norm}_16", model, noise(0, 3, 16, 16, 2), out)
        record(f"mlp_{norm}", MLPDiscriminator(18, 4, 3, norm), noise(0, 3, 18), out)
    record("mlp", MLPGenerator(8, 6, 18), with_labels(latents), out)
    arrays = {key: value.detach().numpy() for key, value in out.items()}
    np.savez_compressed(Path(__file__).parent / "gan.npz", **arrays)


if __name__ == "__main__":
    main()
