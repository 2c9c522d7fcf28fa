"""Configurations: every key with its default, and the recipes that experiments share."""
