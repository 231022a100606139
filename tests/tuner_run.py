"""A hand-written Tuner run in a process of its own, to be killed; run again, it restores itself."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from conftest import task_of
from ray import tune

import rayprompt
from searchers.random import RandomSearcher


class Counting(RandomSearcher):
    """Random search that counts how often each candidate was told, and with a value."""

    def __init__(self, problem: rayprompt.Problem, **kwargs: Any) -> None:
        super().__init__(problem, **kwargs)
        self.told: Counter[str] = Counter()
        self.failed = 0

    def tell(self, candidates: Sequence[rayprompt.Candidate], scores: rayprompt.Scores) -> None:
        self.told.update(c.key for c in candidates)
        self.failed += sum(value != value for value in self.values(scores))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "told": dict(self.told), "failed": self.failed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.told, self.failed = Counter(state["told"]), state["failed"]


def main(folder: Path, count: int, batch: int) -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 1024**2)
    problem = rayprompt.Problem(task_of(8), "tiny-masked")
    trainable = rayprompt.prompt_trainable(problem, store=folder / "store")
    path = folder / "run"
    if tune.Tuner.can_restore(path):
        tuner = tune.Tuner.restore(str(path), trainable=trainable)
    else:
        searcher = Counting(problem, budget=count, batch_size=batch)
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher, num_samples=-1, max_concurrent_trials=8, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name="run",
                storage_path=str(folder),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=3),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
    results = tuner.fit()
    searcher = tuner._local_tuner._tune_config.search_alg
    (folder / "end.json").write_text(
        json.dumps(
            {
                "told": searcher.told,
                "failed": int(searcher.failed),
                "ended": searcher.ended,
                "trials": len(results),
                "errors": len(results.errors),
                "best": results.get_best_result("score", "max").metrics["score"],
            }
        )
    )
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
