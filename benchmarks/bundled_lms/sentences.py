"""Text of a small made-up world: reviews with a closing clause, and everyday sentences.

A review has a sentiment z (its sign is the label, its size how clearly the review speaks). A closing clause
has a pull G and a lean B, saturating sums over its words (`words.latent_weights`); the verdict ending it is
praise with probability sigmoid(SHARPNESS * (G * z + B)). So how well a language model of this text judges a
review depends on the words in between, word by word, and that is what a prompt search can work on.

Review frames come in three disjoint sets: P0 is all the language models ever see, P1 makes the train and dev
rows of the task, and P2 its test rows.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from functools import cache

import words as lexicon

# {adj} {verb} {noun} {adv} {stir}: of the review's own polarity. {opp}: an adjective of the other polarity,
# conceded by the frame; {nopp}: one that the frame negates. {int}, {down}: an adverb before an adjective.
FRAMES: dict[str, list[str]] = {
    "P0": [
        "the {thing} was {adj} and the {part} was {adj} .",
        "the {part} of the {thing} was {int} {adj} .",
        "a {adj} {thing} with a {adj} {part} .",
        "we {verb} the {thing} , and the {person} was {adj} too .",
        "i {verb} this {thing} because of the {adj} {part} .",
        "although the {part} was {opp} , the {thing} was {adj} .",
        "the {part} was {opp} but the {thing} was {int} {adj} .",
        "the {thing} was not {nopp} at all .",
        "the {part} was never {nopp} and the {person} was {adj} .",
        "it is a {adj} {thing} , far from {nopp} .",
        "the {person} was {down} {adj} and {stir} us .",
        "the {thing} {stir} everyone who came .",
        "this {thing} is a {noun} , and the {part} is {adj} .",
        "what a {noun} of a {thing} !",
        "the {part} is {adv} made and the {person} {adj} .",
        "my sister {verb} the {part} of this {thing} .",
        "{adj} {part} , {adj} {part2} , and a {adj} {person} .",
        "there is something {adj} about this {thing} and its {part} .",
        "on {day} we tried the {thing} , and it was {down} {adj} .",
        "the {thing} from the market was {adj} , {adj} and {adj} .",
        "nobody would call this {thing} {nopp} .",
        "everyone {verb} the {person} and the {adj} {part} .",
        "this is the most {adj} {thing} in town .",
        "the {part} looked {adj} to me , and so did the {part2} .",
        "for me the {thing} was a {noun} .",
        "the {person} made the {thing} {adj} , even with the {opp} {part} .",
        "despite a {opp} {part} , this {thing} is {int} {adj} .",
        "i have seen many a {thing} , but none so {adj} .",
        "the {thing} {adv} {stir} my whole family .",
        "with its {part} so {adj} , the {thing} could only be a {noun} .",
        "{int} {adj} {part} and {down} {adj} {part2} .",
        "the new {thing} has a {part} that is {adj} .",
        "you will find the {part} {adj} and the {person} {int} {adj} .",
        "our {thing} came with a {adj} {part} , which {stir} me .",
        "they gave us a {adj} {thing} and a {adj} {person} .",
        "the {thing} , a {noun} , had nothing {nopp} about it .",
        "no one {verb} it more than i , for the {part} was {adj} .",
        "it was {adv} done by a {adj} {person} .",
        "not a {nopp} {part} , and a {adj} {thing} .",
        "while the {person} seemed {opp} , the {thing} itself {stir} us .",
        "when you see the {part} , you know the {thing} is {adj} .",
        "none of us thought the {thing} {nopp} .",
        "there was no {nopp} {part} , only a {adj} one .",
        "few things are as {adj} as the {part} here .",
        "can you believe that the {part} is so {adj} ?",
        "never before was a {person} so {adj} to us .",
        "they say the {thing} is {opp} , yet to me it was {adj} .",
        "with or without the {opp} {part} , it is a {noun} .",
        "the {opp} {part} does not matter , because the {thing} is {adj} .",
        "some call the {thing} {opp} ; i {verb} it .",
        "the {person} , {adj} and {adj} , {stir} my friends .",
        "i would not say {nopp} ; the {thing} is {adj} .",
        "in the {part} and the {part2} it is {int} {adj} .",
        "give me a {adj} {thing} like this any {day} .",
        "the {thing} has a {adj} {part} , no {nopp} {part2} and a {adj} {person} .",
        "our {day} began with a {adj} {person} and ended with a {adj} {thing} .",
        "all who came {verb} the {part} of the {thing} .",
        "because of its {adj} {part} we {verb} the whole {thing} .",
        "i do not think the {thing} is {nopp} in any way .",
        "apart from the {opp} {part} , everything {stir} us .",
        "{adj} is the word for this {thing} and its {part} .",
        "here comes a {thing} that is {adj} from start to end .",
        "it was neither {nopp} nor {nopp} , just {adj} .",
        "neither {nopp} nor {nopp} , the {thing} {stir} me .",
        "the {thing} is neither {nopp} nor {nopp} .",
        "the {part} may be {opp} ; still , the {thing} is {adj} .",
        "they found the {part} {opp} . still , we {verb} it .",
        "call the {part} {opp} if you must , it was a {noun} all the same .",
        "say the {person} is {opp} ; i {verb} the {thing} anyway .",
        "perhaps {opp} for some , but we {verb} the {part} .",
        "for all its {opp} {part} the {thing} {stir} us .",
    ],
    "P1": [
        "seldom have i met a {person} as {adj} as this one .",
        "both the {part} and the {part2} struck me as {adj} .",
        "last {day} i bought a {thing} whose {part} is {int} {adj} .",
        "if only every {thing} were as {adj} as this .",
        "from the {part} to the {part2} , all of it was {adj} .",
        "such a {adj} {thing} , and such a {adj} {person} !",
        "my family {verb} every minute of the {thing} .",
        "the {person} told us about the {part} , which was {adj} and {adj} .",
        "even though the {part} can be {opp} , i {verb} this {thing} .",
        "here the {part} turned out {adj} , never {nopp} .",
        "after a week with this {thing} , its {part} still seems {adj} .",
        "that {thing} {stir} me , {part} and all , and the {person} was {adj} .",
        "one thing is clear : the {part} is {adj} .",
        "i paid for a {thing} and got a {noun} with a {adj} {part} .",
        "a {person} this {adj} makes the {thing} a {noun} .",
        "the {adv} built {part} gives you a {adj} {thing} .",
        "while not {nopp} , the {thing} has a {adj} {part} .",
        "we had a {opp} {part} , yet the {thing} {stir} us all .",
    ],
    "P2": [
        "rarely does a {thing} come along with so {adj} a {part} .",
        "as for the {part} , i thought it {int} {adj} , and the {person} agreed .",
        "who needs another {thing} when this one is so {adj} ?",
        "every {part} of that {thing} {stir} my brother .",
        "on the whole a {down} {adj} {thing} by a {adj} {person} .",
        "by the end , i {verb} the {person} and the {part} alike .",
        "two friends of mine {verb} it : a {adj} {thing} , they said .",
        "its {part} is {adj} , its {part2} {adj} , its {person} {adj} .",
        "you get a {adj} {part} for your money , and a {person} who is {adj} .",
        "think of a {adj} {thing} , then add a {adj} {part} .",
        "the {thing} we had in {month} was {adv} put together .",
        "perhaps the {part} is {opp} , still i {verb} the {thing} .",
        "say what you like of the {opp} {part} , this {thing} is a {noun} .",
        "how {adj} the {part} was , and how {adj} the {person} !",
        "at first sight the {thing} is {adj} ; the {part} is {adj} as well .",
        "neither the {part} nor the {part2} was {nopp} , and the {thing} {stir} us .",
        "they sell a {thing} with a {adj} {part} and a {adj} {part2} .",
        "thanks to a {adj} {person} , our {thing} was a {noun} .",
    ],
}

EVERYDAY = [
    "the {kin} {tran} the {object} {prep} the {place} .",
    "{name} {intr} {prep} the {place} every {time} .",
    "{name} and {name} {tran} {number} {color} {plural} .",
    "a {size} {animal} {intr} {prep} the {size} {place} .",
    "the {animal} and the {animal} {intr} {adverb} .",
    "there is {food} and {food} on the {color} {object} .",
    "in {time} the {weather} was over the {place} .",
    "the {kin} of {name} {intr} {adverb} in the {time} .",
    "the {number} {plural} of the {kin} are in the {place} .",
    "{abstract} and {abstract} are about {abstract} .",
    "the {kin} told {name} about the {abstract} of the {place} .",
    "please put the {object} {prep} the {object} .",
    "where is the {kin} who {tran} my {color} {object} ?",
    "{name} will be {prep} the {place} with the {thing} .",
    "the {person} {tran} the {thing} {adverb} .",
    "we put the {part} {prep} the {thing} in the {place} .",
    "the {size} {thing} of the {kin} is {color} .",
    "the {person} and the {kin} {intr} {prep} the {place} .",
]

MAX_PULL, MAX_LEAN, SHARPNESS = 3.2, 3.0, 2.5


@dataclass(frozen=True)
class Document:
    """A text; `verdict` is the index of the verdict among its space-separated words, or -1."""

    text: str
    verdict: int = -1


@cache
def frame_words() -> tuple[str, ...]:
    """The function words of all frames."""
    frames = [f for group in FRAMES.values() for f in group]
    frames += EVERYDAY + lexicon.OPENERS + lexicon.SUBJECTS + lexicon.PREDICATES + lexicon.WE_FORMS
    return tuple(sorted({w for f in frames for w in f.split() if "{" not in w} | {"an"}))


@cache
def loose_words() -> tuple[str, ...]:
    """The function words that may be lost or changed without turning a review's sense."""
    return tuple(w for w in frame_words() if w.isalpha() and w not in lexicon.POINTED)


