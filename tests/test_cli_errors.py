"""Bad input: exit code 2, one line on standard error, no traceback, and the line says what would be right."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_task import YAML, write_folder

from rayprompt.answers import get_extractor
from rayprompt.cli.main import app, parse_settings, run
from rayprompt.errors import InputError, StoreError
from rayprompt.report.page import check_out
from rayprompt.study.whole import write_whole
from rayprompt.tables import read_rows
from rayprompt.task import load_task

CASES: list[tuple[list[str], str]] = [
    (["serch"], "No such command 'serch'. Did you mean 'search'?"),
    (["search", "--bugdet", "3"], "No such option: --bugdet"),
    (["search", "--budget", "many"], "Invalid value for '--budget'"),
    (["search", "--budget", "0"], "budget 0: must be 1 or more"),
    (["search", "--budget", "-5"], "budget -5: must be 1 or more"),
    (["search", "--resume", "no-study"], "no such directory"),
    (["search", "--resume", "."], "not a study that has begun (it holds no study.yaml)"),
    (["search", "--resume", ".", "--seed", "1"], "--seed beside --resume: a study goes on as it began"),
    (["search", "reviews", "--resume", "."], "TASK beside --resume"),
    (["search", "--store", "nowhere://x"], "nowhere://x: not a local path, nor a URI"),
    (["search", "--seed", "-1"], "seed -1: must be from 0"),
    (["search", "--finalists", "0"], "finalists 0: must be 1 or more"),
    (["search", "revews"], "unknown task 'revews' (did you mean 'reviews'?)"),
    (["search", "no/such/folder"], "no such task folder: no/such/folder"),
    (["search", "--model", "tiny-maskd"], "did you mean 'tiny-masked'?"),
    (["search", "--model", "./no-model"], "no such model folder"),
    (["search", "--searcher", "nevergard"], "did you mean 'nevergrad'?"),
    (["search", "--split", "16-14"], "unknown split '16-14'"),
    (["search", "--objective", "acuracy"], "did you mean 'accuracy'?"),
    (["search", "--set", "optimizer"], "--set optimizer: must be KEY=VALUE"),
    (["search", "--set", "lenght=3"], "did you mean 'length'?"),
    (["search", "--set", "length=three"], "length='three' must be int or null, not str"),
    (["search", "--set", "length=3", "--set", "length=4"], "--set length: given twice"),
    (["search", "--set", "optimizer=CMAAES"], "not in Nevergrad's registry; nearest: "),
    (["search", "--set", "seed=3"], "use --seed"),
    (["search", "--set", "phrases=none.txt"], "no such file: none.txt"),
    (["search", "--scorers", "0"], "--scorers 0: must be 1 or more"),
    (["search", "--gpus-per-scorer", "1"], "the cluster has 0"),
    (["evaluate"], "Missing argument"),
    (["evaluate", "reviews"], "give one of --prompt TEXT and --prompt-file FILE"),
    (["evaluate", "reviews", "--prompt", "x", "--on", "tset"], "did you mean 'test'?"),
    (["evaluate", "reviews", "--prompt-file", "none.json"], "no such file: none.json"),
    (["score", "reviews", "--prompts", "none.txt"], "no such file: none.txt"),
    (["search", "sst2"], "unknown task 'sst2' (did you mean 'sst-2'?)"),
    (["search", "sst-2@bb"], "unknown variant 'bb' in task sst-2 (did you mean 'bbt'?); known: bbt, "),
    (["search", "mr@bbt"], "unknown variant 'bbt' of task mr; it has none"),
    (["search", "reviews@bbt"], "unknown variant 'bbt' of task reviews; it has none"),
    (["search", "mr", "--data", "none"], "--data none: no such folder; a folder is wanted with the tables train and"),
    (["search", "mr", "--data", "."], "--data .: the folder is empty; it must hold the tables train and test of mr"),
    (["search", "reviews", "--data", "."], "--data .: is for the public tasks (agnews, cr, "),
    (["search", "revews", "--data", "."], "unknown task 'revews' (did you mean 'reviews'?)"),
    (["search", "--resume", ".", "--data", "x"], "--data beside --resume"),
    (["search", "--config", "none.yaml"], "no such file: none.yaml"),
    (["search", "--resume", ".", "--config", "x.yaml"], "--config beside --resume: a study goes on as it began"),
    (["list", "taks"], "unknown list 'taks' (did you mean 'tasks'?)"),
    (["list", "task"], "list task: of which? as in: rayprompt list task reviews (did you mean 'tasks'?)"),
    (["list", "task", "reviews", "--split", "16-14"], "unknown split '16-14' in task reviews"),
    (["list", "tasks", "mr"], "list tasks mr: a name and these options are for: rayprompt list task NAME"),
    (["list", "models", "--data", "x"], "--data: a name and these options are for: rayprompt list task NAME"),
]


@pytest.mark.parametrize(("arguments", "message"), CASES, ids=[" ".join(a) for a, _ in CASES])
def test_bad_input(
    arguments: list[str], message: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if {"--scorers", "--gpus-per-scorer"} & set(arguments):
        request.getfixturevalue("ray_session")
    assert run(app, arguments) == 2
    check_one_line(capsys.readouterr().err, message)


def check_one_line(error: str, message: str) -> None:
    lines = [line for line in error.splitlines() if line.startswith("rayprompt: ")]
    assert len(lines) == 1
    assert error.endswith(lines[0] + "\n")
    assert message in lines[0]
    assert "Traceback" not in error


ADDRESSES = [
    ("127.0.0.1:1", "no Ray cluster there (nothing answers)"),
    ("ray://127.0.0.1:1", "run it on the cluster, as with: ray job submit"),
    ("somewhere", "must be local, auto or host:port"),
]


def test_bad_addresses(tmp_path: Path) -> None:
    """In a process that is not connected to a cluster."""
    script = (
        "import sys\n"
        "from rayprompt.cli.main import app, run\n"
        "for address in sys.argv[1:]:\n"
        "    code = run(app, ['search', '--address', address])\n"
        "    print('exit code', code, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", script, *(address for address, _ in ADDRESSES)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    *errors, end = done.stderr.split("exit code 2\n")
    assert (done.returncode, end) == (0, "")
    for error, (_, message) in zip(errors, ADDRESSES, strict=True):
        check_one_line(error, message)


def test_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two_tokens = YAML.replace("1: great", "1: zyxwv")
    no_prompt = YAML.replace("{text} {prompt} {mask} .", "{text} {mask} .")
    full = tmp_path / "full"
    full.mkdir()
    (full / "something").write_text("")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text('{"schema": "rayprompt.prompt/9"}')
    (tmp_path / "empty.txt").write_text("\n")
    cases = [
        (["search", str(write_folder(tmp_path / "a", two_tokens))], "must be one token"),
        (["search", str(write_folder(tmp_path / "b", no_prompt))], "has no {prompt}; it needs exactly one"),
        (["search", "--out", str(full)], "exists already and is not empty"),
        (["evaluate", "reviews", "--prompt-file", str(tmp_path / "broken.json")], "line 1: not JSON"),
        (["evaluate", "reviews", "--prompt-file", str(tmp_path / "other.json")], "this version reads"),
        (["score", "reviews", "--prompts", str(tmp_path / "empty.txt")], "holds no prompts"),
    ]
    for arguments, message in cases:
        assert run(app, arguments) == 2
        check_one_line(capsys.readouterr().err, message)


STUDY_FILES: list[tuple[str, str, str]] = [
    ("a.yaml", "task: [", "a.yaml, line 1: not YAML ("),
    ("b.yaml", "", "b.yaml: must hold 'key: value' lines, not nothing"),
    ("c.json", '{"task": "reviews",}', "c.json, line 1: not JSON ("),
    ("d.json", "[]", "d.json: must hold a JSON object, not list"),
    ("e.yaml", "bugdet: 3", "unknown key 'bugdet' in e.yaml (did you mean 'budget'?); known: address, "),
    ("f.yaml", "proxy-model: x", "unknown key 'proxy-model' in f.yaml (did you mean 'proxy_model'?)"),
    ("g.yaml", "budget: 1e4", "g.yaml: budget must be a whole number, not '1e4'"),
    ("h.yaml", "seed: true", "h.yaml: seed must be a whole number, not True"),
    ("i.yaml", "split: 16", 'i.yaml: split must be text, not 16 (in quotes: "16")'),
    ("j.yaml", "allow_leaks: 1", "j.yaml: allow_leaks must be true or false, not 1"),
    ("k.yaml", "gpus_per_scorer: half", "k.yaml: gpus_per_scorer must be a number, not 'half'"),
    ("l.yaml", "settings: [length=3]", "l.yaml: settings must be a mapping, not ['length=3']"),
    ("m.yaml", "task: 3", "m.yaml: task must be text or a mapping, not 3"),
    ("n.yaml", "task: revews", "unknown task 'revews' in n.yaml (did you mean 'reviews'?)"),
    ("o.yaml", "task: ./mine", "no such task folder: "),
    ("p.yaml", "task: {name: mr, tempate: x}", "p.yaml: task mr is built in; of it version, "),
    ("y.yaml", "task: {tempate: x, name: mr}", "not 'tempate' (did you mean 'template'?)"),
    ("q.yaml", "task: {name: mine, tempate: x}", "unknown key 'tempate' in q.yaml, task (did you mean 'template'?)"),
    ("r.yaml", "task: {manual_prompt: x}", "a task given as a mapping needs a name"),
    ("s.yaml", "settings: {lenght: 3}", "unknown setting 'lenght' in searcher nevergrad (did you mean 'length'?)"),
    ("t.yaml", "settings: {length: 2.5}", "setting length=2.5 must be int or null, not float"),
    ("u.yaml", "settings: {phrases: p.txt}", "u/p.txt (a text file of phrases, one a line)"),
    ("v.yaml", "schema: rayprompt.study/4", "v.yaml: the record of a study, not a study file; rayprompt search --res"),
    ("w.yaml", "model: ./lm", "w/lm"),
    ("x.yaml", "description: 3", "x.yaml: description must be text, not 3"),
]


@pytest.mark.parametrize(("name", "text", "message"), STUDY_FILES, ids=[text for _, text, _ in STUDY_FILES])
def test_bad_study_files(
    name: str, text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / name[0]
    folder.mkdir()
    (folder / name).write_text(text)
    monkeypatch.chdir(folder)
    assert run(app, ["search", "--config", name]) == 2
    check_one_line(capsys.readouterr().err, message)


def test_settings() -> None:
    assert parse_settings(["a=1", " b =x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    with pytest.raises(InputError, match="must be KEY=VALUE"):
        parse_settings(["=3"])


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["--version"]) == 0
    assert capsys.readouterr().out.startswith("rayprompt 0.")
    for command in ("search", "evaluate", "score", "list"):
        assert run(app, [command, "--help"]) == 0
        text = capsys.readouterr().out
        assert "--json" in text
        assert ("--tune-native" in text) == (command == "search")


def test_the_live_display_shows_prompts_as_they_are() -> None:
    """In a terminal, 80 columns wide: a line per search, and markup in a prompt is only text."""
    from rich.console import Console

    from rayprompt.cli.display import Display
    from rayprompt.study.progress import Progress

    out = io.StringIO()
    display = Display()
    display.console = Console(file=out, force_terminal=True, width=200)
    with display:
        display(Progress("start", "loading [red]x"))
        display(Progress("search", "", "random s0", 64, 640, 0.5, "[bold]it was", 100.0))
        display(Progress("search", "", "random s1", 128, 640, 0.625, "so", 100.0))
    text = out.getvalue()
    assert "loading [red]x" in text
    assert "random s0: best on train 0.500, 64 of 640 evaluations, 100/s, ETA 0:05: [bold]it was" in text
    assert "random s1: best on train 0.625" in text


def test_odd_files_are_named_and_never_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pipes and devices have no end; a directory is not "no such file"."""
    pipe, endless, folder = tmp_path / "pipe.yaml", tmp_path / "endless.yaml", tmp_path / "folder.yaml"
    os.mkfifo(pipe)
    endless.symlink_to("/dev/zero")
    folder.mkdir()
    for path, what in ((pipe, "pipe, socket or device"), (endless, "pipe, socket or device"), (folder, "directory")):
        for command in (["clusters", "check", str(path)], ["search", "--config", str(path)]):
            assert run(app, command) == 2
            check_one_line(capsys.readouterr().err, f"{path.name}: is a {what}, not a file")


