"""``rayprompt recommend`` from the command line, fits as Tune trials, and demonstrations from scores and studies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from reward_data import rows, world
from typer.testing import CliRunner

import rayprompt
from rayprompt.cli.main import app
from rayprompt.cli.main import run as main
from rayprompt.errors import InputError
from rayprompt.lm.embed import encoder
from rayprompt.lm.source import load_tokenizer, model_folder
from rayprompt.reward.demonstrations import Demonstrations, read_demonstrations
from rayprompt.reward.features import Vectors
from rayprompt.reward.models import model_class
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.study.demonstrations import from_scores, from_study
from rayprompt.study.rewards import Fit, fit_many, run_fit


def run(*arguments: Any, given: str | None = None) -> str:
    """What the command prints."""
    done = CliRunner().invoke(app, ["recommend", *map(str, arguments)], input=given)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with train and test."""
    file = tmp_path_factory.mktemp("demos") / "demos.parquet"
    train, test = world(500).to_table().to_pydict(), world(200, seed=9).to_table().to_pydict()
    test["split"] = ["test"] * len(test["split"])
    for name in ("query_uid", "template_uid"):
        test[name] = [f"t{i}" for i in test[name]]
    test["query"] = [q.replace("basket", "bowl") for q in test["query"]]
    Demonstrations.from_columns({name: train[name] + test[name] for name in train}).write(file)
    return file


