"""Saliency maps of finished runs: their agreement over a test set in numbers, and a picture."""
