"""Expressions over columns, as they stand in a roles file: parsed with `ast`, computed by numexpr."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sciflow.errors import UserError

__all__ = ["Expression", "nearest"]

FUNCTIONS = ["abs", "ceil", "exp", "expm1", "floor", "log", "log10", "log1p", "sqrt", "where", "arctan2"]
FUNCTIONS += [f"{prefix}{name}{kind}" for name in ("sin", "cos", "tan") for prefix in ("", "arc") for kind in ("", "h")]
_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Call, ast.Name, ast.Constant, ast.Load,
    ast.operator, ast.unaryop, ast.cmpop, ast.boolop,
)  # fmt: skip


def nearest(word: str, known: object) -> str:
    """A hint "; did you mean 'x'?" or nothing.

    >>> nearest("transfrom", ["transform", "unit"])
    "; did you mean 'transform'?"
    """
    found = difflib.get_close_matches(word, list(known), n=1)  # type: ignore[call-overload]
    return f"; did you mean '{found[0]}'?" if found else ""


@dataclass(frozen=True)
class Expression:
    """An arithmetic or boolean expression over named columns, elementwise.

    Beyond numexpr's own syntax it takes `and`, `or`, `not` and chained comparisons. Integers are computed as int64,
    floats as float64, so a product of 32-bit columns cannot overflow. A comparison with NaN is False.

    Raises `UserError`, naming `where` (file, table and key), if the text is not an expression or calls an unknown function.

    >>> mass = Expression("80 < m and not m > 100")
    >>> mass.names
    ('m',)
    >>> mass({"m": np.array([70.0, 91.2, 120.0])})
    array([False,  True, False])
    """

    text: str
    where: str = "expression"

    def __post_init__(self) -> None:
        try:
            tree = ast.parse(self.text.strip(), mode="eval")
        except (SyntaxError, ValueError) as error:
            raise UserError(f"{self.where}: cannot parse {self.text!r}: {getattr(error, 'msg', error)}") from None
        calls = set()
        for node in ast.walk(tree):
            if not isinstance(node, _NODES):
                raise UserError(
                    f"{self.where}: {self.text!r} may hold arithmetic, comparisons and functions, not {ast.unparse(node)!r}"
                )
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name not in FUNCTIONS or node.keywords:
                    raise UserError(
                        f"{self.where}: unknown function {name!r} in {self.text!r}{nearest(name, FUNCTIONS)}; "
                        f"known are {', '.join(FUNCTIONS)}"
                    )
                calls.add(id(node.func))
        names = {node.id: None for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in calls}
        object.__setattr__(self, "names", tuple(names))
        object.__setattr__(self, "_source", ast.unparse(_Numexpr().visit(tree)))

    names: tuple[str, ...] = ()

    def __call__(self, columns: Mapping[str, NDArray]) -> NDArray:
        """The value for columns of one common length; strings may be compared with constants."""
        import numexpr

        local = {name: _plain(columns[name]) for name in self.names}
        try:
            value = numexpr.evaluate(self._source, local_dict=local, global_dict={}, truediv=True)  # type: ignore[attr-defined]
        except Exception as error:  # numexpr raises TypeError, NotImplementedError, ValueError, KeyError, ... alike
            kinds = ", ".join(f"{name} ({value.dtype})" for name, value in local.items())
            raise UserError(
                f"{self.where}: cannot compute {self.text!r} of {kinds}: {str(error) or type(error).__name__}"
            ) from error
        return value

    def tensor(self, columns: Mapping[str, Any]) -> Any:
        """The value for torch tensors, by torch's operations: differentiable, exportable. Arithmetic and functions only.

        >>> import torch
        >>> Expression("pt*cosh(eta)").tensor({"pt": torch.tensor([2.0]), "eta": torch.tensor([0.0])})
        tensor([2.])
        """
        import torch

        functions: dict[str, Any] = {name: getattr(torch, name) for name in FUNCTIONS}
        # ONNX graphs of doubles know exp, but not the hyperbolic functions
        functions["cosh"] = lambda x: (torch.exp(x) + torch.exp(-x)) / 2
        functions["sinh"] = lambda x: (torch.exp(x) - torch.exp(-x)) / 2
        code = compile(ast.parse(self.text.strip(), mode="eval"), self.where, "eval")
        # only arithmetic on names and the functions above passed the check of the syntax tree
        return eval(code, {"__builtins__": {}}, {**functions, **{name: columns[name] for name in self.names}})


class _Numexpr(ast.NodeTransformer):
    """numexpr has & | ~ on comparisons only: rewrite `and`, `or`, `not` and chains."""

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        operator = ast.BitAnd() if isinstance(node.op, ast.And) else ast.BitOr()
        return self._fold([self.visit(value) for value in node.values], operator)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        operand = self.visit(node.operand)
        return ast.UnaryOp(ast.Invert() if isinstance(node.op, ast.Not) else node.op, operand)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        sides = [self.visit(side) for side in (node.left, *node.comparators)]
        parts = [ast.Compare(left, [op], [right]) for left, op, right in zip(sides, node.ops, sides[1:], strict=False)]
        return self._fold(parts, ast.BitAnd())

    @staticmethod
    def _fold(parts: list, operator: ast.operator) -> ast.AST:
        total = parts[0]
        for part in parts[1:]:
            total = ast.BinOp(total, operator, part)
        return total


def _plain(column: NDArray) -> NDArray:
    if column.dtype.kind in "UOT":
        return np.char.encode(column.astype(str), "utf-8") if len(column) else column.astype("S1")
    if column.dtype.kind in "iu":
        return column.astype(np.int64, copy=False)
    return column.astype(np.float64, copy=False) if column.dtype.kind == "f" else column
