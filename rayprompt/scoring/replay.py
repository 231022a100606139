"""A pool without an LM: every score comes from the store of a study that is replayed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rayprompt.candidate import SoftPrompt, Subspace, parse_candidate
from rayprompt.errors import InputError, ScoringError
from rayprompt.lm.replay import recorded
from rayprompt.lm.source import LMSource
from rayprompt.scoring.actor import ScorerInfo
from rayprompt.scoring.unloaded import UnloadedPool
from rayprompt.store.store import ScoreStore


@dataclass(frozen=True)
class NoTable:
    """Stands for the batch shapes: nothing is run."""

    study: str

    def to_json(self) -> dict[str, Any]:
        """For study.yaml."""
        return {"layout": "replay", "study": self.study}


class ReplayPool(UnloadedPool):
    """A pool that knows what a study has stored, and nothing else.

    Attributes:
        replays: the location of the store.
    """

    def __init__(self, source: LMSource) -> None:
        was = recorded(source.location)
        self.source = source
        self.study = str(was.study)
        self.replays: str = was.store
        self.router = None
        device = str(was.pool.get("device_class", "cpu"))
        self.earlier = tuple(was.pool.get("earlier_classes", ()))
        self.infos = [ScorerInfo(device, str(was.pool.get("dtype", "")), 1, "", 0, 0.0, ())]
        self.parts = {}
        self.device_class = device
        self.deterministic = was.endpoint is None
        self.shapes = NoTable(self.study)  # type: ignore[assignment]

    def context(self, problem: Mapping[str, Any]) -> dict[str, Any]:
        """The content of the recorded context of a problem, whose own content is ``problem``.

        Raises:
            InputError: the study has no scores of this task, template or LM.
        """
        found: dict[str, int] = {}
        for shard in ScoreStore(self.replays).shards("scores"):
            text, content = shard.metadata.get("context", ""), shard.context
            if all(content.get(name) == value for name, value in json.loads(json.dumps(dict(problem))).items()):
                found[text] = found.get(text, 0) + shard.rows
        if not found:
            raise InputError(
                f"model {self.source.name}: {self.study} has no scores of this task and template with that LM"
            )
        chosen: dict[str, Any] = json.loads(max(found, key=lambda text: found[text]))
        return chosen

    def stats(self) -> dict[str, int]:
        """There is nothing to count."""
        return {}

    def missing(self, keys: Sequence[str], texts: Sequence[str], examples: Sequence[str], part: str) -> ScoringError:
        """What to raise for pairs that were not recorded: the first of them is named."""
        more = f" ({len(keys)} pairs in all)" if len(keys) > 1 else ""
        return ScoringError(
            f"replay of {self.study}: candidate {keys[0]} ({texts[0][:60]!r}) was not scored there on example "
            f"{examples[0]} of {part}{more}"
        )

    def answers(self, *arguments: Any, **how: Any) -> Iterator[Any]:
        raise self.no_lm()

    def recorded_scales(self, outline: Subspace) -> tuple[float, ...] | None:
        """The scales of a deep prompt's subspace, as the study had them."""
        forms = ScoreStore(self.replays).candidates().column("form").to_pylist()
        for prompt in (parse_candidate(text) for text in forms if '"subspace"' in text):
            if isinstance(prompt, SoftPrompt):
                space = prompt.subspace
                if replace(space, scales=()) == replace(outline, scales=()):
                    return space.scales
        return None

    def shutdown(self) -> None:
        """There is nothing to stop."""

    def no_lm(self) -> InputError:
        return InputError(f"model {self.source.name}: a replay has the scores of {self.study}, not the LM")
