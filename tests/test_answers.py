"""Extractors and scorers: what counts as the answer in a completion."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from rayprompt.answers import Judge, get_extractor
from rayprompt.errors import InputError, ScoringError
from rayprompt.numerals import canonical, last_number, last_plain_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,234", "1234"),
        ("$5.00.", "5"),
        ("-3", "-3"),
        ("none", None),
        ("", None),
        ("it is -$4.50", "-4.5"),
        ("\u22127 degrees", "-7"),
        ("10-3", "3"),  # a difference, not a negative number
        ("5 - 3", "3"),
        ("(4)-2", "2"),
        ("12. So the answer is 13.", "13"),
        ("1,2,3", "3"),
        ("1,2345", "2345"),
        ("1,000,000.25 dollars", "1000000.25"),
        (".5", "0.5"),
        ("3/4", "0.75"),
        ("16/3", "16/3"),
        ("5 1/3", "16/3"),
        ("-5 1/2.", "-5.5"),
        ("6/2 pies", "3"),
        ("\\boxed{\\frac{1}{2}}", "0.5"),
        ("2\\frac{1}{4}", "2.25"),
        ("12/25/2020", "2020"),  # a date
        ("1,234 1/2", "1234.5"),
        ("10^3", "1000"),
        ("2^{10}", "1024"),
        ("1.5 x 10^3 m", "1500"),
        ("1.5\\times 10^{-3}", "0.0015"),
        ("25 cm^2", "25"),
        ("2^-1", "0.5"),
        ("1 234", "1234"),
        ("1 234 567,5", "1234567.5"),
        ("5 000", "5000"),
        ("300 300", "300"),  # said again
        ("9 9", "9"),
        ("\\boxed{1\\,234}", "1234"),
        ("5%-7%", "7"),
        ("$10$-$20$", "20"),
        ("is $-5$", "-5"),
        ("x = - 5", "-5"),
        ("_-5_", "-5"),
        ("007", "7"),
        ("50%", "50"),
        ("no. 5a", "5"),
        ("x" * 50 + "42", "42"),
        ("so ...5", "5"),
        ("1e5", "100000"),
        ("1.5e3 m", "1500"),
        ("3em", "3"),
        ("1{,}234", "1234"),
        ("1\u202f000\u202f000", "1000000"),
        ("\u20133", "-3"),
        ("3\u20135", "5"),
    ],
)
def test_last_numbers(text: str, number: str | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("1,234.50", "1234.5"),
        ("2/6", "1/3"),
        ("5\u00bd", "5.5"),
        ("yes/no", "yes/no"),
        ("1/0", "1/0"),
        (" a b ", "a b"),
    ],
)
def test_a_number_in_one_way_of_writing_it(text: str, written: str) -> None:
    assert canonical(text) == written


def test_the_rule_of_prompt_oirl_knows_neither_commas_nor_signs() -> None:
    assert [last_plain_number(t) for t in ("1,234", "-3", "$5.00.", "none")] == ["234", "3", "5", None]


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("exact", " The  Cat. ", "the cat"),
        ("exact", "...", None),
        ("first-line", "\n\n yes, it is \nno", "yes, it is"),
        ("regex:#### (.+)", "so #### 1 and\n#### 2,000", "2,000"),
        ("regex:[A-D]", "A or C", "c"),
        ("regex:x(y)?(z)", "xz", "z"),
        ("regex:q", "none", None),
        ("choice:yes,no", "No, yes", "no"),
        ("last-choice:yes,no", "No, yes", "yes"),
        ("choice:yes,no", "nobody yesterday", None),
        ("choice:A,B,C,D", "a cat: (B)", "B"),
        ("choice:very good,good", "it is very good", "very good"),
        ("choice:c++,c", "C++ it is", "c++"),
        ("choice:Straße,Weg", "die straße.", "Straße"),
        ("exact", "**-5.**", "-5"),
        ("exact", ".5", ".5"),
        ("exact", "(C#)", "c#"),
    ],
)
def test_extractors(name: str, text: str, answer: str | None) -> None:
    assert Judge.of(name).answer(text) == answer


@pytest.mark.parametrize(
    ("extractor", "scorer", "completion", "gold", "value"),
    [
        ("last-number", "match", "it is 1,234.0", "1234", 1.0),
        ("exact", "match", "1,234", "1234.0", 1.0),
        ("exact", "match", "Paris.", "paris", 1.0),
        ("exact", "match", "in Paris", "paris", 0.0),
        ("exact", "contains", "in Paris", "paris", 1.0),
        ("exact", "contains", "comparison", "paris", 0.0),
        ("exact", "f1", "the cat sat", "a cat ran", 0.5),
        ("exact", "f1", "nothing", "cat", 0.0),
        ("last-number", "match", "none", "3", 0.0),
        ("exact", "match", "nan", "nan", 1.0),
        ("exact", "match", "1,2", "12", 0.0),  # two answers
        ("exact", "match", "1_2", "12", 0.0),
        ("exact", "match", "12,34,567.0", "1234567", 1.0),
        ("exact", "match", "\u22125", "-5", 1.0),
        ("exact", "match", "5.", "5", 1.0),
        ("last-number", "match", "5\u2153", "16/3", 1.0),
        ("exact", "match", "nan", "inf", 0.0),
    ],
)
def test_values(extractor: str, scorer: str, completion: str, gold: str, value: float) -> None:
    judge = Judge.of(extractor, scorer)
    wanted = judge.extractor.gold(gold)
    assert wanted is not None
    assert judge.values([completion, None], [wanted, wanted])[0] == value
    assert math.isnan(judge.values([None], [wanted])[0])  # no answer is not a wrong one


@pytest.mark.parametrize(
    ("extractor", "scorer", "message"),
    [
        ("last-numbr", "match", "unknown extractor 'last-numbr' .did you mean 'last-number'"),
        ("regex:(", "match", "regex:.: missing .* in the pattern"),
        ("choice:yes", "match", "needs two or more choices, as choice:yes,no"),
        ("choice:yes,Yes", "match", "needs two or more choices"),
        ("no.such.module:f", "match", "extractor no.such.module:f: cannot be imported"),
        ("math:pi", "match", "is float, not a function"),
        ("exact", "matches", "unknown answer scorer 'matches'.*did you mean 'match'"),
        ("exact", "math:nope", "answer-scorer math:nope: cannot be imported"),
    ],
)
def test_bad_names_get_one_line(extractor: str, scorer: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Judge.of(extractor, scorer)
    assert "\n" not in str(caught.value)


def test_functions_come_from_code_and_never_from_a_file() -> None:
    judge = Judge.of("textwrap:dedent", "operator:eq")
    assert judge.values(["  a"], ["a"])[0] == 1.0
    for names in (("textwrap:dedent", "match"), ("exact", "operator:eq")):
        with pytest.raises(InputError, match="it comes from code or the command line .*, never from a file"):
            Judge.of(*names, code=False)


def test_a_function_that_raises_says_on_what() -> None:
    with pytest.raises(ScoringError, match="extractor operator:neg on 'abc': raised TypeError"):
        Judge.of("operator:neg").values(["abc"], ["abc"])
    with pytest.raises(ScoringError, match="gave int, not a text or None"):
        Judge.of("builtins:len").answer("abc")
    with pytest.raises(ScoringError, match="answer scorer operator:add on 'abc'"):
        Judge.of("exact", "operator:add").values(["abc"], ["abc"])


def test_the_version_is_part_of_the_identity() -> None:
    assert Judge.of("last-number").id == "last-number/3 match/3"
    assert get_extractor("choice:a,b").id == "choice:a,b/3"


def test_labels_of_prompt_oirl_are_those_of_its_rule(shared: Path) -> None:
    """GSM8K test, 16 prompts, LLaMA-2: an answer is right where the last number is the gold one."""
    folder = shared / "data" / "prompt-oirl"
    answers = pd.read_parquet(folder / "answers.parquet")
    labels = pd.read_parquet(
        folder / "demonstrations.parquet", columns=["dataset", "query_uid", "prompt_id", "correct"]
    )
    labels = labels[labels["dataset"] == "gsm8k"].astype({"query_uid": str})
    both = answers.astype({"query_uid": str, "gold": str}).merge(labels, on=["query_uid", "prompt_id"])
    assert len(both) == 16_000
    judge = Judge.of("last-plain-number")
    values = judge.values(both["answer"].fillna("").tolist(), [judge.extractor.gold(g) or "" for g in both["gold"]])
    # Its rule read gold answers without commas too: there "70,000" was "000".
    same = values == both["correct"]
    assert same.mean() > 0.996
    assert same[both["gold"].str.len() < 4].mean() > 0.999
    aware = Judge.of("last-number")
    better = aware.values(both["answer_comma_aware"].fillna("").tolist(), both["gold"].tolist())
    assert better.mean() > values.mean()