KEYS = [
    ("name: tiny", "name: [tiny]", "task.yaml: name must be text, not ['tiny']"),
    ("manual_prompt: It was", "manual_prompt: [It was]", "task.yaml: manual_prompt must be text, not ['It was']"),
    ("manual_prompt: It was", "manual_prompt: yes", "task.yaml: manual_prompt must be text, not True"),
    ("name: tiny", "description: {a: b}", "task.yaml: description must be text, not {'a': 'b'}"),
    ("name: tiny", "version: [1]", "task.yaml: version must be text, not [1]"),
    ("name: tiny", 'version: !!int ""', "task.yaml, line 1: not YAML ('' cannot be read as int)"),
    ("0: terrible", "0: ", "label_words: a label and its word must be texts, not None"),
    ("0: terrible", "0: [terrible]", "label_words: a label and its word must be texts, not ['terrible']"),
    ("0: terrible", '"1": terrible', "label_words: two labels are the same text in ['1', 1]"),
    ('template: {masked: "{text} {prompt} {mask} .", causal: "{text} {prompt}"}', "template: 3", "template is 3; it"),
    ("splits: {train: train.tsv, dev: dev.tsv, test: test.tsv}", "splits: 3", "splits is 3; it names the files"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), KEYS, ids=[new for _, new, _ in KEYS])
