"""``rayprompt``: search, evaluate, score, store, list. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from rayprompt import __version__, defaults
from rayprompt.cli.clusters import app as clusters
from rayprompt.cli.compare import compare
from rayprompt.cli.grafana import app as grafana
from rayprompt.cli.options import (
    AddressOption,
    AllowCodeOption,
    AnswerScorerOption,
    DataOption,
    ExtractorOption,
    FinalistsOption,
    GpusOption,
    JsonOption,
    LeaksOption,
    LMOption,
    MLflowOption,
    ModelOption,
    ObjectiveOption,
    OtherMachineOption,
    OutOption,
    RaceErrorOption,
    RaceOption,
    ScorersOption,
    SplitOption,
    StartOrResumeOption,
    StoreOption,
    TaskArgument,
    WandbOption,
    is_given,
    parse_settings,
    with_defaults,
)
from rayprompt.cli.pool import app as pool_commands
from rayprompt.cli.recommend import app as recommend
from rayprompt.cli.report import report
from rayprompt.cli.say import fail, note, say, say_json, unexpected
from rayprompt.errors import InputError, Interrupted, RayPromptError, did_you_mean
from rayprompt.racing import ERROR
from rayprompt.task import PARTS, load_task
from rayprompt.typed import shown as short
from rayprompt.unanswered import shown

# What a system says of a path or a disk needs no traceback; of these the first are what was given.
NO_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
PLAIN_ERRORS = (*NO_PATH, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOENT,
                errno.ENOTDIR, errno.EISDIR)  # fmt: skip

# Typer brings a click of its own in some versions and uses the installed one in others: the base of what it raises.
_ClickException: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="rayprompt",
    help="Search for the prompt with which a frozen language model solves a task best, on Ray.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Search for the prompt with which a frozen language model solves a task best, on Ray."""
    if version:
        say(f"rayprompt {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        say(context.get_help())


@app.command()
def search(
    context: typer.Context,
    task: TaskArgument = defaults.TASK,
    config: Annotated[
        Path | None, typer.Option(help="A study file: these options, in YAML or JSON; those given here win.")
    ] = None,
    allow_code: AllowCodeOption = False,
    model: ModelOption = defaults.MODEL,
    searcher: Annotated[
        str, typer.Option(help="The prompt optimizer (see: rayprompt list searchers).")
    ] = defaults.SEARCHER,
    budget: Annotated[
        int, typer.Option(help="At most so many (candidate, train example) evaluations.")
    ] = defaults.BUDGET,
    seed: Annotated[int, typer.Option(help="Same seed, same run.")] = 0,
    split: SplitOption = None,
    data: DataOption = None,
    objective: ObjectiveOption = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the searcher; may be repeated.")
    ] = None,
    out: OutOption = None,
    store: StoreOption = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="STUDY", help="Go on with it; further with a larger --budget. Its snapshots are pickles."),
    ] = None,
    finalists: FinalistsOption = defaults.FINALISTS,
    allow_leaks: LeaksOption = False,
    tune_native: Annotated[
        bool, typer.Option(help="A Tune trial per batch of candidates, not one per search. Slower.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(help="With --tune-native: candidates of a trial; a generation unless said.")
    ] = None,
    race: RaceOption = False,
    race_error: RaceErrorOption = ERROR,
    proxy_model: Annotated[
        str | None, typer.Option(help="Search on this LM, decode what was found to text, and measure it on --model.")
    ] = None,
    warm_start: Annotated[
        str | None, typer.Option(help="Begin with the finalists of this finished study, or with a store's best.")
    ] = None,
    lm: LMOption = None,
    extractor: ExtractorOption = None,
    answer_scorer: AnswerScorerOption = None,
    wandb: WandbOption = None,
    mlflow: MLflowOption = None,
    start_or_resume: StartOrResumeOption = False,
    other_machine: OtherMachineOption = False,
    scorers: ScorersOption = None,
    gpus_per_scorer: GpusOption = None,
    address: AddressOption = None,
    json_: JsonOption = False,
) -> None:
    """Search for a prompt: dev picks among the best on train, and test is opened once."""
    from rayprompt.cli.display import Display, show_result
    from rayprompt.lm.endpoint import check_named
    from rayprompt.study import search as studies
    from rayprompt.study.config import MODELS, StudyFile, read_study_file

    if resume is not None:
        check_resume(context)
    file = read_study_file(config, allow_code=allow_code) if config is not None else StudyFile({})
    if file.description:
        note(file.description)
    with Display() as display:
        if resume is not None:
            result = studies.resume(
                resume,
                budget=budget if is_given(context, "budget") else None,
                other_machine=other_machine,
                address=address,
                scorers=scorers,
                gpus_per_scorer=gpus_per_scorer,
                listener=display,
            )
        else:
            options: dict[str, Any] = {
                "task": task,
                "model": model,
                "searcher": searcher,
                "budget": budget,
                "seed": seed,
                "split": split,
                "data": data,
                "objective": objective,
                "out": out,
                "store": store,
                "finalists": finalists,
                "allow_leaks": allow_leaks,
                "tune_native": tune_native,
                "batch_size": batch_size,
                "race": race,
                "race_error": race_error,
                "proxy_model": proxy_model,
                "warm_start": warm_start,
                "lm": parse_settings(lm or [], "--lm"),
                "extractor": extractor,
                "answer_scorer": answer_scorer,
                "wandb": wandb,
                "mlflow": mlflow,
                "start_or_resume": start_or_resume,
                "other_machine": other_machine,
                "address": address,
                "scorers": scorers,
                "gpus_per_scorer": gpus_per_scorer,
            }
            options |= {name: value for name, value in file.arguments.items() if not is_given(context, name)}
            from rayprompt.lm.settings import from_file

            options["lm"] = {**from_file(file.arguments.get("lm")), **parse_settings(lm or [], "--lm")}
            named = {name: is_given(context, name) for name in MODELS}
            check_named(
                (options[name] for name in MODELS if not named[name]),
                str(config),
                given=(options[name] for name in MODELS if named[name]),
            )
            options["settings"] = {**file.arguments.get("settings", {}), **parse_settings(set_ or [])}
            result = studies.search(**options, listener=display)
    show_result(result, to_stderr=json_)
    if file.expected:
        note(f"expected, says {config}: " + ", ".join(f"{name} {value}" for name, value in file.expected.items()))
    if json_:
        say_json(result.to_json())


