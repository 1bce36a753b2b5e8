"""Calls of an assistant's tools, and a subscription on its way to a yes."""

from __future__ import annotations

import re

from tests.web.test_subscribing import WISH

from nullius.web import limiting

CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
JSON = {"content-type": "application/json", "accept": "application/json, text/event-stream"}


def tool(client, name, **arguments):
    return client.post("/mcp", json={**CALL, "params": {"name": name, "arguments": arguments}}, headers=JSON)


def asked(people, box, **change):
    """Subscribe as a member; return where the confirmation leads."""
    limiting.forget()
    assert people["member"].post("/subscribe", data={**WISH, **change}).status_code == 200
    return re.search(r"papers\.example\.org(/subscribe/confirm/\S+)", box.mails[-1].get_payload(decode=True).decode())[1]
