"""A run that loses a process goes on as if it had not, and is certified to be as good."""

import pytest
import torch
from safetensors.torch import load_file
from torchrun import ROOT, needs_gloo, require_killed, torchrun

SCRIPT, EPOCHS = ROOT / "docs" / "lenet.py", 2

# The second process dies at its 17th step of 28, in the second epoch.
DYING = f"""
import os, runpy
import torch
steps, take = [], torch.optim.Adam.step
def step(self, *args, **kwargs):
    steps.append(None)
    if len(steps) == 17 and os.environ["RANK"] == "1":
        os._exit(9)
    return take(self, *args, **kwargs)
torch.optim.Adam.step = step
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


@pytest.mark.slow
@needs_gloo
def test_a_killed_run_resumes_and_ends_with_the_same_bound(tmp_path):
    pytest.importorskip("sklearn")
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    expected = torchrun(SCRIPT, undisturbed, EPOCHS)
    assert expected.returncode == 0, expected.stderr
    assert "ELBO(q^G), lower bound" in expected.stdout
    dying = tmp_path / "dying.py"
    dying.write_text(DYING)
    require_killed(torchrun(dying, killed, EPOCHS), rank=1, code=9)
    assert (killed / "run.pt").exists() and not (killed / "guide").exists()
    resumed = torchrun(SCRIPT, killed, EPOCHS)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == expected.stdout
    ours, theirs = (load_file(folder / "guide") for folder in (killed, undisturbed))
    assert ours.keys() == theirs.keys() and len(ours) > 0
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_script_is_short():
    assert len(SCRIPT.read_text().splitlines()) < 40
