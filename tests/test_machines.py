"""The same bits wherever data lies in memory; and machine classes, whose scores are never taken for equal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from checkpoints import ENCODER_DECODERS, FAMILIES, make_checkpoint
from loads import passes_for
from shifting import build, preloaded
from test_generation import request_of, table_of, verdicts
from test_keeper import INFO
from test_packed import PLACES, PROMPTS, ragged, task_with
from test_rl import blank, make
from test_rl_search import step

import rayprompt
from rayprompt.errors import InputError
from rayprompt.lm.bits import SHIFTS, machine_of, same_bits, shifted
from rayprompt.lm.loads import Request, score_request, write_request
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.soft import block_of
from rayprompt.lm.source import describe_model
from rayprompt.scoring.keeper import unlike
from rayprompt.scoring.pool import ScoringPool
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.settings import make_settings
from rayprompt.searcher.soft import SoftSettings, SoftSpace
from rayprompt.store.store import ScoreStore
from rayprompt.study.machines import admit

MKL = torch.backends.mkl.is_available()
PROBE = """
import json, sys, torch
import rayprompt
from rayprompt.lm.bits import machine_of, same_bits
from rayprompt.lm.scorer import LMScorer
from rayprompt.lm.source import describe_model
scorer = LMScorer(describe_model("tiny-causal")[0])
print(json.dumps([same_bits(scorer), machine_of(scorer.device, scorer.dtype), torch.empty(99).data_ptr() % 64]))
"""


def probe(**environment: str) -> tuple[bool, str, int]:
    """In a process of its own: whether bits are kept, the machine class, and where memory begins."""
    given = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env={**given, **environment}, capture_output=True, text=True, check=True
    )
    same, machine, begin = json.loads(done.stdout.splitlines()[-1])
    return same, machine, begin


# The same bits.


def test_the_load_test_tells_whether_mkl_keeps_the_order_of_its_sums() -> None:
    """Strict mode is set by ``import rayprompt``; where it was left out, the test at load finds the fault."""
    same, machine, _ = probe()
    assert same
    if MKL:
        assert machine.endswith("-strict")
        loose, other, _ = probe(MKL_CBWR="")  # MKL reads an empty one as none
        assert other != machine
        assert not other.endswith("-strict")
        if "avx512" in machine or "avx2" in machine:
            assert not loose


def test_shifts_put_results_where_they_say() -> None:
    x = torch.arange(200, dtype=torch.float32)
    for shift in (0, 4, 16, 32):
        with shifted((shift,)):
            y = x.view(10, 20).t() * 2
            assert y.data_ptr() % 64 == shift
            assert y.stride() == (1, 20)
        assert torch.equal(y, x.view(10, 20).t() * 2)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [4, 16, 32])
def test_the_suite_can_be_shifted(shift: int, tmp_path: Path) -> None:
    library = build(tmp_path)
    if library is None:
        pytest.skip("needs a C compiler")
    wanted = preloaded(library, shift)
    same, _, begin = probe(**{name: wanted[name] for name in ("LD_PRELOAD", "RAYPROMPT_TEST_SHIFT")})
    assert (same, begin) == (True, shift)


def both(run: Callable[[], bytes]) -> tuple[bytes, list[bytes]]:
    """The bytes of a result, and of the same with the data of every operation shifted, in several ways."""
    found = []
    for shifts in ((4,), SHIFTS):
        with shifted(shifts):
            found.append(run())
    return run(), found


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("lm", ["tiny-masked", "tiny-causal"])
def test_label_scores_have_the_same_bits_at_other_addresses(lm: str, place: str, packed: bool) -> None:
    problem = Problem(task_with(ragged(), place), lm)
    scorer = LMScorer(problem.lm)
    prompts = [problem.prompt(text).token_ids or () for text in PROMPTS]
    request = replace(Request.of_all(problem.part("train"), prompts), keep=False)
    plain, others = both(lambda: score_request(scorer, passes_for(scorer, problem, packed), request)[0].tobytes())
    assert set(others) == {plain}


def test_soft_prompts_have_the_same_bits_at_other_addresses() -> None:
    class Holder:
        Settings = SoftSettings

    problem = Problem(task_with(ragged()), "tiny-causal")
    scorer = LMScorer(problem.lm)
    space = SoftSpace.of(problem, make_settings(Holder, {"intrinsic_dim": 8, "length": 5, "alpha": 20.0}), 0)  # type: ignore[arg-type]
    prompts = [space.prompt(z) for z in np.random.default_rng(0).normal(size=(3, 8))]
    block = block_of(prompts, problem.vectors)
    request = Request.of_all(problem.part("train"), [problem.token_ids(p) for p in prompts])
    request = replace(request, soft=np.arange(3), front=prompts[0].subspace.front, keep=False)
    plain, others = both(lambda: score_request(scorer, passes_for(scorer, problem), request, block)[0].tobytes())
    assert set(others) == {plain}


def test_what_is_written_is_the_same_at_other_addresses() -> None:
    problem = Problem(verdicts(temperature=1.0, max_tokens=6), "tiny-causal")
    scorer = LMScorer(problem.lm)
    request = request_of(problem, ("it was", "so"), 8)
    plain, others = both(
        lambda: json.dumps(write_request(scorer, table_of(scorer), request).completion.tolist()).encode()
    )  # type: ignore[union-attr]
    assert set(others) == {plain}


def test_a_step_of_the_policy_has_the_same_bits_at_other_addresses(
    view: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayprompt.limits.cpus", lambda: 1)

    def run() -> bytes:
        searcher = make(view)
        for _ in range(2):
            step(searcher, lambda row: float(row[0] % 7))
        return np.asarray(blank(searcher).state_dict()["theta"]).tobytes()

    plain, others = both(run)
    assert set(others) == {plain}


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, *ENCODER_DECODERS])
def test_every_family_passes_the_load_test(family: str, tmp_path: Path) -> None:
    assert same_bits(LMScorer(describe_model(make_checkpoint(family, tmp_path))[0]))


# Machine classes.


def test_a_machine_class_names_cpu_and_blas() -> None:
    kind, cpu, blas = machine_of(torch.device("cpu"), torch.float32).split(":")
    assert kind == "cpu"
    assert cpu.endswith(f"-{torch.backends.cpu.get_cpu_capability().lower()}")
    assert blas.startswith("mkl-20" if MKL else "")
    assert ":onednn" in machine_of(torch.device("cpu"), torch.bfloat16)


def test_scorers_of_one_pool_have_one_machine_class() -> None:
    one, two = (replace(INFO, machine=f"cuda:{name}:torch-2") for name in ("NVIDIA A100", "NVIDIA H200"))
    assert unlike(one, one) is None
    assert unlike(one, two) == "run on cuda:NVIDIA A100:torch-2 and cuda:NVIDIA H200:torch-2"


OTHER = "cpu:intel-avx512:mkl-2024.2-avx512-strict"


@pytest.mark.usefixtures("kept_pool", "trials_here")
def test_a_study_goes_on_on_another_machine_class_only_if_it_is_allowed(
    pool: ScoringPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    study, file, here = tmp_path / "study", tmp_path / "study" / "study.yaml", pool.device_class
    options: dict[str, Any] = {"listener": lambda progress: lines.append(progress.message)}
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(pool, "device_class", OTHER)
        first = rayprompt.search(task="reviews", searcher="random", budget=512, out=study, **options)
    assert (first.machines, first.same_bits) == ((OTHER,), True)
    assert yaml.safe_load(file.read_text())["pool"]["device_class"] == OTHER
    assert classes_in(study) == {OTHER}
    with pytest.raises(
        InputError, match=f"are from machine class {OTHER}, the scorers here are {here}.*--other-machine"
    ):
        rayprompt.resume(study, budget=1024, **options)
    assert yaml.safe_load(file.read_text())["pool"]["device_class"] == OTHER  # nothing was changed
    second = rayprompt.resume(study, budget=1024, other_machine=True, **options)
    assert second.machines == (OTHER, here)
    assert f"scores from {OTHER}, those from here on are from {here}" in "\n".join(lines)
    assert second.lm_evaluations == second.evaluations  # what the other machine has scored is not scored again
    assert classes_in(study) == {OTHER, here}
    third = rayprompt.resume(study, budget=1536, **options)  # the class is the latest one now
    assert (third.machines, third.lm_evaluations) == ((OTHER, here), third.evaluations)
    replayed = rayprompt.search(
        task="reviews", model=f"replay:{study}", searcher="random", budget=1536, out=tmp_path / "replayed"
    )
    assert replayed.best_prompt == third.best_prompt


@pytest.mark.usefixtures("kept_pool", "trials_here")
def test_a_study_of_an_earlier_version_goes_on_with_a_note(
    pool: ScoringPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said ``cpu`` and no more: its own scores still count, but another study does not take them for its own."""
    lines: list[str] = []
    study = tmp_path / "study"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(pool, "device_class", "cpu")
        rayprompt.search(task="reviews", searcher="random", budget=512, out=study)
    record = yaml.safe_load((study / "study.yaml").read_text())
    del record["pool"]["earlier_classes"], record["pool"]["same_bits"]
    (study / "study.yaml").write_text(yaml.safe_dump(record))
    found = rayprompt.resume(study, budget=1024, listener=lambda progress: lines.append(progress.message))
    assert (found.machines, found.lm_evaluations) == (("cpu", pool.device_class), found.evaluations)
    assert "does not name the machine that its scores are from (cpu)" in "\n".join(lines)
    beside = rayprompt.search(task="reviews", searcher="random", budget=512, out=tmp_path / "beside", store=study)
    assert beside.cache_hits == 0


def classes_in(study: Path) -> set[str]:
    """The machine classes that a store's scores are from."""
    return {json.loads(shard.metadata["context"])["device_class"] for shard in ScoreStore(study).shards("scores")}


def test_another_kind_of_device_is_no_old_name() -> None:
    pool: Any = type("Pool", (), {"device_class": "cuda:NVIDIA H200:torch-2", "earlier": ()})()
    with pytest.raises(InputError, match="machine class cpu"):
        admit(pool, ["cpu"], "the study", allowed=False)
