"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from rayprompt.errors import InputError

TaskArgument = Annotated[
    str, typer.Argument(help="A built-in task (see: rayprompt list tasks), or a folder with a task.yaml.")
]
DataOption = Annotated[
    str | None,
    typer.Option(help="The folder of a public task's examples; RAYPROMPT_DATA/TASK, else the hub's, unless said."),
]
ModelOption = Annotated[str, typer.Option(help="A bundled LM, a local folder, or a Hugging Face name.")]
SplitOption = Annotated[str | None, typer.Option(help="The task's split; its first unless said.")]
ScorersOption = Annotated[
    str | None,
    typer.Option(
        metavar="N|MIN:MAX|auto",
        help="Scoring actors: so many; or as there is work and room, asking the autoscaler; auto, one per GPU, also "
        "of machines that join, or one on the CPU.",
    ),
]
GpusOption = Annotated[float | None, typer.Option(help="Share of a GPU of each scoring actor; 1 unless said.")]
StoreOption = Annotated[
    str | None, typer.Option(help="Keep scores in this directory or URI and look them up there; studies share it.")
]
AddressOption = Annotated[
    str | None, typer.Option(help="Ray cluster: local, auto or host:port. RAY_ADDRESS, else local, unless said.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]
FinalistsOption = Annotated[int, typer.Option(help="How many of the best on train are scored on dev.")]
LeaksOption = Annotated[bool, typer.Option(help="Accept texts that stand in train and test.")]
ObjectiveOption = Annotated[
    str | None,
    typer.Option(help="What is maximised: accuracy, f1, cross_entropy, hinge, gap, or a function, module:name."),
]
LMOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lm",
        metavar="KEY=VALUE",
        help="How the LM is run: dtype=bf16, tokens=4096 (of a pass), cache=2GB (keys and values), memory=16GB (of a "
        "scorer), chat=user or system (the LM's chat template). How it writes: max_tokens=64, temperature=0.7, "
        "top_p=0.9, top_k=10, samples=4, stop=TEXT, seed=1. Behind a service: in_flight=64, rate=10 (a second), "
        "timeout=60, tries=8, labels=echo, top or text, price_in=0.15 and price_out=0.6 (of a million tokens), "
        "words=MODEL.",
    ),
]
ExtractorOption = Annotated[
    str | None,
    typer.Option(
        help="Of a generation task: what finds the answer in what the LM writes: last-number, exact, first-line, "
        "regex:PATTERN, choice:A,B, or a function of yours, module:name. The task's unless said."
    ),
]
AnswerScorerOption = Annotated[
    str | None,
    typer.Option(help="Of a generation task: compares the two by match, contains, f1 or module:name."),
]
RaceOption = Annotated[
    bool, typer.Option("--race", help="Score candidates block by block, and drop those that cannot be a finalist.")
]
RaceErrorOption = Annotated[
    float, typer.Option(help="With --race: the probability at which one as good as the last finalist may be lost.")
]
WandbOption = Annotated[
    str | None,
    typer.Option(
        metavar="[PROJECT]",
        help="Show the runs in this project of Weights & Biases, 'rayprompt' unless said; WANDB_API_KEY holds the key.",
    ),
]
MLflowOption = Annotated[
    str | None,
    typer.Option(
        metavar="[EXPERIMENT]",
        help="Show the runs in this experiment of MLflow, 'rayprompt' unless said; or a folder or tracking URI, which "
        "may have #EXPERIMENT behind it. MLFLOW_TRACKING_URI, else the folder mlruns, unless said.",
    ),
]
OutOption = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="The study's directory; new or empty. Also s3://BUCKET/DIR, gs://BUCKET/DIR."),
]
StartOrResumeOption = Annotated[
    bool,
    typer.Option(
        "--start-or-resume", help="Go on with the study in --out if it has begun: for jobs that are submitted again."
    ),
]
OtherMachineOption = Annotated[
    bool,
    typer.Option(
        "--other-machine",
        help="A study that goes on may do so on another class of machine: other last bits from there.",
    ),
]


AllowCodeOption = Annotated[
    bool, typer.Option("--allow-code", help="Let the file of --config name functions (module:function) that are run.")
]


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def parse_settings(pairs: list[str], option: str = "--set") -> dict[str, str]:
    """``KEY=VALUE`` strings as a mapping; the searcher reads the values by the types of its settings.

    Raises:
        InputError: no ``=``, or a key given twice.
    """
    settings: dict[str, str] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key:
            raise InputError(f"{option} {pair}: must be KEY=VALUE")
        if key in settings:
            raise InputError(f"{option} {key}: given twice")
        settings[key] = text
    return settings


def with_defaults(arguments: list[str]) -> list[str]:
    """``--wandb`` and ``--mlflow`` without a value have one."""
    found: list[str] = []
    for i, argument in enumerate(arguments):
        found.append(argument)
        last = i + 1 == len(arguments) or arguments[i + 1].startswith("-")
        if argument in ("--wandb", "--mlflow") and last:
            found.append("rayprompt")
    return found
