import pytest

from tpusd.config.completion import candidates


@pytest.mark.parametrize(
    ("words", "word", "expected"),
    [
        ([], "see", ["seed="]),
        ([], "pro", ["prompt=", "prompts.", "prompts="]),
        ([], "resu", ["resume="]),
        ([], "sampler.num_", ["sampler.num_inference_steps="]),
        ([], "precision.u", ["precision.unet."]),
        ([], "precision.unet.", ["precision.unet.dtype=", "precision.unet.param_dtype="]),
        ([], "precision=", ["precision=bf16", "precision=fp16", "precision=fp32"]),
        ([], "precision.unet.dtype=fl", ["precision.unet.dtype=float16", "precision.unet.dtype=float32"]),
        ([], "dry_run=", ["dry_run=false", "dry_run=true"]),
        ([], "image_format=w", ["image_format=webp"]),
        ([], "seed=", ["seed=0"]),
        ([], "loggers=[w", ["loggers=[wandb,", "loggers=[wandb]"]),
        ([], "loggers=[wandb,te", ["loggers=[wandb,tensorboard,", "loggers=[wandb,tensorboard]"]),
        (["-m"], "sampler=ddim,eu", ["sampler=ddim,euler", "sampler=ddim,euler_ancestral"]),
        (["-m"], "precision=bf16,", ["precision=bf16,fp16", "precision=bf16,fp32"]),
        ([], "sampler=ddim,eu", []),
        ([], "--c", ["--cfg", "--config-dir="]),
        ([], "nothing=", []),
    ],
)
def test_words_are_completed(words, word, expected):
    assert candidates(words, word) == expected


def test_paths_are_completed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (
        "runs/2026_portraits/config.yaml",
        "runs/2026_sweep/sweep.json",
        "runs/other/x",
        "ck/model_index.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in ("prompts.csv", "picture.png", "with space.csv"):
        (tmp_path / name).touch()
    assert candidates([], "resume=") == ["resume=runs/2026_portraits", "resume=runs/2026_sweep", "resume=runs/other/"]
    assert candidates([], "resume=runs/2026_p") == ["resume=runs/2026_portraits"]
    assert candidates([], "resume=ru") == ["resume=runs/"]
    assert candidates([], "model.path=") == ["model.path=ck", "model.path=runs/"]
    assert candidates([], "model.path=~/c") == ["model.path=~/ck"]
    assert candidates([], "prompts.path=p") == ["prompts.path=prompts.csv"]
    assert candidates([], "prompts.path=w") == []  # a shell would break it; its own completion knows better
    assert candidates([], f"output={tmp_path}/r") == [f"output={tmp_path}/runs/"]
    assert candidates([], "resume=nothing/") == []
