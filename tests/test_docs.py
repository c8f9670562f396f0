"""What the pages and docstrings say: examples run, commands exist, one dialect, short functions."""

import ast
import doctest
import importlib
import inspect
import itertools
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

import experiments.__main__ as experiments_main
from experiments.harness import cli
from jaxdl import hosts, models, pretrained

ROOT = Path(__file__).parent.parent
RECIPES = sorted(ROOT.glob("experiments/flags/*.flags"))
FILES = sorted([*ROOT.glob("jaxdl/**/*.py"), *ROOT.glob("experiments/**/*.py")])
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises")  # in this order
MOST_LINES_OF_A_FILE = 500
MOST_LINES_OF_A_FUNCTION = 80


def name_of(path):
    return str(path.relative_to(ROOT))


def definitions(tree, of=""):
    """(its dotted name, node) of every class and function of a module, nested ones too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield of + node.name, node
            yield from definitions(node, f"{of}{node.name}.")
        else:
            yield from definitions(node, of)


# The dialect of docstrings


def faults(doc):
    """What of a docstring, its margin removed, is not in the dialect of this house."""
    found, lines = [], doc.splitlines()
    summary = " ".join(lines[: lines.index("")] if "" in lines else lines)
    if not re.search(r"[.:?!]$|: --\w+=", summary):  # or a usage, for --help to show
        found.append(f"no sentence: {lines[0]!r}")
    titles = []
    for line, following in itertools.pairwise([*lines[1:], ""]):
        title = re.fullmatch(r"(\s*)([A-Z][a-z]+):", line)
        if not title:
            continue
        margin, word = title.groups()
        titles.append(word)
        if word not in SECTIONS:
            found.append(f"no section of ours: {line!r}")
        elif margin:
            found.append(f"a section that is indented: {line!r}")
        elif not re.match(r"  \S", following):
            found.append(f"not two spaces further than its title: {following!r}")
    places = [SECTIONS.index(word) for word in titles if word in SECTIONS]
    if places != sorted(set(places)):
        found.append(f"sections out of order: {titles}")
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_docstrings_have_one_dialect(path):
    tree = ast.parse(path.read_text())
    found = []
    for name, node in [("the module", tree), *definitions(tree)]:
        if doc := ast.get_docstring(node):
            found += [f"{name}: {fault}" for fault in faults(doc)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("doc", "fault"),
    [
        ("Adds.\n\nArgs:\n  x: one.\n    And more of it.\n  y: two.\n\nReturns:\n  A sum.", None),
        ("Adds:\n\n    add(1, 2)", None),
        ("Adds numbers: --numbers=A,B", None),
        ("Adds", "no sentence"),
        ("Adds.\n\nArgs:\n    x: one.", "two spaces"),
        ("Adds.\n\nArgs:\nx: one.", "two spaces"),
        ("Adds.\n\nArgs:\n\n  x: one.", "two spaces"),
        ("Adds.\n\nParameters:\n  x: one.", "no section"),
        ("Adds.\n\nAll.\n\n  Args:\n    x: one.", "indented"),
        ("Adds.\n\nRaises:\n  ValueError: two.\n\nArgs:\n  x: one.", "order"),
    ],
)
def test_the_dialect_tells_faults(doc, fault):
    found = faults(inspect.cleandoc(doc))
    assert (not found) if fault is None else (len(found) == 1 and fault in found[0]), found


# Examples


def test_examples_in_docstrings_run():
    """Every `>>>` of the library and the harness."""
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed = []
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if ">>>" not in path.read_text() or parts[:2] == ("experiments", "studies"):
            continue
        module = importlib.import_module(".".join(p for p in parts if p != "__init__"))
        result = doctest.testmod(module, optionflags=options)
        assert result.attempted, f"{path}: no example was found"
        failed += [name_of(path)] * result.failed
    assert not failed, f"{failed}; what differs is in the output above"


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_python_of_pages_compiles(path):
    for block in blocks(path.read_text(), "python"):
        compile(block, name_of(path), "exec")


# By what the names and numbers on a page are replaced where it runs here.
SMALLER = {
    'create("resnet50"': 'create("lenet5"',
    "resnet50": "resnet18",
    "224": "32",
    "epochs=10": "epochs=1",
}


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p.read_text(), "python")], ids=name_of)
def test_python_of_pages_runs(path, tmp_path, monkeypatch):
    """As it stands there, block after block, but by smaller networks, images and counts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hosts, "_last_word", threading.Lock())  # which a page speaks
    text = path.read_text()
    for given, instead in SMALLER.items():
        text = text.replace(given, instead)
    if "resnet18.safetensors" in text:
        model = models.create("resnet18")
        image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
        shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        safetensors.numpy.save_file(pretrained.to_torch("resnet18", zeros), "resnet18.safetensors")
    names = {
        "images": np.zeros([8, 32, 32, 3], np.float32),
        "batch": {
            "image": np.zeros([8, 32, 32, 3], np.uint8),
            "label": np.arange(8, dtype=np.int32),
            "mask": np.ones([8], np.float32),
            "key": jax.random.split(jax.random.key(1), 8),
        },
    }
    for block in blocks(text, "python"):
        exec(block, names)
    if path.parent.name == "api":  # which hold to what they show themselves
        return
    if "logits" in names:
        assert names["logits"].shape == (8, 10)
    if "metrics" in names:
        assert np.isfinite(names["metrics"]["loss"].value)


