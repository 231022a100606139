"""Reward models: learned offline from demonstrations, they judge prompts without the LM (docs/reward.md)."""
