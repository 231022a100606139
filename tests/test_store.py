"""The score store: what is written is read back, by anybody; broken files are named and lose nothing but themselves."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY
from pyarrow import fs as pafs

from rayprompt.candidate import TextPrompt
from rayprompt.errors import InputError, StoreError
from rayprompt.pairs import Answers, PairTable
from rayprompt.store.compact import compact
from rayprompt.store.files import Folder
from rayprompt.store.schema import CANDIDATES, SCORES, Context, ShardName
from rayprompt.store.store import ScoreStore
from rayprompt.store.writer import ShardWriter

EXAMPLES = [f"example{i}" for i in range(5)]
CONTEXT = Context({"lm": "abc", "template": "{text} {prompt}"})
Pair = tuple[str, str]


def writer_of(store: ScoreStore, search: str = "study_one", part: str = "train", **changes: Any) -> ShardWriter:
    settings = {"context": CONTEXT, "part": part, "split": "default", "examples": EXAMPLES, **changes}
    return ShardWriter(store, search, **settings)


def add(writer: ShardWriter, seed: int, keys: list[str], generation: int = 0) -> dict[Pair, list[float]]:
    """Random scores of every (key, example); gives them as a plain dict."""
    rng = np.random.default_rng(seed)
    candidate, example = np.repeat(np.arange(len(keys)), 5), np.tile(np.arange(5), len(keys))
    log_probs = rng.normal(size=(len(candidate), 2)).astype(np.float32)
    tokens, seconds = rng.integers(5, 30, len(candidate)).astype(np.int32), rng.random(len(candidate))
    writer.add(keys, candidate, example, rng.integers(0, 2, len(candidate)), Answers(log_probs, tokens, seconds))
    if generation:
        writer.add_asks(generation, [TextPrompt(key, (7,)) for key in keys])
    return {(keys[c], EXAMPLES[e]): row.tolist() for c, e, row in zip(candidate, example, log_probs, strict=True)}


def plain(store: ScoreStore, **which: Any) -> dict[Pair, list[float]]:
    rows = store.pairs(**which).to_pylist()
    found = {(r["candidate"], r["example"]): r["label_log_probs"] for r in rows}
    assert len(found) == len(rows), "a pair stands twice"
    return found


def loaded(store: ScoreStore, search: str = "study_one") -> dict[Pair, list[float]]:
    table = PairTable(EXAMPLES, 2)
    store.load(table, CONTEXT.key, "train", search)
    return {
        (key, EXAMPLES[e]): table.log_probs[row, e].tolist()
        for key, row in table.rows.items()
        for e in np.flatnonzero(table.known[row])
    }


@pytest.fixture
def store(tmp_path: Path) -> ScoreStore:
    store = ScoreStore(tmp_path / "store")
    store.prepare()
    return store


def test_what_is_written_is_read_back(store: ScoreStore) -> None:
    writer = writer_of(store)
    wanted = add(writer, 0, ["a", "b"])
    writer.flush()
    wanted |= add(writer, 1, ["c"])
    writer.flush()
    assert plain(store) == wanted == loaded(store)
    spent = ScoreStore(store.folder.path).load(PairTable(EXAMPLES, 2), CONTEXT.key, "train", "study_one")
    assert spent.lm_evaluations == 15
    assert spent.tokens == int(pd.DataFrame(store.pairs().to_pydict())["tokens"].sum())


def test_only_train_is_read_unless_something_else_is_asked(store: ScoreStore) -> None:
    train, test = writer_of(store), writer_of(store, part="test")
    wanted, sealed = add(train, 0, ["a"]), add(test, 1, ["a"])
    train.flush(), test.flush()
    assert plain(store) == loaded(store) == wanted
    assert plain(store, part="test") == sealed
    assert {row["part"] for row in store.pairs(part="test").to_pylist()} == {"test"}


def test_contexts_are_kept_apart(store: ScoreStore) -> None:
    other = Context({**CONTEXT.content, "lm": "another"})
    one, two = writer_of(store), writer_of(store, context=other)
    wanted, _ = add(one, 0, ["a"]), add(two, 1, ["a"])
    one.flush(), two.flush()
    assert loaded(store) == wanted
    assert plain(store, context=CONTEXT.key) == wanted


def test_every_search_sees_what_the_others_stored_and_its_own_first(store: ScoreStore) -> None:
    other, own = writer_of(store, "study_other"), writer_of(store)
    theirs, ours = add(other, 0, ["a", "b"]), add(own, 1, ["a"])
    other.flush(), own.flush()
    assert loaded(store) == {**theirs, **ours}
    assert loaded(store, "study_other") == {**ours, **theirs}
    assert plain(store) == {**ours, **theirs}  # the first that was stored
    assert plain(store, search="study_one") == ours


def test_partial_rows(store: ScoreStore) -> None:
    writer = writer_of(store)
    writer.add(
        ["a"],
        np.zeros(2, int),
        np.array([4, 1]),
        np.ones(2),
        Answers(np.ones((2, 2), np.float32), np.ones(2, int), np.ones(2)),
    )
    writer.flush()
    assert set(loaded(store)) == {("a", "example1"), ("a", "example4")}


def test_a_pair_table_remembers_what_was_asked(store: ScoreStore) -> None:
    rng = np.random.default_rng(0)
    table = PairTable(EXAMPLES, 2)
    rows = table.index(f"key{i}" for i in range(300))
    table.asked[rows] = rng.random((300, 5)) < 0.8
    again = PairTable(EXAMPLES, 2)
    again.index(["something else", "key7"])
    again.asked[:] = True
    again.restore_asked(table.asked_state())
    for i in range(300):
        assert (again.asked[again.index([f"key{i}"])[0]] == table.asked[rows[i]]).all()
    assert not again.asked[again.index(["something else"])].any()
    with pytest.raises(InputError, match="stands twice"):
        PairTable(["x", "x"], 2)


def test_others_read_it_without_our_code(store: ScoreStore) -> None:
    import duckdb

    writer = writer_of(store)
    prompts = {prompt.key: prompt for prompt in (TextPrompt("it was"), TextPrompt("so", (7, 8)))}
    wanted = add(writer, 0, list(prompts))
    writer.add_asks(1, list(prompts.values()))
    writer.flush()
    scores, candidates = (f"{store.folder.path}/{kind}/*.parquet" for kind in ("scores", "candidates"))
    rows = duckdb.sql(
        f"SELECT s.candidate, c.text, s.example, s.label_log_probs FROM '{scores}' s "
        f"JOIN '{candidates}' c ON s.candidate = c.candidate WHERE s.part = 'train'"
    ).fetchall()
    assert {(key, example): values for key, _, example, values in rows} == wanted
    assert {key: text for key, text, _, _ in rows} == {key: prompt.text for key, prompt in prompts.items()}
    frame = pd.concat(pd.read_parquet(path) for path in Path(store.folder.path, "scores").iterdir())
    assert {(r.candidate, r.example): list(r.label_log_probs) for r in frame.itertuples()} == wanted
    metadata = pq.read_schema(next(Path(store.folder.path, "scores").iterdir())).metadata
    assert metadata[b"rayprompt.schema"] == b"rayprompt.scores/3"
    assert json.loads(metadata[b"rayprompt.context"]) == dict(CONTEXT.content)


def test_what_the_documentation_says_for_others_works(store: ScoreStore) -> None:
    import duckdb

    writer = writer_of(store)
    prompts = [TextPrompt("it was"), TextPrompt("so")]
    keys = [prompt.key for prompt in prompts]
    pair = np.repeat([0, 1], 5), np.tile(np.arange(5), 2)
    value = np.array([1, 0, 0, 0, 0, 1, 1, 1, 1, 0])
    for _ in range(2):  # as if two searches had had the same pairs scored
        writer.add(keys, *pair, value, Answers(np.zeros((10, 2), np.float32), np.ones(10, int), np.ones(10)))
        writer.add_asks(1, prompts)
        writer.flush()
    text = (REPOSITORY / "docs" / "store.md").read_text().replace("DIR/", f"{store.folder.path}/")
    sql, python = (re.findall(rf"```{language}\n(.*?)```", text, re.S)[0] for language in ("sql", "python"))
    assert duckdb.sql(sql).fetchall() == [("so", 0.8, 5), ("it was", 0.2, 5)]
    names: dict[str, Any] = {}
    exec(python, names)
    assert len(names["frame"]) == len(names["table"]) == 20
    documented = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, re.M)
    described = {name for cell in documented for name in re.findall(r"\w+", cell)}
    assert described == {field.name for table in (SCORES, CANDIDATES) for field in table}


def test_asks_are_read_back_in_order(store: ScoreStore) -> None:
    writer = writer_of(store)
    for generation, key in ((1, "a"), (2, "b"), (3, "c")):
        add(writer, generation, [key, key + "'"], generation)
        writer.flush()
    asks = list(ScoreStore(store.folder.path).asks("study_one", after=1))
    assert [(g, [c.to_json()["text"] for c in candidates]) for g, candidates in asks] == [
        (2, ["b", "b'"]),
        (3, ["c", "c'"]),
    ]
    assert store.last_generation("study_one") == 3
    assert store.last_generation("nobody") == 0


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_file_that_is_cut_is_named_and_skipped(store: ScoreStore, keep: float) -> None:
    writer = writer_of(store)
    wanted = add(writer, 0, ["a"])
    writer.flush()
    add(writer, 1, ["b"])
    writer.flush()
    victim = sorted(Path(store.folder.path, "scores").iterdir())[1]
    content = victim.read_bytes()
    victim.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    fresh = ScoreStore(store.folder.path)
    assert plain(fresh) == loaded(fresh) == wanted
    assert list(fresh.broken) == [str(victim)]
    assert "cut, or still being written" in fresh.broken[str(victim)]
    compact(fresh, 0.0)
    assert plain(ScoreStore(store.folder.path)) == wanted
    victim.write_bytes(content)  # it was still being written
    assert len(plain(fresh)) == 10
    assert fresh.broken == {}


def test_a_file_whose_inside_is_damaged_is_named_and_skipped(store: ScoreStore) -> None:
    writer = writer_of(store)
    add(writer, 0, [f"key{i}" for i in range(500)])
    writer.flush()
    (victim,) = Path(store.folder.path, "scores").iterdir()
    content = bytearray(victim.read_bytes())
    content[100:2000] = os.urandom(1900)
    victim.write_bytes(content)
    assert plain(store) == {}
    assert "its content cannot be read" in store.broken[str(victim)]


def test_files_of_others_are_named_and_skipped(store: ScoreStore) -> None:
    writer = writer_of(store)
    wanted = add(writer, 0, ["a"])
    writer.flush()
    folder = Path(store.folder.path, "scores")
    pq.write_table(pa.table({"x": [1]}), folder / "mine.parquet")
    pq.write_table(pa.table({"x": [1]}), folder / str(ShardName("s", "train", CONTEXT.key, "0", 1)))
    (folder / "notes.txt").write_text("something else")
    assert plain(store) == wanted
    assert sorted(Path(f).name for f in store.broken) == [
        "mine.parquet",
        str(ShardName("s", "train", CONTEXT.key, "0", 1)),
    ]


def without_checksum(path: Path) -> Path:
    """The name that earlier versions gave the file, which is taken away."""
    path.unlink()
    return path.with_name(str(dataclasses.replace(ShardName.parse(path.name), checksum="")))  # type: ignore[type-var]


def test_files_of_the_version_before_are_read(store: ScoreStore) -> None:
    writer = writer_of(store)
    wanted = add(writer, 0, ["a"])
    writer.flush()
    (path,) = Path(store.folder.path, "scores").iterdir()
    table = pq.read_table(path)
    metadata = {**table.schema.metadata, b"rayprompt.schema": b"rayprompt.scores/1"}
    old = table.drop_columns(["completion", "written", "judge"]).replace_schema_metadata(metadata)
    pq.write_table(old, without_checksum(path))
    assert loaded(ScoreStore(store.folder.path)) == wanted
    assert ScoreStore(store.folder.path).pairs()["completion"].null_count == 5


def test_another_version_is_refused(store: ScoreStore) -> None:
    writer = writer_of(store)
    add(writer, 0, ["a"])
    writer.flush()
    (path,) = Path(store.folder.path, "scores").iterdir()
    table = pq.read_table(path)
    changed = table.replace_schema_metadata({b"rayprompt.schema": b"rayprompt.scores/9"})
    pq.write_table(changed, without_checksum(path))
    with pytest.raises(InputError, match="schema rayprompt.scores/9, written by another version.*this one reads"):
        ScoreStore(store.folder.path).pairs()
    Path(store.folder.path, "store.json").write_text('{"schema": "rayprompt.store/9"}')
    with pytest.raises(InputError, match="schema rayprompt.store/9; this version reads rayprompt.store/1"):
        ScoreStore(store.folder.path).prepare()
    Path(store.folder.path, "store.json").write_text('{"sche')  # cut while it was written
    ScoreStore(store.folder.path).prepare()


def many(store: ScoreStore, files: int = 12) -> dict[Pair, list[float]]:
    wanted: dict[Pair, list[float]] = {}
    for search in ("study_one", "study_two"):
        writer = writer_of(store, search)
        for i in range(files):
            wanted |= add(writer, hash(search) % 1000 + i, [f"{search}{i}"], generation=i + 1)
            writer.flush()
    return wanted


def test_compaction_keeps_everything_in_few_files(store: ScoreStore) -> None:
    wanted = many(store)
    done = compact(store, 0.0)
    assert (done.before, done.after, done.rows) == (48, 4, 12 * 2 * 5 + 24)
    assert {kind: len(store.folder.child(kind).names()) for kind in ("scores", "candidates")} == {
        "scores": 2,
        "candidates": 2,
    }
    fresh = ScoreStore(store.folder.path)
    assert plain(fresh) == loaded(fresh) == wanted
    assert [g for g, _ in fresh.asks("study_two")] == list(range(1, 13))
    assert fresh.load(PairTable(EXAMPLES, 2), CONTEXT.key, "train", "study_two").lm_evaluations == 60
    again = compact(ScoreStore(store.folder.path), 0.0)
    assert (again.before, again.after, again.rows) == (4, 4, 0)


@pytest.mark.parametrize("deleted", [0, 1, 7])
def test_a_compaction_that_dies_loses_and_doubles_nothing(
    store: ScoreStore, deleted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = many(store)
    count = 0

    def remove(self: Folder, name: str) -> None:
        nonlocal count
        count += 1
        if count > deleted:
            raise KeyboardInterrupt  # as good as a kill

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "remove", remove)
        with pytest.raises(KeyboardInterrupt):
            compact(store, 0.0)
    fresh = ScoreStore(store.folder.path)
    assert plain(fresh) == loaded(fresh) == wanted
    assert fresh.load(PairTable(EXAMPLES, 2), CONTEXT.key, "train", "study_one").lm_evaluations == 60
    compact(fresh, 0.0)
    assert plain(ScoreStore(store.folder.path)) == wanted
    assert len(store.folder.child("scores").names()) == 2


def test_readers_go_on_while_a_compaction_takes_files_away(store: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are listed, then joined by somebody else, then opened."""
    wanted = many(store)
    for read in (plain, loaded, lambda s: [len(cs) for _, cs in s.asks("study_one")]):
        quiet = read(ScoreStore(store.folder.path))
        reader = ScoreStore(store.folder.path)
        names, fired = Folder.names, []

        def listed(self: Folder, names: Any = names, fired: list[int] = fired) -> list[str]:
            found: list[str] = names(self)
            if not fired:
                fired.append(1)
                writer = writer_of(ScoreStore(store.folder.path), "study_one")
                add(writer, 7, ["study_one7"])
                writer.flush()
                compact(ScoreStore(store.folder.path), 0.0)
            return found

        with monkeypatch.context() as patched:
            patched.setattr(Folder, "names", listed)
            assert read(reader) == quiet
        assert reader.broken == {}
    assert set(plain(store)) == set(wanted)


