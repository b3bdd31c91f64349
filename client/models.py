"""`dairllm models served`: what the cluster serves."""

import json

from rich.table import Table

from dairllm.client.options import DEFAULT_CLUSTER, ClusterOption, CoordinatorOption, JsonOption, connect
from dairllm.mesh.foreign_text import on_one_line
from dairllm.mesh.settings import ConfigFile
from dairllm.mesh.terminal import console


def served(
    as_json: JsonOption = False,
    coordinator: CoordinatorOption = None,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    config: ConfigFile = None,
) -> None:
    """List the models that the cluster serves."""
    with connect(coordinator, cluster) as client:
        models = client.models()
    if as_json:
        names = ("name", "architecture", "context_length", "vocab_size", "has_tokenizer", "has_chat_template", "ready")
        print(json.dumps({"models": [{name: getattr(model, name) for name in names} for model in models]}))
        return
    table = Table("model", "architecture", "context", "vocabulary", "chat", "state", box=None, header_style="bold", pad_edge=False)
    for model in models:
        abilities = "yes" if model.has_chat_template else "no"
        state = "ready" if model.ready else "not ready"
        name, architecture = on_one_line(model.name), on_one_line(model.architecture)
        table.add_row(name, architecture, str(model.context_length), str(model.vocab_size), abilities, state)
    console().print(table if models else "no model is served")
