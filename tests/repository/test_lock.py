"""locked.txt: what is said of it once it is written, and that it stays where versions do not go together."""

import subprocess

import lock
import pytest

BEFORE = """\
# Written by `make lock`
# for lab test
appnope==1.0.0 ; sys_platform == 'darwin' \\
    --hash=sha256:aa
# for lab
transformers==5.23.0 \\
    --hash=sha256:bb
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "ROOT", tmp_path)
    (tmp_path / "locked.txt").write_text(BEFORE)
    return tmp_path


def test_what_changed_is_named_whether_it_was_asked_for_or_not(folder, monkeypatch, capsys):
    found = {"appnope==1.1.0 ; sys_platform == 'darwin' \\": "appnope==1.1.0 ; sys_platform == 'darwin' \\\n    a\n",
             "transformers==5.24.0 \\": "transformers==5.24.0 \\\n    b\n", "typer==1.0 \\": "typer==1.0 \\\n    c\n"}
    monkeypatch.setattr(lock, "closure", lambda extra: found)
    lock.main()
    assert capsys.readouterr().out == ("locked.txt is written. Changed: appnope 1.0.0 -> 1.1.0; "
                                       "transformers 5.23.0 -> 5.24.0; typer not there -> 1.0\n")
    lock.main()
    assert capsys.readouterr().out == "locked.txt is written. Changed: nothing\n"
    found.popitem()
    lock.main()
    assert "Changed: typer 1.0 -> gone" in capsys.readouterr().out
    monkeypatch.setattr(lock, "closure", lambda extra: {head: block + "    d\n" for head, block in found.items()})
    lock.main()
    assert "Changed: hashes or extras, but no version" in capsys.readouterr().out


def test_where_versions_do_not_go_together_the_file_stays(folder, monkeypatch):
    def closure(extra):
        raise subprocess.CalledProcessError(1, "uv", stderr="No solution found\n")

    monkeypatch.setattr(lock, "closure", closure)
    with pytest.raises(SystemExit, match="stays as it was. uv says: No solution found$"):
        lock.main()
    assert (folder / "locked.txt").read_text() == BEFORE
