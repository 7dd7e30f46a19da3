"""A safety checker without a network: what it finds follows from the pixels alone."""

import dataclasses
from types import SimpleNamespace

from support.runs import prepare as prepare_run
from tpusd.runs.executors.local import LocalExecutor
from tpusd.runs.safety import safety_to_save
from tpusd.vision.verdict import Verdict

SHA256 = "5" * 64
FOUND = Verdict(concepts=(3,), scores=(0.0, -0.1, -0.2, 0.012), special_care=(), special_scores=(-0.3,))
CLEAN = Verdict(concepts=(), scores=(0.0, -0.1, -0.2, -0.012), special_care=(1,), special_scores=(0.02,))


def opened(sha256=None):
    """As tpusd.vision.safety.OpenedChecker."""
    sha256 = sha256 or SHA256
    identity = SimpleNamespace(repo=None, commit=None, sha256={"safety_checker/model.safetensors": sha256})
    files = SimpleNamespace(commit=None, directory=SimpleNamespace(root="/checker"))
    return SimpleNamespace(
        sha256=sha256, where="/checker/config.json", identity=identity, network=SimpleNamespace(files=files)
    )


def verdict(pixels) -> Verdict:
    """Finds about half of the pictures."""
    return FOUND if int(pixels.sum()) % 2 else CLEAN


class StandInChecker:
    """find: pixels -> verdict."""

    def __init__(self, find=verdict):
        self.find, self.checked = find, 0

    def check(self, pictures):
        self.checked += len(pictures)
        return [self.find(picture) for picture in pictures]


def use(monkeypatch, find=verdict) -> StandInChecker:
    """Local executors, those of workers too, have this checker."""
    checker = StandInChecker(find)
    monkeypatch.setattr(LocalExecutor, "_loaded", lambda self, opened, size: checker)
    return checker


def prepare(config):
    made = prepare_run(config)
    if not config.safety.is_on:
        return made
    checker = opened()
    saved = dataclasses.replace(made.config, safety=safety_to_save(config.safety, checker))
    return dataclasses.replace(made, config=saved, safety=checker)
