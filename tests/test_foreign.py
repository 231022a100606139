"""Files that somebody else wrote: limits, types, and one line that says what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_cli_errors import check_one_line
from test_task import YAML, write_folder

from rayprompt.candidate import candidate_from_json, parse_candidate
from rayprompt.cli.main import app, run
from rayprompt.errors import InputError
from rayprompt.foreign import MOST_DEPTH, Unreadable, parse_json, parse_yaml, read_json, read_yaml
from rayprompt.lm.replay import recorded
from rayprompt.lm.source import BUNDLED
from rayprompt.records import PromptRecord, StudyRecord
from rayprompt.scoring.starting import check_address
from rayprompt.study.config import read_comparison_file, read_config
from rayprompt.tables import read_rows
from rayprompt.typed import check, whole

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 3)}]}}\n" for i in range(1, 30))
CHAIN = "- &a0 [x]\n" + "".join(f"- &a{i} [*a{i - 1}]\n" for i in range(1, 1000))


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("a: 1\nb: [", "not YAML", 2),
        ("a: 1\na: 2", "the key 'a' is there twice", 2),
        ("1: a\n1.0: b", "two keys of a mapping are equal", 1),
        ("a: " + "[" * 100_000, "nested too deeply", 1),
        ("a: " + "{b: " * 500 + "1" + "}" * 500, "nested too deeply", 1),
        (CHAIN, "nested too deeply", 101),
        (BOMB, "its aliases stand for more than", 5),
        (MERGES, "its aliases stand for more than", 9),
        ("&a [*a]", "it contains itself", 1),
        ("a: &a {b: *a}", "it contains itself", 1),
        ("a: " + "9" * 5000, "a number of more than 100 digits", 1),
        ("a: -0x" + "f" * 500, "a number of more than 100 digits", None),
        ("a: !!timestamp 2026-02-30", "'2026-02-30' cannot be read as timestamp", 1),
        ("a: !!timestamp 2026-02-03", "holds date", None),
        ("a: 0b_", "'0b_' cannot be read as int", 1),
        ("a: !!bool perhaps", "'perhaps' cannot be read as bool", 1),
        ("a: !!set {b}", "holds set", None),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor", 1),
        ("? [a]\n: b", "found unhashable key", 1),
        ("a\n--- \nb", "found another document", 2),
    ],
)
def test_yaml_beyond_the_limits(text: str, message: str, line: int | None) -> None:
    with pytest.raises(Unreadable, match=message) as caught:
        parse_yaml(text)
    assert caught.value.line == line


def test_what_yaml_is_read_as() -> None:
    """As PyYAML's safe loader reads it, but for dates, which are text."""
    text = "a: 1\nb: [1.5, true, null, 0x1f, '2026-02-03', .inf]\nc: &x {d: e}\nf: {<<: *x, g: =}\nh: 1_000\n2: i\n"
    assert parse_yaml(text) == {**yaml.safe_load(text.replace("g: =", "g: '='"))}
    assert parse_yaml("a: 2026-02-30\nb: 2026-02-03 10:00:00") == {"a": "2026-02-30", "b": "2026-02-03 10:00:00"}
    assert parse_yaml("") is None
    assert parse_yaml("[" * MOST_DEPTH + "]" * MOST_DEPTH) is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 200 + "]" * 200, "nested too deeply"),
        ("9" * 5000, "a number of more than 100 digits"),
        ("9" * 200, "a number of more than 100 digits"),
        (r'["good \ud83d"]', "half of a surrogate pair"),
        (r'{"\udc00": 1}', "half of a surrogate pair"),
        (b"\xff", "not UTF-8"),
        ("{", "not JSON"),
    ],
)
def test_json_beyond_the_limits(text: str | bytes, message: str) -> None:
    with pytest.raises(Unreadable, match=message):
        parse_json(text)


def test_what_json_is_read_as() -> None:
    text = r'{"a": [1, -2.5, "\ud83d\ude00", null, true, 1e3], "b": {}}'
    assert parse_json(text) == json.loads(text)


