"""What people get wrong, for `python tests/campaign.py mistakes`, and the files they get wrong.

Each row of TABLE is a command, given in a folder that `prepare` has filled, and a word that the one
line of its error must hold. What follows `python` is code that runs within LIBRARY.
"""

import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import save_file


class Mistake(NamedTuple):
    """A command that must end with exit code 1 and one line that holds a word."""

    command: str
    word: str


LIBRARY = """
import numpy as np
from experiments.harness import cli
def mistake(argv):
    from jaxdl import augment, checkpoint, data, models, optim, pretrained, schedules
    images, labels = np.zeros((8, 4, 4, 1), np.uint8), np.arange(8)
    {}
cli.main(mistake)
"""

# Small runs that others are copies of, by the folder they leave.
RUNS = {
    "run": "lenet --steps=4 --checkpoint_every=2 --eval_every=2",
    "net": "resnet --steps=2 --width=4",
    "stopped": "lenet --steps=4 --eval_every=2 --early_stop=1 --validation=0.1",
    "chars": "char_rnn --text=book.txt --level=char --steps=2 --features=8 --embedding=4"
    " --batch_size=4 --sequence_length=8 --warmup_steps=0 --length=4 --prompt=the",
    "words": "word2vec --text=book.txt --min_count=1 --steps=2 --features=8 --batch_size=64",
    "pairs": "seq2seq --dataset=numbers --count=500 --steps=2 --features=8 --embedding=4",
    "ring": "gan --dataset=ring --steps=2 --width=8 --discriminator_width=8 --samples=64",
}


def prepare(folder: Path) -> None:
    """Fills a folder, in which RUNS were run, with what is wrong."""
    (folder / "file").write_text("a file\n")
    (folder / "empty").write_text("")
    (folder / "binary").write_bytes(bytes(range(256)) * 8)
    (folder / "latin1.txt").write_bytes("déjà vu, ça va\n".encode("latin1") * 99)
    (folder / "nowhere").symlink_to("not there")
    (folder / "emptied").mkdir()
    (folder / "junk").mkdir()
    (folder / "junk" / "thesis.tex").write_text("mine")
    _flagfiles(folder / "flagfiles")
    _damaged_runs(folder)
    _image_folders(folder / "images")
    _weights(folder / "weights")
    _texts(folder / "texts")


def book() -> str:
    """A text with words that come again."""
    words = ("the", "cat", "and", "a", "dog", "saw", "three", "birds", "near", "old", "water")
    rng = np.random.default_rng(0)
    return "\n".join(" ".join(rng.choice(words, 9)) for _ in range(400)) + "\n"


def _flagfiles(folder: Path) -> None:
    folder.mkdir()
    for name, text in {
        "cycle": "--flagfile=flagfiles/other\n",
        "other": "--flagfile=flagfiles/cycle\n",
        "unknown": "--seed=1\n--modle=x\n",
        "bare": "batch_size=3\n",
        "spaces": "--batch_size = 3\n",
        "quoted": '--model="resnet20_cifar"\n',
        "json": '{"batch_size": 3}\n',
        "lenet": "--experiment=lenet\n",
    }.items():
        (folder / name).write_text(text)


def _damaged_runs(folder: Path) -> None:
    def copy(of: str, name: str) -> Path:
        return Path(shutil.copytree(folder / of, folder / name))

    (copy("run", "no_flags") / "flags.txt").unlink()
    (copy("run", "binary_flags") / "flags.txt").write_bytes(bytes(range(256)))
    (copy("run", "empty_flags") / "flags.txt").write_text("")
    path = copy("run", "cut_flags") / "flags.txt"
    path.write_text(path.read_text()[:300] + "\n--epo")
    path = copy("run", "folder_flags") / "flags.txt"
    path.unlink()
    path.mkdir()
    path = copy("run", "foreign_flags") / "flags.txt"
    path.write_text(path.read_text().replace("=lenet\n", "=training\n", 1))
    path = copy("run", "unheard_flags") / "flags.txt"
    path.write_text(path.read_text().replace("=lenet\n", "=lennet\n", 1))
    path = copy("run", "newer_flags") / "flags.txt"
    path.write_text(path.read_text() + "--invented_later=3\n")
    for of in ("run", "chars", "words", "pairs"):
        (copy(of, f"{of}_cut") / "inputs.json").write_text('{"class_na')
        (copy(of, f"{of}_list") / "inputs.json").write_text("[1, 2]")
        (copy(of, f"{of}_empty") / "inputs.json").write_text("{}")
        (copy(of, f"{of}_no") / "inputs.json").unlink()
    path = copy("run", "few_classes") / "inputs.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"class_names": ["a", "b"]}))
    (copy("stopped", "cut_summary") / "summary.json").write_text('{"step": ')
    (copy("stopped", "list_summary") / "summary.json").write_text("[]")
    (copy("stopped", "no_step_summary") / "summary.json").write_text("{}")
    (copy("stopped", "word_summary") / "summary.json").write_text('{"step": "last"}')
    (copy("stopped", "far_summary") / "summary.json").write_text('{"step": 99}')
    for step in (copy("run", "all_damaged") / "checkpoints").iterdir():
        for path in step.rglob("*"):
            if path.is_file():
                path.write_bytes(b"damage")
    shutil.rmtree(copy("run", "no_checkpoints") / "checkpoints")
    path = copy("run", "file_checkpoints") / "checkpoints"
    shutil.rmtree(path)
    path.write_text("no folder")
    path = copy("run", "other_checkpoints") / "checkpoints"
    shutil.rmtree(path)
    shutil.copytree(folder / "net" / "checkpoints", path)


