"""`sciflow sample` and `sciflow certify`: draws from a learned posterior, and how far to trust them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sciflow.arguments import resolve

__all__ = ["certify", "sample"]


@click.command("certify")
@click.argument("path", metavar="DRAWS", type=click.Path(path_type=Path))
@click.option("--require", type=click.Choice(["pass", "warn"]), help="Exit with 3 unless the verdict is this good.")
@click.option("--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write a page (.html or .png).")
@click.pass_context
def certify(context: click.Context, path: Path, require: str | None, page: Path | None) -> None:
    """Print the certificate of draws (netCDF file or Zarr folder) and hold it against them.

    \b
    Exit code 0: the certificate was printed (and is as good as --require).
              2: no such file, no draws, damaged, no certificate, or the
                 certificate of other draws (their sha256 differ).
              3: the verdict is not as good as --require, or the draws are an
                 estimate.
    """
    context.exit(resolve("sciflow.posterior.certify:certify")(path, require, page))


@click.command("sample")
@click.argument("model", type=click.Path(file_okay=False, path_type=Path))
@click.argument("observations", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), required=True, help="Zarr folder of the draws.")
@click.option("--draws", "-n", type=click.IntRange(1), default=1000, show_default=True, help="Of every observation.")
@click.option("--variable", help="Name of the array in OBSERVATIONS, if there are several.")
@click.option("--dask", metavar="ADDRESS", help='A Dask scheduler, "tcp://host:8786", or "local".')
@click.option("--workers", type=click.IntRange(1), help="Of a local cluster.")
@click.option("--chunk", type=click.IntRange(1), default=8, show_default=True, help="Observations written together.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--force", is_flag=True, help="Draw for observations far from all simulations too.")
@click.option("--again", is_flag=True, help="Replace OUTPUT instead of going on with it.")
def sample(again: bool, force: bool, **options: Any) -> None:
    """Draw from a learned posterior (model folder) for every row of OBSERVATIONS (.npy, .npz, netCDF, Zarr).

    Each observation gets its own certificate. An interrupted run goes on when it is called again with the same options, and
    the draws are the same in series and on any cluster.
    """
    resolve("sciflow.posterior.sample:sample")(**options, force=force, resume=not again)
