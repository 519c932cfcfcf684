"""A microphone for a page that talks live, and an ear at its loudspeaker."""

import wave
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, Playwright

from tests.support.application import AUDIO
from tests.support.tools import find_tool

RATE = 16_000
LOUDSPEAKER = """
    const connect = AudioNode.prototype.connect;
    window.heardSamples = 0;
    AudioNode.prototype.connect = function (target, ...rest) {
      if (target === this.context.destination) {
        const ear = this.context.createScriptProcessor(1024, 1, 1);
        ear.onaudioprocess = ({ inputBuffer }) => {
          for (const sample of inputBuffer.getChannelData(0)) {
            if (Math.abs(sample) > 0.001) window.heardSamples++;
          }
        };
        window.heardRate = this.context.sampleRate;
        window.heardContext = this.context;
        connect.call(this, ear);
        connect.call(ear, this.context.destination);
      }
      return connect.call(this, target, ...rest);
    };
"""
"""Counts the samples that are not silent on their way to the loudspeaker."""


def microphone(path: Path, parts: Sequence[str | float]) -> Path:
    """Write a recording of `parts`: names of recordings, and seconds of silence between them."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        for part in parts:
            if isinstance(part, str):
                with wave.open(str(AUDIO / f"{part}.wav")) as spoken:
                    file.writeframes(spoken.readframes(spoken.getnframes()))
            else:
                file.writeframes(bytes(2 * round(RATE * part)))
    return path


@contextmanager
def speaking_browser(
    playwright: Playwright, recording: Path, *, loops: bool = False
) -> Generator[Browser]:
    """Debian's Chromium with a microphone that plays `recording` from when it is opened."""
    arguments = [
        "--no-sandbox",
        "--autoplay-policy=no-user-gesture-required",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={recording}{'' if loops else '%noloop'}",
    ]
    browser = playwright.chromium.launch(executable_path=find_tool("chromium"), args=arguments)
    yield browser
    browser.close()


def latency_seconds(page: Page) -> float:
    """Return how long sound takes from there to the ear, as the browser says."""
    return page.evaluate("heardContext.outputLatency + heardContext.baseLatency")


def heard_seconds(page: Page) -> float:
    """Return how many seconds of sound have come out of the page's loudspeaker."""
    return page.evaluate("window.heardSamples / window.heardRate")
