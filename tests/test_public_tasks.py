"""The public tasks against the papers' strings, their data from folders and from `datasets`, the k-shot sampler."""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from jsonschema import Draft202012Validator
from test_cli_errors import check_one_line

import rayprompt
from rayprompt import public
from rayprompt.cli.main import app, run
from rayprompt.errors import InputError
from rayprompt.public import public_names, public_spec
from rayprompt.shots import SPLITS
from rayprompt.study.manifest import task_location
from rayprompt.study.search import _recorded_problem
from rayprompt.task import Task, load_task

SCHEMAS = Path(rayprompt.__file__).parent / "schemas"
COUNTS = {"mr": (32, 2000), "cr": (32, 2000), "agnews": (64, 7600), "trec": (96, 500)}

# The inputs that the papers' code builds: S (S1, S2) the text, P the prompt.
MASKED = {
    "sst-2": "S P <mask> .", "sst-5": "S P <mask> .", "mr": "S P <mask> .", "cr": "S P <mask> .",
    "subj": "S P <mask> .", "trec": "S P <mask> .", "yelp-2": "S P <mask> .", "yelp-5": "S P <mask> .",
    "yahoo": "S P <mask> .", "agnews": "<mask> P S", "dbpedia": "P <mask> : S",
    "mrpc": "P . S1 ? <mask> , S2", "snli": "P . S1 ? <mask> , S2", "rte": "P . S1 ? <mask> , S2",
    "sst-2@bbt": "P . S . It was <mask> .", "yelp-2@bbt": "P . S . It was <mask> .",
    "agnews@bbt": "P . <mask> News: S", "dbpedia@bbt": "P [ Category: <mask> ] S",
    "mrpc@bbt": "P . S1 ? <mask> , S2", "snli@bbt": "P . S1 ? <mask> , S2", "rte@bbt": "P . S1 ? <mask> , S2",
}  # fmt: skip
CAUSAL = {
    **dict.fromkeys(("sst-2", "sst-5", "mr", "cr", "subj", "trec", "yelp-2", "yelp-5", "yahoo", "dbpedia"), "S P"),
    "agnews": "S P",  # the published code shows '<mask> P S' to causal LMs too
    "sst-2@bbt": "P . S . It is", "yelp-2@bbt": "P . S . It is",
    "agnews@bbt": "P . S The news above is about", "dbpedia@bbt": "P S The text above is about",
    "sst-2@bbt-gpt2": "P . S . The sentiment is", "yelp-2@bbt-gpt2": "P . S . It is",
    "agnews@bbt-gpt2": "P . S The news above is about", "dbpedia@bbt-gpt2": "P S The text above is about",
    # the published code leaves a literal '<mask>' before S2
    **dict.fromkeys(("mrpc", "snli", "rte", "mrpc@bbt", "snli@bbt", "rte@bbt"), "P . S1 ? S2 . The answer is"),
}  # fmt: skip
ENCODER_DECODER = {
    "sst-2@bbt-t5": "text: P S . It was <mask>", "yelp-2@bbt-t5": "text: P S . It was <mask>",
    "agnews@bbt": "P <mask> News: S", "dbpedia@bbt": "P [ Category: <mask> ] S",
}  # fmt: skip
WORDS = {
    "sst-2": "terrible great", "mr": "terrible great", "cr": "terrible great", "yelp-2": "terrible great",
    "sst-5": "terrible bad okay good great", "yelp-5": "terrible bad okay good great",
    "agnews": "World Sports Business Tech", "subj": "subjective objective",
    "trec": "Description Entity Expression Human Location Number",
    "yahoo": "culture science health education computer sports business music family politics",
    "dbpedia": "Company Education Artist Sports Office Transportation Building Natural Village Animal Plant Album "
    "Film Written",
    "mrpc": "No Yes", "snli": "Yes Maybe No", "rte": "Yes No",
    "sst-2@bbt": "bad great", "yelp-2@bbt": "bad great", "agnews@bbt": "World Sports Business Tech",
    "dbpedia@bbt": "Company Education Artist Athlete Office Transportation Building Natural Village Animal Plant Album "
    "Film Written",
    "sst-2@bbt-gpt2": "negative positive", "agnews@bbt-gpt2": "world sports business tech",
}  # fmt: skip
# Label words that the papers' code takes without the leading space.
UNSPACED = {"agnews", "yahoo", "mrpc", "snli", "rte"}


