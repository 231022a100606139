"""The searcher `reward-model`: a Gaussian process against scikit-learn's, parts and edits, ranking, falling back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import task_of
from scipy import sparse
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct

import rayprompt
from rayprompt.candidate import Candidate, TextPrompt
from rayprompt.comparison.plan import entries_of
from rayprompt.errors import InputError
from rayprompt.reward.gaussian import BlockRegression, GaussianProcess
from rayprompt.scores import FloatArray, Scores
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.testing.noise import NOISE
from searchers.parts import OPERATIONS, Parts, _change, edited, hashed
from searchers.random import RandomSearcher
from searchers.reward_model import CHANCE_ONLY, LEARNING, RANKING, WINDOW, RewardModelSearcher
from searchers.surrogate import Surrogate, by_draws, demonstrations

pytestmark = [pytest.mark.usefixtures("unlogged"), pytest.mark.filterwarnings("ignore")]
SMALL: dict[str, Any] = {"population": 8, "warmup": 16, "proposals": 120}


def landscape(seed: int = 0) -> Any:
    """A value for every prompt: what its words are worth, more at the front, and a little noise of its own."""

    def value(candidate: Candidate) -> float:
        assert isinstance(candidate, TextPrompt)
        total = 0.0
        for place, word in enumerate(candidate.text.split()):
            code = np.random.default_rng([seed, *word.encode()])
            total += float(code.normal()) / (1 + 0.3 * place)
        return total

    return value


def play(searcher: Any, generations: int, value: Any) -> list[float]:
    """The best value after each generation."""
    best, found = -np.inf, []
    for _ in range(generations):
        batch = searcher.ask(searcher.generation)
        values = np.array([value(c) for c in batch])
        searcher.tell(batch, Scores.of_values(batch, values))
        best = max(best, values.max())
        found.append(float(best))
    return found


# The Gaussian process.


def features(rng: np.random.Generator, n: int) -> list[Any]:
    return [sparse.csr_matrix(rng.binomial(1, 0.2, (n, 30)).astype(float)), rng.normal(size=(n, 4))]


def kernel(blocks: list[Any], others: list[Any], variances: Sequence[float]) -> FloatArray:
    dense = [[np.asarray(b.toarray() if sparse.issparse(b) else b) for b in some] for some in (blocks, others)]
    return np.asarray(sum(v * a @ b.T for v, a, b in zip(variances, *dense, strict=True)))


def test_predictions_are_those_of_scikit_learns_gaussian_process() -> None:
    rng = np.random.default_rng(0)
    blocks, new = features(rng, 40), features(rng, 15)
    y = rng.normal(3.0, 2.0, 40)
    regression = BlockRegression([0.3, 1.0], 0.1).fit(blocks, y)
    scaled = (y - y.mean()) / y.std()
    wide = np.hstack([np.sqrt(0.3) * blocks[0].toarray(), blocks[1]])
    process = GaussianProcessRegressor(DotProduct(0.0, "fixed"), alpha=0.1, optimizer=None).fit(wide, scaled)
    others = np.hstack([np.sqrt(0.3) * new[0].toarray(), new[1]])
    mean, covariance = process.predict(others, return_cov=True)
    assert regression.predict(new) == pytest.approx(y.mean() + y.std() * mean, abs=1e-8)
    draws = np.array([regression.predict(new, regression.draw(rng)) for _ in range(4000)])
    drawn = (draws - y.mean()) / y.std()
    assert drawn.mean(axis=0) == pytest.approx(mean, abs=0.15)
    assert np.cov(drawn.T) == pytest.approx(covariance, abs=0.25 * covariance.diagonal().max())


def test_noisier_values_count_less() -> None:
    rng = np.random.default_rng(1)
    blocks, y = features(rng, 20), rng.normal(size=20)
    spread = np.ones(20)
    spread[0] = 1e6
    with_it = BlockRegression([0.3, 0.3], 0.1).fit(blocks, y, spread).predict(blocks)
    other = y.copy()
    other[0] += 0.5
    moved = BlockRegression([0.3, 0.3], 0.1).fit(blocks, other, spread)
    again = moved.predict(blocks)
    assert np.abs((again - again.mean()) / other.std() - (with_it - with_it.mean()) / y.std()).max() < 0.1


def test_variances_are_those_of_the_largest_marginal_likelihood_that_was_tried() -> None:
    rng = np.random.default_rng(2)
    blocks = features(rng, 60)
    y = blocks[1] @ rng.normal(size=4) + 0.1 * rng.normal(size=60)
    regression = BlockRegression().fit(blocks, y)
    assert regression.variances[1] > 3 * regression.variances[0]  # the words say nothing here
    scaled = (y - y.mean()) / y.std()

    def likelihood(variances: Sequence[float], noise: float) -> float:
        covariance = kernel(blocks, blocks, variances) + noise * np.eye(60)
        return float(multivariate_normal(np.zeros(60), covariance).logpdf(scaled))

    ours = likelihood(regression.variances, regression.noise)
    assert ours >= max(likelihood([0.3, 0.3], 0.1), likelihood([1.0, 0.1], 0.3), likelihood([0.0, 0.03], 1.0))


def test_as_a_reward_model_it_judges_prompts_that_it_has_not_seen() -> None:
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(12)]
    worth = dict(zip(words, rng.normal(0, 0.15, 12), strict=True))
    prompts = [" ".join(rng.choice(words, 3, replace=False)) for _ in range(80)]
    queries = [f"query number {i} {'hard' if i % 2 else 'easy'}" for i in range(40)]
    p = 0.5 + np.array([sum(worth[w] for w in text.split()) for text in prompts])[None]
    p = np.clip(p + np.array([0.1 if i % 2 == 0 else -0.1 for i in range(40)])[:, None], 0.02, 0.98)
    right = (rng.random(p.shape) < p).astype(float)
    model = GaussianProcess().fit(demonstrations(queries, prompts[:60], right[:, :60].T))
    found = model.predict(queries)
    assert found.shape == (40, len(model.prompts))
    unseen = model.predict(queries, prompts[60:])
    assert np.corrcoef(unseen.mean(axis=0), p[:, 60:].mean(axis=0))[0, 1] > 0.6
    assert unseen[::2].mean() > unseen[1::2].mean() + 0.05  # a query's difficulty
    assert ((unseen > 0) & (unseen < 1)).all()


# Parts and edits.


def test_any_prompt_is_a_row_of_parts_and_gives_its_ids_back(view: Problem) -> None:
    parts = Parts(view, view.words[:50])
    rng = np.random.default_rng(0)
    known = [parts.prompt(tuple(rng.integers(50, size=n).tolist())) for n in (1, 2, 5)]
    words = view.prompts(["it simply conclude package sum", "it was", "A strange, hyphen-ated one !"])
    tokens = [view.decoded(rng.integers(5, 900, size=4).tolist()) for _ in range(20)]
    for prompt in [*known, *words, *tokens, TextPrompt("it was")]:
        ids = prompt.token_ids or view.prompt(prompt.text).token_ids
        row = parts.row(prompt)
        assert parts.row(prompt) == row
        assert parts.prompt(row).token_ids == ids
    assert parts.row(TextPrompt("", ())) == ()
    assert max(i for prompt in known for i in parts.row(prompt)) < 50
    again = Parts(view, view.words[:50])
    again.restore([(o.text, o.first, o.later) for o in parts.options[parts.given :]], sorted(parts.raw))
    for prompt in [*words, *tokens]:
        assert again.row(prompt) == parts.row(prompt)
        assert again.prompt(again.row(prompt)) == parts.prompt(parts.row(prompt))


def test_features_are_those_of_a_plain_implementation(view: Problem) -> None:
    parts = Parts(view, view.words[:50])
    rows = [(3, 7, 3), (49,), (), (0, 1, 2, 3, 4, 5, 6, 7)]
    bag, where, mean, each = parts.blocks(rows)
    for n, row in enumerate(rows):
        counts = Counter(row)
        weight = len(row) ** -0.5 if row else 0.0
        assert bag[n].toarray()[0, :50].tolist() == pytest.approx([counts[i] * weight for i in range(50)])
        expected = Counter((min(place, 5) * parts.columns + i) for place, i in enumerate(row))
        assert {k: where[n, k] for k in expected} == pytest.approx({k: v * weight for k, v in expected.items()})
    assert (mean.shape, each.shape) == ((4, 128), (4, 256))
    similar = parts.blocks([(3, 7, 3), (3, 7, 9), (30, 20, 10)])[2]
    assert np.linalg.norm(similar[0] - similar[1]) < np.linalg.norm(similar[0] - similar[2])
    assert np.linalg.norm(hashed("acting") - hashed("actor")) < np.linalg.norm(hashed("acting") - hashed("music"))


def test_edits_stay_prompts_of_known_parts_within_the_length(view: Problem) -> None:
    parts = Parts(view, view.words[:60])
    rng = np.random.default_rng(0)
    row, others = (1, 2, 3, 4), [(10, 11, 12), (20,)]
    found = [edited(parts, row, others, 5, rng) for _ in range(2000)]
    assert {len(f) for f in found} == {1, 2, 3, 4, 5}
    assert all(0 <= i < 60 for f in found for i in f)
    changes = {name: [_change(parts, list(row), name, others, 5, rng) for _ in range(200)] for name in OPERATIONS}
    assert all(len(f) == 5 and set(row) <= set(f) for f in changes["add"])
    assert all(set(f) < set(row) and [i for i in row if i in f] == f for f in changes["delete"])
    assert all(sorted(f) == sorted(row) for f in changes["swap"])
    assert all(sum(a != b for a, b in zip(f, row, strict=True)) <= 1 for f in changes["near"])
    assert any({10, 11, 12} & set(f) for f in changes["join"])
    assert {len(f) for f in changes["replace"]} == {3, 4}
    assert edited(parts, (), [], 5, rng)  # of nothing something is made
    near = parts.near(5)
    unit = np.stack(parts.vectors) / np.linalg.norm(np.stack(parts.vectors), axis=1, keepdims=True)
    assert set(near.tolist()) == set(np.argsort(-(unit @ unit[5]))[1:25].tolist())


# The surrogate.


def test_draws_take_turns() -> None:
    assert by_draws([np.array([0.0, 3.0, 2.0]), np.array([5.0, 9.0, 1.0])], 3) == [1, 0, 2]
    assert by_draws([np.array([1.0, 2.0])], 5) == [1, 0]
    assert by_draws([], 3) == []


@pytest.mark.parametrize("choice", ["thompson", "ucb", "best"])
@pytest.mark.parametrize("model", ["gaussian-process", "logistic", "lightgbm"])
def test_any_reward_model_ranks(model: str, choice: str, view: Problem) -> None:
    rng, value = np.random.default_rng(0), landscape()
    parts = Parts(view, view.words[:40])
    rows = [tuple(rng.integers(40, size=3).tolist()) for _ in range(260)]
    prompts = [parts.prompt(row) for row in rows]
    values = np.array([value(p) for p in prompts])
    chance = 1 / (1 + np.exp(-values))[:, None] * np.ones((1, 24))
    right = (rng.random(chance.shape) < chance).astype(np.float64)
    surrogate = Surrogate([f"query {i}" for i in range(24)], model, {}, parts)
    surrogate.fit(prompts[:200], rows[:200], values[:200], right[:200])
    mean, order = surrogate.judge(prompts[200:], rows[200:], choice, 12, rng)
    assert len(set(order)) == 12
    if model != "lightgbm":  # which sees counts of a prompt, not its words
        assert np.corrcoef(mean, values[200:])[0, 1] > 0.35
        assert values[200:][order].mean() > values[200:].mean() + 0.3


# The searcher.


def make(view: Problem, seed: int = 0, **settings: Any) -> RewardModelSearcher:
    return RewardModelSearcher(view, seed=seed, **{**SMALL, **settings})


def test_it_finds_better_prompts_than_its_inner_searcher_at_equal_evaluations(view: Problem) -> None:
    ours, inner, filtered = [], [], []
    for seed in range(4):
        value = landscape(seed)
        ours.append(play(make(view, seed), 20, value)[-1])
        filtered.append(play(make(view, seed, edits=0.0), 20, value)[-1])
        inner.append(play(RandomSearcher(view, seed=seed), 10, value)[-1])  # whose generation is twice as large
    assert np.mean(ours) > np.mean(filtered) > np.mean(inner)
    assert sum(np.array(ours) - np.array(inner) > 0.5) >= 3  # of four seeds


def test_nothing_is_asked_for_twice_and_the_share_that_explores_is_unranked(view: Problem) -> None:
    searcher, value, seen = make(view, explore=0.25, population=16), landscape(), set()
    for _ in range(8):
        inner = []
        ask = searcher.inner.ask
        vars(searcher.inner)["ask"] = lambda n, ask=ask, inner=inner: inner.extend(found := ask(n)) or found
        batch = searcher.ask(16)
        vars(searcher.inner)["ask"] = ask
        assert len(batch) == 16
        assert not seen & {c.key for c in batch}
        seen |= {c.key for c in batch}
        if searcher.surrogate.fitted:
            assert [c.key for c in batch[-4:]] == [c.key for c in inner[:4]]
        values = np.array([value(c) for c in batch])
        searcher.tell(batch, Scores.of_values(batch, values))
    assert searcher.surrogate.fitted == 7 * 16
    assert len(searcher.inner.asked) <= 8 * 16  # type: ignore[attr-defined]  # what was not taken may come again


def test_what_it_says_of_its_surrogate(view: Problem) -> None:
    searcher, value = make(view), landscape()
    names = set(searcher.metrics())
    assert searcher.metrics()["rank_correlation"] == 0.0
    assert searcher.metrics()["surrogate"] == LEARNING
    predictions: list[tuple[float, float]] = []
    for _ in range(14):
        batch = searcher.ask(8)
        before = dict(searcher.predicted)
        values = np.array([value(c) for c in batch])
        predictions += [(before[c.key], v) for c, v in zip(batch, values.tolist(), strict=True) if c.key in before]
        searcher.tell(batch, Scores.of_values(batch, values))
    metrics = searcher.metrics()
    assert set(metrics) == names
    by_generation = np.array(predictions[-WINDOW:]).reshape(-1, 8, 2)
    ranks = np.argsort(np.argsort(by_generation, axis=1), axis=1) - 3.5  # within each
    a, b = ranks[:, :, 0].ravel(), ranks[:, :, 1].ravel()
    assert metrics["rank_correlation"] == pytest.approx(float(a @ b / np.sqrt((a @ a) * (b @ b))))
    assert metrics["rank_correlation"] > 0.2
    last = np.array(predictions[-8:])
    assert metrics["regret"] == pytest.approx(last[:, 1].max() - last[last[:, 0].argmax(), 1])
    assert (metrics["trusted"], metrics["fallbacks"], metrics["surrogate"]) == (1, 0, RANKING)
    assert metrics["ranked"] >= 12 * 100
    assert metrics["evaluations_spared"] == pytest.approx((metrics["ranked"] - 12 * 8) * len(view.gold), rel=0.05)


def test_with_a_surrogate_that_is_noise_it_falls_back_and_is_as_good_as_its_inner_searcher(view: Problem) -> None:
    ours, inner = [], []
    for seed in range(6):
        value = landscape(seed)
        searcher = make(view, seed, reward_model=NOISE, edits=0.0)
        ours.append(play(searcher, 40, value)[-1])
        inner.append(play(RandomSearcher(view, seed=seed), 20, value)[-1])
    difference = np.array(ours) - np.array(inner)
    assert difference.mean() > -2.6 * difference.std(ddof=1) / 6**0.5
    assert searcher.falls >= 1
    searcher.trusted = False
    assert searcher.metrics()["surrogate"] == CHANCE_ONLY


def test_it_trusts_a_surrogate_again_that_has_become_good(view: Problem) -> None:
    searcher = make(view)
    rng = np.random.default_rng(0)
    half = [(i // 16, *rng.normal(size=2).tolist()) for i in range(WINDOW // 2)]
    noise = [*half, *((2 + g, a, -b) for g, a, b in half)]  # what there is by chance is there the other way round, too
    searcher.judged = noise
    searcher._trust()
    assert (searcher.trusted, searcher.falls) == (False, 1)
    searcher.judged = [*noise[32:], *((9 + i // 16, float(i), float(i)) for i in range(32))]
    searcher._trust()
    assert (searcher.trusted, searcher.falls) == (True, 1)
    searcher.judged = [(i // 16, 1.0, float(i)) for i in range(WINDOW)]  # it says the same of all
    searcher._trust()
    assert searcher.trusted is False
    # That both grow from one generation to the next is no ranking.
    searcher.judged = [(g, g + 0.1 * a, g + 0.1 * b) for g, a, b in noise]
    assert abs(searcher.correlation) < 0.25


@pytest.mark.parametrize("inner", ["random", "nevergrad", "rl"])
def test_before_any_text_searcher(inner: str, view: Problem) -> None:
    settings = {"prompts": 8, "replay": 4} if inner == "rl" else {"length": 3}
    searcher = make(view, inner=inner, inner_settings=settings, edits=0.0, proposals=60)
    told: list[int] = []
    tell = searcher.inner.tell
    vars(searcher.inner)["tell"] = lambda batch, scores: told.append(len(batch)) or tell(batch, scores)
    play(searcher, 6, landscape())
    assert told == [8] * 6
    assert searcher.surrogate.fitted == 40
    asked = [searcher.parts.prompt(row).text for row in searcher.rows]
    if inner != "rl":
        assert max(len(text.split()) for text in asked) <= 3


def test_same_seed_same_prompts_also_from_a_saved_state(view: Problem) -> None:
    for settings in ({}, {"reward_model": "logistic"}, {"inner": "nevergrad"}):
        value = landscape()
        whole = make(view, **settings)
        play(whole, 9, value)
        half = make(view, **settings)
        play(half, 5, value)
        other = make(view, **settings)
        other.load_state_dict(half.state_dict())
        play(other, 4, value)
        assert [p.key for p in other.prompts] == [p.key for p in whole.prompts]
        assert other.metrics() == whole.metrics()


def test_a_pool_of_prompts_comes_first_and_is_ranked_later(view: Problem, tmp_path: Path) -> None:
    lines = [f"{a} {b}" for a in ("good", "bad", "fine") for b in ("film", "story", "music", "plot")]
    (tmp_path / "pool.txt").write_text("\n".join([*lines, lines[0]]) + "\n")
    searcher = make(view, prompts=str(tmp_path / "pool.txt"), warmup=8)
    (tmp_path / "pool.txt").unlink()
    first = [c.text for c in searcher.ask(8)]  # type: ignore[union-attr]
    assert first == [view.task.manual_prompt, *lines[:7]]
    searcher = make(view, prompts=lines, warmup=8, edits=0.0)
    play(searcher, 3, landscape())
    scored = {p.text for p in searcher.prompts}
    assert set(lines) - scored <= {p.text for p in searcher._proposals(8)[1]}
    alone = make(view, prompts=lines, inner="none", edits=0.0, warmup=4, population=4)
    play(alone, 3, landscape())
    assert {p.text for p in alone.prompts} == set(lines)
    assert alone.ask(4) == []
    edits = make(view, inner="none", warmup=2, population=4)
    first = edits.ask(4)
    assert [c.text for c in first] == [view.task.manual_prompt]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner": "cma-es"}, "setting inner='cma-es': must be another searcher of text prompts"),
        ({"inner": "reward-model"}, "must be another searcher"),
        ({"inner": "nevergard"}, "did you mean 'nevergrad'"),
        ({"inner_settings": {"lenght": 3}}, "unknown setting 'lenght'.*searcher random"),
        ({"edits": 1.5}, "setting edits=1.5: must be from 0 to 1"),
        ({"explore": -0.1}, "setting explore=-0.1: must be from 0 to 1"),
        ({"choice": "greedy"}, "setting choice='greedy': must be one of thompson, ucb, best"),
        ({"proposals": 0}, "setting proposals=0: must be 1 or more"),
        ({"warmup": 1}, "setting warmup=1: must be 2 or more"),
        ({"reward_model": "gauss"}, "unknown reward model 'gauss'"),
        ({"reward_model": "json:JSONEncoder"}, "is no subclass of rayprompt's RewardModel"),
        ({"reward_model": "nowhere:Model"}, "cannot be imported .ModuleNotFoundError"),
        ({"model_settings": {"strength": 0}}, "setting strength=0.0: must be 1 to 10000|has none here"),
        ({"reward_model": "logistic", "model_settings": {"c": 0}}, "setting c=0.0: must be"),
        ({"reward_model": "rayprompt.reward.model:RewardModel"}, "cannot be made .Can't instantiate abstract class"),
        ({"inner_settings": {"seed": 3}}, "unknown setting 'seed'"),
        ({"inner_settings": {1: 3}}, "inner_settings=.1: 3.: must be a mapping of names to values"),
        ({"inner": "nevergrad", "inner_settings": {"population": 1}}, "proposes one prompt at a time"),
        ({"prompts": "none.txt"}, "none.txt"),
        ({"start": "nothing"}, "setting start='nothing': neither a saved reward model nor a study or store"),
    ],
)
def test_bad_settings_get_one_clear_line(settings: dict[str, Any], message: str, view: Problem) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make(view, **settings)
    assert "\n" not in str(caught.value)


# Whole searches.


@pytest.fixture(scope="module")
def small() -> Problem:
    return Problem(task_of(8), "tiny-masked")


@pytest.fixture(scope="module")
def found(
    kept_pool: None, trials_here: None, small: Problem, tmp_path_factory: pytest.TempPathFactory
) -> rayprompt.Result:
    out = tmp_path_factory.mktemp("reward") / "study"
    return rayprompt.search(small, searcher="reward-model", budget=8 * 60, settings=SMALL, out=out, scorers=1)


def test_every_finalist_was_scored_by_the_lm(found: rayprompt.Result, small: Problem, pool: ScoringPool) -> None:
    assert found.evaluations == 8 * 60
    assert found.searcher_metrics["learned_from"] > 16
    assert all(f["n"] == 8 for f in found.finalists)
    scores = rayprompt.score([found.best_prompt], small, on="train", pool=pool)
    assert float(scores.mean_value()[0]) == found.train.value
    assert {"rank_correlation", "regret", "evaluations_spared"} <= set(found.searcher_metrics)


def test_a_resumed_search_is_the_undisturbed_one(found: rayprompt.Result, small: Problem, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"searcher": "reward-model", "settings": SMALL, "scorers": 1}
    rayprompt.search(small, budget=8 * 30, out=tmp_path / "first", **arguments)
    again = rayprompt.resume(tmp_path / "first", budget=8 * 60, task=small.task, scorers=1)
    assert again.replay_differs == 0
    assert again.best_prompt == found.best_prompt
    assert again.test == found.test
    assert again.searcher_metrics["learned_from"] == found.searcher_metrics["learned_from"]


def test_it_learns_from_an_earlier_study_before_it_scores_anything(
    found: rayprompt.Result, small: Problem, tmp_path: Path
) -> None:
    searcher = make(small, seed=4, start=str(found.study_dir))
    assert searcher.own == 60
    batch = searcher.ask(8)
    assert searcher.surrogate.fitted == 60
    known = {p.key for p in searcher.prompts}
    assert not known & {c.key for c in batch}  # of what is known nothing is asked for again
    assert set(searcher.predicted) == {c.key for c in batch}
    pool = make(small, prompts=str(found.study_dir))
    assert {p.text for p in searcher.prompts} <= set(pool.settings.prompts)
    with pytest.raises(InputError, match="scored on all train examples of reviews with tiny-causal"):
        RewardModelSearcher(Problem("reviews", "tiny-causal"), start=str(found.study_dir))


def test_it_begins_with_a_saved_reward_model(small: Problem, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = [o.text for o in small.words[:200]]
    texts = [" ".join(rng.choice(words, 3)) for _ in range(150)]
    good = np.array([("e" in text.split()[0]) for text in texts])
    right = (rng.random((150, 8)) < np.where(good, 0.9, 0.1)[:, None]).astype(float)
    queries = [next(iter(e.fields.values())) for e in small.task.examples("train")]
    GaussianProcess().fit(demonstrations(queries, texts, right)).save(tmp_path / "model")
    searcher = make(small, start=str(tmp_path / "model"), edits=0.0, explore=0.0)
    batch = searcher.ask(8)
    assert searcher.surrogate.fitted == 0
    assert len(searcher.predicted) == 8
    searcher.tell(batch, Scores.of_values(batch, np.arange(8.0)))
    searcher.ask(8)
    assert searcher.surrogate.fitted == 8


# What a review found.


def test_a_row_is_kept_as_it_was_when_later_parts_make_another_one(small: Problem) -> None:
    """A word of several tokens that comes later would be another part of an earlier prompt."""
    problem = Problem("reviews", "tiny-causal").for_search()
    rng = np.random.default_rng(1)
    lines = ["tress beefort cashier", "unfathomable beefort", "gleaming sur tress", "blithely beef fort"]
    searcher = RewardModelSearcher(problem, **{**SMALL, "elite": 60}, prompts=lines)
    raw = [problem.decoded(rng.integers(5, 900, size=5).tolist()) for _ in range(60)]
    searcher.tell(raw, Scores.of_values(raw, rng.normal(size=60)))
    play(searcher, 3, landscape())
    other = RewardModelSearcher(problem, **{**SMALL, "elite": 60}, prompts=lines)
    other.load_state_dict(searcher.state_dict())
    assert (other.rows, other.asked) == (searcher.rows, searcher.asked)
    for _ in range(3):
        batch = searcher.ask(8)
        assert [c.key for c in other.ask(8)] == [c.key for c in batch]
        for one in (other, searcher):
            one.tell(batch, Scores.of_values(batch, np.array([landscape()(c) for c in batch])))


def test_without_an_inner_searcher_edits_go_on(view: Problem) -> None:
    searcher = make(view, inner="none", warmup=4, population=4, proposals=60)
    sizes = []
    for _ in range(8):
        batch = searcher.ask(4)
        sizes.append(len(batch))
        searcher.tell(batch, Scores.of_values(batch, np.array([landscape()(c) for c in batch])))
    assert sizes[0] == 1  # the manual prompt
    assert sizes[1:] == [4] * 7
    lines = [f"word{i} {w.text}" for i, w in enumerate(view.words[:20])]
    known = view.prompts(lines[:4])
    searcher = make(view, inner="none", prompts=lines, edits=0.0, population=4)
    searcher.tell(known, Scores.of_values(known, np.arange(4.0)))
    assert len(searcher.ask(4)) == 4  # it reads on where the pool's first are known


def test_long_prompts_are_edited_and_not_cut(view: Problem) -> None:
    words = [o.text for o in view.words[:60]]
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(words, 12)) for _ in range(20)]
    searcher = make(view, inner="none", prompts=lines, warmup=16)
    play(searcher, 6, landscape())
    sizes = [len(p.text.split()) for p in searcher.prompts if p.text not in lines][1:]
    assert len(sizes) > 8
    assert max(sizes) == 12
    assert np.median(sizes) > 8


def test_the_length_holds_for_the_inner_searcher_too(view: Problem) -> None:
    searcher = make(view, length=2)
    play(searcher, 4, landscape())
    assert max(len(p.text.split()) for p in searcher.prompts) == 2
    assert searcher.settings.inner_settings["length"] == 2
    assert make(view, length=2, inner_settings={"length": 3}).settings.inner_settings["length"] == 3


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_values_of_any_size_and_distance(scale: float, view: Problem) -> None:
    value = landscape()
    plain, other = make(view), make(view)
    play(plain, 6, value)
    play(other, 6, lambda c: 5000.0 + scale * value(c) if scale < 1 else scale * value(c))
    assert np.isfinite(other.metrics()["rank_correlation"])
    assert other.metrics()["rank_correlation"] > 0.1 or scale < 1
    json.dumps(other.metrics(), allow_nan=False)
    json.dumps(make(view).metrics(), allow_nan=False)


def test_an_inner_searcher_is_asked_and_ended_as_it_wants(view: Problem) -> None:
    searcher = make(view, inner="rl", inner_settings={"prompts": 8, "replay": 4, "steps": 1})
    assert searcher.barrier is True
    assert make(view).barrier is False
    batch = searcher.ask(8)
    searcher.tell(batch, Scores.of_values(batch, np.arange(len(batch), dtype=float)))
    assert searcher.stop() == {"steps": 1}


def test_phrases_that_hold_one_another_are_not_scored_twice(view: Problem) -> None:
    phrases = ["good film", "good", "film is bad", "the", "The film", "film", "is bad"]
    searcher = make(view, phrases=phrases, length=3)
    play(searcher, 9, landscape())
    keys = [p.key for p in searcher.prompts]
    assert len(set(keys)) == len(keys)


def test_narrow_embeddings_and_no_words(view: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayprompt.searcher.problem.word_vectors", lambda name, dims: np.ones((view.lm.vocab_size, 16)))
    narrow = Problem("reviews", "tiny-masked")
    assert narrow.token_vectors().shape == (view.lm.vocab_size, 32)
    play(make(narrow.for_search()), 4, landscape())
    bare = Problem("reviews", "tiny-masked").for_search()
    bare.words = ()
    lines = [f"{a} {b}" for a in "abc" for b in "defg"]
    play(RewardModelSearcher(bare, inner="none", prompts=lines, edits=0.0, population=4, warmup=4), 3, landscape())
    with pytest.raises(InputError, match="no whole words to draw from"):
        RewardModelSearcher(bare, inner="none", prompts=lines)


def test_a_comparison_takes_the_inner_searchers_settings() -> None:
    (entry,) = entries_of(["reward-model"], {"reward-model": {"inner_settings": {"length": 3}}})
    assert entry.settings["inner_settings"] == {"length": 3}
