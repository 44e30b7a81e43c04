"""Timestep policies: what is asked of them, what they earn, and their pages."""