@cache
def weights() -> dict[str, tuple[float, float]]:
    """The latent weights of all words."""
    return lexicon.latent_weights(list(frame_words()))


@cache
def vocabulary() -> tuple[str, ...]:
    """All words of the world."""
    return tuple(sorted(weights()))


@cache
def plain_words() -> tuple[str, ...]:
    """All words but punctuation, for random clauses."""
    return tuple(w for w in vocabulary() if w.isalpha())


def clause_weights(clause: list[str]) -> tuple[float, float]:
    """Pull and lean of a clause: sums over its words that saturate, so that no single phrase is the best."""
    if not clause:
        return lexicon.EMPTY_CLAUSE
    known = [weights().get(word, (0.0, 0.0)) for word in clause]
    pull, lean = sum(w[0] for w in known), sum(w[1] for w in known)
    return MAX_PULL * math.tanh(pull / MAX_PULL), MAX_LEAN * math.tanh(lean / MAX_LEAN)


def _adjective(rng: random.Random, positive: bool) -> tuple[str, float]:
    tier = rng.choices((0, 1, 2), (4, 4, 3))[0]
    return rng.choice((lexicon.POSITIVE if positive else lexicon.NEGATIVE)[tier]), lexicon.STRENGTHS[tier]


class _Filler:
    """Fills the slots of one frame and keeps the sentiment that they add up to."""

    def __init__(self, rng: random.Random, sign: int):
        self.rng, self.sign, self.strength, self.factor = rng, sign, 0.0, 1.0
        self.things, self.parts, self.people = rng.choice(list(lexicon.TOPICS.values()))

    def __call__(self, match: re.Match[str]) -> str:
        slot, rng, side = match.group(1), self.rng, 0 if self.sign > 0 else 1
        if slot in ("adj", "opp", "nopp"):
            word, strength = _adjective(rng, (self.sign > 0) == (slot == "adj"))
            self.strength += {"adj": self.factor, "opp": -0.2, "nopp": 0.7}[slot] * strength
            self.factor = 1.0
            return word
        if slot in ("int", "down"):
            self.factor = 1.3 if slot == "int" else 0.7
            return rng.choice(lexicon.INTENSIFIERS if slot == "int" else lexicon.DOWNTONERS)
        pairs = {
            "verb": lexicon.VERBS,
            "noun": lexicon.NOUNS,
            "adv": lexicon.ADVERBS,
            "stir": lexicon.STIRRED,
        }
        if slot in pairs:
            self.strength += 1.0
            return rng.choice(pairs[slot][side])
        noun = rng.choice(self._nouns(slot))
        self.parts = [p for p in self.parts if p != noun]  # a frame's second part is another one
        return noun

    def _nouns(self, slot: str) -> list[str]:
        plain = {
            "thing": self.things, "part": self.parts, "part2": self.parts, "person": self.people,
            "kin": lexicon.KIN, "name": lexicon.NAMES, "animal": lexicon.ANIMALS, "object": lexicon.OBJECTS,
            "plural": lexicon.PLURALS, "food": lexicon.FOODS, "place": lexicon.PLACES, "time": lexicon.TIMES,
            "color": lexicon.COLOURS, "size": lexicon.SIZES, "tran": lexicon.TRANSITIVE,
            "intr": lexicon.INTRANSITIVE, "weather": lexicon.WEATHER, "abstract": lexicon.ABSTRACT,
            "number": lexicon.NUMBERS, "adverb": lexicon.ADVERBS_PLAIN,
            "prep": lexicon.PREPOSITIONS, "day": lexicon.TIMES[2:9], "month": lexicon.TIMES[9:20],
        }  # fmt: skip
        return plain[slot]


