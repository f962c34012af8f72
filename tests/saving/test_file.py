"""What is read is what was written, or a clear error."""

import json
import os
import pickle

import pyro
import pytest
import torch
from problems import one_hidden_layer
from safetensors.torch import save_file

import pyro_perm as pp
from pyro_perm.saving import file

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3).T,
    "b": torch.tensor(3, dtype=torch.int32),
    "c": torch.ones(1, dtype=torch.bfloat16).expand(3),
    "empty": torch.zeros(0, 2),
}


@pytest.fixture
def path(tmp_path):
    file.write(tmp_path / "file", "guide", TENSORS, {"names": ["a"]})
    return tmp_path / "file"


def test_tensors_and_document_come_back(path):
    tensors, document = file.read(path, "guide")
    assert tensors.keys() == TENSORS.keys() and document == {"names": ["a"]}
    for name, tensor in tensors.items():
        assert tensor.dtype == TENSORS[name].dtype and torch.equal(tensor, TENSORS[name])


def test_every_byte_matters(path):
    """A flipped bit anywhere is an error, and never a tensor."""
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(bytes(damaged))
        try:
            tensors, document = file.read(path, "guide")
        except ValueError:
            continue
        # JSON has spaces that say nothing; versions are for the reader of an error.
        assert document == {"names": ["a"]}
        assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 100, -1])
def test_files_that_were_cut_off_are_refused(length, path):
    content = path.read_bytes()
    path.write_bytes(content[:length])
    with pytest.raises(ValueError, match=r"is no whole file of pp\.save .*: cut off, damaged"):
        file.read(path, "guide")


def test_damaged_tensors_are_refused(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 64
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="is damaged: its checksum is not that of what it holds"):
        file.read(path, "guide")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_pickles_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"is no whole file of pp\.save"):
        pp.load(one_hidden_layer(3).model, tmp_path / "file")
    assert not (tmp_path / "exploded").exists()


def test_files_of_other_programs_are_refused(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "file", {"format": "pt"})
    with pytest.raises(ValueError, match="holds tensors of another program: write one"):
        file.read(tmp_path / "file", "guide")


def test_files_of_another_kind_are_refused(path):
    with pytest.raises(ValueError, match="holds a guide, not a checkpoint"):
        file.read(path, "checkpoint")


def test_newer_files_are_refused(path, monkeypatch):
    monkeypatch.setattr(file, "FORMAT", file.FORMAT + 1)
    monkeypatch.setattr(file, "__version__", "9.9")
    file.write(path, "guide", TENSORS, {})
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"written by pyro_perm 9\.9 in format 2, .* upgrade"):
        file.read(path, "guide")


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        pp.load(one_hidden_layer(3).model, tmp_path / "none")


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        file.write(path, "guide", TENSORS, {})
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def edited(tmp_path, change):
    """A guide's file with a valid checksum, whose description somebody changed."""
    problem = one_hidden_layer(3)
    guide = problem.guide(pp.ImportanceSampled(4))
    guide(*problem.args)
    pp.save(guide, tmp_path / "guide")
    pyro.clear_param_store()
    tensors, document = file.read(tmp_path / "guide", "guide")
    change(document)
    file.write(tmp_path / "guide", "guide", tensors, document)
    return problem.model, tmp_path / "guide"


def _set(*keys, value):
    def change(document):
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("guide", value="AutoDelta"),
        _set("guide", value="os.system"),
        _set("sites", 0, "dtype", value="load"),
        _set("sites", 0, "support", value={"kind": "os.system"}),
        _set("sites", 0, "support", value=None),
        _set("sites", value="w1"),
        _set("sites", 0, "event_shape", value=[7]),
        _set("symmetrized", "estimator", "name", value="os.system"),
        _set("symmetrized", "estimator", "arguments", value={"code": "1"}),
        _set("symmetrized", "estimator", "arguments", value={"num_permutations": "1"}),
        _set("symmetrized", "symmetry", "groups", value={"hidden": {"w1": [{"dim": "os"}]}}),
        _set("symmetrized", value=[]),
        lambda document: document.clear(),
    ],
)
def test_descriptions_that_pp_save_does_not_write_are_refused(change, tmp_path):
    model, path = edited(tmp_path, change)
    with pytest.raises(ValueError):
        pp.load(model, path)


def test_unknown_estimators_name_the_mend(tmp_path):
    change = _set("symmetrized", "estimator", "name", value="Mine")
    with pytest.raises(ValueError, match="there is no estimator 'Mine': import the module that"):
        pp.load(*edited(tmp_path, change))


def test_documents_are_json(path):
    with pytest.raises(TypeError):
        file.write(path, "guide", {}, {"function": json.dumps})
