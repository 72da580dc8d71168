"""`enginehouse loadtest generate` on a real server: its report adds up, and is the server's."""

import json
from typing import Any

import pytest

from tests.fixtures.metrics import metrics_of, sum_of, wait_until_idle
from tests.fixtures.server import ServerProcess, enginehouse
from tests.integration.conftest import WRITER

SHAPE = (
    *("--prompt-tokens", "5..60", "--output-tokens", "2..40", "--vocab", "40..200"),
    *("--shared-prefix-tokens", "64", "--shared-fraction", "0.5"),
)
QUANTILES = ("mean", "p50", "p90", "p99", "p99_9", "max")

Report = dict[str, Any]  # as JSON has it


async def load(server: ServerProcess, *flags: str) -> Report:
    """The report of a load, to which what the server counted meanwhile is added, by code."""
    before = metrics_of(server)
    target = ("--target", server.address, "--model", WRITER, "--output", "json", "--warmup", "0")
    found = enginehouse("loadtest", "generate", *target, *SHAPE, *flags)
    await wait_until_idle(server)
    after = metrics_of(server)
    report: Report = json.loads(found.stdout)
    assert found.returncode == (0 if report["counts"]["answered"] else 1), found.stderr
    name = "enginehouse_requests_total"
    report["by_server"] = {
        code: sum_of(after, name, rpc="GenerateStream", code=code)
        - sum_of(before, name, rpc="GenerateStream", code=code)
        for code in ("OK", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
    }
    return report


def assert_adds_up(report: Report) -> None:
    counts, tokens, throughput = report["counts"], report["tokens"], report["throughput"]
    ended = ("answered", "failed", "cancelled", "unsent", "unfinished")
    assert counts["due"] == sum(counts[name] for name in ended)
    assert report["finish_reasons"] == {"length": counts["answered"]}
    assert sum(error["count"] for error in report["errors"]) == counts["failed"]
    assert tokens["server_prompt"] == tokens["prompt"]
    assert tokens["server_generated"] == tokens["output"]
    assert 0 < tokens["cached"] < tokens["prompt"]
    seconds, timeline = report["duration_s"], report["timeline"]
    assert sum(point["length_s"] for point in timeline) == pytest.approx(seconds)
    output, prompt = (sum(p[f"{kind}_tokens"] for p in timeline) for kind in ("output", "prompt"))
    assert throughput["output_tokens_per_second"] == pytest.approx(output / seconds)
    assert throughput["total_tokens_per_second"] == pytest.approx((output + prompt) / seconds)


async def test_the_figures_of_a_closed_load_add_up(writer_server: ServerProcess) -> None:
    flags = ("--concurrency", "6", "--requests", "50", "--slo-ttft-ms", "1e6")
    report = await load(writer_server, *flags)
    assert_adds_up(report)
    counts, tokens, server = report["counts"], report["tokens"], report["server"]
    assert counts["answered"] == counts["due"] == 50
    assert report["by_server"] == {
        **dict.fromkeys(("CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"), 0),
        "OK": 50,
    }
    assert sum(point["output_tokens"] for point in report["timeline"]) == tokens["output"]
    assert sum(point["prompt_tokens"] for point in report["timeline"]) == tokens["prompt"]
    assert sum(bucket["count"] for bucket in report["ttft_by_prompt"]) == 50
    assert 50 * 2 <= tokens["output"] <= 50 * 40
    # All of the same requests, so that what holds for each holds for every quantile.
    for quantile in QUANTILES:
        ttft_ms, latency_ms = report["ttft_ms"][quantile], report["e2e_latency_ms"][quantile]
        assert 0 < server["ttft_ms"][quantile] <= ttft_ms <= latency_ms
        assert server["queue_ms"][quantile] <= server["ttft_ms"][quantile]
        assert server["ttft_ms"][quantile] <= server["total_ms"][quantile] <= latency_ms
        assert server["outside_ms"][quantile] > 0
    assert server["ttft_ms"]["mean"] == pytest.approx(
        server["queue_ms"]["mean"] + server["prefill_ms"]["mean"]
    )
    # Every token but those of the first messages came after another.
    assert 0 < sum(report["itl_histogram"]["counts"]) <= tokens["output"] - 50
    throughput = report["throughput"]
    assert throughput["requests_per_second"] == pytest.approx(50 / report["duration_s"])
    assert throughput["goodput_per_second"] == throughput["requests_per_second"]
    assert throughput["goodput_fraction"] == 1


async def test_streams_that_an_open_load_cancels_are_the_servers_too(
    writer_server: ServerProcess,
) -> None:
    flags = ("--rate", "30", "--duration", "2", "--cancel-fraction", "0.5", "--seed", "1")
    report = await load(writer_server, *flags, "--slo-itl-ms", "1e-6")
    assert_adds_up(report)
    counts, by_server = report["counts"], report["by_server"]
    assert counts["failed"] == counts["unsent"] == counts["unfinished"] == 0
    assert 0.2 <= counts["cancelled"] / counts["due"] <= 0.7
    # A stream may be cancelled while its last message is on the way.
    assert sum(by_server.values()) == counts["due"]
    assert 0 < by_server["CANCELLED"] <= counts["cancelled"]
    assert by_server["OK"] >= counts["answered"] > 0
    assert sum(point["cancelled"] for point in report["timeline"]) <= counts["cancelled"]
    # No answer of more than one message is within a nanosecond a token.
    assert report["throughput"]["goodput_fraction"] < 0.2


async def test_what_a_load_is_refused_is_told_by_its_code(writer_server: ServerProcess) -> None:
    flags = ("--concurrency", "16", "--requests", "40", "--timeout-ms", "20")
    report = await load(writer_server, *flags)
    counts = report["counts"]
    assert counts["due"] == counts["answered"] + counts["failed"] == 40
    assert counts["failed"] > 0
    assert {e["code"] for e in report["errors"]} <= {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
    assert report["by_server"]["OK"] >= counts["answered"]
