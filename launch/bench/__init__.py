"""Cases of the benchmark, and how they are timed."""
