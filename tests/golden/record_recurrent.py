"""Record recurrent.npz: what torch.nn.RNN, LSTM and GRU compute on weights.py's weights.

The loss that gradients are of is the sum of the outputs times one array and the last states times
others, all by weights.py too. Recorded in float64 from float32 weights, stored in float32.

Run in an environment that has torch; the tests never import this file:

    python tests/golden/record_recurrent.py

Recorded with torch 2.13.0, on a CPU.
"""

from pathlib import Path

import numpy as np
import torch
from weights import weight

BATCH, TIME, INPUTS, SIZE = 3, 6, 4, 5
LENGTHS = [4, 6, 1]
MODULES = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}


def array(name: str, *shape: int) -> torch.Tensor:
    """Return weights.py's array as a leaf of its own."""
    values = weight(f"{name}.weight" if len(shape) > 1 else name, shape)
    return torch.from_numpy(values).double().requires_grad_()


def record(kind: str, layers: int, bidirectional: bool, packed: bool) -> dict[str, np.ndarray]:
    """Return the outputs, last states and all gradients of one network."""
    network = MODULES[kind](
        INPUTS, SIZE, layers, batch_first=True, bidirectional=bidirectional
    ).double()
    for name, value in network.named_parameters():
        value.data = array(name, *value.shape).data
    x = array("x", BATCH, TIME, INPUTS)
    states = [
        array(name, layers * (1 + bidirectional), BATCH, SIZE)
        for name in ("h", "c")[: 1 + (kind == "lstm")]
    ]
    entering = x
    if packed:
        entering = torch.nn.utils.rnn.pack_padded_sequence(
            x, torch.tensor(LENGTHS), batch_first=True, enforce_sorted=False
        )
    outputs, last = network(entering, tuple(states) if kind == "lstm" else states[0])
    if packed:
        outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(
            outputs, batch_first=True, total_length=TIME
        )
    last = last if kind == "lstm" else (last,)
    loss = (outputs * array("d_outputs", *outputs.shape)).sum()
    for name, value in zip(("d_h", "d_c"), last, strict=False):
        loss = loss + (value * array(name, *value.shape)).sum()
    loss.backward()
    found = {"outputs": outputs, "grad/x": x.grad}
    for name, value, start in zip(("h", "c"), last, states, strict=False):
        found |= {name: value, f"grad/{name}": start.grad}
    found |= {f"grad/{name}": value.grad for name, value in network.named_parameters()}
    return {name: value.detach().float().numpy() for name, value in found.items()}


def main() -> None:
    """Write recurrent.npz beside this file."""
    golden = {}
    for kind in MODULES:
        for layers, bidirectional, packed in (
            (1, False, False),
            (2, False, True),
            (1, True, False),
            (2, True, True),
        ):
            case = f"{kind}-{layers}-{int(bidirectional)}-{int(packed)}"
            for name, value in record(kind, layers, bidirectional, packed).items():
                golden[f"{case}/{name}"] = value
    path = Path(__file__).with_name("recurrent.npz")
    np.savez_compressed(path, **golden)
    print(f"{path}: {len(golden)} arrays, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
