"""Where an LM comes from: a bundled name, a folder, here or on object storage, or a name on the Hugging Face hub."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rayprompt.errors import InputError, did_you_mean, last_line
from rayprompt.foreign import parse_json, read_json
from rayprompt.lm.cache import fetched
from rayprompt.lm.characters import CHARACTERS, CharacterTokenizer
from rayprompt.lm.checkpoint import read_config_of
from rayprompt.lm.discovery import discover
from rayprompt.lm.endpoint import MOST_CHARACTERS, Endpoint, Remote, check_named, content_of, is_endpoint, parse
from rayprompt.lm.family import Family, family_of
from rayprompt.lm.replay import PREFIX, is_replay, recorded
from rayprompt.lm.settings import LMSettings
from rayprompt.scores import FloatArray

BUNDLED = Path(__file__).parent.parent / "bundled" / "models"
ROWS_AT_ONCE = 8192
WORD_EMBEDDINGS = (
    *("word_embeddings.weight", "wte.weight", "embed_tokens.weight", "embed_in.weight", "tok_embeddings.weight"),
    "shared.weight",
)
FILES = (
    *("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm", "*.bpe", "*.codes", "*.vocab"),
    "*.py",
)
# What from_pretrained reads of a model, its tokenizer and how it writes; files with these endings all decide.
DECISIVE = (
    *("config.json", "generation_config.json", "adapter_config.json", "model.safetensors.index.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("dict.txt", "encoder.json", "vocab.bpe", "bpe.codes", "tekken.json", "chat_template.json"),
    *("processor_config.json", "preprocessor_config.json"),
)
ENDINGS = (".safetensors", ".model", ".jinja", ".tiktoken", ".spm", ".bpe", ".codes", ".vocab")
FORMERLY = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt")
TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "spm.model"),
    *("sentencepiece.bpe.model", "tekken.json"),
)
WITHOUT_FILES = ("ByT5Tokenizer", "PerceiverTokenizer", "CanineTokenizer")  # tokenizers whose tokens are bytes
# Their position ids begin behind the padding's id, so that many of their positions are never used.
POSITIONS_BEHIND_PADDING = (
    *(
        "roberta",
        "xlm-roberta",
        "xlm-roberta-xl",
        "camembert",
        "data2vec-text",
        "mpnet",
        "xmod",
        "roberta-prelayernorm",
    ),
    *("longformer", "esm", "ibert", "luke", "lilt", "markuplm", "layoutlmv3", "altclip_text_model"),
)
LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")


@dataclass(frozen=True)
class LMSource:
    """A frozen LM, described without loading its weights. Small and picklable: this is what travels to actors.

    Attributes:
        name: as the user gave it.
        location: a bundled name, the absolute path of a local folder, a URI, or a hub name: what loads it anywhere.
        family: the import path of its :class:`Family`, ``module:Class``.
        digest: digest of every file that decides a score: weights, configs, tokenizer, chat template.
        former: the digest that earlier versions had, which left out some of these files.
        vocab_size, hidden_size, layers, max_length: from its config; ``max_length`` in tokens, specials included.
        width: of its embedding layer's output, where a soft prompt is put in.
        parameters: numbers in its files.
        settings: how it is run.
        endpoint: where it is spoken to, of an LM behind a service; None where it is loaded here.
        replay: whether nothing is run, and a study's stored scores answer.
    """

    name: str
    location: str
    family: str
    digest: str
    vocab_size: int
    hidden_size: int
    layers: int
    max_length: int
    width: int = 0
    parameters: int = 0
    settings: LMSettings = LMSettings()
    endpoint: Endpoint | None = None
    replay: bool = False
    former: str = ""

    def same(self, digest: str | None) -> bool:
        """Whether a digest on record is this LM's, by today's rule or by the former one."""
        return digest is not None and digest in (self.digest, self.former)

    def as_recorded(self, digest: str | None) -> LMSource:
        """The LM under the digest that a study has on record, if it is the same: its stored scores go by that."""
        return replace(self, digest=digest) if digest and self.same(digest) else self

    @property
    def trust(self) -> dict[str, bool]:
        """Arguments that load tokenizer and model with Python code of their own: none unless the user trusts it."""
        return {"trusted": True} if self.settings.trust_remote_code else {}

    @property
    def path(self) -> Path:
        """The local folder of its files; on another node of the cluster they may have to be fetched first."""
        return model_folder(self.location)


def model_names() -> list[str]:
    """The names of the bundled LMs."""
    return sorted(p.parent.name for p in BUNDLED.glob("*/config.json"))


def describe_model(
    name: str, settings: LMSettings | None = None, words: Sequence[str] | None = None
) -> tuple[LMSource, Family]:
    """Read an LM's config and digest its files; no weights are loaded.

    ``words``: the label words of the task, none where the LM writes. An LM behind a service is asked what it can do for
    them; where None is given, it is refused: what is done there needs an LM that is loaded here.

    Raises:
        InputError: there is no such LM, its files are incomplete, or its family is not supported; or nothing answers
            at an endpoint.
    """
    settings = settings or LMSettings()
    if is_replay(name):
        return describe_replay(name, settings, words)
    settings.check_for(name, endpoint=is_endpoint(name))
    if is_endpoint(name):
        if words is None:
            raise InputError(f"model {name}: is behind a service; this needs an LM that is loaded here")
        return source_of_endpoint(name, settings, discover(name, settings, words))
    quiet()
    folder = model_folder(name)
    missing = _missing(folder)
    if missing:
        raise InputError(f"model {name}: {folder} holds no {missing}")
    trusted = settings.trust_remote_code
    config = _read_config(name, folder, trusted=trusted)
    family = family_of(config, name)
    text = config.get_text_config()
    source = LMSource(
        name=name,
        location=str(folder.resolve()) if _is_local(name) else name,
        family=f"{type(family).__module__}:{type(family).__qualname__}",
        digest=_digest(folder, code=trusted),
        former=_digest(folder, former=True),
        vocab_size=int(text.vocab_size),
        hidden_size=int(text.hidden_size),
        layers=int(text.num_hidden_layers),
        max_length=_max_length(text, folder),
        width=int(getattr(text, "embedding_size", None) or text.hidden_size),
        parameters=_parameters(name, folder),
        settings=settings,
    )
    return source, family


def describe_replay(name: str, settings: LMSettings, words: Sequence[str] | None = None) -> tuple[LMSource, Family]:
    """An LM of a finished study, whose scores are in its store. Its weights are not needed, its tokenizer is.

    Raises:
        InputError: there is no such study, the LM is another one than it was, or settings are given.
    """
    was = recorded(name)
    then = LMSettings.of(was.settings).without(("trust_remote_code",))  # another's study starts no code
    if settings.changed() and settings != then:
        raise InputError(f"model {name}: runs as it was recorded; leave --lm out")
    if was.endpoint is not None:
        source, family = source_of_endpoint(was.location, then, recorded_endpoint(was.location, was.endpoint))
    else:
        check_named([was.location], f"{was.study}/study.yaml")
        source, family = describe_model(was.location, then, words)
    if not source.same(was.digest):
        raise InputError(f"model {name}: {was.location} is another LM than the study had (its files have changed)")
    source = source.as_recorded(was.digest)
    location = f"{PREFIX}{was.study}" + (f"#{name.rpartition('#')[2]}" if "#" in name else "")
    return replace(source, name=name, location=location, replay=True), family


def recorded_endpoint(name: str, found: Mapping[str, Any]) -> Endpoint:
    """The endpoint of that name as a study has found it."""
    rule, chat = int(found.get("rule", 1)), found.get("api") == "chat"
    labels = str(found.get("labels", "text" if rule == 1 else ""))
    return replace(parse(name), chat=chat, labels=labels, top=int(found.get("top", 0)), rule=rule)


def source_of_endpoint(name: str, settings: LMSettings, endpoint: Endpoint) -> tuple[LMSource, Family]:
    """An LM behind a service of which all is known. Its tokens are characters, see :mod:`rayprompt.lm.characters`."""
    source = LMSource(
        name=name,
        location=name,
        family=f"{Remote.__module__}:{Remote.__qualname__}",
        digest=content_of(endpoint),
        vocab_size=CHARACTERS,
        hidden_size=0,
        layers=0,
        max_length=MOST_CHARACTERS,
        settings=settings,
        endpoint=endpoint,
    )
    return source, Remote()


def _parameters(name: str, folder: Path) -> int:
    """How many numbers its files hold; only their headers are read."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                if size > path.stat().st_size:
                    raise ValueError("it is cut")
                header = parse_json(file.read(size))
            total += sum(math.prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"model {name}: {path} is not a safetensors file") from None
    return total


