import subprocess
import sys


def test_importing_the_engine_sends_nothing_to_anybody() -> None:
    """OpenVINO reports its import over the network, unless it is kept from it."""
    code = (
        "import socket, sys\n"
        "def refuse(*args, **kwargs): raise SystemExit('something tried to call home')\n"
        "socket.getaddrinfo = socket.socket.connect = refuse\n"
        "import enginehouse_server.engine.openvino\n"
        "import openvino.tools.ovc.telemetry_utils as used\n"
        "assert used.tm.__name__ == 'openvino.tools.ovc.telemetry_stub', used.tm\n"
        "assert not any(n.startswith('openvino_telemetry.') for n in sys.modules)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
