"""Which device is meant by a name."""

import pytest
import torch

from worldmodel.devices import has_fast_bfloat16, pick_device
from worldmodel.errors import DeviceError


def test_names() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "unknown device 'gpu'; accepted: auto, cpu, cuda, cuda:N, mps"),
        ("", "unknown device ''"),
        ("cuda:x", "unknown device 'cuda:x'"),
        ("cuda:99", "device 'cuda:99' asked for, but torch sees .* CUDA devices"),
        ("meta", "device 'meta' is not supported"),
    ],
)
def test_a_device_that_is_not_there_is_named(name: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        pick_device(name)


def test_no_cuda_and_no_metal_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(DeviceError, match="torch sees 0 CUDA devices; use --device cpu or auto"):
        pick_device("cuda")
    with pytest.raises(DeviceError, match="no Metal"):
        pick_device("mps")


def test_fast_bfloat16_is_a_claim_about_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert has_fast_bfloat16(torch.device("cpu")) is True
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert has_fast_bfloat16(torch.device("cpu")) is False
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert has_fast_bfloat16(torch.device("cpu")) is False


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:1"])
def test_a_device_is_named_as_tensors_on_it_name_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor on a GPU says cuda:0, which is not equal to cuda."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert pick_device(name) == torch.device("cuda", 1 if name == "cuda:1" else 0)
    assert pick_device("cpu") == torch.zeros(1).device