def test_a_compaction_leaves_searches_that_are_at_work_alone(store: ScoreStore) -> None:
    wanted = many(store, files=3)
    for path in Path(store.folder.path).glob("*/study_one.*"):
        os.utime(path, (0, 0))
    done = compact(store)
    assert (done.before, done.after) == (12, 8)
    assert len([n for n in store.folder.child("scores").names() if n.startswith("study_two.")]) == 3
    assert plain(store) == wanted


def test_two_compactions_at_once_double_nothing_for_readers(store: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = many(store)
    with monkeypatch.context() as patched:
        patched.setattr(Folder, "remove", lambda self, name: None)
        first, second = ScoreStore(store.folder.path), ScoreStore(store.folder.path)
        listed = second.shards("scores"), second.shards("candidates")
        compact(first, 0.0)
        patched.setattr(second, "shards", lambda kind, **which: listed[kind == "candidates"])
        compact(second, 0.0)
    fresh = ScoreStore(store.folder.path)
    assert plain(fresh) == wanted
    assert fresh.load(PairTable(EXAMPLES, 2), CONTEXT.key, "train", "study_one").lm_evaluations == 60
    assert [len(cs) for _, cs in fresh.asks("study_one")] == [1] * 12


def test_what_was_first_stays_first_after_a_compaction(store: ScoreStore) -> None:
    old, young = writer_of(store, "study_old"), writer_of(store, "study_young")
    first = add(old, 0, ["a"])
    old.flush()
    add(young, 1, ["a"])
    young.flush()
    add(old, 2, ["b"])
    old.close()  # joins the two files of the older search: the new one is the youngest on the disk
    assert {pair: row for pair, row in plain(store).items() if pair[0] == "a"} == first


def test_a_file_that_may_not_be_read_is_not_a_broken_one(store: ScoreStore) -> None:
    writer = writer_of(store)
    add(writer, 0, ["a"])
    writer.flush()

    class Refusing(OneWay):
        def open_input_file(self, path: str) -> Any:
            raise PermissionError(13, "Permission denied")

    handler = Refusing(Path(store.folder.path))
    store.folder = Folder(pafs.PyFileSystem(handler), store.folder.path, store.folder.shown)
    with pytest.raises(StoreError, match=r"cannot be read \(Permission denied\)"):
        store.pairs()


def test_a_split_may_be_asked_for(store: ScoreStore) -> None:
    one, two = writer_of(store), writer_of(store, split="16-21")
    wanted, _ = add(one, 0, ["a"]), add(two, 1, ["b"])
    one.flush(), two.flush()
    assert plain(store, split="default") == wanted


def test_a_writer_makes_few_files_of_many_by_itself(store: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayprompt.store.writer.MOST_SHARDS", 3)
    writer = writer_of(store)
    wanted: dict[Pair, list[float]] = {}
    for i in range(10):
        wanted |= add(writer, i, [f"key{i}"], generation=i + 1)
        writer.flush()
        assert len(store.folder.child("scores").names()) <= 4
    writer.close()
    assert len(store.folder.child("scores").names()) == 1
    assert plain(store) == wanted
    assert store.last_generation("study_one") == 10


class OneWay(pafs.FileSystemHandler):
    """A filesystem as an object store is: no append, no rename, no file twice; it notes what was written."""

    def __init__(self, root: Path, room: int = 10**9) -> None:
        self.root = root
        self.room = room
        self.local = pafs.LocalFileSystem()
        self.written: set[str] = set()

    def get_type_name(self) -> str:
        return "one-way"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> Any:
        return self.local.get_file_info(paths)

    def get_file_info_selector(self, selector: Any) -> Any:
        return self.local.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self.local.create_dir(path, recursive=recursive)

    def delete_file(self, path: str) -> None:
        self.local.delete_file(path)

    def open_input_stream(self, path: str) -> Any:
        return self.local.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        return self.local.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        assert path not in self.written, "written twice"
        self.written.add(path)
        if len(self.written) > self.room:
            raise OSError(28, "No space left on device")
        return self.local.open_output_stream(path)

    def refused(self, *args: Any) -> Any:
        raise NotImplementedError("not on an object store")

    open_append_stream = move = copy_file = delete_dir = delete_dir_contents = refused
    delete_root_dir_contents = refused


def one_way(store: ScoreStore, room: int = 10**9) -> ScoreStore:
    handler = OneWay(Path(store.folder.path), room)
    store.folder = Folder(pafs.PyFileSystem(handler), store.folder.path, store.folder.shown)
    return store


def test_files_are_written_once_and_never_renamed(store: ScoreStore) -> None:
    store = one_way(store)
    wanted = many(store)
    compact(store, 0.0)
    assert plain(store) == loaded(store) == wanted


def test_a_full_disk_is_one_line_and_what_was_written_stays(store: ScoreStore) -> None:
    store = one_way(store, room=1)
    writer = writer_of(store)
    wanted = add(writer, 0, ["a"])
    writer.flush()
    add(writer, 1, ["b"])
    with pytest.raises(StoreError, match=r"^/.*\.parquet: cannot be written \(No space left on device\)$"):
        writer.flush()
    assert plain(ScoreStore(store.folder.path)) == wanted


def test_a_background_write_that_fails_is_raised(store: ScoreStore) -> None:
    writer = writer_of(one_way(store, room=0))
    writer.flush_seconds = 0.0
    add(writer, 0, ["a"])
    writer.tick()
    assert writer.running is not None
    wait([writer.running])
    with pytest.raises(StoreError, match="No space left"):
        writer.tick()


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare (Linux)")
@pytest.mark.parametrize(
    ("options", "message"),
    [("size=512k", "No space left on device"), ("ro", "Read-only")],
)
@pytest.mark.slow  # quick: full disks by a filesystem that says so
def test_a_real_full_disk_and_a_real_read_only_directory(tmp_path: Path, options: str, message: str) -> None:
    """A small filesystem of its own, mounted in a namespace of its own."""
    script = tmp_path / "fill.py"
    script.write_text(
        "import sys\n"
        "from test_store import ScoreStore, add, writer_of\n"
        "from rayprompt.errors import RayPromptError\n"
        "try:\n"
        "    store = ScoreStore(sys.argv[1])\n"
        "    store.prepare()\n"
        "    writer = writer_of(store)\n"
        "    for i in range(100):\n"
        "        add(writer, i, [f'key{i}-{j}' for j in range(1000)])\n"
        "        writer.flush()\n"
        "except RayPromptError as error:\n"
        "    print(type(error).__name__, error)\n"
        "    print(len(ScoreStore(sys.argv[1]).pairs()) > 0, ScoreStore(sys.argv[1]).broken)\n"
    )
    (tmp_path / "disk").mkdir()
    command = f"mount -t tmpfs -o {options} tmpfs {tmp_path}/disk && {sys.executable} {script} {tmp_path}/disk"
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", command], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )  # fmt: skip
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"namespaces are not allowed here: {done.stderr.strip()[:80]}")
    said, state = done.stdout.splitlines()
    assert message in said
    assert said.startswith("StoreError" if options != "ro" else "InputError store")
    assert state == ("True {}" if options != "ro" else "False {}")


def test_where_a_store_can_be(tmp_path: Path) -> None:
    assert Folder.at(tmp_path).names() == []
    assert Folder.at(tmp_path / "no").names() == []
    assert Folder.at(f"file://{tmp_path}").path == str(tmp_path)
    for uri in ("nowhere://bucket/x?key=secret", "s3://%zz%secret%", "s3://AKIA:secret@bucket/x", "s3://AK:se/cret@b/x",
                "s3://user@bucket/x?a=secret"):  # fmt: skip
        with pytest.raises(InputError) as refused:
            Folder.at(uri)
        assert "secret" not in str(refused.value).replace("%secret%", "")
        assert "cret@" not in str(refused.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"store {tmp_path}/file: cannot be read .Not a directory"):
        ScoreStore(tmp_path / "file").prepare()


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "one.json")
    folder = Folder.at(str(tmp_path))
    for read in (folder.read, folder.read_buffer, folder.open):
        with pytest.raises(OSError, match="pipe or device, not a file"):
            read("one.json")