def embedding_std(name: str) -> float:
    """The standard deviation of the entries of an LM's word embeddings, as they enter it; only those are read.

    Raises:
        InputError: its files have no word embeddings that can be told by their name.
    """
    import torch
    from safetensors import safe_open

    folder = model_folder(name)
    config = _read_config(name, folder)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                if key.endswith(WORD_EMBEDDINGS):
                    # Gemma, and BART where its config says so, multiply them before anything else is done.
                    scaled = config.model_type.startswith("gemma") or getattr(config, "scale_embedding", False)
                    pieces = torch.split(file.get_tensor(key), ROWS_AT_ONCE)
                    moments = [(p.numel(), p.sum(), p.square().sum()) for p in (x.to(torch.float64) for x in pieces)]
                    count, total, squares = (float(sum(column)) for column in zip(*moments, strict=True))
                    variance = squares / count - (total / count) ** 2
                    return float(variance**0.5 * (config.hidden_size**0.5 if scaled else 1.0))
    names = ", ".join(WORD_EMBEDDINGS)
    raise InputError(f"model {name}: no tensor of its files is named like word embeddings ({names})")


def word_vectors(name: str, dims: int) -> FloatArray | None:
    """(V, dims) float32 the LM's word embeddings along their ``dims`` widest directions, at a mean square of 1 a row.

    Only the embeddings are read from the LM's files. None where no tensor is named like them.
    """
    import torch
    from safetensors import safe_open

    for path in sorted(model_folder(name).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                if key.endswith(WORD_EMBEDDINGS):
                    rows = file.get_tensor(key).to(torch.float32)
                    rows = rows - rows.mean(dim=0)
                    moments = (rows.T @ rows).to(torch.float64)
                    _, directions = torch.linalg.eigh(moments)
                    widest = directions[:, -min(dims, rows.shape[1]) :].to(torch.float32)
                    found = rows @ widest
                    return np.asarray((found / found.square().sum(dim=1).mean().sqrt()).numpy())
    return None


def _missing(folder: Path) -> str | None:
    """What a checkpoint in ``folder`` lacks, or None."""
    if not (folder / "config.json").is_file():
        return "config.json (a transformers checkpoint is wanted)"
    if not any(folder.glob("*.safetensors")):
        return "*.safetensors (pickled weights are not loaded)"
    if not any((folder / f).is_file() for f in TOKENIZER_FILES) and not any(folder.glob("*.tiktoken")):
        settings = folder / "tokenizer_config.json"
        if not settings.is_file() or read_json(settings).get("tokenizer_class") not in WITHOUT_FILES:
            return "tokenizer (tokenizer.json)"
    return None


def model_folder(name: str) -> Path:
    """The local folder with the LM's files, fetched from the hub where it must be.

    Raises:
        InputError: there is no such LM.
    """
    if is_replay(name):
        return model_folder(recorded(name).location)
    if "://" in name:
        return fetched(name, FILES)
    if (BUNDLED / name / "config.json").is_file():
        return BUNDLED / name
    path = Path(name).expanduser()
    if _is_local(name):
        return path
    if path.exists():
        raise InputError(f"model {name} is a file; a model is a folder with config.json, a tokenizer and safetensors")
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local:
        raise InputError(f"no such model folder: {name}")
    return _from_hub(name)


def _is_local(name: str) -> bool:
    return not (BUNDLED / name / "config.json").is_file() and Path(name).expanduser().is_dir()


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError, HFValidationError, FileNotFoundError):
        cached = Path(snapshot_download(name, allow_patterns=list(FILES), local_files_only=True))
        if _missing(cached) is None:  # a cache may hold the tokenizer alone
            return cached
    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # the hub client raises many types; all mean: not to be had
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"unknown model {name!r}{did_you_mean(name, model_names())}: not bundled ({', '.join(model_names())}), "
            f"no such folder, and not to be had from the Hugging Face hub ({reason[:120]})"
        ) from None