def test_from_demonstrations_to_a_prompt_for_each_query(demos: Path, tmp_path: Path) -> None:
    assert "nothing wrong was found" in run("check", demos)
    found = json.loads(run("fit", demos, "--out", tmp_path / "r", "--json"))
    assert found["guard_weight"] > 0
    result = json.loads(run("eval", demos, "--recommender", tmp_path / "r", "--json"))
    rules = {o["rule"]: o for o in result["outcomes"]}
    assert rules["guarded"]["gain"] > 2 * rules["guarded"]["gain_se"]
    assert "over best on train" in run("eval", demos, "--recommender", tmp_path / "r")
    folded = json.loads(run("eval", demos, "--folds", 3, "--split", "train", "--reward-model", "neighbours", "--json"))
    assert len(folded["guard_weights"]) == 3
    queries = ["how many red apples are old in basket 7", "how many big pears are ripe in basket 8"]
    lines = [json.loads(line) for line in run("run", tmp_path / "r", given="\n".join(queries)).splitlines()]
    assert [line["prompt"] for line in lines] == ["prompt a", "prompt b"]
    (tmp_path / "q.txt").write_text("\n".join(queries))
    run("run", tmp_path / "r", tmp_path / "q.txt", "--out", tmp_path / "table.parquet")
    assert pq.read_table(tmp_path / "table.parquet").to_pylist() == lines
    (tmp_path / "p.txt").write_text("prompt b\nbrand new\n")
    others = run("run", tmp_path / "r", tmp_path / "q.txt", "--prompts", tmp_path / "p.txt", "--rule", "best-of-n")
    assert {json.loads(line)["prompt"] for line in others.splitlines()} <= {"prompt b", "brand new"}


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command says that must end with exit code 2, and one line."""

    def call(*arguments: Any) -> str:
        capsys.readouterr()
        assert main(app, ["recommend", *map(str, arguments)]) == 2
        out, line = capsys.readouterr()
        assert (out, line.count("\n")) == ("", 1)
        return line.removeprefix("rayprompt: ")

    return call


def test_files_are_not_written_over(demos: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    recommender, table, kept = tmp_path / "r", tmp_path / "t.parquet", tmp_path / "kept.txt"
    kept.write_text("one\n")
    run("fit", demos, "--out", recommender, "--reward-model", "prior")
    assert "is not empty" in refused("fit", demos, "--out", recommender)
    run("fit", demos, "--out", recommender, "--reward-model", "prior", "--force")
    assert "kept.txt, which is no part of a recommender" in refused("fit", demos, "--out", tmp_path, "--force")
    run("run", recommender, kept, "--out", table)
    assert "is there already; --force" in refused("run", recommender, kept, "--out", table)
    run("run", recommender, kept, "--out", table, "--force")
    assert "is a directory" in refused("run", recommender, kept, "--out", "")
    assert "no such directory" in refused("run", recommender, kept, "--out", tmp_path / "none" / "t.parquet")


def test_logs_of_two_splits_become_one_file(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "a.log").write_text("(0, True)\n(1, False)\n")
    (tmp_path / "logs.jsonl").write_text('{"prompt": "one", "log": "a.log"}\n')
    both = tmp_path / "both.parquet"

    def command(split: str, llm: str = "m") -> tuple[Any, ...]:
        (tmp_path / "q.tsv").write_text(f"query\n{split} a?\n{split} b?\n")
        about = ("--queries", tmp_path / "q.tsv", "--llm", llm, "--dataset", "d", "--split", split)
        return ("collect", tmp_path / "logs.jsonl", "--out", both, *about)

    run(*command("train"))
    run(*command("test"))
    data = read_demonstrations(both)
    assert sorted(data.uids) == ["test:0", "test:1", "train:0", "train:1"]
    assert data.parts == {("d", "train"), ("d", "test")}
    assert "holds test of d already; --force to replace it" in refused(*command("test"))
    run(*command("test"), "--force")
    assert read_demonstrations(both).rows == 4
    assert "is of m, not of n; --force" in refused(*command("test", "n"))
    both.write_text("mine")
    assert "not a Parquet file" in refused(*command("test"))
    run(*command("test"), "--force")
    assert read_demonstrations(both).rows == 2


def test_options_that_would_change_nothing(demos: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    run("fit", demos, "--out", tmp_path / "r", "--reward-model", "prior")
    judge = ("eval", demos, "--recommender", tmp_path / "r")
    for option, value in (("--folds", 3), ("--reward-model", "prior"), ("--set", "c=1"), ("--by", "query")):
        assert refused(*judge, option, value).startswith(f"{option} beside --recommender")
    assert refused(*judge, "--split", "train").startswith("--split train: the recommender was fitted on it")
    for option in ("--llm", "--dataset", "--answers"):
        assert refused("eval", tmp_path, option, "x").startswith(f"{option} beside a study's directory")
    assert "not a study's directory (it holds no study.yaml)" in refused("check", tmp_path)
    collect = ("collect", tmp_path, "--out", tmp_path / "d.parquet")
    assert refused(*collect, "--split", "test").startswith("--split beside a study's directory")


def test_eval_looks_at_the_split_that_it_judges(tmp_path: Path, refused: Callable[..., str]) -> None:
    """A dev that is a copy of train, beside a test that is not."""
    train, test = world(100).to_table().to_pydict(), world(60, seed=9).to_table().to_pydict()
    test["query"] = [f"{q} of bowls {'x' * int(u)}" for q, u in zip(test["query"], test["query_uid"], strict=True)]
    every = {name: train[name] * 2 + test[name] for name in train}
    every["split"] = ["train"] * 300 + ["dev"] * 300 + ["test"] * 180
    every["query_uid"] = [f"{s}:{u}" for s, u in zip(every["split"], every["query_uid"], strict=True)]
    del every["template_uid"]
    Demonstrations.from_columns(every).write(tmp_path / "d.parquet")
    fit = ("fit", tmp_path / "d.parquet", "--out", tmp_path / "r", "--reward-model", "prior")
    assert "100 of 100 dev queries (100.0%) stand in train" in refused(*fit)
    run(*fit, "--allow", "leak-query", "--allow", "leak-template")
    judge = ("eval", tmp_path / "d.parquet", "--recommender", tmp_path / "r")
    assert "100 of 100 dev queries (100.0%) stand in train" in refused(*judge, "--split", "dev")
    assert json.loads(run(*judge, "--json"))["n"] == 60


def test_json_is_json_and_tables_are_whole(demos: Path, tmp_path: Path) -> None:
    zero = rows(query=[f"{'ab' * i} is" for i in range(60)], correct=[0] * 60)
    Demonstrations.from_columns(zero).write(tmp_path / "zero.parquet")
    content = run("eval", tmp_path / "zero.parquet", "--reward-model", "prior", "--allow", "constant", "--json")
    assert json.loads(content, parse_constant=pytest.fail)["quality"]["seen prompts, unseen queries"]["auc"] is None
    shown = run("eval", demos, "--split", "test", "--reward-model", "prior", "--folds", 2)
    for heading in ("probabilities on", "within query", "(majority)", "cal. error", "over best on train", "LM calls"):
        assert heading in shown  # piped, as here, to no terminal


@pytest.mark.parametrize("where", ["-", "q.txt"])
def test_queries_are_lines(where: str, demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rule for standard input and for files."""
    monkeypatch.chdir(tmp_path)
    run("fit", demos, "--out", "r", "--reward-model", "prior")

    def told(content: bytes) -> list[str]:
        Path("q.txt").write_bytes(content)
        done = CliRunner().invoke(app, ["recommend", "run", "r", where], input=content)
        if done.exception is not None:
            raise done.exception
        return [json.loads(line)["query"] for line in done.stdout_bytes.decode().split("\n") if line]

    assert told('\ufeffone\r\n{"query": "zw\u00f6lf"}\na\u2028b\x85c\n'.encode()) == [
        "one",
        "zw\u00f6lf",
        "a\u2028b\x85c",
    ]
    for content, message in (
        (b"one\n\ntwo\n", "line 2: a query without text"),
        (b"one\n{not\n", "line 2: starts with { but is not JSON"),
        (b'{"text": "a"}\n', "line 1: a query without text"),
        (b'one\n{"query": "\\ud800"}\n', "half of a surrogate pair"),
        (b"a\xff\n", "not UTF-8 text (byte 1)"),
        (b"", "holds no queries"),
    ):
        with pytest.raises(InputError) as error:
            told(content)
        assert message in str(error.value)
        assert str(error.value).startswith("standard input" if where == "-" else "q.txt")


