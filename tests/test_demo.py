"""The demonstration runs, and its compiled models are right."""

import re

from framelift import demo


def test_demo(capsys, monkeypatch):
    monkeypatch.setattr(demo, "ROUNDS", 1)
    demo.main()
    out = capsys.readouterr().out
    lowered = re.findall(r"(\d+) of (\d+) operators lowered, 1 graph\(s\), 1 engine\(s\)", out)
    assert len(lowered) == 2 and all(done == recorded for done, recorded in lowered), out
    cosines = [float(c) for c in re.findall(r"cosine ([\d.]+)", out)]
    assert len(cosines) == 2 and min(cosines) >= 0.99999
    assert "parmesan" in next(line for line in out.splitlines() if "cheese" in line.partition("->")[0])