def _image_folders(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)

    def fill(name: str, classes=("cat", "dog"), splits=("train", "test"), count: int = 4) -> Path:
        for split in splits:
            for label in classes:
                (folder / name / split / label).mkdir(parents=True)
                for number in range(count):
                    file = folder / name / split / label / f"{number}.png"
                    Image.fromarray(pixels).save(file)
        return folder / name / "train" / "cat" / "0.png"

    fill("sound")
    fill("one_class", classes=("cat",))
    fill("only_test", splits=("test",))
    fill("no_test", splits=("train",))
    fill("training", splits=("training", "testing"))
    fill("classes_alone", splits=("",))
    fill("no_images", count=0)
    fill("new_class")
    shutil.copytree(folder / "new_class/test/cat", folder / "new_class/test/bird")
    fill("file_train", splits=("test",))
    (folder / "file_train" / "train").write_text("")
    (folder / "tiff_only" / "train" / "cat").mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "tiff_only" / "train" / "cat" / "0.tiff")
    shutil.copytree(folder / "sound/train/cat", folder / "flat/train")
    fill("text").write_text("this is a text")
    fill("zero").write_bytes(b"")
    path = fill("cut")
    path.write_bytes(path.read_bytes()[:-60])
    path = fill("folder_png")
    path.unlink()
    path.mkdir()
    path = fill("dangling")
    path.unlink()
    path.symlink_to("gone.png")
    path = fill("looping")
    path.unlink()
    path.symlink_to("0.png")
    fill("huge").write_bytes(_png_header(60_000, 60_000))
    fill("endless").write_bytes(_png_header(2**31 - 1, 2**31 - 1))
    path = fill("forbidden")
    path.chmod(0)


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


