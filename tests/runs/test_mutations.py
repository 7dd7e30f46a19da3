"""A value of a run, a sweep or a picture that somebody changed: no command raises, hangs, or writes elsewhere."""

import pytest
from support.mutations import Mutation, chosen, faults, subjects

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]

SAMPLE, SEED = 30, 15  # `python tests/support/mutations.py --all` runs all of them
# What raised once, or wrote what could not be read again.
KNOWN = [
    Mutation("manifest.jsonl", ("note", "a", 1), "half a pair"),
    Mutation("manifest.jsonl", ("trace", "latents"), "overflow"),
    Mutation("run.json", ("num_images",), "texts"),
    Mutation("run.json", ("sessions", 0, "seconds", "generate"), "half a pair"),
    Mutation("sweep.json", ("axes", "seed", 0), "text"),
    Mutation("scores/colorfulness.jsonl", ("value",), "huge"),
    Mutation("scores/colorfulness.jsonl", (), "nested"),
    Mutation("scores/sets.json", (0, "value"), "overflow"),
    Mutation("scores/sets.json", (0, "reference"), "control"),
    Mutation("dropped.jsonl", ("row",), "huge"),
    Mutation("dropped.jsonl", ("copy",), "half a pair"),
    Mutation("dropped.jsonl", (), "nested"),
    Mutation("config.yaml", ("first_row",), "huge"),
    Mutation("config.yaml", ("model", "name"), "long"),
    Mutation("images/00000-000.png", ("model_settings", "variant"), "half a pair"),
    Mutation("config.yaml", ("prompts", "rows", 0), "missing"),
]


@pytest.fixture(scope="module")
def all_subjects(tmp_path_factory, one_device):
    return subjects(tmp_path_factory.mktemp("subjects"))


@pytest.mark.long
@pytest.mark.slow
def test_no_changed_value_gives_a_traceback(all_subjects, tmp_path):
    cases = chosen(all_subjects, SAMPLE, SEED)
    known = {mutation: subject for subject in all_subjects for mutation in subject.mutations() if mutation in KNOWN}
    assert known.keys() == set(KNOWN)
    found = []
    for number, (subject, mutation) in enumerate([*cases, *((subject, one) for one, subject in known.items())]):
        folder = tmp_path / str(number)
        folder.mkdir()
        found += faults(subject, mutation, folder)
    assert found == []
