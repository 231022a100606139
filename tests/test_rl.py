"""The RL policy: its network, soft Q-learning, rewards, sampling, and what a search does with them."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from rayprompt.lm.backbone import one_thread
from rayprompt.lm.source import model_folder
from rayprompt.searcher.problem import Problem
from searchers import soft_q
from searchers.policy import Policy, Sampling, repeated
from searchers.policy_pass import Pass
from searchers.rl import RLPromptSearcher
from searchers.soft_q import Path as SoftPath
from searchers.soft_q import SoftQLearning

pytestmark = pytest.mark.usefixtures("unlogged")

WORDS = ["it", "was", "all", "the", "in", "of", "that", "this", "film", "very", "good", "bad"]


def make(view: Problem, **settings: Any) -> RLPromptSearcher:
    return RLPromptSearcher(view, **{"seed": 0, **settings})


def blank(searcher: RLPromptSearcher) -> SoftQLearning:
    """The networks of a searcher."""
    with searcher._at_work() as learning:
        return learning


# Soft Q-learning.

F = [[0.5, -0.2, 0.1], [0.0, 0.3, -0.4], [1.0, 0.2, -0.6]]
G = [[0.4, -0.1, 0.0], [0.1, 0.2, -0.3], [0.8, 0.3, -0.5]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("v0", 0.007796), ("v1", 9.027157), ("v2", 9.366295), ("v3", 46.736836), ("v2+v3", 28.051565)],
)
def test_losses_are_those_of_the_paper(name: str, expected: float) -> None:
    actions = torch.tensor([[0, 2, 1]])
    f, g = (path(torch.tensor([x], dtype=torch.float64), actions) for x in (F, G))
    found = soft_q.loss(name, f, g, torch.tensor([2.5], dtype=torch.float64))
    assert float(found) == pytest.approx(expected, abs=1e-6)


def plain_loss(name: str, f: Any, g: Any, a: Any, r: Any) -> float:
    """One term of one prompt after the formulas, with loops."""
    length = len(a)
    q = [f[t][a[t]] for t in range(length)]
    v = [np.log(np.exp(f[t]).sum()) for t in range(length)]
    bar = [np.log(np.exp(g[t]).sum()) for t in range(length)]
    ahead = [*bar[1:], r]
    advantage = [q[t] - v[t] for t in range(length)]
    if name == "v0":
        return sum((v[t] - bar[t]) ** 2 for t in range(length))
    if name == "v1":
        return sum((q[t] - ahead[t]) ** 2 for t in range(length))
    if name == "v2":
        return sum((advantage[t] - (ahead[t] - bar[t])) ** 2 for t in range(length))
    return sum((sum(advantage[t:]) - (r - bar[t])) ** 2 for t in range(length))


@pytest.mark.parametrize("c", [None, 0.7])
@pytest.mark.parametrize("name", ["v0", "v1", "v2", "v3", "v2+v3", "v1+v2+v3"])
def test_losses_of_batches_reversed_terms_and_combinations(name: str, c: float | None) -> None:
    rng = np.random.default_rng(3)
    f, g = rng.normal(size=(2, 5, 4, 7))
    a, r = rng.integers(7, size=(5, 4)), rng.normal(size=5)
    terms = []
    for i, term in itertools.product(range(5), name.split("+")):
        forward, back = plain_loss(term, f[i], g[i], a[i], r[i]), plain_loss(term, g[i], f[i], a[i], r[i])
        terms.append(forward if c is None else c * forward + (1 - c) * back)
    paths = [path(torch.from_numpy(x), torch.from_numpy(a)) for x in (f, g)]
    assert float(soft_q.loss(name, *paths, torch.from_numpy(r), c)) == pytest.approx(
        sum(terms) / 5 / len(name.split("+"))
    )


def path(logits: torch.Tensor, actions: torch.Tensor) -> SoftPath:
    """Q and V from untruncated logits (B, T, A) and the tokens (B, T) that were taken, as columns of them."""
    return SoftPath(logits.gather(-1, actions[..., None])[..., 0], logits.logsumexp(-1))


def plain_logits(policy: Policy, theta: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """(..., A) all the logits at once."""
    w1, b1, w2, b2 = (
        part.view(shape) for part, shape in zip(torch.split(theta, policy.sizes), policy.shapes, strict=True)
    )
    logits = (torch.relu(hidden @ w1.T + b1) @ w2.T + b2) @ policy.head.T + policy.shift
    if policy.fluent is None:
        return logits
    own = hidden @ policy.head.T + policy.own_shift
    return logits.masked_fill(own < own.sort(-1, descending=True).values[..., [policy.fluent - 1]], float("-inf"))


def by_torch(learning: SoftQLearning, rows: Any, reward: Any, theta: torch.Tensor, bar: torch.Tensor) -> torch.Tensor:
    """The gradient of the loss over the whole batch at once."""
    hidden, actions = learning.policy.hidden(rows), torch.from_numpy(rows)
    theta = theta.clone().requires_grad_(True)
    f = path(plain_logits(learning.policy, theta, hidden), actions)
    g = path(plain_logits(learning.policy, bar, hidden), actions)
    value = soft_q.loss(
        str(learning.settings.loss), f, g, torch.from_numpy(reward).float(), learning.settings.coefficient
    )
    value.backward()  # type: ignore[no-untyped-call]
    assert theta.grad is not None
    return theta.grad


@pytest.mark.parametrize("target", ["polyak", "copy"])
def test_updates_are_adams_and_the_target_follows(view: Problem, target: str) -> None:
    """Three updates against torch's Adam and clipping; the target network against a computation by hand."""
    more = {
        "target": target,
        "target_rate": 0.25,
        "target_every": 2,
        "clip": 0.5,
        "loss": "v2+v3",
        "learning_rate": 1e-3,
    }
    searcher = make(view, tokens=WORDS, length=3, coefficient=0.8, **more)
    learning = blank(searcher)
    rng = np.random.default_rng(0)
    thetas, bars = [learning.theta.clone()], [learning.bar.clone()]
    parameter = torch.nn.Parameter(learning.theta.clone())
    adam = torch.optim.Adam([parameter], lr=1e-3)
    for i in range(3):
        rows, reward = rng.integers(len(WORDS), size=(21, 3)), rng.normal(size=21) * 5
        if target == "polyak":
            bars.append(0.75 * bars[-1] + 0.25 * thetas[-1])
        else:
            bars.append(thetas[-1] if i % 2 == 0 else bars[-1])
        parameter.grad = by_torch(learning, rows, reward, thetas[-1], bars[-1])
        norm = torch.nn.utils.clip_grad_norm_([parameter], 0.5)
        adam.step()
        found = learning.update(rows, reward, 16)
        assert found["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
        torch.testing.assert_close(learning.bar, bars[-1], rtol=0, atol=1e-6)
        torch.testing.assert_close(learning.theta, parameter.detach(), rtol=1e-4, atol=1e-5)  # Adam: g / |g|
        thetas.append(learning.theta.clone())
        with torch.no_grad():
            parameter.copy_(learning.theta)
    assert not learning.theta.requires_grad
    assert not learning.bar.requires_grad


def test_a_policy_that_is_its_own_target_needs_no_second_pass(view: Problem) -> None:
    searcher = make(view, tokens=WORDS, length=3, loss="v2+v3", target="copy", target_every=1)
    learning = blank(searcher)
    rows, reward = np.random.default_rng(0).integers(len(WORDS), size=(9, 3)), np.linspace(-3, 3, 9)
    expected = by_torch(learning, rows, reward, learning.theta, learning.theta.clone())
    found = learning.update(rows, reward, 9)
    assert found["gradient_norm"] == pytest.approx(float(expected.norm()), rel=1e-4)


# The policy.


def test_trained_parameters_at_width_768() -> None:
    trunk: Any = SimpleNamespace(width=768, weight=torch.zeros(10, 768), bias=None, device=torch.device("cpu"))
    policy = Policy(trunk, np.array([0]), np.arange(10))
    assert policy.parameters == 3_148_544
    theta = policy.start(np.random.default_rng(0))
    assert theta.shape == (3_148_544,)
    w1, b1, w2, b2 = torch.split(theta, policy.sizes)
    for weights, ends in ((w1, 768 + 2048), (w2, 2048 + 768)):
        most = 1e-4 * (6 / ends) ** 0.5
        assert float(weights.abs().max()) <= most
        assert float(weights.std()) == pytest.approx(most / 3**0.5, rel=0.01)
    assert set(b1.tolist()) | set(b2.tolist()) == {float(np.float32(-1e-4))}


def trained(searcher: RLPromptSearcher) -> tuple[SoftQLearning, torch.Tensor]:
    """Parameters that are far from uniform."""
    learning = blank(searcher)
    rng = np.random.default_rng(1)
    return learning, torch.from_numpy(rng.normal(size=len(learning.theta)).astype(np.float32)) * 0.05


def test_decoding_in_a_batch_equals_one_by_one_and_no_cache(view: Problem) -> None:
    """Against the LM's own forward pass over the whole prompt, prompt by prompt, token by token."""
    searcher = make(view, tokens="all", length=6)
    learning, theta = trained(searcher)
    policy, u = learning.policy, np.random.default_rng(2).random((16, 6))
    one = Policy(policy.trunk, policy.source, policy.actions, batch=1)
    greedy = np.arange(16) % 4 == 0
    blanks = np.full((16, 6), -1)
    together = policy.write(theta, blanks, Sampling(50), u, greedy)
    alone = [one.write(theta, blanks[:1], Sampling(50), u[[i]], greedy[[i]])[0] for i in range(16)]
    assert together.tolist() == np.array(alone).tolist()
    assert len({tuple(row) for row in together.tolist()}) > 4
    lm = transformers.AutoModelForCausalLM.from_pretrained(model_folder("tiny-causal"))
    w1, b1, w2, b2 = (
        part.view(shape) for part, shape in zip(torch.split(theta, policy.sizes), policy.shapes, strict=True)
    )
    for row, draws, likeliest in zip(together.tolist(), u, greedy, strict=True):
        for t in range(6):
            ids = [*searcher.source.tolist(), *policy.actions[row[:t]].tolist()]
            with torch.no_grad():
                h = lm(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
                logits = (lm.lm_head(w2 @ torch.relu(w1 @ h + b1) + b2))[policy.actions]
            order = logits.argsort(descending=True)[:50]
            mass = logits[order].double().softmax(0).cumsum(0)
            drawn = int(order[int((mass <= draws[t] * mass[-1]).sum())])
            assert row[t] == (int(order[0]) if likeliest else drawn)
    hidden = policy.hidden(together)
    with torch.no_grad():
        full = lm(
            torch.tensor([[*searcher.source.tolist(), *policy.actions[row].tolist()] for row in together.tolist()]),
            output_hidden_states=True,
        ).hidden_states[-1]
    torch.testing.assert_close(hidden, full[:, len(searcher.source) - 1 : -1], rtol=0, atol=1e-4)


def test_states_of_a_prompt_have_the_same_bits_written_or_read(view: Problem) -> None:
    """In any place of a batch: a resumed search reads what another has written."""
    learning, theta = trained(make(view, tokens="all", length=5))
    policy, rng = learning.policy, np.random.default_rng(4)
    with one_thread("cpu"):
        rows = policy.write(theta, np.full((16, 5), -1), Sampling(50), rng.random((16, 5)), np.zeros(16, dtype=bool))
        hidden = policy.hidden(rows)
        others = np.concatenate([rng.integers(len(policy.actions), size=(7, 5)), rows[::-1][:12]])
        read = Policy(policy.trunk, policy.source, policy.actions).hidden(others)[7:]
    assert torch.equal(read, hidden.flip(0)[:12])


@pytest.mark.parametrize("fluent", [None, 7])
def test_a_head_in_pieces_is_the_whole_head(view: Problem, fluent: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits, Q, V, entropy and gradients against torch's own, the whole vocabulary at once."""
    monkeypatch.setattr("searchers.policy.PIECE", 100)
    learning, theta = trained(make(view, tokens="all", length=4, fluent=fluent, seed=1))
    policy, rng = learning.policy, np.random.default_rng(3)
    assert len(policy.pieces) > 10
    rows = rng.integers(len(policy.actions), size=(40, 4))
    rows[3:9] = rows[0]  # beginnings that are shared
    rows[5:9, 2] = 7
    hidden = policy.hidden(rows)
    whole = plain_logits(policy, theta, hidden)
    torch.testing.assert_close(policy.logits(theta, hidden[:, 1]), whole[:, 1], rtol=1e-4, atol=1e-4)
    if fluent is not None:  # tokens that may be taken
        rows[:, -1] = whole[:, -1].argsort(-1, descending=True)[:, 3].numpy()
        hidden[:, -1] = policy.hidden(rows)[:, -1]
    prompts, leaf = Pass(policy, rows), theta.clone().requires_grad_(True)
    assert len(prompts.hidden) == len({tuple(row[:t]) for row in rows.tolist() for t in range(4)}) < 40 * 4
    assert len(prompts.pieces) > 1
    read = prompts.read(theta, gradient=True)
    logits = plain_logits(policy, leaf, hidden)
    plain = path(logits, torch.from_numpy(rows))
    p = torch.distributions.Categorical(logits=logits.detach().clamp(min=-1e30))
    for found, expected in ((read.q, plain.q), (read.v, plain.v), (read.entropy, p.entropy())):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    by_q, by_v = (torch.from_numpy(rng.normal(size=rows.shape)).float() for _ in range(2))
    by_q[plain.q.isneginf()] = 0.0
    value = (by_q * plain.q.masked_fill(plain.q.isneginf(), 0.0)).sum() + (by_v * plain.v).sum()
    (expected,) = torch.autograd.grad(value, leaf)
    torch.testing.assert_close(read.back(by_q, by_v), expected, rtol=1e-3, atol=1e-3)


def test_given_prompts_that_the_fluency_constraint_forbids_teach_nothing(view: Problem) -> None:
    learning, _ = trained(make(view, tokens="all", length=3, fluent=5, loss="v2+v3", target="copy", target_every=1))
    rng = np.random.default_rng(0)
    fluent = learning.policy.write(
        learning.theta, np.full((4, 3), -1), Sampling(5), rng.random((4, 3)), np.zeros(4, dtype=bool)
    )
    others = rng.integers(len(learning.policy.actions), size=(4, 3))
    before = learning.theta
    assert learning.update(others, np.ones(4), 4)["loss"] == 0.0
    assert torch.equal(learning.theta, before)
    alone = blank(make(view, tokens="all", length=3, fluent=5, loss="v2+v3", target="copy", target_every=1))
    alone.theta, alone.updates = before, 1
    found = learning.update(np.concatenate([fluent, others]), np.arange(8.0), 8)
    assert found["loss"] == pytest.approx(alone.update(fluent, np.arange(4.0), 4)["loss"])
    assert learning.theta.isfinite().all()


@pytest.mark.parametrize(("top_k", "top_p"), [(None, 1.0), (4, 1.0), (None, 0.6), (5, 0.7)])
def test_sampling_draws_from_the_truncated_distribution(top_k: int | None, top_p: float) -> None:
    logits = np.random.default_rng(0).normal(size=12) * 1.5
    order = np.argsort(-logits)[:top_k]
    p = np.exp(logits[order] / 0.8) / np.exp(logits[order] / 0.8).sum()
    kept = [i for i in range(len(p)) if p[:i].sum() < top_p]
    expected = np.zeros(12)
    expected[order[kept]] = p[kept] / p[kept].sum()
    u = (np.arange(20_000) + 0.5) / 20_000
    drawn = Sampling(top_k, top_p, 0.8).draw(torch.from_numpy(logits).float().repeat(20_000, 1), u)
    assert np.bincount(drawn.numpy(), minlength=12) / 20_000 == pytest.approx(expected, abs=2e-4)


def test_first_steps_are_uniform() -> None:
    logits = torch.tensor([[5.0, -3.0, float("-inf"), 0.0]]).repeat(3000, 1)
    drawn = Sampling(None, 1.0, float("inf")).draw(logits, (np.arange(3000) + 0.5) / 3000)
    assert np.bincount(drawn.numpy(), minlength=4).tolist() == [1000, 1000, 0, 1000]


def test_the_fluency_constraint_allows_the_lms_own_likeliest_tokens(view: Problem) -> None:
    searcher = make(view, tokens="all", length=3, fluent=20, source="the film was", seed=1)
    learning, theta = trained(searcher)
    rows = searcher._write(learning, np.full((16, 3), -1), Sampling(256))
    lm = transformers.AutoModelForCausalLM.from_pretrained(model_folder("tiny-causal"))
    actions = searcher.vocabulary.tokens
    for row in rows:
        for t in range(3):
            ids = torch.tensor([[*searcher.source.tolist(), *actions[list(row[:t])].tolist()]])
            with torch.no_grad():
                own = lm(ids).logits[0, -1][actions]
            assert float(own[row[t]]) >= float(own.topk(20).values[-1]) - 1e-4
    logits = learning.policy.logits(theta, learning.policy.hidden(np.array(rows)).flatten(0, 1))
    assert int(logits.isfinite().sum(-1).max()) == 20


def test_logit_bias_and_repeated_tokens(view: Problem) -> None:
    hidden = blank(make(view, tokens=WORDS)).policy.hidden(np.zeros((1, 1), dtype=np.int64))[0]
    plain, biased = (blank(make(view, tokens=WORDS, logit_bias=bias)) for bias in (0.0, -10.0))
    found = [learning.policy.logits(plain.theta, hidden) for learning in (plain, biased)]
    torch.testing.assert_close(found[0] - 10, found[1])
    assert repeated(np.array([[1, 2, 1, 1], [1, 2, 3, 4]])).tolist() == [0.5, 0.0]
