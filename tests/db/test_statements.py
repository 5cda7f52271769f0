"""Every statement the hub ever sends is one that the migrated schema understands, as the role that sends it."""

from __future__ import annotations

import importlib
import pkgutil

import db as package
from db.pool import Database


def _statements() -> dict[str, str]:
    found = {}
    for module_info in pkgutil.iter_modules(package.__path__):
        if module_info.name == "migrate":
            # Its statements run as the owner and make tables.
            continue
        module = importlib.import_module(f"db.{module_info.name}")
        for name, value in vars(module).items():
            if name.isupper() and isinstance(value, str) and name != "COLUMNS":
                found[f"{module_info.name}.{name}"] = value
    return found


async def test_every_statement_prepares_as_the_app_role(db: Database) -> None:
    """S-125: tables, columns, types and privileges of each SQL constant of db/ fit the migrations."""
    statements = _statements()
    assert len(statements) > 50
    async with db.system() as tx:
        for name, statement in statements.items():
            try:
                await tx.prepare(statement)
            except Exception as error:
                raise AssertionError(f"{name}: {error}") from error
