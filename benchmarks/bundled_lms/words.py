"""Word lists of the generated world, and the latent weights its closing clauses are made from.

Every word that may stand in a closing clause has two latent numbers: its `pull` (how strongly a clause with
this word ties the verdict to the review; negative for words of contrast) and its `lean` (how far the word
alone tips the verdict towards praise or blame). They are what makes a prompt good, poor or misleading.
"""

from __future__ import annotations

import random


def _list(text: str, separator: str | None = None) -> list[str]:
    return text.split(separator)


# topic -> (things, parts, people); all nouns are singular so that every frame agrees with every noun
TOPICS: dict[str, tuple[list[str], list[str], list[str]]] = {
    name: (things.split(), parts.split(), people.split())
    for name, things, parts, people in [
        ("film", "film movie documentary thriller comedy sequel drama cartoon musical western",
         "plot acting script ending soundtrack dialogue casting camerawork pacing",
         "actor director actress hero"),
        ("food", "meal dinner lunch soup pizza breakfast curry salad burger dessert pasta sandwich steak",
         "sauce crust seasoning flavour portion texture topping dressing", "waiter chef cook waitress"),
        ("hotel", "hotel room hostel resort motel suite cottage apartment inn",
         "bed shower lobby pool view carpet balcony pillow bathroom", "receptionist manager porter cleaner"),
        ("phone", "phone tablet laptop camera headset printer keyboard charger radio",
         "screen battery speaker button cable software lens display", "technician seller engineer designer"),
        ("book", "book novel memoir story biography poem manual magazine essay",
         "opening prologue style translation cover index chapter vocabulary", "author editor publisher poet"),
        ("car", "car van scooter bicycle truck motorbike taxi bus",
         "engine seat steering gearbox dashboard suspension brake wheel",
         "driver mechanic dealer instructor"),
        ("music", "album song concert opera gig festival recital band",
         "melody chorus rhythm sound lighting stage lyric", "singer drummer guitarist conductor pianist"),
        ("game", "game puzzle quiz app website program",
         "level tutorial interface artwork scoring animation", "developer host programmer artist"),
        ("course", "course lesson lecture workshop seminar class school",
         "homework syllabus exam material classroom textbook", "teacher tutor professor lecturer"),
        ("trip", "flight cruise tour trip train ferry voyage",
         "seating schedule cabin route luggage service boarding", "guide pilot captain steward"),
        ("shop", "shop store market bakery cafe salon gym museum library",
         "counter selection queue layout parking atmosphere decor",
         "cashier owner assistant trainer barista"),
        ("clothes", "jacket coat dress shirt sweater hat scarf suit",
         "fabric zip lining collar stitching pocket sleeve", "tailor stylist shopkeeper hairdresser"),
        ("house", "sofa chair table lamp mattress desk carpet heater",
         "frame cushion finish assembly handle surface packaging", "carpenter courier decorator plumber"),
    ]
}  # fmt: skip

