"""Tasks from folders and from Python objects: what is read, and what is refused with one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import task_of

import rayprompt
from rayprompt.errors import InputError
from rayprompt.tables import read_prompts, read_rows
from rayprompt.task import Task, load_task
from rayprompt.template import Template

YAML = """\
name: tiny
kind: classification
template: {masked: "{text} {prompt} {mask} .", causal: "{text} {prompt}"}
label_words: {0: terrible, 1: great}
manual_prompt: It was
columns: {text: [sentence, text], label: label}
splits: {train: train.tsv, dev: dev.tsv, test: test.tsv}
"""


def write_folder(folder: Path, yaml: str = YAML, **tables: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "task.yaml").write_text(yaml)
    for part in ("train", "dev", "test"):
        (folder / f"{part}.tsv").write_text(tables.get(part, f"sentence\tlabel\ngood {part}\t1\nbad {part}\t0\n"))
    return folder


def test_reads_a_folder(tmp_path: Path) -> None:
    task = load_task(write_folder(tmp_path / "t", test="text\tlabel\nanother  name\t1\n"))
    assert task.name == "tiny"
    assert task.labels == ("0", "1")
    assert task.label_words == ("terrible", "great")
    assert task.gold("train").tolist() == [1, 0]
    assert task.examples("test")[0].fields == {"text": "another name"}
    assert task.digest == load_task(tmp_path / "t").digest
    (tmp_path / "t" / "dev.tsv").write_text("sentence\tlabel\nother\t1\n")
    assert task.digest != load_task(tmp_path / "t").digest


def test_splits_by_name(tmp_path: Path) -> None:
    triple = "{train: train.tsv, dev: dev.tsv, test: test.tsv}"
    yaml = YAML.replace(f"splits: {triple}", f"splits:\n  a: {triple}\n  b: {triple}")
    task = load_task(write_folder(tmp_path / "t", yaml))
    assert list(task.splits) == ["a", "b"]
    assert task.default_split == "a"
    with pytest.raises(InputError, match="unknown split 'c'"):
        task.parts("c")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_other_tables_give_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": 'a "quoted", text', "label": "1"}, {"text": "naïve", "label": "0"}]
    path = tmp_path / f"x.{suffix}"
    if suffix == "csv":
        path.write_text('text,label\n"a ""quoted"", text",1\nnaïve,0\n')
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps(r) for r in rows) + "\n\n")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    assert read_rows(path) == rows


def test_tsv_quotes_are_read_as_csv_where_they_parse_and_as_text_where_not(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text('text\tlabel\n"say ""hi"" ."\t1\n')
    assert read_rows(path) == [{"text": 'say "hi" .', "label": "1"}]
    # A quotation mark that opens one line and one that closes another do not make the lines between one cell.
    path.write_text('text\tlabel\n"open here\t1\nmiddle\t0\nends with a quote "\t0\n')
    assert [row["text"] for row in read_rows(path)] == ['"open here', "middle", 'ends with a quote "']
    path.write_text('text\tlabel\n"two\nlines"\t1\nnext\t0\n')
    assert read_rows(path) == [{"text": "two\nlines", "label": "1"}, {"text": "next", "label": "0"}]
    path.write_text('text\tlabel\n"open quote\t1\nnext\t0\n')
    assert read_rows(path) == [{"text": '"open quote', "label": "1"}, {"text": "next", "label": "0"}]


def test_prompts_from_files(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("It was\n\n  overall \n")
    assert read_prompts(tmp_path / "p.txt") == ["It was", "overall"]
    (tmp_path / "p.csv").write_text("prompt,n\nIt was,1\n")
    assert read_prompts(tmp_path / "p.csv") == ["It was"]
    (tmp_path / "q.csv").write_text("x\n1\n")
    (tmp_path / "r.jsonl").write_text('{"prompt": "a\u2028b"}\n{"prompt": null}\n')
    with pytest.raises(InputError, match="row 2: prompt must be a string, not None"):
        read_prompts(tmp_path / "r.jsonl")
    with pytest.raises(InputError, match="no column 'prompt' or 'text'"):
        read_prompts(tmp_path / "q.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("template: {masked", "templte: {masked"), "unknown key 'templte'.*did you mean 'template'"),
        (("{text} {prompt} {mask} .", "{text} {mask} ."), r"has no \{prompt\}; it needs exactly one"),
        (("{text} {prompt} {mask} .", "{text} {prompt} {prompt} {mask}"), r"2 times \{prompt\}"),
        (("{text} {prompt} {mask} .", "{text} {prompt} ."), r"has 0 \{mask\}; it needs exactly one"),
        (("{text} {prompt} {mask} .", "{txt} {prompt} {mask} ."), r"\{txt\}.*did you mean 'text'"),
        (("{text} {prompt} {mask} .", "{prompt} {mask} ."), "shows nothing of the example"),
        (("{text} {prompt} {mask} .", "{text {prompt} {mask} ."), "task.yaml"),
        (("masked:", "maskd:"), "unknown LM family 'maskd'.*did you mean 'masked'"),
        (("{0: terrible, 1: great}", "{0: terrible}"), "label_words must map two or more labels"),
        (("{0: terrible, 1: great}", "{0: great, 1: great}"), "every label needs a word of its own"),
        (("{0: terrible, 1: great}", "{0: terrible, 2: great}"), r"train, example 1: label '1' has no label word"),
        (("train: train.tsv", "train: trane.tsv"), "no such file.*trane.tsv"),
        (("train: train.tsv", "tran: train.tsv"), "unknown part 'tran'.*did you mean 'train'"),
        (("train: train.tsv, ", ""), "lacks train"),
        (("[sentence, text]", "[phrase]"), "no column 'phrase' for 'text'; it has sentence, label"),
        (("kind: classification", "kind: regression"), "unknown kind 'regression'.*classification, generation"),
        (("kind: classification", "kind: generation"), "columns must map 'answer' and the fields"),
        (("name: tiny", "name: tiny\nextractor: exact"), "extractor is for kind: generation.* kind is classification"),
        (("name: tiny", "name: tiny\nmetric: bleu"), "unknown metric 'bleu'"),
        (("name: tiny", "name: [tiny"), "not YAML"),
        (("train.tsv", "train.xlsx"), "no such file"),
    ],
)
def test_bad_task_files_get_one_clear_line(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    folder = write_folder(tmp_path / "t", YAML.replace(*change))
    with pytest.raises(InputError, match=message) as caught:
        load_task(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("sentence\tlabel\n", "no rows"),
        ("", "no rows"),
        ("sentence\tlabel\ngood\t1\textra\n", "row 2: 3 cells, the header has 2"),
        ("sentence\tsentence\ngood\t1\n", "appears twice"),
        ("sentence\tlabel\n \t1\n", "example 1: the text is empty"),
    ],
)
def test_bad_tables_get_one_clear_line(tmp_path: Path, table: str, message: str) -> None:
    folder = write_folder(tmp_path / "t", train=table)
    with pytest.raises(InputError, match=message):
        load_task(folder)


def test_binary_and_broken_files(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "x.parquet").write_bytes(b"nope")
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": \n')
    (tmp_path / "y.jsonl").write_text("[1]\n")
    (tmp_path / "x.xlsx").write_text("")
    for name, message in {
        "x.tsv": "not UTF-8",
        "x.parquet": "not a Parquet file",
        "x.jsonl": "line 2: not JSON",
        "y.jsonl": "a row is a JSON object",
        "x.xlsx": "unknown type",
    }.items():
        with pytest.raises(InputError, match=message):
            read_rows(tmp_path / name)


def test_names_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown task 'revews' .did you mean 'reviews'"):
        load_task("revews")
    with pytest.raises(InputError, match="no such task folder"):
        load_task(str(tmp_path / "nope"))
    with pytest.raises(InputError, match="holds no task.yaml"):
        load_task(str(tmp_path))
    assert load_task("reviews").name == "reviews"


def test_from_examples_is_the_same_kind_of_task() -> None:
    task = task_of(train=4)
    assert len(task.examples("train")) == 4
    assert task.template("causal").source == "{text} {prompt}"
    with pytest.raises(InputError, match="dev has no examples"):
        task_of(dev=[])
    only_causal = task_of(template="{text} {prompt}")
    with pytest.raises(InputError, match="has no template for masked LMs"):
        only_causal.template("masked")


def test_leaks_are_counted_and_refused_across_train_and_test(tmp_path: Path) -> None:
    table = "sentence\tlabel\nsame text\t1\nbad\t0\n"
    task = load_task(write_folder(tmp_path / "t", train=table, test=table.replace("bad", "other")))
    assert task.leaks() == {"default": {("train", "test"): 1}}
    with pytest.raises(InputError, match="1 texts of train stand in test too"):
        rayprompt.Problem(task)
    assert rayprompt.Problem(task, allow_leaks=True).leaks == {("train", "test"): 1}


def test_what_the_lm_does_not_see_makes_no_other_text() -> None:
    def rows(text: str, number: int) -> list[dict[str, Any]]:
        return [{"text": text, "id": number, "label": 0}]

    def made(**parts: Any) -> Task:
        words = {0: "bad", 1: "good"}
        return Task.from_examples("t", template="{text} {prompt} {mask}", label_words=words, **parts)

    task = made(train=rows("caf\u00e9", 1), dev=rows("other", 2), test=rows("cafe\u0301", 3))
    assert task.leaks() == {"default": {("train", "test"): 1}}
    with pytest.raises(InputError, match="dev, example 1: the text is empty"):
        made(train=rows("a", 1), dev=rows("", 2), test=rows("b", 3))


def test_template_renders_what_a_person_would_write() -> None:
    template = Template.parse("{mask} News: {text} {prompt}", ["text"], "here")
    assert template.render({"text": "Stocks fell."}, "so", "<mask>") == "<mask> News: Stocks fell. so"
    first = Template.parse("{prompt} {text}", ["text"], "here")
    assert first.render({"text": "a"}, "") == "a"
    braces = Template.parse("{{x}} {text} {prompt}", ["text"], "here")
    assert braces.render({"text": "a"}, "p") == "{x} a p"
