"""PostgreSQL: pool, tenant transactions, migrations, and one file of SQL a table."""