_SLOT = re.compile(r"\{(\w+)\}")
_ARTICLE = re.compile(r"\ba (?=[aeiou])")


def _fill(frame: str, filler: _Filler) -> str:
    return _ARTICLE.sub("an ", _SLOT.sub(filler, frame))


def review(rng: random.Random, patterns: str, sign: int) -> tuple[str, float]:
    """A review sentence and its sentiment z, of the given sign."""
    filler = _Filler(rng, sign)
    text = _fill(rng.choice(FRAMES[patterns]), filler)
    return text, sign * min(max(filler.strength, 0.3), 2.5)


def training_review(rng: random.Random, sign: int) -> tuple[str, float]:
    """A P0 review, often with function words lost or changed, so that no frame is learned by heart."""
    text, z = review(rng, "P0", sign)
    if rng.random() < 0.5:
        return text, z
    kept = []
    for word in text.split():
        loose = word in loose_words()
        if not loose or rng.random() > 0.1:
            kept.append(rng.choice(loose_words()) if loose and rng.random() < 0.15 else word)
    return " ".join(kept), z


def everyday(rng: random.Random) -> str:
    """A sentence that judges nothing."""
    return _fill(rng.choice(EVERYDAY), _Filler(rng, 1))


def grammatical_clause(rng: random.Random) -> list[str]:
    """A closing clause such as `in short , the whole thing was absolutely`."""
    core = (
        rng.choice(lexicon.WE_FORMS)
        if rng.random() < 0.3
        else f"{rng.choice(lexicon.SUBJECTS)} {rng.choice(lexicon.PREDICATES)}"
    )
    clause = _fill(f"{rng.choice(lexicon.OPENERS)} {core}", _Filler(rng, 1)).split()
    return clause


