"""What the words of a command line stand for, and refusals before long work begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sciflow.errors import UserError

__all__ = ["load_correction", "numbers_of", "part_of", "record_of", "refuse_target", "roles_named", "weights_of"]


def roles_named(name: str) -> Any:
    from sciflow_physics.data.roles import Roles

    # a bare word is a preset unless there is such a file
    return Roles.preset(name) if name.isidentifier() and not Path(name).exists() else Roles.from_file(name)


def load_correction(folder: Path) -> Any:
    import sciflow
    from sciflow_physics.model import Correction

    model = sciflow.load(folder, trust=("sciflow_physics",))
    if not isinstance(model, Correction):
        raise UserError(f"{folder}: is a {type(model).__name__}, not a correction that `sciflow physics fit` wrote")
    return model


def weights_of(model: Any) -> str:
    from sciflow.persistence import fingerprint

    return fingerprint(model)


def refuse_target(folder: Path) -> None:
    """Before hours of training, not after."""
    if not folder.resolve().parent.is_dir():
        raise UserError(f"{folder}: the folder {folder.resolve().parent} does not exist")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file()):
        raise UserError(f"{folder}: exists and is not a model: it is not overwritten, give another name")


def part_of(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, slash, second = text.partition("/")
    if not (slash and first.isdigit() and second.isdigit()):
        raise UserError(f"--chunk {text}: say I/N, for example 3/40 for the third of forty parts")
    return int(first), int(second)


def numbers_of(text: str, option: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise UserError(f"{option} {text}: positive integers separated by commas are needed, for example 64,64")
    return tuple(int(word) for word in words)


def record_of(path: Path, rows: Any) -> dict[str, Any]:
    import hashlib

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "sha256": digest, "rows": int(rows.sizes["row"])}
