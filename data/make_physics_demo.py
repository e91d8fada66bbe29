"""Write the embedded demo pair of the physics domain: `python data/make_physics_demo.py [folder]`.

Two analytic generators of this project with known conditional quantile functions (`sciflow_physics.truth`): no events of
any experiment, no file from elsewhere. Licence: that of the project, Apache-2.0. The same seeds give the same values;
single precision halves the files.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "domains"))

from sciflow_physics import truth

ROWS, NEGATIVE = 5000, 0.05
SEEDS = {"sim": 2026, "data": 2027}
NAMES = {"sim": "demo_simulation.parquet", "data": "demo_data.parquet"}
TITLE = "# Roles of the embedded demo pair, written by data/make_physics_demo.py."


def table(kind: str) -> pa.Table:
    """One sample: features, conditions, mass and weight in single precision, region as text, number as the event id."""
    rows = truth.draw(kind, ROWS, SEEDS[kind], negative=NEGATIVE if kind == "data" else 0.0)  # type: ignore[arg-type]
    names = [*truth.FEATURES, "pt", "eta", "mass", "weight"]
    columns = {name: rows[name].values.astype(np.float32) for name in names}
    # rounding must not move an electron across the border of a region
    assert np.array_equal(np.abs(columns["eta"]) < 1.5, rows["category"].values == "EB")
    columns["region"] = pa.array(rows["category"].values.tolist()).dictionary_encode()
    columns["number"] = rows["event"].values
    return pa.table(columns)


def main() -> None:
    """Write both samples and their roles, each file whole or not at all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[1] / "domains" / "sciflow_physics" / "samples"
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for kind, name in NAMES.items():
        beside = folder / f"{name}.tmp-{os.getpid()}"
        try:
            options = {
                "compression": "zstd",
                "compression_level": 19,
                "use_byte_stream_split": True,
                "use_dictionary": ["region"],
            }
            parquet.write_table(table(kind), beside, **options)
            os.replace(beside, folder / name)
        finally:
            beside.unlink(missing_ok=True)
    beside = folder / f"demo.toml.tmp-{os.getpid()}"
    text = "\n".join([TITLE, *truth.ROLES.strip().splitlines()[1:]])
    beside.write_text(text + "\n", encoding="utf-8")
    os.replace(beside, folder / "demo.toml")


if __name__ == "__main__":
    main()
