"""Half an hour of accidents: searches on a shared pool, on a cluster of several nodes of which something always dies.

    python benchmarks/soak.py [--minutes 30] [--workers 3] [--budget 20480] [--every 6] [--long 160000]

A head without CPUs and workers of one CPU and one logical GPU each, on this machine; a pool of one scorer each, kept up
(`rayprompt pool up`); and the same search, one time after the other, its result compared with that of a quiet run.
Every few seconds, drawn at random: a scorer, the router, the pool's host, a trial or the driver is killed, a scorer's
process is stopped, or a worker node vanishes and another joins. At the end of each search its store is held against its
ledger: no pair lost or twice, evaluations = budget. Then one long search in which only scorers are killed and stopped,
so that driver, router, host and trial live long enough for their memory, read every five seconds, to show a slope.
Written to soak.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import killing

TITLES = {**killing.TITLES, "host": "ray::PoolHost"}
KINDS = {"scorer": 8, "node": 3, "trial": 2, "driver": 1, "host": 1, "router": 1, "stopped": 2}  # how often, by weight
OF_SCORERS = {"scorer": 8, "stopped": 2}
COMMAND = str(Path(sys.executable).with_name("rayprompt"))
PATIENCE = 10


def of_kind(kind: str) -> list[psutil.Process]:
    """Processes below this one that are such, by their titles."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if title.startswith(TITLES[kind]):
                found.append(process)
    return found


