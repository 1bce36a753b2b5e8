"""Scenarios told in six emotions: neutral first-person situations with three outcomes, words that name an emotion, sentences that imply one.

All of our own writing. A *scenario* is one situation (its theme, one sentence, three events: positive, neutral, negative) and names no emotion;
what emotion the answer should have stands in the instruction alone. *Styles* take the emotion's place as a control: they change the
instruction's words and have nothing to do with feeling. *Implied* sentences tell an emotion without a word for it. `WORDS` never occur in an
instruction: they are for measuring.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from nullius.stimuli.prompts import Stimuli

EMOTIONS = ("anger", "sadness", "happiness", "fear", "surprise", "disgust")
STYLES = ("formality", "brevity", "rhyme", "detail", "politeness", "slang")
LABELS = {"anger": "angry", "sadness": "sad", "happiness": "happy", "fear": "afraid", "surprise": "surprised", "disgust": "disgusted"}
WORDS = {
    "anger": ("furious", "rage", "outraged", "mad", "hostile", "irritated"),
    "sadness": ("grief", "lonely", "tears", "sorrow", "crying", "heartbroken"),
    "happiness": ("joy", "delighted", "glad", "cheerful", "smile", "wonderful"),
    "fear": ("terrified", "scared", "panic", "nervous", "dread", "frightened"),
    "surprise": ("astonished", "amazed", "unexpected", "suddenly", "stunned", "wow"),
    "disgust": ("gross", "revolting", "nasty", "filthy", "sick", "repulsive"),
}
VALENCES = ("positive", "neutral", "negative")


@dataclass(frozen=True)
class Scenario:
    """theme; situation: one sentence; events: by valence, one sentence each."""

    theme: str
    situation: str
    events: tuple[str, str, str]

    def told(self, valence: str) -> str:
        """The situation and what happened."""
        return f"{self.situation} {self.events[VALENCES.index(valence)]}"


@dataclass(frozen=True)
class Implied:
    """A sentence from which an emotion can be told, without its name."""

    emotion: str
    text: str


def scenarios() -> Stimuli[Scenario]:
    """Twenty-four scenarios, three for each of eight themes."""
    rows = (line for line in _lines() if len(line) == 5)
    return Stimuli.of(Scenario(theme, situation, (good, plain, bad)) for theme, situation, good, plain, bad in rows)


def implied() -> Stimuli[Implied]:
    """Eight sentences for each emotion, in the order of EMOTIONS."""
    return Stimuli.of(Implied(*line) for line in _lines() if len(line) == 2)


def _lines() -> list[list[str]]:
    text = files("nullius.stimuli").joinpath("data/emotions.txt").read_text("utf-8")
    return [line.split("|") for line in text.splitlines() if line and not line.startswith("#")]


def instruction(manner: str | None) -> str:
    """What is asked for: an emotion or a style by its noun, or nothing (None)."""
    return f"Reply with {manner}, in two sentences." if manner else "Reply in two sentences."


def plain_prompt(manner: str | None, told: str) -> str:
    """The prompt for a subject without a chat template."""
    return f"{instruction(manner)}\n{told}\nReply:"