class _Code:
    """What leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def _weights(folder: Path) -> None:
    folder.mkdir()
    save_file({"conv1.weight": np.zeros((3, 3), np.float32)}, folder / "foreign.safetensors")
    whole = (folder / "foreign.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-5])
    (folder / "header.safetensors").write_bytes(b"\xff" * 64)
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "folder.safetensors").mkdir()
    (folder / "words.bin").write_text("weights")
    for suffix in ("npz", "pth"):
        (folder / f"text.{suffix}").write_text("no archive")
        (folder / f"cut.{suffix}").write_bytes(b"PK\x03\x04" + bytes(40))
        (folder / f"empty.{suffix}").write_bytes(b"")
    (folder / "code.pth").write_bytes(pickle.dumps(_Code()))
    np.savez(folder / "objects.npz", weight=np.array([_Code()], dtype=object))
    np.savez(folder / "none.npz")
    with zipfile.ZipFile(folder / "foreign.npz", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    (folder / "labels.txt").write_text("cat\ndog\n")
    image = Image.fromarray(np.zeros((12, 12, 3), np.uint8))
    image.save(folder.parent / "a.png")


def _texts(folder: Path) -> None:
    folder.mkdir()
    (folder / "short.txt").write_text("ab")
    (folder / "one_word.txt").write_text("word " * 2000)
    (folder / "nul.txt").write_text("text\0text" * 500)
    (folder / "one_column.tsv").write_text("a line without a tab\n" * 60)
    (folder / "three_columns.tsv").write_text("one\ttwo\tthree\n" * 60)
    (folder / "few.tsv").write_text("one\tun\n")
    (folder / "blank.tsv").write_text("\t\n" * 60)
    (folder / "same.tsv").write_text("one\tun\n" * 60)
    (folder / "bad.analogies").write_text(": capitals\nAthens Greece Oslo\n")
    (folder / "no.analogies").write_text(": capitals\n")
    (folder / "gray.json").write_text('{"mean": [0.5]}')
    (folder / "shape.json").write_text('{"eigenvalues": [1], "eigenvectors": [[1]]}')


def rows() -> list[Mistake]:
    """All mistakes, in the order of the table."""
    found = []
    for line in TABLE.strip().splitlines():
        if line and not line.startswith("#"):
            command, word = (part.strip() for part in line.rsplit(" => ", 1))
            found.append(Mistake(command, word))
    return found


# `command => a word of the message`.
TABLE = r"""
# flags
resnet --modle=x => did you mean --mode
resnet run => 'run' is no flag
resnet —steps=3 => is no flag
resnet --batch_size => batch_size
resnet --batch_size=many => batch_size
resnet --batch_size=3.5 => batch_size
resnet --batch_size=0 => --batch_size=0: it must be at least 1
resnet --batch_size=1438 => 1437
resnet --learning_rate=fast => learning_rate
resnet --learning_rate=-1 => --learning_rate=-1
resnet --learning_rate=nan => --learning_rate=nan
resnet --learning_rate=1e400 => --learning_rate=inf
resnet --learning_rate=0,1 => learning_rate
resnet --epochs=0 => --epochs=0
resnet --epochs=1e-400 => --epochs=0
resnet --steps=0 => --steps=0
resnet --steps=1e3 => steps
resnet --seed=-1 => --seed=-1
resnet --seed=99999999999999999999 => --seed
resnet --keep=0 => --keep=0
resnet --log_every=0 => --log_every=0
resnet --profile_steps=-1 => --profile_steps
resnet --precision=float64 => float32|bfloat16|float16
resnet --precision= => float32|bfloat16|float16
resnet --model= => no model ''
resnet --model=resnet20 => no model 'resnet20'
resnet --model=lenet5 --shortcut=B => shortcut
resnet --width=0 => width
resnet --width=-4 => width
resnet --optimizer=Adam => adam
resnet --optimizer=sgd --b1=0.9 => b1
resnet --momentum=1 => --momentum=1
resnet --clip_norm=0 => --clip_norm=0
resnet --schedule=step --schedule_boundaries=0.5,x => schedule_boundaries
resnet --schedule=step --schedule_boundaries=2 => boundaries
resnet --schedule_rate=0.5 => rate
resnet --schedule=restarts --schedule_cycles=0 => cycles
resnet --schedule=one_cycle --schedule_peak=2 => peak
resnet --warmup_epochs=-1 => --warmup_epochs=-1
resnet --ema_decay=1 => --ema_decay=1
resnet --plateau=0 => --plateau=0
resnet --plateau=3 => --plateau
resnet --early_stop=3 => --early_stop
resnet --folds=1 => --folds=1
resnet --folds=5000 => 5000 folds
resnet --fold=0 => --fold=0
resnet --validation=1 => --validation=1
resnet --validation=1e-9 => 1e-09
resnet --validation=0.9999 => batch size 32
resnet --classes=3,11 => 11
resnet --classes=3,3 => 3
resnet --per_class=0 => --per_class=0
resnet --mean=0.1,0.2 => --mean=0.1,0.2
resnet --std=0 => --std=0
resnet --channels=2 => --channels=2
resnet --image_size=0 => --image_size=0
resnet --image_size=10000000 => --image_size
resnet --crop_share=0 => --crop_share=0
resnet --grad_accum=5 => --grad_accum=5
resnet --augment=flip,blurr => blurr
resnet --augment=pca_color --channels=3 --pca_file=missing.json => missing.json
resnet --augment=pca_color --channels=3 --pca_file=file => file
resnet --augment=pca_color --channels=3 --pca_file=binary => binary
resnet --augment=pca_color --channels=3 --pca_file=emptied => emptied
resnet --augment=pca_color --channels=3 --pca_file=texts/gray.json => gray.json
resnet --augment=pca_color --channels=3 --pca_file=texts/shape.json => shape.json
resnet --mix=blend => mix
resnet --init=he_normal --init_scale=-1 --steps=1 => init_scale
resnet --init_scale=2 => --init_scale
resnet --norm_momentum=2 => --norm_momentum
resnet --on_corrupt=ignore => fail|skip
resnet --workers=-1 => --workers
resnet --debug_nans --parallel=pmap => --debug_nans
resnet --small_images=maybe => small_images
resnet --coordinator=here => --coordinator
resnet --coordinator=here --num_processes=2 --process_id=0 --workdir=h => here
resnet --coordinator=localhost:99999 --num_processes=2 --process_id=0 --workdir=h => 99999
resnet --coordinator=localhost:7 --num_processes=2 --process_id=2 --workdir=h => --process_id=2
resnet --coordinator=localhost:7 --num_processes=0 --process_id=0 --workdir=h => --num_processes=0
resnet --coordinator=localhost:7 --num_processes=2 --process_id=0 => --workdir
resnet --num_processes=2 --process_id=1 --steps=1 => --coordinator
resnet --coordinator=auto --workdir=h => join at auto
lenet --model=resnet20_cifar => lenet5
lenet --model=lenet5_1998 --image_size=64 => image
alexnet --image_size=4 => at least 15x15
vgg --width=0 => width
vgg --small_images=false --image_size=8 => image
inception --model=inception_v3 --image_size=16 => image
densenet --growth_rate=0 => growth_rate
mlp --depth=-1 => depth
mlp --width=0 => width
mlp --dropout=1 => dropout
nin --image_size=1 => image