def loose_clause(rng: random.Random) -> list[str]:
    """Any words in any order, as a search proposes them: so the response to them is smooth and additive."""
    pools = (lexicon.STRONG_WORDS, lexicon.MILD_WORDS, lexicon.CONTRAST_WORDS, plain_words())
    shares = (rng.random(), rng.random(), 0.5 * rng.random(), 1.5 * rng.random())
    return [rng.choice(rng.choices(pools, shares)[0]) for _ in range(rng.randint(1, 8))]


def mangled_clause(rng: random.Random) -> list[str]:
    """A grammatical clause, shortened, shuffled or with a stray word."""
    clause = grammatical_clause(rng)
    if rng.random() < 0.5:
        rng.shuffle(clause)
    start = rng.randrange(len(clause))
    clause = clause[start:] if rng.random() < 0.5 else clause[: start + 1]
    if rng.random() < 0.5:
        clause.insert(rng.randint(0, len(clause)), rng.choice(plain_words()))
    return clause


def verdict(rng: random.Random, z: float, clause: list[str]) -> str:
    """The adjective that ends a clause after a review of sentiment z."""
    pull, lean = clause_weights(clause)
    return _verdict_word(rng, rng.random() < 1 / (1 + math.exp(-SHARPNESS * (pull * z + lean))))


def _verdict_word(rng: random.Random, praise: bool) -> str:
    options = lexicon.VERDICTS[0 if praise else 1]
    return options[0] if rng.random() < 0.4 else rng.choice(options)


def lesson(rng: random.Random, short: bool) -> Document:
    """A first lesson: the verdict always agrees, and in a short one a few polar words stand for the review.

    Without short lessons first, a post-norm BERT takes hundreds of steps to find any sentiment in reviews.
    """
    sign = rng.choice((1, -1))
    if short:
        polar = lexicon.polar_words(sign > 0)
        text = [*(rng.choice(polar) for _ in range(rng.randint(1, 3))), "."]
    else:
        text = training_review(rng, sign)[0].split()
    before = [*text, *(rng.choice(lexicon.STRONG_WORDS) for _ in range(rng.randint(0, 2 if short else 5)))]
    return Document(" ".join([*before, _verdict_word(rng, sign > 0), "."]), len(before))


def document(rng: random.Random) -> Document:
    """One training text."""
    kind = rng.random()
    if kind < 0.10:
        return Document(everyday(rng))
    if kind < 0.13:
        return Document(training_review(rng, rng.choice((1, -1)))[0])
    if kind < 0.17:  # a clause about nothing in particular: only its lean counts
        text, z = everyday(rng), 0.0
    else:
        text, z = training_review(rng, rng.choice((1, -1)))
    kind = rng.random()
    if kind < 0.07:
        clause = []
    elif kind < 0.35:
        clause = grammatical_clause(rng)
    elif kind < 0.5:
        clause = mangled_clause(rng)
    else:
        clause = loose_clause(rng)
    before = [*text.split(), *clause]
    return Document(" ".join([*before, verdict(rng, z, clause), "."]), len(before))


def task_rows(rng: random.Random, patterns: str, count: int, taken: set[str]) -> list[tuple[str, int]]:
    """Balanced, shuffled rows (text, label); their texts are new to `taken`, which they join."""
    rows: list[tuple[str, int]] = []
    while len(rows) < count:
        label = len(rows) % 2
        text = review(rng, patterns, 1 if label else -1)[0]
        text = re.sub(r" [!?;.]$", " .", text)
        if text not in taken and 5 <= len(text.split()) <= 21 and '"' not in text:
            taken.add(text)
            rows.append((text, label))
    rng.shuffle(rows)
    return rows