def write_data(folder: Path, name: str, part_rows: Callable[[str, int], int] = lambda part, label: 1) -> Path:
    """train, dev and test tables of a public task, ``part_rows`` examples per class."""
    spec = public_spec(name)
    fields = [field for field in spec["columns"] if field != "label"]
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "dev", "test"):
        rows = [
            [f"{field} {part} {label} {i}" for field in fields] + [str(label)]
            for label in spec["label_words"]
            for i in range(part_rows(part, label))
        ]
        lines = ["\t".join(row) for row in [[*fields, "label"], *rows]]
        if rows:
            (folder / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def full_data(folder: Path, name: str = "mr", train: int = 40, test: int = 5) -> Path:
    """A full data set: train and test, no dev."""
    return write_data(folder, name, lambda part, label: {"train": train, "dev": 0, "test": test}[part])


def rendered(task: Task, family: str) -> str:
    names = list(task.examples("train")[0].fields)
    fields = {"text": "S"} if names == ["text"] else dict(zip(names, ("S1", "S2"), strict=True))
    return task.template(family).render(fields, "P", "<mask>")


def all_names() -> list[str]:
    """Those with label words; the others are in test_generation.py."""
    bases = [name for name in public_names() if "label_words" in public_spec(name)]
    return [n for base in bases for n in (base, *(f"{base}@{v}" for v in public_spec(base)["variants"]))]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    root = tmp_path_factory.mktemp("public")
    return {name: load_task(name, data=write_data(root / name, name)) for name in all_names()}


def test_templates_are_those_of_the_papers(tasks: dict[str, Task]) -> None:
    for family, golden in {"masked": MASKED, "causal": CAUSAL, "encoder-decoder": ENCODER_DECODER}.items():
        assert {name for name, task in tasks.items() if family in task.templates} == set(golden)
        for name, paper in golden.items():
            # The mask takes up the space before it; where it has none, label words have none either.
            ours = re.sub(r"(?<=\S)<mask>", " <mask>", rendered(tasks[name], family))
            assert ours == paper, (name, family)


def test_label_words_metrics_and_manual_prompts(tasks: dict[str, Task]) -> None:
    assert {name: " ".join(tasks[name].label_words) for name in WORDS} == WORDS
    assert {name for name, task in tasks.items() if task.metric == "f1"} == {"mrpc", "mrpc@bbt"}
    for name in MASKED:
        mask = next(piece for piece in tasks[name].template("masked").pieces if piece.kind == "mask")
        assert (mask.space == "") == (name in UNSPACED or name.endswith("@bbt")), name
    manual = {name: task.manual_prompt for name, task in tasks.items() if "@" not in name}
    assert manual == {
        **dict.fromkeys(("sst-2", "sst-5", "mr", "cr", "yelp-2", "yelp-5"), "It was"),
        "subj": "This is", "agnews": "News:", "yahoo": "Topic", "dbpedia": "Category:", "trec": ":",
        **dict.fromkeys(("mrpc", "snli", "rte"), None),
    }  # fmt: skip
    assert rendered(tasks["agnews"], "masked").replace("P", "News:") == "<mask> News: S"


def test_every_key_of_a_public_task_is_read() -> None:
    judged = {"kind", "extractor", "max_tokens", "stop", "shots"}
    for name in public_names():
        spec = public_spec(name)
        generates = "label_words" not in spec
        settings = {"template", "manual_prompt", "hub"} | (judged if generates else {"label_words"})
        assert settings | {"description", "metric", "columns"} <= set(spec)
        assert set(spec) <= settings | {
            "description", "metric", "columns", "labels", "no_label", "replace", "variants",
        }  # fmt: skip
        assert {"path", "train", "test"} <= set(spec["hub"]) <= {"path", "train", "test", "config"}
        for changes in spec["variants"].values():
            assert set(changes) <= settings


def test_encoder_decoder_templates(tasks: dict[str, Task]) -> None:
    assert tasks["mr"].template("encoder-decoder") == tasks["mr"].template("masked")
    assert tasks["sst-2@bbt-t5"].template("encoder-decoder").source.startswith("text:")
    with pytest.raises(InputError, match="has no template for encoder-decoder LMs"):
        tasks["sst-2@bbt-gpt2"].template("encoder-decoder")
    with pytest.raises(InputError, match=r"template.encoder-decoder: .* has 0 \{mask\}; it needs exactly one"):
        Task.from_examples(
            "x", template={"encoder-decoder": "{text} {prompt}"}, label_words={0: "bad", 1: "great"},
            train=[{"text": "a", "label": 0}], dev=[{"text": "b", "label": 0}], test=[{"text": "c", "label": 0}],
        )  # fmt: skip


def test_yes_and_no_must_be_quoted_in_yaml() -> None:
    rows = [{"text": "a", "label": 0}]
    with pytest.raises(InputError, match='label_words: YAML reads a plain yes, no, on or off as False; write "Yes"'):
        Task.from_examples(
            "x", template="{text} {prompt}", label_words={0: False, 1: True},  # type: ignore[dict-item]
            train=rows, dev=rows, test=rows,
        )  # fmt: skip


# The sampler.


def test_draws_are_stratified_disjoint_and_stable() -> None:
    texts = [f"text {i}" for i in range(300)]
    labels = [i % 3 for i in range(300)]
    train, dev = rayprompt.few_shot(texts, labels, 16, 13)
    for rows in (train, dev):
        assert Counter(labels[i] for i in rows) == {0: 16, 1: 16, 2: 16}
    assert not set(train) & set(dev)
    assert rayprompt.few_shot(texts, labels, 16, 13) == (train, dev)
    assert rayprompt.few_shot(texts, labels, 16, 21)[0] != train
    assert rayprompt.few_shot(texts, labels, 4, 13)[0] == [i for k in range(3) for i in train[16 * k : 16 * k + 4]]
    assert train[:4] == [33, 249, 114, 24]  # the same on every machine, for ever


def test_draws_do_not_depend_on_the_order_of_rows() -> None:
    rows = [(f"text {i}", i % 2) for i in range(100)]
    mixed = random.Random(0).sample(rows, len(rows))

    def drawn(rows: list[tuple[str, int]]) -> list[list[str]]:
        texts, labels = zip(*rows, strict=True)
        return [[texts[i] for i in part] for part in rayprompt.few_shot(texts, labels, 8, 1)]

    assert drawn(rows) == drawn(mixed)


def test_a_text_is_drawn_once_and_not_if_it_is_ambiguous_empty_or_to_be_avoided() -> None:
    texts = ["a", " a ", "b", "b", "", "c", "d", "e"]
    labels = [0, 0, 0, 1, 0, 0, 1, 1]
    train, dev = rayprompt.few_shot(texts, labels, 1, 5)
    assert {texts[i].strip() for i in train + dev} == {"a", "c", "d", "e"}
    with pytest.raises(InputError, match="class 0 has 1 texts to draw from; 1 per class for train and as many for dev"):
        rayprompt.few_shot(texts, labels, 1, 5, avoid=["c"])
    pairs = [(x, y) for x in "abcd" for y in "ef"]
    train, dev = rayprompt.few_shot(pairs, [y for _, y in pairs], 2, 5)
    assert (len(train), len(dev)) == (4, 4)


@pytest.mark.parametrize("per_class", [0, -1])
def test_draws_of_nothing_are_refused(per_class: int) -> None:
    with pytest.raises(InputError, match="must be 1 or more"):
        rayprompt.few_shot(["a", "b"], [0, 1], per_class)
    with pytest.raises(InputError, match="2 texts and 1 labels"):
        rayprompt.few_shot(["a", "b"], [0])


# Data from folders.


def test_full_data_gives_five_splits_and_any_other(tmp_path: Path) -> None:
    folder = full_data(tmp_path / "mr")
    task = load_task("mr", data=folder)
    assert tuple(task.splits) == SPLITS
    assert {part: len(rows) for part, rows in task.parts("16-42").items()} == {"train": 32, "dev": 32, "test": 10}
    assert task.leaks() == {}
    assert task.parts("16-13")["test"] is task.parts("16-21")["test"]
    assert load_task("mr", data=folder, split="16-21").digest == task.digest
    other = load_task("mr", data=folder, split="8-3")
    assert {split: len(parts["train"]) for split, parts in other.splits.items()} == {"8-3": 16}
    with pytest.raises(InputError, match="unknown split 'all'"):
        rayprompt.Problem("mr", split="all", data=folder)
    with pytest.raises(InputError, match="split 30-1: class '0' has 40 texts to draw from.* a K of 20 or less fits"):
        load_task("mr", data=folder, split="30-1")


def test_train_texts_of_test_are_not_drawn(tmp_path: Path) -> None:
    folder = full_data(tmp_path / "mr", train=33)
    text = (folder / "train.tsv").read_text().splitlines()[1]
    with (folder / "test.tsv").open("a") as file:
        file.write(text + "\n")
    task = load_task("mr", data=folder)
    assert task.leaks() == {}
    assert len(task.examples("test")) == 11


def test_split_folders_and_top(tmp_path: Path) -> None:
    write_data(tmp_path / "16-100", "agnews")
    write_data(tmp_path / "16-13", "agnews")
    (tmp_path / "16-13" / "test.tsv").rename(tmp_path / "test.tsv")
    (tmp_path / "other").mkdir()
    task = load_task("agnews@bbt", data=tmp_path)
    assert list(task.splits) == ["16-13", "16-100"]
    assert task.name == "agnews@bbt"
    (tmp_path / "16-100" / "dev.tsv").rename(tmp_path / "dev.tsv")
    with pytest.raises(InputError, match="holds no dev table .dev.tsv, .csv"):
        load_task("agnews", data=tmp_path)


def test_other_columns_labels_and_line_breaks(tmp_path: Path) -> None:
    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for part, file in {"train": "train", "dev": "validation", "test": "test"}.items():
            lines = [json.dumps({k: f"{v} {part}" if "sentence" in k else v for k, v in row.items()}) for row in rows]
            (folder / f"{file}.jsonl").write_text("\n".join(lines))
        return folder

    names = ["entailment", "contradiction", "-", "neutral"]
    snli = write("snli", [{"sentence1": f"a {n}", "sentence2": "b", "gold_label": n} for n in names])
    assert load_task("snli", data=snli).gold("test").tolist() == [0, 2, 1]
    subj = write("subj", [{"text": n, "label": i, "label_text": n} for i, n in enumerate(["objective", "subjective"])])
    assert load_task("subj", data=subj).gold("test").tolist() == [1, 0]
    yelp = write("yelp", [{"text": r"Bad.\nAwful.", "label": 0}])
    assert load_task("yelp-2", data=yelp).examples("test")[0].fields == {"text": "Bad. Awful."}
    unlabelled = write("none", [{"premise": "a", "hypothesis": "b", "label": -1}])
    with pytest.raises(InputError, match=r"train.jsonl: no row has a label"):
        load_task("snli", data=unlabelled)


def test_the_folder_of_all_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_data(tmp_path / "mr")
    monkeypatch.setenv("RAYPROMPT_DATA", str(tmp_path))
    assert load_task("mr").data == str(tmp_path / "mr")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="--data DIR .RAYPROMPT_DATA=.* holds no folder sst-2."):
        load_task("sst-2@bbt")
    monkeypatch.setenv("RAYPROMPT_DATA", str(tmp_path / "none"))
    with pytest.raises(InputError, match="RAYPROMPT_DATA=.*none: no such folder"):
        load_task("mr")