# flagfiles
resnet --flagfile=missing.flags => missing.flags
resnet --flagfile=emptied => emptied
resnet --flagfile=binary => binary
resnet --flagfile=latin1.txt => latin1.txt
resnet --flagfile=nowhere => nowhere
resnet --flagfile=flagfiles/unknown => --modle
resnet --flagfile=flagfiles/bare => batch_size=3
resnet --flagfile=flagfiles/spaces => batch_size
resnet --flagfile=flagfiles/quoted => "resnet20_cifar"
resnet --flagfile=flagfiles/json => is no flag
resnet --flagfile=flagfiles/lenet => lenet

# workdirs
lenet --workdir=file => file
lenet --workdir=file/run => file
lenet --workdir=nowhere => nowhere
lenet --workdir=/proc/run => /proc/run
lenet --workdir=/dev/null => /dev/null
lenet --workdir=junk => holds other files
lenet --workdir=gs://bucket/run => gs://bucket/run
lenet --workdir={long} => File name too long
lenet --workdir=run --resume=never => --resume=never
lenet --workdir=new --resume=must => there is no run in new
lenet --workdir=run --steps=4 --model=lenet5_1998 => holds a run with --model=lenet5
lenet --workdir=run --steps=4 --seed=1 => holds a run with --seed=0
resnet --workdir=run => experiments.lenet
lenet --workdir=no_flags => no_flags
lenet --workdir=binary_flags --steps=4 => binary_flags/flags.txt
lenet --workdir=empty_flags --steps=4 => empty_flags/flags.txt
lenet --workdir=cut_flags --steps=4 => cut_flags/flags.txt
lenet --workdir=folder_flags --steps=4 => folder_flags
lenet --workdir=newer_flags --steps=4 => invented_later
lenet --flagfile=run/flags.txt --workdir=run_cut => run_cut/inputs.json
lenet --flagfile=run/flags.txt --workdir=run_list => run_list/inputs.json
lenet --flagfile=run/flags.txt --workdir=few_classes => few_classes/inputs.json
lenet --flagfile=run/flags.txt --workdir=all_damaged => damaged
lenet --flagfile=run/flags.txt --workdir=file_checkpoints => file_checkpoints/checkpoints
lenet --flagfile=run/flags.txt --workdir=other_checkpoints => another model
lenet --mode=eval => --workdir
lenet --mode=eval --workdir=missing => no run in missing
lenet --mode=eval --workdir=file => no run in file
lenet --mode=eval --workdir=run --split=validation => --split=validation
lenet --mode=eval --workdir=run --split=dev => train|validation|test
lenet --mode=eval --workdir=run --model=lenet5_1998 => --model=lenet5
lenet --mode=eval --workdir=binary_flags => binary_flags/flags.txt
lenet --mode=eval --workdir=cut_flags => cut_flags/flags.txt
lenet --mode=eval --workdir=no_checkpoints => no_checkpoints
lenet --mode=eval --workdir=file_checkpoints => file_checkpoints
lenet --mode=eval --workdir=run_cut => run_cut/inputs.json
lenet --mode=eval --workdir=run_list => run_list/inputs.json
lenet --mode=eval --workdir=cut_summary => cut_summary/summary.json
lenet --mode=eval --workdir=list_summary => list_summary/summary.json
lenet --mode=eval --workdir=no_step_summary => no_step_summary/summary.json
predict --workdir=word_summary --images=a.png => word_summary/summary.json
predict --workdir=far_summary --images=a.png => 99
resnet --mode=eval --workdir=run => lenet
resnet --mode=evaluate --workdir=net => train|eval

