"""What `dairllm doctor` finds out. Packages add checks to it by entry points of the group DOCTOR_GROUP: functions from Subject to findings.

Such a function runs in a thread of its own and must end soon after `Subject.deadline_s`, with whatever it knows by then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

DOCTOR_GROUP = "dairllm.doctor"


class Status(Enum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw.

    group: the heading that it stands under. check: its name in snake case, for programs. seen: one sentence of facts.
    matters, advice: why it matters and what to do, a sentence each; empty where all is well.
    """

    group: str
    check: str
    status: Status
    seen: str
    matters: str = ""
    advice: str = ""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The model that the coordinator serves. digest: of its content, in hex. size_bytes: of all its weights, shared ones once."""

    name: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Subject:
    """What checks of other packages are told. model: None if no coordinator told. deadline_s: by time.monotonic()."""

    model: ModelIdentity | None
    model_dirs: tuple[Path, ...]
    deadline_s: float


DoctorCheck = Callable[[Subject], Sequence[Finding]]
