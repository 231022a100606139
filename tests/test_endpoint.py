"""LMs behind a service: what is asked and what answers mean, label scores equal to local ones, keys, money."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import yaml
from aiohttp import web
from conftest import PoolOf, task_of
from lm_server import CAUSAL, PROMPTS, QUICK, SPEAKS, Server, small
from test_generation import verdicts
from transformers.utils.import_utils import is_serve_available

import rayprompt
from rayprompt.cli.main import app, run
from rayprompt.comparison.sources import sources_of
from rayprompt.comparison.transfer import _targets
from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.characters import CharacterTokenizer, messages_of
from rayprompt.lm.endpoint import parse
from rayprompt.lm.replies import steps_of
from rayprompt.lm.words import echoed, of_words
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.store.store import ScoreStore
from rayprompt.unanswered import Reason

KEY = "sk-a-very-secret-key-0123456789"


@pytest.fixture(scope="module")
def pool(pool_of: PoolOf) -> ScoringPool:
    """The same LM, loaded here."""
    return pool_of(Problem("reviews", "tiny-causal").lm, 1)


# What is asked, and what answers mean.


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("endpoint:localhost:8000#x", "must be endpoint:URL#NAME, as endpoint:http://localhost:8000/v1#llama-3"),
        ("endpoint:http://localhost:8000/v1", "must be endpoint:URL#NAME"),
        ("endpoint:http://localhost:8000/v1#", "must be endpoint:URL#NAME"),
        ("endpoint:http://[::1/v1#m", "must be endpoint:URL#NAME"),
        ("endpoint:http://host:99999/v1#m", "must be endpoint:URL#NAME"),
        ("endpoint:http://host:abc/v1#m", "must be endpoint:URL#NAME"),
        (f"endpoint:http://me:{KEY}@localhost/v1#x", "holds a key, .*environment variable RAYPROMPT_API_KEY"),
        (f"endpoint:http://localhost/v1?api_key={KEY}#x", "holds a key"),
    ],
)
def test_names_that_are_no_endpoint(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse(name)
    assert KEY not in str(caught.value)


def test_a_name_may_have_a_query() -> None:
    endpoint = parse("endpoint:https://host/openai?api-version=2024-10#gpt")
    assert endpoint.path == "https://host/openai/completions?api-version=2024-10"
    assert replace(endpoint, chat=True).path == "https://host/openai/chat/completions?api-version=2024-10"


def test_echoed_log_probabilities_are_those_of_the_tokens_that_a_word_is_in() -> None:
    found = {"tokens": ["It", " is", " g", "ood"], "token_logprobs": [None, -1.0, -2.0, -0.5]}
    steps = steps_of({"logprobs": found})
    assert echoed(steps, "It is", " good") == -2.5
    assert echoed(steps, "It is ", "good") == -2.5  # a token over the edge counts whole
    with pytest.raises(ValueError, match="the tokens are not those of the text"):
        echoed(steps, "It is", " good.")
    with pytest.raises(ValueError, match="the tokens are not those of the text"):
        echoed([], "", "x")


def test_words_among_the_likeliest_tokens() -> None:
    def p(likeliest: dict[str, float], *words: str) -> Any:
        found = of_words([(token, float(np.log(value))) for token, value in likeliest.items()], words)
        return None if found is None else np.exp(found)

    assert p({" great": 0.5, "Ġgreat": 0.1, " bad": 0.2, " it": 0.05}, "great", "bad") == pytest.approx([0.75, 0.25])
    assert p({"Great": 0.5, " great": 0.1, "BAD": 0.2, " it": 0.05}, "great", "bad") == pytest.approx([0.75, 0.25])
    assert p({"US": 0.6, "us": 0.2}, "US", "us") == pytest.approx([0.75, 0.25])  # words that differ in case alone
    assert p({" terr": 0.4, " x": 0.1}, "great", "terrible") == pytest.approx([0.2, 0.8])  # at most as likely as " x"
    assert p({" great": 0.9}, "great", "bad") == pytest.approx([0.9, 0.1])  # and than what is left
    few = p({" great": 0.2}, "great", "bad")
    assert few[0] > few[1]  # the likeliest token is likelier than any other
    assert p({" x": 0.4}, "great", "terrible") is None
    assert p({"card": 0.99}, "card_arrival", "card_linking") is None  # it could be either
    assert p({" a": 0.5, " great": 0.1}, "great", "awful") == pytest.approx([0.5, 0.5], abs=1e-3)  # "a" is no "awful"


def test_characters_are_tokens() -> None:
    tokenizer = CharacterTokenizer()
    assert tokenizer.decode(tokenizer("ça va \U0001f600")["input_ids"]) == "ça va \U0001f600"
    chat = tokenizer.apply_chat_template([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}])
    assert messages_of(chat) == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    assert tokenizer([chat], split_special_tokens=True)["input_ids"][0][:6] == [ord(c) for c in "system"]
    assert messages_of("plain") is None


@pytest.mark.usefixtures("ray_session")
def test_label_scores_are_the_local_ones(server: Server, pool: ScoringPool) -> None:
    there = rayprompt.score(PROMPTS, small(), server.model, on="dev")
    here = rayprompt.score(PROMPTS, small(), "tiny-causal", on="dev", pool=pool)
    assert there.label_log_probs is not None
    assert here.label_log_probs is not None
    assert np.abs(there.label_log_probs - here.label_log_probs).max() < 1e-3
    assert (there.value == here.value).all()
    assert [c.text for c in there.candidates] == [c.text for c in here.candidates]  # type: ignore[union-attr]


@pytest.mark.usefixtures("ray_session")
def test_words_of_several_tokens_too(server: Server, pool: ScoringPool) -> None:
    task = task_of(label_words={0: "very terrible", 1: "great fun"})
    there = rayprompt.score(PROMPTS, task, server.model)
    here = rayprompt.score(PROMPTS, task, "tiny-causal", pool=pool)
    assert np.abs(there.dense("label_log_probs") - here.dense("label_log_probs")).max() < 1e-3


@pytest.mark.usefixtures("ray_session")
def test_without_echo_the_likeliest_tokens_and_without_those_the_completed_label(
    server: Server, pool: ScoringPool
) -> None:
    here = rayprompt.score(PROMPTS, small(), "tiny-causal", on="dev", pool=pool)
    server.log_probs = "top"
    top = Problem(small(), server.model)
    assert top.lm.endpoint is not None
    assert top.lm.endpoint.labels == "top"
    there = rayprompt.score(PROMPTS, top, on="dev")
    named = np.exp(here.label_log_probs).max(axis=1) > 0.6  # type: ignore[arg-type]
    assert (there.value == here.value)[named].mean() > 0.95
    server.log_probs = ""
    text = Problem(small(), server.model)
    assert not text.gives_log_probs
    written = rayprompt.score(PROMPTS, text, on="dev")
    assert written.label_log_probs is None
    wanted = rayprompt.score(PROMPTS, verdicts(), "tiny-causal", on="dev", pool=pool)
    wanted = replace(
        wanted,
        completion=tuple(t for t, e in zip(wanted.completion or (), wanted.example, strict=True) if e < 24),
        value=wanted.value[wanted.example < 24],
    )
    assert written.completion == wanted.completion
    assert (written.value == wanted.value).all()


@pytest.mark.usefixtures("ray_session")
def test_pairs_without_a_label_word_are_unanswered_and_a_search_says_how_many(server: Server, studies: Path) -> None:
    """The likeliest token alone: where it is no label word, nothing is known."""
    server.speaks = SPEAKS["one"]
    result = rayprompt.search(small(), model=server.model, budget=128, out=studies / "s")
    rows = ScoreStore(studies / "s").pairs()
    reasons = rows["reason"].to_pylist()
    assert 0 < reasons.count(Reason.UNSEEN) < len(reasons)
    assert result.unanswered["train"]["reasons"]["unseen"] == reasons.count(Reason.UNSEEN)
    assert result.unanswered["train"]["pairs"] == len(reasons)


@pytest.mark.usefixtures("ray_session")
def test_thinking_is_no_answer_and_a_label_that_was_named_is_one(server: Server, pool: ScoringPool) -> None:
    plain = rayprompt.score(["it was"], verdicts(), "tiny-causal", on="dev", pool=pool)
    server.speaks = SPEAKS["thinks"]  # it thinks of both labels
    chat = rayprompt.score(["it was"], small(), server.model, on="dev", lm={"chat": "user"})
    answered = {int(e): text for e, text in zip(chat.example, chat.completion or (), strict=True)}
    assert answered
    assert not any("think" in text for text in answered.values())
    local = {int(e): text for e, text in zip(plain.example, plain.completion or (), strict=True)}
    for example, text in answered.items():
        assert text.strip() == local[example].strip()
    for pair in chat.errors:  # cut before it named one
        assert pair.reason == Reason.CUT
        assert not {"great", "terrible"} & set(local[pair.example].split())


@pytest.mark.usefixtures("ray_session")
def test_cut_completions_are_counted_here_and_there(server: Server, pool: ScoringPool, studies: Path) -> None:
    problem = Problem(verdicts(max_tokens=2), "tiny-causal")
    part, ids = problem.part("dev"), [problem.token_ids(problem.prompt("it was"))]
    pairs = np.zeros(len(part), dtype=int), np.arange(len(part))
    pool.add(part)
    found = [answers for _, answers, _ in pool.answers(part, ids, *pairs)]
    assert sum(len(answers) for answers in found) == len(part)
    for answers in found:
        assert answers.cut is not None
        assert answers.written is not None
        assert (answers.cut <= (answers.written == 2)).all()
        assert answers.cut.any()
    result = rayprompt.search(verdicts(max_tokens=2), model=server.model, budget=128, out=studies / "s")
    assert 0 < result.cut <= result.evaluations + result.report_evaluations
    assert json.loads((studies / "s" / "result.json").read_text())["cut"] == result.cut


@pytest.mark.usefixtures("ray_session")
def test_chat_takes_messages(server: Server) -> None:
    user = Problem(small(), server.model, lm={"chat": "user"})
    rayprompt.score(["it was"], user, on="dev")
    system = Problem(small(), server.model, lm={"chat": "system"})
    rayprompt.score(["it was"], system, on="dev")
    rayprompt.score([""], system, on="dev")
    text = user.task.examples("dev")[0].fields["text"]
    bodies = [body["messages"] for path, body in server.seen if path.endswith("chat/completions")]
    assert [{"role": "user", "content": f"{text} it was"}] in bodies
    assert [{"role": "system", "content": "it was"}, {"role": "user", "content": text}] in bodies
    assert [{"role": "user", "content": text}] in bodies  # an empty message is none


@pytest.mark.usefixtures("ray_session")
def test_generation_and_sampling_over_the_wire(server: Server, pool: ScoringPool) -> None:
    there = rayprompt.score(PROMPTS, verdicts(), server.model, on="dev")
    here = rayprompt.score(PROMPTS, verdicts(), "tiny-causal", on="dev", pool=pool)
    assert there.completion == here.completion
    sampled = Problem(verdicts(stop=["."]), server.model, lm={"temperature": 1, "samples": 2, "max_tokens": 4})
    scores = rayprompt.score(["it was"], sampled)
    assert len(scores) + len(scores.errors) == 2 * len(sampled.gold)
    assert {error.reason for error in scores.errors} <= {Reason.CUT}  # without a label in what was written
    bodies = [body for _, body in server.seen if body.get("temperature") == 1]
    assert len({body["seed"] for body in bodies}) == 2
    assert {body["max_tokens"] for body in bodies} == {4}
    assert bodies[0]["stop"] == ["."]
    assert not any("." in text for text in scores.completion or ())


# Keys, money, and what goes wrong.


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (lambda body: web.Response(text="<html>login</html>", content_type="text/html"), "the reply is no JSON"),
        (
            lambda body: web.Response(status=302, headers={"Location": "http://x/y"}),
            "redirects .302. to http://x/y, which is not followed",
        ),
        (lambda body: web.json_response({"error": {"message": f"x Bearer {KEY} y"}}, status=401), "x Bearer ... y"),
        (lambda body: web.json_response({"choices": []}), "0 choices, not 1"),
        (lambda body: web.json_response({"choices": [{"text": None}]}), "it refuses a request of one token: no text"),
    ],
    ids=["html", "redirect", "key", "empty", "null"],
)
def test_services_that_are_none(
    server: Server, reply: Any, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYPROMPT_API_KEY", KEY)
    server.reply = reply
    assert run(app, ["search", "reviews", "--model", server.model, "--lm", "tries=1"]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1, error
    assert re.search(message, error), error
    assert KEY[:8] not in error


def test_keys_that_cannot_be_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = KEY
    monkeypatch.setenv("RAYPROMPT_API_KEY", f" {KEY}\r\n")  # as a file gives it
    assert Problem(small(), server.model).lm.endpoint is not None
    monkeypatch.setenv("RAYPROMPT_API_KEY", f"{KEY[:5]}\n{KEY[5:]}")
    with pytest.raises(InputError, match="the key in RAYPROMPT_API_KEY holds a character that no key has"):
        Problem(small(), server.model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("key", "the key is refused .401 .*; set RAYPROMPT_API_KEY"),
        ("model", "there is no such API or no LM 'other' .404 no model other"),
        ("path", "there is no such API or no LM 'tiny'"),
        ("port", "no answer in 3 tries .--lm tries.: ClientConnectorError"),
        ("objective", "objective 'gap' needs label log-probabilities, which this LM does not give; use 'accuracy'"),
        ("metric", "its metric f1 needs label log-probabilities"),
        ("labels", "--lm labels=echo: it does not give them: 400 unknown option"),
        ("soft", "takes text only: search on an LM that is loaded here, with --proxy-model NAME"),
        ("local", "--lm cache=.*: is for an LM that is loaded here"),
        ("masked", "has no template for causal LMs"),
    ],
)
def test_what_is_wrong_is_said_at_once_on_one_line(
    server: Server, change: str, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, more, task = server.model, [], "reviews"
    monkeypatch.setenv("RAYPROMPT_API_KEY", KEY)
    if change == "key":
        server.key = "another"
    elif change in ("model", "path", "port"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        model = {
            "model": server.model.replace("#tiny", "#other"),
            "path": server.model.replace("/v1", "/v2"),
            "port": f"endpoint:http://127.0.0.1:{port}/v1#tiny",
        }[change]
    elif change == "local":
        more = ["--lm", "cache=2MB"]
    elif change == "soft":
        more = ["--searcher", "cma-es"]
    elif change == "labels":
        server.log_probs, more = "", ["--lm", "labels=echo"]
    elif change == "objective":
        server.log_probs, more = "", ["--objective", "gap"]
    if change in ("metric", "masked"):
        server.log_probs = ""
        masked = {"template": {"masked": "{text} {prompt} {mask} ."}} if change == "masked" else {"metric": "f1"}
        with pytest.raises(InputError, match=message):
            Problem(task_of(**masked), server.model)
        return
    started = time.monotonic()
    assert run(app, ["search", task, "--model", model, *more]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1, error
    assert re.search(message, error), error
    assert KEY not in error
    assert time.monotonic() - started < 20


@pytest.mark.usefixtures("ray_session")
def test_the_key_stands_nowhere(server: Server, studies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the study, not in Ray's logs, not in what its state says of actors, not in what the LM's source says."""
    monkeypatch.setenv("RAYPROMPT_API_KEY", KEY)
    server.key, server.faults = KEY, 0.05
    result = rayprompt.search(small(), model=server.model, budget=128, out=studies / "s", lm=QUICK)
    server.key = "another"
    with pytest.raises(ScoringError, match="the key is refused") as caught:
        _evaluate(server, result)
    assert KEY not in str(caught.value)
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    for folder in (studies, session):
        found = subprocess.run(["grep", "-rlaF", KEY, str(folder)], capture_output=True, text=True).stdout
        assert found == ""
    server.counts.clear()  # a study's file alone does not decide who gets it either
    with pytest.raises(InputError, match="study.yaml: names an LM on the host .*RAYPROMPT_API_KEY_HOST=127.0.0.1"):
        rayprompt.resume(studies / "s", task=small(), budget=256)
    with pytest.raises(InputError, match="STUDY .*: names an LM on the host .*RAYPROMPT_API_KEY_HOST=127.0.0.1"):
        _targets(sources_of(studies / "s"), small(), ["tiny-causal"], {})
    assert not server.counts
    about = yaml.safe_load((studies / "s" / "study.yaml").read_text())["model"]
    assert about["endpoint"] == {"api": "completions", "rule": 2, "labels": "echo"}
    assert about["service"] == {
        **{"limit": "max_tokens", "stop": True, "top_logprobs": 20},
        **{"list_of_prompts": True, "echo_max_tokens": 0},
    }


