"""Programs that are kept for the tests of the next run are whole."""

import os
import zlib

import pytest
from programs import _hand_on


@pytest.mark.parametrize("links", [True, False])
def test_only_whole_programs_are_handed_on(links, tmp_path, monkeypatch):
    def refused(*_):
        raise OSError("another file system")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    own, kept = tmp_path / "own", tmp_path / "kept"
    own.mkdir()
    kept.mkdir()
    whole = zlib.compress(bytes(range(256)) * 10)
    for name, content in {"whole": whole, "half": whole[:-9], "empty": b"", "none": b"x"}.items():
        (own / f"{name}-cache").write_bytes(content)
    _hand_on(own, kept, os.getpid())
    assert [file.name for file in kept.iterdir()] == ["whole-cache"]
    assert (kept / "whole-cache").read_bytes() == whole
    assert not own.exists()
