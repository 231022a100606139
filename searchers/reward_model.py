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
from scipy.stats import rankdata

from rayprompt.candidate import Candidate, TextPrompt, candidate_from_json, digest
from rayprompt.errors import InputError
from rayprompt.scores import FloatArray, Scores
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.registry import load_searcher
from rayprompt.searcher.settings import make_settings, setting
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
LEARNING = "has ranked nothing yet"
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
    partial_rows = True
    kind = "text"
    Settings = RewardModelSettings

    def __init__(self, problem: Problem, **kwargs: Any) -> None:
        super().__init__(problem, **kwargs)
        s = self.settings = replace(
            self.settings, phrases=read_phrases(self.settings.phrases), prompts=read_pool(self.settings.prompts)
        )
        check(s)
        self.inner = self._inner()
        if s.inner != NOBODY:  # as they were resolved: a trial may not find the files that they name
            self.settings = s = replace(s, inner_settings=self.inner._settings_dict())
        self.barrier = self.inner.barrier  # type: ignore[misc]  # of this one, not of the class
        self.partial_rows = self.inner.partial_rows  # type: ignore[misc]
        self.slots: Slots | None = None
        if s.edits:
            self.slots = Slots.of(self.problem, length=s.length, vocabulary=s.vocabulary, phrases=s.phrases)
        self.queries = [
            "\n".join(example.fields.values()) for example in self.problem.task.examples("train", self.problem.split)
        ]
        self.prior = None if s.start is None else known_model(self.problem, s.start)
        self._blank()
        if s.start is not None and self.prior is None:
            for prompt, value, right in known_prompts(self, s.start):
                self._keep(prompt, value, right)
        self.own = len(self.prompts)

    def _inner(self) -> PromptSearcher:
        s, budget = self.settings, self.budget
        cls = Nobody if s.inner == NOBODY else load_searcher(s.inner)
        if cls.kind != "text" or cls is type(self):
            raise InputError(f"setting inner={s.inner!r}: must be another searcher of text prompts")
        given = dict(s.inner_settings or {})
        if not all(isinstance(key, str) for key in given):
            raise InputError(f"setting inner_settings={given}: must be a mapping of names to values")
        known = cls.Settings.__dataclass_fields__
        for name in ("length", "vocabulary", "phrases"):  # what is said of edits holds for it, too
            if name in known and getattr(s, name) != getattr(type(s), name):
                given.setdefault(name, getattr(s, name))
        make_settings(cls, given)
        inner = cls(
            self.problem,
            objective=self._objective if ":" in self.objective_name else self.objective_name,
            seed=self.seed,
            budget=None if budget is None else budget * OVERSAMPLE,
            **given,
        )
        if inner.learns and inner.generation < 2:
            raise InputError(
                f"setting inner={s.inner!r}: it proposes one prompt at a time, so there is nothing to rank"
            )
        return inner

    def _blank(self) -> None:
        self.rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=(1,))))
        self.parts = Parts(self.problem, () if self.slots is None else self.slots.options)
        self.surrogate = self._surrogate()
        self.prompts: list[TextPrompt] = []  # that were scored, those of an earlier study first
        self.rows: list[Row] = []
        self.worth: list[float] = []  # of the objective
        self.right: list[FloatArray] = []  # (Q,) each
        self.asked: set[Row] = set()  # token ids of all prompts that are known or out
        self.predicted: dict[str, float] = {}  # by key, of what is out
        self.judged: list[tuple[int, float, float]] = []  # generation, predicted and real, of the last
        self.fits: list[int] = []  # prompts at each fit of a model that takes long
        self.told, self.trusted, self.falls, self.ranked, self.spared = 0, True, 0, 0, 0
        self.regret, self.pool_at = 0.0, 0
        self.own = 0  # prompts of its own: those behind the earlier study's

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
            chosen = self._unranked(n)
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
        self.asked.update(self._ids(prompt) for prompt in chosen)
        return list(chosen)

    def tell(self, candidates: Sequence[Candidate], scores: Scores) -> None:
        """The reward is learned pair by pair; the inner searcher is told the same. What was predicted is compared."""
        values, settled = self.values(scores), scores.settled()
        right = self._right(scores)
        told: list[tuple[float, float]] = []
        for i, candidate in enumerate(candidates):
            prediction = self.predicted.pop(candidate.key, None)
            if not settled[i] or not np.isfinite(values[i]) or not isinstance(candidate, TextPrompt):
                continue
            self._keep(candidate, float(values[i]), right[i])
            if prediction is not None:
                told.append((prediction, float(values[i])))
        self.inner.tell(candidates, scores)
        if told:
            believed = max(prediction for prediction, _ in told)
            best = float(np.mean([value for prediction, value in told if prediction == believed]))
            self.regret = max(value for _, value in told) - best
            self.told += 1
            self.judged = (self.judged + [(self.told, *pair) for pair in told])[-WINDOW:]
            self._trust()

    def _right(self, scores: Scores) -> FloatArray:
        """(C, Q) what was right, pair by pair; NaN where there is no answer, or the caller had values alone."""
        if scores.objective is not None:
            return np.full((len(scores.candidates), len(self.queries)), np.nan)
        return scores.judged()

    def _ids(self, prompt: TextPrompt) -> Row:
        return self.problem.token_ids(prompt)

    def _keep(self, prompt: TextPrompt, value: float, right: FloatArray) -> None:
        self.asked.add(self._ids(prompt))
        self.prompts.append(prompt)
        self.rows.append(self.parts.row(prompt))
        self.worth.append(value)
        self.right.append(np.asarray(right, dtype=np.float16))

    # Proposals.

    @property
    def _ready(self) -> bool:
        """Whether there is enough to rank by."""
        least = 2 if self.own or self.settings.inner == NOBODY else max(2, self.settings.warmup)
        waiting = self.settings.inner == NOBODY and self.pool_at < min(len(self._pool), self.settings.warmup)
        return self.prior is not None or (len(self.prompts) >= least and not waiting)

    @property
    def _pool(self) -> list[str]:
        """What it begins with: the manual prompt, where prompts are edited, and the given ones."""
        manual = self.problem.task.manual_prompt
        return [*([manual] if manual and self.settings.edits else []), *(self.settings.prompts or [])]

    def _unranked(self, n: int) -> list[TextPrompt]:
        """New prompts as they come: the pool, the inner searcher's, else edits."""
        found: dict[Row, TextPrompt] = {}
        pool = self._pool
        while len(found) < n and self.pool_at < len(pool):
            prompt = self.problem.prompt(pool[self.pool_at])
            self.pool_at += 1
            self._add(found, [prompt])
        if len(found) < n:
            self._add(found, self.inner.ask(n - len(found)))
        if not found:
            self._add_edits(found, n)
        return list(found.values())[:n]

    def _add(self, found: dict[Row, TextPrompt], prompts: Sequence[Candidate]) -> None:
        """Those that are new; the inner searcher is given back what is not."""
        for prompt in prompts:
            assert isinstance(prompt, TextPrompt)
            ids = self._ids(prompt)
            if ids in self.asked or ids in found:
                self.inner.release([prompt])
            else:
                found[ids] = prompt

    def _proposals(self, n: int) -> tuple[list[TextPrompt], list[TextPrompt]]:
        """New prompts to rank: the inner searcher's, and all, with edits and the pool."""
        s = self.settings
        count = max(n, round((1 - s.edits) * s.proposals))
        if self.inner.learns:
            count = min(count, OVERSAMPLE * n)
        found: dict[Row, TextPrompt] = {}
        self._add(found, self.inner.ask(count))
        inner = list(found.values())
        for prompt in self.problem.prompts(s.prompts or []):
            ids = self._ids(prompt)
            if ids not in self.asked:
                found.setdefault(ids, prompt)
        self._add_edits(found, s.proposals)
        self.ranked += len(found)
        return inner, list(found.values())

    def _add_edits(self, found: dict[Row, TextPrompt], upto: int) -> None:
        """Edits of the best prompts, the better ones more often, until there are so many proposals."""
        if self.slots is None or len(found) >= upto:
            return
        order = np.argsort(-np.array(self.worth), kind="stable")[: self.settings.elite]
        elite = [self.rows[i] for i in order.tolist()] or [()]
        chance = 1 / (1 + np.arange(len(elite)))
        chance /= chance.sum()
        wanted = upto - len(found)
        for parent in self.rng.choice(len(elite), size=TRIES * wanted, p=chance).tolist():
            row = edited(self.parts, elite[parent], elite, self.slots.length, self.rng)
            if not row:
                continue
            prompt = self.parts.prompt(row)
            ids = self._ids(prompt)
            if ids not in self.asked and ids not in found:
                found[ids] = prompt
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
        given = len(self.settings.prompts or ())  # what is in the pool comes again
        self.spared += max(0, len(proposals) - given - len(best) - free) * len(self.queries)
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
        right = np.stack(self.right[:count]).astype(np.float64)
        self.surrogate.fit(self.prompts[:count], self.rows[:count], np.array(self.worth[:count]), right)

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
        correlation, freedom = self._compared()
        if freedom < LEAST:
            return
        trusted = correlation * freedom**0.5 > CHANCE
        self.falls += self.trusted and not trusted
        self.trusted = bool(trusted)

    def _compared(self) -> tuple[float, int]:
        """The rank correlation of predicted and real values within generations, and its degrees of freedom.

        Within: that both get better as the search goes on says nothing of who is better in a generation.
        """
        predicted: list[FloatArray] = []
        real: list[FloatArray] = []
        for generation in dict.fromkeys(g for g, _, _ in self.judged):
            pairs = np.array([(p, r) for g, p, r in self.judged if g == generation])
            if len(pairs) > 1:
                ranks = rankdata(pairs, axis=0)
                centred = (ranks - ranks.mean(axis=0)) / len(pairs)
                predicted.append(centred[:, 0])
                real.append(centred[:, 1])
        if not predicted:
            return 0.0, 0
        a, b = np.concatenate(predicted), np.concatenate(real)
        norm = float(np.sqrt((a @ a) * (b @ b)))
        return (float(a @ b) / norm if norm else 0.0), len(a) - len(predicted)

    @property
    def correlation(self) -> float:
        """The rank correlation (Spearman's, generation by generation) of predicted and real values; 0 where none."""
        return self._compared()[0]

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
            "surrogate": LEARNING if not self.ranked else RANKING if self.trusted else CHANCE_ONLY,
        }

    def nominations(self) -> list[Candidate]:
        return self.inner.nominations()

    def state_dict(self) -> dict[str, Any]:
        return {
            "rng": self.rng.bit_generator.state,
            "inner": self.inner.state_dict(),
            "prompts": zlib.compress(json.dumps([p.to_json() for p in self.prompts], ensure_ascii=False).encode()),
            "rows": zlib.compress(json.dumps(self.rows).encode()),
            "values": np.array(self.worth),
            "right": zlib.compress(np.stack(self.right).tobytes() if self.right else b""),
            "asked": sorted(self.asked.difference(map(self._ids, self.prompts))),
            "options": [(o.text, o.first, o.later) for o in self.parts.options[self.parts.given :]],
            "raw": sorted(self.parts.raw),
            "predicted": dict(self.predicted),
            "judged": list(self.judged),
            "fits": list(self.fits),
            "fitted": self.surrogate.fitted,
            "process": self.surrogate.state_dict(),
            "counts": (
                self.told,
                self.trusted,
                self.falls,
                self.ranked,
                self.spared,
                self.regret,
                self.pool_at,
                self.own,
            ),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._blank()
        self.inner.load_state_dict(state["inner"])
        self.parts.restore(state["options"], state["raw"])
        forms = json.loads(zlib.decompress(state["prompts"]))
        self.prompts = [p for p in map(candidate_from_json, forms) if isinstance(p, TextPrompt)]
        self.rows = [tuple(row) for row in json.loads(zlib.decompress(state["rows"]))]
        self.worth = state["values"].tolist()
        right = np.frombuffer(zlib.decompress(state["right"]), dtype=np.float16)
        self.right = list(right.reshape(len(self.prompts), -1)) if self.prompts else []
        self.asked = {*(tuple(ids) for ids in state["asked"]), *map(self._ids, self.prompts)}
        self.predicted, self.fits = dict(state["predicted"]), list(state["fits"])
        self.judged = [(int(g), float(a), float(b)) for g, a, b in state["judged"]]
        self.told, self.trusted, self.falls, self.ranked, self.spared, self.regret, self.pool_at, self.own = state[
            "counts"
        ]
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
        """The inner searcher's; and what it began with, so that a resumed search does not begin with something else."""
        began = [[p.key, v] for p, v in zip(self.prompts[: self.own], self.worth[: self.own], strict=True)]
        return {**self.inner.content, **({"start": digest(began)} if began else {})}

    def stop(self) -> dict[str, Any]:
        return self.inner.stop()

    @property
    def nominates_alone(self) -> bool:
        return self.inner.nominates_alone


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

    table = ScoreStore(path).candidates()
    rows = zip(table.column("form").to_pylist(), table.column("origin").to_pylist(), strict=True)
    forms = [json.loads(form) for form, origin in rows if origin != "report"]  # what was asked for on train
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


def known_prompts(searcher: PromptSearcher, start: str) -> list[tuple[TextPrompt, float, FloatArray]]:
    """What an earlier study or a store knows of text prompts on all train examples: the objective, (Q,) what was right.

    Raises:
        InputError: there is nothing for this task, split and LM.
    """
    problem = searcher.problem
    key = f"prompts {start} {searcher.objective_name}"
    if key not in problem.known:
        from rayprompt.study.warm import stored_scores

        found = [
            (candidate, float(searcher.objective(scores)[0]), scores.judged()[0])
            for candidate, scores in stored_scores(problem, start, "text")
            if isinstance(candidate, TextPrompt)
        ]
        found = [row for row in found if np.isfinite(row[1])]
        if not found:
            raise InputError(
                f"setting start={start!r}: neither a saved reward model nor a study or store with prompts that were "
                f"scored on all train examples of {problem.task.name} with {problem.lm.name}"
            )
        problem.known[key] = found
    known: list[tuple[TextPrompt, float, FloatArray]] = problem.known[key]
    return known