def _evaluate(server: Server, result: rayprompt.Result) -> Any:
    """Evaluate while the service takes the key at first and no more when it is asked about pairs."""
    server.key = KEY
    problem = Problem(small(), server.model)
    server.key = "another"
    return rayprompt.evaluate(result.best_prompt, problem)


@pytest.mark.usefixtures("ray_session", "trials_here")
def test_tokens_and_money(server: Server, studies: Path) -> None:
    server.log_probs = ""
    lm = {"price_in": 2, "price_out": 10}
    result = rayprompt.search(small(), model=server.model, budget=128, out=studies / "s", lm=lm)
    rows = ScoreStore(studies / "s").pairs()
    tokens, written = (int(np.sum(rows[name].to_numpy())) for name in ("tokens", "written"))
    assert (result.tokens, result.written) == (tokens, written)
    report = [ScoreStore(studies / "s").pairs(part=part) for part in ("dev", "test")]
    tokens += sum(int(np.sum(r["tokens"].to_numpy())) for r in report)
    written += sum(int(np.sum(r["written"].to_numpy())) for r in report)
    assert result.cost == pytest.approx(((tokens - written) * 2 + written * 10) / 1e6)
    assert json.loads((studies / "s" / "result.json").read_text())["cost"] == result.cost


@pytest.mark.slow  # it takes transformers serve half a minute to start; quick: the server of these tests, above
@pytest.mark.usefixtures("ray_session")
@pytest.mark.skipif(not is_serve_available(), reason="needs transformers serve (pip install 'transformers[serving]')")
def test_transformers_serve(tmp_path: Path, pool: ScoringPool) -> None:
    """A server that is not ours: the completed label, and generation."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(CAUSAL), "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-3000:]
                assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.5)
        model = f"endpoint:http://127.0.0.1:{port}/v1#{CAUSAL}"
        problem = Problem("reviews", model, lm={"in_flight": 4})
        assert problem.lm.endpoint is not None
        assert problem.lm.endpoint.labels == "text"
        there = rayprompt.score(["it was"], problem, on="dev")
        here = rayprompt.score(["it was"], verdicts(), "tiny-causal", on="dev", pool=pool)
        assert there.completion == here.completion
        assert (there.value == here.value).all()
        written = rayprompt.score(["it was"], verdicts(), model, on="dev", lm={"in_flight": 4})
        assert written.completion == here.completion
        result = rayprompt.search(verdicts(), model=model, budget=128, out=tmp_path / "s", lm={"in_flight": 4})
        assert result.evaluations == 128
    finally:
        process.terminate()
        process.wait(30)


DASHBOARD = """
import sys, urllib.request
import ray, rayprompt
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem

context = ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=False)
problem = Problem("reviews", sys.argv[1])
pool = ScoringPool.start(problem.lm)
rayprompt.score(["it was"], problem, pool=pool)
pages = ("logical/actors", "nodes?view=summary", "api/v0/actors?detail=true", "api/v0/tasks?detail=true",
         "api/v0/workers?detail=true", "api/v0/runtime_envs?detail=true", "api/v0/objects?detail=true", "api/jobs/")
for page in pages:
    print(page, urllib.request.urlopen(f"http://{context.dashboard_url}/{page}", timeout=60).read().decode())
"""


@pytest.mark.slow  # a Ray of its own with its dashboard; quick: the key stands in no file and no log, above
def test_the_dashboard_does_not_know_the_key(server: Server, tmp_path: Path) -> None:
    server.key = KEY
    environment = {**os.environ, "RAYPROMPT_API_KEY": KEY, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-c", DASHBOARD, server.model]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert found.returncode == 0, found.stderr[-3000:]
    assert "EndpointActor" in found.stdout
    assert KEY not in found.stdout + found.stderr
