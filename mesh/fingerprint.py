"""What OpenAI's API calls the system's fingerprint: equal ones mean that the same request with the same seed has the same answer."""

import hashlib


def system_fingerprint(model_digest: str, arithmetic: str) -> str:
    """model_digest: of the model's manifest, in hex. arithmetic: what else decides the bits, as `Arithmetic` writes it."""
    return f"fp_{hashlib.sha256(f'{model_digest} {arithmetic}'.encode()).hexdigest()[:16]}"
