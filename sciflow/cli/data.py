"""`sciflow data`: the public data sets."""

from __future__ import annotations

from pathlib import Path

import click

from sciflow.errors import UserError

__all__ = ["data"]


@click.group("data")
def data() -> None:
    """Public data sets: list, fetch, verify, path."""


@data.command("list")
def _list() -> None:
    """List the sets with licence, size and where they are."""
    from sciflow import datasets

    for entry in datasets.entries().values():
        found = datasets.find(entry.name)
        click.echo(f"{entry.name:<28} {entry.size_text:>9}  {entry.licence:<14} {found or entry.origin_text}")


@data.command("fetch")
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every set that can be fetched.")
@click.option("--into", type=click.Path(file_okay=False, path_type=Path), help="Folder instead of the user's cache.")
def _fetch(names: tuple[str, ...], everything: bool, into: Path | None) -> None:
    """Download sets from their official sources, checked by their checksums."""
    from sciflow import datasets

    if everything:
        names = tuple(entry.name for entry in datasets.entries().values() if entry.fetchable)
    if not names:
        raise UserError("name a set (see `sciflow data list`) or say --all")
    for name in names:
        entry = datasets.entry(name)
        click.echo(f"{name}: {entry.licence}; cite: {entry.citation}", err=True)
        click.echo(datasets.fetch(name, folder=into))
        if not entry.sha256:
            sha256 = datasets.verify(name, folder=into).sha256
            click.echo(f"{name}: unpinned, no official checksum is known; sha256 is {sha256}", err=True)


@data.command("verify")
@click.argument("names", nargs=-1)
def _verify(names: tuple[str, ...]) -> None:
    """Compare files with their checksums; exit code 2 if one is wrong, or named and absent."""
    from sciflow import datasets

    results = [datasets.verify(name) for name in names or tuple(datasets.entries())]
    for result in results:
        click.echo(f"{result.name:<28} {result.status:<9} {result.path or ''}")
    wrong = [result.name for result in results if result.status == "wrong" or (names and result.status == "absent")]
    if wrong:
        raise UserError(f"wrong or absent: {', '.join(wrong)}; remove the file and run `sciflow data fetch`")


@data.command("path")
@click.argument("name")
def _path(name: str) -> None:
    """Print where a set is, for use in scripts."""
    from sciflow import datasets

    click.echo(datasets.path(name))
