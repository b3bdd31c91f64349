"""What a chat carries for the model's template reaches it: tools, earlier calls, thoughts, and variables of its own."""

import dataclasses

from tests.http.conftest import run_site
from tests.instruments.templates import make_template
from tests.text.fakes import SPECIAL_TEXTS, make_served

TEMPLATE = (
    "{{ tools[0].function.name if tools }}|{{ think }}|{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{% for call in m.tool_calls or [] %}[{{ call.id }} {{ call.function.name }} {{ call.function.arguments.city }}]{% endfor %}"
    "{% if m.tool_call_id %}<{{ m.tool_call_id }}>{% endif %};{% endfor %}"
)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome <|im_end|>"}'}}


async def test_fields_for_the_template() -> None:
    served = dataclasses.replace(make_served(), chat_template=make_template(TEMPLATE, control_texts=SPECIAL_TEXTS.values()))
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [CALL]},
        {"role": "tool", "content": "20", "tool_call_id": "1"},
    ]
    async with run_site(served) as site:
        body = {"messages": messages, "tools": [TOOL], "chat_template_kwargs": {"think": False}}
        assert (await site.post("/v1/chat/completions", body)).status_code == 200
        (request,) = site.engine.requests
        prompt = bytes(token_id for token_id in request.prompt_ids if token_id < 256).decode()
        assert prompt == "weather|False|user:?;assistant:(hm)[1 weather Rome <|im_end|>];tool:20<1>;"
        assert (
            await site.post("/v1/chat/completions", {"messages": messages[:1], "tools": [TOOL], "tool_choice": "none"})
        ).status_code == 200
        plain = bytes(token_id for token_id in site.engine.requests[1].prompt_ids if token_id < 256).decode()
        assert plain == "||user:?;"