# images
resnet --dataset= => dataset ''
resnet --dataset=mnst => mnst
resnet --dataset=DIGITS => DIGITS
resnet --dataset=mnist --data_dir=file => file
resnet --dataset=../images => ../images
resnet --dataset=folder: => folder
resnet --dataset=idx:missing => train-images-idx3-ubyte
resnet --dataset=folder:missing => missing
resnet --dataset=folder:file => file
resnet --dataset=folder:emptied => emptied
resnet --dataset=folder:images/flat --batch_size=2 => no classes
resnet --dataset=folder:images/only_test => train
resnet --dataset=folder:images/training => train
resnet --dataset=folder:images/no_images => no_images
resnet --dataset=folder:images/tiff_only => tiff_only
resnet --dataset=folder:images/file_train => file_train
resnet --dataset=folder:images/new_class --batch_size=2 => bird
resnet --dataset=folder:images/sound => 8
resnet --dataset=folder:images/text --batch_size=2 --epochs=1 => cat/0.png
resnet --dataset=folder:images/zero --batch_size=2 --epochs=1 => cat/0.png
resnet --dataset=folder:images/cut --batch_size=2 --epochs=1 => cat/0.png
resnet --dataset=folder:images/dangling --batch_size=2 --epochs=1 => cat/0.png
resnet --dataset=folder:images/looping --batch_size=2 --epochs=1 => cat/0.png
resnet --dataset=folder:images/huge --batch_size=2 --epochs=1 => cat/0.png
resnet --dataset=folder:images/endless --batch_size=2 --epochs=1 => cat/0.png
resnet --dataset=folder:images/text --batch_size=2 --epochs=1 --workers=1 => cat/0.png
resnet --dataset=folder:images/text --batch_size=2 --epochs=1 --backend=grain => cat/0.png
pixels --dataset=folder:missing => missing
pixels --dataset=folder:images/text => cat/0.png
pixels --dataset=folder:images/sound --output=missing/pixels.json => missing/pixels.json
pixels --dataset=folder:images/sound --output=emptied => emptied
pixels --dataset=folder:images/sound --output=/dev/full => No space left
pixels --image_size=0 => image size 0
pixels --crop_share=2 => crop share 2
studies.checkerboard --dataset=ring => ring
studies.checkerboard --image_size=20 => 20
studies.checkerboard --dataset=folder:missing --steps=1 => missing

