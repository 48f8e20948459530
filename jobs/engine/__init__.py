"""The engine: decisions about one migration, made of plain values; it knows no database, no page and no transport."""