@app.command()
def evaluate(
    task: TaskArgument,
    prompt: Annotated[str | None, typer.Option(help="The prompt's text ('' is the empty prompt).")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="An exported prompt (a study's prompt.json).")] = None,
    on: Annotated[str, typer.Option(help="train, dev or test.")] = "test",
    outputs: Annotated[
        Path | None, typer.Option(help="Of style transfer: write the chosen output of each input here; .jsonl: more.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="As for search; the prompt file's unless said.")] = None,
    split: SplitOption = None,
    data: DataOption = None,
    store: StoreOption = None,
    lm: LMOption = None,
    extractor: ExtractorOption = None,
    answer_scorer: AnswerScorerOption = None,
    scorers: ScorersOption = None,
    gpus_per_scorer: GpusOption = None,
    address: AddressOption = None,
    json_: JsonOption = False,
) -> None:
    """Measure a given prompt on train, dev or test."""
    from rayprompt.answers import Judge
    from rayprompt.candidate import SoftPrompt
    from rayprompt.lm.endpoint import check_named, is_endpoint
    from rayprompt.lm.settings import LOCAL, REMOTE
    from rayprompt.searcher.problem import Problem
    from rayprompt.study.evaluate import evaluate as run
    from rayprompt.study.results import read_prompt_file
    from rayprompt.study.session import Cluster

    check_part(on)
    if (prompt is None) == (prompt_file is None):
        raise InputError("give one of --prompt TEXT and --prompt-file FILE")
    exported = read_prompt_file(prompt_file) if prompt_file else None
    named = exported.model if exported else None
    if model is None:
        check_named([named], str(prompt_file))
    loaded = load_task(task, data=data, split=split or (exported.split if exported else None))
    if exported and split is None and exported.split in loaded.splits:
        split = exported.split
    # A file runs no code of a checkpoint: only the command line may allow it.
    kept = {key: value for key, value in (exported.lm if exported else {}).items() if key != "trust_remote_code"}
    if is_endpoint(model or named or "") != is_endpoint(named or ""):
        kept = {key: value for key, value in kept.items() if key not in LOCAL | REMOTE | {"chat"}}
    settings = {**kept, **parse_settings(lm or [], "--lm")}
    judge = exported.judge if exported else {}
    if judge:  # what a file names may not be a function
        rule = "exact" if extractor is not None else judge["extractor"]
        scale = "match" if answer_scorer is not None else judge["scorer"]
        Judge.of(rule, scale, loaded.style, code=False, where=str(prompt_file))
    problem = Problem(
        loaded,
        model or named or defaults.MODEL,
        split=split,
        allow_leaks=True,
        lm=settings,
        extractor=extractor or judge.get("extractor"),
        answer_scorer=answer_scorer or judge.get("scorer"),
    )
    if exported and exported.task_digest not in (None, problem.task.digest):
        note(f"{prompt_file} was found on another task or version than {problem.task.name}")
    if outputs is not None and (problem.judge is None or problem.judge.style is None):
        raise InputError(f"--outputs {outputs}: is for tasks with scorer: style; {problem.task.name} has another")
    candidate = exported.on(problem) if exported else problem.prompt(prompt or "")
    if exported and exported.model_digest is not None and not problem.lm.same(exported.model_digest):
        note(f"{prompt_file} was found on another LM than {problem.lm.name}: its text is tokenised anew")
    result = run(candidate, problem, on=on, store=store, cluster=Cluster(address, scorers, gpus_per_scorer))
    if result.truncated:
        note(f"{result.truncated} of {result.estimate.n} texts were truncated to fit {result.model}")
    if line := shown({on: result.unanswered}):
        note(line)
    text = f"the soft prompt of {prompt_file}" if isinstance(result.prompt, SoftPrompt) else repr(result.prompt.text)
    say(f"{text} on {result.task} {on}, {result.model}: {result.estimate.metric} {result.estimate}")
    if result.style is not None:
        say(result.style)
        if outputs is not None:
            result.style.write(outputs)
    if json_:
        say_json(result.to_json())


@app.command()
def score(
    task: TaskArgument,
    prompts: Annotated[Path, typer.Option(help="A file of prompts: a line each, or a table with a column 'prompt'.")],
    out: Annotated[Path | None, typer.Option(help="Write all pairs here, as Parquet.")] = None,
    demonstrations: Annotated[
        Path | None, typer.Option(help="Write them here for rayprompt recommend; other splits in the file stay.")
    ] = None,
    on: Annotated[str, typer.Option(help="train, dev or test.")] = "train",
    model: ModelOption = defaults.MODEL,
    split: SplitOption = None,
    data: DataOption = None,
    store: StoreOption = None,
    lm: LMOption = None,
    extractor: ExtractorOption = None,
    answer_scorer: AnswerScorerOption = None,
    scorers: ScorersOption = None,
    gpus_per_scorer: GpusOption = None,
    address: AddressOption = None,
    json_: JsonOption = False,
) -> None:
    """Score a file of prompts on a task: every (prompt, example) pair."""
    from rayprompt.cli.scoring import score_file
    from rayprompt.searcher.problem import Problem
    from rayprompt.study.session import Cluster

    check_part(on)
    cluster = Cluster(address, scorers, gpus_per_scorer)
    problem = Problem(
        task,
        model,
        split=split,
        data=data,
        allow_leaks=True,
        lm=parse_settings(lm or [], "--lm"),
        extractor=extractor,
        answer_scorer=answer_scorer,
    )
    report = score_file(problem, prompts, out, on=on, store=store, cluster=cluster, demonstrations=demonstrations)
    if report["truncated"]:
        note(f"{report['truncated']} texts were truncated with the longest prompt, to fit {model}")
    if line := shown({on: report["unanswered"]}):
        note(line)
    for row in report["prompts"]:
        value = "-".ljust(5) if row["value"] is None else f"{row['value']:.3f}"
        say(f"{value}  {row['text']}")
    if json_:
        say_json(report)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="tasks, searchers, models, reward-models; or task, for what is in one.")],
    name: Annotated[str | None, typer.Argument(metavar="[TASK]", help="With task: its name or folder.")] = None,
    split: Annotated[str | None, typer.Option(help="With task: this split only.")] = None,
    data: DataOption = None,
    model: Annotated[str | None, typer.Option(help="With task: its length in tokens of this LM.")] = None,
    json_: JsonOption = False,
) -> None:
    """List the tasks, searchers or models that come with the package or are registered, or what is in a task."""
    from rayprompt.cli.listing import LISTINGS, show_task
    from rayprompt.cli.listing import task as describe

    if what == "task":
        if name is None:
            raise InputError("list task: of which? as in: rayprompt list task reviews (did you mean 'tasks'?)")
        content = describe(name, split, data, model)
        show_task(content)
        if json_:
            say_json({"schema": "rayprompt.list/1", "task": content})
        return
    if what not in LISTINGS:
        known = ["task", *LISTINGS]
        raise InputError(f"unknown list {what!r}{did_you_mean(what, known)}; known: {', '.join(known)}")
    for given, value in {f"list {what} {name}": name, "--split": split, "--data": data, "--model": model}.items():
        if value is not None:
            raise InputError(f"{given}: a name and these options are for: rayprompt list task NAME")
    rows = LISTINGS[what]()
    for row in rows:
        say(f"{row['name']:<14} {row['description']}")
        for setting in row.get("settings", []):
            say(f"    --set {setting['name']}={json.dumps(setting['default'])}  {setting['doc']}")
    if json_:
        say_json({"schema": "rayprompt.list/1", what: rows})


