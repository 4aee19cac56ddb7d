"""What does a decision cost? Decisions a second of one core, one at a time; memory over many; and
with --proxy the latency that routing adds to a LiteLLM proxy.

    DEPO_DATA=../shared/data python benchmarks/bench_route_speed.py [--decisions 100000]
    PYTHONPATH=tests/gateway:tests .venv-gateway/bin/python benchmarks/bench_route_speed.py --proxy

The proxy with us and the proxy without us are two processes before the same back ends, asked in
turns within one run: blocks of five seconds, requests at a steady rate.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from depo_rl.routing import Router
from depo_rl.routing.guarantee import candidates
from depo_rl.routing.model import SuccessModel
from depo_rl.routing.scores import read_scores
from depo_rl.routing.store import Threshold, add_threshold, load_router, now, save_router

DATA = Path(os.environ.get("DEPO_DATA", "../shared/data"))
MODELS = ("mixtral-8x7b-instruct", "gpt-4-1106-preview")
BLOCK_S = 5.0


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def in_process(n: int) -> None:
    scores = read_scores(dict.fromkeys(MODELS, DATA / "routing" / "routellm_mmlu.parquet"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "r"
        model, unseen = SuccessModel.fit(scores.texts, scores.score_PM)
        gains = unseen[:, -1:] - unseen[:, :-1]
        card = save_router(folder, scores, {}, model, candidates(gains))
        add_threshold(folder, Threshold(1, 0.1, "budget", 0.3, 0.95, 1, "", 0.3, now(), card.model))
        assert load_router(folder).thresholds
        router = Router(folder)
    asked = [[{"role": "user", "content": text}] for text in scores.texts]
    for messages in asked[:500]:
        router.route(messages)
    before = resident_mib()
    start = time.process_time()
    taken = []
    for i in range(n):
        begin = time.perf_counter()
        router.route(asked[i % len(asked)])
        taken.append(time.perf_counter() - begin)
        if i + 1 in (n // 10, n // 2, n):
            print(f"{i + 1:>8,} decisions: {resident_mib() - before:+.1f} MiB", flush=True)
    seconds = time.process_time() - start
    length = sum(map(len, scores.texts)) / len(scores.texts)
    print(f"{n / seconds:,.0f} decisions per second of one core, {length:.0f} characters a query")
    print(f"median {1e3 * statistics.median(taken):.2f} ms")


async def ask_steadily(client: Any, model: str, rate: float, seconds: float) -> list[float]:
    taken: list[float] = []

    async def ask(number: int) -> None:
        begin = time.perf_counter()
        said = [{"role": "user", "content": f"add the numbers {number} and {number + 1} case x"}]
        await client.chat.completions.create(model=model, messages=said)
        taken.append(time.perf_counter() - begin)

    tasks = []
    start = time.perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(start + number / rate - time.perf_counter(), 0))
        tasks.append(asyncio.create_task(ask(number)))
    await asyncio.gather(*tasks)
    return taken


async def alternate(urls: dict[str, tuple[str, str]], rate: float, rounds: int, key: str) -> None:
    from openai import AsyncOpenAI

    taken: dict[str, list[float]] = {name: [] for name in urls}
    for round_ in range(rounds + 1):
        for name, (url, model) in urls.items():
            client = AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)
            found = await ask_steadily(client, model, rate, BLOCK_S if round_ else 1.0)
            if round_:  # the first warms up
                taken[name] += found
            await client.close()
    for name, each in taken.items():
        each.sort()
        print(
            f"{name:<12} {rate:g}/s: median {1e3 * statistics.median(each):.2f} ms, "
            f"p95 {1e3 * each[int(0.95 * len(each))]:.2f} ms of {len(each)}"
        )
    added = [statistics.median(each) for each in taken.values()]
    print(f"added median {1e3 * (added[1] - added[0]):+.2f} ms")


def in_proxy(rate: float, rounds: int) -> None:
    from routing_world import fitted
    from world import KEY, proxy, running

    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        room = Path(name)
        folder = fitted(room / "r")
        card = load_router(folder).card
        add_threshold(folder, Threshold(1, 0.3, "budget", 0.3, 0.95, 1, "", 0.3, now(), card.model))
        ours = stack.enter_context(running(room / "ours", folder, ["--limit-ms", "1000"]))
        plain = (room / "ours" / "plain.yaml").read_text()
        plain = plain.replace("litellm_settings:", "litellm_settings:\n  callbacks: [prometheus]")
        (room / "plain").mkdir()
        (room / "plain" / "c.yaml").write_text(
            plain + "general_settings: {master_key: os.environ/LITELLM_MASTER_KEY}\n"
        )
        beside = stack.enter_context(proxy(room / "plain", room / "plain" / "c.yaml"))
        urls = {"without us": (beside.url, "small"), "with us": (ours.url, "depo")}
        asyncio.run(alternate(urls, rate, rounds, KEY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--decisions", type=int, default=100_000)
    parser.add_argument("--proxy", action="store_true")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    if given.proxy:
        in_proxy(given.rate, given.rounds)
    else:
        in_process(given.decisions)


if __name__ == "__main__":
    main()