def test_what_is_wrong_with_data_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = full_data(tmp_path / "all" / "mr")
    few = full_data(tmp_path / "few", train=20)
    column = full_data(tmp_path / "column")
    (column / "test.tsv").write_text("phrase\tlabel\nx\t1\n")
    label = full_data(tmp_path / "label")
    (label / "train.tsv").write_text("text\tlabel\nx\t1\ny\tgood\n")
    one_class = full_data(tmp_path / "one")
    (one_class / "train.tsv").write_text("text\tlabel\nx\t1\n")
    no_test = full_data(tmp_path / "no_test")
    (no_test / "test.tsv").unlink()
    no_train = full_data(tmp_path / "no_train")
    (no_train / "train.tsv").unlink()
    for data, message in {
        tmp_path / "all": f"it holds a folder mr: give --data {full}",
        full / "test.tsv": "is a file; a folder is wanted with the tables train and test of mr",
        few: "split 16-13: class '0' has 20 texts to draw from; 16 per class for train and as many for dev need 32",
        column: "test.tsv: no column 'sentence' or 'text' for 'text'; it has phrase, label",
        label: "train.tsv, example 2: label 'good' has no label word; known: 0, 1",
        one_class: "train.tsv: no example of class '0' to draw from",
        no_test: "holds no test table (test.tsv, .csv, .jsonl or .parquet)",
        no_train: "holds no train table, neither at the top (train.tsv, .csv, .jsonl or .parquet) nor in sub-folders",
    }.items():
        assert run(app, ["search", "mr", "--data", str(data)]) == 2
        check_one_line(capsys.readouterr().err, message)
    task = tmp_path / "task"
    task.mkdir()
    (task / "task.yaml").write_text(SHOTS)
    full_data(task)
    assert run(app, ["evaluate", str(task), "--data", str(full), "--prompt", "x"]) == 2
    check_one_line(capsys.readouterr().err, "is for the public tasks (agnews, ")


