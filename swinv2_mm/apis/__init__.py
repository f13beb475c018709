"""Trained models in use: prediction, export and what goes with them."""
