"""The API of migrations, approvals and what they leave."""
