"""What goes wrong on the wire to a service: one input, all of them, odd replies, keys that files would send away."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from lm_server import Server
from test_generation import verdicts
from test_service_formats import ask, found

from rayprompt.cli.main import app, run
from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.endpoint import Endpoint, Secret, check_named
from rayprompt.lm.service import MOST_BYTES, Client, Question
from rayprompt.lm.service import _seconds as retry_after
from rayprompt.lm.settings import LMSettings
from rayprompt.lm.source import describe_model
from rayprompt.searcher.problem import Problem
from rayprompt.study.config import read_config
from rayprompt.unanswered import Reason

KEY = "sk-a-very-secret-key-0123456789"
GOOD, BAD = Question("a good film"), Question("a bomb of a film")


def for_one(server: Server, reply: web.Response | Any) -> Endpoint:
    """Whatever has "bomb" in it gets that reply."""

    def answer(body: dict[str, Any]) -> web.Response:
        if "bomb" in json.dumps(body):
            return reply() if callable(reply) else web.Response(**reply)
        return web.json_response(server.completions(body))

    server.reply = answer
    return Endpoint(server.url, "tiny")


def error(status: int, **content: Any) -> Any:
    return lambda: web.json_response({"error": {"message": "no", **content}}, status=status)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (error(400), Reason.REFUSED),
        (error(400, code="content_filter", innererror={"code": "ResponsibleAIPolicyViolation"}), Reason.REFUSED),
        (error(403), Reason.REFUSED),  # a firewall's answer to one input
        (error(404), Reason.REFUSED),
        (error(413), Reason.REFUSED),
        (error(422), Reason.REFUSED),
        (error(200, code="content_filter"), Reason.REFUSED),
        (error(200, code=400), Reason.REFUSED),
        (error(200, code=502), Reason.FAILED),
        (error(500), Reason.FAILED),
        (error(503), Reason.FAILED),
        (lambda: web.json_response({"choices": []}), Reason.FAILED),
        (lambda: web.json_response({}), Reason.FAILED),
        (lambda: web.json_response([1]), Reason.FAILED),
        (lambda: web.json_response({"choices": "x"}), Reason.FAILED),
        (lambda: web.json_response({"choices": [None]}), Reason.FAILED),
        (lambda: web.json_response({"choices": [{"text": {"deep": {}}}]}), Reason.FAILED),
        (lambda: web.Response(text="<html>bad gateway</html>", content_type="text/html"), Reason.FAILED),
        (lambda: web.Response(text='{"choices": ' + "[" * 50_000), Reason.FAILED),
        (lambda: web.Response(text="", status=200), Reason.FAILED),
        (lambda: web.json_response({"choices": [{"text": "", "finish_reason": "content_filter"}]}), Reason.REFUSED),
        (lambda: web.json_response({"choices": [{"text": "", "finish_reason": "length"}]}), Reason.CUT),
    ],
)
def test_one_input_that_gets_no_answer_is_no_matter_of_the_others(server: Server, reply: Any, reason: Reason) -> None:
    replies = ask(for_one(server, reply), [GOOD, BAD, GOOD])
    assert [r.reason for r in replies] == [Reason.ANSWERED, reason, Reason.ANSWERED]
    assert replies[1].why
    assert replies[1].completion is None
    assert replies[1].tries == (2 if reason == Reason.FAILED else 1)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 500])
def test_what_a_harmless_question_gets_too_ends_the_run(server: Server, status: int) -> None:
    server.reply = lambda body: web.json_response({"error": {"message": "never"}}, status=status)
    if status == 400:  # of one pair it is a refusal: the pool sees that it is so for all
        (reply,) = ask(Endpoint(server.url, "tiny"), [BAD])
        assert reply.reason == Reason.REFUSED
        return
    with pytest.raises(ScoringError, match=f"{status} never"):
        ask(Endpoint(server.url, "tiny"), [BAD, GOOD])
    assert server.counts["odd"] == {401: 1, 402: 1, 403: 2, 404: 2, 500: 4}[status]


def test_an_account_without_credit_is_not_asked_again(server: Server) -> None:
    content = {"error": {"message": "quota", "code": "insufficient_quota", "type": "insufficient_quota"}}
    server.reply = lambda body: web.json_response(content, status=429)
    with pytest.raises(ScoringError, match="the account has no credit left .429 quota"):
        ask(Endpoint(server.url, "tiny"), [GOOD], tries=5)
    assert server.counts["odd"] == 1


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e999", "9" * 400, '"x"', "-1", "null", "[[]]"])
def test_odd_numbers_of_tokens_are_none(server: Server, number: str) -> None:
    text = f'{{"choices": [{{"text": " x", "finish_reason": "stop"}}], "usage": {{"prompt_tokens": {number}}}}}'
    server.reply = lambda body: web.Response(text=text)
    (reply,) = ask(Endpoint(server.url, "tiny"), [GOOD])
    assert (reply.completion, reply.tokens) == (" x", 0)


def test_log_probabilities_that_are_no_numbers(server: Server) -> None:
    content = {"tokens": ["a", " good", " film", " w"], "token_logprobs": [None, -1.0, -1.0, float("nan")]}
    text = json.dumps({"choices": [{"index": 0, "text": "", "logprobs": content}]})
    server.reply = lambda body: web.Response(text=text)
    (reply,) = ask(Endpoint(server.url, "tiny", labels="echo"), [Question("a good film", ("w",))])
    assert (reply.reason, reply.log_probs) == (Reason.NAN, None)


TOP = {"message": {"content": None}, "finish_reason": "content_filter", "logprobs": None}


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"logprobs": {"top_logprobs": [{"w": -0.1, "v": float("nan")}]}}, Reason.NAN),
        (TOP, Reason.REFUSED),
        ({**TOP, "finish_reason": "stop", "message": {"content": None, "refusal": "no"}}, Reason.REFUSED),
        ({**TOP, "logprobs": {"content": None, "refusal": [{"token": "I"}]}}, Reason.REFUSED),
        ({**TOP, "finish_reason": "error"}, Reason.FAILED),
    ],
)
def test_likeliest_tokens_that_are_none(server: Server, choice: dict[str, Any], reason: Reason) -> None:
    server.reply = lambda body: web.Response(text=json.dumps({"choices": [{"index": 0, **choice}]}))
    (reply,) = ask(Endpoint(server.url, "tiny", labels="top", top=5), [Question("a film", ("w", "v"))])
    assert (reply.reason, reply.log_probs, reply.tries) == (reason, None, 1)


@pytest.mark.parametrize(
    ("logprobs", "finish", "reason"),
    [
        (None, "content_filter", Reason.REFUSED),
        ({"tokens": ["a", " film", " w"], "token_logprobs": [None, -1.0, -9999.0]}, "length", Reason.NAN),
    ],
)
def test_an_echo_without_scores(server: Server, logprobs: Any, finish: str, reason: Reason) -> None:
    choice = {"index": 0, "text": "", "logprobs": logprobs, "finish_reason": finish}
    server.reply = lambda body: web.json_response({"choices": [choice]})
    (reply,) = ask(Endpoint(server.url, "tiny", labels="echo"), [Question("a film", ("w",))])
    assert (reply.reason, reply.log_probs, reply.tries) == (reason, None, 1)


def test_retry_after_may_be_a_date() -> None:
    assert 57 < (retry_after(formatdate(time.time() + 60, usegmt=True)) or 0) <= 60
    for header in (None, "soon", "-1", "nan", "inf", formatdate(time.time() - 60, usegmt=True), "Mon, 99 Foo 2020"):
        assert retry_after(header) is None


def test_a_reply_has_a_limit_after_decompression(server: Server) -> None:
    bomb = gzip.compress(b" " * (4 * MOST_BYTES), 1)
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    endpoint = for_one(server, lambda: web.Response(body=bomb, headers=headers))
    replies = ask(endpoint, [BAD, GOOD], timeout=60)
    assert (replies[0].reason, replies[0].why) == (Reason.FAILED, "a reply of more than 64 MB")
    assert replies[1].reason == Reason.ANSWERED


@pytest.fixture
def drip() -> Iterator[str]:
    """A server that sends a byte now and then, for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stopped = threading.Event()

        def serve() -> None:
            while not stopped.is_set():
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(connection,), daemon=True).start()

        def one(connection: socket.socket) -> None:
            with connection:
                try:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                    while not stopped.wait(0.05):
                        connection.sendall(b" ")
                except OSError:
                    pass

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        stopped.set()