@app.command()
def transfer(
    studies: Annotated[
        list[str],
        typer.Argument(metavar="STUDY...", help="Directories of finished searches or comparisons, of one task."),
    ],
    models: Annotated[
        str, typer.Option(metavar="A,B", help="The LMs to go to; those that were searched on are among them anyway.")
    ] = "",
    task: Annotated[str | None, typer.Option(help="Only what was found on this task, of a comparison.")] = None,
    split: Annotated[str | None, typer.Option(help="Only what was found on this split, of a comparison.")] = None,
    data: DataOption = None,
    store: StoreOption = None,
    lm: LMOption = None,
    format_: Annotated[str, typer.Option("--format", help="text, md, csv or json.")] = "text",
    out: Annotated[Path | None, typer.Option(help="Write the JSON object here.")] = None,
    scorers: ScorersOption = None,
    gpus_per_scorer: GpusOption = None,
    address: AddressOption = None,
    json_: JsonOption = False,
) -> None:
    """Measure what searches have found on other LMs: each LM's dev picks, then its test is opened."""
    from rayprompt.cli.display import Display
    from rayprompt.cli.transfer import FORMATS, check_output
    from rayprompt.comparison.transfer import transfer as run
    from rayprompt.study.results import write_json

    check_output(format_, out)
    with Display() as display:
        found = run(
            studies,
            [name.strip() for name in models.split(",") if name.strip()],
            task=task,
            split=split,
            data=data,
            store=store,
            lm=parse_settings(lm or [], "--lm"),
            address=address,
            scorers=scorers,
            gpus_per_scorer=gpus_per_scorer,
            listener=display,
        )
    if out is not None:
        write_json(out, found.to_json())
    say(FORMATS[format_](found), to_stderr=json_)
    if json_:
        say_json(found.to_json())


