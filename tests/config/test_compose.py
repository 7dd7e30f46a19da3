import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tpusd.config.choices import conf_directory, group_choices
from tpusd.config.compose import compose_jobs
from tpusd.config.schema import ModelConfig, field_names, make_config
from tpusd.config.typed import plain, read
from tpusd.errors import UserError
from tpusd.runs.cards import CARDS

ROOT = Path(__file__).resolve().parents[2]


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=environment.pop("cwd", None),
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"} | environment,
    )


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["model=sd16"], "model=sd16: no such model; did you mean model=sd"),
        (["precision=bf61"], "precision=bf61: no such precision; did you mean precision=bf16"),
        (["guidence_scale=3"], "guidence_scale=3: no such field or group; did you mean guidance_scale"),
        (["num_inference_steps=5"], "did you mean sampler.num_inference_steps"),
        (["promts=portraits"], "did you mean prompts"),
        (["+foo=1"], "+foo=1: no such field or group"),
        (["seed"], "'seed': is not field=value"),
        ([""], "'': is not field=value"),
        (["seed=1=2"], "seed=1=2: cannot be read"),
        (["prompts.rows=[{prompt: a, b}]"], "put text that holds commas"),
        (["seed=1,2"], "seed=1,2: has several values; add -m"),
        (["scores=attributes,colorfulness"], "one list, write 'scores=[attributes,colorfulness]'"),
        (["-m", "seed=interval(1,2)"], "list them, as in seed=1,2,3"),
        (["-m", "seed=range(0,1000000)"], "a sweep has at most 10000 runs"),
        (["-m", "precision=fp32,fp23"], "precision=fp23: no such precision; did you mean precision=fp32"),
        (["seed=${oc.env:HOME}"], "config is data"),
        (["negative_prompt='${oc.env:HOME}'"], "config is data"),
        (["prompts.rows=[{prompt: ${oc.env:HOME}}]"], "config is data"),
        (["height=${width}"], "config is data"),
        (["hydra.run.dir=x"], "the run directory is set with output=DIR"),
        (["hydra/launcher=basic"], "Hydra's own settings are not used"),
        (["~seed"], "a field or a group can only be set"),
        (["model@x=tiny"], "a field or a group can only be set"),
        (["--frob"], "--frob: no such option"),
        (["--cfg", "foo"], "invalid choice"),
        (["--config-dir=nowhere"], "--config-dir=nowhere: no such directory"),
        (["--config-name=nothing"], "no such config; there are _cache, _executor"),
        (["--experimental-rerun=x"], "reads a pickle"),
        (["--help", "seed=${oc.env:HOME}"], "config is data"),
    ],
)
def test_command_line_faults_are_one_line(argv, expected):
    with pytest.raises(UserError) as error:
        compose_jobs(argv)
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_sweep_is_the_product_with_the_last_field_fastest():
    jobs = compose_jobs(["-m", "precision=fp32,bf16", "seed=range(3)", "guidance_scale=2"])
    assert [(job.values["precision"]["name"], job.values["seed"]) for job in jobs] == [
        (name, seed) for name in ("fp32", "bf16") for seed in range(3)
    ]
    assert jobs[4].overrides == ("precision=bf16", "seed=1", "guidance_scale=2")


def test_glob_sweeps_over_the_choices_of_a_group():
    jobs = compose_jobs(["-m", "model=glob(sd2*)"])
    assert [job.values["model"]["name"] for job in jobs] == ["sd21", "sd21_base"]
    with pytest.raises(UserError, match="seed is a field; list the values"):
        compose_jobs(["-m", "seed=glob(*)"])


VALUES = st.one_of(
    st.sampled_from(
        ["0", "-1", "1e400", "nan", "null", "???", "[[[]]]", "{a: b}", "a,b", "range(3)", "glob(*)", "@", "${a}"]
    ),
    st.text(max_size=12),
)
KEYS = st.one_of(
    st.sampled_from([*field_names(), "model", "prompts", "+x", "~seed", "seed@a", "prompts.rows.0", "."]), st.text()
)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(KEYS, VALUES), max_size=2), st.booleans())
@example([("model.name", "a\nb")], False)
def test_any_command_line_gives_runs_or_one_line(overrides, multirun):
    try:
        argv = [f"{key}={value}" for key, value in overrides if not key.startswith("-")]
        jobs = compose_jobs((["-m"] if multirun else []) + argv)
        assert all(make_config(job.values) for job in jobs[:3])
    except UserError as error:
        assert len(str(error)) < 600 and "\n" not in str(error)


