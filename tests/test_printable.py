"""What is shown: nothing that a terminal would act on, and no secrets."""

from __future__ import annotations

import ast
import io
import json
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from test_cli_errors import check_one_line

from rayprompt.cli.main import app, run
from rayprompt.cli.say import note, say, say_json
from rayprompt.printable import flat, one_line, printable, printable_json, redacted

EVIL = "a\x1b[31mb\x07\x9bc\u202ed\u2066e\u200bf\u2028g\ud83dh\U000e0041"


def test_characters() -> None:
    assert printable(EVIL) == r"a\x1b[31mb\x07\x9bc\u202ed\u2066e\u200bf\u2028g\ud83dh\U000e0041"
    for text in ("naïve 电影 مرحبا می‌خواهم 👩‍💻 \t and\nlines", "x = 'y' \\ {z}", ""):
        assert printable(text) == text
    assert one_line(" a\r\n\x1b b ") == r"a \x1b b"
    assert flat("a  b\nc") == "a  b c"
    assert len(one_line("a" * 100_000)) < 2100
    text = json.dumps({EVIL: [EVIL, "电影"]}, ensure_ascii=False)
    shown = printable_json(text)
    assert json.loads(shown) == json.loads(text)
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\u200b", "\ud83d"} & set(shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:SEC/RET@bucket/x", "s3://***@bucket/x"),
        ("s3:/KEY:SECRET@bucket", "s3:/***@bucket"),
        ("http://user:SECRET@host:80/v1", "http://***@host:80/v1"),
        ("at https://SECRET@host/v1.", "at https://***@host/v1."),
        ("https://h/x?X-Amz-Signature=SECRET&X-Amz-Credential=SECRET&y=1", "https://h/x?X-Amz-Signature=***&X-Amz-Credential=***&y=1"),
        ("https://h/x?sig=SECRET#y", "https://h/x?sig=***#y"),
        ("Location: http://h/?api_key=SECRET", "Location: http://h/?api_key=***"),
        ("{'Authorization': 'Bearer SECRET'}", "{'Authorization': '***'}"),
        ("bearer abcdefghijklmnopqrSECRET", "bearer ***"),
        ("key sk-SECRETSECRETSECRET1 refused", "key *** refused"),
        ("the value of OUR_API_KEY is in-the-environment", "the value of OUR_API_KEY is ***"),
        ("at ?key=spaced%2Bin-environment", "at ?key=***"),
        ("spaced+in-environment and spaced%2Bin-environment", "*** and ***"),
        ("api-key: SECRET7", "api-key: ***"), ('{"x-api-key": "SECRET"}', '{"x-api-key": "***"}'),
        ("aws_secret_access_key = SECRET/x", "aws_secret_access_key = ***"),
        ("AccountKey=SECRET==;x", "AccountKey=***;x"),
        ("https://h/x#access_token=SECRET", "https://h/x#access_token=***"),
        ("https://h/f?code=SECRET", "https://h/f?code=***"),
        ("to=http%3A%2F%2Fh%2Fv1%3Fapi_key%3DSECRET", "to=http%3A%2F%2Fh%2Fv1%3Fapi_key%3D***"),
        ("s3%3A%2F%2FKEY%3ASECRET%40b", "s3%3A%2F%2F***%40b"), ("Bearer:abcdefghijklmnopqrSECRET", "Bearer:***"),
        ("sent Basic dXNlcjpTRUNSRVQ=", "sent Basic ***"), ("Authorization: ApiKey SECRET1", "Authorization: ***"),
        ("no file: s3:/KEY%3ASECRET@b/x", "no file: s3:/***@b/x"), ("s3://KEY:SECRET%40b/x", "s3://***@b/x"),
        ("s3://SECRET@b/x", "s3://***@b/x"),
        ("github_pat_SECRETSECRETSECRETSECRET", "***"), ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.SECRET", "***"),
    ],
)  # fmt: skip
def test_secrets(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_API_KEY", "in-the-environment")
    monkeypatch.setenv("A_TOKEN", "spaced+in-environment\n")
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text",
    ["http://host:8000/v1", "http://host:80/a@b", "abfs://container@account.dfs.core.windows.net/x", "s3://b/x?region=eu",
     "mail a@b.org: hello", "a key=value pair", "the bearer of news", "Basic training", "--set x=1",
     "Basic input/output", "Invalid API key: please check it", '{"key": "0123456789abcdef", "tokens": 1234567}',
     "a valid token: 1234567", "set RAYPROMPT_API_KEY_HOST=host:8000"],
)  # fmt: skip
def test_what_is_no_secret(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize("part", ["a", "sk-", "http://a:", "?key.", "http://", "authorization: x"])
def test_long_texts_are_no_hang(part: str) -> None:
    """Patterns whose time grows with the square of the length took 20 s and more here; now it is a tenth of one."""
    begun = time.process_time()
    redacted("?" + part * (40_000 // len(part)))
    assert time.process_time() - begun < 20


@pytest.mark.parametrize(
    "text",
    ['Authorization: abc"def', '?key=abc"def', 'password="abc"', 'api_key: 12345\\"x', 'Bearer "abcdefghijklmnopqrst"'],
)
def test_json_stays_json(text: str) -> None:
    assert json.loads(printable_json(json.dumps({"a": text, "b": [text]})))["b"] == [redacted(text)]


def test_everything_that_is_printed_goes_through_it(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL)
    say(EVIL, to_stderr=True)
    note(EVIL)
    say_json({"a": EVIL})
    for stream in capsys.readouterr():
        assert not {"\x1b", "\x07", "\u202e"} & set(stream)
    for path in (REPOSITORY / "rayprompt").rglob("*.py"):
        if path.name == "say.py" or "/testing/" in str(path):
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not any(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls), path


def test_the_live_display() -> None:
    from rich.console import Console

    from rayprompt.cli.display import Display
    from rayprompt.cli.leaderboard import Leaderboard
    from rayprompt.study.progress import Progress

    for terminal in (True, False):
        for kind in (Display, Leaderboard):
            out, display = io.StringIO(), kind()
            display.console = Console(file=out, force_terminal=terminal, width=200)
            with display:
                display(Progress("start", f"server said {EVIL}"))
                display(Progress("search", "", "random s0", 64, 640, 0.5, EVIL, 100.0, searcher=EVIL, runs=1))
            assert r"\x1b[31mb\x07" in out.getvalue()
            assert not {"\x07", "\x9b", "\u202e", "\u200b"} & set(out.getvalue())


def test_names_in_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.yaml").write_text('"le\\e[2Jngth\\u202e": 3\n')
    assert run(app, ["search", "--config", str(tmp_path / "s.yaml")]) == 2
    check_one_line(capsys.readouterr().err, r"unknown key 'le\x1b[2Jngth\u202e'")


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "--out", "s3://KEY:SECRET@bucket/x"], ["search", "--store", "s3://KEY:SECRET@bucket/x"],
        ["search", "--resume", "s3://KEY:SECRET@bucket"], ["search", "--warm-start", "s3://KEY:SECRET@bucket"],
        ["transfer", "s3://KEY:SEC/RET@bucket"], ["report", "s3://KEY:SECRET@bucket"], ["store", "info", "s3://KEY:SECRET@b"],
        ["search", "--config", "s3://KEY:SECRET@bucket"], ["search", "mr", "--data", "s3://KEY:SECRET@bucket"],
        ["clusters", "init", "aws", "--studies", "s3://KEY:SECRET@bucket/x"], ["search", "--config", "c.yaml"],
        ["clusters", "init", "slurm", "--studies", "s3://b/x?secret_key=SECRET"], ["compare", "--config", "c.yaml"],
        ["search", "--out", "s3://b/x?endpoint_override=http%3A%2F%2Fuser%3ASECRET%40host"],
        ["search", "--store", "s3://b/x?endpoint_override=http://user:SECRET@host"],
        ["clusters", "init", "aws", "--studies", "s3://b/x?scheme=http;secret_key=SECRET"],
        ["clusters", "init", "aws", "--studies", "s3://KEY:SECRET%40b/x"], ["search", "s3://KEY%3ASECRET@b/x"],
        ["search", "--mlflow", "http://KEY:SECRET@127.0.0.1:1"],
        ["search", "--store", "s3://b/x#secret_key=SECRET"], ["search", "--out", "s3://KEY:SEC?SECRET@b"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_key_in_a_uri_is_refused_and_not_repeated(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("out: s3://KEY:SECRET@bucket/x\n")
    assert run(app, arguments) == 2
    out, err = capsys.readouterr()
    check_one_line(err, "")
    assert "SECRET" not in out + err
    assert "RET@" not in err
    assert "KEY" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]
