"""What a learner sees of an error in a notebook."""

import subprocess
import sys


def test_a_lab_error_shows_its_message_and_no_traceback():
    code = "from lora_lab import smart_home; smart_home.commands('exam')"
    shown = subprocess.run(
        [sys.executable, "-m", "IPython", "--colors=NoColor", "-c", code], capture_output=True, text=True
    )
    printed = shown.stdout + shown.stderr
    assert "LabError: Unknown split 'exam'. Use one of: train" in printed
    assert "Traceback" not in printed and "smart_home.py" not in printed