def test_escaped_dollar_is_text():
    (job,) = compose_jobs([r"negative_prompt='costs \${5}'"])
    assert job.values["negative_prompt"] == "costs ${5}"


@pytest.mark.slow
def test_configs_from_elsewhere_are_data(tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "mine.yaml").write_text("name: mine\nrows: [{prompt: a}]\npath: null\ncolumn: null\n")
    (tmp_path / "prompts" / "leak.yaml").write_text("name: leak\nrows: [{prompt: '${oc.env:HOME}'}]\n")
    (tmp_path / "prompts" / "broken.yaml").write_text("name: [\n")
    where = f"--config-dir={tmp_path}"
    (job,) = compose_jobs([where, "prompts=mine"])
    assert job.values["prompts"]["rows"] == [{"prompt": "a"}]
    for choice, expected in (
        ("leak", r"prompts.rows\[0\].prompt=\${oc.env:HOME}: config is data"),
        ("broken", "cannot be composed"),
    ):
        with pytest.raises(UserError, match=expected):
            compose_jobs([where, f"prompts={choice}"])
    (tmp_path / "prompts" / "tag.yaml").write_text("name: !!python/object/apply:os.system ['touch ran']\n")
    for choice in ("tag", "mine"):
        with pytest.raises(UserError, match="makes no plain value"):
            compose_jobs([where, f"prompts={choice}"])


def test_directory_with_odd_letters_can_hold_configs(tmp_path):
    odd = tmp_path / "it's, a = dir"
    (odd / "prompts").mkdir(parents=True)
    (odd / "prompts" / "mine.yaml").write_text("name: mine\nrows: [{prompt: a}]\npath: null\ncolumn: null\n")
    (job,) = compose_jobs([f"--config-dir={odd}", "prompts=mine"])
    assert job.values["prompts"]["name"] == "mine"


def test_version_is_ours(capsys):
    assert compose_jobs(["--version"]) is None
    assert capsys.readouterr().out.startswith("tpusd ")


