"""From numbers to named tests: the certificate of a closure report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sciflow.certificate import Certificate, Test
from sciflow_physics.report.measure import Measurements

__all__ = ["certify"]

SCOPE = (
    "relative to the samples compared here: it says that this simulation, corrected, is distributed like these data "
    "in these features and conditions within the stated errors; not a statement about other selections or processes"
)


def certify(
    measurements: Measurements,
    *,
    auc_excess: float = 0.03,
    margin: float = 0.01,
    subject: str = "simulation to data correction",
    context: Mapping[str, Any] | None = None,
    figures: Mapping[str, Any] | None = None,
) -> Certificate:
    """The tests of a closure report.

    Arguments:
        auc_excess: the classifier may do better on features and conditions than on conditions only by this much.
        margin: what a distance may exceed the 95 % point of the data-vs-data null by (the null contains the
            statistical fluctuation of both samples, but not that of the training).

    What has too few events to be compared is a test that was not evaluated: the verdict is then at best "incomplete".
    The fraction of rows outside the range of the training samples is reported without a limit.
    """
    value, error = measurements.auc_excess
    tests = [
        Test(
            "auc_excess", value, auc_excess, "<=", error=error,
            description="AUC of boosted trees on features and conditions, corrected simulation against data, "
            "minus the AUC on conditions only; cross-fitted by event",
            reference="Lopez-Paz and Oquab 2017, arXiv:1610.06545",
        )
    ]  # fmt: skip
    for entry in measurements.marginals:
        place = f"{entry.feature}/{entry.category}"
        tests.append(
            Test(
                f"ks/{place}", entry.after.ks, entry.null_ks + margin, "<=", error=entry.after.ks_error,
                description=f"weighted Kolmogorov-Smirnov distance; threshold: 95 % of data-vs-data + {margin:g}",
            )
        )  # fmt: skip
        if entry.null_point_mass is not None and entry.after.point_mass and entry.after.point_mass_error:
            (first, second), (a, b) = entry.after.point_mass, entry.after.point_mass_error
            tests.append(
                Test(
                    f"point_mass/{place}", abs(first - second), entry.null_point_mass + margin, "<=",
                    error=(a * a + b * b) ** 0.5,
                    description=f"|P(simulation) - P(data)| of the point mass; threshold: 95 % of data-vs-data + {margin:g}",
                )
            )  # fmt: skip
    tests += [
        Test(f"ks/{feature}/{category}", None, description="too few events, or none, in the simulation or in the data")
        for feature, category in measurements.not_compared
    ]
    changed = [name for name, differs in measurements.changed.items() if differs]
    tests += [
        Test(
            "columns_changed", float(len(changed)), 0.0, "<=",
            description="input columns (conditions, auxiliaries, features, weights, ids) that are not bit-identical after "
            f"the correction{': ' + ', '.join(changed) if changed else ''}",
        ),
        Test(
            "non_finite", float(sum(measurements.non_finite.values())), 0.0, "<=",
            description="values of corrected columns, their variations and the kinematic weight that are not finite",
        ),
    ]  # fmt: skip
    if measurements.out_of_support is not None:
        tests.append(
            Test(
                "out_of_support", measurements.out_of_support,
                description="fraction of rows outside the range of the training samples, flagged in `out_of_support`",
            )
        )  # fmt: skip
    return Certificate(
        tests,
        scope=SCOPE,
        subject=subject,
        context={"rows": measurements.rows, "events": measurements.events, **measurements.settings, **(context or {})},
        figures=figures or {},
    )
