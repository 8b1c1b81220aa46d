#!/usr/bin/env python
"""Write docs/settings.md from the settings' own types and descriptions.

python tools/settings_page.py
"""

from __future__ import annotations

import argparse
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dal_dense.config import Config

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
HEAD = """\
<!-- made by tools/settings_page.py; change the descriptions in dal_dense/config*.py -->
# Settings

A config is a YAML file with these keys, nested at the dots. Any of them can be given on the command line too, where
the later one wins:

    python tools/train_al.py --config my.yaml --budget.rounds 6 --task.train.patch "[48, 48, 32]"

An unknown key, a wrong type or an impossible value is refused before anything is loaded. `python tools/train_al.py
--help` says the same as this page. A run keeps its settings; what may change later is told in
[the ledger](concepts/ledger.md).
"""
WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *section("", Config)])


def section(prefix: str, model: type[BaseModel]) -> Iterator[str]:
    """A table of a model's own settings, then its groups."""
    groups = {n: f.annotation for n, f in model.model_fields.items() if is_group(f.annotation)}
    own = {n: f for n, f in model.model_fields.items() if n not in groups}
    title = f"`{prefix.rstrip('.')}`" if prefix else "The run"
    summary = "" if model is Config else f"{(model.__doc__ or '').strip()}\n\n"
    yield f"## {title}\n\n{summary}| key | value | default | meaning |\n|---|---|---|---|"
    for name, field in own.items():
        meaning = (field.description or "").replace("[^", "\\[^")  # no footnote
        cells = (f"`{prefix}{name}`", kind(field.annotation) + bounds(field), default(field), meaning)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""
    for name, group in groups.items():
        yield from section(f"{prefix}{name}.", group)


def is_group(annotation: Any) -> bool:
    """Is this a model of its own?"""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def kind(annotation: Any) -> str:
    """What may be given, in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if one is type(None) else kind(one) for one in inner)
    if origin is dict:
        return f"{kind(inner[0])}: {kind(inner[1])}"
    if origin is tuple:
        count = "list" if Ellipsis in inner else str(len(inner))
        return f"{count} of ({kind(inner[0])})"
    return WORDS[annotation]


def bounds(field: FieldInfo) -> str:
    """Such as `, ≥ 0, < 1`."""
    found = ((sign, getattr(rule, name, None)) for rule in field.metadata for name, sign in BOUNDS.items())
    return "".join(f", {sign} {limit}" for sign, limit in found if limit is not None)


def default(field: FieldInfo) -> str:
    """The value that holds if nothing is given, as one writes it in YAML."""
    if field.is_required():
        return "*must be given*"
    return f"`{yaml(field.default)}`"


def yaml(value: object) -> str:
    """A default in YAML's inline form."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(yaml, value))}]"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return '""' if value == "" else str(value)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PAGE.write_text(page(), encoding="utf-8")