def test_output_is_utf8_in_any_locale(demos: Path, tmp_path: Path) -> None:
    run("fit", demos, "--out", tmp_path / "r", "--reward-model", "prior")
    done = subprocess.run(
        [sys.executable, "-m", "rayprompt.cli.main", "recommend", "run", str(tmp_path / "r")],
        input="gr\u00fc\u00dfe\n".encode(),
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert json.loads(done.stdout.decode())["query"] == "gr\u00fc\u00dfe"


def test_interrupts_and_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    assert main(app, ["recommend"]) == 0
    assert "Usage: rayprompt recommend" in capsys.readouterr().out
    monkeypatch.setattr("rayprompt.cli.recommend.read_data", stopped)
    assert main(app, ["recommend", "check", "x"]) == 130
    assert capsys.readouterr().err == "rayprompt: interrupted\n"


def test_vectors_of_a_file(demos: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    texts = list(read_demonstrations(demos).queries)
    for width in (4, 6):
        rng = np.random.default_rng(0)
        values = rng.normal(size=(len(texts), width)).tolist()
        pq.write_table(pa.table({"text": texts, "vector": values}), tmp_path / f"v{width}.parquet")
    fit = ("fit", demos, "--out", tmp_path / "r", "--features", f"vectors:{tmp_path}/v4.parquet")
    run(*fit)
    judge = ("eval", demos, "--recommender", tmp_path / "r", "--features")
    assert json.loads(run(*judge, f"vectors:{tmp_path}/v4.parquet", "--json"))["n"] == 200
    line = refused(*judge, f"vectors:{tmp_path}/v6.parquet")
    assert "learned on vectors 4 wide; those given are 6 wide" in line
    assert "give the vectors of new texts with --features" in refused(*judge[:-1])


@pytest.mark.usefixtures("kept_pool", "ray_session")
def test_vectors_of_an_lm(demos: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    """The scoring actors make them, from fitting to recommending; those of an encoder are not the same."""
    few = read_demonstrations(demos).of(split="train").of(instances=range(60))
    few.write(tmp_path / "few.parquet")
    lm = ("--features", "lm:tiny-causal")
    run("fit", tmp_path / "few.parquet", "--out", tmp_path / "r", *lm)
    (tmp_path / "q.txt").write_text("how many\n")
    command = ("run", tmp_path / "r", tmp_path / "q.txt")
    (line,) = run(*command, *lm).splitlines()
    assert json.loads(line)["prompt"] in few.prompts
    assert "those given are of encoder:tiny-causal" in refused(*command, "--features", "encoder:tiny-causal")
    assert "unknown model 'tiny-casual'" in refused(*command, "--features", "lm:tiny-casual")


def test_what_the_commands_refuse(demos: Path, tmp_path: Path) -> None:
    run("fit", demos, "--out", tmp_path / "r", "--reward-model", "prior")
    leaking = world(60).to_table().to_pydict()
    both = {name: values * 2 for name, values in leaking.items()}
    both["split"] = ["train"] * len(leaking["split"]) + ["test"] * len(leaking["split"])
    Demonstrations.from_columns(both).write(tmp_path / "leak.parquet")
    zero = rows(query_uid=[str(i) for i in range(60)], correct=[0] * 60)
    Demonstrations.from_columns(zero).write(tmp_path / "zero.parquet")
    world(80, seed=4).write(tmp_path / "other.parquet")
    for arguments, message in (
        (("fit", tmp_path / "leak.parquet", "--out", tmp_path / "x"), "60 of 60 test queries (100.0%) stand in train"),
        (
            ("fit", tmp_path / "zero.parquet", "--out", tmp_path / "x"),
            "labels that never change: all 60 labels of train are 0",
        ),
        (("eval", tmp_path / "other.parquet", "--recommender", tmp_path / "r"), "was fitted on other demonstrations"),
        (("run", tmp_path / "none", "-"), "no recommender there"),
        (("run", tmp_path / "r", tmp_path / "none.txt"), "no such file"),
        (("fit", demos, "--out", tmp_path / "x", "--reward-model", "lightgmb"), "did you mean 'lightgbm'?"),
        (("fit", demos, "--out", tmp_path / "x", "--set", "cc=1"), "unknown setting 'cc'"),
        (
            ("fit", demos, "--out", tmp_path / "x", "--features", "bert"),
            "--features bert: text, vectors:FILE, lm:MODEL or",
        ),
        (("eval", demos, "--split", "dev"), "no demonstrations of split 'dev'; there are test, train"),
    ):
        with pytest.raises(InputError) as error:
            run(*arguments)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    allowed = ("--allow", "leak-query", "--allow", "leak-template", "--reward-model", "prior")
    assert "opinion counts 0" in run("fit", tmp_path / "leak.parquet", "--out", tmp_path / "y", *allowed)


@pytest.mark.slow  # quick: the fits of one process, above
@pytest.mark.usefixtures("ray_session")
def test_fits_side_by_side_are_those_of_one_after_the_other(demos: Path, tmp_path: Path) -> None:
    data = read_demonstrations(demos)
    train, test = data.of(split="train"), data.of(split="test")
    fits = [
        Fit(),
        Fit("lightgbm", {"trees": 20}, prompts=("a", "b"), seed=3),
        Fit("mlp", {"epochs": 2}, fold=(4, 1)),
    ]
    found = fit_many(fits, train, test, out=tmp_path / "fits")
    for fit, p in zip(fits, found, strict=True):
        np.testing.assert_array_equal(p, run_fit(fit, train, test)[0])
    gone = tmp_path / "fits" / "fits" / f"{fits[1].key}.npy"
    gone.unlink()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "fits" / "fits").glob("*.npy")}
    again = fit_many(fits, train, test, out=tmp_path / "fits")
    np.testing.assert_array_equal(again[1], found[1])
    assert {path: path.stat().st_mtime_ns for path in times} == times  # nothing else was computed again
    with pytest.raises(InputError, match="holds fits of other demonstrations"):
        fit_many(fits, test, train, out=tmp_path / "fits")
    with pytest.raises(InputError, match="no prompt 'zz'"):
        fit_many([Fit(prompts=("zz",))], train, test, out=tmp_path / "fits")


@pytest.mark.usefixtures("kept_pool", "trials_here")
def test_demonstrations_of_a_study(problem: Problem, tmp_path: Path) -> None:
    result = rayprompt.search(problem, searcher="random", budget=10 * len(problem.gold), out=tmp_path / "s")
    data = from_study(result.study_dir)
    assert (data.rows, len(data.prompts), set(data.split.tolist())) == (10 * len(problem.gold), 10, {"train"})
    best = data.prompts.index(result.best_prompt.text)  # type: ignore[union-attr]
    assert float(np.nanmean(data.correct[:, best])) == pytest.approx(result.train.value)
    run("collect", result.study_dir, "--out", tmp_path / "d.parquet")
    assert read_demonstrations(tmp_path / "d.parquet").rows == data.rows
    run("fit", result.study_dir, "--out", tmp_path / "r", "--reward-model", "prior", "--allow", "constant")
    (line,) = run("run", tmp_path / "r", given="a fine film").splitlines()
    means = dict(zip(data.prompts, np.nanmean(data.correct, axis=0), strict=True))
    assert means[json.loads(line)["prompt"]] == max(means.values())
    with pytest.raises(InputError, match="not a study"):
        from_study(tmp_path)


def test_demonstrations_of_scores(problem: Problem, pool: ScoringPool, tmp_path: Path) -> None:
    texts = ["it was", "so"]
    scores = rayprompt.score(texts, problem, on="dev", pool=pool)
    data = from_scores(problem, scores, texts, "dev")
    assert np.nanmean(data.correct, axis=0) == pytest.approx(scores.mean_value())
    assert set(data.split.tolist()) == {"dev"}


def test_vectors_by_the_scoring_actors_and_by_an_encoder(pool: ScoringPool) -> None:
    """The mean of the last hidden states, against transformers' own pass, one text at a time without padding."""
    texts = ["it was good", "so", "the plot was slow and the acting was worse, but we stayed " * 6, "it was good"]
    name = pool.source.location
    tokenizer, model = load_tokenizer(name), transformers.AutoModel.from_pretrained(model_folder(name)).eval()
    expected = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"][: pool.source.max_length]])
        with torch.no_grad():
            expected.append(model(ids).last_hidden_state[0].mean(dim=0).numpy())
    found = pool.embed(texts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(pool.embed(texts[1:2])[0], found[1])  # alone as in company
    for place in (str(model_folder(name)), "tiny-masked"):  # a bundled name is not looked for on the hub
        np.testing.assert_allclose(encoder(place)(texts), expected, rtol=0, atol=2e-5)
    data = world(60)
    fitted = model_class("logistic-per-prompt")(Vectors(embed=pool.embed)).fit(data)
    assert fitted.predict(data.queries).shape == (60, 3)
