"""Every error that a user or another process can see, with what it means on each interface.

    DairllmError
    ├── InvalidRequest            the request is wrong and will stay wrong
    │   ├── ContextExceeded       prompt and answer do not fit the model's context
    │   ├── UnknownModel          no model of this name is served
    │   ├── UnknownShard          no shard of this name is in the cluster
    │   ├── NotDispensable        the model cannot be served without this shard
    │   └── PromptTemplateFailed  the model's chat template refuses these messages
    ├── Unsupported               this model or this build lacks an ability
    ├── InvalidSetting            a flag, an environment variable or a line of the settings file is wrong
    ├── InvalidModel              a model file is missing, broken or of a kind that is not supported
    ├── MembershipRefused         a shard may not join
    │   ├── WrongCluster          it belongs to another cluster
    │   ├── WrongProtocol         it speaks another version of the protocol
    │   ├── NameTaken             a living shard has its name
    │   └── InvitationDeclined    it has joined another coordinator, or was told to
    ├── NotAMember                the caller lacks a key that the coordinator gives to members of a plan
    ├── FrameRejected             a frame of activations was not computed
    │   ├── WrongEpoch            it belongs to another plan
    │   └── MalformedFrame        its sizes, ids or encodings do not fit
    ├── Busy                      the queue is full
    ├── NotReady                  no plan serves the model now
    │   └── NotEnoughMemory       the shards together hold too little memory
    ├── RequestLost               the answer could not be continued
    ├── GenerationFailed          the model itself gave nothing that an answer can be made of
    ├── WeightsDiffer             bytes do not have the digest of the manifest
    ├── PeerUnreachable           another process does not answer
    └── DeadlineExceeded          something took longer than allowed

The table is the only place that says how an error looks over gRPC and HTTP and whether trying again may help.
"""

from dataclasses import dataclass
from typing import NamedTuple

import grpc

DEFAULT_RETRY_DELAY_S = 2.0


class Meaning(NamedTuple):
    grpc_status: grpc.StatusCode
    http_status: int
    openai_type: str
    retryable: bool


@dataclass(unsafe_hash=True)
class DairllmError(Exception):
    """Base of all errors.

    message: one sentence that names the thing, its value and what was expected.
    param: name of the request's field that is wrong, if one is.
    retry_after_s: when trying again makes sense, if that is known.
    """

    message: str
    param: str | None = None
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return self.message

    @property
    def code(self) -> str:
        """Machine-readable name in snake case, as in OpenAI's `error.code`."""
        name = type(self).__name__
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")

    @property
    def meaning(self) -> Meaning:
        for cls in type(self).__mro__:
            if cls in MEANINGS:
                return MEANINGS[cls]
        raise AssertionError(f"{type(self).__name__} has no row in MEANINGS")

    @property
    def retry_delay_s(self) -> float | None:
        """After how long a client should try again; None if that does not help."""
        if not self.meaning.retryable:
            return None
        return DEFAULT_RETRY_DELAY_S if self.retry_after_s is None else self.retry_after_s


class InvalidRequest(DairllmError):
    pass


class ContextExceeded(InvalidRequest):
    pass


class UnknownModel(InvalidRequest):
    pass


class UnknownShard(InvalidRequest):
    pass


class NotDispensable(InvalidRequest):
    pass


class PromptTemplateFailed(InvalidRequest):
    pass


class Unsupported(DairllmError):
    pass


class InvalidSetting(DairllmError):
    pass


class InvalidModel(DairllmError):
    pass


class MembershipRefused(DairllmError):
    pass


class WrongCluster(MembershipRefused):
    pass


class WrongProtocol(MembershipRefused):
    pass


class NameTaken(MembershipRefused):
    pass


class InvitationDeclined(MembershipRefused):
    pass


class NotAMember(DairllmError):
    pass


class FrameRejected(DairllmError):
    pass


class WrongEpoch(FrameRejected):
    pass


class MalformedFrame(FrameRejected):
    pass


class Busy(DairllmError):
    pass


class NotReady(DairllmError):
    pass


@dataclass(unsafe_hash=True)
class NotEnoughMemory(NotReady):
    """missing_bytes: how much more would do; 0 if that is not known."""

    missing_bytes: int = 0


class RequestLost(DairllmError):
    pass


class GenerationFailed(DairllmError):
    pass


class WeightsDiffer(DairllmError):
    pass


class PeerUnreachable(DairllmError):
    pass


class DeadlineExceeded(DairllmError):
    pass


_INVALID = "invalid_request_error"
_SERVER = "server_error"
_S = grpc.StatusCode

MEANINGS: dict[type[DairllmError], Meaning] = {
    DairllmError: Meaning(_S.INTERNAL, 500, _SERVER, False),
    InvalidRequest: Meaning(_S.INVALID_ARGUMENT, 400, _INVALID, False),
    ContextExceeded: Meaning(_S.INVALID_ARGUMENT, 400, _INVALID, False),
    UnknownModel: Meaning(_S.NOT_FOUND, 404, _INVALID, False),
    UnknownShard: Meaning(_S.NOT_FOUND, 404, _INVALID, False),
    NotDispensable: Meaning(_S.FAILED_PRECONDITION, 409, _INVALID, False),
    Unsupported: Meaning(_S.FAILED_PRECONDITION, 400, _INVALID, False),
    InvalidSetting: Meaning(_S.INVALID_ARGUMENT, 400, _INVALID, False),
    InvalidModel: Meaning(_S.FAILED_PRECONDITION, 500, _SERVER, False),
    MembershipRefused: Meaning(_S.FAILED_PRECONDITION, 403, _INVALID, False),
    WrongCluster: Meaning(_S.PERMISSION_DENIED, 403, _INVALID, False),
    NameTaken: Meaning(_S.ALREADY_EXISTS, 409, _INVALID, True),
    NotAMember: Meaning(_S.PERMISSION_DENIED, 403, _INVALID, False),
    FrameRejected: Meaning(_S.INVALID_ARGUMENT, 500, _SERVER, False),
    WrongEpoch: Meaning(_S.FAILED_PRECONDITION, 500, _SERVER, False),
    Busy: Meaning(_S.RESOURCE_EXHAUSTED, 429, "rate_limit_error", True),
    NotReady: Meaning(_S.UNAVAILABLE, 503, _SERVER, True),
    RequestLost: Meaning(_S.ABORTED, 503, _SERVER, True),
    GenerationFailed: Meaning(_S.INTERNAL, 500, _SERVER, False),
    WeightsDiffer: Meaning(_S.DATA_LOSS, 500, _SERVER, False),
    PeerUnreachable: Meaning(_S.UNAVAILABLE, 503, _SERVER, True),
    DeadlineExceeded: Meaning(_S.DEADLINE_EXCEEDED, 504, _SERVER, True),
}
