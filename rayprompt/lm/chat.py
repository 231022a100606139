"""Chat templates: the tokenizer's own wraps a task's template, so that the answer is the assistant's turn."""

from __future__ import annotations

from typing import Any

from rayprompt.errors import InputError
from rayprompt.template import Piece, Template

MARKS = ("\ue000", "\ue001")  # private use: in no template


def in_chat(template: Template, tokenizer: Any, chat: str, model: str) -> Template:
    """``template`` inside the tokenizer's chat template.

    ``chat``: ``user`` puts all of it into one user message, ``system`` the prompt into a system message of its own.

    Raises:
        InputError: the LM has no chat template, or none with a system message.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError(f"--lm chat={chat}: {model} has no chat template (its tokenizer_config.json names none)")
    roles = ("user",) if chat == "user" else ("system", "user")
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, MARKS, strict=False)]
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # chat templates raise what they like
        raise InputError(f"--lm chat={chat}: the chat template of {model} does not take it ({error})") from None
    around: list[str] = []
    for mark in MARKS[: len(roles)]:
        if text.count(mark) != 1:
            raise InputError(f"--lm chat={chat}: the chat template of {model} does not show the {roles[len(around)]}")
        before, text = text.split(mark)
        around.append(before)
    contents = [list(template.pieces)]
    if chat == "system":
        contents = [[p for p in template.pieces if p.kind == kind] for kind in ("prompt",)]
        contents.append([p for p in template.pieces if p.kind != "prompt"])
    pieces: list[Piece] = []
    source = ""
    for before, inside in zip(around, contents, strict=True):
        pieces += [Piece("raw", before, ""), *inside]
        source += before + "".join(p.space * bool(i) + _written(p) for i, p in enumerate(inside))
    return Template(source + template.end + text, (*pieces, Piece("raw", template.end + text, "")))


def _written(piece: Piece) -> str:
    return piece.text if piece.kind == "literal" else "{" + piece.text + "}"
