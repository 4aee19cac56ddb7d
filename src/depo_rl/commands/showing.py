"""How a command shows its result: lines to read, or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def show(result: Mapping[str, Any], as_json: bool) -> None:
    typer.echo(
        json.dumps(result, indent=2, ensure_ascii=False) if as_json else "\n".join(_lines(result))
    )


def _lines(result: Mapping[str, Any], indent: str = "") -> list[str]:
    """``name  value`` a line, values aligned, sections indented; what was not measured is left out."""
    lines: list[str] = []
    width = max(
        (len(str(name)) for name, value in result.items() if not isinstance(value, Mapping)),
        default=0,
    )
    for name, value in result.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{name}", *_lines(value, indent + "  ")] if value else []
        elif value not in (None, []):
            lines.append(f"{indent}{name!s:<{width}}  {_plain(value)}")
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
