"""What every registered searcher must do, whatever its algorithm; then each algorithm's own tests."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from ray import cloudpickle

from rayprompt.candidate import Candidate, TextPrompt
from rayprompt.errors import InputError
from rayprompt.scores import Scores
from rayprompt.searcher.base import PromptSearcher
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.registry import load_searcher, searcher_paths
from searchers.nevergrad import NevergradSearcher
from searchers.random import RandomSearcher

NAMES = sorted(searcher_paths())
TEXT = [name for name in NAMES if load_searcher(name).kind == "text"]


def make(name: str, view: Problem, seed: int = 0) -> PromptSearcher:
    return load_searcher(name)(view, seed=seed, budget=200)


def fake(candidates: Sequence[Candidate]) -> Scores:
    """A smooth made-up objective of the token ids, or of z."""
    values = [-sum(c.token_ids or ()) / 1e3 if isinstance(c, TextPrompt) else -sum(map(abs, c.z)) for c in candidates]
    return Scores.of_values(candidates, np.array(values))


def play(searcher: PromptSearcher, generations: int) -> list[str]:
    keys = []
    for _ in range(generations):
        candidates = searcher.ask(searcher.generation)
        keys += [c.key for c in candidates]
        searcher.tell(candidates, fake(candidates))
    return keys


def test_registry() -> None:
    assert {"nevergrad", "random"} <= set(NAMES)
    with pytest.raises(InputError, match="unknown searcher 'nevergard' .did you mean 'nevergrad'"):
        load_searcher("nevergard")
    for name in NAMES:
        assert load_searcher(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_proposals_and_none_twice(name: str, view: Problem) -> None:
    first, second, other = (play(make(name, view, seed), 6) for seed in (0, 0, 1))
    assert first == second
    assert first != other
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("name", NAMES)
def test_global_random_generators_are_not_touched(name: str, view: Problem) -> None:
    np.random.seed(7)
    random.seed(7)
    before = (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[union-attr]
    play(make(name, view), 3)
    assert before == (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[union-attr]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("told", [True, False])
def test_goes_on_from_its_state(name: str, view: Problem, told: bool, tmp_path: Path) -> None:
    searcher = make(name, view)
    play(searcher, 3)
    waiting = searcher.ask(5)
    if told:
        searcher.tell(waiting, fake(waiting))
    searcher.save(str(tmp_path / "state"))
    restored = make(name, view)
    restored.restore(str(tmp_path / "state"))
    copies = [restored, pickle.loads(pickle.dumps(searcher)), cloudpickle.loads(cloudpickle.dumps(searcher))]
    for s in (searcher, *copies):
        if not told:
            s.tell(waiting, fake(waiting))
    expected = play(searcher, 3)
    for s in copies:
        assert play(s, 3) == expected


@pytest.mark.parametrize("name", NAMES)
def test_survives_what_a_caller_may_tell(name: str, view: Problem) -> None:
    searcher = make(name, view)
    candidates = searcher.ask(8)
    values = np.array([np.nan, np.inf, -np.inf, 1.0, 0.0, 2.0, np.nan, 3.0])
    searcher.tell(candidates[::-1], Scores.of_values(candidates[::-1], values))
    searcher.tell(candidates[:2], Scores.of_values(candidates[:2], values[3:5]))
    searcher.tell(
        [TextPrompt("never asked", (5, 6))], Scores.of_values([TextPrompt("never asked", (5, 6))], np.ones(1))
    )
    assert len(searcher.ask(8)) == 8


@pytest.mark.parametrize("name", TEXT)
def test_prompts_are_words_that_round_trip(name: str, problem: Problem, view: Problem) -> None:
    for candidate in make(name, view).ask(30):
        assert isinstance(candidate, TextPrompt)
        assert problem.round_trips(candidate)
        assert all(word.isalpha() for word in candidate.text.split())


@pytest.mark.parametrize("cls", [RandomSearcher, NevergradSearcher])
def test_phrases_from_a_file(cls: type[PromptSearcher], view: Problem, problem: Problem, tmp_path: Path) -> None:
    (tmp_path / "phrases.txt").write_text("it was\noverall it felt\nin short\n\nit was\n")
    searcher = cls(view, phrases=str(tmp_path / "phrases.txt"))
    found = {c.text for c in searcher.ask(16)}
    assert found >= {"it was", "overall it felt", "in short"}
    assert len(found) <= 4  # nevergrad may leave the place empty
    assert searcher.ask(4) == []
    two = cls(view, phrases=str(tmp_path / "phrases.txt"), length=2, seed=3).ask(9)
    assert any(c.text == f"{a} {b}" for c in two for a in found for b in found if a and b)
    assert all(problem.round_trips(c) for c in two)


def test_searchers_see_train_only(view: Problem) -> None:
    assert list(view.task.parts(view.split)) == ["train"]
    with pytest.raises(InputError, match="unknown part 'test'"):
        view.part("test")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimzer": "DE"}, "unknown setting 'optimzer'.*did you mean 'optimizer'"),
        ({"optimizer": "DiscreteOnPlusOne"}, "nearest: DiscreteOnePlusOne"),
        ({"population": "many"}, "population='many' must be int, not str"),
        ({"population": 0}, "must be 1 or more"),
        ({"length": 0}, "must be 1 or more"),
        ({"length": True}, "must be int or null, not bool"),
        ({"vocabulary": 1}, "must be 2 or more"),
        ({"phrases": "nope.txt"}, "no such file"),
        ({"start": "zyxwv zyxwv"}, "setting start="),
    ],
)
def test_bad_settings_get_one_clear_line(settings: dict[str, object], message: str, view: Problem) -> None:
    with pytest.raises(InputError, match=message):
        NevergradSearcher(view, **settings)


def test_nevergrad_starts_where_it_is_told(view: Problem) -> None:
    assert NevergradSearcher(view).ask(1)[0].text == "it was"
    assert NevergradSearcher(view, start="overall it felt").ask(1)[0].text == "overall it felt"
    starts = {NevergradSearcher(view, start="random", seed=s).ask(1)[0].text for s in range(4)}
    assert len(starts) == 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Nevergrad's, of what it refused
def test_optimizers_that_cannot_do_what_is_asked(view: Problem) -> None:
    with pytest.raises(InputError, match="'RPowell': Nevergrad refuses it here .*parallelization.*try .*population=1"):
        NevergradSearcher(view, optimizer="RPowell")
    assert len(play(NevergradSearcher(view, optimizer="TinySPSA", population=1), 3)) == 3


OPTIMIZERS = [
    "IsoEMNA",
    "DiscreteOnePlusOne",
    "PortfolioDiscreteOnePlusOne",
    "DE",
    "PSO",
    "NGOpt",
    "CMA",
    "TBPSA",
    "RandomSearch",
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nevergrad_runs_any_optimizer_and_goes_on_from_its_state(optimizer: str, view: Problem) -> None:
    searcher = NevergradSearcher(view, optimizer=optimizer, seed=1, budget=100)
    play(searcher, 3)
    copy = pickle.loads(pickle.dumps(searcher))
    assert play(searcher, 2) == play(copy, 2)


def test_nevergrad_beats_random_on_a_smooth_problem(view: Problem) -> None:
    """Distance of the token ids to a hidden prompt: what a discrete hill climber is made for."""
    goal = view.words[300:305]

    def hits(candidate: TextPrompt) -> float:
        return float(sum(a == b.later[0] for a, b in zip(candidate.token_ids or (), goal, strict=False)))

    best = {}
    for name in ("random", "nevergrad"):
        found = []
        for seed in range(3):
            searcher = load_searcher(name)(view, seed=seed, vocabulary=400, budget=1500)
            top = 0.0
            for _ in range(90):
                candidates = searcher.ask(16)
                values = np.array([hits(c) for c in candidates])
                searcher.tell(candidates, Scores.of_values(candidates, values))
                top = max(top, values.max())
            found.append(top)
        best[name] = np.mean(found)
    assert best["nevergrad"] > best["random"]


def test_trials_that_tune_does_not_start_again_are_not_waited_for(
    view: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``Tuner.restore(resume_unfinished=False)``: Tune then asks once a second and says nothing of its trials."""
    clock = [0.0]
    monkeypatch.setattr("rayprompt.searcher.base.time.monotonic", lambda: clock[0])
    searcher = make("nevergrad", view)
    first = searcher.suggest("a")
    searcher.save_to_dir(str(tmp_path), "one")
    restored = make("nevergrad", view)
    restored.restore_from_dir(str(tmp_path))
    for _ in range(100):  # a trial runs: Tune asks often
        clock[0] += 0.1
        assert restored.suggest("b") is None
    answers = []
    for _ in range(6):  # none runs
        clock[0] += 1.0
        answers.append(restored.suggest("b"))
    assert first in answers
    restored.on_trial_complete("b", {"score": 1.0})
    assert restored.suggest("c")["batch"] == 1


def test_a_window_of_generations_does_not_depend_on_which_trial_is_faster(view: Problem) -> None:
    """With three trials out, generation g is asked for when exactly those before g - 2 were told."""
    import itertools

    asked = []
    for order in itertools.permutations(range(3)):
        searcher = make("nevergrad", view)
        assert searcher.set_max_concurrency(3)
        seen = [searcher.suggest(f"t{i}") for i in range(3)]
        assert searcher.suggest("t3") is None
        for i in order:
            searcher.on_trial_complete(f"t{i}", {"score": float(i)})
        seen += [searcher.suggest(f"u{i}") for i in range(3)]
        asked.append([str.__str__(config["candidates"]) for config in seen])
    assert all(keys == asked[0] for keys in asked)
