"""Losses as plain functions of arrays."""
