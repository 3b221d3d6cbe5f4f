"""Every public call, given something odd, ends in its result or in LabError: a seeded sample of the fuzz."""

import os
import signal
import warnings

import fuzz_public
import pytest


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="ends what is endless by a signal")
def test_odd_arguments_end_in_a_result_or_a_reason(tmp_path, monkeypatch):
    for name, value in (("LORA_LAB_PROGRESS", "progress.json"), ("LORA_LAB_CACHE", "cache")):
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "deep" / "work").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "work")
    before = signal.getsignal(signal.SIGALRM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = fuzz_public.fuzz(400, seed=1)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert [case for case in found if case["became"] not in fuzz_public.FINE] == []
    assert sum(case["became"] == "result" for case in found) > 20, "some odd arguments are fine"
    assert os.listdir(tmp_path) and os.path.exists("/dev/null")
