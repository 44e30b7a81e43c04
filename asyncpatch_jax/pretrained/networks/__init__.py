"""Linen modules of public checkpoints."""