def test_a_reply_that_drips_in_has_the_timeout_as_a_whole(drip: str) -> None:
    started = time.monotonic()
    with pytest.raises(ScoringError, match="no answer came within 0.5 s"):
        ask(Endpoint(drip, "tiny"), [GOOD], timeout=0.5, tries=1)
    assert time.monotonic() - started < 10


# Keys.


@pytest.mark.parametrize("where", ["https://elsewhere.example/v1/KEY?token=KEY", "//KEY@elsewhere.example/x"])
def test_a_redirect_gets_no_key_and_what_it_repeats_of_it_is_not_shown(
    server: Server, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYPROMPT_API_KEY", KEY)
    server.reply = lambda body: web.Response(status=307, headers={"Location": where.replace("KEY", KEY)})
    with pytest.raises(InputError, match=r"redirects .307. to .*elsewhere.example.*, which is not followed") as caught:
        found(server)
    assert KEY not in str(caught.value)
    assert server.counts["odd"] == 1


def files(server: Server, folder: Path) -> dict[str, list[str]]:
    """Command lines in which a file alone names the LM."""
    model = server.model
    prompt = {
        "schema": "rayprompt.prompt/1",
        "prompt": {"kind": "text", "text": "it was"},
        "model": {"name": model, "digest": "x", "settings": {}},
        "task": {"name": "reviews", "split": "default"},
    }
    (folder / "prompt.json").write_text(json.dumps(prompt))
    (folder / "search.yaml").write_text(yaml.safe_dump({"task": "reviews", "model": model}))
    (folder / "proxy.yaml").write_text(yaml.safe_dump({"task": "reviews", "proxy_model": model}))
    (folder / "compare.yaml").write_text(yaml.safe_dump({"tasks": ["reviews"], "models": [model]}))
    return {
        "prompt": ["evaluate", "reviews", "--prompt-file", str(folder / "prompt.json")],
        "config": ["search", "--config", str(folder / "search.yaml")],
        "proxy": ["search", "--config", str(folder / "proxy.yaml")],
        "compare": ["compare", "--config", str(folder / "compare.yaml")],
    }


@pytest.mark.parametrize("kind", ["prompt", "config", "proxy", "compare"])
def test_a_file_does_not_decide_which_host_gets_the_key(
    server: Server, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYPROMPT_API_KEY", KEY)
    server.reply = lambda body: web.json_response({"error": {"message": "seen"}}, status=401)
    command = files(server, tmp_path)[kind]
    assert run(app, command) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"names an LM on the host 127.0.0.1:{server.port}, which gets your API key only if you name the host" in line
    assert f"RAYPROMPT_API_KEY_HOST=127.0.0.1:{server.port}" in line
    assert KEY not in line
    assert not server.counts
    monkeypatch.setenv("RAYPROMPT_API_KEY_HOST", f"other.example, 127.0.0.1:{server.port}")
    assert run(app, command) == 2
    assert "the key is refused (401 seen)" in capsys.readouterr().err


def test_an_lm_on_the_command_line_gets_the_key_whatever_a_file_names(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYPROMPT_API_KEY", KEY)
    server.reply = lambda body: web.json_response({"error": {"message": "seen"}}, status=401)
    other = server.model.replace("127.0.0.1", "other.example")
    (tmp_path / "search.yaml").write_text(yaml.safe_dump({"task": "reviews", "model": other}))
    assert run(app, ["search", "--config", str(tmp_path / "search.yaml"), "--model", server.model]) == 2
    assert "the key is refused (401 seen)" in capsys.readouterr().err
    with pytest.raises(InputError, match="search.yaml: names an LM on the host other.example"):
        read_config(tmp_path / "search.yaml")


@pytest.mark.parametrize(
    ("name", "allowed", "fine"),
    [
        ("endpoint:http://host:8000/v1#m", "", False),
        ("endpoint:http://host:8000/v1#m", "host", True),
        ("endpoint:http://host:8000/v1#m", "host:8000", True),
        ("endpoint:http://host:8000/v1#m", "host:9000", False),
        ("endpoint:http://HOST.:8000/v1#m", "host:8000", True),
        ("endpoint:http://host:8000/v1#m", "http://host:8000", True),
        ("endpoint:http://host/v1#m", "https://host", False),
        ("endpoint:http://host.evil.example/v1#m", "host", False),
        ("endpoint:http://[::1]:8000/v1#m", "[::1]:8000", True),
        ("endpoint:http://host/v1#m", "a:b:c,host:x,,host", True),
        ("tiny-causal", "", True),
    ],
)
def test_hosts_that_the_environment_names(name: str, allowed: str, fine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYPROMPT_API_KEY", KEY)
    monkeypatch.setenv("RAYPROMPT_API_KEY_HOST", allowed)
    if fine:
        check_named([name, None], "x.json")
        return
    with pytest.raises(InputError, match="x.json: names an LM on the host"):
        check_named([name, None], "x.json")
    check_named([name], "x.json", given=[name])
    monkeypatch.delenv("RAYPROMPT_API_KEY")
    check_named([name], "x.json")  # there is no key to send


def test_openais_key_goes_to_openai(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYPROMPT_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    check_named(["endpoint:https://api.openai.com/v1#m"], "x.json")
    for host in ("http://api.openai.com", "https://mine.openai.azure.com"):
        with pytest.raises(InputError, match="gets your API key only if you name the host"):
            check_named([f"endpoint:{host}/v1#m"], "x.json")
    check_named(["endpoint:https://elsewhere.example/v1#m"], "x.json")  # which gets no key of OpenAI's


def test_other_places_for_a_model_take_no_service(server: Server) -> None:
    with pytest.raises(InputError, match="--lm words=endpoint:.*: must be an LM whose files can be read"):
        LMSettings.of({"words": server.model})
    with pytest.raises(InputError, match="is behind a service; this needs an LM that is loaded here"):
        describe_model(server.model)
    assert not server.counts


# Stop texts.


def test_no_stop_text_where_none_is_said_and_no_blank_line_in_a_chat(server: Server) -> None:
    task = verdicts(stop=["\n\n", "\nQ:"])
    assert Problem(task, server.model).decoding.stop == ("\n\n", "\nQ:")  # type: ignore[union-attr]
    assert Problem(task, server.model, lm={"chat": "user"}).decoding.stop == ("\nQ:",)  # type: ignore[union-attr]
    none = Problem(task, server.model, lm={"stop": "none"})
    assert none.decoding is not None
    assert none.decoding.stop == ()
    assert LMSettings.of(none.lm.settings.to_json()) == none.lm.settings
    own = Problem(task, server.model, lm={"stop": ["\n\n"], "chat": "user"})
    assert own.decoding is not None
    assert own.decoding.stop == ("\n\n",)


def test_a_client_that_waits_for_a_dead_service_says_so_once(server: Server) -> None:
    server.reply = lambda body: web.json_response({"error": {"message": "down"}}, status=503)

    async def work() -> list[Any]:
        client = Client(Endpoint(server.url, "tiny"), LMSettings.of({"tries": 2}), Secret(None))
        try:
            return list(await asyncio.gather(*(client.ask(GOOD) for _ in range(8)), return_exceptions=True))
        finally:
            await client.close()

    assert {type(one) for one in asyncio.run(work())} == {ScoringError}
    assert server.counts["odd"] <= 8 * 2 + 2
