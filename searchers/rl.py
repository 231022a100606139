"""RLPrompt (Deng et al., 2022, arXiv 2205.12548): a policy network, trained by soft Q-learning, writes the prompts.

A step asks for 16 prompts, takes their rewards, and updates the policy: a frozen causal LM with a small MLP
(``policy.py``), whose loss is in ``soft_q.py``. Settings and presets are in ``rl_settings.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from rayprompt.candidate import Candidate, ConditionedPrompt, TextPrompt, candidate_from_json
from rayprompt.errors import InputError
from rayprompt.lm.encode import Encoder
from rayprompt.lm.source import describe_model, load_tokenizer
from rayprompt.objective import group_values
from rayprompt.scores import FloatArray, IntArray, Scores
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.task import Example
from searchers.rl_settings import RLPromptSettings, resolved
from searchers.rl_vocabulary import Row, Vocabulary, read_given

if TYPE_CHECKING:
    from searchers.policy import Policy, Sampling
    from searchers.soft_q import SoftQLearning

EPSILON = 1e-4  # beside the standard deviation of rewards
ELITE = 0.1  # the best share of all prompts, which is replayed more often
REDRAWS, HOTTER = 6, 1.3  # tries to draw prompts that are new, and by how much hotter each is
MOST_AT_A_TIME = 64  # prompts that the policy's LM reads
ENOUGH = 0.75  # of the prompts of a step
WINDOW = 10  # steps over which a collapse is told
HEAT, MOST_HEAT, COOLING = 1.5, 4.0, 0.95  # of the temperature, after a collapse and from then on
MOST_LOOKED_AT = 64  # inputs, when it is told how much their prompts differ
SPREAD = ("prompts_for_inputs", "most_frequent")
HEALTH = (
    *("reward", "reward_best", "new_pairs", "loss", "gradient_norm", "entropy"),
    *("distinct", "new_prompts", "repeated_tokens", "round_trips"),
)
Written = TextPrompt | ConditionedPrompt


class RLPromptSearcher(PromptSearcher):
    """A policy network writes prompts token by token; soft Q-learning makes those with a high reward likely."""

    name = "rl"
    kind = "text"
    barrier = True
    default_objective = "gap"
    Settings = RLPromptSettings

    def __init__(self, problem: Problem, **kwargs: Any) -> None:
        super().__init__(problem, **kwargs)
        self.lm, family = describe_model(self.settings.policy_model)
        if family.template != "causal":
            raise InputError(f"setting policy_model={self.lm.name!r}: a {family.template} LM; the policy's is causal")
        s: RLPromptSettings = resolved(self.settings, self.lm.location)
        encoder = Encoder(load_tokenizer(self.lm.location), self.lm.name, self.lm.max_length, family)
        self.source: IntArray = encoder.ids([s.source], "")[0]
        room = self.lm.max_length - s.length
        if not 1 <= len(self.source) <= room:
            raise InputError(f"setting source={s.source!r}: is {len(self.source)} tokens; must be 1 to {room}")
        self.digests = list(dict.fromkeys(self.problem.digests("train")))  # of the inputs, where prompts are for them
        if s.inputs is not None and s.inputs > len(self.digests):
            raise InputError(f"setting inputs={s.inputs}: the task has {len(self.digests)} train inputs")
        self.to_read: list[int] = []  # inputs whose turn comes in this round
        self.vocabulary = Vocabulary(self.problem, encoder, self.lm.vocab_size, s.tokens or "all", ids=s.ids)
        self.settings, self.given = self._with_given(s)
        self.rng = np.random.Generator(np.random.PCG64(self.seed))
        self.learning: SoftQLearning | None = None  # until the first ask
        self.memory = Memory()
        self.pending: dict[str, Row] = {}  # key of a prompt that is out -> its row
        self.seen: set[str] = set()  # keys of what was asked for or told
        self.step = self.next_given = self.collapses = 0
        self.heat = 1.0
        self.greedy: list[Written] = []  # kept for dev
        self.best: tuple[float, FloatArray | None] = (-np.inf, None)  # mean reward and parameters of the best step
        self.distinct: deque[float] = deque(maxlen=WINDOW)
        self.health: dict[str, float] = dict.fromkeys(HEALTH, 0.0)
        self.spread: dict[str, float] = dict.fromkeys(SPREAD, 0.0) if self.conditioned else {}

    @property
    def generation(self) -> int:
        return int(self.settings.prompts)

    # One step: ask (write prompts), then tell (rewards, updates).

    def ask(self, n: int) -> list[Candidate]:
        """``n`` prompts, drawn from the policy or given; with ``fresh`` none that was asked for before."""
        with self._at_work() as learning:
            sampling, fixed = self._sampling(), self._fixed(n)
            if self.settings.fresh:  # a batch has one size, whatever is asked for: what is left over may be new
                fixed = np.concatenate([fixed, self._blanks(max(0, self.settings.prompts - n))])
            fixed = self._with_inputs(fixed)
            given = self._prompts([tuple(row) for row in fixed.tolist() if -1 not in row])
            fixed = fixed[(fixed < 0).any(axis=1)]
            rows = self._write(learning, fixed, sampling, greedy=self.settings.fresh)  # the greedy prompt is the first
            self._count(rows)
            written = self._prompts(rows)
            if not self.settings.fresh:
                return self._out([*given, *written][:n])
            found = self._new([*given, *written])
            for attempt in range(1, REDRAWS if len(fixed) else 0):
                if len(found) >= ENOUGH * n:
                    break
                hotter = replace(sampling, temperature=sampling.temperature * HOTTER**attempt)
                found = self._new([*found, *self._prompts(self._write(learning, fixed, hotter))])
            return self._out(found[:n])

    def tell(self, candidates: Sequence[Candidate], scores: Scores) -> None:
        """Rewards, normalised and shaped; then gradient steps on these prompts, and on earlier ones.

        One that failed counts as bad as the worst so far; one that was not evaluated to the end teaches nothing.
        """
        values, complete = self.values(scores), scores.complete()
        worst = min(self.memory.rewards, default=np.nan)
        told: list[tuple[int, int]] = []  # (candidate, its place in memory)
        before = len(self.memory.rows)
        for i, candidate in enumerate(candidates):
            row = self._row(candidate)
            reward = float(values[i]) if np.isfinite(values[i]) else worst
            self.seen.add(candidate.key)
            if row is not None and complete[i] and np.isfinite(reward):
                told.append((i, self.memory.place(row, reward)))
        for candidate in candidates:
            self.pending.pop(candidate.key, None)
        if not told:
            return
        which, places = np.array(told).T
        pairs = None if scores.objective is not None else group_values(self.objective_name, scores, self.problem.gold)
        z = self._normalised(places, None if pairs is None else pairs[which])
        s = self.settings
        for place, value in zip(places.tolist(), z.tolist(), strict=True):
            self.memory.shaped[place] = s.scale * value + s.offset
        with self._at_work() as learning:
            for _ in range(s.updates):
                batch = np.concatenate([places, self.memory.replayed(s.replay, s.elite, self.rng)])
                rows = np.array([self.memory.rows[p] for p in batch.tolist()])
                self.health.update(learning.update(rows, self._shaped(batch), len(places)))
            examples = 1 if self.conditioned else len(self.problem.gold)
            self.health["new_pairs"] = (len(self.memory.rows) - before) * examples
            self._end_step(learning, float(np.mean([self.memory.rewards[p] for p in places.tolist()])))

    def release(self, candidates: Sequence[Candidate]) -> None:
        for candidate in candidates:
            if self.pending.pop(candidate.key, None) is not None:
                self.seen.discard(candidate.key)

    def _normalised(self, places: IntArray, pairs: FloatArray | None) -> FloatArray:
        """(n,) z-scores of the rewards told; with ``input`` of each example over the prompts, then averaged.

        ``pairs`` (n, E, G) are the rewards by example and group of samples, NaN = not evaluated. A policy that reads
        the input is rewarded for what is good for that one: prompts are compared with others for the same input.
        """
        how, raw = self.settings.normalise, np.array(self.memory.rewards)
        if how == "none":
            return raw[places]
        if how == "input" and pairs is not None and (self.conditioned or np.isfinite(pairs).all()):
            return z_of_inputs(pairs)
        if self.conditioned:
            some = np.arange(len(raw)) if how == "run" else places
            found = np.empty(len(raw))
            found[some] = z_within(raw[some], np.array([self.memory.rows[p][0] for p in some.tolist()]))
            return found[places]
        return z_scores(raw)[places] if how == "run" else z_scores(raw[places])

    def _shaped(self, places: IntArray) -> FloatArray:
        """(n,) shaped rewards as they are now: those of a run are measured by all that it has seen."""
        if self.settings.normalise != "run":
            return np.array(self.memory.shaped)[places]
        z = self._normalised(places, None)
        return np.asarray(self.settings.scale * z + self.settings.offset)

    # What the policy writes.

    def _write(
        self, learning: SoftQLearning, fixed: IntArray, sampling: Sampling, *, greedy: bool = False
    ) -> list[Row]:
        """Prompts from the policy; where it is demanded, those alone that round-trip.

        With ``greedy`` the first is made of the likeliest tokens.
        """
        written, wrong = fixed, np.ones(len(fixed), dtype=bool)
        likeliest = (np.arange(len(fixed)) == 0) & greedy
        for _ in range(REDRAWS):
            u = self.rng.random(fixed.shape)
            new = self.policy.write(learning.theta, fixed, sampling, u, likeliest)
            written = np.where(wrong[:, None], new, written)
            rows: list[Row] = [tuple(row) for row in written.tolist()]
            if not self.settings.round_trip:
                return rows
            wrong = ~self.vocabulary.round_trips(self._columns(rows))
            if not wrong.any():
                break
        return [row for row, bad in zip(rows, wrong.tolist(), strict=True) if not bad]

    def _blanks(self, count: int) -> IntArray:
        return np.full((count, self.settings.length), -1)

    def _fixed(self, n: int) -> IntArray:
        """(n, length) what of the next prompts is given, -1 = for the policy to write."""
        fixed = self._blanks(n)
        every = {"on-policy": 0, "mixed": 2, "off-policy": 1}[str(self.settings.data)]
        for i in range(0, n, every) if every else ():
            fixed[i] = self.given[self.next_given % len(self.given)]
            self.next_given += 1
        return fixed

    @property
    def conditioned(self) -> bool:
        """Whether the policy reads the inputs; a row then begins with the number of its input."""
        return self.settings.inputs is not None

    def _with_inputs(self, fixed: IntArray) -> IntArray:
        """Where the policy reads inputs, rows with those of the next step in front: each for as many in a row."""
        if not self.conditioned:
            return fixed
        count = int(self.settings.inputs or 1)
        if len(self.to_read) < count:
            later = self.rng.permutation(len(self.digests)).tolist()
            self.to_read += [i for i in later if i not in self.to_read]
        chosen, self.to_read = np.array(self.to_read[:count]), self.to_read[count:]
        return np.concatenate([chosen[np.arange(len(fixed)) * count // len(fixed)][:, None], fixed], axis=1)

    def _columns(self, rows: Sequence[Row]) -> list[Row]:
        """Rows without their inputs."""
        return [row[1:] for row in rows] if self.conditioned else list(rows)

    def _prompts(self, rows: Sequence[Row]) -> list[tuple[Row, Written]]:
        prompts: list[Written] = list(self.vocabulary.prompts(self._columns(rows)))
        if self.conditioned:
            prompts = [
                ConditionedPrompt(((self.digests[row[0]], prompt),))
                for row, prompt in zip(rows, self.vocabulary.prompts(self._columns(rows)), strict=True)
            ]
        return list(zip(rows, prompts, strict=True))

    def _new(self, prompts: Sequence[tuple[Row, Written]]) -> list[tuple[Row, Written]]:
        """Those that were not asked for before, each text once."""
        found = {prompt.key: (row, prompt) for row, prompt in reversed(prompts)}
        return [pair for key, pair in reversed(found.items()) if key not in self.seen]

    def _out(self, prompts: Sequence[tuple[Row, Written]]) -> list[Candidate]:
        self.pending.update({prompt.key: row for row, prompt in prompts})
        self.seen.update(self.pending)
        return [prompt for _, prompt in prompts]

    def _row(self, candidate: Candidate) -> Row | None:
        """The row of a prompt; None where the policy cannot write it."""
        if candidate.key in self.pending or self.conditioned or not isinstance(candidate, TextPrompt):
            return self.pending.get(candidate.key)
        return self.vocabulary.row(candidate.text, self.settings.length)

    def _greedy(self, learning: SoftQLearning) -> list[Written]:
        """The prompt of the likeliest tokens; none where it must round-trip and does not.

        Where the policy reads inputs, that of every train input.
        """
        if self.conditioned:
            return [self._for(learning.theta, self._inputs)]
        from searchers.policy import Sampling

        blank = self._blanks(1)
        written = self.policy.write(learning.theta, blank, Sampling(), np.zeros(blank.shape), np.array([True]))
        row: Row = tuple(written[0].tolist())
        refused = self.settings.round_trip and not self.vocabulary.round_trips([row])[0]
        return [] if refused else list(self.vocabulary.prompts([row]))

    @cached_property
    def _inputs(self) -> list[Example]:
        """The train inputs, each once, by number."""
        examples = {e.digest: e for e in self.problem.task.examples("train", self.problem.split)}
        return [examples[digest] for digest in self.digests]

    def _source_ids(self, examples: Sequence[Example]) -> list[IntArray]:
        """What the policy reads of inputs: the fields that the LM is shown, cut to fit."""
        texts = [" ".join(e.fields[name] for name in self.problem.template.fields) for e in examples]
        room = self.lm.max_length - self.settings.length
        return [ids[:room] if len(ids) else self.source for ids in self.vocabulary.encoder.ids(texts, "")]

    def _for(self, theta: Any, examples: Sequence[Example]) -> ConditionedPrompt:
        """The policy's greedy prompts for inputs."""
        from searchers.policy import Policy, Sampling

        s, own = self.settings, self.policy
        policy = Policy(own.trunk, self._source_ids(examples), own.actions, bias=s.logit_bias, fluent=s.fluent, batch=1)
        blank = np.concatenate([np.arange(len(examples))[:, None], self._blanks(len(examples))], axis=1)
        greedy = np.ones(len(blank), dtype=bool)
        rows = policy.write(theta, blank, Sampling(), np.zeros(blank.shape), greedy)
        prompts = self.vocabulary.prompts([tuple(row) for row in rows[:, 1:].tolist()])
        return ConditionedPrompt(tuple(zip((e.digest for e in examples), prompts, strict=True)))

    def write_for(self, examples: Sequence[Example]) -> ConditionedPrompt:
        with self._at_work() as learning:
            return self._for(learning.theta, list({e.digest: e for e in examples}.values()))

    @property
    def nominates_alone(self) -> bool:
        return self.conditioned or bool(self.settings.selection == "paper")

    def nominations(self) -> list[Candidate]:
        """The policy's greedy prompt as it stands; as published, that of every so many steps."""
        if self.learning is None:
            return []
        with self._at_work() as learning:
            return list(self.greedy if self.nominates_alone and self.greedy else self._greedy(learning))

    # How training gets on.

    def _sampling(self) -> Sampling:
        from searchers.policy import Sampling

        s = self.settings
        if self.step < (s.uniform_steps or 0):
            return Sampling(None, 1.0, np.inf)  # so hot that all are alike
        return Sampling(s.top_k, s.top_p, s.temperature * self.heat)

    def _count(self, rows: Sequence[Row]) -> None:
        """Of the prompts that the policy wrote by itself: how many differ, are new, repeat tokens, round-trip."""
        from searchers.policy import repeated

        if not rows:
            return
        distinct, columns = set(rows), self._columns(rows)
        self.distinct.append(len(distinct) / len(rows))
        self.health.update(
            distinct=len(distinct),
            new_prompts=len(distinct.difference(self.memory.places)),
            repeated_tokens=float(repeated(np.array(columns)).mean()),
            round_trips=float(self.vocabulary.round_trips(columns).mean()),
        )

    def _end_step(self, learning: SoftQLearning, reward: float) -> None:
        """Take down how the policy is, answer a collapse, keep the greedy prompt."""
        s = self.settings
        self.step += 1
        self.health.update(reward=reward, reward_best=max(self.memory.rewards))
        if s.on_collapse == "restart" and reward >= self.best[0]:
            self.best = (reward, learning.theta.cpu().numpy().copy())
        self._watch(learning)
        if self.conditioned and self.step % (s.greedy_every or 1) == 1:
            written = self._for(learning.theta, self._inputs[:MOST_LOOKED_AT]).diversity()
            self.spread = {"prompts_for_inputs": written["prompts"], "most_frequent": written["most_frequent"]}
        elif self.nominates_alone and not self.conditioned and self.step % (s.greedy_every or 1) == 0:
            self.greedy += [prompt for prompt in self._greedy(learning) if prompt not in self.greedy]

    def _watch(self, learning: SoftQLearning) -> None:
        """A policy that writes few distinct prompts has collapsed: nothing is learned from the same again."""
        s = self.settings
        if len(self.distinct) == WINDOW and np.mean(self.distinct) <= s.collapse_at:
            self.collapses += 1
            self.distinct.clear()
            if s.on_collapse != "report":
                self.heat = min(MOST_HEAT, self.heat * HEAT)
            if s.on_collapse == "restart" and self.best[1] is not None:
                learning.restart(self.best[1])
        elif self.distinct and self.distinct[-1] > 2 * s.collapse_at:
            self.heat = max(1.0, self.heat * COOLING)

    def metrics(self) -> dict[str, Any]:
        """Training health: of the last step, except ``collapses``, which are counted."""
        return {**self.health, **self.spread, "collapses": self.collapses, "heat": self.heat}

    def stop(self) -> dict[str, Any]:
        """The number of steps, where it has an end."""
        return {"steps": self.step} if self.settings.steps is not None and self.step >= self.settings.steps else {}

    # State, and where the policy runs.

    def state_dict(self) -> dict[str, Any]:
        return {
            "learning": None if self.learning is None else self.learning.state_dict(),
            "device": self._device,
            "rng": self.rng.bit_generator.state,
            "memory": self.memory.state_dict(),
            "pending": dict(self.pending),
            "seen": sorted(self.seen),
            "counts": (self.step, self.next_given, self.collapses, self.heat),
            "greedy": [prompt.to_json() for prompt in self.greedy],
            "best": self.best,
            "distinct": list(self.distinct),
            "health": dict(self.health),
            **({"to_read": list(self.to_read), "spread": dict(self.spread)} if self.conditioned else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learning = None
        if state["learning"] is not None:
            with self._at_work(state["device"]) as learning:
                learning.load_state_dict(state["learning"])
        self.rng.bit_generator.state = state["rng"]
        self.memory = Memory.from_state(state["memory"])
        self.pending = {key: tuple(row) for key, row in state["pending"].items()}
        self.seen = set(state["seen"])
        self.step, self.next_given, self.collapses, self.heat = state["counts"]
        self.greedy = [p for p in map(candidate_from_json, state["greedy"]) if isinstance(p, TextPrompt)]
        self.best = state["best"]
        self.distinct = deque(state["distinct"], maxlen=WINDOW)
        self.health = dict(state["health"])
        self.to_read, self.spread = list(state.get("to_read", [])), dict(state.get("spread", {}))

    @classmethod
    def resources(cls, settings: Mapping[str, Any]) -> dict[str, float]:
        """A share of a GPU for the policy."""
        share = float(settings.get("gpu", cls.Settings.gpu))
        return {"GPU": share} if share else {}

    @property
    def content(self) -> dict[str, Any]:
        """The digest of the policy's LM."""
        return {"policy_model": self.lm.digest}

    @cached_property
    def policy(self) -> Policy:
        """The policy network. Its LM is loaded when it is first needed."""
        from rayprompt.lm.backbone import load_backbone
        from searchers.policy import Policy

        trunk = load_backbone(self.lm, self._device)
        s = self.settings
        return Policy(
            trunk,
            self._source_ids(self._inputs) if self.conditioned else self.source,
            self.vocabulary.tokens,
            bias=s.logit_bias,
            fluent=s.fluent,
            batch=min(s.prompts // (s.inputs or 1), MOST_AT_A_TIME),
        )

    @cached_property
    def _device(self) -> str:
        """A GPU where Ray has granted this process a share of one."""
        import ray

        if not self.settings.gpu or not ray.is_initialized():
            return "cpu"
        import torch

        granted = ray.get_runtime_context().get_accelerator_ids().get("GPU")
        return "cuda" if granted and torch.cuda.is_available() else "cpu"

    @contextmanager
    def _at_work(self, device: str | None = None) -> Iterator[SoftQLearning]:
        """The networks, loaded, on one thread of the CPU: their bits do not depend on how many there are."""
        from rayprompt.lm.backbone import one_thread
        from searchers.soft_q import SoftQLearning

        if device not in (None, self._device):
            raise InputError(f"the policy of this search was trained on {device}; here it would be on {self._device}")
        with one_thread(self._device):
            if self.learning is None:
                self.learning = SoftQLearning(self.policy, self.settings, self.policy.start(self.rng))
            yield self.learning

    def _with_given(self, s: RLPromptSettings) -> tuple[RLPromptSettings, IntArray]:
        """Settings with the given prompts as texts (a trial may run on another node), and (G, length) their rows.

        Longer ones are cut; the policy goes on where shorter ones end. Without any, it is the task's manual prompt.
        """
        given = read_given(self, s.given)
        if not given and s.data in ("off-policy", "mixed"):
            given = [self.problem.task.manual_prompt or ""]
        data = s.data or ("mixed" if given else "on-policy")
        rows = self.vocabulary.beginnings(given, s.length)
        if data != "on-policy" and not len(rows):
            raise InputError(f"setting data={data!r}: no given prompt that the policy can write (setting given)")
        return replace(s, given=given or None, data=data, fresh=bool(s.fresh) and data != "off-policy"), rows


class Memory:
    """Every prompt that was told, with its reward."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.places: dict[Row, int] = {}  # of a row in rows, rewards and shaped
        self.rewards: list[float] = []
        self.shaped: list[float] = []  # as they were shaped when they were told last

    def place(self, row: Row, reward: float) -> int:
        """The place of a prompt; its first reward stands."""
        if row not in self.places:
            self.places[row] = len(self.rows)
            self.rows.append(row)
            self.rewards.append(reward)
            self.shaped.append(0.0)
        return self.places[row]

    def replayed(self, count: int, elite: float, rng: np.random.Generator) -> IntArray:
        """(count,) places of prompts: a share ``elite`` from the best tenth, the others any."""
        if not count:
            return np.empty(0, dtype=np.int64)
        some = round(elite * count)
        best = np.argsort(-np.array(self.rewards), kind="stable")[: max(1, int(len(self.rewards) * ELITE))]
        any_of_all = rng.integers(len(self.rewards), size=count - some)
        return np.concatenate([any_of_all, best[rng.integers(len(best), size=some)]])

    def state_dict(self) -> dict[str, Any]:
        """Arrays."""
        return {
            "rows": np.array(self.rows, dtype=np.int32),
            "rewards": np.array(self.rewards),
            "shaped": np.array(self.shaped),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Memory:
        """Read :meth:`state_dict` back."""
        memory = cls()
        memory.rows = [tuple(row) for row in state["rows"].tolist()]
        memory.places = {row: i for i, row in enumerate(memory.rows)}
        memory.rewards, memory.shaped = state["rewards"].tolist(), state["shaped"].tolist()
        return memory


def z_scores(values: FloatArray) -> FloatArray:
    """Along the first axis: (x - mean) / (population standard deviation + 1e-4)."""
    return np.asarray((values - values.mean(axis=0)) / (values.std(axis=0) + EPSILON))


def z_within(values: FloatArray, group: IntArray) -> FloatArray:
    """(n,) :func:`z_scores` of values within each group (n,)."""
    found = np.empty(len(values))
    for number in np.unique(group):
        found[group == number] = z_scores(values[group == number])
    return found


def z_of_inputs(rewards: FloatArray) -> FloatArray:
    """(n,) z-scores of rewards (n, E, G), by example over prompts and groups of samples, averaged; NaN is left out."""
    if np.isfinite(rewards).all() and rewards.shape[2] == 1:
        return np.asarray(z_scores(rewards[:, :, 0]).mean(axis=1))
    seen = np.isfinite(rewards)
    count = np.maximum(seen.sum(axis=(0, 2), keepdims=True), 1)
    centred = np.where(seen, rewards, 0.0)
    centred = np.where(seen, centred - centred.sum(axis=(0, 2), keepdims=True) / count, 0.0)
    z = centred / (np.sqrt((centred**2).sum(axis=(0, 2), keepdims=True) / count) + EPSILON)
    return np.asarray(z.sum(axis=(1, 2)) / np.maximum(seen.sum(axis=(1, 2)), 1))