def test_ill_typed_keys_of_a_task(
    old: str, new: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in YAML
    assert run(app, ["list", "task", str(write_folder(tmp_path / "t", YAML.replace(old, new)))]) == 2
    check_one_line(capsys.readouterr().err, message)


def test_a_link_to_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for option in ("--out", "--store"):
        assert run(app, ["search", option, str(tmp_path / "loop"), "--address", "127.0.0.1:1"]) == 2
        check_one_line(capsys.readouterr().err, "Symlink loop from")


def test_a_pattern_that_is_nested_too_deeply() -> None:
    with pytest.raises(InputError, match="the pattern is nested too deeply or too large"):
        get_extractor("regex:" + "(" * 5000 + ")" * 5000)


def test_odd_cells(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("text,label\n" + "a" * 1_000_000 + ",1\n")
    assert len(read_rows(table)[0]["text"]) == 1_000_000
    table.write_text('text,label\n"a,1\n')
    with pytest.raises(InputError, match="a cell begins with a quotation mark that is never closed"):
        read_rows(table)
    folder = write_folder(tmp_path / "t", YAML.replace("train.tsv", "train.jsonl"))
    (folder / "train.jsonl").write_text('{"text": "a", "label": null}\n')
    with pytest.raises(InputError, match=r"train, example 1: no label \(column 'label'\)"):
        load_task(folder)


def test_a_pipe_or_a_broken_link_is_never_replaced(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("link")
    for path in (pipe, link):
        with pytest.raises(InputError, match="is a device, a pipe or a broken link, and no file; it is not written"):
            check_out(path)
    with pytest.raises(StoreError, match="cannot be written"):
        write_whole(pipe, "text")
    assert pipe.is_fifo()
    assert link.is_symlink()
