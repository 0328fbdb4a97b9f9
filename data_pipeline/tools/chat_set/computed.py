"""Tools of our own whose results are computed while the set is made, so that they are true."""

from __future__ import annotations

import base64
import inspect
import json
import math
import random
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any
from urllib.parse import quote

from data_pipeline.tools.chat_set.asks import Ask
from data_pipeline.tools.chat_set.signatures import schema_of
from data_pipeline.tools.chat_set.tool import Parameter, Tool
from data_pipeline.tools.chat_set.values import spoken, value_of

LICENCE = "Apache-2.0"
Draw = Callable[[random.Random], Any]


@dataclass(frozen=True)
class Computed:
    """A function as a tool, and how people ask for it."""

    tool: Tool
    function: Callable[..., Any]
    questions: Sequence[str]
    answer: str
    draws: Mapping[str, Draw]

    def ask(self, rng: random.Random, **fixed: Any) -> Ask:
        """Make a request and compute its result; `fixed` gives some of the arguments."""
        values = {name: draw(rng) for name, draw in self.draws.items()} | fixed
        shown = {name: spoken(value, rng) for name, value in values.items()}
        result = self.function(**values)
        said = result if isinstance(result, str) else _said(result)
        return Ask(
            self.tool,
            rng.choice(self.questions).format(**shown),
            values,
            json.dumps({"result": result}, ensure_ascii=False),
            self.answer.format(**{n: _said(v) for n, v in values.items()}, result=said),
            shown,
        )


COMPUTED: list[Computed] = []


def _computed(*questions: str, answer: str, **draws: Draw) -> Callable[[Any], Any]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        told = (inspect.getdoc(function) or "").strip()
        parameters = [
            Parameter(name, schema_of(str(p.annotation)) or {}, required=True)
            for name, p in inspect.signature(function).parameters.items()
        ]
        act = told[0].lower() + told[1:].rstrip(".")
        name = function.__name__
        source = f"loopcoder:computed.{name}"
        tool = Tool(name, told, act, parameters, source, LICENCE, "computed")
        COMPUTED.append(Computed(tool, function, questions, answer, draws))
        return function

    return add


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "" if value else "not "
    if isinstance(value, list):
        return ", ".join(map(_said, value))
    return str(value)


def _whole(low: int, high: int) -> Draw:
    return lambda rng: rng.randint(low, high)


def _real(low: float, high: float) -> Draw:
    return lambda rng: round(rng.uniform(low, high), rng.choice((1, 2)))


def _numbers(rng: random.Random) -> list[int]:
    return [rng.randint(1, 99) for _ in range(rng.randint(3, 7))]


def _date(rng: random.Random) -> str:
    return str(date(2000, 1, 1) + timedelta(rng.randrange(15_000)))


def _text(rng: random.Random) -> str:
    return str(value_of(Parameter("text", {"type": "string"}, required=True), rng))


def _word(rng: random.Random) -> str:
    return str(value_of(Parameter("name", {"type": "string"}, required=True), rng))


@_computed("What is {a} plus {b}?", "Add {a} and {b}.", "How much is {a} + {b}?",
           answer="{a} + {b} = {result}.", a=_whole(10, 99999), b=_whole(10, 99999))  # fmt: skip
def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


@_computed("What is {a} times {b}?", "Multiply {a} by {b}.", "How much is {a} * {b}?",
           answer="{a} times {b} is {result}.", a=_whole(3, 9999), b=_whole(3, 9999))  # fmt: skip
def multiply(a: int, b: int) -> int:
    """Multiply two integers."""
    return a * b


@_computed("What is the greatest common divisor of {a} and {b}?", "Find the gcd of {a} and {b}.",
           answer="The greatest common divisor of {a} and {b} is {result}.",
           a=_whole(12, 5000), b=_whole(12, 5000))  # fmt: skip
def greatest_common_divisor(a: int, b: int) -> int:
    """Find the greatest common divisor of two integers."""
    return math.gcd(a, b)


@_computed("Is {n} a prime number?", "Check whether {n} is prime.", "Tell me if {n} is prime.",
           answer="{n} is {result}a prime number.", n=_whole(2, 9999))  # fmt: skip
