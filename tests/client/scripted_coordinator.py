"""A coordinator that only announces itself and says what it is told to say, in a process of its own.

    scripted_coordinator.py READY_FILE JSON

JSON: `cluster` (name), `protocol` ("2.0"), `software`, `port`, `announce` (bool), `ahead_s` (of its clock), `shards` ([name, addresses]).
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

from dairllm.mesh.channels import add_standard_services, bind, create_server
from dairllm.mesh.cluster_name import cluster_hash
from dairllm.mesh.discovery.announcer import Announcer
from dairllm.mesh.discovery.records import Announcement
from dairllm.mesh.process import run_until_signal
from dairllm.v1 import cluster_pb2, cluster_pb2_grpc


class ScriptedCluster(cluster_pb2_grpc.ClusterServiceServicer):
    def __init__(self, script: dict[str, Any]) -> None:
        self._script = script

    async def WatchCluster(
        self, request: cluster_pb2.WatchClusterRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[cluster_pb2.WatchClusterResponse]:
        script = self._script
        major, minor = map(int, script["protocol"].split("."))
        yield cluster_pb2.WatchClusterResponse(
            state=cluster_pb2.ClusterState(
                software_version=script["software"],
                model="scripted",
                phase=cluster_pb2.CLUSTER_PHASE_SERVING,
                shards=[cluster_pb2.ShardState(name=name, addresses=addresses) for name, addresses in script.get("shards", [])],
            ),
            coordinator=cluster_pb2.CoordinatorIdentity(
                protocol_major=major,
                protocol_minor=minor,
                cluster_hash=cluster_hash(script["cluster"]),
                time_s=time.time() + script.get("ahead_s", 0.0),
            ),
        )


async def main(stop: asyncio.Event, ready_file: Path, script: dict[str, Any]) -> None:
    server = create_server()
    port = await bind(server, "0.0.0.0", script["port"], "the scripted coordinator")
    cluster_pb2_grpc.add_ClusterServiceServicer_to_server(ScriptedCluster(script), server)
    await add_standard_services(server, ["dairllm.v1.ClusterService"]).set_serving(True)
    await server.start()
    announcer = Announcer(Announcement("scripted", cluster_hash(script["cluster"]), port, protocol=script["protocol"]))
    if script["announce"]:
        await announcer.start()
    ready_file.write_text(json.dumps({"port": port}))
    await stop.wait()
    await announcer.stop()
    await server.stop(None)


if __name__ == "__main__":
    sys.exit(run_until_signal(lambda stop: main(stop, Path(sys.argv[1]), json.loads(sys.argv[2]))))
