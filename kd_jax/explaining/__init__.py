"""Where networks look: their agreement over a test set, and a picture."""
