"""Health, metrics, the state of the cluster and its page."""

import asyncio
import json
import re

from prometheus_client.parser import text_string_to_metric_families

from dairllm.mesh.errors import NotReady
from tests.http.conftest import Site

USER = [{"role": "user", "content": "Hi"}]


async def read_metrics(site: Site) -> dict[tuple[str, ...], float]:
    """Values by name and label values."""
    families = text_string_to_metric_families((await site.get("/metrics")).text)
    return {(one.name, *(one.labels[key] for key in sorted(one.labels))): one.value for family in families for one in family.samples}


async def test_health_and_readiness(site: Site) -> None:
    assert (await site.get("/healthz")).json() == {"status": "ok"}
    assert (await site.get("/readyz")).status_code == 200
    site.engine.unready = NotReady("waiting for 2 more shards")
    reply = await site.get("/readyz")
    assert (reply.status_code, reply.json()["error"]["message"]) == (503, "waiting for 2 more shards")
    assert "retry-after" in reply.headers
    assert (await site.get("/healthz")).status_code == 200


async def test_metrics(site: Site) -> None:
    site.engine.num_reused = 3
    await site.post("/v1/chat/completions", {"messages": USER})
    await site.post("/v1/chat/completions", {})
    await site.get("/v1/models/tiny")
    await site.get("/invented/by/a/stranger")
    metrics = await read_metrics(site)
    assert metrics["dairllm_http_requests_total", "/v1/chat/completions", "200"] == 1
    assert metrics["dairllm_http_requests_total", "/v1/chat/completions", "400"] == 1
    assert metrics["dairllm_http_requests_total", "/v1/models/{name:path}", "200"] == 1
    assert metrics["dairllm_http_requests_total", "none", "404"] == 1
    assert metrics["dairllm_first_token_seconds_count",] == 1
    assert metrics["dairllm_next_token_seconds_count",] == 12
    assert metrics["dairllm_generated_tokens_total",] == 13
    assert metrics["dairllm_prompt_tokens_total",] == len(site.engine.requests[0].prompt_ids)
    assert metrics["dairllm_kv_reused_tokens_total",] == 3
    assert (metrics["dairllm_guessed_tokens_total",], metrics["dairllm_guessed_tokens_right_total",]) == (9, 6)
    assert metrics["dairllm_kv_blocks",] == 64
    assert metrics["dairllm_kv_blocks_free",] == 60
    assert metrics["dairllm_running_sequences",] == metrics["dairllm_waiting_sequences",] == 0
    assert metrics["dairllm_ready",] == 1
    assert metrics["dairllm_cluster_phase", "serving"] == 1
    assert metrics["dairllm_cluster_phase", "waiting"] == 0
    assert metrics["dairllm_cluster_epoch",] == 3
    assert metrics["dairllm_cluster_shards",] == 2
    assert metrics["dairllm_shard_streamed_bytes_total", "a"] == 5000
    assert metrics["dairllm_shard_streaming_seconds_total", "a"] == 2.5
    assert metrics["dairllm_shard_stalled_seconds_total", "a"] == 1.0
    assert metrics["dairllm_shard_experts_found_total", "a"] == 30
    assert metrics["dairllm_shard_experts_missed_total", "a"] == 10
    assert metrics["dairllm_shard_streamed_bytes_total", "b"] == 0


async def test_the_state_of_the_cluster(site: Site) -> None:
    state = (await site.get("/api/cluster")).json()
    assert (state["phase"], state["epoch"]) == ("serving", 3)
    assert state["engine"]["kv_blocks_free"] == 60
    assert state["engine"]["ready_reason"] is None


async def test_events_come_once_each(site: Site) -> None:
    reader, writer = await site.connect()
    writer.write(b"GET /api/cluster/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
    texts: list[str] = []
    while len(texts) < 4:
        line = await asyncio.wait_for(reader.readline(), 10)
        if line.startswith(b"data: "):
            texts.append(json.loads(line.removeprefix(b"data: "))["text"])
            if len(texts) == 1:
                site.cluster["events"] = [{"number": 1, "text": "shard b joined"}, {"number": 2, "text": "shard b is lost"}]
            elif len(texts) == 2:
                site.cluster["events"] = [
                    {"number": 2, "text": "shard b is lost"},
                    *({"number": n, "text": f"plan {n - 1}"} for n in (3, 4)),
                ]
    assert texts == ["shard b joined", "shard b is lost", "plan 2", "plan 3"]


async def test_the_page_needs_nothing_from_elsewhere(site: Site) -> None:
    page = await site.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    local = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {"dashboard.css", "dashboard.js"} <= set(local)
    for name in local:
        assert "//" not in name.replace("http://www.w3.org/2000/svg", "")
        if not name.startswith("data:"):
            assert (await site.get(f"/{name}")).status_code == 200


async def test_head_is_answered_where_get_is(site: Site) -> None:
    for path in ("/", "/healthz", "/readyz", "/metrics", "/v1/models", "/v1/models/tiny", "/api/cluster", "/api/cluster/events", "/docs"):
        reader, writer = await site.connect()
        writer.write(f"HEAD {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\n")
        assert answer.count(b"\r\n\r\n") == 1
    assert set((await site.post("/healthz", {})).headers["allow"].split(", ")) == {"GET", "HEAD"}
