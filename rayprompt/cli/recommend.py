"""``rayprompt recommend``: reward models from logs, and the prompt for each query."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayprompt.cli.options import JsonOption, is_given, parse_settings
from rayprompt.cli.recommend_files import check_file, check_unicode, joined, read_earlier, read_queries
from rayprompt.cli.say import say, say_json
from rayprompt.errors import InputError

if TYPE_CHECKING:
    from rayprompt.reward.demonstrations import Demonstrations

app = typer.Typer(
    name="recommend",
    help="Reward models, learned offline from logs: which prompt for which query, without asking the LM.",
    rich_markup_mode=None,
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
ForceOption = Annotated[bool, typer.Option("--force", help="Write over an earlier one.")]
DEFAULT = "logistic-per-prompt"
STUDY = "a study's directory: it has one LM, one data set and no answers, and is of train"


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Reward models, learned offline from logs: which prompt for which query, without asking the LM."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # queries are of any language, whatever the terminal's
    if context.invoked_subcommand is None:
        say(context.get_help())


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
        print_json(content)
        return
    say(
        f"{data.llm}: {data.rows:,} labels of {len(data.queries):,} queries under {len(data.prompts)} prompts, "
        f"{content['correct']:.1%} right; instances: "
        + ", ".join(f"{count:,} {split}" for split, count in splits.items())
    )
    for finding in findings:
        say(f"{'refused' if finding.refused else 'note'}: {finding.name}: {finding.message}")
    if not findings:
        say("nothing wrong was found")


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
    force: ForceOption = False,
    json_: JsonOption = False,
) -> None:
    """Learn a recommender from demonstrations."""
    from rayprompt.reward.checks import check as find
    from rayprompt.reward.checks import refuse
    from rayprompt.reward.model import check_target
    from rayprompt.reward.recommender import Recommender

    check_target(out, force=force)
    make = maker(reward_model, set_, features)
    data = read_data(demonstrations, llm, dataset)
    train = data.of(split=split)
    refuse(find(data, split), allow or ())
    make().features.prepare(train.queries)
    recommender = Recommender.fit(train, make, count=folds, by=by, seed=seed)
    recommender.save(out, force=force)
    content = {
        "recommender": str(out),
        "model": recommender.model.name,
        "prompts": len(recommender.prompts),
        "guard_weight": recommender.guard.weight,
        "data": recommender.model.data,
    }
    if json_:
        print_json(content)
        return
    say(f"{content['model']} on {content['prompts']} prompts; its opinion counts {recommender.guard.weight:g}")
    say(f"recommender in {out}; use it with: rayprompt recommend run {out} QUERIES")


@app.command(name="eval")
def evaluate(
    context: typer.Context,
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
    import numpy as np

    from rayprompt.reward.assess import assess, assess_folds
    from rayprompt.reward.checks import check as find
    from rayprompt.reward.checks import refuse
    from rayprompt.reward.recommender import Recommender

    data = read_data(demonstrations, llm, dataset, answers)
    if recommender is not None:
        refuse_given(
            context, ("folds", "reward_model", "set_", "by", "seed"), "--recommender: it was fitted with its own"
        )
        split = split or "test"
        if split == "train":
            raise InputError(
                "--split train: the recommender was fitted on it; judge it on another, or cross-validate without it"
            )
        found = Recommender.load(recommender, features_of(features))
        train = data.of(split="train")
        trained = train.of(prompts=train.labelled())
        if trained.digest != found.model.data:
            raise InputError(
                f"{recommender}: was fitted on other demonstrations than the train split of {demonstrations} (data "
                f"{found.model.data[:12]}, here {trained.digest[:12]}); fit it anew"
            )
        test = data.of(split=split)
        refuse(find(data.of(instances=np.isin(data.split, ("train", split)))), allow or ())
        result = assess(found, train, test)
    else:
        part = data if split is None else data.of(split=split)
        refuse([f for f in find(part) if f.name == "constant"], allow or ())
        make = maker(reward_model, set_, features)
        make().features.prepare(part.queries)
        result = assess_folds(part, make, count=folds, by=by, seed=seed)
    if json_:
        print_json(result.to_json())
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
    force: ForceOption = False,
) -> None:
    """The prompt for each query, as JSON lines: query, prompt, p, runner_up, margin. No LM is asked."""
    from rayprompt.reward.demonstrations import write_table
    from rayprompt.reward.recommender import Recommender
    from rayprompt.tables import read_prompts

    if out is not None:
        check_file(out)
        if not force and out.is_file() and out.stat().st_size:
            raise InputError(f"--out {out}: is there already; --force to write over it")
    found = Recommender.load(recommender, features_of(features))
    pool = None if prompts is None else check_unicode(read_prompts(prompts), f"{prompts}, prompt")
    choice = found.recommend(read_queries(queries), pool, rule=rule)
    if out is None:
        for row in choice.rows():
            say_json(row)
    else:
        write_table(choice.to_table(), out)


@app.command()
def collect(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(help="A table of logs (columns prompt, log; docs/reward.md), or a study's directory."),
    ],
    out: Annotated[Path, typer.Option(help="The Parquet file of demonstrations; other splits in it stay.")],
    queries: Annotated[Path | None, typer.Option(help="Of logs: a table with the queries in their order.")] = None,
    llm: Annotated[str | None, typer.Option(help="Of logs: the LM's name.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Of logs: the data set's name.")] = None,
    split: Annotated[str, typer.Option(help="Of logs: which split they are of.")] = "train",
    allow: Annotated[list[str] | None, typer.Option(help="gaps: queries may be missing in a log.")] = None,
    force: ForceOption = False,
) -> None:
    """Make demonstrations from text logs, or from what a study has scored on train."""
    from rayprompt.reward.logs import read_logs

    earlier = read_earlier(out, force)
    if source.is_dir():
        refuse_given(context, ("queries", "llm", "dataset", "split", "allow"), STUDY)
        from rayprompt.cli.say import note
        from rayprompt.study.demonstrations import from_study

        data = from_study(source, note)
    else:
        if queries is None or llm is None or dataset is None:
            raise InputError("logs need --queries, --llm and --dataset")
        if set(allow or ()) - {"gaps"}:
            raise InputError(f"--allow {(allow or [''])[0]}: only gaps can be allowed here")
        data = read_logs(source, queries, llm=llm, dataset=dataset, split=split, gaps=bool(allow))
    joined(earlier, data, out, force).write(out)
    say(f"{data.rows:,} labels of {len(data.queries):,} queries under {len(data.prompts)} prompts in {out}")


def refuse_given(context: typer.Context, names: Sequence[str], beside: str) -> None:
    """Raise ``InputError`` where one of these options was given: it would change nothing."""
    for name in names:
        if is_given(context, name):
            raise InputError(f"--{name.strip('_').replace('_', '-')} beside {beside}")


def read_data(path: Path, llm: str | None, dataset: str | None, answers: Path | None = None) -> Demonstrations:
    """Demonstrations from a file, or of a study."""
    from rayprompt.reward.demonstrations import read_demonstrations

    if path.is_dir():
        for option, value in (("--llm", llm), ("--dataset", dataset), ("--answers", answers)):
            if value is not None:
                raise InputError(f"{option} beside {STUDY}")
        from rayprompt.cli.say import note
        from rayprompt.study.demonstrations import from_study

        return from_study(path, note)
    return read_demonstrations(path, llm=llm, dataset=dataset, answers=answers)


def maker(name: str, pairs: Sequence[str] | None, features: str) -> Callable[[], Any]:
    """Makes models of that name, settings and features."""
    from rayprompt.reward.model import settings_of
    from rayprompt.reward.models import model_class

    cls = model_class(name)
    settings = settings_of(parse_settings(list(pairs or [])), cls)
    cls(None, **settings)  # a setting that is out of range is known before vectors are made
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

        place = str(Path(where).resolve()) if Path(where).is_dir() else where
        return Vectors(embed=encoder(where), origin=f"{kind}:{place}")
    if where and kind == "lm":
        from rayprompt.lm.source import describe_model
        from rayprompt.study.evaluate import embedder

        source, _ = describe_model(where)
        return Vectors(embed=embedder(where), origin=f"{kind}:{source.location} ({source.digest[:12]})")
    raise InputError(f"--features {given}: text, vectors:FILE, lm:MODEL or encoder:NAME")


def print_json(content: Any) -> None:
    """One line on standard output; a number that is none is null, as JSON has no other."""
    say_json(_finite(content))


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
