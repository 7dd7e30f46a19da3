"""Runs from request to finished directory: prepared, opened, made, completed, resumed."""
