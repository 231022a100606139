"""rayprompt searches for prompts the way Ray Tune searches for hyperparameters.

The names below are the public ones. They load when they are first used: ``import rayprompt`` itself imports
neither torch nor ray.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# The result of an MKL product depends on the addresses of its operands unless this is set before a process's first
# product. Every process that computes for rayprompt imports it, so none can be forgotten; docs/design.md has the cost.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

_WHERE = {
    "Candidate": "rayprompt.candidate",
    "Comparison": "rayprompt.comparison.outcome",
    "Estimate": "rayprompt.study.statistics",
    "Evaluation": "rayprompt.study.evaluate",
    "InputError": "rayprompt.errors",
    "Problem": "rayprompt.searcher.problem",
    "PromptSearcher": "rayprompt.searcher.base",
    "RayPromptError": "rayprompt.errors",
    "RestoreError": "rayprompt.errors",
    "Result": "rayprompt.study.results",
    "Scores": "rayprompt.scores",
    "ScoreStore": "rayprompt.store.store",
    "ScoringPool": "rayprompt.scoring.pool",
    "SoftPrompt": "rayprompt.candidate",
    "Subspace": "rayprompt.candidate",
    "Task": "rayprompt.task",
    "TextPrompt": "rayprompt.candidate",
    "Transfer": "rayprompt.comparison.transfer",
    "candidate_from_json": "rayprompt.candidate",
    "candidates": "rayprompt.candidate",
    "compare": "rayprompt.comparison.compare",
    "evaluate": "rayprompt.study.evaluate",
    "few_shot": "rayprompt.shots",
    "load_task": "rayprompt.task",
    "prompt_trainable": "rayprompt.study.trainable",
    "read_comparison": "rayprompt.comparison.outcome",
    "read_config": "rayprompt.study.config",
    "read_result": "rayprompt.study.results",
    "resume": "rayprompt.study.search",
    "resume_comparison": "rayprompt.comparison.compare",
    "score": "rayprompt.study.evaluate",
    "search": "rayprompt.study.search",
    "search_trainable": "rayprompt.study.search_trainable",
    "setting": "rayprompt.searcher.settings",
    "transfer": "rayprompt.comparison.transfer",
}

__all__ = sorted([*_WHERE, "__version__"])

if TYPE_CHECKING:
    from rayprompt.candidate import Candidate as Candidate
    from rayprompt.candidate import SoftPrompt as SoftPrompt
    from rayprompt.candidate import Subspace as Subspace
    from rayprompt.candidate import TextPrompt as TextPrompt
    from rayprompt.candidate import candidate_from_json as candidate_from_json
    from rayprompt.candidate import candidates as candidates
    from rayprompt.comparison.compare import compare as compare
    from rayprompt.comparison.compare import resume_comparison as resume_comparison
    from rayprompt.comparison.outcome import Comparison as Comparison
    from rayprompt.comparison.outcome import read_comparison as read_comparison
    from rayprompt.comparison.transfer import Transfer as Transfer
    from rayprompt.comparison.transfer import transfer as transfer
    from rayprompt.errors import InputError as InputError
    from rayprompt.errors import RayPromptError as RayPromptError
    from rayprompt.errors import RestoreError as RestoreError
    from rayprompt.scores import Scores as Scores
    from rayprompt.scoring.pool import ScoringPool as ScoringPool
    from rayprompt.searcher.base import PromptSearcher as PromptSearcher
    from rayprompt.searcher.problem import Problem as Problem
    from rayprompt.searcher.settings import setting as setting
    from rayprompt.shots import few_shot as few_shot
    from rayprompt.store.store import ScoreStore as ScoreStore
    from rayprompt.study.config import read_config as read_config
    from rayprompt.study.evaluate import Evaluation as Evaluation
    from rayprompt.study.evaluate import evaluate as evaluate
    from rayprompt.study.evaluate import score as score
    from rayprompt.study.results import Result as Result
    from rayprompt.study.results import read_result as read_result
    from rayprompt.study.search import resume as resume
    from rayprompt.study.search import search as search
    from rayprompt.study.search_trainable import search_trainable as search_trainable
    from rayprompt.study.statistics import Estimate as Estimate
    from rayprompt.study.trainable import prompt_trainable as prompt_trainable
    from rayprompt.task import Task as Task
    from rayprompt.task import load_task as load_task


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'rayprompt' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
