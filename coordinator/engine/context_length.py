"""What does not fit the context, in the words by which clients of OpenAI's API know it."""

from dairllm.mesh.errors import ContextExceeded


def require_room(context_length: int, prompt_tokens: int, max_tokens: int | None) -> None:
    """max_tokens: None for as many as there is room for, at least one; 0 for none. Raises ContextExceeded."""
    if prompt_tokens + (max_tokens != 0) > context_length:
        raise too_long(context_length, str(prompt_tokens))
    if max_tokens is not None and prompt_tokens + max_tokens > context_length:
        raise ContextExceeded(
            f"{_limit(context_length)}, but the prompt has {prompt_tokens} tokens and max_tokens is {max_tokens}; "
            f"expected max_tokens of at most {context_length - prompt_tokens}",
            "max_tokens",
        )


def too_long(context_length: int, prompt_tokens: str, param: str = "prompt") -> ContextExceeded:
    """prompt_tokens: how many, in words."""
    return ContextExceeded(f"{_limit(context_length)}, but the prompt has {prompt_tokens} tokens; expected fewer", param)


def _limit(context_length: int) -> str:
    return f"This model's maximum context length is {context_length} tokens, prompt and answer together"
