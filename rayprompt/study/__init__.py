"""Studies: a search as one Tune experiment, its results and its files."""
