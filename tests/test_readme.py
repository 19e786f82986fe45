"""The README's Python runs as it stands, block after block in one session."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_python_blocks__run(ray_cluster, serve_url, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train, sagemaker = BLOCKS
    session = {"__name__": "readme"}
    exec(compile(train, "README.md", "exec"), session)
    assert 0.8 < float(capsys.readouterr().out.split()[0]) <= 1
    exec(compile(sagemaker, "README.md", "exec"), session)
    *log, first, second, third = capsys.readouterr().out.splitlines()
    assert any(line.endswith(" Completed - Training job completed") for line in log)
    assert all(0 <= float(score) <= 1 for score in (first, second, third))
