"""Find a Chromium for the browser tests, or install one: `python tools/get_browser.py`.

What is there is used: the one in the environment variable CHROMIUM, an installed Chromium, Chrome or
Edge, or Playwright's own. Where there is none, Debian's package is installed (as root, or with a sudo
that asks nothing), or else Playwright fetches its own.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
APPLICATIONS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)


def find() -> str | None:
    """Path of the browser to test with, None if there is none."""
    named = os.environ.get("CHROMIUM")
    if named:
        return shutil.which(named)
    installed = [*map(shutil.which, COMMANDS), *(path for path in APPLICATIONS if Path(path).exists())]
    return next(filter(None, installed), None) or _playwrights_own()


def _playwrights_own() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def install() -> bool:
    """Whether one of the ways to get a browser worked."""
    root = [] if os.name == "posix" and os.geteuid() == 0 else ["sudo", "-n"]
    if shutil.which("apt-get") and (not root or shutil.which("sudo")):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        steps = (["update", "-qq"], ["install", "-y", "-qq", "chromium"])
        if all(subprocess.run([*root, "apt-get", *step], env=environment).returncode == 0 for step in steps):
            return True
    return subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"]).returncode == 0


def main() -> None:
    if find() is None and not os.environ.get("CHROMIUM"):
        print("No Chromium here: installing one for the browser tests.", flush=True)
        install()
    print(f"browser: {find() or 'none. Install Chromium or Chrome, or name one in CHROMIUM; see the README.'}")


if __name__ == "__main__":
    main()
