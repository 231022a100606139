"""Baselines that nobody searched for: examples in front of the input, and soft prompts tuned with gradients."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np

from rayprompt.candidate import Candidate, SoftPrompt, Subspace, TextPrompt
from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.tuning import TuningPlan
from rayprompt.lm.vectors import vectors_digest
from rayprompt.scores import FloatArray
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.soft import SoftSettings, SoftSpace
from rayprompt.study.closing import Closer
from rayprompt.study.statistics import Estimate
from rayprompt.task import Example
from rayprompt.template import Piece, Template

IN_CONTEXT, GRADIENT = "in-context", "gradient"
SEPARATORS = {"causal": "\n"}  # between examples; a masked LM's tokenizer may know no line end: a space


@dataclass(frozen=True)
class BaselinePrompt:
    """A prompt to measure searched ones against. It was made with train and dev alone.

    Attributes:
        name, seed: which one, and what was drawn.
        prompt: the candidate.
        problem: on which it is scored: with in-context examples one with a template of its own.
        text: for people: the examples; empty for a soft prompt.
        white_box: made with the LM's gradients, which no searcher sees.
        passes: examples that went through the LM to make it, forward or backward: each way counts as one.
        seconds: that making it took.
        train_loss: mean cross-entropy on train in nats, where it was tuned.
        dev: what it was chosen by, where there was something to choose.
    """

    name: str
    seed: int
    prompt: Candidate
    problem: Problem
    text: str = ""
    white_box: bool = False
    passes: int = 0
    seconds: float = 0.0
    train_loss: float | None = None
    dev: Estimate | None = None


def in_context(problem: Problem, *, per_class: int = 1, seed: int = 0, prompt: str | None = None) -> BaselinePrompt:
    """Train examples with their label words in front of every input (Brown et al., 2020, arXiv 2005.14165).

    Args:
        problem: whose template shows the examples and the input.
        per_class: examples of each class, drawn from train; their order is drawn as well.
        seed: of the draw.
        prompt: the text at the prompt's place, in the examples and before the answer; None is the manual prompt, or
            the empty one where the task has none.

    Raises:
        InputError: a class has too few train examples, or with them the LM has no room for some input.
    """
    words = " ".join((problem.task.manual_prompt or "" if prompt is None else prompt).split())
    shown = [_shown(problem, example, words) for example in _drawn(problem, per_class, seed)]
    separator = SEPARATORS.get(problem.family, " ")
    text = separator.join(shown)
    behind = _behind(problem.template, separator, prompt_is_empty=not words)
    own = _with_template(problem, _template((Piece("literal", text, ""), *behind)))
    candidate = own.prompt(words)
    _check_room(own, candidate, len(shown))
    return BaselinePrompt(IN_CONTEXT, seed, candidate, own, text)


def _drawn(problem: Problem, per_class: int, seed: int) -> list[Example]:
    """``per_class`` train examples of every class, in an order that is drawn too."""
    if per_class < 1:
        raise InputError(f"in-context examples: {per_class} of each class: must be 1 or more")
    rng = np.random.Generator(np.random.Philox(seed))
    examples, gold = problem.task.examples("train", problem.split), problem.gold
    drawn: list[Example] = []
    for label, name in enumerate(problem.task.labels or ("",)):  # what is generated is of one class
        members = np.flatnonzero(gold == label)
        if len(members) < per_class:
            of = f" of label {name!r}" if name else ""
            raise InputError(
                f"in-context examples: task {problem.task.name}, split {problem.split}: train has {len(members)} "
                f"examples{of}, {per_class} wanted"
            )
        drawn += [examples[i] for i in rng.choice(members, per_class, replace=False)]
    return [drawn[i] for i in rng.permutation(len(drawn))]


def _shown(problem: Problem, example: Example, prompt: str) -> str:
    """An example as the template shows it, with its label word, or answer, where the LM is to write it."""
    word = problem.task.label_words[example.label] if example.answer is None else example.answer
    text = problem.template.render(example.fields, prompt, word)
    return text if problem.template.has_mask else f"{text} {word}"


def _behind(template: Template, separator: str, *, prompt_is_empty: bool) -> tuple[Piece, ...]:
    """The pieces of a template as they stand behind examples; an empty prompt in front takes its space with it."""
    first, *rest = template.pieces
    if first.kind == "prompt" and prompt_is_empty:
        rest[0] = replace(rest[0], space=separator)
    return (replace(first, space=separator), *rest)


def _template(pieces: tuple[Piece, ...]) -> Template:
    """Of pieces, with the source that says them: braces of a literal are doubled."""
    shown = (p.text.replace("{", "{{").replace("}", "}}") if p.kind == "literal" else f"{{{p.text}}}" for p in pieces)
    return Template("".join(p.space + text for p, text in zip(pieces, shown, strict=True)), pieces)


def _with_template(problem: Problem, template: Template) -> Problem:
    """The same problem with another template: what was tokenised for the old one is left behind."""
    own = copy.copy(problem)
    own.template = template
    own.task = replace(problem.task, templates={**problem.task.templates, problem.family: template})
    own._parts, own._known_ids, own._known_options, own.starts = {}, {}, ((), ()), {}
    own.__dict__.pop("words", None)
    own.labels = own.encoder.labels(template, own._words, reads_mask=own._reads_mask, where=own._where)
    return own


def _check_room(problem: Problem, prompt: TextPrompt, examples: int) -> None:
    """Raise ``InputError`` where not one token of some input finds room."""
    own = len(prompt.token_ids or ())
    for name in problem.task.parts(problem.split):
        part = problem.part(name)
        least = int(part.fixed_lengths.max()) + own
        if least >= part.max_length:
            raise InputError(
                f"{examples} in-context examples leave no room for the texts of {name}: with the prompt they take "
                f"{least} tokens, and {problem.lm.name} takes {part.max_length} in all"
            )


def gradient_tuned(
    closer: Closer, *, settings: SoftSettings | None = None, seed: int = 0, plan: TuningPlan | None = None
) -> BaselinePrompt:
    """A soft prompt tuned with the LM's gradients on train; of its checkpoints the best on dev. Test stays closed.

    Args:
        closer: of the problem; what dev costs is counted as its report.
        settings: where it begins and how long it is, as for the searchers of soft prompts; A and z play no part.
        seed: of the noise at the start.
        plan: of the tuning.

    Raises:
        InputError: a setting is out of range, or the prompt does not fit the LM.
        ScoringError: the LM raised, or no checkpoint could be scored.
    """
    problem = closer.problem
    space = SoftSpace.of(problem, replace(settings or SoftSettings(), intrinsic_dim=1), seed).subspace
    start = SoftPrompt((0.0,), space)
    tuned = closer.pool.tune(
        problem.part("train"), problem.gold, start, plan or TuningPlan(), seed=seed, p0=problem.vectors
    )
    states = sorted(tuned.states, key=lambda state: state.loss)
    prompts = [tuned_prompt(problem, space, state.vectors) for state in states]
    dev = closer.scorer("dev")
    scores = dev.scores(prompts)
    if not any(len(s) for s in scores):
        raise ScoringError(f"{problem.lm.name} gave no number for any gradient-tuned soft prompt on dev")
    best = dev.best_first(scores)[0]
    for prompt in prompts:
        if prompt.subspace.p0 != prompts[best].subspace.p0:
            problem.vectors.pop(prompt.subspace.p0, None)  # they would travel with the problem
    return BaselinePrompt(
        GRADIENT,
        seed,
        prompts[best],
        problem,
        white_box=True,
        passes=tuned.passes,
        seconds=tuned.seconds,
        train_loss=states[best].loss,
        dev=dev.estimate(scores[best]),
    )


def tuned_prompt(problem: Problem, space: Subspace, vectors: FloatArray) -> SoftPrompt:
    """Vectors (length, width) as a candidate: z = 0 where they are p0. They are kept with the problem.

    What stands in front is the whole of it: the embeddings of initial tokens are in the vectors already.
    """
    key = vectors_digest(vectors)
    problem.vectors[key] = vectors
    tokens = () if space.mode == "concat" else space.tokens
    return SoftPrompt((0.0,) * space.dim, replace(space, p0=key, tokens=tokens))
