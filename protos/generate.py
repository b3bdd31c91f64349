"""Generate the Python code of protos/dairllm/v1 beside the .proto files. Run by `make protos` in an environment of its own.

The output of grpcio-tools 1.66.2 runs on protobuf 5 to 7; newer tools write code that refuses older runtimes.
"""

import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent


def main() -> int:
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "dairllm/v1").glob("*.proto"))
    output = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT)
    arguments = [f"--proto_path={ROOT}", f"--python_out={output}", f"--pyi_out={output}", f"--grpc_python_out={output}"]
    return int(protoc.main(["protoc", *arguments, *sources]))


if __name__ == "__main__":
    raise SystemExit(main())
