"""Explicit Runge-Kutta methods as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["TABLEAUS", "Tableau"]


class Tableau(NamedTuple):
    """k_i = f(t + c_i h, x + h sum_j a_ij k_j); x + h sum_i b_i k_i. `error` are the weights of the embedded difference.

    `last_is_first`: the last stage is the derivative at the end of the step, the first stage of the next one.
    `dense` are polynomial weights: x(t + u h) = x + h sum_i k_i sum_p dense[i][p] u^(p+1).
    """

    order: int
    a: Sequence[Sequence[float]]
    b: Sequence[float]
    c: Sequence[float]
    error: Sequence[float] | None = None
    last_is_first: bool = False
    dense: Sequence[Sequence[float]] | None = None

    @property
    def counted(self) -> list[bool]:
        """Per stage: whether an integral along the solution needs its integrand there; the others only lead to later stages."""
        error, dense = self.error or self.b, self.dense or [()] * len(self.b)
        return [bool(b or e or any(row)) for b, e, row in zip(self.b, error, dense, strict=True)]


# A 3(2) pair of Runge-Kutta formulas, Bogacki and Shampine 1989; between the ends its interpolant is cubic Hermite
_BOGACKI_SHAMPINE = Tableau(
    3,
    ((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    (2 / 9, 1 / 3, 4 / 9, 0.0),
    (0.0, 1 / 2, 3 / 4, 1.0),
    error=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
    last_is_first=True,
    dense=((1.0, -4 / 3, 5 / 9), (0.0, 1.0, -2 / 3), (0.0, 4 / 3, -8 / 9), (0.0, -1.0, 1.0)),
)

# A family of embedded Runge-Kutta formulae, Dormand and Prince 1980; dense output: Some practical Runge-Kutta formulas,
# Shampine 1986
_DORMAND_PRINCE = Tableau(
    5,
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    error=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    last_is_first=True,
    dense=(
        (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
        (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
        (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
        (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
        (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
    ),
)


# An efficient Runge-Kutta (4,5) pair, Bogacki and Shampine 1996. The interpolant is ours: of order 4 from these stages
# alone, with the slopes of both ends, its two free weights chosen for the least error of order 5
_BOGACKI_SHAMPINE_5 = Tableau(
    5,
    (
        (),
        (1 / 6,),
        (2 / 27, 4 / 27),
        (183 / 1372, -162 / 343, 1053 / 1372),
        (68 / 297, -4 / 11, 42 / 143, 1960 / 3861),
        (597 / 22528, 81 / 352, 63099 / 585728, 58653 / 366080, 4617 / 20480),
        (174197 / 959244, -30942 / 79937, 8152137 / 19744439, 666106 / 1039181, -29421 / 29068, 482048 / 414219),
        (587 / 8064, 0.0, 4440339 / 15491840, 24353 / 124800, 387 / 44800, 2152 / 5985, 7267 / 94080),
    ),
    (587 / 8064, 0.0, 4440339 / 15491840, 24353 / 124800, 387 / 44800, 2152 / 5985, 7267 / 94080, 0.0),
    (0.0, 1 / 6, 2 / 9, 3 / 7, 2 / 3, 3 / 4, 1.0, 1.0),
    error=(
        587 / 8064 - 2479 / 34992, 0.0, 4440339 / 15491840 - 123 / 416, 24353 / 124800 - 612941 / 3411720,
        387 / 44800 - 43 / 1440, 2152 / 5985 - 2272 / 6561, 7267 / 94080 - 79937 / 1113912, -3293 / 556956,
    ),
    last_is_first=True,
    dense=(
        (1.0, -3.179067460317499, 3.64930555555562, -1.397445436507966),
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 3.201195726266304, -5.255893941584899, 2.341322593055523),
        (0.0, 1.078593304843421, -1.3766417378919644, 0.4931846509972636),
        (0.0, -0.10366071428639279, 0.24187500000134055, -0.1295758928578099),
        (0.0, -1.5701475911996228, 4.578557504872093, -2.648844333054257),
        (0.0, -0.9269132653053473, 2.1627976190460734, -1.158641581631881),
        (0.0, 1.5, -4.0, 2.5),
    ),
)  # fmt: skip


def _quartic(factor: float, *roots: tuple[float, ...]) -> tuple[float, ...]:
    """Coefficients of u, u^2, u^3, u^4 of factor times the product of polynomials given from the constant term up."""
    product = [factor]
    for polynomial in roots:
        product = [
            sum(product[i] * polynomial[n - i] for i in range(len(product)) if 0 <= n - i < len(polynomial))
            for n in range(len(product) + len(polynomial) - 1)
        ]
    return tuple((product + [0.0] * 5)[1:5])


_SQUARE = (0.0, 0.0, 1.0)

# Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying assumption, Tsitouras 2011
_TSITOURAS = Tableau(
    5,
    (
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774),
    ),
    (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081, 2.324710524099774, 0.0),
    (0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    error=(
        -0.00178001105222577714, -0.0008164344596567469, 0.007880878010261995, -0.1447110071732629, 0.5823571654525552,
        -0.45808210592918697, 0.015151515151515152,
    ),
    last_is_first=True,
    dense=(
        _quartic(
            -1.0530884977290216, (0.0, 1.0), (-1.3299890189751412, 1.0), (0.7139816917074209, -1.4364028541716351, 1.0)
        ),
        _quartic(0.1017, _SQUARE, (1.2949852507374631, -2.1966568338249754, 1.0)),
        _quartic(2.490627285651252793, _SQUARE, (1.57803468208092486, -2.38535645472061657, 1.0)),
        _quartic(-16.54810288924490272, _SQUARE, (-1.21712927295533244, 1.0), (-0.61620406037800089, 1.0)),
        _quartic(47.37952196281928122, _SQUARE, (-1.203071208372362603, 1.0), (-0.658047292653547382, 1.0)),
        _quartic(-34.87065786149660974, _SQUARE, (-1.2, 1.0), (-0.666666666666666667, 1.0)),
        _quartic(2.5, _SQUARE, (-1.0, 1.0), (-0.6, 1.0)),
    ),
)  # fmt: skip

TABLEAUS: dict[str, Tableau] = {
    "euler": Tableau(1, ((),), (1.0,), (0.0,)),
    "midpoint": Tableau(2, ((), (1 / 2,)), (0.0, 1.0), (0.0, 1 / 2)),
    "heun": Tableau(2, ((), (1.0,)), (1 / 2, 1 / 2), (0.0, 1.0), error=(-1 / 2, 1 / 2)),
    "ralston": Tableau(2, ((), (2 / 3,)), (1 / 4, 3 / 4), (0.0, 2 / 3)),
    "rk3": Tableau(3, ((), (1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6), (0.0, 1 / 2, 1.0)),
    "rk4": Tableau(4, ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), (0.0, 1 / 2, 1 / 2, 1.0)),
    "bogacki_shampine": _BOGACKI_SHAMPINE,
    "bogacki_shampine5": _BOGACKI_SHAMPINE_5,
    "dopri5": _DORMAND_PRINCE,
    "tsit5": _TSITOURAS,
}
