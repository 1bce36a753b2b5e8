"""GGUF: what comes out is what went in, once; damage and strangers are named."""

import pytest
import torch
from tests.models.made import llama_gguf
from transformers import AutoModelForCausalLM

import nullius
from nullius.errors import SubjectError
from nullius.models import gguf

TEXT = "The capital of France is"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NULLIUS_CACHE", str(tmp_path / "cache"))


def test_a_file_of_plain_floats_gives_the_model_it_was_made_from(toy, tmp_path):
    path = llama_gguf(tmp_path / "toy.gguf", toy)
    model = nullius.load(path)
    assert torch.equal(model.last_logits([TEXT]), toy.last_logits([TEXT]))
    assert model.tokens(TEXT) == toy.tokens(TEXT)
    assert model.provenance.quantisation == ""
    assert gguf.check(path).parameters == toy.parameters


def test_rounded_weights_are_dequantised_once_and_say_so(toy, tmp_path, capfd):
    path = llama_gguf(tmp_path / "toy.gguf", toy, "Q8_0")
    first = nullius.load(path)
    assert "dequantising once" in capfd.readouterr().err
    second = nullius.load(path)
    assert capfd.readouterr().err == ""
    assert first.provenance.quantisation == "8-bit roundings (Q8_0), dequantised"
    assert torch.equal(first.last_logits([TEXT]), second.last_logits([TEXT]))
    assert first.weights_sha256 == second.weights_sha256
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="toy.gguf", dtype=torch.float32)
    for (name, ours), theirs in zip(second.hf.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    weight, rounded = toy.hf.model.layers[0].mlp.up_proj.weight, second.hf.model.layers[0].mlp.up_proj.weight
    assert 0 < float((weight - rounded).detach().abs().max()) <= float(weight.detach().abs().max()) / 127  # half a step, and a bit


def test_what_was_dequantised_can_be_saved_and_loaded_again(toy, tmp_path):
    """As finetuning does: transformers would refuse a model whose config still says that it is a GGUF."""
    model = nullius.load(llama_gguf(tmp_path / "toy.gguf", toy, "Q8_0"))
    model.hf.save_pretrained(tmp_path / "copy")
    copy = AutoModelForCausalLM.from_pretrained(tmp_path / "copy", dtype=torch.float32)
    ids = torch.arange(5)[None]
    with torch.no_grad():
        assert torch.equal(copy(ids).logits, model.hf(ids).logits)


def test_a_directory_with_one_gguf_file_is_that_file(toy, tmp_path):
    folder = tmp_path / "subject"
    folder.mkdir()
    llama_gguf(folder / "toy.gguf", toy)
    assert nullius.load(folder).parameters == toy.parameters
    (folder / "other.gguf").write_bytes((folder / "toy.gguf").read_bytes())
    with pytest.raises(SubjectError, match=r"holds 2 GGUF files: give the path of one"):
        nullius.load(folder)


@pytest.mark.parametrize("keep", [4, 40, 4000, 0.5, 0.999])
def test_truncated_files_are_named(toy, tmp_path, keep):
    path = llama_gguf(tmp_path / "toy.gguf", toy)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(SubjectError, match=r"toy\.gguf is .*truncated") as caught:
        nullius.load(path)
    assert "\n" not in str(caught.value)


def test_other_files_are_not_gguf(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(SubjectError, match="not a GGUF file"):
        nullius.load(tmp_path / "x.gguf")
    with pytest.raises(SubjectError, match="no file"):
        nullius.load(tmp_path / "y.gguf")


def test_an_architecture_that_transformers_cannot_read_is_named(toy, tmp_path):
    path = llama_gguf(tmp_path / "toy.gguf", toy)
    path.write_bytes(path.read_bytes().replace(b"llama", b"lumma"))
    with pytest.raises(SubjectError, match=r"toy\.gguf \(lumma\) cannot be read") as caught:
        nullius.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rounding", "note"),
    [
        ("Q4_1", "4-bit roundings (Q4_1), dequantised"),
        ("Q4_K_M", "4-bit roundings (Q4_K_M), dequantised"),
        ("F32", ""),
        ("BF16", "16-bit floats (BF16)"),
        ("", "roundings of unknown kind, dequantised"),
    ],
)
def test_notes(rounding, note):
    assert gguf.Header("llama", 1, rounding).note == note
