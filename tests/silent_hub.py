"""A Hugging Face hub on loopback that never answers."""

import contextlib
import socket

from kd_jax import hub


@contextlib.contextmanager
def asked(monkeypatch, *, listens: bool = True):
    """The libraries ask it inside; without `listens` it refuses the connection."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(hub, "SECONDS", 0.2)
        yield
