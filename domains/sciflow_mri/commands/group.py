"""The command line of this domain: `sciflow mri prepare | train | sample | evaluate | report`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from sciflow_mri.commands.options import FILE, OUTPUT, raw_options, scan_choices, tests_options

__all__ = ["mri"]

_DEVICE = click.option("--device", help="cpu, cuda, cuda:1, mps.  [default: cpu]")
_POSTERIORS = ("acceleration", "calibration", "coupling")
_SEED = click.option("--seed", type=click.IntRange(0), default=0, show_default=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def mri() -> None:
    """From an undersampled multi-coil scan to draws of its image, with a certificate.

    Scans are fastMRI HDF5, ISMRMRD/MRD, BART .cfl/.hdr, NumPy .npy/.npz, or what `prepare` wrote (.nc).
    Results are relative to the prior and the model. They are not for diagnosis.

    \b
    sciflow mri prepare  scan.h5 --size 64 --output scan.nc
    sciflow mri sample   scan.nc --prior 64 --output result
    sciflow mri evaluate result --truth full.h5
    sciflow mri report   result
    sciflow mri train    heads/*.nii.gz --hold-out ch2 --size 64 --output prior
    """


@mri.command()
@click.argument("scan", type=FILE)
@click.option("--output", "-o", type=FILE, required=True, help="Prepared scan to write, ending in .nc.")
@raw_options
def prepare(scan: Path, output: Path, **options: Any) -> None:
    """Read a raw scan, remove readout oversampling, prewhiten, find mask and calibration lines, and write it as netCDF.

    \b
    sciflow mri prepare scan.h5 -o scan.nc
    sciflow mri prepare brain.cfl --size 64 --acceleration 4 --calibration 8 -o scan.nc
    """
    from sciflow_mri.commands.work import prepare_scan

    click.echo(prepare_scan(scan, output, scan_choices(options)))


@mri.command()
@click.argument("volumes", type=FILE, nargs=-1, required=True)
@click.option("--output", "-o", type=OUTPUT, required=True, help="Model folder to write; an older one is replaced.")
@click.option("--hold-out", multiple=True, required=True, metavar="NAME", help="Person (file name) to validate on; repeatable.")
@click.option(
    "--kind", type=click.Choice(["prior", "null-space", "amortised"]), default="prior", show_default=True,
    help="A prior for any scan; a normalising flow over the unmeasured lines; or a flow given the scan, for any mask of lines.",
)  # fmt: skip
@click.option("--size", type=click.IntRange(8), default=64, show_default=True, help="Images of SIZE x SIZE.")
@click.option("--images", type=click.IntRange(1), default=4096, show_default=True, help="Training images, made once.")
@click.option("--validation-images", type=click.IntRange(1), default=256, show_default=True)
@click.option("--epochs", type=click.IntRange(1), default=20, show_default=True)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Stop after the epoch that reaches this.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True)
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=1e-3, show_default=True)
@click.option("--widths", default="64,128,192", show_default=True, help="Channels of the U-Net's levels.")
@click.option("--blocks", type=click.IntRange(1), default=2, show_default=True, help="Of each level.")
@click.option(
    "--patch", type=click.IntRange(1), default=2, show_default=True, help="Pixels a side that become one; 4 above 100."
)
@click.option("--precision", type=click.Choice(["bf16", "float32"]), default="bf16", show_default=True)
@click.option("--half", is_flag=True, help="Store the weights in float16.")
@click.option("--clip", is_flag=True, help="Set negative voxels of the volumes to 0 instead of refusing them.")
@click.option(
    "--coverage-scans", type=click.IntRange(0), default=8, show_default=True,
    help="Simulated scans of each held-out person on which the coverage of intervals is measured; 0 for none.",
)  # fmt: skip
@click.option("--start", type=FILE, help="Prior whose weights a prior or an amortised posterior begins with.")
@click.option("--licence", "licences", multiple=True, metavar="NAME=TEXT", help="Of a volume's data; repeatable.")
@click.option("--checkpoint", type=OUTPUT, help="Folder for the state of the training: repeated, the command goes on from it.")
@click.option(
    "--acceleration", type=click.FloatRange(1, min_open=True), default=4.0, show_default=True, help="Null-space: of its masks."
)
@click.option("--calibration-lines", "calibration", type=click.IntRange(2), default=8, show_default=True, help="Null-space.")
@click.option("--coupling", type=click.Choice(["affine", "spline"]), default="affine", show_default=True, help="Null-space.")
@_DEVICE
@_SEED
@click.pass_context
def train(context: click.Context, volumes: tuple[Path, ...], output: Path, kind: str, **options: Any) -> None:
    """Train a prior or a learned posterior from magnitude heads (NIfTI files, DICOM folders), one per person.

    Whoever is held out is in no training image. The folder has the weights and a README with data, licences, minutes, figures.

    \b
    sciflow mri train a.nii.gz b.nii.gz c.nii.gz --hold-out c --size 64 --checkpoint state -o prior
    sciflow mri train a.nii.gz b.nii.gz c.nii.gz --hold-out c --kind null-space --acceleration 4 -o lines4
    sciflow mri train a.nii.gz b.nii.gz c.nii.gz --hold-out c --kind amortised --start prior -o posterior
    """
    if kind == "prior":
        from sciflow_mri.commands.training import train_model

        for name in _POSTERIORS:
            options.pop(name)
        click.echo(train_model(volumes, output, **options))
        return
    from sciflow_mri.commands.training_posteriors import train_posterior

    for name in ("widths", "blocks", "learning_rate", "batch_size"):  # each kind has defaults of its own
        if context.get_parameter_source(name) is ParameterSource.DEFAULT:
            options[name] = None
    click.echo(train_posterior(kind, volumes, output, **options))


@mri.command()
@click.argument("scan", type=FILE)
@click.option("--output", "-o", type=OUTPUT, required=True, help="Folder for the results.")
@click.option(
    "--prior", metavar="FOLDER|SIZE",
    help="Model folder of any kind, or size of a shipped prior.  [default: the scan's size]",
)  # fmt: skip
@click.option("--slice", "number", type=click.IntRange(0), help="Slice to reconstruct.  [default: the only one]")
@click.option("--volume", is_flag=True, help="All slices, each kept as soon as it is done; repeated, the command goes on.")
@click.option("--draws", "-n", type=click.IntRange(1), default=32, show_default=True, help="Of each slice.")
@click.option("--chunk", type=click.IntRange(1), default=16, show_default=True, help="Draws at once: fewer need less memory.")
@click.option("--sigma", type=click.FloatRange(0, min_open=True), help="Noise, of real and imaginary part each, if known.")
@click.option(
    "--maps", type=click.Choice(["joint", "calibration"]), default="joint", show_default=True,
    help="Coil sensitivities: together with the image, as much time as 14 to 20 draws; or of the calibration lines alone, "
    "which learned posteriors take.",
)  # fmt: skip
@click.option("--precision", type=click.Choice(["bf16", "float32"]), default="bf16", show_default=True)
@click.option(
    "--settle",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Start again with twice the moves, up to N times, until the chains of the sampler agree.",
)
@click.option("--dask", metavar="ADDRESS", help='Slices in parallel: a Dask scheduler, "tcp://host:8786", or "local".')
@click.option("--workers", type=click.IntRange(1), help="Of a local cluster.")
@click.option("--again", is_flag=True, help="Draw a volume anew instead of going on with what is there.")
@_DEVICE
@_SEED
@tests_options
@raw_options
@click.pass_context
def sample(context: click.Context, scan: Path, output: Path, **options: Any) -> None:
    """Draw images given a scan; write draws, mean, standard deviation, picture, report and certificate.

    \b
    Files: posterior.nc (a volume: posterior.zarr, images.nc), mean.nii.gz,
           std.nii.gz, posterior.png, report.html, certificate.json
    Exit code 0: done (and the verdict is as good as --require).
              2: something is wrong with the scan or the options.
              3: the scan is out of the distribution of the prior and there is
                 no --force, or the verdict is not as good as --require.
    \b
    sciflow mri sample scan.nc -o result
    sciflow mri sample knee.h5 --prior prior320 --volume --dask local -o result
    """
    from sciflow_mri.commands.work import sample_scan

    context.exit(sample_scan(scan, output, scan_choices(options), **options))


@mri.command()
@click.argument("result", type=FILE)
@click.option("--truth", type=FILE, required=True, help="The same scan, fully sampled (any scan file).")
@raw_options
def evaluate(result: Path, truth: Path, **options: Any) -> None:
    """Compare a result (folder or posterior.nc) with the fully sampled scan; write evaluation.json, picture and report.

    \b
    sciflow mri evaluate result --truth full.h5
    """
    from sciflow_mri.commands.evaluating import evaluate_result

    for line in evaluate_result(result, truth, scan_choices(options)):
        click.echo(line)


@mri.command()
@click.argument("result", type=FILE)
@click.option("--output", "-o", type=OUTPUT, help="Folder to write to.  [default: that of the result]")
@tests_options
@click.pass_context
def report(context: click.Context, result: Path, output: Path | None, require: str | None, force: bool) -> None:
    """Hold the certificate of a result against its draws, and write images, picture and page again.

    \b
    sciflow mri report result --require pass
    """
    from sciflow_mri.commands.work import report_result

    context.exit(report_result(result, output, require, force))
