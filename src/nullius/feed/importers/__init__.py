"""Importers: other people's lists of papers, read record by record into the database. See `running.import_from` for the way in."""
