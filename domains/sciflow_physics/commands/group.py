"""The command line of this domain: `sciflow physics fit | apply | validate | export | roles`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sciflow.errors import UserError
from sciflow_physics.commands.arguments import (
    load_correction,
    numbers_of,
    part_of,
    record_of,
    refuse_target,
    roles_named,
    weights_of,
)

__all__ = ["physics"]

_FILE = click.Path(path_type=Path)
_MODEL = click.option("--model", type=_FILE, required=True, help="Folder of a correction that `fit` wrote.")
_TREES = (
    click.option("--sim-tree", help="TTree or HDF5 group of the simulation, if its file has several."),
    click.option("--data-tree", help="TTree or HDF5 group of the data, if its file has several."),
)


def _both_trees(function: Any) -> Any:
    for option in reversed(_TREES):
        function = option(function)
    return function


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def physics() -> None:
    """Make a simulated ntuple look like data.

    Files are ROOT, parquet, HDF5 or CSV, by their ending. What the columns mean stands in a roles file
    (`sciflow physics roles` prints one to start from).

    \b
    sciflow physics fit      --sim mc.root --data data.root --roles zee.toml --output correction
    sciflow physics apply    --model correction --input mc.root --output mc_corr.root
    sciflow physics validate --model correction --sim mc.root --data data.root --output report
    sciflow physics export   --model correction --output correction.onnx
    """


@physics.command()
@click.option("--sim", type=_FILE, required=True, help="Simulated events.")
@click.option("--data", type=_FILE, required=True, help="Real events.")
@click.option("--roles", required=True, help="Roles file (TOML), or the name of a preset such as zee.")
@click.option("--output", type=_FILE, required=True, help="Folder for the correction; an older one is replaced.")
@click.option(
    "--method", type=click.Choice(["switch", "conditional"]), default="switch", show_default=True,
    help="One flow with a simulation/data switch, or a flow conditional on the simulated row.",
)  # fmt: skip
@click.option("--folds", type=click.IntRange(1), default=2, show_default=True, help="Cross-fitting folds over events.")
@click.option("--members", type=click.IntRange(0), default=4, show_default=True, help="Bootstrap members for the band.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=60, show_default=True, help="Of the nominal training.")
@click.option("--member-epochs", type=click.IntRange(1), help="Of each member's training.  [default: a third of --epochs]")
@click.option("--batch-size", type=click.IntRange(1), default=512, show_default=True)
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=2e-3, show_default=True)
@click.option("--transforms", type=click.IntRange(1), default=4, show_default=True, help="Layers of the flow.")
@click.option("--bins", type=click.IntRange(2), default=8, show_default=True, help="Of each spline.")
@click.option("--hidden", default="64,64", show_default=True, help="Widths of the hidden layers.")
@click.option("--kind", type=click.Choice(["coupling", "autoregressive"]), default="coupling", show_default=True)
@click.option("--weight-decay", type=click.FloatRange(0), default=0.0, show_default=True, help="Of the networks' matrices.")
@click.option(
    "--normal-scores/--no-normal-scores", default=None,
    help="Settle the marginals of each category before the flow.  [default: yes for --method switch]",
)  # fmt: skip
@click.option("--checkpoint", type=_FILE, help="Folder for the state of the trainings: the command, repeated, goes on from it.")
@click.option("--patience", type=click.IntRange(1), help="Stop after so many epochs without a better validation loss.")
@_both_trees
def fit(sim: Path, data: Path, roles: str, output: Path, sim_tree: str | None, data_tree: str | None, **options: Any) -> None:
    """Learn a correction from simulation and data.

    \b
    sciflow physics fit --sim mc.root --data data.parquet --roles roles.toml --output correction
    sciflow physics fit --sim sim.csv --data data.csv --roles zee --output quick --epochs 5 --members 0
    """
    import sciflow
    from sciflow_physics.data import read
    from sciflow_physics.model import fit_correction

    refuse_target(output)
    if options["members"] == 1:
        raise UserError("--members 1 makes no band: use 0 or at least 2")
    parsed = roles_named(roles)
    hidden = numbers_of(options.pop("hidden"), "--hidden")
    simulation, real = read(sim, parsed, tree=sim_tree), read(data, parsed, tree=data_tree)
    correction = fit_correction(simulation, real, parsed, hidden=hidden, **options)
    record = {"simulation": record_of(sim, simulation), "data": record_of(data, real), "options": {**options, "hidden": hidden}}
    sciflow.save(correction, output, metadata={**record, "summary": getattr(correction, "summary", {})})
    click.echo(f"{output}: {options['method']} correction of {', '.join(parsed.feature_names)}")


@physics.command()
@_MODEL
@click.option("--input", "source", type=_FILE, required=True, help="Simulated events.")
@click.option("--output", type=_FILE, required=True, help="File to write; its ending says the format.")
@click.option("--tree", help="TTree or HDF5 group, if the input has several.")
@click.option("--friend", "mode", flag_value="friend", help="Tree `corr` with the new columns only (ROOT to ROOT: default).")
@click.option("--in-place", "mode", flag_value="in-place", help="Add branches; --output may be the input, replaced at the end.")
@click.option("--copy", "mode", flag_value="copy", help="All original columns and the new ones (otherwise: default).")
@click.option(
    "--chunk", metavar="I/N", help="Only the I-th of N parts of the entries, I = 1 ... N; the same rows as in one job."
)
@click.option("--rows-per-chunk", type=click.IntRange(1), default=50_000, show_default=True, help="Rows in memory at a time.")
@click.option("--roles", help="Roles file instead of the model's own, with the same features and conditions.")
def apply(
    model: Path,
    source: Path,
    output: Path,
    tree: str | None,
    mode: Any,
    chunk: str | None,
    rows_per_chunk: int,
    roles: str | None,
) -> None:
    """Correct a file of any size.

    New columns per feature: <column>_corr, <column>_corr_up, <column>_corr_down; and out_of_support, weight_kinematic and
    corrected. Entries that fail the selection keep their values and have corrected = false.

    \b
    sciflow physics apply --model correction --input mc.root --output mc_corr.root
        then in ROOT: events->AddFriend("corr", "mc_corr.root")
    sciflow physics apply --model correction --input mc.root --output mc.root --in-place
    sciflow physics apply --model correction --input mc.root --output mc_corr.parquet
    sciflow physics apply --model correction --input mc.root --output part3.root --chunk 3/40
    """
    from sciflow_physics.writing.streaming import apply_file

    part = part_of(chunk)
    correction = load_correction(model)
    used = correction.roles
    if roles is not None:
        used = roles_named(roles)
        for kind in ("feature_names", "condition_names"):
            ours, theirs = getattr(used, kind), getattr(correction.roles, kind)
            if ours != theirs:
                raise UserError(
                    f"{roles}: its {kind.partition('_')[0]}s are {', '.join(ours)}; the model's are {', '.join(theirs)}"
                )
    done = apply_file(
        correction, source, output, used, tree=tree, mode=mode, chunk=part, rows_per_chunk=rows_per_chunk,
        provenance={"model": weights_of(correction)},
    )  # fmt: skip
    click.echo(str(done))


@physics.command()
@_MODEL
@click.option("--sim", type=_FILE, required=True, help="Simulated events.")
@click.option("--data", type=_FILE, required=True, help="Real events.")
@click.option("--output", type=_FILE, required=True, help="Folder for closure.html, figures and JSON.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--bootstrap", type=click.IntRange(10), default=200, show_default=True, help="Resamplings of events for errors.")
@click.option("--strict", is_flag=True, help="Exit code 3 unless every test is passed.")
@_both_trees
def validate(
    model: Path,
    sim: Path,
    data: Path,
    output: Path,
    seed: int,
    bootstrap: int,
    strict: bool,
    sim_tree: str | None,
    data_tree: str | None,
) -> None:
    """Write a closure report: does the corrected simulation look like the data?

    Events of the training files are corrected by the fold that has not seen them.

    \b
    sciflow physics validate --model correction --sim mc.root --data data.root --output report
    """
    from sciflow_physics.data import read
    from sciflow_physics.report import closure

    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file; name a folder for the report")
    correction = load_correction(model)
    roles = correction.roles
    before, real = read(sim, roles, tree=sim_tree), read(data, roles, tree=data_tree)
    files = {"simulation": record_of(sim, before), "data": record_of(data, real), "model": weights_of(correction)}
    certificate = closure(
        before, correction.apply(before), real, roles, folder=output, seed=seed, bootstrap=bootstrap, context={"files": files}
    )
    click.echo(str(certificate))
    click.echo(f"{output / 'closure.html'}: {certificate.verdict}")
    if strict and certificate.verdict != "passed":
        raise click.exceptions.Exit(3)


@physics.command()
@_MODEL
@click.option("--output", type=_FILE, required=True, help="File to write, ending in .onnx.")
@click.option("--fold", type=click.IntRange(0), default=0, show_default=True, help="Which of the cross-fitted models.")
@click.option("--band/--no-band", default=True, help="With or without the ends of the band (all members' networks).")
@click.option("--precision", type=click.Choice(["float64", "float32"]), default="float64", show_default=True)
@click.option("--opset", type=click.IntRange(17, 20), default=18, show_default=True)
def export(model: Path, output: Path, fold: int, band: bool, precision: str, opset: int) -> None:
    """Write a correction as ONNX, preprocessing included, for any batch size; compared with torch before it is kept.

    Inputs are in physical units (float64): features, conditions, category (position in the list), uniform random numbers
    for point masses, noise and mask where the correction has them. Names and units are in the file's metadata.

    \b
    sciflow physics export --model correction --output correction.onnx
    """
    from sciflow_physics.export import export_onnx

    written = export_onnx(load_correction(model), output, fold=fold, band=band, precision=precision, opset=opset)
    click.echo(f"{written}: {written.stat().st_size:,} bytes")


@physics.command("roles")
@click.argument("roles", required=False)
@click.argument("file", type=_FILE, required=False)
@click.option("--tree", help="TTree or HDF5 group, if the file has several.")
def describe(roles: str | None, file: Path | None, tree: str | None) -> None:
    """Print a roles file to start from, check one, or try one on a file.

    \b
    sciflow physics roles > roles.toml
    sciflow physics roles roles.toml
    sciflow physics roles roles.toml mc.root
    """
    from sciflow_physics.commands.describe import description, template

    click.echo(template() if roles is None else description(roles_named(roles), file, tree), nl=False)