def stored(study: Path) -> tuple[int, int]:
    """Rows of the train pairs of a study's search, and different ones."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rayprompt.store.store import ScoreStore

    shards = ScoreStore(study).shards("scores", part="train")
    rows = pa.concat_tables(
        [pq.read_table(study / "scores" / str(s.name)) for s in shards if not s.name.search.endswith("report")]
    )
    pairs = set(zip(rows.column("candidate").to_pylist(), rows.column("example").to_pylist(), strict=True))
    return len(rows), len(pairs)


class Soak:
    """The cluster, and what happens to it."""

    def __init__(self, workers: int, seed: int) -> None:
        from ray.cluster_utils import Cluster

        self.rng = random.Random(seed)
        self.cluster = Cluster(
            initialize_head=True, connect=False, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self.workers: list[Any] = []
        for _ in range(workers):
            self.join()
        self.kinds = KINDS
        self.done: Counter[str] = Counter()
        self.memory: dict[tuple[str, int], list[tuple[float, int]]] = {}
        self.began = time.monotonic()
        self.process: subprocess.Popen[str] | None = None
        self.read_at = 0.0
        self.removed = -1e9

    def join(self) -> None:
        """A worker joins."""
        self.workers.append(self.cluster.add_node(num_cpus=1, num_gpus=1, wait=False))

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "RAY_ADDRESS": self.cluster.address, "RAYPROMPT_PATIENCE": str(PATIENCE)}

    def run(self, *arguments: str) -> str:
        """The command, to its end."""
        done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, env=self.environment, check=False)
        if done.returncode:
            raise SystemExit(f"{arguments}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
        return done.stdout

    def read(self) -> None:
        """Memory of the processes that are to stay small."""
        if time.monotonic() - self.read_at < 5.0:
            return
        self.read_at = time.monotonic()
        found = [(kind, p) for kind in ("router", "host", "trial") for p in of_kind(kind)]
        if self.process is not None and self.process.poll() is None:
            found.append(("driver", psutil.Process(self.process.pid)))
        for kind, process in found:
            with contextlib.suppress(psutil.Error):
                rows = self.memory.setdefault((kind, process.pid), [])
                rows.append((time.monotonic() - self.began, process.memory_info().rss))

    def accident(self) -> None:
        """One of them."""
        kind = self.rng.choices(list(self.kinds), list(self.kinds.values()))[0]
        if kind == "node":
            place = self.rng.randrange(len(self.workers))
            self.cluster.remove_node(self.workers.pop(place), allow_graceful=False)
            self.removed = time.monotonic()
            self.join()
        elif kind == "driver":
            assert self.process is not None
            self.process.kill()
            self.process.wait()
        else:
            found = of_kind("scorer" if kind == "stopped" else kind)
            if not found:
                return
            with contextlib.suppress(psutil.Error):
                self.rng.choice(found).send_signal(signal.SIGSTOP if kind == "stopped" else signal.SIGKILL)
        self.done[kind] += 1

    def search(self, study: Path, options: list[str], every: float) -> dict[str, Any]:
        """One search among accidents; gives its result."""
        starts, last = 0, time.monotonic()
        log = study.with_suffix(".log")
        while True:
            if self.process is None or self.process.poll() is not None:
                if self.process is not None and self.process.returncode == 0:
                    self.process = None
                    return {**json.loads((study / "result.json").read_text()), "starts": starts}
                if self.process is not None and self.process.returncode != -9:
                    # Nodes of this cluster have one address: the driver may hang on any of them, and die with it.
                    if time.monotonic() - self.removed > 90.0:
                        raise SystemExit(f"the search failed ({self.process.returncode}):\n{log.read_text()[-4000:]}")
                    self.done["driver's node"] += 1
                starts += 1
                with log.open("a") as file:
                    again = ["--out", str(study), "--start-or-resume", "--scorers", "pool:soak"]
                    self.process = subprocess.Popen(
                        [COMMAND, "search", *options, *again],
                        stdout=file, stderr=file, text=True, env=self.environment,
                    )  # fmt: skip
            time.sleep(0.2)
            self.read()
            begun = (study / "scores").is_dir()
            if begun and time.monotonic() - last > self.rng.uniform(0.5, 1.5) * every:
                last = time.monotonic()
                self.accident()

    def checked(self, study: Path, options: list[str], every: float, quiet: Path) -> dict[str, Any]:
        """One search among accidents, held against the same one without."""
        content = self.search(study, options, every)
        starts, wanted = content.pop("starts"), json.loads((quiet / "result.json").read_text())
        rows, pairs = stored(study)
        row = {
            "starts": starts,
            "evaluations": content["evaluations"],
            "budget_kept": content["evaluations"] == content["budget"],
            "rows": rows,
            "pairs": pairs,
            "doubled": rows - pairs,
            "lost": stored(quiet)[1] - pairs,
            "same_result": killing.same(content) == killing.same(wanted),
            "scored_again": content["lm_evaluations"] - pairs,
            "seconds": round(content["seconds"]),
        }
        print(f"{(time.monotonic() - self.began) / 60:.1f} min", row, dict(self.done), flush=True)
        return row

    def slopes(self) -> dict[str, Any]:
        """Of each kind, of the process that lived longest: megabytes at first and at last, and an hour's growth."""
        found = {}
        for kind in ("driver", "router", "host", "trial"):
            rows = max((r for (k, _), r in self.memory.items() if k == kind), key=len, default=[])
            rows = rows[len(rows) // 10 :]  # what it loads at first
            if len(rows) < 6:
                continue
            at, size = np.array(rows).T
            slope = np.polyfit(at, size, 1)[0] * 3600 / 2**20
            tenth = max(1, len(rows) // 10)
            found[kind] = {
                "minutes": round((at[-1] - at[0]) / 60, 1),
                "first_megabytes": round(float(np.median(size[:tenth])) / 2**20, 1),
                "last_megabytes": round(float(np.median(size[-tenth:])) / 2**20, 1),
                "megabytes_an_hour": round(float(slope), 1),
            }
        return found


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--budget", type=int, default=20_480)
    parser.add_argument("--long", type=int, default=160_000, help="budget of the long search")
    parser.add_argument("--every", type=float, default=6.0, help="seconds between two accidents, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    os.environ["RAY_health_check_period_ms"] = "1000"  # noqa: SIM112 (so they are called)
    os.environ["RAY_health_check_failure_threshold"] = "10"  # noqa: SIM112
    with tempfile.TemporaryDirectory() as folder:
        given, quiet = {}, {}
        for name, budget in (("short", args.budget), ("long", args.long)):
            given[name] = ["--searcher", "random", "--budget", str(budget), "--seed", "1"]
            quiet[name] = Path(folder, f"quiet-{name}")
            command = [COMMAND, "search", *given[name], "--out", str(quiet[name]), "--address", "local"]
            subprocess.run(command, check=True, capture_output=True)
        soak = Soak(args.workers, args.seed)
        searches: list[dict[str, Any]] = []
        try:
            soak.run("pool", "up", "soak", "--scorers", f"1:{args.workers}", "--lease", "3h", "--idle", "2h")
            while time.monotonic() - soak.began < 60 * args.minutes:
                study = Path(folder, f"study-{len(searches)}")
                searches.append(soak.checked(study, given["short"], args.every, quiet["short"]))
            minutes, accidents = (time.monotonic() - soak.began) / 60, dict(sorted(soak.done.items()))
            soak.kinds, soak.done = OF_SCORERS, Counter()
            soak.memory.clear()
            long = soak.checked(Path(folder, "long"), given["long"], args.every, quiet["long"])
            (pool,) = json.loads(soak.run("pool", "status", "soak", "--json").splitlines()[-1])["pools"]
        finally:
            soak.cluster.shutdown()
    content = {
        "command": " ".join(["python benchmarks/soak.py", *sys.argv[1:]]),
        "minutes": round(minutes, 1),
        "accidents": accidents,
        "seconds_between_accidents": round(60 * minutes / sum(accidents.values()), 1),
        "searches": len(searches),
        "evaluations": sum(row["evaluations"] for row in searches),
        "scored_again": sum(row["scored_again"] for row in searches),
        "lost": sum(abs(row["lost"]) for row in [*searches, long]),
        "doubled": sum(row["doubled"] for row in [*searches, long]),
        "all_the_same": all(row["same_result"] and row["budget_kept"] for row in [*searches, long]),
        "long": {**long, "accidents": dict(soak.done), "memory": soak.slopes()},
        "pool_at_the_end": {key: pool[key] for key in ("state", "target", "restarts", "stuck", "remarks")},
        "each": searches,
    }
    print(json.dumps({k: v for k, v in content.items() if k != "each"}, indent=1))
    args.result.write_text(json.dumps(content, indent=1) + "\n")
    if content["lost"] or content["doubled"] or not content["all_the_same"]:
        raise SystemExit("a pair was lost or doubled, a budget was not kept, or a result is another one")


if __name__ == "__main__":
    main()
