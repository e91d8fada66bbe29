"""How long a module is."""

from __future__ import annotations

import ast
from pathlib import Path

__all__ = ["code_lines"]


def code_lines(path: Path) -> int:
    """Lines with code of a file: no docstrings, comments, blank lines."""
    text = path.read_text()
    used: set[int] = set()
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            docstrings |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
        if isinstance(node, (ast.stmt, ast.expr)):
            used |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    blank = {n for n, line in enumerate(text.splitlines(), 1) if not line.strip() or line.strip().startswith("#")}
    return len(used - docstrings - blank)
