"""`dairllm chat`: one question, or a conversation at the terminal."""

import contextlib
import secrets
import sys
from dataclasses import dataclass
from enum import Enum, auto
from typing import Annotated

import typer
from rich.console import Console

from dairllm.client.client import Answer, Client, Finish, Message
from dairllm.client.options import DEFAULT_CLUSTER, ClusterOption, CoordinatorOption, connect
from dairllm.mesh.errors import InvalidRequest
from dairllm.mesh.foreign_text import is_text, on_lines, on_one_line
from dairllm.mesh.sampling import SamplingParams
from dairllm.mesh.settings import ConfigFile
from dairllm.mesh.terminal import console

EXIT_INTERRUPTED = 130
HELP = "An empty line does nothing. /clear forgets the conversation, /exit or Ctrl-D leaves; Ctrl-C stops an answer."


@dataclass(frozen=True, slots=True)
class AnswerSettings:
    model: str
    max_tokens: int | None
    sampling: SamplingParams


class TurnEnd(Enum):
    COMPLETED = auto()
    STOPPED = auto()


def chat(
    question: Annotated[str | None, typer.Argument(help="Answer this and end. Without it: a conversation, or what a pipe sends.")] = None,
    system: Annotated[str | None, typer.Option(help="Instruction that stands before the conversation.")] = None,
    model: Annotated[str, typer.Option(help="Model to ask. Default: the one that is served.")] = "",
    temperature: Annotated[float, typer.Option(help="0 always takes the most probable token.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Choose among the tokens that together are this probable; 1 is off.")] = 0.95,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens. Default: until the model ends.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="The same seed, model and arithmetic (`dairllm status`) give the same answer to the same question. Default: random."
        ),
    ] = None,
    coordinator: CoordinatorOption = None,
    cluster: ClusterOption = DEFAULT_CLUSTER,
    config: ConfigFile = None,
) -> None:
    """Ask the model; the answer appears while it is generated."""
    sampling = SamplingParams(temperature=temperature, top_p=top_p, seed=secrets.randbits(64) if seed is None else seed)
    settings = AnswerSettings(model, max_tokens, sampling)
    conversation = [] if system is None else [Message("system", system)]
    if question is None and not sys.stdin.isatty():
        question = read_all().strip()
    if question is not None and not question.strip():
        raise InvalidRequest("the question is empty; expected some text")
    with connect(coordinator, cluster) as client:
        if question is None:
            converse(client, conversation, settings)
        elif answer(client, [*conversation, Message("user", question)], settings) is TurnEnd.STOPPED:
            raise typer.Exit(EXIT_INTERRUPTED)


def read_all() -> str:
    """What a pipe or a file gives. Raises InvalidRequest if it is no text."""
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"what comes in at stdin is not in {error.encoding}: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise InvalidRequest(f"stdin can't be read: {error.strerror}") from error
    if not is_text(text):
        raise InvalidRequest("what comes in at stdin is not in UTF-8")
    return text


def converse(client: Client, conversation: list[Message], settings: AnswerSettings) -> None:
    """Questions and answers in turn until end of input; the conversation so far goes with every question."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - line editing and history of input()
    notes = console(stderr=True)
    names = ", ".join(on_one_line(model.name) for model in client.models()) or "nothing yet"
    notes.print(f"{client.address} serves {names}. {HELP}", style="dim")
    start = len(conversation)
    while (line := read_line(notes)) is not None:
        if line == "/exit":
            return
        if line == "/clear":
            del conversation[start:]
        elif line.startswith("/"):
            notes.print(HELP, style="dim")
        elif line:
            conversation.append(Message("user", line))
            answer(client, conversation, settings)


def read_line(notes: Console) -> str | None:
    """A line without the blanks around it; None at the end of input. Ctrl-C drops the line, as do bytes that are no text."""
    try:
        line = input("> ").strip()
        if is_text(line):
            return line
    except UnicodeDecodeError:
        pass
    except EOFError:
        notes.print()
        return None
    except KeyboardInterrupt:
        notes.print()
        return ""
    notes.print(f"that is no text in {sys.stdin.encoding}", style="dim")
    return ""


def answer(client: Client, conversation: list[Message], settings: AnswerSettings) -> TurnEnd:
    """Print the answer while it comes and append it to the conversation, also what there is of a stopped one."""
    outcome = TurnEnd.COMPLETED
    shown = on_lines if sys.stdout.isatty() else str
    with client.chat(conversation, model=settings.model, max_tokens=settings.max_tokens, sampling=settings.sampling) as reply:
        try:
            for piece in reply:
                sys.stdout.write(shown(piece))
                sys.stdout.flush()
        except KeyboardInterrupt:
            outcome = TurnEnd.STOPPED
    sys.stdout.write("\n")
    sys.stdout.flush()
    conversation.append(Message("assistant", reply.text))
    console(stderr=True).print(describe_speed(reply), style="dim")
    return outcome


def describe_speed(reply: Answer) -> str:
    """One line about an answer, e.g. '64 tokens, 41.2 tok/s, first token after 0.21 s'."""
    if reply.finish is None:
        return f"stopped after {len(reply.tokens)} tokens"
    finish: Finish = reply.finish
    parts = [f"{finish.completion_tokens} tokens"]
    if finish.decode_tok_s:
        parts.append(f"{finish.decode_tok_s:.1f} tok/s")
    cached = f", {finish.cached_tokens} of them cached" if finish.cached_tokens else ""
    parts.append(f"first token after {finish.first_token_s:.2f} s ({finish.prompt_tokens} tokens of prompt{cached})")
    if finish.reason == "length":
        parts.append("ended by the length limit")
    return ", ".join(parts)