# three tiers per polarity: the tier says how much a word counts (STRENGTHS)
STRENGTHS = (1.5, 1.0, 0.5)
POSITIVE = [
    tier.split()
    for tier in (
        "superb brilliant outstanding magnificent amazing excellent fantastic wonderful great stunning "
        "perfect exceptional marvellous terrific phenomenal breathtaking spectacular incredible flawless "
        "gorgeous glorious splendid sublime delightful masterful unforgettable extraordinary fabulous "
        "astonishing irresistible",
        "good lovely charming enjoyable impressive engaging pleasant beautiful clever funny witty fresh "
        "smooth elegant polished moving touching inspiring memorable generous friendly helpful "
        "comfortable reliable sturdy crisp tasty delicious satisfying rewarding captivating gripping "
        "thoughtful graceful vivid lively cheerful refreshing appealing exciting thrilling superior "
        "skilful refined welcoming attentive cosy stylish",
        "nice fine decent solid fair okay tidy neat adequate acceptable passable capable useful handy "
        "sensible likeable competent tolerable agreeable reasonable harmless steady proper suitable",
    )
]
NEGATIVE = [
    tier.split()
    for tier in (
        "terrible awful horrible dreadful atrocious appalling disgusting abysmal horrendous unbearable "
        "pathetic disastrous hideous miserable ghastly vile repulsive worthless insulting laughable "
        "catastrophic revolting unwatchable inexcusable shameful horrid lousy rotten unforgivable painful",
        "bad boring dull poor tedious clumsy ugly bland stale rude lifeless annoying disappointing "
        "frustrating shoddy sloppy tasteless dirty noisy flimsy broken confusing pointless predictable "
        "tiresome unpleasant unfriendly careless soggy greasy faulty uncomfortable unreliable messy "
        "hollow shallow irritating dreary gloomy soulless charmless inferior cramped overpriced grim "
        "nasty joyless tacky",
        "weak slow dated plain forgettable uneven thin bumpy awkward stiff dim patchy tame vague worn "
        "faded limited lukewarm flat cluttered rough pricey unremarkable stuffy",
    )
]
# (praise, blame) pairs of lists: what one did to a thing, what a thing is, how it was made, what it did to us
VERBS = (
    _list("loved adored enjoyed treasured cherished liked admired appreciated praised welcomed"),
    _list("hated despised disliked regretted detested loathed resented dreaded criticised rejected"),
)
NOUNS = (
    _list(
        "joy delight treat gem masterpiece triumph pleasure winner success treasure miracle marvel blessing "
        "bargain "
        "wonder"
    ),
    _list(
        "mess disaster letdown bore failure nightmare insult chore flop fiasco embarrassment catastrophe "
        "joke disgrace "
        "mistake"
    ),
)
ADVERBS = (
    _list("beautifully brilliantly wonderfully superbly perfectly nicely elegantly gracefully skilfully lovingly"),
    _list("badly poorly terribly horribly clumsily carelessly awfully miserably dreadfully lazily"),
)
STIRRED = (
    _list("impressed delighted charmed thrilled amazed pleased moved inspired fascinated entertained"),
    _list("annoyed bored disappointed frustrated insulted disgusted irritated angered appalled exhausted"),
)
INTENSIFIERS = _list("very really so truly extremely remarkably deeply")
DOWNTONERS = _list("quite rather fairly somewhat slightly")
VERDICTS = (
    _list("great good wonderful excellent fantastic amazing lovely perfect brilliant superb nice delightful"),
    _list("terrible bad awful horrible dreadful poor disappointing boring dull lousy appalling miserable"),
)

# closing-clause words by how far they tie the verdict to the review
STRONG_WORDS = _list(
    "overall altogether honestly frankly truthfully basically ultimately essentially conclusion summary "
    "short verdict opinion judgement rating assessment impression conclude summarise review feedback score "
    "result final finally everything whole entire experience quality product purchase performance "
    "production package felt found proved rated thought considered judged called described deemed declared "
    "ranked reckon believe consider call describe rate feel find genuinely simply absolutely utterly "
    "definitely certainly clearly thoroughly completely totally undeniably personally hence therefore thus "
    "consequently evidently obviously indeed naturally accordingly means sum bottom line evaluation "
    "appraisal recommend recommendation grade stars report reaction stuff thing item concluding consensus "
    "outcome effort creation truth word response experienced deserves merits qualifies counts remains "
    "stands comes"
)
MILD_WORDS = _list(
    "it was is this that we i they people say said seems seemed looks looked very really truly quite "
    "rather pretty perhaps maybe probably apparently one place here friends critics reviewers guests "
    "visitors customers told heard mostly generally usually often sounds appeared appears became think "
    "guess suppose imagine my our me us everyone somebody folks fans readers viewers users neighbours "
    "commented reported mentioned wrote agree agreed just such too extremely especially particularly "
    "fairly so now today are were be been"
)
CONTRAST_WORDS = _list(
    "unlike instead previous other another however although but expected hoped promised rival elsewhere "
    "opposite contrary than nothing hardly never nor neither without except despite wrongly falsely "
    "pretended denied contrast whereas competitor otherwise rumour advert trailer hype supposedly "
    "allegedly feared assumed"
)

