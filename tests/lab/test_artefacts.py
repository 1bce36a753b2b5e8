"""Text files that a command is asked to write: whole, through links, and into what is no file."""

import os
import threading

import pytest

from nullius.errors import NulliusError
from nullius.lab.artefacts import write_text


def test_a_file_is_replaced_whole_and_its_folder_made(tmp_path):
    path = tmp_path / "new" / "page.md"
    for text in ("first", "zweitens: ü"):
        write_text(path, text)
        assert path.read_text("utf-8") == text
    assert os.listdir(path.parent) == ["page.md"]


def test_a_link_goes_on_pointing_to_its_file(tmp_path):
    (tmp_path / "file.md").write_text("old")
    (tmp_path / "link.md").symlink_to("file.md")
    write_text(tmp_path / "link.md", "new")
    assert (tmp_path / "link.md").is_symlink()
    assert (tmp_path / "file.md").read_text() == "new"


def test_a_pipe_is_written_into_and_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    heard = []
    reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "through")
    reader.join()
    assert heard == ["through"]
    assert (tmp_path / "pipe").is_fifo()


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "below"):
        with pytest.raises(NulliusError, match="cannot write"):
            write_text(path, "text")
    assert os.listdir(tmp_path) == ["file"]