SHOTS = """\
name: mine
template: "{text} {prompt} {mask} ."
label_words: {0: terrible, 1: great}
splits: {train: train.tsv, test: test.tsv}
shots: {per_class: 4, seeds: [1, 2]}
"""


def test_a_folder_of_ones_own_may_draw_splits(tmp_path: Path) -> None:
    full_data(tmp_path)
    (tmp_path / "task.yaml").write_text(SHOTS)
    task = load_task(tmp_path)
    assert {split: {p: len(rows) for p, rows in parts.items()} for split, parts in task.splits.items()} == {
        split: {"train": 8, "dev": 8, "test": 10} for split in ("4-1", "4-2")
    }
    assert list(load_task(tmp_path, split="3-9").splits) == ["3-9"]
    assert rayprompt.Problem(tmp_path, split="3-9").split == "3-9"
    for old, new, message in [
        ("seeds: [1, 2]", "seed: 1", "shots must be like"),
        ("per_class: 4", "per_class: many", "shots must be whole numbers"),
        ("per_class: 4", "per_class: 0", "shots must be whole numbers, per_class 1 or more"),
        ("splits: {", "splits: {dev: dev.tsv, ", "dev is drawn from train"),
        ("train.tsv", "trane.tsv", "no such file: .*trane.tsv"),
        ("per_class: 4", "per_class: 24", "split 24-1: class '0' has 40 texts to draw from"),
    ]:
        (tmp_path / "task.yaml").write_text(SHOTS.replace(old, new))
        with pytest.raises(InputError, match=message):
            load_task(tmp_path)


