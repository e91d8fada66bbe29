"""Roles for people: a commented template, and what a roles file finds in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sciflow_physics.data.roles import Roles

__all__ = ["description", "template"]

_TEMPLATE = """# What the columns of an ntuple mean. Delete what you do not need.
# Expressions: arithmetic, comparisons, and, or, not, sqrt, cosh, where, ... over columns and derived columns.

selection = "80 < m_ee < 100 and Q1*Q2 < 0"       # which events; everything passes without it

[derived.m_ee]                                    # columns computed from others
expression = "sqrt(2*pt1*pt2*(cosh(eta1 - eta2) - cos(phi1 - phi2)))"
unit = "GeV"

[objects]                                         # several objects per event become one row each:
suffixes = ["1", "2"]                             #   columns pt1, pt2 are pt of two objects
# jagged = true                                   #   or ROOT branches with a list per event,
# index = "best_photon"                           #   of which this column picks one; also "argmax(Photon_pt)"
# selection = "pt > 20"                           # which objects

[event]                                           # without it the values tell events apart
id = ["Run", "Event"]                             # integers that together number an event
optional = true                                   # where these columns are missing, the values tell events apart
# object = "k"                                    # number of the object, in files with one row per object

# [weight]
# column = "weight"                               # may be negative

[category]                                        # strings or integers
column = "type"
values = ["EB", "EE"]                             # anything else is an error

[features.HoverE]                                 # what is corrected; one table each
# column = "hadronicOverEm"                       # name in the file or of a derived column, if it differs
unit = ""                                         # physical unit
transform = "log"                                 # none | log | logit | bounded (with lower and upper)
point_mass = 0.0                                  # exact value that occurs with positive probability
# present = "category == 'EE'"                    # the column exists for these rows only
# scale = "pt*cosh(eta)"                          # the feature times this is what is mapped: H/E has its threshold in energy

[features.sigmaEtaEta]
transform = "log"

[conditions.pt]                                   # what the correction may depend on; never altered
unit = "GeV"
transform = "log"

[conditions.eta]
# symmetric = true                                # only |eta| matters
# harmonics = 24                                  # structure in it is fine, such as gaps between detector modules

[auxiliary.m_ee]                                  # carried along for the closure report, never trained on
unit = "GeV"
"""


def template() -> str:
    """A commented roles file.

    >>> Roles.from_text(template()).feature_names
    ['HoverE', 'sigmaEtaEta']
    """
    return _TEMPLATE


def description(roles: Roles, file: Path | None = None, tree: str | None = None) -> str:
    """One line per role; with a file what it holds: rows, ranges, and how often a point mass occurs."""
    kinds = [
        (kind, name, role) for kind in ("features", "conditions", "auxiliary") for name, role in getattr(roles, kind).items()
    ]
    lines = [f"{roles.source}: {len(roles.features)} features, {len(roles.conditions)} conditions"]
    rows = mask = None
    if file is not None:
        from sciflow_physics.data import count, read

        rows = read(file, roles, tree=tree)
        mask = dict(zip(roles.feature_names, roles.mask(rows).T, strict=True))
        events = len(np.unique(rows["event"].values))
        lines.append(
            f"{rows.attrs['file']}: {count(file, tree=tree):,} entries, "
            f"{events:,} events and {rows.sizes['row']:,} rows selected"
        )
        if roles.weight:
            weight = rows["weight"].values
            lines.append(f"  weight      {roles.weight}: sum {weight.sum():.6g}, {np.mean(weight < 0):.1%} negative")
        if roles.category:
            found, number = np.unique(rows["category"].values, return_counts=True)
            lines.append(f"  category    {', '.join(f'{name} {n:,}' for name, n in zip(found, number, strict=True))}")
    for kind, name, role in kinds:
        unit = f" [{role.unit}]" if role.unit else ""
        line = f"  {kind:<11} {name + unit:<24} {role.transform:<8}"
        if rows is not None and mask is not None:
            values = rows[name].values[mask[name]] if name in mask else rows[name].values
            if len(values):
                low, middle, high = values.min(), np.median(values), values.max()
                line += f" min {low:<10.4g} median {middle:<10.4g} max {high:<10.4g}"
            if role.point_mass is not None and len(values):
                line += f" P({role.point_mass:g}) = {np.mean(values == role.point_mass):.3f}"
            if role.present is not None:
                line += f" present in {len(values):,} rows"
        elif role.point_mass is not None:
            line += f" point mass {role.point_mass:g}"
        lines.append(line.rstrip())
    return "\n".join(lines) + "\n"
