"""Sweeps: Optuna chooses parameters, workers train by DVC, each in a folder of its own."""
