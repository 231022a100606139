"""Deep prompts on a loaded LM: vectors put in before any layer, and passes that go through some of the layers only.

Deep prompts: BBTv2 (Sun et al., 2022, arXiv 2205.11200, section 3). While one layer is tuned, all candidates have the
same prompts below it, and so the same hidden states enter it: these are computed once, and passes begin there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rayprompt.errors import ScoringError
from rayprompt.lm.encode import EncodedPart
from rayprompt.lm.labels import Labels
from rayprompt.lm.rows import input_lengths, rows_of
from rayprompt.lm.soft import Captured, Injection, SoftBlock, transformer_layers
from rayprompt.scores import FloatArray

if TYPE_CHECKING:
    import torch

    from rayprompt.lm.forward import LabelForward
    from rayprompt.lm.scorer import LMScorer

CLIP_ROUNDS, CLIP_AT = 5, 3.0
PROBE_TOKENS = 7
MEASURED_TOKENS = 8192  # of the first examples: enough for a standard deviation, and the memory is bounded
MEASURED_ROWS = 16
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}  # of the logits' spread


@dataclass
class Course:
    """Which layers a forward pass goes through.

    Attributes:
        first: the layers below are left out; ``states`` (B, T, width) are what enters this one.
        stop: the layer before which the pass ends: what would enter it comes out as :class:`Captured`.
    """

    first: int = 0
    states: torch.Tensor | None = None
    stop: int | None = None
    layer: int = 0  # the next one
    beside: tuple[Any, ...] = ()  # what the first layer gave besides hidden states


class Layers:
    """The transformer layers of an LM (of an encoder-decoder LM those of the encoder), one by one.

    The model's own forward runs, and so do its layers; what is new is what they are given, and that some are left out.

    Attributes:
        count: of layers.
        jumps: whether a pass may begin above layer 0: asked of the LM itself. Else every pass goes through all.
    """

    def __init__(self, forward: LabelForward, vocab_size: int) -> None:
        model = forward.model
        self.count = int(model.config.num_hidden_layers)
        self.local = threading.local()
        self.jumps = False  # until the LM has been asked: others may score with it meanwhile
        layers = transformer_layers(self._body(forward), model.config)
        usual = [layer.forward for layer in layers]
        for layer in layers:
            layer.forward = self._going(layer.forward)
        forward.layers = self
        try:
            self.jumps = self._probe(forward, vocab_size)
        except BaseException:
            forward.layers = None
            for layer, before in zip(layers, usual, strict=True):
                layer.forward = before
            raise

    def put(self, injection: Injection | None, course: Course | None) -> None:
        """What this thread's next forward pass gets, and where it goes; None for nothing, and for all layers."""
        self.local.injection = injection
        self.local.course = course or (None if injection is None else Course())

    def _going(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A layer's forward that keeps to the course."""

        def run(*inputs: Any, **keywords: Any) -> Any:
            course: Course | None = getattr(self.local, "course", None)
            if course is None:
                return forward(*inputs, **keywords)
            number, course.layer = course.layer, course.layer + 1
            hidden = inputs[0] if inputs else keywords["hidden_states"]
            if number < course.first:
                return self._past(course, number, hidden, lambda: forward(*inputs, **keywords))
            if number == course.first and course.states is not None:
                hidden = course.states
            if number == course.stop:
                raise Captured(hidden)
            injection: Injection | None = getattr(self.local, "injection", None)
            if injection is not None and number > 0:
                hidden = injection.put(number, hidden)
            if inputs:
                return forward(hidden, *inputs[1:], **keywords)
            return forward(**{**keywords, "hidden_states": hidden})

        return run

    def _past(self, course: Course, number: int, hidden: torch.Tensor, forward: Callable[[], Any]) -> Any:
        """What a layer that is left out gives: its input, and beside it what the first one gives (T5's distances)."""
        if not self.tuples:
            return hidden
        if number == 0:
            course.beside = forward()[1:]
        return (hidden, *course.beside)

    def _probe(self, forward: LabelForward, vocab_size: int) -> bool:
        """Whether a pass that begins in the middle ends as one that goes through all layers.

        Raises:
            ScoringError: the LM runs other layers than were found.
        """
        import torch

        self.tuples = False
        ids = np.random.default_rng(0).integers(vocab_size // 8, vocab_size, (1, PROBE_TOKENS))
        tokens = torch.from_numpy(ids).to(forward.device)
        labels = Labels(tuple((int(i),) for i in ids[0, :2]))
        arguments = (tokens, torch.ones_like(tokens), torch.full((1,), 1, device=forward.device), labels)
        whole = Course()
        with torch.inference_mode():
            hook = None
            layers = transformer_layers(self._body(forward), forward.model.config)
            hook = layers[0].register_forward_hook(self._look)
            try:
                logits = forward(*arguments, course=whole).float()
            finally:
                hook.remove()
            if whole.layer != self.count:
                raise ScoringError(
                    f"{type(forward.model).__name__}: {whole.layer} layers were run and {self.count} are known, so it "
                    "takes no deep prompts"
                )
            middle = self.count // 2
            if not middle:
                return False
            try:
                forward(*arguments, course=Course(stop=middle))
                return False
            except Captured as captured:
                states = captured.states
            try:
                again = forward(*arguments, course=Course(middle, states)).float()
            except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
                return False
        dtype = str(states.dtype).removeprefix("torch.")
        worst = float((again - logits).abs().max())
        return worst <= TOLERANCE.get(dtype, 1e-4) * max(1e-3, float(logits.std()))

    @staticmethod
    def _body(forward: LabelForward) -> Any:
        model = forward.model
        return model.get_encoder() if model.config.is_encoder_decoder else model.base_model

    def _look(self, module: Any, inputs: Any, output: Any) -> None:
        self.tuples = isinstance(output, tuple)


def clipped_std(values: FloatArray, rounds: int = CLIP_ROUNDS, at: float = CLIP_AT) -> float:
    """The standard deviation of values, once what is far out has been clipped, several times over.

    In each of ``rounds`` rounds, what is more than ``at`` standard deviations from the mean is moved to that bound
    (BBTv2's code, deepbbt.py): a few hidden units of a pre-trained LM are tens of times as large as all others.
    """
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    for _ in range(rounds):
        mean, std = values.mean(), values.std()
        values = values.clip(mean - at * std, mean + at * std)
    return float(values.std())


def hidden_stds(scorer: LMScorer, part: EncodedPart, block: SoftBlock, layers: Sequence[int]) -> dict[int, float]:
    """The clipped standard deviation of the hidden states that enter each of ``layers`` (1 and above), by layer.

    Of the part's first examples, with the block's first prompt in them; padding does not count.
    """
    import torch

    if scorer.device.type == "cpu" and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    stack, space = scorer.layers, block.subspace
    labels = Labels(((0,),))  # nothing is read
    count = max(1, int((input_lengths(part, space).cumsum() <= MEASURED_TOKENS).sum()))
    found: dict[int, float] = {}
    with torch.inference_mode():
        vectors = scorer.soft.vectors(block, np.zeros(1, dtype=np.int64))
        batches = [
            rows
            for _, rows in rows_of(
                part, space, np.arange(count), scorer.device, rows=scorer.rows(MEASURED_ROWS), tokens=MEASURED_TOKENS
            )
        ]
        states: list[torch.Tensor | None] = [None] * len(batches)
        first = 0
        for layer in layers:
            values = []
            for i, rows in enumerate(batches):
                one = vectors.of(torch.zeros(len(rows.ids), dtype=torch.int64, device=scorer.device))
                injection = Injection.from_start(one, space.length, rows.start, replace=space.front > 0)
                course = Course(first, states[i], layer)
                try:
                    scorer.forward(rows.ids, rows.mask, rows.read, labels, injection, space.front, course)
                except Captured as captured:
                    values.append(captured.states[rows.mask > 0].float().cpu().numpy())
                    states[i] = captured.states.clone() if stack.jumps else None
            first = layer if stack.jumps else 0
            found[layer] = clipped_std(np.concatenate(values))
    return found
