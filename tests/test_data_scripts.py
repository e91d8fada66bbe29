"""The scripts that make embedded and generated data reproduce what is registered."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from sciflow import datasets

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.data
def test_zee_simulation_is_reproduced_byte_for_byte(science_data: Path, tmp_path: Path) -> None:
    specification = importlib.util.spec_from_file_location("make_zee_simulation", ROOT / "data" / "make_zee_simulation.py")
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    folder = science_data / "physics"
    events = np.load(folder / "zee7_generator.npz")
    columns = dict(zip(events["cols"], events["x"].T.astype(float), strict=True))
    made = tmp_path / "made.csv"
    frame = script.detector(columns, np.load(folder / "minbias7_cones.npz")["x"])
    frame.to_csv(made, index=False, float_format="%.6g")
    assert hashlib.sha256(made.read_bytes()).hexdigest() == datasets.entries()["zee_simulation"].sha256
