"""What `sciflow certify` does: the certificate of a file of draws, whether it is theirs, and whether it is good enough."""

from __future__ import annotations

from pathlib import Path

import click

from sciflow.errors import UserError
from sciflow.posterior.examination import examined
from sciflow.posterior.report import write_page
from sciflow.store import read_draws
from sciflow.store.binding import HASHES

__all__ = ["certify"]

_ENOUGH = {"pass": ("passed",), "warn": ("passed", "warned")}


def certify(path: Path, require: str | None = None, page: Path | None = None) -> int:
    """Print the certificate of the draws in `path`, write its page if asked for, and return 0, or 3 if it is not enough.

    An estimate is never enough, whatever its tests say. Raises `UserError` if the file holds no draws or no certificate, or
    one that belongs to other draws.
    """
    tree = read_draws(path)
    try:
        certificate = examined(tree)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    click.echo(repr(certificate))
    for text in certificate.reasons:
        click.echo(f"- {text}")
    if HASHES in certificate.context:
        names = ", ".join(certificate.context[HASHES])
        click.echo(f"draws: the certificate is theirs, sha256 of {names} agree")
    if "warning" in tree.attrs:
        click.echo(f"note: {tree.attrs['warning']}")
    if page is not None:
        click.echo(f"page: {write_page(tree, page)}")
    if require is None:
        return 0
    if "estimate" in tree.children:
        click.echo(f"sciflow: {path}: required is {require!r}, but the draws are an estimate, not the posterior's", err=True)
        return 3
    if certificate.verdict not in _ENOUGH[require]:
        click.echo(f"sciflow: {path}: required is {require!r}, the verdict is {certificate.verdict!r}", err=True)
        return 3
    return 0
