"""The shard that the coordinator starts beside itself, so that one machine alone is a whole cluster."""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Sequence

logger = logging.getLogger(__name__)

FIRST_RESTART_DELAY_S = 0.5
LAST_RESTART_DELAY_S = 30.0
STOP_DEADLINE_S = 3.0
INHERITED_SETTINGS = ("DAIRLLM_ISA", "DAIRLLM_CONFIG", "DAIRLLM_MODEL_DIR")


class LocalShard:
    """Runs `dairllm-shard` as a child and starts it again, with growing delays, when it ends by itself."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._command = [sys.executable, "-m", "dairllm.shard_service.main", *arguments]
        self._process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        """Until cancelled; the child is ended then, first politely."""
        delay_s = FIRST_RESTART_DELAY_S
        try:
            while True:
                self._process = await asyncio.create_subprocess_exec(*self._command, stdin=asyncio.subprocess.DEVNULL, env=_environment())
                status = await self._process.wait()
                logger.warning("the local shard ended with status %d; it is started again in %.1f s", status, delay_s)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, LAST_RESTART_DELAY_S)
        finally:
            await self._stop()

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_DEADLINE_S)
        except TimeoutError:
            logger.warning("the local shard did not end within %.0f s and is killed", STOP_DEADLINE_S)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _environment() -> dict[str, str]:
    """This process's, without the settings that are meant for the coordinator itself: DAIRLLM_PORT, say."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DAIRLLM_") or name in INHERITED_SETTINGS}
