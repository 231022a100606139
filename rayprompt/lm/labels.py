"""Label words as an LM scores them: one token each, or several (then as a tree: what they share is computed once)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from rayprompt.scores import BoolArray, IntArray

if TYPE_CHECKING:
    import torch

Word = tuple[int, ...]


@dataclass(frozen=True)
class Labels:
    """The tokens of the L label words.

    The score of a word of several tokens is the sum of their log-probabilities, each behind those before it. What the
    label words' log-probabilities add up to does not matter (they are normalised over the words), so the first token
    needs its logit alone, as words of one token do; every later one needs the whole vocabulary's.

    A node is what a later token is predicted behind: the beginning of one or more words, computed once for them all.
    """

    words: tuple[Word, ...]

    def __len__(self) -> int:
        return len(self.words)

    @property
    def single(self) -> bool:
        """Whether every word is one token."""
        return all(len(word) == 1 for word in self.words)

    @cached_property
    def nodes(self) -> tuple[Word, ...]:
        """The M beginnings that a later token stands behind, shorter ones first; none where every word is a token."""
        beginnings = {word[:i]: None for word in self.words for i in range(1, len(word))}
        return tuple(sorted(beginnings, key=len))

    @cached_property
    def tokens(self) -> IntArray:
        """(M,) the last token of each node."""
        return np.array([node[-1] for node in self.nodes], dtype=np.int64)

    @cached_property
    def depths(self) -> IntArray:
        """(M,) tokens of each node."""
        return np.array([len(node) for node in self.nodes], dtype=np.int64)

    @cached_property
    def behind(self) -> BoolArray:
        """(M, M) whether a node (row) stands behind another (column), or is the same."""
        return np.array([[a[: len(b)] == b for b in self.nodes] for a in self.nodes], dtype=bool).reshape(
            len(self.nodes), len(self.nodes)
        )

    @cached_property
    def depth(self) -> int:
        """Tokens that the longest word adds to an input: all but its last one."""
        return max((len(word) for word in self.words), default=1) - 1

    @cached_property
    def paths(self) -> tuple[Word, ...]:
        """The nodes that no other stands behind: each with those before it is a row where rows cannot be trees."""
        return tuple(a for a in self.nodes if not any(b != a and b[: len(a)] == a for b in self.nodes))

    def place(self, node: Word) -> tuple[int, int]:
        """On which path a node is, and how far."""
        return next(i for i, path in enumerate(self.paths) if path[: len(node)] == node), len(node)

    def sums(self, root: torch.Tensor, of_node: Any) -> torch.Tensor:
        """(n, L) scores of the words, from logits (n, V) of the first token; ``of_node(node)`` gives those behind one.

        They are log-probabilities but for a term that all words share.
        """
        import torch

        log_probs = {node: torch.log_softmax(of_node(node).float(), dim=-1) for node in self.nodes}
        columns = []
        for word in self.words:
            score = root[:, word[0]].float()
            for i in range(1, len(word)):
                score = score + log_probs[word[:i]][:, word[i]]
            columns.append(score)
        return torch.stack(columns, dim=1)

    def first(self, device: torch.device) -> torch.Tensor:
        """(L,) the first token of each word."""
        import torch

        return torch.tensor([word[0] for word in self.words], device=device)
