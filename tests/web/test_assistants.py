"""The server for assistants, through the SDK's own client: in memory, over HTTP, over stdio."""

from __future__ import annotations

import json
import os
import sys

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from nullius.lab import journal, queue
from nullius.web import assistants, who
from nullius.web.app import create

TOOLS = {"search_papers", "get_paper", "list_subjects", "get_dossier", "compare_subjects", "start_run", "get_run", "cancel_run"}


def call(setup, talk):
    """Talk to a server in memory."""

    async def main():
        async with Client(assistants.make(setup)) as client:
            return await talk(client)

    return anyio.run(main)


def said(result) -> str:
    return " ".join(part.text for part in result.content)


def test_what_there_is(alone):
    async def talk(client):
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == TOOLS
        for name, tool in tools.items():
            assert tool.annotations.read_only_hint is (name not in ("start_run", "cancel_run"))
            assert tool.output_schema
            assert tool.description
        templates = {t.uri_template for t in (await client.list_resource_templates()).resource_templates}
        assert templates == {"nullius://papers/{key}", "nullius://runs/{run_id}/figure"}

    call(alone, talk)


def test_search_read_compare(alone):
    async def talk(client):
        found = (await client.call_tool("search_papers", {"query": "who is bound to what"})).structured_content
        assert found["papers"][0]["key"] == "mixing-mechanisms"
        found = (
            await client.call_tool("search_papers", {"query": "head", "verdict": "holds", "subject": "smollm2-135m"})
        ).structured_content
        assert "factual-recall" in [paper["key"] for paper in found["papers"]]
        paper = (await client.call_tool("get_paper", {"key": "2310.15910"})).structured_content
        assert paper["key"] == "factual-recall"
        assert {v["subject"] for v in paper["verdicts"]} == {"smollm2-135m", "gemma3-270m"}
        claim = paper["claims"][0]["id"]
        both = {"claim": f"factual-recall.{claim}", "subjects": ["smollm2-135m", "gemma3-270m"]}
        compared = (await client.call_tool("compare_subjects", both)).structured_content
        assert {v["subject"] for v in compared["subjects"]} == {"smollm2-135m", "gemma3-270m"}
        subjects = (await client.call_tool("list_subjects", {"query": "smol"})).structured_content["subjects"]
        assert "smollm2-135m" in [s["name"] for s in subjects]
        dossier = (await client.call_tool("get_dossier", {"subject": "smollm2-135m"})).structured_content
        assert dossier["totals"]["holds"] >= 1

    call(alone, talk)


@pytest.mark.parametrize(
    ("tool", "arguments", "step"),
    [
        ("get_paper", {"key": "factual-recal"}, "/papers/factual-recall"),
        ("get_dossier", {"subject": "smollm2-135"}, "nearest: smollm2-135m"),
        (
            "compare_subjects",
            {"claim": "factual-recall.nothing", "subjects": ["smollm2-135m", "gemma3-270m"]},
            "get_paper lists the claims",
        ),
        ("get_run", {"run_id": "nonsense"}, "/runs"),
        ("start_run", {"paper": "2511.00001"}, "CONTRIBUTING"),
        ("start_run", {"paper": "factual-recall", "subject": "smollm2-135"}, "smollm2-135m"),
        ("start_run", {"paper": "factual-recall", "seed": -1}, "greater than or equal to 0"),
    ],
)
def test_errors_name_the_next_step(alone, tool, arguments, step, changing):
    async def talk(client):
        result = await client.call_tool(tool, arguments)
        assert result.is_error
        assert step in said(result)
        assert "Traceback" not in said(result)

    call(alone, talk)


def test_a_run_is_a_handle_to_poll(alone, changing):
    async def talk(client):
        handle = (await client.call_tool("start_run", {"paper": "factual-recall", "seed": 3})).structured_content
        assert handle["state"] == "queued"
        assert handle["expected_seconds"] > 0
        assert handle["run_id"] in handle["next_step"]
        seen = (await client.call_tool("get_run", {"run_id": handle["run_id"], "wait_s": 0.6})).structured_content
        assert (seen["state"], seen["progress"]) == ("queued", "0 runs before it")
        gone = (await client.call_tool("cancel_run", {"run_id": handle["run_id"]})).structured_content
        assert gone["state"] == "cancelled"
        again = await client.call_tool("cancel_run", {"run_id": handle["run_id"]})
        assert again.is_error

    call(alone, talk)


def test_resources(alone):
    (found,) = journal.list_runs("factual-recall", subject="smollm2-135m")

    async def talk(client):
        paper = json.loads((await client.read_resource("nullius://papers/2511.00001")).contents[0].text)
        assert "<script>" in paper["quoted"]["title"], "text of others, quoted as it is"
        figure = await client.read_resource(f"nullius://runs/{found['id']}/figure")
        assert "<svg" in figure.contents[0].text

    call(alone, talk)


def test_over_http(lab, changing):
    """Reading needs no token, starting a run one with the scope `run`; another host or origin is refused."""
    app = create(lab)
    account = who.account_for("ada@example.org", lab)
    tokens = {scope: who.make_token(account, scope, ["read", scope] if scope != "read" else ["read"]) for scope in ("read", "run")}

    async def talk(token=""):
        headers = {"authorization": f"Bearer {token}"} if token else {}
        transport = httpx2.ASGITransport(app)
        async with (
            httpx2.AsyncClient(transport=transport, base_url=lab.base_url, headers=headers) as http,
            Client(streamable_http_client(f"{lab.base_url}/mcp", http_client=http)) as client,
        ):
            found = await client.call_tool("search_papers", {"query": "head"})
            return found, await client.call_tool("start_run", {"paper": "factual-recall"})

    async def main():
        async with app.router.lifespan_context(app):
            found, run = await talk()
            assert found.structured_content["total"] > 0
            assert run.is_error
            assert "account" in said(run)
            _, run = await talk(tokens["read"])
            assert "scope" in said(run)
            _, run = await talk(tokens["run"])
            assert run.structured_content["state"] == "queued"
            async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=lab.base_url) as http:
                ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
                for headers, status in (({"host": "evil.example"}, 421), ({"origin": "https://evil.example"}, 403)):
                    assert (await http.post("/mcp", json=ping, headers=headers)).status_code == status

    anyio.run(main)
    (queued,) = journal.list_runs(state="queued")
    assert queue.asked(queued["id"])["account"] == account


def test_over_stdio(own_data_folder):
    parameters = StdioServerParameters(
        command=sys.executable, args=["-m", "nullius.cli.main", "mcp"], env={**os.environ, "NULLIUS_DATA": str(own_data_folder)}
    )

    async def main():
        async with Client(stdio_client(parameters)) as client:
            return (await client.call_tool("get_paper", {"key": "factual-recall"})).structured_content

    assert anyio.run(main)["key"] == "factual-recall"
