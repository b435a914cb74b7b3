"""Alembic's scripts, packaged with the control plane and run as it starts."""
