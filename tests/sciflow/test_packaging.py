"""What a user gets: declared dependencies, the README's example, the Makefile's messages, the built wheel."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

import sciflow

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# module -> distribution, where they differ; numpy and friends come under their own names
DISTRIBUTION = {"sklearn": "scikit-learn"}


def _names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", text).group().lower().replace("_", "-") for text in requirements}  # type: ignore[union-attr]


def _imports(folder: Path) -> dict[str, str]:
    """Top-level names that the files of a package import, each with one file that does."""
    found: dict[str, str] = {}
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            found.update({name.partition(".")[0]: str(file.relative_to(ROOT)) for name in names})
    return found


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("sciflow", ["interop", "diagnostics", "plots", "dask"]),
        ("domains/sciflow_physics", ["physics"]),
        ("domains/sciflow_mri", ["mri", "dask"]),
    ],
)
def test_every_import_is_a_declared_dependency(folder, extras):
    optional = PROJECT["optional-dependencies"]
    required = [*PROJECT["dependencies"], *(text for extra in extras for text in optional[extra])]
    declared = _names(required) | {"requests"}  # which comes with pooch
    foreign = {
        DISTRIBUTION.get(name, name.replace("_", "-")): file
        for name, file in _imports(ROOT / folder).items()
        if name not in sys.stdlib_module_names and not name.startswith("sciflow")
    }
    assert {name: file for name, file in foreign.items() if name not in declared} == {}


def test_every_direct_dependency_is_pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0] for line in lines if not line.startswith("#")}
    optional = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    assert _names(PROJECT["dependencies"] + optional) - pinned == {"sciflow", "setuptools"}


def test_generated_data_sets_name_a_script_of_this_project():
    registry = tomllib.loads((ROOT / "sciflow" / "registry.toml").read_text())
    scripts = {name: entry["script"] for name, entry in registry.items() if entry.get("generated")}
    assert {name: script for name, script in scripts.items() if not (ROOT / script).is_file()} == {}


def test_one_version_everywhere():
    version = sciflow.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == version


def test_the_example_of_the_readme(tmp_path):
    """It is at most 15 lines long, runs in an empty folder, and prints what the README says it prints."""
    example, expected = re.findall(r"```(?:python|text)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[:2]
    assert len(example.strip().splitlines()) <= 15
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    numbers = [[float(number) for number in re.findall(r"-?\d+\.\d+", text)] for text in (done.stdout, expected)]
    assert len(numbers[0]) == len(numbers[1]) > 0
    assert numbers[0] == pytest.approx(numbers[1], abs=0.1), done.stdout  # rounding, hence training, differs between processors


def test_the_second_example_of_the_readme(tmp_path):
    example = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d+", done.stdout)]
    assert numbers == pytest.approx([1.0, -1.0, -0.4, -0.4], abs=0.35), done.stdout


def test_the_third_example_of_the_readme(tmp_path):
    example = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[2]
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    value, error, exact = (float(number) for number in re.findall(r"-?\d+\.\d+", done.stdout.splitlines()[-1]))
    assert abs(value - exact) < 4 * error + 0.005 and "passed" in done.stdout
    assert (tmp_path / "draws.nc").is_file()


def test_the_readme_rounds_what_the_benchmark_found():
    """Its table of methods holds figures of the first table of methods.md, to two decimals."""
    measured = (ROOT / "benchmarks" / "methods.md").read_text().split("## ")[1]
    rows = {cells[1].strip(): cells for line in measured.splitlines() if len(cells := line.split("|")) > 8}
    shown = (ROOT / "README.md").read_text().split("### Which method when")[1].split("All rows:")[0]
    table = [line.split("|") for line in shown.splitlines() if line.startswith("| ")][1:]
    assert len(table) >= 10
    for cells in table:
        found = rows[cells[1].strip()]
        numbers = [float(found[column].split("±")[0]) for column in (2, 4, 5)]
        assert [float(number) for number in cells[2].split("/")] == pytest.approx(numbers, abs=0.0056), cells[1]
        if cells[3].strip() != "-":
            assert float(cells[3]) == pytest.approx(float(found[6].split("±")[0]), abs=0.0056), cells[1]


def test_links_of_the_readme_exist():
    links = re.findall(r"\]\(((?!https?:|#)[^)]+)\)", (ROOT / "README.md").read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def _make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    return subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make on this machine")
def test_make_says_that_python_is_missing_or_too_old(tmp_path):
    missing = _make(tmp_path, "demo", "PYTHON=no-such-python")
    assert missing.returncode == 2
    assert "there is no 'no-such-python' on this machine; sciflow needs Python 3.11 or later" in missing.stderr
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    refused = _make(tmp_path, "test", f"PYTHON={old}")
    assert refused.returncode == 2
    assert "is Python 3.8.1; sciflow needs Python 3.11 or later" in refused.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources: the checkout is not touched, nothing is downloaded."""
    source, target = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("wheel")
    dirt = ("__pycache__", "*.egg-info", "*.tmp-*")
    source.mkdir()
    for name in ("sciflow", "domains"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns(*dirt))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A fresh environment outside the checkout with the wheel in it; its dependencies are those of this one."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True, timeout=120)
    (site,) = place.glob("lib/python*/site-packages")
    # files named by a .pth are not read for further .pth files: the editable sciflow of this environment stays out
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python"), "install", "--quiet"]
    subprocess.run([*command, "--no-deps", "--no-index", str(wheel)], check=True, timeout=120)
    return place / "bin"


def _run(command: list[str], folder: Path, timeout: float = 120) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "SCIFLOW_DATA"}}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.wheel
def test_the_wheel_holds_what_runs_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("sciflow/py.typed", "sciflow/registry.toml", "sciflow_physics/py.typed", "sciflow_physics/commands/group.py"):
        assert name in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"sciflow", "sciflow_mri", "sciflow_physics", f"sciflow-{sciflow.__version__}.dist-info"}
    sources = {file for folder in ("sciflow", "domains") for file in (ROOT / folder).rglob("*") if file.is_file()}
    expected = {file for file in sources if "__pycache__" not in file.parts and ".egg-info" not in str(file)}
    inside = {str(file.relative_to(ROOT)).removeprefix("domains/") for file in expected}
    assert {name for name in inside if name not in names} == set()  # embedded samples and templates included


@pytest.mark.wheel
def test_the_wheel_answers_outside_the_checkout(installed, tmp_path):
    where = _run([str(installed / "python"), "-c", "import sciflow, sciflow_physics; print(sciflow.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert "physics" in _run([str(installed / "sciflow"), "--help"], tmp_path)
    assert "not available" not in _run([str(installed / "sciflow"), "domains"], tmp_path)
    assert "uproot_hzz" in _run([str(installed / "sciflow"), "data", "list"], tmp_path)
    assert "apply" in _run([str(installed / "sciflow"), "physics", "--help"], tmp_path)
    assert "prepare" in _run([str(installed / "sciflow"), "mri", "--help"], tmp_path)


@pytest.mark.wheel
def test_the_wheel_runs_the_demo_outside_the_checkout(installed, tmp_path):
    told = _run([str(installed / "sciflow"), "demo", "physics", "--output", "out"], tmp_path, timeout=400)
    written = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert {".html", ".json", ".png"} <= {file.suffix for file in written}
    assert [file for file in written if str(file.relative_to(tmp_path)) not in told] == []
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
