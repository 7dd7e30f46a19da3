"""--config-dir: bounded, and it reaches no file outside."""

import os
import time

import pytest

from tpusd.config import choices, config_dir
from tpusd.config.compose import MAX_RUNS, compose_jobs
from tpusd.errors import UserError

PROMPTS = "name: mine\nrows: [{prompt: a}]\npath: null\ncolumn: null\n"


@pytest.fixture
def conf(tmp_path):
    (tmp_path / "outside.yaml").write_text(PROMPTS)
    (tmp_path / "outside.yml").write_text(PROMPTS)
    (tmp_path / "conf" / "prompts").mkdir(parents=True)
    return tmp_path / "conf"


def refusal(*argv):
    started = time.process_time()
    with pytest.raises(UserError) as error:
        compose_jobs(argv)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert time.process_time() - started < 5
    return str(error.value)


@pytest.mark.parametrize(
    "defaults",
    [
        "[../../outside]",
        "[{../..: outside}]",
        "[{prompts: ../../outside}]",
        "[{prompts: [a, ../../outside]}]",
        "[override ../../outside]",
        "[override //tmp/outside]",
        "[//tmp/outside]",
        "[{override /prompts: ../../outside}]",
        "['${oc.env:HOME}/outside']",
        "[optional //tmp/x]",
        "[3]",
    ],
)
def test_defaults_lists_stay_in_the_directory(conf, defaults):
    (conf / "prompts" / "evil.yaml").write_text(f"defaults: {defaults}\n{PROMPTS}")
    assert "must be the name of a config in this directory" in refusal(f"--config-dir={conf}", "prompts=evil")


@pytest.mark.parametrize("name", ['"\\x64efaults"', "? defaults\n", "<<: {defaults: [../../outside]}\nx"])
def test_no_spelling_hides_a_defaults_list(conf, name):
    (conf / "prompts" / "evil.yaml").write_text(f"{name}: [../../outside]\n{PROMPTS}")
    assert "must be the name of a config in this directory" in refusal(f"--config-dir={conf}", "prompts=evil")


def test_defaults_lists_of_names_work(conf):
    (conf / "prompts" / "base.yaml").write_text(PROMPTS)
    (conf / "prompts" / "v1.5-mine.yaml").write_text("defaults: [base, _self_]\nname: other\n")
    (job,) = compose_jobs([f"--config-dir={conf}", "prompts=v1.5-mine"])
    assert job.values["prompts"]["rows"] == [{"prompt": "a"}] and job.values["prompts"]["name"] == "other"


def test_search_paths_are_refused(conf):
    (conf / "mine.yaml").write_text("defaults: [config]\nhydra: {searchpath: [file:///tmp]}\n")
    assert "hydra.searchpath" in refusal(f"--config-dir={conf}", "--config-name=mine")


def test_config_names_are_of_the_directory(conf):
    assert "no such config" in refusal(f"--config-dir={conf}", "--config-name=../outside")


@pytest.mark.parametrize("suffix", ["yaml", "yml"])
def test_what_a_linked_folder_holds_is_checked(conf, tmp_path, suffix):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / f"evil.{suffix}").write_text("more: " + "[" * 100 + "]" * 100)
    (conf / "prompts" / "linked").symlink_to(tmp_path / "elsewhere")
    assert "nested over" in refusal(f"--config-dir={conf}", "prompts=portraits")


@pytest.mark.slow
def test_links_in_circles_and_full_folders_end(conf, monkeypatch):
    (conf / "prompts" / "again").symlink_to(conf)
    (conf / "prompts" / "mine.yaml").write_text(PROMPTS)
    compose_jobs([f"--config-dir={conf}", "prompts=mine"])
    monkeypatch.setattr(choices, "MAX_ENTRIES", 20)
    assert "files and folders" in refusal(f"--config-dir={conf}", "prompts=mine")


def test_flat_lists_and_large_directories_are_refused(conf, monkeypatch):
    (conf / "prompts" / "evil.yaml").write_text(PROMPTS + "more: [" + "1," * 2_000_000 + "1]\n")
    assert "holds over 100000 values" in refusal(f"--config-dir={conf}", "prompts=evil")
    (conf / "prompts" / "evil.yaml").write_text("#" * 600)
    monkeypatch.setattr(config_dir, "MAX_TOTAL_BYTES", 500)
    assert "its files hold over" in refusal(f"--config-dir={conf}", "prompts=portraits")


def test_experiments_are_bounded_and_no_pipes(conf):
    (conf / "experiment").mkdir()
    (conf / "experiment" / "long.yaml").write_text("#" * (17 << 20))
    assert "is over 16 MiB" in refusal(f"--config-dir={conf}", "experiment=long")
    (conf / "experiment" / "long.yaml").unlink()
    os.mkfifo(conf / "experiment" / "pipe.yaml")
    refusal(f"--config-dir={conf}", "experiment=pipe")


@pytest.mark.parametrize(
    "words",
    [
        ("seed=range(0,100000)", "guidance_scale=range(1,900)"),
        ("seed=range(0,10001)",),
        ("seed=shuffle(range(0,1000000000000))",),
        ("guidance_scale=range(0,1,0.00000001)",),
        (f"seed={','.join(map(str, range(200)))}", "guidance_scale=range(1,101)"),
        ("sampler=glob(*)", "precision=glob(*)", "seed=range(0,1000)"),
        ("seed=choice(" + ",".join(map(str, range(300))) + ")",) * 2,
        (f"prompts.replace=[[a, {', '.join('b' * 101)}], [c, {', '.join('d' * 100)}]]",),
        (f"prompts.replace=[[a, {', '.join('b' * 101)}]]", "seed=range(0,100)"),
    ],
)
def test_a_sweep_is_counted_before_it_is_expanded(words):
    assert f"at most {MAX_RUNS} runs" in refusal("-m", *words)
