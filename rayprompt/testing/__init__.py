"""A conformance kit for searchers of Ray Tune: what Tune may do with a searcher, and whether it stands it.

    from rayprompt.testing import check_searcher

    def test_my_searcher() -> None:
        check_searcher(
            lambda **kw: MySearch({"x": tune.uniform(0, 1)}, **kw),
            evaluate=lambda config: -((config["x"] - 0.7) ** 2),
        )

It calls the searcher directly, as Tune does, with no Ray runtime. A :class:`rayprompt.PromptSearcher` gets further
checks by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ray.tune.search import Searcher

from rayprompt.errors import unknown
from rayprompt.testing import asktell, batches, contract, learning, results, state
from rayprompt.testing.faults import ConformanceError, Failed
from rayprompt.testing.kit import REGISTERED, Kit, Outcome

__all__ = ["CHECKS", "ConformanceError", "Outcome", "check_searcher", "run_checks"]

# Name -> what is right, in one line.
CHECKS: dict[str, str] = {
    check.name: check.description
    for module in (contract, results, state, learning, asktell, batches)
    for check in REGISTERED.values()
    if check.run.__module__ == module.__name__
}


def run_checks(
    factory: Callable[..., Searcher],
    *,
    evaluate: Callable[[dict[str, Any]], float] | None = None,
    space: dict[str, Any] | None = None,
    baseline: bool = False,
    bytes_per_trial: int = 4096,
    skip: Collection[str] = (),
    only: str | Collection[str] = (),
) -> list[Outcome]:
    """Run the checks on the searchers that ``factory`` makes.

    Args:
        factory: gives a new, blank searcher. It is called with any of the keywords ``metric``, ``mode``, ``seed`` and
            ``points_to_evaluate``, for a PromptSearcher also ``batch_size`` and ``budget``. The checks that need a
            keyword fail where the factory does not take it.
        evaluate: the value of a config, to be maximised, for the check that it learns. A PromptSearcher needs none:
            it looks for a hidden prompt; where given, it gets configs of one candidate.
        space: a Tuner's ``param_space``, for a searcher that takes its search space from there.
        baseline: it is not expected to learn (a PromptSearcher says so itself, with ``learns``).
        bytes_per_trial: by how much the saved state may grow for each completed trial.
        skip: names of checks that are not run.
        only: the name of the one check that is run, or names.

    Returns:
        An outcome for each check, in the order of ``CHECKS``.

    Raises:
        InputError: ``skip`` or ``only`` has a name that is no check's.
    """
    chosen = {only} if isinstance(only, str) else set(only) or set(CHECKS)
    for name in sorted(chosen.union(skip).difference(CHECKS)):
        raise unknown("check", name, CHECKS, "rayprompt.testing")
    kit = Kit(factory, evaluate, space, baseline, bytes_per_trial)
    names = [name for name in CHECKS if name in chosen]
    try:
        _ = kit.prompt
    except Failed as fault:
        first, *rest = names
        not_run = [Outcome(name, False, "not run: the factory does not work", skipped=True) for name in rest]
        return [Outcome(first, False, str(fault)), *not_run]
    return [
        Outcome(name, True, "left out", skipped=True) if name in skip else REGISTERED[name].outcome(kit)
        for name in names
    ]


def check_searcher(factory: Callable[..., Searcher], **options: Any) -> None:
    """Run the checks and raise if any fails; the options are those of :func:`run_checks`.

    Raises:
        ConformanceError: one line for each failed check.
    """
    outcomes = run_checks(factory, **options)
    failed = [outcome for outcome in outcomes if not outcome.passed and not outcome.skipped]
    if failed:
        lines = [f"  {outcome.check}: {outcome.message}" for outcome in failed]
        raise ConformanceError("\n".join([f"{len(failed)} of {len(outcomes)} checks failed", *lines]))
