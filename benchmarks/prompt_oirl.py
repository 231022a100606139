"""Reward models on the published logs of Prompt-OIRL (LLaMA-2-7B), on clean splits, beside what was measured before.

    python benchmarks/prompt_oirl.py                 # everything: about twenty minutes on 2 cores
    python benchmarks/prompt_oirl.py --parts subsets # facts, gsm8k, deals, mawps, subsets, ranking

Needs the shared data (RAYPROMPT_SHARED, or ../shared): prompt-oirl/. No LM is asked. ``reference`` are figures measured
before on the same data: per-prompt logistic regression on TF-IDF and counts, XGBoost, and the paper's checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from rayprompt.reward.assess import Assessment, assess, assess_folds
from rayprompt.reward.checks import check
from rayprompt.reward.demonstrations import Demonstrations, read_demonstrations
from rayprompt.reward.models import model_class
from rayprompt.reward.recommender import Recommender
from rayprompt.reward.selection import references
from rayprompt.study.rewards import Fit, fit_many, run_fit

OUT = Path(__file__).with_suffix(".json")
MODELS = ("prior", "logistic", "logistic-per-prompt", "logistic-shared", "neighbours", "lightgbm", "mlp")
FOLDED = ("prior", "logistic-per-prompt", "logistic-shared", "neighbours")
DEALS = range(100, 110)  # of folds
VOTED = "logistic-per-prompt"  # whose probabilities the cost-aware rule sees
ORDER = (
    "for both, by success: prompts 0-5 by their 7,473 train labels; 6-15, which have no labels on train, by those of "
    "the other four folds of test (800). The rule is learned on the same four folds, with models fitted on train."
)
FOLDED_ORDER = (
    "for both, by success of all 16 on the other four folds of test (800 labels each); models and rule are learned on "
    "the same four folds, without train."
)
REFERENCE = {
    "gsm8k": {"auc": 0.725, "brier": 0.136, "unseen auc": 0.665, "best of 6, XGBoost": 0.251, "best on train": 0.240},
    "votes": {"4": 0.283, "6": 0.320, "8": 0.331},
    "mawps": {"best on train": 0.646, "guarded gain": 0.011, "guarded gain se": 0.004},
}


def main() -> None:
    """Run the parts, print and keep what they gave."""
    parts = {"facts": facts, "gsm8k": gsm8k, "deals": deals, "mawps": mawps, "subsets": subsets, "ranking": ranking}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=list(parts))
    args = parser.parse_args()
    folder = (
        Path(os.environ.get("RAYPROMPT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
        / "data"
        / "prompt-oirl"
    )
    if not folder.is_dir():
        raise SystemExit(f"needs the data in {folder}: set RAYPROMPT_SHARED")
    content = json.loads(OUT.read_text()) if OUT.exists() else {}
    content |= {"command": "python benchmarks/prompt_oirl.py", "reference": REFERENCE}
    for name in args.parts:
        started = time.perf_counter()
        content[name] = parts[name](folder)
        content[name]["seconds"] = round(time.perf_counter() - started, 1)
        OUT.write_text(json.dumps(content, indent=1) + "\n")
        print(f"{name}: {json.dumps(content[name], indent=1)}", flush=True)


def data_of(folder: Path, dataset: str) -> Demonstrations:
    """The demonstrations of a data set, with answers where there are some."""
    answers = folder / "answers.parquet" if dataset == "gsm8k" else None
    return read_demonstrations(folder / "demonstrations.parquet", dataset=dataset, answers=answers)


def facts(folder: Path) -> dict[str, Any]:
    """What is in the data, whoever models it."""
    found: dict[str, Any] = {}
    for dataset in ("gsm8k", "mawps"):
        data = data_of(folder, dataset)
        test, train = data.of(split="test"), data.of(split="train", prompts=range(6))
        means = np.nanmean(train.correct, axis=0)
        found[dataset] = {
            "best on train": data.prompt_ids[int(means.argmax())],
            **{o.rule: round(o.success, 4) for o in references(test, np.full(len(test), means.argmax()), {})},
            "findings": [f"{f.name}: {f.message}" for f in check(data) if f.refused],
        }
        if dataset == "gsm8k":
            six = np.nanmean(test.correct[:, :6], axis=0)
            subsets = {k: [list(s) for s in combinations(range(6), k)] for k in (1, 5, 6)}
            found[dataset]["best of K, chosen on test as published"] = {
                k: round(float(np.mean([six[s].max() for s in some])), 4) for k, some in subsets.items()
            }
            found[dataset]["best of K, chosen on train"] = {
                k: round(float(np.mean([six[s][means[s].argmax()] for s in some])), 4) for k, some in subsets.items()
            }
    return found


def gsm8k(folder: Path) -> dict[str, Any]:
    """Learned on train (six prompts), judged on test: seen and unseen prompts; votes over all sixteen."""
    data = data_of(folder, "gsm8k")
    train, test = data.of(split="train"), data.of(split="test")
    found: dict[str, Any] = {"models": {}}
    for name in MODELS:
        result = assess(Recommender.fit(train, model_class(name)), train, test)
        rules = {o.rule: o for o in result.outcomes}
        seen, unseen = (result.quality[f"{kind} prompts, unseen queries"] for kind in ("seen", "unseen"))
        found["models"][name] = {
            "auc": round(seen.auc, 4),
            "auc within query": round(seen.auc_within, 4),
            "brier": round(seen.brier, 4),
            "accuracy": round(seen.accuracy, 4),
            "majority class": round(seen.majority, 4),
            "calibration error": round(seen.calibration, 4),
            "unseen auc": round(unseen.auc, 4),
            "unseen auc within query": round(unseen.auc_within, 4),
            "guard weight": round(result.weights[0], 3),
            **{rule: shown(rules[rule]) for rule in ("best of learned", "guarded", "best on train")},
        }
        if name == VOTED:
            found["votes"] = {"order of prompts": ORDER} | votes(result)
    folded = assess_folds(test, model_class(VOTED))
    found["votes, folds within test"] = {"order of prompts": FOLDED_ORDER} | votes(folded)
    return found


def deals(folder: Path) -> dict[str, Any]:
    """The votes of part gsm8k under other deals of the folds: means over them, as one deal is partly luck."""
    data = data_of(folder, "gsm8k")
    train, test = data.of(split="train"), data.of(split="test")
    recommender = Recommender.fit(train, model_class(VOTED))
    results = [assess(recommender, train, test, seed=seed).compared for seed in DEALS]
    at = sorted(set.intersection(*({c.calls for c in compared} for compared in results)))
    found: dict[str, Any] = {"order of prompts": ORDER, "deals": list(DEALS), "at as many calls": {}}
    for calls in at:
        same = [c for compared in results for c in compared if c.calls == calls]
        found["at as many calls"][calls] = {
            "majority": round(float(np.mean([c.majority for c in same])), 4),
            "cost-aware": round(float(np.mean([c.cost_aware for c in same])), 4),
            "difference": round(float(np.mean([c.gain for c in same])), 4),
            "se, mean of deals": round(float(np.mean([c.gain_se for c in same])), 4),
            "lowest and highest of a deal": [round(f(c.gain for c in same), 4) for f in (min, max)],
        }
    return found


def votes(result: Assessment) -> dict[str, Any]:
    """The majority of the k best prompts and the cost-aware rule, and the two at as many calls, 1 to 16."""
    two = 2.0  # standard errors: beyond them a difference is said to be one
    return {
        "majority of the k best": {int(p.calls): round(p.success, 4) for p in result.votes},
        "cost-aware": [
            {"price": p.price, "calls": round(p.calls, 2), "success": round(p.success, 4), "se": round(p.se, 4)}
            for p in result.frontier
        ],
        "at as many calls": {
            c.calls: {
                "majority": round(c.majority, 4),
                "cost-aware": round(c.cost_aware, 4),
                "difference": round(c.gain, 4),
                "se": round(c.gain_se, 4),
            }
            for c in result.compared
        },
        "cost-aware is higher at": [c.calls for c in result.compared if c.gain > 0],
        "by two standard errors at": [c.calls for c in result.compared if c.gain > two * c.gain_se],
        "lower by two standard errors at": [c.calls for c in result.compared if c.gain < -two * c.gain_se],
    }


def mawps(folder: Path) -> dict[str, Any]:
    """Five folds that tear no template apart, three deals of them: on all labels, and on those of the test split alone.

    The file's own split is leaked; folds over templates are not, whatever the split a row stands in.
    """
    whole = data_of(folder, "mawps")
    found: dict[str, Any] = {}
    for part, data in (("all labels", whole), ("test labels alone", whole.of(split="test"))):
        for name in FOLDED:
            for seed in range(3):
                result = assess_folds(data, model_class(name), seed=seed)
                rules = {o.rule: o for o in result.outcomes}
                found[f"{part}, {name}, folds {seed}"] = {
                    "auc": round(next(iter(result.quality.values())).auc, 4),
                    "guard weights": [round(w, 3) for w in result.weights],
                    **{rule: shown(rules[rule]) for rule in ("best of n", "guarded", "best on train")},
                }
    return found


def subsets(folder: Path) -> dict[str, Any]:
    """A model for each of the 63 subsets of six prompts: as Tune trials, and one after the other."""
    data = data_of(folder, "gsm8k")
    train, test = data.of(split="train", prompts=range(6)), data.of(split="test", prompts=range(6))
    fits = [Fit(prompts=s) for k in range(1, 7) for s in combinations(train.prompt_ids, k)]
    with tempfile.TemporaryDirectory() as out:
        started = time.perf_counter()
        side_by_side = fit_many(fits, train, test, out=Path(out))
        parallel = time.perf_counter() - started
    started = time.perf_counter()
    one_by_one = [run_fit(fit, train, test)[0] for fit in fits]
    serial = time.perf_counter() - started
    same = all(np.array_equal(a, b) for a, b in zip(side_by_side, one_by_one, strict=True))
    return {
        "fits": len(fits),
        "the same bits": same,
        "side by side, s (with Ray's start)": round(parallel, 1),
        "one by one, s": round(serial, 1),
        "speed-up": round(serial / parallel, 2),
        "cores": os.cpu_count(),
    }


def ranking(folder: Path) -> dict[str, Any]:
    """100 prompts without labels ranked for 1,000 queries: no LM is asked."""
    data = data_of(folder, "gsm8k")
    pool = [text for text, has in zip(*prompts_of(folder), strict=True) if not has][:100]
    found: dict[str, Any] = {"prompts": len(pool), "queries": 1000, "LM calls": 0}
    for name in ("logistic", "logistic-per-prompt", "lightgbm"):
        recommender = Recommender(model_class(name)().fit(data.of(split="train")), None)  # type: ignore[arg-type]
        started = time.perf_counter()
        order = np.argsort(-recommender.predict(data.of(split="test").texts, pool), axis=1)
        found[f"{name}, s"] = round(time.perf_counter() - started, 3)
        assert order.shape == (1000, 100)
    return found


def prompts_of(folder: Path) -> tuple[list[str], list[bool]]:
    """Texts of all prompts, and whether they have labels."""
    table = pq.read_table(folder / "prompts.parquet", columns=["text", "has_labels"])
    return table.column("text").to_pylist(), table.column("has_labels").to_pylist()


def shown(outcome: Any) -> dict[str, float]:
    """Success, and gain over the best prompt on train with its standard error."""
    return {"success": round(outcome.success, 4), "gain": round(outcome.gain, 4), "se": round(outcome.gain_se, 4)}


if __name__ == "__main__":
    main()
