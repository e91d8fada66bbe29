"""What `sciflow sample` does: draws for every observation of a file, by a model folder, with certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sciflow.errors import UserError
from sciflow.posterior.amortised import AmortisedPosterior
from sciflow.posterior.many import sample_many
from sciflow.posterior.many.observations import read_observations

__all__ = ["sample"]

_SHOWN = 10  # observations whose reasons are printed


def sample(model: Path, observations: Path, output: Path, *, draws: int, variable: str | None, **choices: Any) -> None:
    """Draw for each row of `observations` and say how many certificates have which verdict.

    `choices` are those of `sample_many`. Raises `UserError` if the model is not a saved `AmortisedPosterior`, the file cannot
    be read, or no observation has draws.
    """
    if not (model / "config.json").is_file():
        raise UserError(f"{model}: no model folder (one has a config.json): write one with AmortisedPosterior.save")
    posterior = AmortisedPosterior.load(model)
    many = sample_many(posterior, read_observations(observations, variable), draws, output, **choices)
    verdicts = many.verdicts
    for verdict in dict.fromkeys(name for name in verdicts if name):
        click.echo(f"{verdict}: {verdicts.count(verdict)} of {len(verdicts)} observations")
    for number in list(many.failures)[:_SHOWN]:
        click.echo(f"observation {number} has no draws: {many.failures[number]}", err=True)
    if len(many.failures) > _SHOWN:
        click.echo(f"and {len(many.failures) - _SHOWN} more without draws", err=True)
    click.echo(repr(many.certificate))
    click.echo(f"draws: {output}")