app.command()(compare)
app.command()(report)

stores = typer.Typer(help="Look into a score store, and tidy it.", rich_markup_mode=None)
app.add_typer(stores, name="store")
app.add_typer(recommend, name="recommend")
app.add_typer(grafana, name="grafana")
app.add_typer(clusters, name="clusters")
app.add_typer(pool_commands, name="pool")
StoreArgument = Annotated[str, typer.Argument(help="A store's directory or URI; a study's directory is one, too.")]


@stores.command()
def info(location: StoreArgument, json_: JsonOption = False) -> None:
    """Count the files, pairs and candidates of a store, and name the files that cannot be read."""
    from rayprompt.cli.store import describe_store, show_store

    content = describe_store(location)
    show_store(content)
    if json_:
        say_json(content)


@stores.command()
def compact(location: StoreArgument, json_: JsonOption = False) -> None:
    """Make few files of many small ones. Searches that wrote in the last ten minutes are left alone."""
    from rayprompt.cli.store import compact_store

    content = compact_store(location)
    say(f"{content['files_before']} files became {content['files_after']}")
    if json_:
        say_json(content)


@stores.command()
def verify(location: StoreArgument, json_: JsonOption = False) -> None:
    """Read every file of a store, or of a study and its store, and name the damaged ones. Nothing is changed."""
    from rayprompt.cli.store import show_check, verify_store

    content = verify_store(location)
    show_check(content)
    if json_:
        say_json(content)
    if damaged := content["damaged"]:
        raise RayPromptError(f"{location}: {len(damaged)} damaged: {', '.join(map(str, damaged))}")


