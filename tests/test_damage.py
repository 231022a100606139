"""Flipped bits in the files of stores and studies: the same result, or a line that names the file."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from killing import same

import rayprompt
from rayprompt.candidate import TextPrompt
from rayprompt.cli.main import app, run
from rayprompt.errors import DamagedError, InputError
from rayprompt.pairs import Answers
from rayprompt.report.read import read_study
from rayprompt.store.checksum import ChecksumError, open_json, open_yaml, seal_json, seal_yaml
from rayprompt.store.compact import compact
from rayprompt.store.files import Folder
from rayprompt.store.schema import Context, ShardName
from rayprompt.store.store import ScoreStore
from rayprompt.store.writer import ShardWriter
from rayprompt.study.manifest import read_manifest
from rayprompt.study.progress import Progress
from rayprompt.study.snapshots import Snapshots, freeze

EXAMPLES = [f"example{i}" for i in range(8)]


def flip(path: Path, rng: random.Random) -> str:
    """Turn one bit of a file over; says which."""
    content = bytearray(path.read_bytes())
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"{path.name}: bit {bit} of byte {place} of {len(content)}"


def rows(store: ScoreStore) -> tuple[list[Any], list[Any]]:
    """All pairs and all asks."""
    pairs = store.pairs()
    asks = [(g, [c.key for c in cs]) for g, cs in store.asks("one")]
    return pairs.select(["candidate", "example", "value", "label_log_probs", "tokens"]).to_pylist(), asks


@pytest.fixture
def store(tmp_path: Path) -> ScoreStore:
    """One file of 40 candidates' scores, one of their asks."""
    store = ScoreStore(tmp_path / "store")
    store.prepare()
    writer = ShardWriter(store, "one", Context({"lm": "x"}), part="train", split="default", examples=EXAMPLES)
    rng, prompts = np.random.default_rng(0), [TextPrompt(f"prompt {i}", (i, i + 1)) for i in range(40)]
    candidate, column = np.repeat(np.arange(40), 8), np.tile(np.arange(8), 40)
    scores = rng.normal(size=(320, 2)).astype(np.float32)
    answers = Answers(scores, rng.integers(9, 30, 320), rng.random(320))
    writer.add([p.key for p in prompts], candidate, column, (scores[:, 0] > 0).astype(np.float32), answers)
    for generation in range(4):
        writer.add_asks(generation + 1, prompts[generation * 10 : generation * 10 + 10])
    writer.close()
    return store


@pytest.mark.parametrize("kind", ["scores", "candidates"])
@pytest.mark.parametrize("flips", [20, pytest.param(400, marks=pytest.mark.slow)])
def test_a_flipped_bit_in_a_table_is_named_and_nothing_of_it_is_used(store: ScoreStore, kind: str, flips: int) -> None:
    folder = Path(store.folder.path)
    wanted, asked = rows(ScoreStore(folder))
    (victim,) = (folder / kind).iterdir()
    whole, rng = victim.read_bytes(), random.Random(flips)
    for _ in range(flips):
        victim.write_bytes(whole)
        where = flip(victim, rng)
        fresh = ScoreStore(folder)
        found = rows(fresh)
        assert found == (([], asked) if kind == "scores" else (wanted, [])), where
        assert list(fresh.broken) == [str(victim)], where
        assert ScoreStore(folder).check(kind) == [victim.name], where


def test_a_damaged_file_is_set_aside_and_the_others_can_be_joined_again(store: ScoreStore) -> None:
    folder = Path(store.folder.path)
    (victim,) = (folder / "scores").iterdir()
    flip(victim, random.Random(1))
    fresh = ScoreStore(folder)
    assert fresh.check("scores") == [victim.name]
    assert fresh.set_aside("scores", victim.name) == victim.name + ".damaged"
    assert [p.name for p in (folder / "scores").iterdir()] == [victim.name + ".damaged"]
    again = ScoreStore(folder)
    assert rows(again)[0] == []
    assert again.broken == {}
    assert compact(again, 0.0).before == 1  # the asks


