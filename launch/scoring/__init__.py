"""Scores of folders of images: what is read, by which measures, and the tables that come of it."""
