"""The Hugging Face hub: whether it is to be asked, and answers. Its libraries ask many times, for half a minute."""

import http.client
import os
import urllib.error
import urllib.request

from kd_jax.errors import one_line

SECONDS = 5.0  # to reach the hub


def unreachable() -> str:
    """Why the hub is not asked, or does not answer within seconds; "" where it does."""
    if is_offline():
        return "the hub is not to be asked (HF_HUB_OFFLINE)"
    from huggingface_hub.constants import ENDPOINT as endpoint

    try:
        urllib.request.urlopen(endpoint, timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return ""  # it answers
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{endpoint} does not answer ({one_line(getattr(error, 'reason', error), 80)})"
    return ""


def is_offline() -> bool:
    """Whether the user says that the hub is not to be asked."""
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )
