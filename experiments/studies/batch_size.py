"""Batch size against generalization and time, with the rate scaled and not.

python -m experiments.studies.batch_size --quick
"""

from typing import Any

from experiments.harness import claim
from experiments.harness.claim import Claim, Measured, Read, Setup, Verdict, clearly_greater, mean
from experiments.harness.study import Run

SIZES = (8, 32, 128, 512)
BASE_RATE, BASE_SIZE = 0.02, 32
SCALINGS = {"constant rate": 0.0, "rate by the root": 0.5, "rate in proportion": 1.0}
SECONDS = "seconds of training, alone"


def with_seconds() -> Read:
    """What reads the summary of a run, and how long its steps take when it is trained alone."""
    of_a_step: dict[int, float] = {}

    def read(run: Run) -> dict[str, Any]:
        summary, size = run.summary(), run.config.run.batch_size
        if size not in of_a_step:
            of_a_step[size] = claim.seconds_of_a_step(run)
        return summary | {SECONDS: summary["step"] * of_a_step[size]}

    return read


def judge(measured: Measured) -> Verdict:
    """By the test accuracy of the largest batch against the base one's."""
    of = lambda scaling, size: measured[f"{scaling}, {size}"]["test/accuracy"]
    largest = max(SIZES)
    lost = clearly_greater(of("constant rate", BASE_SIZE), of("constant rate", largest))
    won = clearly_greater(of("rate in proportion", largest), of("constant rate", largest))
    word = claim.word([lost, won])
    seconds = ", ".join(
        f"{mean(measured[f'constant rate, {size}'][SECONDS]):.2g} s by batches of {size}"
        for size in SIZES
    )
    each = ", ".join(f"{mean(of(scaling, largest)):.3f} with a {scaling}" for scaling in SCALINGS)
    return Verdict(
        word,
        f"After as many epochs batches of {largest} reach {each}; batches of {BASE_SIZE} reach "
        f"{mean(of('constant rate', BASE_SIZE)):.3f}. The steps of a run take {seconds}.",
    )


def draw(figure: Any, measured: Measured) -> None:
    """Test accuracy, training loss and time by batch size."""
    lines = {scaling: [f"{scaling}, {size}" for size in SIZES] for scaling in SCALINGS}
    *panels, last = figure.subplots(1, 3)
    metrics = ("test/accuracy", "train/loss")
    claim.draw_by_size(panels, measured, metrics, lines, SIZES, "batch size")
    at_any = {"whatever the rate": lines["constant rate"]}
    claim.draw_by_size([last], measured, (SECONDS,), at_any, SIZES, "batch size")
    last.set(ylim=(0, None))
    figure.suptitle("In as many epochs large batches fall behind, unless the rate grows with them")


CLAIM = Claim(
    name="batch_size",
    title="Large batches need larger rates",
    claim="In the same number of epochs a larger batch generalizes worse, and a learning rate in "
    "proportion to the batch makes up for it.",
    source="Keskar et al. 2016, arXiv:1609.04836; Goyal et al. 2017, arXiv:1706.02677",
    varied="batch size, and how the rate grows with it",
    held="LeNet-5 on digits, momentum 0.9, a rate of 0.02 at 32, 20 epochs, 2 of warm-up",
    experiment="lenet",
    common=(
        *("--optimizer=momentum", "--epochs=20", "--warmup_epochs=2", "--label_smoothing=0"),
        "--augment=",
    ),
    setups=tuple(
        Setup(
            f"{scaling}, {size}",
            (
                f"--batch_size={size}",
                f"--learning_rate={BASE_RATE * (size / BASE_SIZE) ** power:g}",
            ),
        )
        for scaling, power in SCALINGS.items()
        for size in SIZES
    ),
    metrics=("test/accuracy", "train/loss"),
    judge=judge,
    draw=draw,
    seeds=5,
    minutes=4,
    quickly=("--epochs=4",),
    read=with_seconds(),
    drawn=(SECONDS,),
)

if __name__ == "__main__":
    claim.main(CLAIM)
