"""Characters as tokens: what an LM behind a service is given is text, and its tokens are not ours to know.

With a tokenizer whose tokens are the characters, prompts and examples go the way of all others, spliced in by their
ids, and the ids of an input are its text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ROLE, CONTENT = "\ue010", "\ue011"  # private use: what stands around a role in the text of a chat
CHARACTERS = 0x110000


class CharacterTokenizer:
    """As much of a transformers tokenizer as an :class:`rayprompt.lm.encode.Encoder` asks for."""

    mask_token_id = unk_token_id = eos_token_id = None
    pad_token_id = 0
    chat_template = "roles and contents"
    all_special_ids: tuple[int, ...] = ()
    added_tokens_decoder: Mapping[int, Any] = {}
    special_texts = (ROLE, CONTENT)

    def __call__(self, text: Any, *, split_special_tokens: bool = False, **options: Any) -> dict[str, Any]:
        """The code points of a text, or of each of several; ``split_special_tokens`` leaves out the marks of a chat."""
        if isinstance(text, str):
            return {"input_ids": self._ids(text, split_special_tokens)}
        return {"input_ids": [self._ids(one, split_special_tokens) for one in text]}

    def __len__(self) -> int:
        return 0  # there is no vocabulary to go through

    def decode(self, ids: Iterable[int], **options: Any) -> str:
        """The text of code points."""
        return "".join(map(chr, ids))

    def batch_decode(self, rows: Iterable[Iterable[int]], **options: Any) -> list[str]:
        """The text of each row."""
        return [self.decode(row) for row in rows]

    def convert_ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """The characters."""
        return [chr(i) for i in ids]

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], **options: Any) -> str:
        """Messages as one text, of which :func:`messages_of` makes messages again."""
        return "".join(f"{ROLE}{message['role']}{CONTENT}{message['content']}" for message in messages)

    def _ids(self, text: str, plain: bool) -> list[int]:
        return [ord(c) for c in text if not (plain and c in (ROLE, CONTENT))]


def messages_of(text: str) -> list[dict[str, str]] | None:
    """The messages that a text stands for; None where it is no chat. Empty ones are left out."""
    if not text.startswith(ROLE):
        return None
    parts = (part.partition(CONTENT) for part in text.split(ROLE)[1:])
    return [{"role": role, "content": content.strip()} for role, _, content in parts if content.strip()]