@pytest.mark.parametrize("name", COUNTS)
def test_published_few_shot_data(shared: Path, name: str) -> None:
    task = load_task(name, data=shared / "data" / "few-shot" / name)
    few, test = COUNTS[name]
    assert tuple(task.splits) == SPLITS
    for parts in task.splits.values():
        assert {part: len(rows) for part, rows in parts.items()} == {"train": few, "dev": few, "test": test}
        assert set(Counter(e.label for e in parts["train"]).values()) == {16}
    leaks = {"trec": {"16-21": {("dev", "test"): 1}, "16-42": {("train", "test"): 1}}}
    assert task.leaks() == leaks.get(name, {})


# Data from the hub, here a repository in a local folder.


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set's repository, which the public task 'mine' names as its own; labels -1 are none."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "repository"
    folder.mkdir()
    for part, n in {"train": 80, "validation": 10}.items():
        rows = [{"idx": i, "sentence": f"text {part} {i}", "label": i % 2} for i in range(n)]
        rows.append({"idx": n, "sentence": "nobody knows", "label": -1})
        (folder / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "mine.yaml").write_text(
        'description: mine\ntemplate: {masked: "{text} {prompt} {mask} ."}\nlabel_words: {0: terrible, 1: great}\n'
        "manual_prompt: it was\ncolumns: {text: [text, sentence], label: label}\nno_label: ['-1']\n"
        f"hub: {{path: {folder}, train: train, test: validation}}\n"
        "variants: {other: {label_words: {0: bad, 1: good}}}\n"
    )
    monkeypatch.setattr(public, "PUBLIC", tmp_path / "public")
    monkeypatch.delenv("RAYPROMPT_DATA", raising=False)
    return folder