RESUME_OPTIONS = {"resume", "budget", "other_machine", "address", "scorers", "gpus_per_scorer", "json_"}


def check_resume(context: typer.Context) -> None:
    """Everything but budget and cluster comes from the study.

    Raises:
        InputError: something else was given beside --resume.
    """
    for name in context.params:
        if name not in RESUME_OPTIONS and is_given(context, name):
            option = "TASK" if name == "task" else "--" + name.strip("_").replace("_", "-")
            raise InputError(f"{option} beside --resume: a study goes on as it began; only --budget may grow")


def check_part(part: str) -> None:
    """Raise ``InputError`` unless ``part`` is train, dev or test."""
    if part not in PARTS:
        raise InputError(f"--on {part}{did_you_mean(part, PARTS)}: must be {', '.join(PARTS)}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit. A function named as ``module:function`` may lie in the working directory."""
    sys.path.append(str(Path.cwd()))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of a terminal that is not UTF-8
    sys.exit(run(app, arguments))


def run(application: Callable[..., Any], arguments: list[str] | None) -> int:
    """The exit code; every error is one line on standard error, and nothing has a traceback."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        check_arguments(given)
        # Outside standalone mode an early exit (--help, --version) is handed back as its code.
        code = application(args=with_defaults(given), standalone_mode=False, prog_name="rayprompt")
    except RayPromptError as error:
        return fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return fail("interrupted", Interrupted.exit_code)
    except _ClickException as error:
        context = getattr(error, "ctx", None)
        see = f" (see: {context.command_path} --help)" if context else ""
        return fail(getattr(error, "format_message", error.__str__)() + see, 2)
    except BrokenPipeError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is flushed at exit goes nowhere
        return fail("standard output was closed before all was written", 1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in PLAIN_ERRORS:
            return fail(f"{short(error.filename)}: {error.strerror}", 2 if error.errno in NO_PATH else 1)
        if isinstance(error, RuntimeError) and "home directory" in str(error):  # of Path.expanduser
            return fail("~ stands for no directory: HOME is not set, or there is no such user", 2)
        if isinstance(error, RuntimeError) and "Symlink loop" in str(error):  # of Path.resolve
            return fail(f"{error}: it leads to no file or directory", 2)
        return fail(unexpected(error), 1)
    if code == Interrupted.exit_code:  # what typer makes of KeyboardInterrupt
        return fail("interrupted", code)
    return code if isinstance(code, int) else 0


def check_arguments(arguments: Sequence[str]) -> None:
    """Raise ``InputError`` for an argument that is not text: bytes that are not UTF-8, or a NUL character."""
    for number, argument in enumerate(arguments, start=1):
        if "\0" in argument or any("\ud800" <= character <= "\udfff" for character in argument):
            raise InputError(f"argument {number}, {argument[:60]!r}: is not UTF-8 text")


if __name__ == "__main__":
    main()
