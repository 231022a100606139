"""Settings of ``rl``: RLPrompt's hyper-parameters, as published and as found here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rayprompt import defaults
from rayprompt.errors import InputError, unknown
from rayprompt.searcher.settings import setting
from rayprompt.tables import read_lines

CHOICES = {
    "tokens": ("all", "words"),
    "target": ("polyak", "copy"),
    "normalise": ("step", "input", "run", "none"),
    "data": ("on-policy", "off-policy", "mixed"),
    "selection": ("train", "paper"),
    "on_collapse": ("report", "temperature", "restart"),
}
LOSSES = ("v0", "v1", "v2", "v3")
RANGES = {
    "inputs": (1, 2048), "length": (1, 20), "prompts": (2, 4096), "top_k": (1, 1e9), "top_p": (1e-6, 1),
    "uniform_steps": (0, 1e9),
    "fluent": (1, 1e9), "coefficient": (0, 1), "target_rate": (0, 1), "target_every": (1, 1e9), "updates": (1, 1000),
    "replay": (0, 4096), "elite": (0, 1), "greedy_every": (1, 1e9), "collapse_at": (0, 1), "steps": (1, 1e12),
    "gpu": (0, 1),
}  # fmt: skip
ABOVE_0 = ("temperature", "learning_rate", "clip", "scale")

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "tokens": "all", "uniform_steps": 0, "loss": "v2+v3", "learning_rate": 5e-5, "target": "polyak",
        "target_rate": 1e-3, "normalise": "step", "scale": 5.0, "updates": 1, "replay": 0, "elite": 0.0, "fresh": False,
        "greedy_every": 10, "selection": "paper", "on_collapse": "report", "steps": 12_000,
    },
    "fast": {
        "tokens": "words", "uniform_steps": 4, "loss": "v3", "learning_rate": 1e-3, "target": "copy",
        "target_rate": 0.05, "normalise": "run", "scale": 10.0, "updates": 1, "replay": 16, "elite": 0.5, "fresh": True,
        "greedy_every": 10, "selection": "train", "on_collapse": "temperature", "steps": None,
    },
}  # fmt: skip
CONDITIONED: dict[str, dict[str, Any]] = {"paper": {"normalise": "input", "selection": "paper"}}


@dataclass(frozen=True)
class RLPromptSettings:
    """Settings of ``rl``. What is null is as the preset says."""

    preset: str = setting("fast", "'fast' (for budgets of 10,000 to 200,000 evaluations), or 'paper': as published")
    policy_model: str = setting(defaults.POLICY_MODEL, "the policy's frozen causal LM, such as distilgpt2")
    source: str = setting("classification", "what the policy reads before it writes")
    inputs: int | None = setting(None, "inputs of a step; the policy reads each and writes for it; null: none")
    length: int = setting(5, "tokens of a prompt, 1 to 20")
    prompts: int = setting(16, "prompts of a step")
    tokens: str | list[str] | None = setting(None, "'all' tokens, 'words' (whole ones), or the lines of this file")
    ids: bool = setting(False, "splice the policy's token ids in; else their text, as the task LM tokenises it")
    round_trip: bool = setting(False, "only prompts whose text, tokenised again, gives the same tokens")
    top_k: int | None = setting(256, "draw from the likeliest so many tokens; null is all")
    top_p: float = setting(1.0, "draw from the likeliest tokens that make up so much probability")
    temperature: float = setting(1.0, "of drawing")
    uniform_steps: int | None = setting(None, "first steps, whose tokens are drawn uniformly")
    fluent: int | None = setting(None, "only tokens among the frozen LM's own likeliest so many; null is any")
    logit_bias: float = setting(0.0, "added to every logit")
    loss: str | None = setting(None, "terms of the soft Q-learning loss: v0, v1, v2, v3, or several, as v2+v3")
    coefficient: float | None = setting(None, "c of c loss(f, g) + (1 - c) loss(g, f); null leaves out reversed terms")
    learning_rate: float | None = setting(None, "of Adam")
    clip: float = setting(5.0, "greatest norm of a gradient")
    target: str | None = setting(None, "the target network follows: by 'polyak' each update, or by 'copy'")
    target_rate: float | None = setting(None, "of polyak: so much of the policy is taken over")
    target_every: int = setting(1, "updates between copies; with 1 the policy is its own target")
    normalise: str | None = setting(
        None, "z-score of rewards over the prompts of a 'step', of an 'input', of the 'run'"
    )
    scale: float | None = setting(None, "a reward z becomes scale * z + offset")
    offset: float = setting(0.0, "see scale")
    updates: int | None = setting(None, "gradient steps of a step")
    replay: int | None = setting(None, "earlier prompts in each of them, besides the step's own")
    elite: float | None = setting(None, "share of the replayed that are drawn from the best tenth")
    fresh: bool | None = setting(None, "ask for prompts that were not asked for before, the greedy one among them")
    data: str | None = setting(None, "'on-policy', 'off-policy' (given prompts), or 'mixed'; null: mixed if any given")
    given: str | list[str] | None = setting(None, "prompts to learn from: a file, a finished study or a store")
    greedy_every: int | None = setting(None, "steps between greedy prompts that are kept for dev")
    selection: str | None = setting(
        None, "dev picks among the best on 'train' and the last greedy prompt; 'paper': greedy"
    )
    on_collapse: str | None = setting(None, "answer to a collapse: 'report', 'temperature' or 'restart' from the best")
    collapse_at: float = setting(0.25, "share of distinct prompts, over ten steps, at which a policy has collapsed")
    steps: int | None = setting(None, "ends the search; null is when the budget does, or as the preset says")
    gpu: float = setting(0.2, "share of a GPU for the policy, where the cluster has some; 0 keeps it on the CPU")


def resolved(given: RLPromptSettings, location: str) -> RLPromptSettings:
    """The settings with what the preset says, checked.

    Raises:
        InputError: a value is not known or out of range.
    """
    if given.preset not in PRESETS:
        raise unknown("setting preset", given.preset, PRESETS)
    values = PRESETS[given.preset]
    if given.inputs is not None:
        values = values | CONDITIONED.get(given.preset, {})
    preset = {name: value for name, value in values.items() if getattr(given, name) is None}
    s = replace(given, **preset, policy_model=location)
    if isinstance(s.tokens, str) and s.tokens not in CHOICES["tokens"]:
        s = replace(s, tokens=read_lines(Path(s.tokens), "tokens"))
    for name, known in CHOICES.items():
        value = getattr(s, name)
        if isinstance(value, str) and value not in known:
            raise unknown(f"setting {name}", value, known)
    for term in str(s.loss).split("+"):
        if term not in LOSSES:
            raise unknown("setting loss", term, LOSSES)
    for name, (least, most) in RANGES.items():
        value = getattr(s, name)
        if value is not None and not least <= value <= most:
            raise InputError(f"setting {name}={value}: must be from {least:g} to {most:g}")
    if s.inputs is not None and (s.prompts % s.inputs or s.prompts < 2 * s.inputs):
        raise InputError(f"setting inputs={s.inputs}: prompts={s.prompts} must be a multiple of it, 2 or more for each")
    for name in ABOVE_0:
        if not 0 < getattr(s, name) < float("inf"):
            raise InputError(f"setting {name}={getattr(s, name)}: must be greater than 0")
    return s