def test_a_data_set_of_the_hub(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task("mine@other")
    assert tuple(task.splits) == SPLITS
    assert {part: len(rows) for part, rows in task.parts().items()} == {"train": 32, "dev": 32, "test": 10}
    assert task.label_words == ("bad", "good")
    assert task.data == f"hf://datasets/{repository}"
    # What a study records loads the same task again, whatever the environment says by then.
    full_data(tmp_path / "root" / "mine", "mine")
    monkeypatch.setenv("RAYPROMPT_DATA", str(tmp_path / "root"))
    assert load_task("mine@other").digest != task.digest
    assert load_task("mine@other", data=task.data).digest == task.digest


def test_hub_errors_are_one_line(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = public.PUBLIC / "mine.yaml"
    for old, new, message in [
        ("[text, sentence]", "[phrase]", ", train: no column 'phrase' for 'text'; it has idx, sentence, label"),
        ("test: validation", "test: test", "is not to be had from the Hugging Face hub (Unknown split"),
        (str(repository), "nobody/no-such-data", "the data set nobody/no-such-data is not to be had"),
        ("no_label: ['-1']", "", "train, example 81: label '-1' has no label word"),
    ]:
        text = spec.read_text()
        spec.write_text(text.replace(old, new))
        assert run(app, ["search", "mine"]) == 2
        check_one_line(capsys.readouterr().err, message)
        spec.write_text(text)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert run(app, ["search", "mine"]) == 2
    error = capsys.readouterr().err
    check_one_line(error, "'datasets', which is not installed: pip install 'rayprompt[datasets]', or give the data as")
    assert error.endswith("as a folder: --data DIR\n")


# What a study records.


def test_a_study_of_a_public_task_can_be_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_data(tmp_path / "mr")
    monkeypatch.chdir(tmp_path)
    problem = rayprompt.Problem("mr", "tiny-masked", split="8-3", data="mr")
    record = {
        "task": {
            "name": "mr", "location": task_location(problem.task), "data": problem.task.data, "split": problem.split,
        },
        "model": {"location": "tiny-masked", "name": "tiny-masked"},
        "searcher": {"subspace": None},
        "allow_leaks": False,
    }  # fmt: skip
    assert record["task"] == {"name": "mr", "location": "mr", "data": str(tmp_path / "mr"), "split": "8-3"}
    monkeypatch.chdir("/")
    again = _recorded_problem(record, tmp_path, None)
    assert (again.task.digest, again.split) == (problem.task.digest, "8-3")
    with pytest.raises(InputError, match="has its model and split, and its data; give data='mr' to Problem"):
        rayprompt.search(again, data="mr")


# rayprompt list task.


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    assert run(app, ["list", *arguments, "--json"]) == 0
    out = capsys.readouterr().out
    content = json.loads(out.splitlines()[-1])
    Draft202012Validator(json.loads((SCHEMAS / "list-1.json").read_text())).validate(content)
    return content, out


def test_public_tasks_are_listed_without_their_data(capsys: pytest.CaptureFixture[str]) -> None:
    content, out = listed(capsys, "tasks")
    assert {row["name"] for row in content["tasks"]} == {"reviews", *public_names()}
    assert "sst-2@bbt" in out


def test_list_task_finds_a_dev_that_is_a_copy_of_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_data(tmp_path / "subj", "subj", lambda part, label: 4)
    (folder / "dev.tsv").write_text((folder / "train.tsv").read_text())
    lines = (folder / "test.tsv").read_text().splitlines()
    (folder / "test.tsv").write_text("\n".join([*lines, lines[1], "\t1"]) + "\n")
    content, out = listed(capsys, "task", "subj", "--data", str(folder))
    (split,) = content["task"]["splits"]
    assert split["shared"] == {"train/dev": 8, "train/test": 0, "dev/test": 0}
    assert split["parts"]["train"] == {
        "examples": 8, "classes": {"0": 4, "1": 4}, "words": {"mean": 4.0, "max": 4}, "repeated": 0, "empty": 0,
    }  # fmt: skip
    assert (split["parts"]["test"]["repeated"], split["parts"]["test"]["empty"]) == (1, 1)
    for line in split["warnings"]:
        assert f"  warning: {line}\n" in out
    assert [line.split(":")[0] for line in split["warnings"]] == ["dev is a copy of train", "test", "test"]


def test_list_task_counts_tokens_and_what_is_truncated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_data(tmp_path / "mr", "mr")
    with (folder / "test.tsv").open("a") as file:
        file.write("it was good " * 100 + "\t1\n")
    content, out = listed(capsys, "task", "mr", "--data", str(folder), "--model", "tiny-masked")
    parts = content["task"]["splits"][0]["parts"]
    assert [parts[part]["truncated"] for part in ("train", "dev", "test")] == [0, 0, 1]
    assert parts["test"]["tokens"]["max"] > 300
    assert "1 truncated" in out


def test_the_page_on_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/tasks.md: its task.yaml files are tasks, its code runs, its options are there."""
    page = (REPOSITORY / "docs" / "tasks.md").read_text()
    plain, shots = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    write_data(tmp_path / "a", "mr")
    (tmp_path / "a" / "task.yaml").write_text(plain)
    assert load_task(tmp_path / "a").manual_prompt == "It was"
    (full_data(tmp_path / "b") / "train.tsv").rename(tmp_path / "b" / "full.tsv")
    (tmp_path / "b" / "task.yaml").write_text(shots)
    assert list(load_task(tmp_path / "b").splits) == ["16-13", "16-21"]
    space: dict[str, Any] = {}
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(code, space)
    assert len(space["train"]) == len(space["dev"]) == 32
    for command in ("search", "list"):
        assert run(app, [command, "--help"]) == 0
        text = capsys.readouterr().out
        for line in re.findall(rf"rayprompt {command} .*", page):
            for option in re.findall(r"--[a-z]+", line.split("#")[0]):
                assert option in text, line
    assert {name for name in public_names() if f"`{name}`" not in page} == set()


def test_leaks_are_found_whatever_the_order_of_the_parts() -> None:
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    task = Task.from_examples(
        "x", template="{text} {prompt} {mask}", label_words={0: "terrible", 1: "great"}, train=rows, dev=rows, test=rows
    )
    mixed = Task(**{**vars(task), "splits": {"s": {part: task.examples(part) for part in ("test", "dev", "train")}}})
    assert set(mixed.leaks()["s"]) == {("train", "dev"), ("train", "test"), ("dev", "test")}
    with pytest.raises(InputError, match="2 texts of train stand in test too"):
        rayprompt.Problem(mixed)