def test_files(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(33 << 20)
    with pytest.raises(InputError, match=r"34,603,008 bytes; at most 33,554,432 bytes of YAML are read"):
        read_yaml(large)
    for read in (read_yaml, read_json, read_rows):
        with pytest.raises(InputError, match="no such file"):
            read(tmp_path / ("a" * 300 + ".tsv"))
    for text, message in (
        (r'{"text": "good \ud83d"}', "t.jsonl, line 2: 'good \\\\ud83d' holds half of a surrogate pair"),
        ('{"text": ' + "[" * 5000 + "]" * 5000 + "}", "t.jsonl, line 2: nested too deeply"),
        ('{"n": ' + "7" * 5000 + "}", "t.jsonl, line 2: a number of more than"),
        ('{"text": "a", "text": "b"}', "t.jsonl, line 2: the key 'text' is there twice"),
    ):
        (tmp_path / "t.jsonl").write_text('{"text": "fine"}\n' + text)
        with pytest.raises(InputError, match=message):
            read_rows(tmp_path / "t.jsonl")


def test_types() -> None:
    record = {
        "schema": "rayprompt.prompt/1", "prompt": {"kind": "text", "text": "so"}, "task": {"split": "a"},
        "model": {"name": "m", "settings": None}, "round_trips": True, "more": 1,
    }  # fmt: skip
    check(record, PromptRecord, "p.json")
    for place, value, message in (
        (("model",), None, "p.json: model must be a mapping, not None"),
        (("model", "name"), 3, "p.json: model.name must be text or null, not 3"),
        (("task", "split"), ["a"], "p.json: task.split must be text or null, not ['a']"),
        (("round_trips",), 1, "p.json: round_trips must be true or false, not 1"),
        (("judge",), {"extractor": "exact"}, "p.json: judge.scorer is missing; it must be text"),
    ):
        changed = json.loads(json.dumps(record))
        inner = changed
        for step in place[:-1]:
            inner = inner[step]
        inner[place[-1]] = value
        with pytest.raises(InputError) as caught:
            check(changed, PromptRecord, "p.json")
        assert str(caught.value) == message
    with pytest.raises(InputError, match=r"^s.yaml: id is missing; it must be text$"):
        check({}, StudyRecord, "s.yaml")
    check([1, 2.5], list[float], "f")
    for value in (True, "1", 1 << 63, [1]):
        with pytest.raises(InputError, match="must be a whole number"):
            check({"n": value}, dict[str, int], "f")
    assert [whole(text) for text in ("7", "²", "٣", "-1", "", "9" * 19, "9" * 5000)] == [7, *[None] * 6]


@pytest.mark.parametrize(
    "form",
    [
        {}, {"kind": "text"}, {"kind": "text", "text": 3}, {"kind": "text", "text": "a", "token_ids": ["x"]},
        {"kind": "text", "text": "a", "token_ids": [-1]}, {"kind": "text", "text": "a", "token_ids": [1 << 40]},
        {"kind": "text", "text": "a", "token_ids": 3}, {"kind": ["text"]},
        {"kind": "soft", "z": [1e400], "subspace": {}},
        {"kind": "soft", "z": "?", "subspace": {}}, {"kind": "conditioned", "prompts": 1, "inputs": {}},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_candidate(form: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="not a candidate"):
        candidate_from_json(form)
    with pytest.raises(InputError, match="not a candidate"):
        parse_candidate(json.dumps(form))


# Whole commands


def replayed(folder: Path, location: str) -> str:
    folder.mkdir()
    record = {"store": ".", "model": {"name": "m", "location": location, "digest": "d"}}
    (folder / "study.yaml").write_text(yaml.safe_dump(record))
    return f"replay:{folder}"


def test_a_study_that_replays_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = replayed(tmp_path / "a", f"replay:{tmp_path / 'b'}")
    replayed(tmp_path / "b", f"replay:{tmp_path / 'a'}")
    assert run(app, ["search", "--model", name]) == 2
    check_one_line(capsys.readouterr().err, "replays itself")
    chain = [replayed(tmp_path / f"c{i}", f"replay:{tmp_path / f'c{i - 1}'}") for i in range(1, 9)]
    replayed(tmp_path / "c0", "gpt2")
    assert recorded(chain[-1]).location == "gpt2"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "a" * 300], "File name too long"),
        (["search", "--model", "a" * 300], "File name too long"),
        (["search", "--resume", "a" * 300], "no such directory"),
        (["report", "a" * 300], "no such directory"),
        (["search", "--out", "a" * 300], "File name too long"),
        (["evaluate", "reviews", "--prompt-file", "a" * 300], "no such file"),
        (["evaluate", "reviews", "--prompt", "good \ud83d"], r"argument 4, 'good \ud83d': is not UTF-8 text"),
        (["compare", "--seeds", "1000000000"], "seeds 1000000000: at most 10,000 runs are compared"),
        (["compare", "--seeds", "9" * 5000], "must be a number of seeds"),
        (["compare", "--seeds", "5000", "--searchers", "random,nevergrad,cma-es"], "15,000 runs (5000 seeds)"),
        (["compare", "--samples", "1000000000", "--set", "length={randint: [1, 5]}"], "must be from 1 to 10,000"),
        (["search", "--set", "length=1000000000"], "setting length=1000000000: must be 128 or less"),
        (["search", "--searcher", "cma-es", "--set", "intrinsic_dim=1000000000"], "must be 1,000,000 or less"),
        (["search", "--budget", "0"], "budget 0: must be 1 or more"),
        (["compare", "--budget", "0"], "budget 0: must be 1 or more"),
        (["search", "--objective", "acc"], "unknown objective 'acc' (did you mean 'accuracy'?); known: accuracy, "),
        (["search", "--scorers", "9" * 5000], "must be auto, a number"),
        (["report", ".", "--out", "/proc/none/report.html"], ""),
        (["search", "--out", "~nobody-here/x"], "~ stands for no directory"),
    ],
    ids=lambda value: ascii(" ".join(v[:20] for v in value)) if isinstance(value, list) else "",
)  # fmt: skip
def test_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(app, arguments) == 2
    check_one_line(capsys.readouterr().err, message)


