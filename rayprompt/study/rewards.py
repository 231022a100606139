"""Many reward models at once: each fit is a Tune trial, and its predictions a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from threadpoolctl import threadpool_limits

from rayprompt.candidate import digest
from rayprompt.errors import InputError, RayPromptError
from rayprompt.reward.demonstrations import Demonstrations
from rayprompt.reward.evaluation import quality
from rayprompt.reward.folds import folds
from rayprompt.reward.models import model_class
from rayprompt.scores import FloatArray
from rayprompt.study.progress import Listener, Progress, silent
from rayprompt.study.session import Cluster, connected
from rayprompt.study.tuning import quiet_tune

FITS = "fits"


@dataclass(frozen=True)
class Fit:
    """A reward model to be fitted.

    Attributes:
        model, settings: its name, and what differs from its defaults.
        prompts: ids of the prompts to learn from; None is all.
        fold: (count, k): learned from all folds of train but the k-th, and judged on that; None: learned from all of
            train, and judged on test.
        by, seed: what folds never tear apart, and the seed of folds and model.
    """

    model: str = "logistic-per-prompt"
    settings: Mapping[str, Any] = field(default_factory=dict)
    prompts: tuple[str, ...] | None = None
    fold: tuple[int, int] | None = None
    by: str = "template"
    seed: int = 0

    @property
    def key(self) -> str:
        """A name that is its own."""
        return f"{self.model}-{digest(asdict(self))[:12]}"


def run_fit(fit: Fit, train: Demonstrations, test: Demonstrations | None) -> tuple[FloatArray, Demonstrations]:
    """(I, P) the probabilities of a fit, and the demonstrations they are for; on one thread, whoever calls.

    Raises:
        InputError: it names what is not there.
    """
    judged = test
    if fit.fold is not None:
        fold = folds(train, fit.fold[0], by=fit.by, seed=fit.seed)
        judged = train.of(instances=fold == fit.fold[1])
        train = train.of(instances=fold != fit.fold[1])
    if judged is None:
        raise InputError("a fit without a fold is judged on test, and there are no test demonstrations")
    if fit.prompts is not None:
        missing = set(fit.prompts) - set(train.prompt_ids)
        if missing:
            raise InputError(f"no prompt {sorted(missing)[0]!r} in the demonstrations")
        train = train.of(prompts=[train.prompt_ids.index(i) for i in fit.prompts])
    with threadpool_limits(1):
        model = model_class(fit.model)(**fit.settings).fit(train, seed=fit.seed)
        return model.predict(judged.texts, judged.prompts), judged


class FitTrial(tune.Trainable):
    """One fit; its process goes on to the next."""

    def setup(
        self,
        config: dict[str, Any],
        fits: Sequence[Fit] = (),
        train: Demonstrations | None = None,
        test: Demonstrations | None = None,
        out: str = "",
    ) -> None:
        """``fits``: all of them; the config says which."""
        self.fits, self.train_on, self.test_on, self.out = fits, train, test, Path(out)
        self.fit = fits[config["fit"]]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take another fit."""
        self.fit = self.fits[new_config["fit"]]
        return True

    def step(self) -> dict[str, Any]:
        """Fit, judge, and write the predictions."""
        try:
            assert self.train_on is not None
            p, judged = run_fit(self.fit, self.train_on, self.test_on)
            _write(self.out / f"{self.fit.key}.npy", p)
            return {**quality(p, judged.correct).to_json(), "error": "", "done": True}
        except RayPromptError as error:
            return {"auc": float("nan"), "error": str(error), "done": True}


def fit_many(
    fits: Sequence[Fit],
    train: Demonstrations,
    test: Demonstrations | None = None,
    *,
    out: Path,
    cluster: Cluster | None = None,
    listener: Listener = silent,
) -> list[FloatArray]:
    """The probabilities (I, P) of each fit, computed side by side as trials of one Tune experiment in ``out``.

    Those whose file is there already (of a run that was interrupted) are not computed again.

    Raises:
        InputError: a fit names what is not there.
    """
    folder = out / FITS
    folder.mkdir(parents=True, exist_ok=True)
    train.digest, test.digest if test is not None else None  # noqa: B018 (worked out once, before they travel)
    mark = folder / "data.txt"
    data = f"{train.digest} {'' if test is None else test.digest}\n"
    if mark.is_file() and mark.read_text() != data:
        raise InputError(f"{out}: holds fits of other demonstrations; give another --out")
    mark.write_text(data)
    left = [i for i, fit in enumerate(fits) if not (folder / f"{fit.key}.npy").is_file()]
    if left:
        with connected(cluster or Cluster(), listener), quiet_tune():
            listener(Progress("search", f"{len(left)} fits"))
            outcome = tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(FitTrial, fits=list(fits), train=train, test=test, out=str(folder.resolve())),
                    {"cpu": 1},
                ),
                param_space={"fit": tune.grid_search(left)},
                tune_config=tune.TuneConfig(
                    reuse_actors=True, trial_dirname_creator=lambda t: fits[t.config["fit"]].key
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=str(out.resolve()),
                    verbose=0,
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            ).fit()
        for result in (outcome[i] for i in range(len(outcome))):
            error = str(result.error or "") or (result.metrics or {}).get("error", "")
            if error:
                raise InputError(error.strip().splitlines()[-1])
    return [np.load(folder / f"{fit.key}.npy", allow_pickle=False) for fit in fits]


def _write(path: Path, p: FloatArray) -> None:
    part = path.with_suffix(".part.npy")
    np.save(part, p)
    part.rename(path)
