"""``search_trainable``: whole searches as trials of anybody's ``ray.tune.Tuner``, for schedulers and comparisons."""

from __future__ import annotations

import secrets
import weakref
from pathlib import Path
from typing import Any

from ray import cloudpickle, tune

from rayprompt import defaults
from rayprompt.budget import Ledger
from rayprompt.errors import InputError
from rayprompt.racing import ERROR, error_of
from rayprompt.scoring.cluster import trial_resources
from rayprompt.scoring.pool import ScoringPool
from rayprompt.scoring.size import Scorers
from rayprompt.searcher.problem import Problem
from rayprompt.searcher.registry import largest_gpu_share, load_searcher
from rayprompt.store.schema import safe_name
from rayprompt.store.store import ScoreStore
from rayprompt.study.kept import shared_pool
from rayprompt.study.loop import SearchPlan
from rayprompt.study.prepare import make_searcher, planned, store_location
from rayprompt.study.trial import SearchTrial


def search_trainable(
    problem: Problem,
    *,
    budget: int = defaults.BUDGET,
    out: str | Path | None = None,
    pool: ScoringPool | None = None,
    address: str | None = None,
    scorers: Scorers = None,
    gpus_per_scorer: float | None = None,
    race: bool = False,
    race_error: float = ERROR,
) -> type[tune.Trainable]:
    """A trainable whose trial is a whole search on ``problem``'s train examples, reported generation by generation.

    A trial's config has ``searcher`` (a registered name) and may have ``seed``, ``objective`` and ``settings`` (a dict
    of the searcher's own). It reports ``best_score`` (the task metric on train), ``best_objective``, ``best_prompt``,
    ``score`` and, as ``timesteps_total``, its evaluations: the budget of a scheduler such as ASHA. Dev and test are
    not opened.

    Args:
        problem: task and LM.
        budget: the most evaluations of each search.
        out: a directory for scores, records and snapshots; searches in it share what they score, and a trial that is
            started again goes on. None makes one under ``rayprompt-studies/``.
        pool: scoring actors of your own (``ScoringPool.start``), which stay up; None starts some, or takes those of
            another trainable of this process with the same LM, whatever its options where you give none.
        address, scorers, gpus_per_scorer: the Ray cluster and the scoring actors on it, as for ``search``.
        race, race_error: as for ``search``; a trial whose searcher needs full rows does not race.

    Raises:
        InputError: no cluster at the address, or it cannot hold the scorers.
        ScoringError: the LM did not load.
        StoreError: ``out`` cannot be written.
    """
    if not isinstance(problem, Problem):
        raise InputError(f"search_trainable({problem!r}): give a Problem, as in search_trainable(Problem('reviews'))")
    Ledger(budget)  # refuses what is no budget
    error = error_of(race, race_error)
    folder = store_location(out or Path("rayprompt-studies") / f"tune-{secrets.token_hex(3)}")
    ScoreStore(folder).prepare()
    give_back = None
    if pool is None:
        spare = 0.0 if gpus_per_scorer is not None else largest_gpu_share()  # any searcher may come
        pool, give_back = shared_pool(
            problem.lm, address=address, scorers=scorers, gpus_per_scorer=gpus_per_scorer, spare_gpu=spare
        )
    view = problem.for_search()
    pool.add(view.part("train"))
    job = cloudpickle.dumps((view, pool, budget, folder, error))
    trainable: type[tune.Trainable] = type("PromptSearch", (ConfiguredSearch,), {"job": job, "__module__": __name__})
    if give_back is not None:
        weakref.finalize(trainable, give_back)
    return trainable


class ConfiguredSearch(SearchTrial):
    """A search that its trial's config describes. Made by :func:`search_trainable`."""

    job = b""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """What a search claims for itself: it waits for the scorers nearly all the time."""
        own: dict[str, float] = {}
        if isinstance(config.get("searcher"), str):
            own = load_searcher(config["searcher"]).resources(config.get("settings", {}))
        return tune.PlacementGroupFactory([trial_resources(own)])

    def setup(self, config: dict[str, Any]) -> None:  # type: ignore[override]
        """Make the search that ``config`` describes."""
        if "searcher" not in config:
            raise InputError("the trial's config has no 'searcher'; give one in param_space, as {'searcher': 'random'}")
        view, pool, budget, folder, race = cloudpickle.loads(self.job)
        searcher = make_searcher(
            view,
            config["searcher"],
            planned(view, budget),
            int(config.get("seed", 0)),
            config.get("objective"),
            config.get("settings", {}),
        )
        name = safe_name(f"{self.trial_id}_{searcher.name}-s{searcher.seed}")
        race = race if searcher.partial_rows else None
        plan = SearchPlan(name, budget, defaults.FINALISTS, folder, folder, race=race)
        super().setup(config, cloudpickle.dumps((searcher, pool, plan)))

    def step(self) -> dict[str, Any]:
        report = super().step()
        if report["error"]:
            raise RuntimeError(report["error"])  # Tune shows it as the trial's
        return report

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Its files are in the searches' directory."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """A search goes on from its own files."""