def test_pages_say_what_is_replaced_where_they_run():
    text = "".join(path.read_text() for path in PAGES)
    assert [given for given in SMALLER if given not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arrays_to_run", "step_to_mesh"])
def test_scripts_of_the_tutorial_run(name, tmp_path):
    script = ROOT / "docs" / "tutorial" / f"{name}.py"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_module_is_on_a_page_of_the_reference():
    text = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    listed = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in ROOT.glob("jaxdl/**/*.py")
    }
    assert sorted(listed) == sorted(modules)


def test_every_public_name_stands_in_an_example():
    """Every function and class of the library, in the Python of some page."""
    shown = set()
    for page in PAGES:
        for block in blocks(page.read_text(), "python"):
            shown |= set(re.findall(r"\w+", block))
    public = {
        f"{name_of(path)}: {node.name}": node.name
        for path in ROOT.glob("jaxdl/**/*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    }
    assert len(public) > 400
    assert [where for where, name in public.items() if name not in shown] == []


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert set(re.findall(r"[\w/]+\.md", text.partition("nav:")[2])) == pages


def test_pictures_are_small():
    sizes = {name_of(path): path.stat().st_size for path in (ROOT / "docs").rglob("*.png")}
    assert sizes
    assert not {name: size for name, size in sizes.items() if size > 100_000}


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 900


@pytest.mark.parametrize("path", [*PAGES, *FILES, *RECIPES], ids=name_of)
def test_commands_and_links_lead_somewhere(path):
    text = path.read_text()
    for module in re.findall(r"python -m (experiments[.\w]*)", text):
        module = module.removesuffix(".NAME").rstrip(".")
        file = ROOT / module.replace(".", "/")
        assert file.with_suffix(".py").is_file() or (file / "__main__.py").is_file(), module
    for recipe in re.findall(r"--flagfile=(experiments/[\w/.]+\.flags)", text):
        assert (ROOT / recipe).is_file(), recipe
    if path.suffix == ".md":
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)  # in code they are calls
        for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", prose):
            assert (path.parent / link).exists(), link


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_the_command_of_a_recipe_takes_its_flags(path):
    name, flags = re.search(r"^#   python -m (\S+) (.*)$", path.read_text(), re.MULTILINE).groups()
    assert flags.split()[0] == f"--flagfile={name_of(path)}"
    config, rest = cli.parse(importlib.import_module(name).Config, [f"--flagfile={path}"])
    assert rest == []
    assert config.run.workdir == f"runs/{path.stem}"


STUDIES = (
    *("approximation", "attention", "auxiliary_heads", "batch_norm", "batch_size"),
    "batch_statistics",
    *("branches", "checkerboard", "decoding", "depth", "descent"),
    *("growth", "memory", "mode_collapse", "multiply_adds", "optimizers", "paths"),
    *("perceptron", "recurrent", "regularization", "response_norm", "schedules"),
    *("smoothing", "transfer", "vanishing", "winning"),
)


def test_the_list_of_commands_tells_each_by_its_kind():
    kinds = {kind: " ".join(found) for kind, found in experiments_main.listed().items()}
    assert kinds == {
        "trains": "alexnet char_rnn densenet gan inception lenet mlp nin regression resnet seq2seq "
        "transfer vgg word2vec",
        "tools": "benchmark compare curvature doctor export pixels plan predict schedule summary",
        "studies": " ".join(f"studies.{name}" for name in STUDIES),
    }


def test_the_list_of_commands_imports_none():
    """Its lines are those of the modules, as a process that has not met JAX prints them."""
    code = """
import sys
from experiments.__main__ import main
main([])
assert "jax" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    printed = done.stdout.decode()
    assert re.search(r"^  resnet +Residual networks: He et al\. 2015", printed, re.MULTILINE)
    assert re.search(r"^  studies\.transfer +What transfer learning brings", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["resnet"], 0, "run it with python -m experiments.resnet\n"),
        (["resnet", "--steps=3"], 1, "run it with python -m experiments.resnet --steps=3\n"),
        (["resnt"], 1, "knows no resnt; did you mean resnet or lenet?\n"),
        (["mode_collapse"], 1, "did you mean studies.mode_collapse?\n"),
        (["--zzz"], 1, "knows no --zzz; without a name it lists them\n"),
    ],
)
def test_what_is_named_is_told_in_one_line(arguments, code, said, capsys):
    assert experiments_main.main(arguments) == code
    out, err = capsys.readouterr()
    line, silent = (err, out) if code else (out, err)
    assert line.endswith(said)
    assert line.count("\n") == 1
    assert line.startswith("error: ") == bool(code)
    assert not silent


# Length


def lines_of_code(node, lines):
    """How many lines a definition has, without docstrings, remarks and empty lines."""
    documentation = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(inner):
            documentation |= {*range(inner.body[0].lineno, inner.body[0].end_lineno + 1)}
    numbers = set(range(node.lineno, node.end_lineno + 1)) - documentation
    return sum(not re.match(r"\s*(#|$)", lines[number - 1]) for number in numbers)


def test_files_are_short():
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: n for name, n in lengths.items() if n > MOST_LINES_OF_A_FILE}


def test_functions_are_short():
    long = {}
    for path in FILES:
        text = path.read_text()
        for name, node in definitions(ast.parse(text)):
            length = lines_of_code(node, text.splitlines())
            if not isinstance(node, ast.ClassDef) and length > MOST_LINES_OF_A_FUNCTION:
                long[f"{name_of(path)}: {name}"] = length
    assert not long
