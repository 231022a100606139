"""From a request to what an LM takes at a time: pairs sorted into forward passes, passes put into loads."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from rayprompt.lm.encode import EncodedPart, sizes_of
from rayprompt.lm.packed import Pack
from rayprompt.lm.scorer import Bucket, LMScorer
from rayprompt.lm.shapes import Inputs, PackTable, Reuse, ShapeTable
from rayprompt.lm.soft import SoftBlock
from rayprompt.lm.write import Draft, WriteTable
from rayprompt.pairs import Answers
from rayprompt.scores import FloatArray, IntArray

Shape = tuple[int, ...]
Table = ShapeTable | PackTable | WriteTable
Load = Bucket | Pack | Draft


@dataclass(frozen=True)
class Request:
    """Pairs to be scored, as a scorer knows them.

    Attributes:
        part: the examples.
        prompts: token ids; of a soft prompt those that stand at its place.
        prompt, example: (P,) the pairs.
        sample: (P,) the number of the sample of each pair that is to be written; None is 0.
        soft: (len(prompts),) rows of the soft prompts in their block; None where there are none.
        front: positions in front of the input that a soft prompt takes.
        keep: whether the keys and values of the part's texts are kept by scorers.
    """

    part: EncodedPart
    prompts: Sequence[tuple[int, ...]]
    prompt: IntArray
    example: IntArray
    soft: IntArray | None = None
    front: int = 0
    keep: bool = True
    sample: IntArray | None = None

    @property
    def sizes(self) -> IntArray:
        """(len(prompts),) their tokens."""
        return sizes_of(self.prompts)

    @classmethod
    def of_all(cls, part: EncodedPart, prompts: Sequence[tuple[int, ...]], count: int | None = None) -> Request:
        """Every prompt with every example, or with the first ``count``."""
        examples = len(part) if count is None else count
        return cls(
            part, prompts, np.repeat(np.arange(len(prompts)), examples), np.tile(np.arange(examples), len(prompts))
        )


def passes_of(table: Table, request: Request) -> list[tuple[Shape, IntArray]]:
    """Sort pairs into forward passes: the shape of each, and the indices of its pairs.

    Raises:
        InputError: a prompt leaves no room even for an empty text.
    """
    if isinstance(table, WriteTable):
        return list(table.passes(request.part, request.prompts, request.prompt, request.example))
    part, sizes, front = request.part, request.sizes, request.front
    lengths = part.reserving(front).lengths(sizes[request.prompt], request.example) + front
    if isinstance(table, ShapeTable):
        return list(table.passes(lengths))
    reuse, nodes = table.reuse(part, front), len(part.labels.nodes)
    inputs = Inputs.of(part, sizes, request.prompt, request.example, reuse, front)
    return [((tokens,), members) for tokens, members in table.passes(inputs, reuse, nodes)]


def loads_of(table: Table, request: Request, passes: Sequence[tuple[Shape, IntArray]]) -> list[Load]:
    """Loads for some passes in a row, one for each shape; their pairs are those of the passes, in order."""
    reuse: Reuse = table.reuse(request.part, request.front) if isinstance(table, PackTable) else "none"
    return [
        _load(request, shape, [members for _, members in same], reuse)
        for shape, same in groupby(passes, key=lambda one: one[0])
    ]


def fill_of(load: Load, part: EncodedPart) -> float:
    """The share of a load's forward passes that its pairs take up; the rest is padding and dummies.

    Of passes with inputs end to end and of padded rows the share of their tokens, of those that write of their rows.
    """
    if isinstance(load, Draft):
        return len(load.prompt) / (load.shape[2] * len(load.ends))
    sizes = sizes_of(load.prompts)
    if isinstance(load, Bucket):
        lengths = part.reserving(load.front).lengths(sizes[load.prompt], load.example) + load.front
        passes = -(-len(load.prompt) // load.rows)
        return float(lengths.sum()) / (load.length * load.rows * passes)
    inputs = Inputs.of(part, sizes, load.prompt, load.example, load.reuse, load.front)
    return float(inputs.own.sum()) / (load.tokens * len(load.ends))


def score_request(
    scorer: LMScorer,
    table: ShapeTable | PackTable,
    request: Request,
    block: SoftBlock | None = None,
    *,
    threads: Executor | None = None,
) -> tuple[FloatArray, IntArray]:
    """Score a request in this process, without Ray: (P, L) label log-probabilities and (P,) tokens of each input.

    ``threads`` run passes side by side; None runs one after the other.
    """
    log_probs = np.empty((len(request.prompt), len(request.part.labels)), dtype=np.float32)
    tokens = np.empty(len(request.prompt), dtype=np.int32)

    def run(one: tuple[Shape, IntArray]) -> None:
        (load,) = loads_of(table, request, [one])
        assert not isinstance(load, Draft)
        log_probs[one[1]], tokens[one[1]], _ = scorer.score(load, request.part, block)

    list((map if threads is None else threads.map)(run, passes_of(table, request)))
    return log_probs, tokens


def write_request(scorer: LMScorer, table: WriteTable, request: Request) -> Answers:
    """Have a request's pairs completed in this process, without Ray."""
    answers = Answers.empty(len(request.prompt), 0)
    for one in passes_of(table, request):
        (load,) = loads_of(table, request, [one])
        assert isinstance(load, Draft)
        answers.put(one[1], scorer.write(load, request.part)[0])
    return answers


def _load(request: Request, shape: Shape, passes: list[IntArray], reuse: Reuse) -> Load:
    members = np.concatenate(passes)
    used, index = np.unique(request.prompt[members], return_inverse=True)
    prompts = tuple(request.prompts[int(i)] for i in used)
    prompt, example = index.astype(np.int32), request.example[members].astype(np.int32)
    if len(shape) == 3:
        sample = np.zeros(len(members), np.int32) if request.sample is None else request.sample[members]
        ends = np.cumsum([len(p) for p in passes])
        return Draft(request.part.key, (shape[0], shape[1], shape[2]), ends, prompts, prompt, example, sample)
    soft = None if request.soft is None else request.soft[used]
    if len(shape) == 2:
        length, rows = shape
        return Bucket(request.part.key, length, rows, prompts, prompt, example, soft, request.front)
    ends = np.cumsum([len(p) for p in passes])
    return Pack(
        request.part.key, shape[0], ends, reuse, request.keep, prompts, prompt, example, soft, request.front
    )  # fmt: skip