def test_files_of_earlier_versions_have_no_checksum_and_are_read(store: ScoreStore) -> None:
    folder = Path(store.folder.path)
    wanted = rows(store)
    for path in [*(folder / "scores").iterdir(), *(folder / "candidates").iterdir()]:
        name = ShardName.parse(path.name)
        assert name is not None
        path.rename(path.with_name(path.name.replace(f".{name.checksum}.", ".")))
    assert rows(ScoreStore(folder)) == wanted
    assert ScoreStore(folder).check("scores") == []


@pytest.mark.parametrize(("seal", "opened", "parse"), [
    (seal_yaml, open_yaml, yaml.safe_load), (seal_json, open_json, json.loads),
])  # fmt: skip
def test_a_flipped_bit_in_a_text_is_found_unless_it_changes_nothing(
    seal: Callable[[str], str], opened: Callable[[bytes], str], parse: Callable[[str], Any]
) -> None:
    content = {"schema": "x/1", "budget": 640, "test_opened": [640], "versions": {"numpy": "2.3.1", "pyarrow": "26.0"}}
    text = yaml.safe_dump(content, sort_keys=False) if seal is seal_yaml else json.dumps(content)
    sealed = seal(text).encode()
    assert opened(sealed) == text
    assert opened(text.encode()) == text  # of an earlier version
    assert {name: parse(sealed.decode())[name] for name in content} == content  # others read it as it is
    for place in range(len(sealed)):
        for bit in range(8):
            damaged = bytearray(sealed)
            damaged[place] ^= 1 << bit
            with pytest.raises((ChecksumError, UnicodeDecodeError)):
                opened(bytes(damaged))


def test_a_flipped_bit_in_a_snapshot_leaves_the_one_before(tmp_path: Path) -> None:
    snapshots = Snapshots(Folder.at(tmp_path), "one")
    for generation in (1, 2):
        snapshots.write(generation, freeze({"generation": generation, "state": list(range(100))}))
    newest, rng = max(tmp_path.iterdir()), random.Random(0)
    whole = newest.read_bytes()
    for _ in range(20):
        newest.write_bytes(whole)
        where = flip(newest, rng)
        found = Snapshots(Folder.at(tmp_path), "one").newest()
        assert found is not None, where
        assert found["generation"] == 1, where
        assert snapshots.damaged() == [newest.name], where


# Studies.

BUDGET, MORE = 32 * 64, 48 * 64
SMALL: dict[str, Any] = {"searcher": "random", "seed": 2, "scorers": 1}