@pytest.mark.parametrize(
    "address", ["host:²", "host:" + "9" * 5000, "host:0", "host:65536", "h:", ":1", "a" * 300 + ":1"]
)
def test_addresses(address: str) -> None:
    with pytest.raises(InputError, match="must be local, auto or host:port|nothing answers"):
        check_address(address)


def test_tasks_that_are_no_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, (text, message) in enumerate(
        (
            (BOMB, "its aliases stand for"),
            (YAML + "version: " + "9" * 5000, "a number of more than 100 digits"),
            (YAML + "columns: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
            (YAML + "\nname: a\nname: b\n", "the key 'name' is there twice"),
        )
    ):
        assert run(app, ["list", "task", str(write_folder(tmp_path / str(i), text))]) == 2
        check_one_line(capsys.readouterr().err, message)


# Code that a file names


@pytest.mark.parametrize(
    "content",
    [
        {"objective": "canary:f"}, {"extractor": "canary:f"}, {"answer_scorer": "canary:f"},
        {"searcher": "reward-model", "settings": {"reward_model": "canary:Model"}},
        {"settings": {"inner_settings": {"reward_model": "canary:Model"}}},
    ],
    ids=str,
)  # fmt: skip
def test_a_file_names_no_code(
    content: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "canary.py").write_text("open('imported', 'w').close()\ndef f(*_): return 1\n")
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    for command in ("search", "compare"):
        if command == "search" or "objective" in content:
            assert run(app, [command, "--config", "s.yaml"]) == 2
            check_one_line(capsys.readouterr().err, "--allow-code")
    assert not (tmp_path / "imported").exists()
    assert read_config(tmp_path / "s.yaml", allow_code=True)


def test_a_prompt_file_lets_no_code_of_a_checkpoint_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BUNDLED / "tiny-masked", tmp_path / "lm")
    config = json.loads((tmp_path / "lm/config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C"}}
    (tmp_path / "lm/config.json").write_text(json.dumps(config))
    (tmp_path / "lm/own.py").write_text("open('imported', 'w').close()\n")
    (tmp_path / "p.json").write_text(
        json.dumps(
            {
                "schema": "rayprompt.prompt/1",
                "prompt": {"kind": "text", "text": "so"},
                "task": {},
                "model": {"name": str(tmp_path / "lm"), "settings": {"trust_remote_code": True}},
            }
        )
    )
    assert run(app, ["evaluate", "reviews", "--prompt-file", "p.json", "--address", "127.0.0.1:1"]) == 2
    check_one_line(capsys.readouterr().err, "give --lm trust_remote_code=true")
    assert not (tmp_path / "imported").exists()


def test_what_is_no_code(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("extractor: 'regex:(a|b)'\nanswer_scorer: match\nobjective: accuracy\n")
    assert read_config(tmp_path / "s.yaml")["extractor"] == "regex:(a|b)"
    (tmp_path / "c.yaml").write_text("settings: {a: {reward_model: 'm:C'}}\n")
    with pytest.raises(InputError, match=r"settings.a.reward_model 'm:C' is a class"):
        read_comparison_file(tmp_path / "c.yaml")


# The last handler


def test_what_nobody_expected_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("RAYPROMPT_API_KEY", "a-key-of-ours")
    for error, code in (
        (RecursionError("maximum recursion depth exceeded"), 1),
        (MemoryError(), 1),
        (ZeroDivisionError("a-key-of-ours \x1b[31m"), 1),
        (UnicodeEncodeError("utf-8", "\ud83d", 0, 1, "surrogates not allowed"), 1),
    ):

        def fail(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("rayprompt.cli.listing.LISTINGS", {"tasks": fail})
        assert run(app, ["list", "tasks"]) == code
        err = capsys.readouterr().err
        check_one_line(err, f"unexpected {type(error).__name__}")
        assert "a-key-of-ours" not in err
        assert "\x1b" not in err
        written = Path(err.rstrip().rpartition(" ")[2]).read_text()
        assert "Traceback" in written
        assert "a-key-of-ours" not in written
    monkeypatch.setattr("tempfile.tempdir", None)


def test_a_terminal_that_is_not_utf8() -> None:
    script = (
        "from rayprompt.cli import say, main; import sys; sys.argv = ['rayprompt', 'list', 'ta\\u017fks']; main.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert r"unknown list 'ta\u017fks'" in done.stderr


@pytest.mark.parametrize("home", [None, "/proc"])
def test_without_a_home(home: str | None, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "HOME"} | ({} if home is None else {"HOME": home})
    for arguments in (["list", "task", "reviews"], ["search", "--config", "~nobody-here/x.yaml"]):
        command = [sys.executable, "-m", "rayprompt", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == (0 if arguments[0] == "list" else 2)
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") <= 1
