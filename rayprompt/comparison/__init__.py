"""Searchers side by side: equal budgets, paired tests, baselines, transfer to other LMs."""
