"""Requests in flight against throughput: an LM behind a service of fixed latency.

    python benchmarks/endpoint.py            # about a minute

A server of its own process answers every request after LATENCY seconds, as a service does whose GPUs are not the
bottleneck. Ideal is in flight / latency. Printed: what the pool reaches of it, for completions (one request a pair) on
the bundled reviews, each in flight for some 40 rounds; and what a bare asyncio loop with the same client library does,
without pool, actor or searches, on the same machine in the same minute. Written to endpoint.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

LATENCY = 0.1
IN_FLIGHT = (1, 4, 16, 64, 256)
ROUNDS = 40
ANSWER = {
    "choices": [{"index": 0, "text": " great .", "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 15, "completion_tokens": 3, "total_tokens": 18},
}


def serve(port: Any, latency: float) -> None:
    """A server that answers every completion alike; it refuses log-probabilities."""
    from aiohttp import web

    async def answer(request: web.Request) -> web.Response:
        started = time.perf_counter()
        body = await request.json()
        if body.get("echo") or body.get("logprobs"):
            return web.json_response({"error": {"message": "unknown option"}}, status=400)
        await asyncio.sleep(max(0.0, latency - (time.perf_counter() - started)))
        return web.json_response(ANSWER)

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/completions", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        port.value = runner.addresses[0][1]
        await asyncio.Event().wait()

    asyncio.run(run())


async def bare(url: str, bodies: list[dict[str, Any]], in_flight: int) -> float:
    """Seconds that a bare loop takes."""
    import aiohttp

    waiting = iter(bodies)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def worker() -> None:
            for body in waiting:
                async with session.post(f"{url}/completions", json=body) as response:
                    await response.json()

        started = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(in_flight)))
        return time.perf_counter() - started


def measure(url: str, in_flight: int) -> dict[str, Any]:
    """One row: pairs a second of the pool and of a bare loop, as shares of the ideal."""
    from rayprompt.scoring.pool import ScoringPool
    from rayprompt.searcher.problem import Problem

    problem = Problem("reviews", f"endpoint:{url}#fixed", lm={"in_flight": in_flight})
    part = problem.part("train")
    pairs = ROUNDS * in_flight
    prompts = [problem.token_ids(problem.prompt(f"it was {i}")) for i in range(-(-pairs // len(part)))]
    prompt, example = np.arange(pairs) // len(part), np.arange(pairs) % len(part)
    pool = ScoringPool.start(problem.lm)
    try:
        pool.score_pairs(part, prompts, prompt[:in_flight], example[:in_flight])  # connections are made
        started = time.perf_counter()
        result = pool.score_pairs(part, prompts, prompt, example)
        seconds = time.perf_counter() - started
    finally:
        pool.shutdown()
    assert result.completion is not None
    assert all(text == " great ." for text in result.completion)
    text = "the film was good and it was long enough for all of us it was 7"
    body = {"model": "fixed", "max_tokens": 8, "temperature": 0.0, "prompt": text}
    floor = asyncio.run(bare(url, [body] * pairs, in_flight))
    ideal = in_flight / LATENCY
    return {
        "in_flight": in_flight,
        "pairs": pairs,
        "pairs_per_second": round(pairs / seconds, 1),
        "ideal": ideal,
        "of_ideal": round(pairs / seconds / ideal, 3),
        "bare_of_ideal": round(pairs / floor / ideal, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--in-flight", default=",".join(map(str, IN_FLIGHT)), help="numbers, with commas")
    args = parser.parse_args()
    from rayprompt.scoring.cluster import connect

    context = multiprocessing.get_context("spawn")
    port = context.Value("i", 0)
    server = context.Process(target=serve, args=(port, LATENCY), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.05)
    connect("local")
    rows = []
    for in_flight in map(int, args.in_flight.split(",")):
        rows.append(measure(f"http://127.0.0.1:{port.value}/v1", in_flight))
        row = rows[-1]
        print(
            f"{in_flight:>4} in flight: {row['pairs_per_second']:>7,.0f} pairs/s, {row['of_ideal']:.3f} of ideal; "
            f"a bare loop {row['bare_of_ideal']:.3f}",
            flush=True,
        )
    server.terminate()
    report = {"latency_seconds": LATENCY, "cores": len(os.sched_getaffinity(0)), "rows": rows}
    Path(__file__).with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
