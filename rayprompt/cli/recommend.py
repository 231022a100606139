"""``rayprompt recommend``: reward models from logs, and the prompt for each query."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayprompt.cli.options import JsonOption, parse_settings
from rayprompt.errors import InputError

if TYPE_CHECKING:
    from rayprompt.reward.demonstrations import Demonstrations

app = typer.Typer(
    name="recommend",
    help="Reward models, learned offline from logs: which prompt for which query, without asking the LM.",
    rich_markup_mode=None,
    no_args_is_help=True,
)
DemosArgument = Annotated[
    Path, typer.Argument(help="A Parquet file of demonstrations (docs/reward.md), or a study's directory.")
]
LlmOption = Annotated[str | None, typer.Option(help="Of this LM, where the file has several.")]
DatasetOption = Annotated[str | None, typer.Option(help="Of this data set, where the file has several.")]
AnswersOption = Annotated[Path | None, typer.Option(help="A Parquet file with the LM's answers, joined to it: votes.")]
AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FINDING", help="Go on although this makes results false: leak-query, leak-template, constant."
    ),
]
RewardOption = Annotated[str, typer.Option("--reward-model", help="Which (see: rayprompt list reward-models).")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the reward model; may be repeated.")
]
FeaturesOption = Annotated[
    str,
    typer.Option(
        help="What a query is to the model: text (TF-IDF and counts), vectors:FILE (columns text, vector), lm:MODEL "
        "(the scoring actors embed it) or encoder:NAME (a Hugging Face encoder)."
    ),
]
FoldsOption = Annotated[int, typer.Option(help="Of the cross-validation.")]
ByOption = Annotated[
    str, typer.Option(help="What folds never tear apart: query (same text) or template (but numbers).")
]
SeedOption = Annotated[int, typer.Option(help="Of folds and models.")]
DEFAULT = "logistic-per-prompt"


@app.command()
def check(
    demonstrations: DemosArgument, llm: LlmOption = None, dataset: DatasetOption = None, json_: JsonOption = False
) -> None:
    """Count what is in demonstrations, and what is wrong with them."""
    from rayprompt.reward.checks import check as find

    data = read_data(demonstrations, llm, dataset)
    findings = find(data)
    splits = {s: int((data.split == s).sum()) for s in sorted(set(data.split.tolist()))}
    content = {
        "llm": data.llm,
        "queries": len(data.queries),
        "prompts": len(data.prompts),
        "labels": data.rows,
        "correct": float(data.correct[data.known].mean()),
        "splits": splits,
        "findings": [finding.to_json() for finding in findings],
    }
    if json_:
        print(json.dumps(content))
        return
    print(
        f"{data.llm}: {data.rows:,} labels of {len(data.queries):,} queries under {len(data.prompts)} prompts, "
        f"{content['correct']:.1%} right; instances: "
        + ", ".join(f"{count:,} {split}" for split, count in splits.items())
    )
    for finding in findings:
        print(f"{'refused' if finding.refused else 'note'}: {finding.name}: {finding.message}")
    if not findings:
        print("nothing wrong was found")


@app.command()
def fit(
    demonstrations: DemosArgument,
    out: Annotated[Path, typer.Option(help="Directory of the recommender.")],
    reward_model: RewardOption = DEFAULT,
    set_: SetOption = None,
    features: FeaturesOption = "text",
    llm: LlmOption = None,
    dataset: DatasetOption = None,
    split: Annotated[str, typer.Option(help="Learn from this split.")] = "train",
    folds: FoldsOption = 5,
    by: ByOption = "template",
    seed: SeedOption = 0,
    allow: AllowOption = None,
    json_: JsonOption = False,
) -> None:
    """Learn a recommender from demonstrations."""
    from rayprompt.reward.checks import check as find
    from rayprompt.reward.checks import refuse
    from rayprompt.reward.recommender import Recommender

    make = maker(reward_model, set_, features)
    data = read_data(demonstrations, llm, dataset)
    refuse(find(data), allow or ())
    train = data.of(split=split)
    make().features.prepare(train.queries)
    recommender = Recommender.fit(train, make, count=folds, by=by, seed=seed)
    recommender.save(out)
    content = {
        "recommender": str(out),
        "model": recommender.model.name,
        "prompts": len(recommender.prompts),
        "guard_weight": recommender.guard.weight,
        "data": recommender.model.data,
    }
    if json_:
        print(json.dumps(content))
        return
    print(f"{content['model']} on {content['prompts']} prompts; its opinion counts {recommender.guard.weight:g}")
    print(f"recommender in {out}; use it with: rayprompt recommend run {out} QUERIES")


@app.command(name="eval")
def evaluate(
    demonstrations: DemosArgument,
    recommender: Annotated[
        Path | None, typer.Option(help="One that was fitted on the train split of this file; judged on test.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Without a recommender: of the cross-validation.")] = 5,
    reward_model: RewardOption = DEFAULT,
    set_: SetOption = None,
    features: FeaturesOption = "text",
    llm: LlmOption = None,
    dataset: DatasetOption = None,
    split: Annotated[str | None, typer.Option(help="Judge on this split [test], or cross-validate within it.")] = None,
    answers: AnswersOption = None,
    by: ByOption = "template",
    seed: SeedOption = 0,
    allow: AllowOption = None,
    json_: JsonOption = False,
) -> None:
    """Judge a recommender on queries that it has not seen: probabilities, choices, and LM calls."""
    from rayprompt.reward.assess import assess, assess_folds
    from rayprompt.reward.checks import check as find
    from rayprompt.reward.checks import refuse
    from rayprompt.reward.recommender import Recommender

    data = read_data(demonstrations, llm, dataset, answers)
    if recommender is not None:
        found = Recommender.load(recommender, features_of(features))
        refuse(find(data), allow or ())
        train = data.of(split="train")
        trained = train.of(prompts=train.labelled())
        if trained.digest != found.model.data:
            raise InputError(
                f"{recommender}: was fitted on other demonstrations than the train split of {demonstrations} (data "
                f"{found.model.data[:12]}, here {trained.digest[:12]}); fit it anew"
            )
        result = assess(found, train, data.of(split=split or "test"))
    else:
        part = data if split is None else data.of(split=split)
        refuse([f for f in find(part) if f.name == "constant"], allow or ())
        make = maker(reward_model, set_, features)
        make().features.prepare(part.queries)
        result = assess_folds(part, make, count=folds, by=by, seed=seed)
    if json_:
        print(json.dumps(result.to_json()))
    else:
        from rayprompt.cli.recommend_tables import show

        show(result)


@app.command()
def run(
    recommender: Annotated[Path, typer.Argument(help="Directory of a recommender.")],
    queries: Annotated[str, typer.Argument(help="A text file, a table with a column 'query', or - (lines).")] = "-",
    out: Annotated[Path | None, typer.Option(help="Write a routing table (Parquet) instead of JSON lines.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Choose from these, a file; else from those it has learned.")
    ] = None,
    rule: Annotated[str, typer.Option(help="guarded, best-of-n or switch.")] = "guarded",
    features: FeaturesOption = "text",
) -> None:
    """The prompt for each query, as JSON lines: query, prompt, p, runner_up, margin. No LM is asked."""
    from rayprompt.reward.recommender import Recommender
    from rayprompt.tables import read_prompts

    found = Recommender.load(recommender, features_of(features))
    choice = found.recommend(read_queries(queries), read_prompts(prompts) if prompts is not None else None, rule=rule)
    if out is None:
        for row in choice.rows():
            print(json.dumps(row, ensure_ascii=False))
        return
    import pyarrow.parquet as pq

    try:
        pq.write_table(choice.to_table(), out)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror or error})") from None


@app.command()
def collect(
    source: Annotated[
        Path,
        typer.Argument(help="A table of logs (columns prompt, log; docs/reward.md), or a study's directory."),
    ],
    out: Annotated[Path, typer.Option(help="The Parquet file of demonstrations.")],
    queries: Annotated[Path | None, typer.Option(help="Of logs: a table with the queries in their order.")] = None,
    llm: Annotated[str | None, typer.Option(help="Of logs: the LM's name.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Of logs: the data set's name.")] = None,
    split: Annotated[str, typer.Option(help="Of logs: which split they are of.")] = "train",
    allow: Annotated[list[str] | None, typer.Option(help="gaps: queries may be missing in a log.")] = None,
) -> None:
    """Make demonstrations from text logs, or from what a study has scored on train."""
    from rayprompt.reward.logs import read_logs

    if source.is_dir():
        from rayprompt.study.demonstrations import from_study

        data = from_study(source)
    else:
        if queries is None or llm is None or dataset is None:
            raise InputError("logs need --queries, --llm and --dataset")
        if set(allow or ()) - {"gaps"}:
            raise InputError(f"--allow {(allow or [''])[0]}: only gaps can be allowed here")
        data = read_logs(source, queries, llm=llm, dataset=dataset, split=split, gaps=bool(allow))
    data.write(out)
    print(f"{data.rows:,} labels of {len(data.queries):,} queries under {len(data.prompts)} prompts in {out}")


def read_data(path: Path, llm: str | None, dataset: str | None, answers: Path | None = None) -> Demonstrations:
    """Demonstrations from a file, or of a study."""
    from rayprompt.reward.demonstrations import read_demonstrations

    if path.is_dir():
        from rayprompt.study.demonstrations import from_study

        return from_study(path)
    return read_demonstrations(path, llm=llm, dataset=dataset, answers=answers)


def maker(name: str, pairs: Sequence[str] | None, features: str) -> Callable[[], Any]:
    """Makes models of that name, settings and features."""
    from rayprompt.reward.model import settings_of
    from rayprompt.reward.models import model_class

    cls = model_class(name)
    settings = settings_of(parse_settings(list(pairs or [])), cls)
    shared = features_of(features)  # vectors are made once; None is text features of each model's own
    return lambda: cls(shared, **settings)


def features_of(given: str) -> Any:
    """Features by what the option says; None are those of text."""
    from rayprompt.reward.features import Vectors, read_vectors

    kind, _, where = given.partition(":")
    if given == "text":
        return None
    if where and kind == "vectors":
        return Vectors(read_vectors(Path(where)), origin=where)
    if where and kind == "encoder":
        from rayprompt.lm.embed import encoder

        return Vectors(embed=encoder(where), origin=given)
    if where and kind == "lm":
        from rayprompt.study.evaluate import embedder

        return Vectors(embed=embedder(where), origin=given)
    raise InputError(f"--features {given}: text, vectors:FILE, lm:MODEL or encoder:NAME")


def read_queries(given: str) -> list[str]:
    """Queries from a file or standard input.

    Raises:
        InputError: it cannot be read, or a query has no text.
    """
    from rayprompt.tables import read_lines, read_rows

    if given == "-":
        lines = [line.rstrip("\n") for line in sys.stdin]
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                raise InputError(f"standard input, line {number}: a query without text")
        if not lines:
            raise InputError("standard input: holds no queries (one a line)")
        return lines
    path = Path(given)
    if path.suffix in (".txt", ""):
        return read_lines(path, "queries")
    rows = read_rows(path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row.get("query"), str) or not row["query"].strip():
            raise InputError(f"{path}, row {number}: a query without text (column 'query')")
    return [row["query"] for row in rows]
