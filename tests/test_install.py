"""Installed from a wheel, in another folder, everything works as it does here."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The path of the wheel of this tree, built without a network: hatchling is a test's need."""
    assert importlib.util.find_spec("hatchling"), "pip install -e '.[test]'"
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command = [*build, "--no-index", "--wheel-dir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_what_they_read(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        str(path.relative_to(ROOT))
        for package in ("jaxdl", "experiments")
        for path in (ROOT / package).rglob("*.py")
    }
    assert modules <= held, modules - held
    recipes = {f"experiments/flags/{path.name}" for path in ROOT.glob("experiments/flags/*.flags")}
    assert recipes
    assert recipes | {"jaxdl/py.typed", "experiments/__main__.py"} <= held
    (about,) = (name for name in held if name.endswith(".dist-info/METADATA"))
    assert "License-Expression: Apache-2.0" in zipfile.ZipFile(wheel).read(about).decode()
    assert about.replace("METADATA", "licenses/LICENSE") in held
    tops = {name.partition("/")[0] for name in held} - {about.partition("/")[0]}
    assert tops == {"jaxdl", "experiments"}


@pytest.mark.slow
def test_an_installed_wheel_trains_a_recipe_by_name(wheel, tmp_path, environment):
    site, folder = tmp_path / "site", tmp_path / "elsewhere"
    folder.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", site, wheel], check=True, capture_output=True)

    def python(*arguments):
        # What is installed there comes before an editable install of this tree.
        env = environment | {"PYTHONPATH": str(site)}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)

    assert "\n  studies.transfer " in python("-m", "experiments").stdout
    flags = ("--steps=2", "--warmup_epochs=0", "--nohistograms")
    trained = python("-m", "experiments.mlp", "--flagfile=mlp_digits", *flags)
    assert trained.returncode == 0, trained.stderr
    assert "mlp learning digits by adam" in trained.stdout
    assert "in runs/mlp_digits\n" in trained.stdout  # as the recipe has it
    evaluated = python("-m", "experiments.mlp", "--mode=eval", "--workdir=runs/mlp_digits")
    assert evaluated.returncode == 0, evaluated.stderr
    wrong = python("-m", "experiments.mlp", "--flagfile=mlp_digit")
    assert wrong.returncode == 1
    assert "did you mean the recipe mlp_digits" in wrong.stderr
    code = "import jaxdl, experiments; print(jaxdl.__file__, experiments.__file__)"
    assert python("-c", code).stdout.count(str(site)) == 2
