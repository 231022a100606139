"""The passes that a pool would use for an LM, or others that give the same scores."""

from __future__ import annotations

from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.shapes import PackTable, ShapeTable, table_of
from rayprompt.searcher.problem import Problem


def passes_for(scorer: LMScorer, problem: Problem, packed: bool = True, tokens: int = 512) -> PackTable | ShapeTable:
    """Packed where the LM can be; or padded rows, which every LM takes."""
    return table_of("cpu", scorer.token_bytes if packed else None, problem.lm.max_length, tokens)
