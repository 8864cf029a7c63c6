"""Files that are whole or absent."""

import random

import pytest
import torch

import clenv
from clenv.running import checkpoint

STATE = {"weights": torch.arange(100.0), "names": ["a", "b"], "nested": {"step": 3, "task": None}}


def test_what_is_saved_is_loaded(tmp_path):
    checkpoint.save(tmp_path / "c.pt", STATE)
    state = checkpoint.load(tmp_path / "c.pt")
    assert torch.equal(state["weights"], STATE["weights"])
    assert (state["names"], state["nested"]) == (STATE["names"], STATE["nested"])
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def test_a_failed_write_leaves_the_old_content_and_no_rubbish(tmp_path):
    file = tmp_path / "c.txt"
    checkpoint.write_atomically(file, lambda path: path.write_text("old"))

    def fail(path):
        path.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.write_atomically(file, fail)
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["c.txt"]


def test_the_new_content_is_never_seen_in_part(tmp_path):
    file = tmp_path / "c.txt"
    file.write_text("old")

    def write(path):
        path.write_text("new, but not yet whole")
        assert file.read_text() == "old"
        path.write_text("new")

    checkpoint.write_atomically(file, write)
    assert file.read_text() == "new"


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(clenv.CheckpointError, match=r"there is no checkpoint .*gone\.pt"):
        checkpoint.load(tmp_path / "gone.pt")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_a_checkpoint_cut_short_is_refused(tmp_path, share):
    file = tmp_path / "c.pt"
    checkpoint.save(file, STATE)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(clenv.CheckpointError, match="corrupt or was not written by clenv"):
        checkpoint.load(file)


def test_a_changed_bit_of_a_tensor_is_found(tmp_path):
    file = tmp_path / "c.pt"
    checkpoint.save(file, STATE)
    content = bytearray(file.read_bytes())
    content[content.index(torch.tensor([41.0, 42.0]).numpy().tobytes())] ^= 1
    file.write_bytes(content)
    with pytest.raises(clenv.CheckpointError, match="does not have its checksum"):
        checkpoint.load(file)


def test_changed_bytes_are_refused_or_lie_where_nothing_is_read(tmp_path):
    file, rng = tmp_path / "c.pt", random.Random(0)  # noqa: S311  # which byte is no secret
    checkpoint.save(file, STATE)
    whole, refused = file.read_bytes(), 0
    for _ in range(200):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        try:
            state = checkpoint.load(file)
        except clenv.CheckpointError:
            refused += 1
            continue
        assert torch.equal(state["weights"], STATE["weights"])
        assert (state["names"], state["nested"]) == (STATE["names"], STATE["nested"])
    assert refused > 20


@pytest.mark.parametrize("content", [b"not a zip", b"\x80\x04.", b"PK\x03\x04", b"\x80\x02]q\x00."])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(clenv.CheckpointError):
        checkpoint.load(tmp_path / "c.pt")


def test_another_programs_checkpoint_is_refused(tmp_path):
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "c.pt")
    with pytest.raises(clenv.CheckpointError, match="expected 'clenv checkpoint 1'"):
        checkpoint.load(tmp_path / "c.pt")


class Bomb:
    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


def test_no_code_of_a_checkpoint_is_run(tmp_path, capsys):
    torch.save({"format": "clenv checkpoint 1", "bomb": Bomb()}, tmp_path / "c.pt")
    with pytest.raises(clenv.CheckpointError):
        checkpoint.load(tmp_path / "c.pt")
    assert "code" not in capsys.readouterr().out
