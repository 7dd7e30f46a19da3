"""The notebook in examples/, executed by a real kernel with the embedded model."""

import os
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.libraries, pytest.mark.slow]
NOTEBOOK = Path(__file__).parents[2] / "examples" / "tpusd.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after all of its cells ran, with the embedded model in place of the one to download."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    parameters.source = 'model = "tiny"'
    # What the first cell installs is installed here already.
    notebook.cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", ())]
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
        patch.setenv("XLA_FLAGS", "")
        client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
        return client.execute(), folder


def outputs(notebook, text: str) -> list:
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and text in cell.source]
    return cell.outputs


def test_the_committed_notebook_has_no_outputs():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def test_it_makes_a_run_and_a_sweep(executed):
    notebook, folder = executed
    assert sorted(path.name.split("_", 2)[2] for path in (folder / "runs").iterdir()) == [
        "portraits",
        "reproduce_portraits",
        "sweep_guidance_scale_sampler",
    ]
    (shown,) = [
        output.data["text/html"]
        for output in outputs(notebook, "tpusd.generate")
        if output.output_type == "execute_result"
    ]
    assert shown.count("<img") == 8
    assert outputs(notebook, "tpusd.resume")[-1].data["text/plain"] == "16"
    assert "image/png" in outputs(notebook, "run.images[0]")[0].data
    assert "identical" in "".join(output.text for output in outputs(notebook, "tpusd.reproduce"))


def test_the_progress_is_one_output_that_moves(executed):
    """No line after line: the bar is an output that is replaced, and at its end it is full."""
    notebook, _ = executed
    bars = [
        output
        for output in outputs(notebook, "tpusd.generate")
        if "<progress" in output.get("data", {}).get("text/html", "")
    ]
    assert len(bars) == 1 and 'value="8.000" max="8"' in bars[0].data["text/html"]


def test_a_sweep_shows_its_grid(executed):
    notebook, folder = executed
    (shown,) = [
        out.data["text/html"] for out in outputs(notebook, "tpusd.sweep") if out.output_type == "execute_result"
    ]
    assert "data:image/webp" in shown and "48 images" in shown and "http" not in shown
    (page,) = folder.glob("runs/*_sweep_*/index.html")
    assert page.stat().st_size > 0


def test_the_page_of_the_sweep_is_in_the_notebook(executed):
    notebook, folder = executed
    (output,) = outputs(notebook, "sweep.show()")
    (run,) = [path for path in (folder / "runs").iterdir() if "_sweep_" in path.name]
    frame = output.data["text/html"]
    assert frame.startswith("<iframe srcdoc=") and frame.count("data:image/webp;base64,") == 48
    assert all(one.name in frame for one in run.iterdir() if one.is_dir())
