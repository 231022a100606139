"""What a prompt does to the style of texts: one chosen output for each input, and the published metrics of them."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayprompt.errors import InputError
from rayprompt.lm.judges import label_number, labels_of
from rayprompt.scores import FloatArray, Scores
from rayprompt.searcher.problem import Problem
from rayprompt.study.whole import write_whole
from rayprompt.style import Run, StyleModels

REFERENCE = "reference"  # the field that holds a text as a person would have written it


@dataclass(frozen=True)
class Output:
    """The sample that was chosen for an input: that of the greatest reward; of equals the first.

    ``content`` and ``style`` are what it was chosen by, from 0 to 100, and ``reward`` their mean.
    """

    source: str
    output: str
    content: float
    style: float
    reward: float
    reference: str | None = None


@dataclass(frozen=True)
class StyleReport:
    """Chosen outputs and their metrics, in per cent but for ``perplexity``; None where the task names no such model.

    Attributes:
        content: mean content that is kept, see :meth:`rayprompt.lm.judges.Judges.content`.
        style: share of outputs that the test classifier finds in the style that is wanted.
        fluency: share of outputs that the fluency classifier finds well-formed.
        joint: mean over outputs of the product of content, style and fluency.
        geometric: geometric mean of the three means.
        bleu: mean of sacrebleu's sentence BLEU against the references; None without references.
        perplexity: of all outputs together, by the perplexity LM.
        empty: outputs of which nothing is left after cutting.
        copies: share of outputs that are their source again, up to case and spaces.
        outputs: one for each input.
    """

    content: float
    style: float
    fluency: float | None
    joint: float
    geometric: float
    bleu: float | None
    perplexity: float | None
    empty: int
    copies: float
    outputs: tuple[Output, ...]

    def to_json(self) -> dict[str, Any]:
        """All but the outputs."""
        return {name: value for name, value in asdict(self).items() if name != "outputs"}

    def __str__(self) -> str:
        shown = {
            "content": self.content, "style": self.style, "fluency": self.fluency, "J": self.joint,
            "GM": self.geometric, "BLEU": self.bleu, "PPL": self.perplexity, "copies": self.copies,
        }  # fmt: skip
        return "  ".join(f"{name} {value:.1f}" for name, value in shown.items() if value is not None)

    def write(self, path: Path) -> None:
        """Write a line for each input: the output, or all that is known of it where the file is a .jsonl.

        Raises:
            StoreError: it cannot be written.
        """
        full = path.suffix == ".jsonl"
        lines = [
            json.dumps(asdict(o), ensure_ascii=False) if full else " ".join(o.output.split()) for o in self.outputs
        ]
        write_whole(path, "".join(line + "\n" for line in lines))


def style_report(problem: Problem, on: str, scores: Scores, run: Run) -> StyleReport:
    """Choose among the samples of the one candidate in ``scores``, and measure what was chosen.

    Args:
        problem, on: of which the scores are, on which part.
        scores: of one candidate on all examples of the part.
        run: what runs models, as :meth:`rayprompt.scoring.pool.ScoringPool.judge`.

    Raises:
        InputError: there are references and sacrebleu is not installed.
        ScoringError: a model cannot be loaded or raised.
    """
    judge = problem.judge
    assert judge is not None
    assert judge.style is not None
    gold, examples = problem.answers(on), problem.task.examples(on, problem.split)
    references = [example.fields.get(REFERENCE) for example in examples]
    bleu = None if None in references else _sacrebleu()
    written = list(scores.completion or ())
    rewards = judge.rewards(written, [gold[int(i)] for i in scores.example], run)
    chosen = best_rows(scores.example, scores.sample, rewards.mean(axis=1), len(examples))
    outputs = []
    for example, row in enumerate(chosen):
        text = "" if row is None else judge.answer(written[row]) or ""
        content, style = (0.0, 0.0) if row is None else (100 * rewards[row]).tolist()
        outputs.append(Output(gold[example], text, content, style, (content + style) / 2, references[example]))
    return measured(judge.style, outputs, run, bleu)


def best_rows(example: Any, sample: Any, reward: FloatArray, examples: int) -> list[int | None]:
    """For each example the row of its greatest reward, of equals that of the first sample; None where it has none."""
    found: list[int | None] = [None] * examples
    for row in np.lexsort((sample, -np.nan_to_num(reward, nan=-np.inf), example)).tolist():
        if found[int(example[row])] is None and not np.isnan(reward[row]):
            found[int(example[row])] = row
    return found


def measured(models: StyleModels, outputs: Sequence[Output], run: Run, bleu: Any = None) -> StyleReport:
    """The metrics of chosen outputs. ``bleu``: the module sacrebleu; None leaves BLEU out."""
    texts = [o.output for o in outputs]
    some = [i for i, text in enumerate(texts) if text]  # the others count as wrong in every respect
    content = np.array([o.content for o in outputs]) / 100
    style = np.zeros(len(texts))
    test = models.test_classifier or models.classifier
    style[some] = is_label(test, models.target, [texts[i] for i in some], run)
    fluency = None
    if models.fluency is not None:
        fluency = np.zeros(len(texts))
        fluency[some] = is_label(models.fluency, models.fluency_label, [texts[i] for i in some], run)
    factors = [content, style] if fluency is None else [content, style, fluency]
    means = [100 * float(x.mean()) for x in factors]
    return StyleReport(
        content=means[0],
        style=means[1],
        fluency=None if fluency is None else means[2],
        joint=joint(factors),
        geometric=geometric(means),
        bleu=None if bleu is None else _bleu(bleu, outputs),
        perplexity=None if models.perplexity is None else _perplexity(models.perplexity, [texts[i] for i in some], run),
        empty=len(texts) - len(some),
        copies=100 * float(np.mean([_plain(o.output) == _plain(o.source) for o in outputs])),
        outputs=tuple(outputs),
    )


def joint(factors: Sequence[FloatArray]) -> float:
    """100 x the mean over outputs of the product of their factors (N,), each from 0 to 1."""
    return 100 * float(np.prod(np.stack(factors), axis=0).mean())


def geometric(means: Sequence[float]) -> float:
    """The geometric mean of means; 0 where one is."""
    return math.exp(sum(map(math.log, means)) / len(means)) if min(means) > 0 else 0.0


def is_label(classifier: str, label: str, texts: Sequence[str], run: Run) -> FloatArray:
    """(N,) 1 where a classifier finds a label, given by name or number, the likeliest of a text's."""
    if not texts:
        return np.zeros(0)
    number = label_number(classifier, label, labels_of(classifier))
    return np.asarray(run("probabilities", (classifier,), [texts]).argmax(axis=1) == number, dtype=np.float64)


def _perplexity(lm: str, texts: Sequence[str], run: Run) -> float | None:
    found = run("surprise", (lm,), [texts]) if texts else np.zeros((1, 2))
    surprise, tokens = found.sum(axis=0)
    return float(np.exp(surprise / tokens)) if tokens else None


def _bleu(sacrebleu: Any, outputs: Sequence[Output]) -> float:
    scores = [sacrebleu.sentence_bleu(o.output, [o.reference or ""]).score for o in outputs]
    return float(np.mean(scores))


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _sacrebleu() -> Any:
    try:
        return importlib.import_module("sacrebleu")
    except ModuleNotFoundError:
        raise InputError(
            "BLEU against the column 'reference' needs sacrebleu, which is not installed: "
            "pip install 'rayprompt[style]', or leave the column out"
        ) from None
