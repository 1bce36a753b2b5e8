"""nullius.load: what transformers loads, to the bit; and one clear line for everything that cannot be loaded."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import FAMILIES
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

import nullius
from nullius.errors import SubjectError
from nullius.models import weights
from nullius.models.language_model import LanguageModel
from nullius.models.loading import _self_test

TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def saved(toys, tmp_path_factory):
    """Every toy, saved as a directory."""
    root = tmp_path_factory.mktemp("saved")
    for family, model in toys.items():
        model.hf.save_pretrained(root / family)
        model.tokenizer.save_pretrained(root / family)
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NULLIUS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def copy(saved, tmp_path):
    """A Llama in a directory, to damage."""
    return shutil.copytree(saved / "llama", tmp_path / "llama")


def refused(name, match, **kw):
    with pytest.raises(SubjectError, match=match) as caught:
        nullius.load(name, **kw)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers_to_the_bit(saved, family):
    model = nullius.load(saved / family)
    plain = AutoModelForCausalLM.from_pretrained(saved / family, dtype=torch.float32).eval()
    ids = torch.tensor([[model.bos_id, *model.tokens(TEXT)]])
    with torch.no_grad():
        assert torch.equal(model.logits(model.encode([TEXT]), "all"), plain(ids).logits)
        assert torch.equal(model.hf(ids).logits, plain(ids).logits)
    assert model.tokens_seen > 0
    assert model.provenance.source == f"directory {family}"


def test_types(saved):
    model = nullius.load(saved / "llama", device="cpu", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.last_logits([TEXT]).dtype == torch.float32


def test_the_hash_is_that_of_the_weights(copy):
    before = nullius.load(copy)
    assert nullius.load(copy).weights_sha256 == before.weights_sha256
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][3] += 1e-3
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    assert nullius.load(copy).weights_sha256 != before.weights_sha256


def test_a_cache_that_cannot_remember_a_hash_is_no_reason_not_to_load(copy, tmp_path):
    known = weights.content_hash([copy / "model.safetensors"])
    memory = next((tmp_path / "cache" / "hashes").iterdir())
    memory.write_text(known[:10])  # a disk that was full
    assert weights.content_hash([copy / "model.safetensors"]) == known == memory.read_text()
    shutil.rmtree(memory.parent)
    memory.parent.write_text("in its place")
    assert weights.content_hash([copy / "model.safetensors"]) == known


def test_shards_load_and_a_missing_one_is_named(toy, tmp_path):
    toy.hf.save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    toy.tokenizer.save_pretrained(tmp_path / "sharded")
    shards = sorted((tmp_path / "sharded").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert all(map(torch.equal, nullius.load(tmp_path / "sharded").hf.state_dict().values(), toy.hf.state_dict().values()))
    shards[-1].unlink()
    refused(tmp_path / "sharded", f"lacks 1 of its {len(shards)} weight files")


def test_unknown_names(tmp_path):
    refused("smollm-135m", "unknown model 'smollm-135m'; nearest: smollm2-135m")
    refused("qqqq", "unknown model 'qqqq'; `nullius models` lists")
    refused(tmp_path / "nothing" / "here", "no directory or file")
    refused("~nobody-of-that-name/model", "no directory or file")
    refused(" ", "a subject has a name")
    refused("nobody/nothing", r"the hub is switched off \(HF_HUB_OFFLINE\)")
    (tmp_path / "notes.txt").write_text("notes")
    refused(tmp_path / "notes.txt", "is a file; a subject is a directory")


def test_directories_without_weights_or_tokenizer(copy, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no weights")
    (copy / "config.json").unlink()
    refused(copy, "cannot be loaded")


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.9999])
def test_truncated_safetensors(copy, keep):
    path = copy / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    refused(copy, r"model\.safetensors is truncated")


def test_garbage_in_place_of_safetensors(copy):
    (copy / "model.safetensors").write_bytes(b"\xff" * 1000)
    refused(copy, "truncated or damaged")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "[]", r"cannot be loaded \(config\.json\)"),
        ("config.json", '{"model_type": "llama", "quantization_config": "x"}', "cannot be loaded"),
        ("tokenizer.json", '{"version": "1.0", "trunc', r"cannot be loaded \(tokenizer\)"),
        ("tokenizer_config.json", "[]", r"cannot be loaded \(tokenizer\)"),
        ("model.safetensors.index.json", "[]", "is damaged"),
        ("model.safetensors.index.json", '{"weight_map": {"a": ["b"]}}', "is damaged"),
    ],
)
def test_a_damaged_file_is_named(copy, name, content, said):
    (copy / name).write_text(content)
    refused(copy, said)


def test_weights_that_are_no_numbers(copy):
    tensors = {name: tensor * float("nan") for name, tensor in load_file(copy / "model.safetensors").items()}
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    refused(copy, "computes values that are not finite")


def test_weights_that_do_not_fit_the_config(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    refused(copy, r"lacks 9 weights of a LlamaForCausalLM \(model\.layers\.3")
    (copy / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    refused(copy, "cannot be loaded")


def test_pickles_are_refused_unless_asked_for(toy, copy):
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(tensors, copy / "pytorch_model.bin")
    refused(copy, r"pickled weights, which can run code when loaded: .*allow_pickle=True")
    allowed = nullius.load(copy, allow_pickle=True)
    assert torch.equal(allowed.last_logits([TEXT]), toy.last_logits([TEXT]))
    assert allowed.weights_sha256 == weights.content_hash([copy / "pytorch_model.bin"])


def test_too_large_for_memory_is_told_from_the_header_alone(copy):
    """A sparse file that claims 2⁴¹ parameters; nothing of it is read."""
    path, size = copy / "model.safetensors", 2**43
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**20, 2**21], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        try:
            file.truncate(8 + len(header) + size)
        except OSError:
            pytest.skip("this file system has no such sparse files")
    refused(copy, r"llama needs about 9830\.4 GiB and cpu has .* GiB free; take a smaller one")


def test_devices(copy):
    refused(copy, "no device 'abacus'; write cpu, cuda or cuda:1", device="abacus")
    if not torch.cuda.is_available():
        refused(copy, "no CUDA device here", device="cuda")
    refused(copy, "no CUDA device here|CUDA devices here", device="cuda:99")


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_encoders_are_refused(family, tokenizer, tmp_path):
    config = AutoConfig.for_model(
        family, hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=64, vocab_size=2000, pad_token_id=0
    )
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / family)
    tokenizer.save_pretrained(tmp_path / family)
    refused(tmp_path / family, "is not a decoder .*MaskedLM.*; nullius needs a causal language model, not an encoder")


def test_encoder_decoders_are_refused(tokenizer, tmp_path):
    config = AutoConfig.for_model("t5", d_model=32, d_kv=8, num_heads=4, num_layers=2, d_ff=64, vocab_size=2000)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    refused(tmp_path / "t5", "t5 is not a decoder")


def test_a_decoder_that_looks_ahead_is_refused(tokenizer):
    """Nothing in its files says so: the self-test sees it."""
    config = AutoConfig.for_model("llama", **FAMILIES["llama"])
    model = LanguageModel.wrap(AutoModelForCausalLM.from_config(config), tokenizer)
    _self_test(model)
    for layer in model.hf.model.layers:
        layer.self_attn.is_causal = False
    model.hf.config.is_causal = False
    with pytest.raises(SubjectError, match="lets tokens look ahead"):
        _self_test(model)


def test_a_wrong_map_is_refused(toys):
    """The self-test can fail: sites of another layer, or a norm that is not the last, do not pass."""
    for wrong, message in (({"attn_out": "mlp"}, "misses resid_post"), ({"mlp_out": "self_attn"}, "misses resid_post")):
        model = toys["llama"]
        flows = model.anatomy._flows
        model.anatomy._flows = [type(flow)(**{**flow.__dict__, **wrong}) for flow in flows]
        try:
            with pytest.raises(SubjectError, match=message):
                _self_test(model)
        finally:
            model.anatomy._flows = flows
    model = toys["gpt2"]
    last, model.anatomy.final_norm = model.anatomy.final_norm, torch.nn.Identity()
    try:
        with pytest.raises(SubjectError, match="final norm"):
            _self_test(model)
    finally:
        model.anatomy.final_norm = last


def test_a_model_card_gives_the_licence(copy):
    (copy / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    assert nullius.load(copy).provenance.licence == "apache-2.0"


def test_notes_on_rounding(copy):
    config = json.loads((copy / "config.json").read_text())
    assert weights.note(copy) == ""
    (copy / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}}))
    assert weights.note(copy) == "4-bit roundings (gptq)"


@pytest.mark.subject
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_real_subjects(name, monkeypatch):
    """Loads, is what transformers loads from the same files, knows a capital, and its tokenizer keeps every text."""
    monkeypatch.delenv("NULLIUS_CACHE")
    from nullius.models.sources import sources

    model = nullius.load(name)
    source = sources()[name]
    plain = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32).eval()
    batch = model.encode([TEXT, "Water boils at"])
    with torch.no_grad():
        theirs = plain(batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids).logits
        assert torch.equal(model.logits(batch, "all"), theirs)
    assert model.parameters == source.parameters
    assert model.chat == source.chat
    assert "Paris" in model.generate(["The Eiffel Tower is in the city of"], 6)[0]
    for text in ("Nullius in verba.", "東京は日本の首都です。", "naïve 🦆🦆  two  spaces\n\n\ttab"):
        assert model.tokenizer.decode(model.tokens(text)) == text
    assert model.provenance.quantisation.startswith("4-bit roundings (Q4_")
