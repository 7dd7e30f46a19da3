"""Eight virtual devices for every test, as on a TPU host; each test takes as many of them as it needs."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


@pytest.fixture(scope="module")
def one_device():
    """A run of these tests uses one device, however many there are, so that its batches can be counted."""
    devices = jax.local_devices()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: devices[:1])
        yield