def _read_config(name: str, folder: Path, *, trusted: bool = False) -> Any:
    try:
        config = read_config_of(folder, trusted=trusted)
        text = config.get_text_config()
        lacks = [field for field in ("vocab_size", "hidden_size", "num_hidden_layers") if not hasattr(text, field)]
        if lacks:
            raise InputError(f"a {type(text).__name__} has no {lacks[0]}: it is not the config of an LM of text")
        return config
    except InputError as error:
        raise InputError(f"model {name}: {error}") from None
    except Exception as error:  # broken config files surface as many types
        raise InputError(f"model {name}: its config.json cannot be used ({last_line(error)[:160]})") from None


def read_config(name: str) -> Any:
    """The config of any transformers checkpoint whose files are whole: bundled, a folder, or of the hub.

    Raises:
        InputError: there is no such model, its files are incomplete, or its config cannot be used.
    """
    quiet()
    folder = model_folder(name)
    missing = _missing(folder)
    if missing:
        raise InputError(f"model {name}: {folder} holds no {missing}")
    return _read_config(name, folder)


def model_digest(name: str) -> str:
    """Digest of a checkpoint's files, see :class:`LMSource`."""
    return _digest(model_folder(name))


def load_tokenizer(name: str, *, trusted: bool = False) -> Any:
    """The LM's tokenizer. ``trusted``: Python code that comes with it may run.

    Raises:
        InputError: it cannot be loaded.
    """
    if is_endpoint(name) or (is_replay(name) and is_endpoint(recorded(name).location)):
        return CharacterTokenizer()
    from transformers import AutoTokenizer

    quiet()
    folder = model_folder(name)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
    except Exception as error:  # broken tokenizer files surface as many types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"model {name}: its tokenizer cannot be loaded ({reason[:160]})") from None


def quiet() -> None:
    """Progress bars and advice of transformers are not our output."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _max_length(config: Any, folder: Path) -> int:
    """The longest input in tokens: the least of what the config's positions and the tokenizer allow.

    Raises:
        InputError: tokenizer_config.json cannot be read.
    """
    given = (getattr(config, name, None) for name in LIMITS)
    stated = next((int(n) for n in given if isinstance(n, int) and not isinstance(n, bool) and n > 0), 0)
    if config.model_type in POSITIONS_BEHIND_PADDING and stated:
        padding = getattr(config, "pad_token_id", None)
        stated -= 1 + (1 if padding is None or config.model_type == "mpnet" else int(padding))
    limits = [stated]
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        own: Any = read_json(settings).get("model_max_length")
        usable = isinstance(own, int | float) and not isinstance(own, bool) and own == own
        limits.append(int(max(0, min(own, 1_000_000))) if usable else 0)
    return min((limit for limit in limits if limit > 0), default=1024)


def _digest(folder: Path, *, code: bool = False, former: bool = False) -> str:
    """SHA-256 over names and contents of the files that decide a score, the first 32 hex digits.

    ``code``: with the Python files, which are run. ``former``: by the rule of earlier versions.
    """
    total = hashlib.sha256()
    scripts = sorted(folder.rglob("*.py")) if code else []
    for path in (*_files(folder, former=former), *scripts):
        total.update(path.name.encode() + b"\0" + _file_digest(path))
    return total.hexdigest()[:32]


def _file_digest(path: Path) -> bytes:
    stat = path.stat()
    return _content_digest(str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=256)
def _content_digest(path: str, *version: int) -> bytes:
    """A file's digest; the key tells another version of the file, so that it is read once."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _files(folder: Path, *, former: bool) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if not path.is_file():
            continue
        name = path.name
        if former:
            if name in FORMERLY or path.suffix == ".safetensors" or name == "tokenizer.model":
                yield path
        elif name in DECISIVE or path.suffix in ENDINGS or (name.startswith("tokenizer") and name.endswith(".json")):
            yield path