# weights and prediction
predict => --workdir=RUN
predict --workdir=run => --images
predict --images=a.png => --workdir=RUN
predict --workdir=run --model=resnet18 --images=a.png => --workdir=RUN
predict --workdir=missing --images=a.png => no run in missing
predict --workdir=chars --images=a.png => char_rnn
predict --workdir=run --images=missing.png => missing.png
predict --workdir=run --images=binary => binary
predict --workdir=run --images=emptied => emptied
predict --workdir=run --images=images/huge/train/cat/0.png => 0.png
predict --workdir=unheard_flags --images=a.png => lennet
predict --workdir=foreign_flags --images=a.png => training
predict --workdir=binary_flags --images=a.png => binary_flags
predict --workdir=run_cut --images=a.png => run_cut/inputs.json
predict --workdir=run_list --images=a.png => run_list/inputs.json
predict --workdir=run_empty --images=a.png => run_empty/inputs.json
predict --workdir=run_no --images=a.png => run_no/inputs.json
predict --workdir=few_classes --images=a.png => few_classes
predict --workdir=no_checkpoints --images=a.png => no_checkpoints
predict --workdir=other_checkpoints --images=a.png => other_checkpoints
predict --model=resnet18 --images=a.png => --weights
predict --model=resnet18 --weights=missing.safetensors --images=a.png => missing.safetensors
predict --model=resnet18 --weights=weights/foreign.safetensors --images=a.png => foreign.safetensors
predict --model=resnet18 --weights=weights/cut.safetensors --images=a.png => cut.safetensors
predict --model=resnet18 --weights=weights/header.safetensors --images=a.png => header.safetensors
predict --model=resnet18 --weights=weights/empty.safetensors --images=a.png => empty.safetensors
predict --model=resnet18 --weights=weights/folder.safetensors --images=a.png => folder.safetensors
predict --model=resnet18 --weights=weights/words.bin --images=a.png => .safetensors
predict --model=resnet18 --weights=weights/text.npz --images=a.png => text.npz
predict --model=resnet18 --weights=weights/cut.npz --images=a.png => cut.npz
predict --model=resnet18 --weights=weights/empty.npz --images=a.png => empty.npz
predict --model=resnet18 --weights=weights/objects.npz --images=a.png => objects.npz
predict --model=resnet18 --weights=weights/none.npz --images=a.png => missing
predict --model=resnet18 --weights=weights/foreign.npz --images=a.png => readme.txt
predict --model=resnet18 --weights=weights/text.pth --images=a.png => .pth
predict --model=resnet18 --weights=weights/code.pth --images=a.png => .pth
predict --model=resnet19 --weights=weights/foreign.npz --images=a.png => resnet18
predict --model=lenet5 --weights=weights/foreign.npz --images=a.png => lenet5
predict --model=resnet18 --weights=weights/foreign.npz --resize=10 --images=a.png => --resize=10
transfer => --from_run
transfer --from_run=missing => missing
transfer --from_run=chars => char_rnn
transfer --from_run=run --from_weights=weights/foreign.npz => give one of them
transfer --from_run=run --head_only --freeze=c1 => give one of them
transfer --from_run=run --freeze=nothing => nothing
transfer --from_run=run --freeze=( => pattern '('
transfer --from_run=run --freeze=. => pattern '.'
transfer --from_run=run --freeze_up_to=layer9 => layer9
transfer --from_run=run --layer_decay=0 => --layer_decay=0
transfer --from_run=run --stages=c1 => --stages
transfer --from_run=run --layer_decay=0.5 --stages=nothing => nothing
transfer --from_run=run --unfreeze_every=0 => --unfreeze_every=0
transfer --from_run=run --bottleneck=file --steps=1 => file
transfer --from_run=run --bottleneck=features --augment=flip => --augment=flip
transfer --from_run=run --from_labels=weights/labels.txt => --from_labels
transfer --from_run=run_cut => run_cut/inputs.json
transfer --from_run=all_damaged => damaged
transfer --from_run=run --dataset=folder:images/flat --batch_size=2 => no classes
transfer --from_weights=missing.npz --model=resnet18 => missing.npz
transfer --from_weights=weights/foreign.npz => resnet20_cifar
transfer --from_weights=weights/foreign.npz --model=lenet5 => lenet5
studies.transfer --per_class=1 => --per_class=1
studies.transfer --per_class=5,5 => --per_class
studies.transfer --per_class=100000 => 100000
studies.transfer --workdir=file => file

# texts and pairs
char_rnn --text=missing.txt => missing.txt
char_rnn --text=empty => empty
char_rnn --text=binary => binary
char_rnn --text=latin1.txt => latin1.txt
char_rnn --text=emptied => emptied
char_rnn --text=texts/nul.txt => nul.txt
char_rnn --text=texts/short.txt => short.txt
char_rnn --text=book.txt --batch_size=5000 => 5000
char_rnn --text=book.txt --sequence_length=0 => --sequence_length=0
char_rnn --text=book.txt --sequence_length=100000 => 100000
char_rnn --text=tfds:nothing => nothing
char_rnn --text=book.txt --level=char --prompt=Ω => Ω
char_rnn --text=book.txt --prompt= => --prompt
char_rnn --text=book.txt --top_k=1000 => --top_k=1000
char_rnn --text=book.txt --temperature=0 => --temperature=0
char_rnn --text=book.txt --features=0 => features
char_rnn --text=book.txt --layers=0 => layers
char_rnn --text=book.txt --embedding=-1 => embedding
char_rnn --text=book.txt --dropout=1 => dropout
char_rnn --text=book.txt --kind=transformer => lstm
char_rnn --text=book.txt --folds=3 => --folds
char_rnn --mode=sample => --workdir
char_rnn --mode=sample --workdir=run => lenet
char_rnn --mode=sample --workdir=chars --prompt=Ω => Ω
char_rnn --mode=sample --workdir=chars --length=0 => --length=0
char_rnn --mode=sample --workdir=chars_cut => chars_cut/inputs.json
char_rnn --mode=sample --workdir=chars_list => chars_list/inputs.json
char_rnn --mode=sample --workdir=chars_empty => chars_empty/inputs.json
char_rnn --mode=sample --workdir=chars_no => chars_no/inputs.json
studies.recurrent --from_run=missing => missing
studies.recurrent --from_run=run => char_rnn
studies.recurrent --workdir=file => file
studies.recurrent --lags=0 => --lags=0
word2vec --text=missing.txt => missing.txt
word2vec --text=empty => empty
word2vec --text=binary => binary
word2vec --text=book.txt --min_count=100000 => min_count=100000
word2vec --text=texts/one_word.txt => different words
word2vec --text=book.txt --min_count=1 --words=cat,unicorn --batch_size=64 => unicorn
word2vec --text=book.txt --min_count=1 --window=0 => --window=0
word2vec --text=book.txt --subsample=2 => --subsample=2
word2vec --mode=neighbours --workdir=words --words=unicorn => unicorn
word2vec --mode=neighbours --workdir=words --neighbours=1000 => 1000 nearest
word2vec --mode=neighbours --workdir=words_cut => words_cut/inputs.json
word2vec --mode=neighbours --workdir=words_empty => words_empty/inputs.json
word2vec --mode=neighbours --workdir=words_list => words_list/inputs.json
word2vec --mode=analogies --workdir=words => --analogies
word2vec --mode=analogies --workdir=words --analogies=missing => missing
word2vec --mode=analogies --workdir=words --analogies=texts/bad.analogies => bad.analogies
word2vec --mode=analogies --workdir=words --analogies=texts/no.analogies => no.analogies
word2vec --mode=analogies --workdir=words --analogies=binary => binary
word2vec --mode=export --workdir=chars => char_rnn
seq2seq --pairs=missing.tsv => missing.tsv
seq2seq --pairs=emptied => emptied
seq2seq --pairs=empty => empty
seq2seq --pairs=binary => binary
seq2seq --pairs=texts/one_column.tsv => one_column.tsv
seq2seq --pairs=texts/three_columns.tsv => three_columns.tsv
seq2seq --pairs=texts/few.tsv => few.tsv
seq2seq --pairs=texts/blank.tsv => blank.tsv
seq2seq --pairs=texts/same.tsv => same.tsv
seq2seq --dataset=nothing => nothing
seq2seq --target_language=xx => xx
seq2seq --count=1 => expected
seq2seq --count=500 --max_length=1 => max_length
seq2seq --count=500 --vocabulary_size=1 => a vocabulary of 1
seq2seq --count=500 --vocabulary_size=-1 => a vocabulary of -1
seq2seq --count=500 --features=7 => --features=7
seq2seq --n_best=9 => --n_best=9
seq2seq --attention=none --coverage_penalty=1 => --coverage_penalty
seq2seq --mode=translate --workdir=pairs --input=missing.txt => missing.txt
seq2seq --mode=translate --workdir=pairs --input=emptied => emptied
seq2seq --mode=translate --workdir=pairs --input=binary => binary
seq2seq --mode=translate --workdir=run --input=book.txt => lenet
seq2seq --mode=translate --workdir=pairs_cut --input=book.txt => pairs_cut/inputs.json
seq2seq --mode=translate --workdir=pairs_list --input=book.txt => pairs_list/inputs.json
seq2seq --mode=translate --workdir=pairs_empty --input=book.txt => pairs_empty/inputs.json

# generating
gan --image_size=20 => 20
gan --latent_size=0 => --latent_size=0
gan --width=0 => width
gan --loss=wasserstein => --penalty
gan --penalty=r1 => --discriminator_norm
gan --penalty_weight=-1 => --penalty_weight=-1
gan --discriminator_norm=instance => spectral
gan --dataset=ring --model=dcgan => --model=dcgan
gan --dataset=ring --channels=1 => --channels
gan --conditional --dataset=folder:images/flat --validation=0.3 => no classes
gan --samples=3 => --samples=3
gan --batch_size=2000 => 1437
gan --discriminator_steps=0 => --discriminator_steps=0
gan --ema_decay= => --ema_decay
gan --plateau=2 => --plateau
gan --kernel_size=0 => kernel_size
gan --classifier=missing => missing
gan --classifier=chars => char_rnn
gan --classifier=run_cut --steps=1 => run_cut/inputs.json
gan --classifier=all_damaged --steps=1 --samples=64 => damaged
gan --dataset=folder:images/no_test --batch_size=2 => --validation
gan --dataset=folder:images/text --classifier=run --batch_size=2 --steps=4 => cat, dog
gan --mode=sample => --workdir
gan --mode=sample --workdir=missing => missing
gan --mode=sample --workdir=run => lenet
studies.mode_collapse --setups=everything => everything
studies.mode_collapse --steps=10 --frames=3 => --frames=3
studies.mode_collapse --workdir=file --steps=1 --frames=1 --setups=minimax => file

# tools
summary --model=resnet5 => resnet50
summary --model=alexnet --image_size=4 => image
summary --model=mlp --small_images => small_images
summary resnet50 => 'resnet50' is no flag
schedule --schedule= => --schedule
schedule --schedule=sine => sine
schedule --steps=0 => --steps=0
schedule --warmup_steps=-5 => -5 steps
schedule --warmup_steps=2000 --steps=1000 => 2000 steps
schedule --schedule_factor=0.1 => factor
schedule --output=schedule.txt => schedule.txt
schedule --output=missing/schedule.png => missing/schedule.png
compare => --experiment
compare --experiment=predict --flag=model --values=a,b => predict
compare --experiment=lenet --values=a,b => --flag
compare --experiment=lenet --flag=momentun --values=0.5,0.9 => momentum
compare --experiment=lenet --flag=momentum --values=0.9 => two values
compare --experiment=lenet --flag=momentum --values=0.9,0.9 => each given once
compare --experiment=lenet --flag=momentum --values=0.9,high => high
compare --experiment=lenet --flag=momentum --values=0.5,0.9 --learning_rates=0.1 => --learning_rates
compare --experiment=lenet --flag=momentum --values=0.5,0.9 --metric=eval/bleu => eval/accuracy
compare --experiment=lenet --flag=momentum --values=0.5,0.9 --mode=eval => --mode
compare --experiment=lenet --flag=momentum --values=0.5,0.9 --workdir=file => file
compare --experiment=lenet --flag=momentum --values=0.5,0.9 --dataset=folder:missing => missing
compare --experiment=lenet --flag=seed --values=0,1 => --flag=seed
compare --experiment=lenet --flag=flagfile --values=missing.flags,empty => missing.flags
benchmark --what=speed => loop
benchmark --rounds=0 => --rounds=0
benchmark everything => everything

# arrays, through the library
python data.from_arrays(images / 255, labels) => uint8
python data.from_arrays(images[..., 0], labels) => [8, 4, 4]
python data.from_arrays(images.repeat(4, axis=3), labels) => 4
python data.from_arrays(images[:0], labels[:0]) => N at least 1
python data.from_arrays(images.tolist(), labels) => uint8
python data.from_arrays(images, labels[:5]) => labels
python data.from_arrays(images, labels.astype(float)) => integers
python data.from_arrays(images, labels.astype(str)) => labels
python data.from_arrays(images, [None] * 8) => labels
python data.from_arrays(images, np.eye(8, dtype=int)) => labels
python data.from_arrays(images, labels - 1) => labels
python data.from_arrays(images, labels, class_names=["a", "b"]) => labels
python data.from_arrays(images, labels, test=(images.repeat(3, axis=3), labels)) => channels
python data.from_arrays(images, labels, test=(images, labels + 1)) => labels
python data.Pipeline(data.from_arrays(images, labels), data.Preprocess(4, 1), 9) => 8
python data.Pipeline(data.from_arrays(images, labels), data.Preprocess(4, 1), 0) => 0
python data.hold_out(data.from_arrays(images, labels), 2.0, 0) => 2
python data.fold(data.from_arrays(images, labels), 9, 0, 0) => 9
python data.select_classes(data.from_arrays(images, labels), ["cat"]) => cat
python data.subsample(data.from_arrays(images, labels), 5, 0) => 5
python data.load("folder:" + "missing") => missing
python models.create("resnet51") => resnet50
python models.create("resnet50", classes=3) => classes
python optim.optimizer("sdg") => sgd
python schedules.schedule("cosines", 10) => cosine
python schedules.schedule("cosine", 0) => steps
python checkpoint.load("missing") => missing
python checkpoint.load("run", 3) => there are
python pretrained.load("resnet5", "weights/foreign.npz") => resnet50
"""
