"""Isolation of PyTorch's global generators."""

import pytest
import torch
from nets import global_states

from skae._generator import isolated_generator


def test_the_global_generator_is_seeded_and_restored():
    before = global_states()
    draws = []
    for _ in range(2):
        with isolated_generator(True, 3, torch.device("cpu")):
            draws.append(torch.rand(3).tolist())
    assert draws[0] == draws[1]
    assert global_states() == before


def test_without_foreign_modules_the_context_has_no_effect():
    state = torch.get_rng_state()
    with isolated_generator(False, 3, torch.device("cpu")):
        assert torch.equal(torch.get_rng_state(), state)


class Gpus:
    """Stands for three GPUs, and counts what is done with each."""

    def __init__(self, monkeypatch):
        self.used, self.current = [], 0
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
        monkeypatch.setattr(torch.cuda, "get_rng_state", self.get_rng_state)
        monkeypatch.setattr(torch.cuda, "set_rng_state", self.set_rng_state)
        monkeypatch.setattr(torch.cuda, "device", self.device)
        monkeypatch.setattr(torch.cuda, "manual_seed", self.manual_seed)
        monkeypatch.setattr(torch.cuda, "manual_seed_all", self.manual_seed_all)

    def get_rng_state(self, device):
        self.used.append(("read", torch.device(device).index))
        return torch.zeros(1)

    def set_rng_state(self, state, device):
        self.used.append(("restored", torch.device(device).index))

    def device(self, device):
        self.current = device.index
        return torch.no_grad()

    def manual_seed(self, seed):
        self.used.append(("seeded", self.current))

    def manual_seed_all(self, seed):
        self.used.extend(("seeded", i) for i in range(3))


@pytest.mark.parametrize(
    ("device", "used"),
    [
        ("cpu", []),
        ("cuda:1", [("read", 1), ("seeded", 1), ("restored", 1)]),
    ],
)
def test_other_gpus_are_not_used(device, used, monkeypatch):
    gpus = Gpus(monkeypatch)
    with isolated_generator(True, 3, torch.device(device)):
        torch.rand(1)
    assert gpus.used == used