@pytest.fixture(scope="module")
def study(kept_pool: None, trials_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished one."""
    path = tmp_path_factory.mktemp("study") / "s"
    rayprompt.search(budget=BUDGET, out=path, **SMALL)
    return path


@pytest.fixture(scope="module")
def longer(study: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What it comes to with more budget."""
    path = tmp_path_factory.mktemp("longer") / "s"
    shutil.copytree(study, path)
    return rayprompt.resume(path, budget=MORE, scorers=1).to_json()


def files_of(study: Path) -> list[Path]:
    """Those that are read back."""
    found = [p for name in ("scores", "candidates", "snapshots", "runs") for p in sorted((study / name).iterdir())]
    return [*found, *(study / name for name in ("study.yaml", "result.json", "prompt.json", "store.json"))]


def test_verify_names_what_is_damaged(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["store", "verify", str(study), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (whole["damaged"], whole["without_checksum"], whole["set_aside"]) == ({}, 0, 0)
    assert whole["files"] == len(files_of(study)) - 1  # store.json says its version, and nothing else
    rng = random.Random(3)
    for victim in files_of(study)[:-1]:
        copy = tmp_path / victim.name
        shutil.copytree(study, copy)
        damaged = copy / victim.relative_to(study)
        flip(damaged, rng)
        assert run(app, ["store", "verify", str(copy), "--json"]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert f"damaged {damaged}: " in "\n".join(lines)
        assert list(json.loads(lines[-1])["damaged"]) == [str(damaged)]


@pytest.mark.parametrize("damage", [
    lambda content: b"", lambda content: bytes(len(content)), lambda content: content[: len(content) // 2],
    lambda content: content[:-80], lambda content: content[:-100] + bytes(100), lambda content: content * 2,
], ids=["empty", "zeros", "half", "cut", "zeros at the end", "twice"])  # fmt: skip
def test_verify_names_what_is_cut_or_blank(
    study: Path, tmp_path: Path, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "s"
    shutil.copytree(study, copy)
    victims = [path for path in files_of(copy)[:-1] if path.parent.name in ("runs", "scores") or path.parent == copy]
    for victim in victims:
        whole = victim.read_bytes()
        victim.write_bytes(damage(whole))
        assert run(app, ["store", "verify", str(copy), "--json"]) == 1, victim
        assert str(victim) in json.loads(capsys.readouterr().out.splitlines()[-1])["damaged"]
        victim.write_bytes(whole)


def test_what_is_damaged_is_named_scored_again_and_comes_to_the_same(
    study: Path, longer: dict[str, Any], tmp_path: Path
) -> None:
    """Scores, asks and both snapshots at once; then the result."""
    copy = tmp_path / "s"
    shutil.copytree(study, copy)
    rng, lines = random.Random(0), []

    def listener(progress: Progress) -> None:
        lines.append(progress.message)

    victims = [path for path in files_of(copy) if path.parent.name in ("scores", "candidates", "snapshots")]
    for path in victims:
        flip(path, rng)
    found = rayprompt.resume(copy, budget=MORE, scorers=1, listener=listener).to_json()
    assert same(found) == same(longer)
    for path in victims:
        (line,) = [line for line in lines if str(path) in line]
        assert path.with_name(path.name + ".damaged").is_file() == line.startswith("damaged"), line
    assert found["lm_evaluations"] == MORE  # what was lost was scored again
    flip(copy / "result.json", rng)
    with pytest.raises(DamagedError, match="result.json: damaged, or edited by hand: it does not match the checksum"):
        rayprompt.read_result(copy / "result.json")
    with pytest.raises(InputError, match="result.json: damaged"):
        read_study(copy)
    lines.clear()
    again = rayprompt.resume(copy, scorers=1, listener=listener)
    assert any("result.json: damaged" in line for line in lines)
    assert same(again.to_json()) == same(longer)
    assert rayprompt.resume(copy).to_json() == again.to_json()


def test_an_edited_study_says_what_to_do(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "s")
    file = tmp_path / "s" / "study.yaml"
    text = file.read_text()
    assert text.splitlines()[-1].startswith("# sha256: ")
    file.write_text(text.replace("finalists: 5", "finalists: 7"))
    with pytest.raises(
        DamagedError, match=r"If you edited it, delete its last line \(# sha256: ...\); if not, restore"
    ):
        rayprompt.resume(tmp_path / "s")
    file.write_text(file.read_text().rpartition("# sha256")[0])
    assert read_manifest(tmp_path / "s")["finalists"] == 7


@pytest.mark.slow  # quick: every kind of file above
def test_bits_at_200_random_places_of_a_study(study: Path, longer: dict[str, Any], tmp_path: Path) -> None:
    """The search goes on with more budget: it comes to the same, or what is damaged is named."""
    rng, outcomes = random.Random(0), {"same": 0, "named and scored again": 0, "named and refused": 0}
    for number in range(200):
        copy, lines = tmp_path / f"s{number}", []
        shutil.copytree(study, copy)
        victim = rng.choice(files_of(copy))
        where = flip(victim, rng)
        named = ""
        try:
            found = rayprompt.resume(copy, budget=MORE, scorers=1, listener=lambda p, to=lines: to.append(p.message))
        except InputError as error:
            named = str(error)
            outcomes["named and refused"] += 1
        else:
            assert same(found.to_json()) == same(longer), where
            named = next((line for line in lines if victim.name in line), "")
            outcomes["named and scored again" if named else "same"] += 1
        assert victim.name in (named or victim.name), where
        shutil.rmtree(copy)
    print(outcomes)