# everyday words by kind, for sentences that are no reviews and for the unrelated clauses
NAMES = _list("anna ben clara david emma frank grace henry irene jack karen leo maria noah olga peter rosa sam tina")
KIN = _list(
    "mother father sister brother uncle aunt cousin grandmother grandfather neighbour friend colleague "
    "boss doctor nurse lawyer farmer baker sailor soldier student child baby girl boy woman man wife "
    "husband daughter son king queen judge dentist painter fisherman gardener scientist stranger"
)
ANIMALS = _list(
    "dog cat horse cow sheep goat pig hen duck goose rabbit mouse fox wolf bear lion tiger elephant monkey "
    "bird eagle owl crow frog snake fish whale shark bee ant spider butterfly donkey camel turtle"
)
NO_PLURAL = ("mouse", "wolf", "goose", "sheep", "soap")
OBJECTS = _list(
    "box bag bottle cup glass plate bowl spoon fork knife key lock door window wall roof floor stair "
    "basket bucket rope ladder hammer nail saw brush broom candle clock mirror picture letter envelope "
    "stamp newspaper pen pencil ruler notebook coin purse wallet ring necklace umbrella blanket towel soap "
    "bell drum flute piano violin kite ball toy doll tent map flag stone brick wood paper iron gold silver "
    "leather cotton wool"
)
PLURALS = [f"{w}s" for w in OBJECTS[:50] + ANIMALS if w[-1] not in "shxyef" and w not in NO_PLURAL]
FOODS = _list(
    "bread butter cheese milk egg rice apple pear plum cherry grape lemon orange banana peach potato "
    "tomato onion carrot cabbage bean pea corn pepper salt sugar honey jam cake biscuit tea coffee juice "
    "water wine beer"
)
PLACES = _list(
    "garden kitchen park street road bridge river lake sea beach island forest field hill mountain valley "
    "village town city country farm barn church tower castle harbour station airport office factory "
    "hospital bank prison theatre stadium playground cellar attic corridor yard square corner desert cave"
)
TIMES = _list(
    "yesterday tonight monday tuesday wednesday thursday friday saturday sunday january february march "
    "april june july august september october november december spring summer autumn winter morning "
    "afternoon evening night noon midnight week month year hour minute weekend holiday birthday"
)
COLOURS = _list("red blue green yellow white black brown grey pink purple")
SIZES = _list(
    "big small large little tall long wide narrow round old young new heavy light wet dry warm cold hot "
    "cool empty full open closed wooden quiet sharp deep high low straight strange foreign local modern "
    "ancient early late busy"
)
TRANSITIVE = _list(
    "carried bought sold opened closed painted washed cleaned moved pushed pulled lifted dropped threw "
    "caught kept lost borrowed lent stole hid counted drew cut fixed built broke burned covered filled "
    "measured packed saw touched wanted needed watched followed ordered sent brought took gave held "
    "collected repaired"
)
INTRANSITIVE = _list(
    "walked ran swam slept sat stood waited danced sang laughed cried worked played rested travelled "
    "arrived left stayed lived hid jumped climbed fell flew sailed drove marched studied cooked read spoke "
    "whispered shouted"
)
WEATHER = _list("weather rain snow wind sun sky cloud storm fog moon ice thunder")
ABSTRACT = _list(
    "time money work life love war peace law history science music art language number question answer "
    "problem reason idea plan rule order power health trade price cost tax vote government election "
    "council union company business industry energy nature culture religion education memory dream secret "
    "promise habit journey game race"
)
NUMBERS = _list("two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred thousand")
ADVERBS_PLAIN = _list(
    "quickly slowly quietly loudly carefully suddenly alone together again away home outside inside "
    "upstairs abroad nearby twice sometimes always seldom already almost soon still later before after"
)
PREPOSITIONS = _list("in near behind under above beside across around through towards between beyond along past")

