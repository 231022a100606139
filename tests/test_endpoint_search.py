"""Searches on LMs behind a service: faults, refusals and deaths lose nothing, double nothing, change nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from aiohttp import web
from conftest import task_of
from lm_server import FAULTS, PROMPTS, QUICK, Server, small
from test_generation import verdicts

import rayprompt
from rayprompt.errors import InputError, ScoringError
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.store.store import ScoreStore
from rayprompt.unanswered import Reason

SAME = ("best_prompt", "train", "dev", "test", "baselines", "p_value", "finalists", "evaluations", "report_evaluations")


@pytest.mark.usefixtures("ray_session", "trials_here")
def test_faults_lose_nothing_double_nothing_and_change_nothing(server: Server, studies: Path) -> None:
    given: dict[str, Any] = {"model": server.model, "budget": 192}
    calm = rayprompt.search(small(), out=studies / "calm", **given)
    assert calm.lm_evaluations == calm.evaluations == 192
    server.faults = 0.1
    rough = rayprompt.search(small(), out=studies / "rough", lm=QUICK, **given)
    assert all(server.counts[fault] > 0 for fault in FAULTS)
    for name in (*SAME, "tokens"):
        assert getattr(rough, name) == getattr(calm, name), name
    assert rough.lm_evaluations > 192  # what was sent again is told
    for study in ("calm", "rough"):
        rows = ScoreStore(studies / study).pairs()
        assert rows.num_rows == 192
        keys = set(zip(rows["candidate"].to_pylist(), rows["example"].to_pylist(), strict=True))
        assert len(keys) == 192
        assert not np.isnan(rows["value"].to_numpy()).any()


@pytest.mark.usefixtures("ray_session", "trials_here")
def test_what_is_told_stands_in_a_file_and_a_resumed_search_asks_for_the_rest(server: Server, studies: Path) -> None:
    """The service goes away in the middle of a search."""
    given: dict[str, Any] = {"model": server.model, "lm": {**QUICK, "tries": 2}}
    whole = rayprompt.search(small(), budget=384, out=studies / "whole", **given)
    asked = len(server.seen)
    server.seen.clear()

    class Stops(list[Any]):
        def append(self, row: Any) -> None:
            super().append(row)
            if len(self) == asked // 2:
                server.key = "another"

    server.seen = Stops()
    with pytest.raises(ScoringError, match="the key is refused .401 .*; to go on: rayprompt search --resume"):
        rayprompt.search(small(), budget=384, out=studies / "cut", **given)
    first = len(server.seen)
    kept = ScoreStore(studies / "cut").pairs().num_rows
    assert 0 < kept <= first
    server.key, server.seen = None, []
    again = rayprompt.resume(studies / "cut", task=small())
    for name in SAME:
        assert getattr(again, name) == getattr(whole, name), name
    searched = [body for _, body in server.seen]
    assert len(searched) <= asked - kept + 2  # what was kept is not asked for again; two questions of what it can


@pytest.mark.usefixtures("ray_session", "trials_here")
def test_pairs_that_are_refused_are_errors_and_not_wrong_answers(server: Server) -> None:
    problem = Problem(small(), server.model)
    text = problem.task.examples("dev")[3].fields["text"]
    server.refuse = text
    scores = rayprompt.score(["it was"], problem, on="dev")
    assert [error.example for error in scores.errors] == [3]
    assert 3 not in scores.example
    server.refuse = "it was"  # one prompt on all texts, while a harmless question is answered
    scores = rayprompt.score(["it was", "so"], problem, on="dev")
    assert [error.candidate for error in scores.errors].count(0) == 24
    assert 0 < scores.candidate.sum() <= 24  # of the other prompt there are answers
    assert scores.complete().all()


@pytest.mark.usefixtures("ray_session", "trials_here")
def test_a_service_that_stops_answering_ends_the_run_and_a_resumed_search_asks_again(
    server: Server, studies: Path
) -> None:
    """Out of money in the middle: refusals are no answers, neither told nor known for good."""
    given: dict[str, Any] = {"model": server.model, "budget": 384, "lm": {"in_flight": 8}}
    whole = rayprompt.search(small(), out=studies / "whole", **given)
    server.after, server.reply = server.counts["200"] + 50, refusing(402)
    with pytest.raises(ScoringError, match="the account has no credit left .402 no credit"):
        rayprompt.search(small(), out=studies / "cut", **given)
    assert server.counts["odd"] <= 16
    server.reply = None
    again = rayprompt.resume(studies / "cut", task=small())
    for name in SAME:
        assert getattr(again, name) == getattr(whole, name), name
    assert not np.isnan(ScoreStore(studies / "cut").pairs()["value"].to_numpy()).any()


@pytest.mark.usefixtures("ray_session", "trials_here")
def test_refusals_of_everything_are_no_answers(server: Server, tmp_path: Path) -> None:
    problem = Problem(small(), server.model, lm={"in_flight": 8})
    server.after, server.reply = server.counts["200"] + 50, refusing(400)
    with pytest.raises(ScoringError, match="refuses every request: 400 no credit"):
        rayprompt.score(PROMPTS, problem, on="test", store=tmp_path)
    assert server.counts["odd"] <= 64
    rows = ScoreStore(tmp_path).pairs(part="test")
    assert 0 < rows.num_rows <= 50
    assert not np.isnan(rows["value"].to_numpy()).any()
    server.reply = None
    scores = rayprompt.score(PROMPTS, problem, on="test", store=tmp_path)
    assert not scores.errors
    assert scores.complete().all()


@pytest.mark.usefixtures("ray_session", "trials_here")
def test_one_example_that_is_always_refused_is_skipped_and_named(server: Server, studies: Path) -> None:
    """A content filter on one train example: candidates are compared on the others, a resumed search skips it too."""
    task = small()
    server.refuse = task.examples("train")[4].fields["text"]
    size = len(task.examples("train"))
    told: list[str] = []
    found = rayprompt.search(
        task, model=server.model, budget=20 * size, out=studies / "one", listener=lambda p: told.append(p.message)
    )
    train = found.unanswered["train"]
    assert train["examples"] == [4]
    assert train["unanswered"] == train["reasons"]["refused"] + train["reasons"]["skipped"]
    assert train["reasons"]["skipped"] > 0
    assert found.evaluations <= 20 * size
    refused = server.counts["400"]
    assert refused == train["reasons"]["refused"]
    rows = ScoreStore(studies / "one").pairs()
    assert rows["reason"].to_pylist().count(int(Reason.REFUSED)) == refused
    assert found.train.n == size
    assert found.train.value > 0.3
    assert any("no prompt gets an answer on train example 5" in message for message in told)
    more = rayprompt.resume(studies / "one", task=task, budget=30 * size)
    assert server.counts["400"] == refused
    assert more.unanswered["train"]["reasons"]["refused"] == refused
    again = rayprompt.search(task, model=server.model, budget=30 * size, out=studies / "whole")
    for name in (*SAME, "unanswered"):
        assert getattr(again, name) == getattr(more, name), name


def refusing(status: int) -> Any:
    return lambda body: web.json_response({"error": {"message": "no credit"}}, status=status)


@pytest.mark.usefixtures("ray_session", "trials_here")
def test_what_was_on_its_way_when_the_key_was_revoked_is_kept(server: Server, studies: Path) -> None:
    server.key, server.latency = None, 0.05
    server.reply, server.after = lambda body: web.json_response({"error": {"message": "revoked"}}, status=401), 40
    with pytest.raises(ScoringError, match="the key is refused .401 revoked"):
        rayprompt.score(PROMPTS, Problem(small(), server.model), on="test", store=studies / "store")
    stored = ScoreStore(studies / "store").pairs(part="test").num_rows
    asked = sum(path.endswith("/completions") for path, _ in server.seen) - 1  # one was what it can
    assert asked - 16 <= stored <= asked
    assert server.counts["odd"] <= 64 + 16  # those on their way, and no more


@pytest.mark.usefixtures("ray_session", "trials_here")
def test_half_a_character_and_stop_texts_beyond_the_fourth(server: Server, tmp_path: Path) -> None:
    text = "gre\ud83d. great five six"
    server.reply = lambda body: web.json_response({"choices": [{"text": text}], "usage": {}})
    problem = Problem(verdicts(stop=["a1", "a2", "a3", "a4", "five"]), server.model)
    scores = rayprompt.score(["it was"], problem, on="dev", store=tmp_path)
    assert set(scores.completion or ()) == {"gre\ufffd. great "}
    assert ScoreStore(tmp_path).pairs(part="dev")["completion"].to_pylist()[0] == "gre\ufffd. great "


def test_a_server_that_ignores_echo_is_not_believed(server: Server) -> None:
    empty = {"tokens": [], "token_logprobs": [], "text_offset": []}
    server.reply = lambda body: web.json_response(
        {"choices": [{"index": i, "text": " x", "logprobs": empty} for i in range(2)], "usage": {}}
    )
    endpoint = Problem(small(), server.model).lm.endpoint
    assert endpoint is not None
    assert endpoint.labels == "text"


@pytest.mark.usefixtures("ray_session", "trials_here")
def test_many_are_on_their_way_within_the_limits(server: Server) -> None:
    server.latency = 0.05
    rayprompt.score(PROMPTS, Problem(small(), server.model, lm={"in_flight": 32}), on="dev")
    assert 16 <= server.most_at_once <= 32
    server.most_at_once = 0
    problem = Problem(task_of(8), server.model, lm={"rate": 40, "in_flight": 8})
    started = time.monotonic()
    rayprompt.score(PROMPTS, problem)
    assert time.monotonic() - started >= 23 / 40
    assert server.most_at_once <= 8


@pytest.mark.usefixtures("ray_session", "trials_here")
def test_an_actor_that_dies_is_asked_again(server: Server) -> None:
    problem = Problem(small(), server.model)
    remote = ScoringPool.start(problem.lm)
    server.latency = 0.2
    try:
        wanted = rayprompt.score(["it was"], problem, on="dev", pool=remote)
        part, ids = problem.part("train"), [problem.token_ids(c) for c in problem.prompts(PROMPTS)]
        pairs = np.repeat(np.arange(3), len(part)), np.tile(np.arange(len(part)), 3)
        found = remote.answers(part, ids, *pairs)
        rows, _, _ = next(found)
        ray.kill(remote.router, no_restart=False)
        seen = [*rows, *(row for some, _, _ in found for row in some)]
        assert sorted(seen) == list(range(len(pairs[0])))
        again = rayprompt.score(["it was"], problem, on="dev", pool=remote)
        assert (again.value == wanted.value).all()
    finally:
        remote.shutdown()


@pytest.mark.slow  # quick: rl's prompts are texts on any LM, tests/test_rl_search.py
@pytest.mark.usefixtures("ray_session", "trials_here")
def test_every_text_searcher_works(server: Server, studies: Path) -> None:
    for searcher, settings in (("random", {}), ("rl", {"policy_model": "tiny-causal", "length": 2})):
        result = rayprompt.search(
            small(), model=server.model, searcher=searcher, settings=settings, budget=128, out=studies / searcher
        )
        assert result.evaluations == 128
        assert result.best_prompt.kind == "text"


@pytest.mark.slow  # quick: the hint, below, and proxies of LMs loaded here
@pytest.mark.usefixtures("ray_session", "trials_here")
def test_a_soft_search_on_a_proxy_is_measured_behind_the_service(server: Server, studies: Path) -> None:
    server.log_probs = ""  # cross-entropy is the proxy's objective, and not to be had there
    given: dict[str, Any] = {"model": server.model, "searcher": "random-soft", "budget": 320}
    with pytest.raises(
        InputError, match="takes text only: search on an LM that is loaded here, with --proxy-model NAME"
    ):
        rayprompt.search(small(), **given)
    result = rayprompt.search(
        small(),
        **given,
        proxy_model="tiny-causal",
        settings={"length": 3},
        lm={"in_flight": 8},
        out=studies / "proxy",
    )
    assert result.model == server.model
    assert result.proxy_model == "tiny-causal"
    assert result.best_prompt.kind == "text"
    server.key = "wrong"
    assert rayprompt.resume(studies / "proxy", task=small()) == rayprompt.resume(studies / "proxy", task=small())
