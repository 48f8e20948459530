"""Pages of migrations: views, forms, live updates, and what they show."""
