"""Commands: `python -m launch` lists them."""
