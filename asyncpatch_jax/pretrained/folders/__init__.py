"""Folders in the layout of diffusers: read, checked, written."""
