"""What is meant where nothing is said: the same on the command line and in Python."""

TASK = "reviews"
MODEL = "tiny-masked"
SEARCHER = "nevergrad"
BUDGET = 20_000
FINALISTS = 5
POLICY_MODEL = "tiny-causal"
