"""ShardWriter: one search's way into the store. Rows are gathered and written every few seconds, in the background."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from rayprompt.candidate import Candidate, TextPrompt
from rayprompt.pairs import Answers
from rayprompt.scores import FloatArray, IntArray
from rayprompt.store.compact import compact_shards
from rayprompt.store.schema import CANDIDATES, SCORES, Context, ShardName, metadata_of, new_incarnation, to_parquet
from rayprompt.store.store import ScoreStore

FLUSH_SECONDS = 5.0
MOST_ROWS = 4_000_000  # of a buffer: then it is written at once
MOST_SHARDS = 128  # files of one writer, after which they are made into one


@dataclass
class _Buffer:
    """Rows that wait to be written."""

    keys: dict[str, int] = field(default_factory=dict)
    blocks: list[tuple[Any, ...]] = field(default_factory=list)
    asks: list[tuple[int, tuple[Candidate, ...]]] = field(default_factory=list)
    rows: int = 0


class ShardWriter:
    """Writes the pairs that the LM ran for one search on one part, and the candidates it asked for.

    A recorded ask is durable only when its pairs are: the file of pairs is written first.

    Args:
        store: where to.
        search: who writes; its files bear the name.
        context: what decided the scores.
        part, split: of the task; every row is tagged with them.
        examples: (E,) digests; rows name examples by their index here.
        origin: ``search``, or ``report`` for what is scored outside of a search.
        samples: of each example.
        judge: what the values of completions are by.
    """

    def __init__(
        self,
        store: ScoreStore,
        search: str,
        context: Context,
        *,
        part: str,
        split: str,
        examples: Sequence[str],
        origin: str = "search",
        samples: int = 1,
        judge: str = "",
    ) -> None:
        self.store = store
        self.search = search
        self.context = context
        self.part = part
        self.split = split
        self.examples = pa.array(examples, pa.string())
        self.origin = origin
        self.samples = samples
        self.judge = judge
        self.flush_seconds = FLUSH_SECONDS
        self.incarnation = new_incarnation()
        self.number = 0
        self.shards = 0
        self.buffer = _Buffer()
        self.written_at = time.monotonic()
        self.thread: ThreadPoolExecutor | None = None
        self.running: Future[None] | None = None

    def add(
        self,
        keys: Sequence[str],
        candidate: IntArray,
        column: IntArray,
        value: FloatArray,
        answers: Answers,
    ) -> None:
        """Take P new pairs, ``keys[candidate[i]]`` on column ``column[i]`` of a pair table; nothing is copied."""
        known = self.buffer.keys
        codes = np.fromiter((known.setdefault(key, len(known)) for key in keys), dtype=np.int32, count=len(keys))
        self.buffer.blocks.append((codes[candidate], column, value, answers))
        self.buffer.rows += len(candidate)

    def add_asks(self, generation: int, candidates: Sequence[Candidate]) -> None:
        """Record what was asked for in a generation, after its pairs were added."""
        self.buffer.asks.append((generation, tuple(candidates)))

    def tick(self) -> None:
        """Start writing if it is time to. Raises what the last write failed with.

        Raises:
            StoreError: the last write failed.
        """
        if self.running is not None and self.running.done():
            self._join()
        due = time.monotonic() - self.written_at >= self.flush_seconds or self.buffer.rows >= MOST_ROWS
        if due and self.running is None:
            self._start()
        elif self.buffer.rows >= MOST_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write everything, and return when it is written.

        Raises:
            StoreError: a file could not be written.
        """
        self._join()
        self._start()
        self._join()

    def close(self) -> None:
        """Write everything and make few files of many.

        Raises:
            StoreError: a file could not be written.
        """
        self.flush()
        if self.shards > 1:
            self._compact()
        if self.thread is not None:
            self.thread.shutdown()
            self.thread = None

    def _start(self) -> None:
        self.written_at = time.monotonic()
        if not self.buffer.rows and not self.buffer.asks:
            return
        full, self.buffer = self.buffer, _Buffer()
        if self.thread is None:
            self.thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self.running = self.thread.submit(self._write, full)

    def _join(self) -> None:
        running, self.running = self.running, None
        if running is not None:
            running.result()

    def _write(self, buffer: _Buffer) -> None:
        self.store.before_write()
        self.number += 1
        if buffer.rows:
            self._write_table("scores", self._pairs(buffer), context=self.context.to_json())
        if buffer.asks:
            generations = [generation for generation, _ in buffer.asks]
            self._write_table("candidates", self._candidates(buffer), last_generation=max(generations))
        self.shards += 1
        if self.shards > MOST_SHARDS:
            self._compact()

    def _write_table(self, kind: str, table: pa.Table, **metadata: Any) -> None:
        part, context = (self.part, self.context.key) if kind == "scores" else (self.origin, "all")
        name = ShardName(self.search, part, context, self.incarnation, self.number)
        content, _ = to_parquet(kind, [table], metadata_of(kind, search=self.search, **metadata))
        self.store.folder.child(kind).write(str(name.of(content)), content)

    def _pairs(self, buffer: _Buffer) -> pa.Table:
        blocks = buffer.blocks
        candidate, column, value = (np.concatenate([block[i] for block in blocks]) for i in range(3))
        answers = [block[3] for block in blocks]
        log_probs, tokens, seconds, reason = (
            np.concatenate([getattr(a, name) for a in answers])
            for name in ("label_log_probs", "tokens", "seconds", "reason")
        )
        count, labels = log_probs.shape
        offsets = pa.array(np.arange(count + 1, dtype=np.int32) * labels)
        scores = pa.ListArray.from_arrays(
            offsets, pa.array(log_probs.reshape(-1), pa.float32()), type=SCORES.field("label_log_probs").type
        )
        writes = answers[0].completion is not None
        columns = {
            "context": _constant(self.context.key, count),
            "candidate": pa.DictionaryArray.from_arrays(pa.array(candidate), pa.array(list(buffer.keys), pa.string())),
            "example": pa.DictionaryArray.from_arrays(
                pa.array((column // self.samples).astype(np.int32)), self.examples
            ),
            "sample": pa.array((column % self.samples).astype(np.int16)),
            "part": _constant(self.part, count),
            "split": _constant(self.split, count),
            "value": pa.array(value.astype(np.float32)),
            "label_log_probs": scores,
            "tokens": pa.array(tokens.astype(np.int32)),
            "seconds": pa.array(seconds.astype(np.float32)),
            "search": _constant(self.search, count),
            "completion": pa.nulls(count, pa.string()),
            "written": pa.nulls(count, pa.int32()),
            "judge": pa.nulls(count, SCORES.field("judge").type),
            "reason": pa.array(reason.astype(np.int8)),
        }
        if writes:
            columns["completion"] = pa.array(np.concatenate([a.completion for a in answers]), pa.string())
            columns["written"] = pa.array(np.concatenate([a.written for a in answers]).astype(np.int32))
            columns["judge"] = _constant(self.judge, count)
        return pa.table(columns, schema=SCORES)

    def _candidates(self, buffer: _Buffer) -> pa.Table:
        rows = [(g, i, c) for g, candidates in buffer.asks for i, c in enumerate(candidates)]
        columns = {
            "candidate": [c.key for _, _, c in rows],
            "kind": pa.array([c.kind for _, _, c in rows]).dictionary_encode(),
            "text": [c.text if isinstance(c, TextPrompt) else None for _, _, c in rows],
            "form": [json.dumps(c.to_json(), ensure_ascii=False) for _, _, c in rows],
            "search": _constant(self.search, len(rows)),
            "origin": _constant(self.origin, len(rows)),
            "generation": [g for g, _, _ in rows],
            "position": [i for _, i, _ in rows],
        }
        return pa.table(columns, schema=CANDIDATES)

    def _compact(self) -> None:
        """One file of all that this search has written on this part."""
        compact_shards(self.store, "scores", search=self.search, part=self.part, context=self.context.key)
        compact_shards(self.store, "candidates", search=self.search, part=self.origin)
        self.shards = 1


def _constant(value: str, count: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, dtype=np.int32)), pa.array([value], pa.string()))
