"""A smoke test of an installed rayprompt, whatever its dependencies: each part once, in one process with one Ray.

CI runs it with the lowest versions that pyproject.toml allows. It writes into the current directory.
"""

from __future__ import annotations

import json
from pathlib import Path

import ray

from rayprompt.cli.main import app
from rayprompt.cli.main import run as run_command

ROWS = [
    ("a good film .", "good"),
    ("a dull film .", "dull"),
    ("the good one .", "good"),
    ("the dull one .", "dull"),
]
TASK = """name: echo
kind: generation
template: "{text} {prompt}"
extractor: first-line
manual_prompt: it was
max_tokens: 4
columns: {text: text, answer: answer}
splits: {train: train.jsonl, dev: train.jsonl, test: train.jsonl}
"""
RL = ["--set", "prompts=4", "--set", "replay=4", "--set", "length=2", "--set", "policy_model=tiny-causal"]


def run(*arguments: str) -> None:
    """A command of rayprompt, which must end well."""
    print("rayprompt", *arguments, flush=True)
    code = run_command(app, list(arguments))
    assert code == 0, f"it ended with {code}"


def main() -> None:
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 * 1024**2, log_to_driver=False)
    run("search", "--budget", "1280", "--out", "one", "--store", "scores")
    run("search", "--budget", "640", "--out", "native", "--tune-native")
    run("search", "--budget", "640", "--out", "soft", "--searcher", "cma-es", "--set", "length=3")
    run("search", "--budget", "640", "--out", "rl", "--searcher", "rl", "--model", "tiny-causal", *RL)
    run("compare", "--searchers", "random,nevergrad", "--seeds", "2", "--budget", "640", "--race", "--out", "two")
    run("report", "two", "--out", "two.html")
    run("store", "info", "scores")
    Path("prompts.txt").write_text("it was\noverall\nin short\n")
    for part in ("train", "test"):
        run("score", "reviews", "--prompts", "prompts.txt", "--on", part, "--demonstrations", "demos.parquet")
    run("recommend", "fit", "demos.parquet", "--out", "recommender")
    run("recommend", "eval", "demos.parquet", "--recommender", "recommender")
    folder = Path("echo")
    folder.mkdir()
    (folder / "task.yaml").write_text(TASK)
    lines = [json.dumps({"text": f"{text} {i}", "answer": answer}) for i in range(2) for text, answer in ROWS]
    (folder / "train.jsonl").write_text("\n".join(lines))
    run("search", "echo", "--model", "tiny-causal", "--budget", "64", "--out", "written", "--allow-leaks")


if __name__ == "__main__":
    main()