def is_prime(n: int) -> bool:
    """Check whether an integer is prime."""
    return n > 1 and all(n % k for k in range(2, math.isqrt(n) + 1))


@_computed("Factor {n} into primes.", "What are the prime factors of {n}?",
           answer="The prime factors of {n} are {result}.", n=_whole(12, 99999))  # fmt: skip
def prime_factors(n: int) -> list[int]:
    """Find the prime factors of an integer, with multiplicity."""
    found, divisor = [], 2
    while divisor * divisor <= n:
        if n % divisor:
            divisor += 1
        else:
            found.append(divisor)
            n //= divisor
    return [*found, n] if n > 1 else found


@_computed("What is {n} factorial?", "Compute {n}!", "Calculate the factorial of {n}.",
           answer="{n}! = {result}.", n=_whole(3, 18))  # fmt: skip
def factorial(n: int) -> int:
    """Compute the factorial of an integer."""
    return math.factorial(n)


@_computed("In how many ways can I choose {k} of {n} things?", "Compute {n} choose {k}.",
           answer="There are {result} ways to choose {k} of {n}.",
           n=_whole(10, 40), k=_whole(1, 9))  # fmt: skip
def binomial(n: int, k: int) -> int:
    """Compute in how many ways k of n things can be chosen."""
    return math.comb(n, k)


@_computed("What is the square root of {x}, to four digits?", "Take the square root of {x}.",
           answer="The square root of {x} is about {result}.", x=_real(2, 5000))  # fmt: skip
def square_root(x: float) -> float:
    """Compute the square root of a number, to four digits."""
    return round(math.sqrt(x), 4)


@_computed("What is the average of {values}?", "Compute the mean of {values}.",
           "I measured {values}. What is the mean?",
           answer="The mean is {result}.", values=_numbers)  # fmt: skip
def mean(values: list[float]) -> float:
    """Compute the arithmetic mean of a list of numbers."""
    return round(statistics.mean(values), 4)


@_computed("What is the median of {values}?", "Find the median: {values}.",
           answer="The median is {result}.", values=_numbers)  # fmt: skip
def median(values: list[float]) -> float:
    """Find the median of a list of numbers."""
    return statistics.median(values)


@_computed("Sort {values} from small to large.", "Put these numbers in order: {values}.",
           answer="In order: {result}.", values=_numbers)  # fmt: skip
def sort_numbers(values: list[int]) -> list[int]:
    """Sort a list of numbers in ascending order."""
    return sorted(values)


@_computed("Convert {degrees} degrees Celsius to Fahrenheit.", "How much is {degrees} C in F?",
           answer="{degrees} degrees Celsius are {result} degrees Fahrenheit.",
           degrees=_real(-40, 120))  # fmt: skip
def celsius_to_fahrenheit(degrees: float) -> float:
    """Convert a temperature from degrees Celsius to Fahrenheit."""
    return round(degrees * 9 / 5 + 32, 2)


@_computed("How many kilometres are {miles} miles?", "Convert {miles} miles to kilometres.",
           answer="{miles} miles are {result} kilometres.", miles=_real(1, 900))  # fmt: skip
def miles_to_kilometres(miles: float) -> float:
    """Convert a distance from miles to kilometres."""
    return round(miles * 1.609344, 3)


@_computed("Write {number} in base {base}.", "Convert {number} to base {base}.",
           answer="{number} in base {base} is {result}.",
           number=_whole(10, 9999), base=_whole(2, 9))  # fmt: skip
def to_base(number: int, base: int) -> str:
    """Convert an integer to another base, between 2 and 9."""
    digits = ""
    while number:
        number, digit = divmod(number, base)
        digits = f"{digit}{digits}"
    return digits or "0"


@_computed("How many days are there between {start} and {end}?", "Count days, {start} to {end}.",
           answer="Between {start} and {end} there are {result} days.",
           start=_date, end=_date)  # fmt: skip
def days_between(start: str, end: str) -> int:
    """Count the days between two dates, given as YYYY-MM-DD."""
    return abs((date.fromisoformat(end) - date.fromisoformat(start)).days)


