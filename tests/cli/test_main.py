"""The command line as people meet it: bad input is one clear line and a non-zero exit, never a traceback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM

from nullius.cli import main as cli
from nullius.lab import studies


@pytest.fixture
def nullius(monkeypatch, capsys):
    """Run a command in this process; return exit code, stdout, stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["nullius", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        seen = capsys.readouterr()
        return stop.value.code or 0, seen.out, seen.err

    return run


@pytest.fixture
def checkpoint(tmp_path, toy):
    """A directory with a whole tiny checkpoint."""
    folder = tmp_path / "tiny"
    toy.hf.save_pretrained(folder)
    toy.tokenizer.save_pretrained(folder)
    return folder


def complains(result, *words):
    code, _, err = result
    last = err.strip().splitlines()[-1]
    assert code != 0
    assert "Traceback" not in err
    assert last.startswith("nullius: ")
    for word in words:
        assert word in last


def test_unknown_paper(nullius):
    complains(nullius("run", "factual-recal"), "no paper 'factual-recal'", "nearest: factual-recall")


def test_paper_without_a_study(nullius):
    complains(nullius("run", "flexllm"), "no study for 'flexllm'")


def test_unknown_model(nullius):
    complains(nullius("run", "factual-recall", "-m", "smolm2-135m"), "unknown model 'smolm2-135m'", "nearest: smollm2-135m")
    complains(nullius("models", "fetch", "gema3-270m"), "nearest: gemma3-270m")


@pytest.mark.parametrize(("name", "said"), [("", "a subject has a name"), ("~nobody-of-that-name/model", "no directory or file")])
def test_a_name_that_is_none(nullius, name, said):
    complains(nullius("run", "factual-recall", "-m", name), said)


def test_hub_id_without_network(nullius):
    complains(nullius("run", "factual-recall", "-m", "nobody/nothing"), "cannot fetch 'nobody/nothing'", "nothing of it is cached")


def test_directory_without_weights(nullius, tmp_path):
    complains(nullius("run", "factual-recall", "-m", str(tmp_path)), "holds no weights")


def test_pickled_weights(nullius, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    torch.save({}, checkpoint / "pytorch_model.bin")
    complains(nullius("run", "factual-recall", "-m", str(checkpoint)), "pickled weights", "convert them to safetensors")


def test_truncated_safetensors(nullius, checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    complains(nullius("run", "factual-recall", "-m", str(checkpoint)), "truncated", "fetch it again")
    path.write_bytes(b"\x00" * 3)
    complains(nullius("run", "factual-recall", "-m", str(checkpoint)), "truncated or damaged")


@pytest.mark.parametrize("content", [b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 40, b"not a model"])
def test_damaged_gguf(nullius, tmp_path, content):
    (tmp_path / "model.gguf").write_bytes(content)
    complains(nullius("run", "factual-recall", "-m", str(tmp_path / "model.gguf")), "GGUF file")


def test_missing_gguf(nullius, tmp_path):
    complains(nullius("run", "factual-recall", "-m", str(tmp_path / "none.gguf")), "no file")


def test_an_encoder(nullius, tmp_path, toy):
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=2000)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    toy.tokenizer.save_pretrained(tmp_path / "bert")
    complains(nullius("run", "factual-recall", "-m", str(tmp_path / "bert")), "encoder", "decoder")


def test_too_large_for_memory(nullius, checkpoint):
    """The size is read from the header before anything is loaded: a sparse file says it holds 4 TB."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    with (checkpoint / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * 10**12)
    complains(nullius("run", "factual-recall", "-m", str(checkpoint)), "needs about", "GiB free")


def test_no_cuda(nullius, checkpoint):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    complains(nullius("run", "factual-recall", "-m", str(checkpoint), "--device", "cuda"), "no CUDA device here")
    complains(nullius("run", "factual-recall", "-m", str(checkpoint), "--device", "abacus"), "no device 'abacus'")
    complains(nullius("run", "factual-recall", "-m", str(checkpoint), "--device", "meta"), "computes on cpu and cuda, not on 'meta'")


def test_a_worker_on_a_device_that_is_none(nullius):
    complains(nullius("worker", "--device", "abacus", "--until-empty"), "no device 'abacus'")


@pytest.mark.usefixtures("only_sqlite")
def test_a_data_folder_that_cannot_be(nullius, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NULLIUS_DATA", str(tmp_path / "file" / "below"))
    complains(nullius("runs"), "cannot create the data folder", "NULLIUS_DATA")
    monkeypatch.setenv("NULLIUS_DATA", "~nobody-of-that-name/runs")
    complains(nullius("runs"), "whom nobody knows here", "NULLIUS_DATA")


@pytest.mark.parametrize("address", ["nonsense", "://", "postgresql://user:geheim@host:port/runs", "mysql://host/runs"])
def test_an_address_of_no_database(nullius, monkeypatch, address):
    monkeypatch.setenv("NULLIUS_DATABASE", address)
    result = nullius("runs")
    complains(result, "NULLIUS_DATABASE")
    assert "geheim" not in result[2]


def test_unknown_option_of_a_study(nullius):
    complains(nullius("run", "factual-recall", "-o", "colour=red"), "no option 'colour'")
    complains(nullius("run", "factual-recall", "-o", "colour"), "name=value")


def test_unknown_run(nullius):
    complains(nullius("show", "01ABCDEFGH"), "no run")
    complains(nullius("rerun", "01ABCDEFGH"), "no run")
    complains(nullius("rerun", ""), "a run has an id")


def test_runs_of_what_there_is_not(nullius):
    complains(nullius("runs", "factual-recal"), "no paper 'factual-recal'", "nearest: factual-recall")
    assert (
        nullius("runs", "2310.15910", "-m", "nobody")[1]
        == "no runs of factual-recall on nobody yet: nullius run factual-recall -m nobody\n"
    )
    assert nullius("runs", "--limit", str(10**20))[0] == 2


def test_comparing_what_was_not_run(nullius):
    complains(nullius("compare", "embers", "-m", "smollm2-135m"), "run first: nullius run embers")


def test_dossier_of_an_unknown_subject(nullius):
    complains(nullius("dossier", "nobody"), "no verdicts on 'nobody'")


def test_a_search_without_hits(nullius):
    complains(nullius("papers", "--search", "zzzz"), "no paper matches")


def test_papers_as_json(nullius):
    code, out, _ = nullius("papers", "--search", "gated linear attention", "--json")
    page = json.loads(out)
    assert code == 0
    assert page["schema"] == "nullius.papers/1"
    assert page["papers"][0]["slug"] == "gla"


def test_show_a_paper(nullius):
    code, out, _ = nullius("show", "factual-recall")
    assert code == 0
    assert all(claim.id in out for claim in studies.get("factual-recall").claims)
    code, out, _ = nullius("show", "factual-recall", "--json")
    assert {"claims", "verdicts", "title"} <= json.loads(out).keys()


def test_a_run_from_end_to_end(nullius, checkpoint):
    """Run, list, show, rerun, results page from the command line. A random checkpoint names no capitals: out of reach, and never fails."""
    code, out, err = nullius("run", "factual-recall", "-m", str(checkpoint), "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["state"] == "done"
    assert {verdict["word"] for verdict in record["verdicts"]} == {"out of reach"}
    assert record["id"] in nullius("runs")[1]
    code, out, _ = nullius("show", record["id"])
    assert code == 0
    assert f"nullius rerun {record['id']}" in out
    assert "factual-recall" in nullius("results")[1]


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [
        ("itsdangerous", ("digest", "plan")),
        ("defusedxml", ("feed", "import", "papers.json")),
        ("uvicorn", ("web", "--no-browser")),
        ("mcp", ("mcp",)),
    ],
)
def test_what_an_extra_brings_is_asked_for_in_one_line(missing, arguments, tmp_path):
    """A plain install has no page, importers and mail: what is missing and how to get it, and no traceback."""
    (tmp_path / "papers.json").write_text("[]")
    code = f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['nullius', *{arguments!r}]; from nullius.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert missing in done.stderr
    assert "nullius[web]" in done.stderr


def test_ctrl_c_is_one_line(checkpoint, tmp_path):
    """An interrupted run exits with 130 and one line, and stays in the journal as aborted."""
    import os
    import signal
    import time

    environment = {**os.environ, "NULLIUS_DATA": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nullius.cli.main", "run", "word-classes", "-m", str(checkpoint)]

    def hear() -> None:
        """A process started in the background of a script is born deaf to Ctrl-C."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=hear) as process:
        seen = ""
        while "training" not in seen:
            seen = process.stderr.readline()
            assert seen, "the run ended before it trained"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in rest
    assert "interrupted" in rest.strip().splitlines()[-1]
    done = subprocess.run(
        [sys.executable, "-m", "nullius.cli.main", "runs", "--json"], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["runs"][0]["state"] == "aborted"


def test_ctrl_c_before_anything_has_begun():
    code = (
        "import sys\nfrom nullius.__main__ import main\n"
        "class Impatient:\n    def find_spec(self, name, *_):\n        if name == 'nullius.cli.main':\n            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Impatient())\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "nullius: interrupted\n")


@pytest.mark.parametrize("command", ["papers", "models", "runs"])
def test_light_commands_import_no_torch(command, tmp_path):
    code = (
        "import sys; from nullius.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "False"


def test_the_toy_is_whole(checkpoint):
    """What the damage tests start from can be loaded."""
    from nullius.models.loading import load

    assert load(str(checkpoint)).anatomy.n_layers == 3
    shutil.rmtree(checkpoint)


def test_weights_of_another_shape(nullius, checkpoint):
    save_file({"model.embed_tokens.weight": torch.zeros(3, 3)}, checkpoint / "model.safetensors", metadata={"format": "pt"})
    complains(nullius("run", "factual-recall", "-m", str(checkpoint)), "cannot be loaded")


def test_where_the_output_cannot_go(tmp_path):
    """A terminal without UTF-8, a reader that leaves, a full disk, a closed stream: never a traceback."""
    program = f"{sys.executable} -m nullius.cli.main papers"
    plain = "env LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0"
    for line, code in (
        (f"{plain} {program} | tail -1 | grep -c 'papers, '", 0),
        (f"{plain} {program} --json | {sys.executable} -c 'import json, sys; json.load(sys.stdin)'", 0),
        (f"{program} | head -1", None),
        (f"{program} > /dev/full", 1),
        (f"{program} >&-", 0),
        (f"{program} 2>&-", 0),
    ):
        done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr, line
        assert done.stderr.count("\n") <= 1, line
        assert code is None or done.returncode == code, line