@pytest.mark.slow
def test_help_is_quick_and_loads_nothing_heavy(tmp_path):
    code = (
        "import sys, time; start = time.process_time()\nfrom tpusd.run import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'jax', 'flax', 'transformers', 'torch', 'PIL', 'huggingface_hub'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy), 'seconds:', time.process_time() - start)"
    )
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "portraits" in done.stdout and "  seed=0 " in done.stdout and "heavy: []" in done.stdout
    assert float(done.stdout.rsplit(" ", 1)[1]) < 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--cfg", "job", "seed=3"], "seed: 3"),
        (["--cfg", "job", "prompt=a cat, (b:1.3)", "negative_prompt=x, (y)"], "- prompt: a cat, (b:1.3)"),
        (["--info", "config"], "Config search path"),
        (["--hydra-help"], "== Flags =="),
    ],
)
def test_what_hydra_shows_is_shown_and_leaves_no_directory(tmp_path, argv, expected):
    done = python("-m", "tpusd.run", *argv, cwd=tmp_path)
    assert done.returncode == 0 and expected in done.stdout, done.stderr + done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_wrong_values_exit_2_without_a_directory_or_a_heavy_import(tmp_path):
    code = (
        "import sys\nfrom tpusd.run import main\nstatus = main(sys.argv[1:])\n"
        "print(sorted({'jax', 'flax', 'transformers'} & set(sys.modules)))\nsys.exit(status)"
    )
    for wrong in ("seed=-1", "model=nothing", "prompts=file prompts.path=nothing.txt", "seed=[", "height=100"):
        done = python("-c", code, *wrong.split(), cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "[]\n"), done.stderr
        assert done.stderr.startswith("tpusd: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_tab_completion_offers_choices_and_fields(tmp_path):
    for line, expected in (
        ("tpusd run precision=", "precision=fp32"),
        ("tpusd run see", "seed="),
        ("tpusd r", "run"),
        ("tpusd run sampler.num_", "sampler.num_inference_steps="),
    ):
        done = python("-m", "tpusd.cli", "-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)))
        assert expected in done.stdout.split(), (line, done.stdout, done.stderr)


def test_conf_is_found_at_the_top_or_inside_the_package():
    assert (conf_directory() / "config.yaml").is_file()


# The keys after `name` and `num_inference_steps` in the files of 0.1.0: its runs keep the composed config in .hydra/.
SPACED = "prediction_type timestep_spacing steps_offset"
SIGMAS = f"{SPACED} use_karras_sigmas use_exponential_sigmas use_beta_sigmas"
DPMPP = (
    f"{SIGMAS} use_lu_lambdas solver_order solver_type lower_order_final euler_at_final final_sigmas_type "
    "lambda_min_clipped rescale_betas_zero_snr"
)
SAMPLER_KEYS = {
    "pndm": f"{SPACED} set_alpha_to_one",
    "ddim": f"eta {SPACED} set_alpha_to_one rescale_betas_zero_snr",
    "ddpm": f"{SPACED} variance_type rescale_betas_zero_snr",
    "euler": f"{SIGMAS} sigma_min sigma_max final_sigmas_type interpolation_type rescale_betas_zero_snr",
    "euler_ancestral": f"{SPACED} rescale_betas_zero_snr",
    "heun": SIGMAS,
    "lms": SIGMAS,
    "dpmpp_2m": DPMPP,
    "dpmpp_2m_sde": DPMPP,
    "unipc": (
        f"{SIGMAS} sigma_min sigma_max solver_order solver_type lower_order_final predict_x0 disable_corrector "
        "final_sigmas_type rescale_betas_zero_snr"
    ),
    "deis": f"{SIGMAS} solver_order lower_order_final",
    "lcm": "prediction_type original_inference_steps timestep_scaling rescale_betas_zero_snr",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SAMPLER_KEYS))
def test_sampler_choice_has_the_fields_of_0_1_0_in_their_order(name):
    values = compose_jobs([f"sampler={name}"])[0].values["sampler"]
    keys = [key for key in values if key != "timesteps"]  # the newer field
    assert keys == ["name", "num_inference_steps", *SAMPLER_KEYS[name].split()]
    assert values["name"] == name and {key for key in values if values[key] is not None} - {"eta"} == {
        "name",
        "num_inference_steps",
    }


@pytest.mark.parametrize("name", group_choices()["model"])
def test_model_choice_has_the_fields_of_0_1_0_in_their_order(name):
    values = compose_jobs([f"model={name}", "prompt=a"])[0].values["model"]
    own = " ".join(key for key in plain(read(ModelConfig, values)) if key not in ("unet", "loras"))
    assert own == "name asset path repo revision variant sha256 guidance_scale"
    usual = name not in ("tiny", "sdxl", *CARDS)
    assert values["name"] == name and (values["guidance_scale"] == 7.5) == usual
    assert not (usual and (values["loras"] or values["unet"]["repo"]))


@pytest.mark.slow
def test_shared_fields_are_no_choice(tmp_path):
    shared = {file.stem for file in conf_directory().glob("_*.yaml")}
    assert shared >= {"_model", "_sampler"} and not shared & set(group_choices())
    assert not any(name.startswith("_") for names in group_choices().values() for name in names)
    with pytest.raises(UserError, match="^model=_model: no such model"):
        compose_jobs(["model=_model"])
    asked = {"COMP_LINE": "tpusd run model=", "COMP_POINT": "16"}
    completed = python("-m", "tpusd.cli", "-sc", "query=bash", cwd=tmp_path, **asked).stdout.split()
    assert completed == [f"model={name}" for name in group_choices()["model"]]
    shown = python("-m", "tpusd.run", "--help", cwd=tmp_path).stdout
    shown = " ".join(shown.split())  # lines end where the terminal does
    assert f"model= {', '.join(group_choices()['model'])} precision=" in shown and "_model" not in shown


@pytest.mark.slow
def test_model_of_the_users_own_may_start_from_the_shared_fields(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("defaults: [/_model@_here_, _self_]\nname: mine\npath: /x\n")
    values = compose_jobs([f"--config-dir={tmp_path}", "model=mine"])[0].values["model"]
    assert values == compose_jobs(["model=local"])[0].values["model"] | {"name": "mine", "path": "/x"}
