"""``rayprompt pool``: keep scorers up on a cluster for several studies."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from rayprompt.cli.options import GpusOption, JsonOption, LMOption, ModelOption, ScorersOption, parse_settings
from rayprompt.cli.say import note, say, say_json
from rayprompt.errors import InputError

SCHEMA = "rayprompt.pool/1"

app = typer.Typer(help="Keep scorers up on a cluster, for several studies.", rich_markup_mode=None)
PoolAddressOption = Annotated[
    str | None, typer.Option(help="Ray cluster: auto or host:port. RAY_ADDRESS, else auto, unless said.")
]
NameArgument = Annotated[str, typer.Argument(help="The pool's name.")]


@app.command()
def up(
    name: NameArgument = "default",
    model: ModelOption = "tiny-masked",
    lm: LMOption = None,
    scorers: ScorersOption = None,
    gpus_per_scorer: GpusOption = None,
    lease: Annotated[str, typer.Option(help="How long it stays when no study has use for it: 90s, 30m, 2h.")] = "30m",
    idle: Annotated[
        str, typer.Option(help="How long without work before it is made as small as --scorers lets it: 90s, 30m.")
    ] = "5m",
    address: PoolAddressOption = None,
    json_: JsonOption = False,
) -> None:
    """Load an LM on a cluster's GPUs, and leave it there; studies take it with --scorers pool:NAME."""
    from rayprompt.durations import seconds_of, span
    from rayprompt.lm.settings import LMSettings
    from rayprompt.lm.source import describe_model
    from rayprompt.scoring import shared

    lease_seconds, idle_seconds = seconds_of(lease, "--lease"), seconds_of(idle, "--idle")
    source, _ = describe_model(model, LMSettings.of(parse_settings(lm or [], "--lm")))
    _connect(address)
    note(f"loading {source.name}")
    started = time.perf_counter()
    infos = shared.up(
        name, source, scorers=scorers, gpus_per_scorer=gpus_per_scorer, lease=lease_seconds, idle=idle_seconds
    )
    took = time.perf_counter() - started
    nodes = len({info.node for info in infos})
    line = (
        f"pool {name}: {_count(len(infos), 'scorer')} of {source.name} on {_count(nodes, 'node')} "
        f"({infos[0].device}, {infos[0].dtype}) after {took:.1f} s; it ends {span(lease_seconds)} after its last use"
    )
    say(line, to_stderr=json_)
    note(f"take it with: --scorers pool:{name}")
    if json_:
        _print(shared.describe(name))


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="The pool's name; all of them unless said.")] = None,
    address: PoolAddressOption = None,
    json_: JsonOption = False,
) -> None:
    """What pools are up, and what each scorer does."""
    from rayprompt.scoring import shared

    _connect(address)
    found = [shared.describe(one) for one in ([name] if name else shared.names())]
    if json_:
        _print(*found)
        return
    if not found:
        say("no pool is up on this cluster (rayprompt pool up)")
    for content in found:
        for line in lines_of(content):
            say(line)


@app.command()
def down(
    name: Annotated[str | None, typer.Argument(help="The pool's name.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="All pools of the cluster.")] = False,
    address: PoolAddressOption = None,
    json_: JsonOption = False,
) -> None:
    """End a pool, and give its GPUs back."""
    from rayprompt.scoring import shared

    if (name is None) != all_:
        raise InputError("pool down: must be given a pool's name, or --all")
    _connect(address)
    ended = shared.names() if name is None else [name]
    for one in ended:
        shared.down(one)
        say(f"pool {one}: ended", to_stderr=json_)
    if json_:
        say_json({"schema": SCHEMA, "ended": ended})


def _connect(address: str | None) -> None:
    import os

    from rayprompt.scoring.cluster import connect

    where = address or os.environ.get("RAY_ADDRESS") or "auto"
    if where == "local":
        raise InputError("--address local: a pool outlives its command, it needs a cluster (ray start --head)")
    connect(where)


def lines_of(content: dict[str, Any]) -> list[str]:
    """What a person is told of a pool."""
    from rayprompt.durations import span

    status = content["status"]
    scorers = status.get("scorers", {})
    alive = sum(s["alive"] for s in scorers.values())
    source, size = content["source"], content["size"]
    many = f"{size.least} or more, as there is room" if size.most is None else f"{size.least} to {size.most}"
    kind = f"{source.name}, {content['device']}, {content['dtype']}" if content["device"] else source.name
    line = f"pool {content['name']} ({kind}): {content['state']}, {_count(alive, 'scorer')}"
    if content["loading"]:
        line += f", {content['loading']} more loading or waiting for room"
    line += f" ({many})"
    found = [line]
    if status:
        used = "in use" if not status["idle"] else f"last used {span(status['idle'])} ago"
        found.append(
            f"  {used}; ends {span(content['lease'])} after its last use; up for {span(time.time() - content['since'])}"
        )
        found.append(
            f"  {status['queued']} orders waiting, {status['in_flight']} in scorers' hands, {status['restarts']} "
            f"restarts, {status['stuck']} stuck"
        )
        if scorers:
            found.append(
                f"  {'scorer':<24}{'node':<10}{'state':<10}{'orders':>8}{'passes/s':>10}{'speed':>7}{'again':>7}"
            )
    for name, scorer in scorers.items():
        state = "gone" if scorer["gone"] else "leaving" if scorer["leaving"] else "up" if scorer["alive"] else "away"
        again = f"{scorer['restarts']}" + (f" ({scorer['stuck']} stuck)" if scorer["stuck"] else "")
        node = content["nodes"].get(name, "")[:8]
        found.append(
            f"  {name:<24}{node:<10}{state:<10}{scorer['in_flight']:>8}{scorer['passes_per_second']:>10.1f}"
            f"{scorer['speed']:>7.2f}{again:>7}"
        )
    return found + [f"  {remark}" for remark in content["remarks"]]


def _print(*contents: dict[str, Any]) -> None:
    pools = []
    for content in contents:
        source, size = content["source"], content["size"]
        status = content["status"]
        pools.append(
            {
                "name": content["name"],
                "model": source.name,
                "digest": source.digest,
                "state": content["state"],
                "device": content["device"],
                "dtype": content["dtype"],
                "least": size.least,
                "most": size.most,
                "target": content["target"],
                "loading": content["loading"],
                "lease_seconds": content["lease"],
                "idle_seconds": status.get("idle"),
                "queued": status.get("queued"),
                "in_flight": status.get("in_flight"),
                "restarts": status.get("restarts"),
                "stuck": status.get("stuck"),
                "scorers": [
                    {"name": name, "node": content["nodes"].get(name), **scorer}
                    for name, scorer in status.get("scorers", {}).items()
                ],
                "remarks": content["remarks"],
            }
        )
    say_json({"schema": SCHEMA, "pools": pools})


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
