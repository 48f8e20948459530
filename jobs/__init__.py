"""Migrations: what is asked, planned, approved, run and remembered."""
