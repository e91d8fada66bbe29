"""Every notebook runs from top to bottom, on what comes with the package; notebooks are kept without outputs."""

import os
import sys
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def execute(path, folder, monkeypatch, **environment):
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient

    for name, value in {"SCIFLOW_NOTEBOOK_QUICK": "1", "OMP_NUM_THREADS": "1", "TMPDIR": str(folder), **environment}.items():
        monkeypatch.setenv(name, value)
    # this interpreter, whatever kernels the machine has installed; its files stay in the test's folder
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(folder / name))
    manager = KernelManager(kernel_name="python3")
    manager._kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], display_name="Python", language="python"
    )
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, km=manager, timeout=280, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def text_of(notebook):
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", "")) for output in outputs)


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == [
        "mri_scan_to_posterior", "physics_sim_to_data", "posterior_oscillator", "transport_five_methods",
    ]  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_physics_runs_on_the_embedded_pair(tmp_path, monkeypatch):
    monkeypatch.delenv("SCIFLOW_DATA", raising=False)
    text = text_of(execute(FOLDER / "physics_sim_to_data.ipynb", tmp_path, monkeypatch))
    assert "embedded pair" in text and "auc_excess" in text and "closure.html" in text


def test_posterior_runs_with_a_short_training(tmp_path, monkeypatch):
    text = text_of(execute(FOLDER / "posterior_oscillator.ipynb", tmp_path, monkeypatch))
    assert "log-likelihood" in text and "k-hat" in text and "R-hat" in text and "verdict:" in text
    assert (tmp_path / "oscillator.nc").is_file()


def test_transport_runs_with_a_short_training(tmp_path, monkeypatch):
    text = text_of(execute(FOLDER / "transport_five_methods.ipynb", tmp_path, monkeypatch))
    assert "data to data" in text and "integral" in text and "has no density here" in text


def test_mri_runs_on_the_embedded_scan(tmp_path, monkeypatch):
    monkeypatch.delenv("SCIFLOW_DATA", raising=False)
    text = text_of(execute(FOLDER / "mri_scan_to_posterior.ipynb", tmp_path, monkeypatch))
    assert "PSNR" in text and "no real scan" in text and "four times too small: failed" in text


@pytest.mark.data
@pytest.mark.slow
def test_mri_runs_on_the_real_scan(tmp_path, monkeypatch, science_data):
    environment = {"SCIFLOW_DATA": os.fspath(science_data)}
    text = text_of(execute(FOLDER / "mri_scan_to_posterior.ipynb", tmp_path, monkeypatch, **environment))
    assert "real scan: {'PSNR'" in text


@pytest.mark.data
@pytest.mark.slow
def test_physics_runs_on_real_collisions(tmp_path, monkeypatch, science_data):
    environment = {"SCIFLOW_DATA": os.fspath(science_data)}
    text = text_of(execute(FOLDER / "physics_sim_to_data.ipynb", tmp_path, monkeypatch, **environment))
    assert "real collisions" in text and "negative weights in data: 1" in text