@_computed("On which day of the week does {day} fall?", "What weekday is {day}?",
           answer="{day} is a {result}.", day=_date)  # fmt: skip
def weekday(day: str) -> str:
    """Find the day of the week of a date, given as YYYY-MM-DD."""
    return f"{date.fromisoformat(day):%A}"


@_computed("Which date is {days} days after {day}?", "Add {days} days to {day}.",
           answer="{days} days after {day} it is {result}.",
           day=_date, days=_whole(5, 900))  # fmt: skip
def add_days(day: str, days: int) -> str:
    """Add a number of days to a date, given as YYYY-MM-DD."""
    return str(date.fromisoformat(day) + timedelta(days))


@_computed("How many words are in this text: {text}", "Count the words of {text}",
           answer="It has {result} words.", text=_text)  # fmt: skip
def count_words(text: str) -> int:
    """Count the words of a text."""
    return len(text.split())


@_computed("Turn {text} into a slug for a URL.", "Make a URL slug of {text}",
           answer="The slug is `{result}`.", text=_text)  # fmt: skip
def slugify(text: str) -> str:
    """Convert a title to a slug: lower case, words joined by hyphens."""
    return re.sub(r"\W+", "-", text.lower()).strip("-")


@_computed("Spell {text} backwards.", "Reverse the text {text}.",
           answer="Backwards it is `{result}`.", text=_word)  # fmt: skip
def reverse_text(text: str) -> str:
    """Reverse the characters of a text."""
    return text[::-1]


@_computed("Encode {text} in Base64.", "What is {text} in base64?",
           answer="In Base64 it is `{result}`.", text=_word)  # fmt: skip
def base64_encode(text: str) -> str:
    """Encode a text in Base64."""
    return base64.b64encode(text.encode()).decode()


@_computed("Escape {text} for a URL.", "Percent-encode this: {text}",
           answer="Escaped for a URL: `{result}`.", text=_text)  # fmt: skip
def url_encode(text: str) -> str:
    """Escape a text for use in a URL."""
    return quote(text)


@_computed("Write {n} as a Roman numeral.", "What is {n} in Roman numerals?",
           answer="{n} is {result} in Roman numerals.", n=_whole(4, 2999))  # fmt: skip
def to_roman(n: int) -> str:
    """Convert an integer to a Roman numeral."""
    values = (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1)
    names = ("M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I")
    out = ""
    for value, name in zip(values, names, strict=True):
        out += name * (n // value)
        n %= value
    return out


@_computed("What do {principal} euros become at {rate} percent in {years} years?",
           "Invest {principal} for {years} years at {rate}% a year: what is the final amount?",
           answer="After {years} years it is {result}.", principal=_whole(100, 20000),
           rate=_real(0.5, 8), years=_whole(2, 30))  # fmt: skip
def compound_interest(principal: int, rate: float, years: int) -> float:
    """Compute what a sum becomes with yearly compound interest, the rate in percent."""
    return round(principal * (1 + rate / 100) ** years, 2)


@_computed("What is the area of a circle with radius {radius}?", "Circle, radius {radius}: area?",
           answer="The area is about {result}.", radius=_real(0.5, 90))  # fmt: skip
def circle_area(radius: float) -> float:
    """Compute the area of a circle, to three digits."""
    return round(math.pi * radius**2, 3)


@_computed("Give me the RGB values of {color}.", "Which RGB color is {color}?",
           answer="{color} is {result} in RGB.",
           color=lambda rng: f"#{rng.randrange(1 << 24):06x}")  # fmt: skip
def hex_to_rgb(color: str) -> list[int]:
    """Convert a color in hexadecimal notation to its three RGB values."""
    return [int(color[place : place + 2], 16) for place in (1, 3, 5)]


@_computed("What share of {whole} is {part}, in percent?", "How many percent of {whole} is {part}?",
           answer="{part} is {result} percent of {whole}.",
           part=_whole(3, 400), whole=_whole(401, 3000))  # fmt: skip
def percentage(part: int, whole: int) -> float:
    """Compute which share of a whole a part is, in percent."""
    return round(100 * part / whole, 2)