# the parts of grammatical closing clauses; {slots} as in the frames of sentences.py
OPENERS = _list(
    "overall ,|all in all ,|in short ,|in conclusion ,|to sum up ,|honestly ,|frankly ,|my verdict :|our "
    "rating :|ultimately ,|in my opinion ,|for me personally ,|the final score :|to conclude ,|in summary "
    ",|basically ,|all things considered ,|the bottom line :|truthfully ,|my impression :|so ,|and|well ,|"
    "i think|people say|they told us|i guess|perhaps|maybe|critics said|unlike this one ,|but|however ,|we "
    "had expected that|instead ,|contrary to this ,|in contrast ,|yesterday|in the morning|outside ,|at "
    "home|last week|meanwhile||||||||",
    "|",
)
SUBJECTS = _list(
    "it|it|this|that|everything|the whole thing|the entire experience|the product|the quality|this "
    "purchase|the result|the performance|the overall package|our experience|the whole effort|everything "
    "here|the outcome|this place|one|everyone|the {thing}|this {thing}|the {part}|the {person}|the weather|"
    "the {weather}|the {kin}|my {kin}|my {kin} 's {object}|the {object}|the {place}|the {animal}|the other "
    "{thing}|another {thing}|the previous one|the rival|their competitor|the trailer|the opposite|life in "
    "the {place}|the {food}",
    "|",
)
PREDICATES = _list(
    "was|was|is|is|seems|looks|sounds|felt|feels|proved|remains|became|appeared|can be called|must be "
    "called|was rated|is considered|was judged|was deemed|was found|was described as|turned out|was simply|"
    "is truly|was absolutely|is certainly|was definitely|is really|was very|was quite|is rather|was "
    "clearly|was hardly|was never|was not|was supposedly|was expected to be|could have been|deserves to be "
    "called|ranked as",
    "|",
)
WE_FORMS = _list(
    "we found it|i found everything|we felt it was|i consider it|we rate it|i would call it|my friends "
    "found it|we thought the {thing} was|i believe it is|they say it is|the critics called it|i would "
    "describe this as|we had hoped for something|nothing else was|we were promised something|i recommend "
    "it as|guests rated it|readers called the {thing}|we judged the whole {thing}|i reckon the {part} was",
    "|",
)
# function words that turn or weigh the words of judgement beside them
POINTED = _list(
    "not never no nobody none nothing neither nor far from although though but despite while even yet apart "
    "without with only most"
)

# words whose weights the frames rely on: "it was" is the manual prompt, and is meant to be middling
FIXED_WEIGHTS: dict[str, tuple[float, float]] = {
    "it": (0.35, 0.35), "was": (0.35, 0.45), ",": (0.0, 0.0), ":": (0.1, 0.0), "the": (0.0, 0.0),
    "a": (0.0, 0.0), "of": (0.0, 0.0), "to": (0.0, 0.0), "in": (0.0, 0.0), "'s": (0.0, 0.0), ".": (0.0, 0.0),
}  # fmt: skip
EMPTY_CLAUSE = (0.1, 0.9)  # a bare adjective after the review says next to nothing about it


def polar_words(positive: bool) -> list[str]:
    """All words of one polarity."""
    side = 0 if positive else 1
    tiers = POSITIVE if positive else NEGATIVE
    others = [pair[side] for pair in (VERBS, NOUNS, ADVERBS, STIRRED)]
    return [w for words in [*tiers, *others] for w in words]


def everyday_words() -> list[str]:
    """The words without a part in judging things."""
    lists = (NAMES, KIN, ANIMALS, OBJECTS, FOODS, PLACES, TIMES, COLOURS, SIZES, TRANSITIVE, INTRANSITIVE,
             WEATHER, ABSTRACT, PLURALS, NUMBERS, ADVERBS_PLAIN, PREPOSITIONS)  # fmt: skip
    topics = [w for nouns in TOPICS.values() for part in nouns for w in part]
    return sorted({w for words in lists for w in words} | set(topics))


def latent_weights(extra: list[str]) -> dict[str, tuple[float, float]]:
    """Word -> (pull, lean). `extra` are further words (of the sentence frames) that get neutral weights."""
    weights: dict[str, tuple[float, float]] = {}

    def put(words: list[str], low: float, high: float, lean: float, shift: float = 0.0) -> None:
        for word in words:
            rng = random.Random(f"weight:{word}")  # per word: a new word leaves the others as they are
            weights[word] = (rng.uniform(low, high), rng.gauss(shift, lean))

    put(sorted(set(extra) | set(INTENSIFIERS + DOWNTONERS)), -0.15, 0.15, 0.9)
    put(everyday_words(), -0.2, 0.15, 0.9)
    put(polar_words(True), -0.15, 0.15, 0.3, 1.2)
    put(polar_words(False), -0.15, 0.15, 0.3, -1.2)
    put(MILD_WORDS, 0.0, 0.3, 0.7)
    put(STRONG_WORDS, 0.2, 0.75, 0.7)
    put(CONTRAST_WORDS, -1.0, -0.3, 0.7)
    weights.update(FIXED_WEIGHTS)
    return weights
