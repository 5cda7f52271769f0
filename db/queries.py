"""What a statement is called: the module and the constant that hold it. For metrics, so that no text gets there."""

from __future__ import annotations

import importlib
import pkgutil
import re

import db

_ORDERS = re.compile(r"\s*(BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE)\b", re.IGNORECASE)


def names() -> dict[str, str]:
    """By statement, as in `{"SELECT …": "calls.GET"}`."""
    found: dict[str, str] = {}
    for module in pkgutil.iter_modules(db.__path__):
        if module.ispkg:
            continue
        for name, value in vars(importlib.import_module(f"db.{module.name}")).items():
            if name.isupper() and isinstance(value, str) and not name.startswith("__"):
                found.setdefault(value, f"{module.name}.{name.lstrip('_')}")
    return found


def name_of(statement: str, known: dict[str, str]) -> str:
    name = known.get(statement)
    if name is not None:
        return name
    order = _ORDERS.match(statement)
    return order[1].lower() if order else "other"
