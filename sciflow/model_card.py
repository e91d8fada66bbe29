"""The README of a saved model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

__all__ = ["model_card"]


def model_card(model: nn.Module, config: Mapping[str, Any], text: str | None, name: str) -> str:
    """Markdown: `text`, then class, parameters, licence and the figures of the metadata, then how to load the model."""
    facts = config["metadata"]
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in model.state_dict().values()})
    rows = {
        "class": config["model"]["class"],
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "dtypes": ", ".join(dtypes) or "none",
        "licence": facts.get("license", facts.get("licence", "not stated")),
        "sciflow": config["sciflow"],
        "weights (sha256)": config["weights"]["sha256"],
    }
    rows.update({key: value for key, value in _flat(facts) if key not in ("license", "licence")})
    table = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items())
    package = config["model"]["class"].partition(":")[0].partition(".")[0]
    trust = "" if package == "sciflow" else f", trust=({json.dumps(package)},)"
    usage = f"```python\nimport sciflow\n\nmodel = sciflow.load({json.dumps(name)}{trust})\n```"
    return f"# {name}\n\n{(text or type(model).__name__).strip()}\n\n| | |\n|---|---|\n{table}\n\n{usage}\n"


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted names and values; long lists (histories) stay in the configuration only."""
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list) or len(value) <= 8:
            yield prefix + key, value


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").split())
