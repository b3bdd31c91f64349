"""By which names clients may ask for the model."""

import asyncio
import dataclasses
import re
import textwrap
from pathlib import Path
from typing import Any

import openai
import pytest

from dairllm.coordinator.model import names_of
from tests.http.conftest import run_site
from tests.text.fakes import make_served

README = Path(__file__).parent.parent.parent / "README.md"


async def test_the_model_has_the_names_of_its_file() -> None:
    path = Path("/path/to/model.gguf")
    name, aliases = names_of(str(path), path, None)
    async with run_site(dataclasses.replace(make_served(), name=name, aliases=aliases)) as named, named.client() as client:
        for asked in ("model", "model.gguf", str(path)):
            assert (await client.completions.create(model=asked, prompt="a")).model == "model"
            assert (await client.models.retrieve(asked)).id == "model"
        with pytest.raises(openai.NotFoundError, match=r"'other\.gguf' is not served; expected 'model'"):
            await client.completions.create(model="other.gguf", prompt="a")
    assert names_of("smollm2:135m", Path("/cache/SmolLM2.gguf"), None)[0] == "smollm2:135m"
    blob = names_of("/store/blobs/sha256-ab", Path("/store/blobs/sha256-ab"), None, "tiny:1b")
    assert (blob[0], "sha256-ab" in blob[1]) == ("tiny:1b", True)
    assert names_of("/models/Llama-3.2-1B", Path("/models/Llama-3.2-1B"), None, "Llama-3.2-1B")[0] == "Llama-3.2-1B"
    assert names_of("x.gguf", Path("/a/x.gguf"), "mine") == ("mine", frozenset({"x", "x.gguf", "/a/x.gguf"}))


async def test_the_examples_of_the_readme_work_with_the_model_that_it_starts() -> None:
    text = README.read_text()
    (model,) = re.findall(r"dairllm-coordinator --model (\S+)", text)
    name, aliases = names_of(model, Path(model), None)
    async with run_site(dataclasses.replace(make_served(), name=name, aliases=aliases)) as site:
        (body,) = re.findall(r"-d '(\{.*\})'", text)
        assert (await site.post("/v1/chat/completions", body.encode())).status_code == 200
        (example,) = re.findall(r"    from openai import OpenAI\n(?:    .*\n|\n)+", text)
        code = textwrap.dedent(example).replace("http://127.0.0.1:8080", site.url)
        found: dict[str, Any] = {}
        await asyncio.to_thread(exec, compile(code, "README.md", "exec"), found)
        found["client"].close()
        assert found["answer"].choices[0].message.content == "Hello, world"
