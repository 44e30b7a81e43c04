"""Studies: each makes a page of docs, and can be run by anyone: `python -m launch.studies.NAME`."""
