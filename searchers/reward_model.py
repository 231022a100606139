"""Search that asks the LM less: proposals are ranked by a learned reward, the promising ones are scored.

Prompt-OIRL (Sun et al., 2023, arXiv 2309.06553) learns a reward from logs and picks a prompt for each query; here it is
learned as the search goes, and picks which new prompts are worth the LM's time (Bayesian optimisation).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from rayprompt.candidate import Candidate, TextPrompt, candidate_from_json
from rayprompt.errors import InputError
from rayprompt.objective import pair_values
from rayprompt.scores import FloatArray, Scores
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.registry import load_searcher
from rayprompt.searcher.settings import setting
from rayprompt.searcher.slots import Slots, read_phrases
from rayprompt.tables import read_lines
from searchers.parts import Parts, Row, edited
from searchers.random import RandomDraws
from searchers.surrogate import Surrogate

NOBODY = "none"
CHOICES = ("thompson", "ucb", "best")
OVERSAMPLE = 8  # proposals of an inner searcher that learns, for each that is scored
WINDOW, LEAST = 64, 24  # scored prompts by which the surrogate is judged, and how many there must be
CHANCE = 1.645  # standard errors of a rank correlation that is by chance: one side of 5 %
REFIT = 1.15  # times the prompts of the last fit there must be, for models that take long
TRIES = 20  # edits that are tried for one that is new
RANKING, CHANCE_ONLY = "ranks the proposals", "no better than chance: the inner proposals are taken as they come"


@dataclass(frozen=True)
class RewardModelSettings:
    """Settings of ``reward-model``."""

    inner: str = setting(
        "random", "a searcher of text whose proposals are ranked, and that is told the scores; or 'none'"
    )
    inner_settings: dict[str, Any] | None = setting(None, "the inner searcher's own settings")
    prompts: str | list[str] | None = setting(None, "a pool to propose from: a text file, a prompt a line, or a study")
    edits: float = setting(0.5, "share of the proposals that are edits of the best prompts; 0 filters inner alone")
    proposals: int = setting(1000, "ranked for each generation")
    population: int = setting(16, "candidates of a generation, which the LM scores")
    explore: float = setting(0.2, "share of these that is taken from the inner proposals unranked")
    choice: str = setting(
        "thompson", "the others: 'thompson' (draws from what is believed), 'ucb', or 'best' (the mean)"
    )
    reward_model: str = setting("gaussian-process", "what learns: a name of `list reward-models`, or module:Class")
    model_settings: dict[str, Any] | None = setting(None, "the reward model's own settings")
    start: str | None = setting(None, "learn from this first: an earlier study, a store, or a saved reward model")
    warmup: int = setting(32, "prompts that are scored before any are ranked; none with `start`")
    elite: int = setting(24, "the best prompts, which are edited")
    length: int | None = setting(None, "words of a prompt (default 5), or phrases (default 1), at most")
    vocabulary: int | None = setting(3000, "edits draw from the first so many whole words; null is all")
    phrases: str | list[str] | None = setting(None, "edits draw from the lines of this text file instead")


class Nobody(RandomDraws):
    """Proposes nothing: there are a pool and edits."""

    name = NOBODY

    def ask(self, n: int) -> list[Candidate]:
        return []


class RewardModelSearcher(PromptSearcher):
    """Proposals of an inner searcher, edits of good prompts and a pool, ranked by a surrogate; then the LM scores.

    What the surrogate said of a prompt before it was scored is compared with what the LM said. Where the two have
    nothing to do with each other (rank correlation over the last prompts, one side of 5 %) the inner proposals are
    taken as they come, until they have again.
    """

    name = "reward-model"
    kind = "text"
    Settings = RewardModelSettings

    def __init__(self, problem: Problem, **kwargs: Any) -> None:
        super().__init__(problem, **kwargs)
        s = self.settings = replace(
            self.settings, phrases=read_phrases(self.settings.phrases), prompts=read_pool(self.settings.prompts)
        )
        check(s)
        self.inner = self._inner()
        self.slots = Slots.of(self.problem, length=s.length, vocabulary=s.vocabulary, phrases=s.phrases)
        self.queries = [
            "\n".join(example.fields.values()) for example in self.problem.task.examples("train", self.problem.split)
        ]
        self.prior = None if s.start is None else known_model(self.problem, s.start)
        self._blank()

    def _inner(self) -> PromptSearcher:
        s, budget = self.settings, self.budget
        cls = Nobody if s.inner == NOBODY else load_searcher(s.inner)
        if cls.kind != "text" or cls is type(self):
            raise InputError(f"setting inner={s.inner!r}: must be another searcher of text prompts")
        return cls(
            self.problem,
            objective=self._objective if ":" in self.objective_name else self.objective_name,
            seed=self.seed,
            budget=None if budget is None else budget * OVERSAMPLE,
            **(s.inner_settings or {}),
        )

    def _blank(self) -> None:
        self.rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=(1,))))
        self.parts = Parts(self.problem, self.slots.options)
        self.surrogate = self._surrogate()
        self.prompts: list[TextPrompt] = []  # that were scored, those of an earlier study first
        self.rows: list[Row] = []
        self.pairs: list[FloatArray] = []
        self.right: list[FloatArray] = []
        self.asked: set[Row] = set()
        self.predicted: dict[str, float] = {}  # by key, of what is out
        self.judged: list[tuple[float, float]] = []  # predicted and real, of the last
        self.fits: list[int] = []  # prompts at each fit of a model that takes long
        self.trusted, self.falls, self.ranked, self.spared = True, 0, 0, 0
        self.regret, self.pool_at = float("nan"), 0
        self.own = 0  # prompts of its own: those behind the earlier study's
        if self.settings.start is not None and self.prior is None:
            for prompt, pairs, right in known_pairs(self.problem, self.settings.start, self.objective_name):
                self._keep(prompt, pairs, right)
        self.own = len(self.prompts)

    def _surrogate(self) -> Surrogate:
        s = self.settings
        return Surrogate(self.queries, s.reward_model, s.model_settings or {}, self.parts)

    @property
    def generation(self) -> int:
        return int(self.settings.population)

    def ask(self, n: int) -> list[Candidate]:
        """``n`` prompts that were not asked for before: ranked where there is something to rank by."""
        chosen: list[TextPrompt]
        if not self._ready:
            chosen = self._unranked(n, pool=True)
        else:
            self._fit()
            inner, proposals = self._proposals(n)
            if not proposals:
                return []
            if self.trusted:
                chosen = self._choose(inner, proposals, n)
            else:
                chosen = inner[:n]
                chosen += [p for p in proposals if p not in chosen][: n - len(chosen)]
            self._predict(chosen)
            taken = {prompt.key for prompt in chosen}
            self.inner.release([prompt for prompt in inner if prompt.key not in taken])
        self.asked.update(self.parts.row(prompt) for prompt in chosen)
        return list(chosen)

    def tell(self, candidates: Sequence[Candidate], scores: Scores) -> None:
        """The reward is learned pair by pair; the inner searcher is told the same. What was predicted is compared."""
        values, complete = self.values(scores), scores.complete()
        pairs = self._pairs(scores)
        told: list[tuple[float, float]] = []
        for i, candidate in enumerate(candidates):
            prediction = self.predicted.pop(candidate.key, None)
            if not complete[i] or not np.isfinite(values[i]) or not isinstance(candidate, TextPrompt):
                continue
            self._keep(candidate, pairs[0][i], pairs[1][i])
            if prediction is not None:
                told.append((prediction, float(values[i])))
        self.inner.tell(candidates, scores)
        if told:
            best = max(told)[1]  # of the one that was believed to be the best
            self.regret = max(value for _, value in told) - best
            self.judged = (self.judged + told)[-WINDOW:]
            self._trust()

    def _pairs(self, scores: Scores) -> tuple[FloatArray, FloatArray]:
        """(C, Q) what the objective is the mean of, and (C, Q) what was right; a bare value stands for every query."""
        shape = (len(scores.candidates), len(self.queries))
        of_all = np.repeat(self.objective(scores)[:, None], shape[1], axis=1)
        if scores.objective is not None:
            return of_all, of_all
        gold = self.problem.gold
        found = pair_values(self.objective_name, scores, gold)
        return (of_all if found is None else found), scores.dense("value")

    def _keep(self, prompt: TextPrompt, pairs: FloatArray, right: FloatArray) -> None:
        row = self.parts.row(prompt)
        self.asked.add(row)
        self.prompts.append(prompt)
        self.rows.append(row)
        self.pairs.append(np.asarray(pairs, dtype=np.float16))  # enough to learn from, and they are many
        self.right.append(np.asarray(right, dtype=np.float16))

    # Proposals.

    @property
    def _ready(self) -> bool:
        """Whether there is enough to rank by."""
        return self.prior is not None or len(self.prompts) >= (2 if self.own else max(2, self.settings.warmup))

    def _unranked(self, n: int, *, pool: bool) -> list[TextPrompt]:
        """New prompts as they come: the manual prompt, the pool, the inner searcher's."""
        found: dict[Row, TextPrompt] = {}
        texts: list[str] = []
        if pool:
            manual = self.problem.task.manual_prompt
            texts = [*([manual] if manual and self.settings.edits else []), *(self.settings.prompts or [])]
        for prompt in self.problem.prompts(texts[self.pool_at : self.pool_at + n]):
            self.pool_at += 1
            found.setdefault(self.parts.row(prompt), prompt)
        found = {row: prompt for row, prompt in found.items() if row not in self.asked}
        if len(found) < n:
            for candidate in self.inner.ask(n - len(found)):
                assert isinstance(candidate, TextPrompt)
                row = self.parts.row(candidate)
                if row not in self.asked:
                    found.setdefault(row, candidate)
        return list(found.values())[:n]

    def _proposals(self, n: int) -> tuple[list[TextPrompt], list[TextPrompt]]:
        """New prompts to rank: the inner searcher's, and all, with edits and the pool."""
        s = self.settings
        count = max(n, round((1 - s.edits) * s.proposals))
        if self.inner.learns:
            count = min(count, max(OVERSAMPLE * n, n))
        found: dict[Row, TextPrompt] = {}
        for candidate in self.inner.ask(count):
            if isinstance(candidate, TextPrompt):
                row = self.parts.row(candidate)
                if row not in self.asked:
                    found.setdefault(row, candidate)
        inner = list(found.values())
        for prompt in self.problem.prompts(s.prompts or []):
            row = self.parts.row(prompt)
            if row not in self.asked:
                found.setdefault(row, prompt)
        self._add_edits(found, s.proposals if s.edits else 0)
        self.ranked += len(found)
        return inner, list(found.values())

    def _add_edits(self, found: dict[Row, TextPrompt], upto: int) -> None:
        """Edits of the best prompts, the better ones more often, until there are so many proposals."""
        if not self.prompts or len(found) >= upto:
            return
        values = np.array([float(np.nanmean(pairs)) for pairs in self.pairs])
        order = np.argsort(-values, kind="stable")[: self.settings.elite]
        elite = [self.rows[i] for i in order.tolist()]
        chance = 1 / (1 + np.arange(len(elite)))
        chance /= chance.sum()
        wanted = upto - len(found)
        for parent in self.rng.choice(len(elite), size=TRIES * wanted, p=chance).tolist():
            row = edited(self.parts, elite[parent], elite, self.slots.length, self.rng)
            if row and row not in self.asked and row not in found:
                found[row] = self.parts.prompt(row)
                if len(found) >= upto:
                    return

    def _choose(self, inner: list[TextPrompt], proposals: list[TextPrompt], n: int) -> list[TextPrompt]:
        """The promising ones, and a share of the inner proposals as they come."""
        free = min(len(inner), round(self.settings.explore * n))
        rows = [self.parts.row(prompt) for prompt in proposals]
        taken = {prompt.key for prompt in inner[:free]}
        count = min(len(proposals), n)
        _, order = self._judge(proposals, rows, count)
        best = [proposals[i] for i in order if proposals[i].key not in taken][: n - free]
        self.spared += (len(proposals) - len(best) - free) * len(self.queries)
        return best + inner[:free]

    # The surrogate.

    def _fit(self) -> None:
        """Learn from all that was scored since; models that take long wait until there is more to learn."""
        count = len(self.prompts)
        if count < 2 or count == self.surrogate.fitted:
            return
        if self.surrogate.process is None and self.fits and count < REFIT * self.fits[-1]:
            return
        self.fits.append(count)
        self._learn(count)

    def _learn(self, count: int) -> None:
        pairs, right = np.stack(self.pairs[:count]).astype(np.float64), np.stack(self.right[:count]).astype(np.float64)
        self.surrogate.fit(self.prompts[:count], self.rows[:count], pairs, right)

    def _judge(self, prompts: Sequence[TextPrompt], rows: Sequence[Row], count: int) -> tuple[FloatArray, list[int]]:
        """What is believed of prompts, and which to take; of a model that was given, until there is one of its own."""
        if self.surrogate.fitted:
            return self.surrogate.judge(prompts, rows, self.settings.choice, count, self.rng)
        assert self.prior is not None
        texts = [prompt.text or "(empty)" for prompt in prompts]
        mean = self.prior.predict([q if q.strip() else "(empty)" for q in self.queries], texts).mean(axis=0)
        return mean, np.argsort(-mean, kind="stable")[:count].tolist()

    def _predict(self, chosen: Sequence[TextPrompt]) -> None:
        """Take down what is believed of prompts before the LM scores them."""
        if chosen and (self.surrogate.fitted or self.prior is not None):
            rows = [self.parts.row(prompt) for prompt in chosen]
            if self.surrogate.fitted:
                mean, _ = self.surrogate.judge(chosen, rows, "best", 0, self.rng)
            else:
                mean, _ = self._judge(chosen, rows, 0)
            self.predicted.update({p.key: float(v) for p, v in zip(chosen, mean.tolist(), strict=True)})

    def _trust(self) -> None:
        """Whether the surrogate ranks better than chance, by what it has said of the last prompts."""
        if len(self.judged) < LEAST:
            return
        trusted = self.correlation * (len(self.judged) - 1) ** 0.5 > CHANCE
        self.falls += self.trusted and not trusted
        self.trusted = bool(trusted)

    @property
    def correlation(self) -> float:
        """Spearman's rank correlation of predicted and real values, over the last prompts; 0 where there is none."""
        if len(self.judged) < 3:
            return 0.0
        predicted, real = np.array(self.judged).T
        if np.ptp(predicted) == 0 or np.ptp(real) == 0:
            return 0.0
        return float(spearmanr(predicted, real).statistic)

    def metrics(self) -> dict[str, Any]:
        """How good the surrogate is, and what it has spared.

        ``rank_correlation`` of predicted and real over the last prompts; ``regret``: by how much the prompt that it
        believed to be the best of the last generation was worse than the best; ``ranked``: proposals so far;
        ``evaluations_spared``: pairs of proposals that were ranked and not scored; ``fallbacks``.
        """
        return {
            "rank_correlation": self.correlation,
            "regret": self.regret,
            "ranked": self.ranked,
            "evaluations_spared": self.spared,
            "learned_from": self.surrogate.fitted,
            "trusted": int(self.trusted),
            "fallbacks": self.falls,
            "surrogate": RANKING if self.trusted else CHANCE_ONLY,
        }

    def nominations(self) -> list[Candidate]:
        return self.inner.nominations()

    def state_dict(self) -> dict[str, Any]:
        return {
            "rng": self.rng.bit_generator.state,
            "inner": self.inner.state_dict(),
            "prompts": zlib.compress(json.dumps([p.to_json() for p in self.prompts], ensure_ascii=False).encode()),
            "pairs": _packed(self.pairs),
            "right": _packed(self.right),
            "asked": sorted(self.asked.difference(self.rows)),
            "options": [(o.text, o.first, o.later) for o in self.parts.options[self.parts.given :]],
            "raw": sorted(self.parts.raw),
            "predicted": dict(self.predicted),
            "judged": list(self.judged),
            "fits": list(self.fits),
            "fitted": self.surrogate.fitted,
            "process": self.surrogate.state_dict(),
            "counts": (self.trusted, self.falls, self.ranked, self.spared, self.regret, self.pool_at, self.own),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._blank()
        self.inner.load_state_dict(state["inner"])
        self.parts.restore(state["options"], state["raw"])
        forms = json.loads(zlib.decompress(state["prompts"]))
        self.prompts = [p for p in map(candidate_from_json, forms) if isinstance(p, TextPrompt)]
        self.rows = [self.parts.row(prompt) for prompt in self.prompts]
        self.pairs, self.right = (_unpacked(state[name], len(self.prompts)) for name in ("pairs", "right"))
        self.asked = {*(tuple(row) for row in state["asked"]), *self.rows}
        self.predicted, self.fits = dict(state["predicted"]), list(state["fits"])
        self.judged = [(float(a), float(b)) for a, b in state["judged"]]
        self.trusted, self.falls, self.ranked, self.spared, self.regret, self.pool_at, self.own = state["counts"]
        self.surrogate.load_state_dict(state["process"])
        if state["fitted"]:
            self._learn(state["fitted"])
        self.rng.bit_generator.state = state["rng"]

    @classmethod
    def resources(cls, settings: Mapping[str, Any]) -> dict[str, float]:
        """What the inner searcher's own work wants."""
        name = str(settings.get("inner", cls.Settings.inner))
        return {} if name == NOBODY else load_searcher(name).resources(settings.get("inner_settings") or {})

    @property
    def content(self) -> dict[str, Any]:
        return self.inner.content


def _packed(rows: Sequence[FloatArray]) -> bytes:
    return zlib.compress(np.stack(rows).tobytes() if rows else b"")


def _unpacked(content: bytes, count: int) -> list[FloatArray]:
    return list(np.frombuffer(zlib.decompress(content), dtype=np.float16).reshape(count, -1)) if count else []


def check(s: RewardModelSettings) -> None:
    """Refuse what is out of range.

    Raises:
        InputError: it is.
    """
    for name, least in (("proposals", 1), ("population", 1), ("warmup", 2), ("elite", 1)):
        if getattr(s, name) < least:
            raise InputError(f"setting {name}={getattr(s, name)}: must be {least} or more")
    for name in ("edits", "explore"):
        if not 0 <= getattr(s, name) <= 1:
            raise InputError(f"setting {name}={getattr(s, name)}: must be from 0 to 1")
    if s.choice not in CHOICES:
        raise InputError(f"setting choice={s.choice!r}: must be one of {', '.join(CHOICES)}")


def read_pool(prompts: str | list[str] | None) -> list[str] | None:
    """The prompts of a pool: the lines of a text file, or what an earlier study has scored.

    Raises:
        InputError: it cannot be read or holds none.
    """
    if prompts is None or not isinstance(prompts, str):
        return prompts
    path = Path(prompts).expanduser()
    if not path.is_dir():
        return list(dict.fromkeys(" ".join(line.split()) for line in read_lines(path, "prompts")))
    from rayprompt.store.store import ScoreStore

    forms = [json.loads(form) for form in ScoreStore(path).candidates().column("form").to_pylist()]
    texts = list(dict.fromkeys(form["text"] for form in forms if form.get("kind") == "text"))
    if not texts:
        raise InputError(f"setting prompts={prompts!r}: that study or store holds no text prompts")
    return texts


def known_model(problem: Problem, start: str) -> Any:
    """A saved reward model, where ``start`` is the directory of one; read once, and kept with the problem."""
    from rayprompt.reward.model import FILE, load_model

    key, path = f"reward model {start}", Path(start).expanduser()
    if key not in problem.known and (path / FILE).is_file():
        problem.known[key] = load_model(path)
    return problem.known.get(key)


def known_pairs(problem: Problem, start: str, objective: str) -> list[tuple[TextPrompt, FloatArray, FloatArray]]:
    """What an earlier study or a store knows of text prompts on all train examples: pairs (Q,) and what was right.

    Raises:
        InputError: there is nothing for this task, split and LM.
    """
    key = f"pairs {start} {objective}"
    if key not in problem.known:
        from rayprompt.study.warm import stored_scores

        found = []
        for candidate, scores in stored_scores(problem, start, "text"):
            values = pair_values(objective, scores, problem.gold)
            right = scores.dense("value")[0]
            if isinstance(candidate, TextPrompt):
                found.append((candidate, right if values is None else values[0], right))
        if not found:
            raise InputError(
                f"setting start={start!r}: neither a saved reward model nor a study or store with prompts that were "
                f"scored on all train examples of {problem.task.name} with {problem.lm.name}"
            )
        problem.known[key] = found
    known: list[tuple[TextPrompt, FloatArray, FloatArray]] = problem.known[key]
    return known
