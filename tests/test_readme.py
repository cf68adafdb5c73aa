"""The README's example of a data set of one's own works as it is printed."""

import re
from pathlib import Path

import pytest
import yaml
from fake_data import composed

from resnet_lab.config import signature

README = (Path(__file__).resolve().parents[1] / "README.md").read_text("utf-8")


def test_a_data_set_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(# resnet_lab/data/digits.py\n.*?)```", README, re.DOTALL)
    text = re.search(r"```yaml\n# conf/data/digits.yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my_digits.py").write_text(code[1])
    monkeypatch.syspath_prepend(tmp_path)
    from my_digits import Digits

    keys = yaml.safe_load(text[1])
    assert keys.pop("defaults") == ["_common"]
    assert keys.pop("_target_") == "resnet_lab.data.digits.Digits"
    settings = composed("_common") | keys | {"cache_dir": str(tmp_path / "cache")}
    required, optional = signature("my_digits.Digits")
    assert set(settings) == required | optional
    data = Digits(**settings)
    table, _ = data.table()
    assert table.groupby("split").size().sum() == 1797
    assert len(data.class_names) == 10
    assert data.read("train/00000").shape == (32, 32, 3)
