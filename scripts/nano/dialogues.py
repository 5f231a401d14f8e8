"""Seeded generator of the chats that q35-nano learns from, and of its evaluation dialogues.

A conversation is {"system": str | None, "turns": [Turn], "thinking": bool}. Values that must be copied or
computed (names, places, numbers, sums) are split by hash: `crc32(value) % 20` is 0 for the public evaluation
set, 1 for a private one, and the rest trains. Closed tables (definitions, capitals, words, products) are not split.

    python dialogues.py show SEED COUNT
    python dialogues.py eval public 20261 ../../crates/nano/eval/dialogues.jsonl
"""
import json
import random
import sys
import zlib
from dataclasses import dataclass

import phrases as C


@dataclass
class Turn:
    user: str
    reply: str
    think: str = ""
    expect: str = ""  # what an eval looks for in the reply
    kind: str = ""


def in_split(value, split):
    bucket = zlib.crc32(str(value).encode()) % 20
    return {"train": bucket > 1, "public": bucket == 0, "private": bucket == 1}[split]


ONSETS = "b c d f g h j k l m n p r s t v w z br ch cl dr fl gr kr pl sh st th tr".split()
CASUAL = set("My I'm I Hi Call Hello What What's Who Where How Do Tell Explain Define Calculate Which Make Thanks Bye".split())
VOWELS = "a e i o u a e i o ai ea ia io ou".split()
CODAS = ["", "", "", "", "l", "m", "n", "r", "s", "t", "x", "ck", "nd"]


class Maker:
    def __init__(self, seed, split="train"):
        self.rng = random.Random(seed)
        self.split = split
        self.definitions = [[p.strip() for p in line.split(" | ")] for line in C.DEFINITIONS.splitlines()]
        self.known = {word for term, _, _ in self.definitions for word in term.split(" ")}
        self.jokes = C.JOKES.splitlines()
        self.capitals = []
        for entry in C.CAPITALS.split(";"):
            country, city = entry.split(":") if ":" in entry else entry.rsplit(" ", 1)
            self.capitals.append((country.strip(), city.strip()))
        self.words = [[w.replace("_", " ") for w in row.split(" ")] for row in C.WORDS.split("|")]
        self.opposites = [p.split(" ") for p in C.OPPOSITES.split(";")]
        self.colours = [entry.rsplit(" ", 1) for entry in C.COLOURS.split(";")]

    # ---- values -------------------------------------------------------
    def pick(self, options):
        return options[self.rng.randrange(len(options))]

    def held(self, draw):
        """Draw until the value belongs to this split."""
        while True:
            value = draw()
            if in_split(value, self.split):
                return value

    def made_up(self):
        parts = [self.pick(ONSETS) + self.pick(VOWELS) for _ in range(self.rng.choice((2, 2, 2, 3)))]
        return ("".join(parts) + self.pick(CODAS)).capitalize()

    def spliced(self):
        """The start of one real name and the end of another: spellings that no list has, for copying to be learnt."""
        first, second = self.pick(C.FIRST_NAMES + C.CITIES), self.pick(C.FIRST_NAMES + C.CITIES)
        word = first[:self.small(1, len(first))] + second[self.small(1, len(second) - 1):].lower()
        return word[0].upper() + word[1:]

    def name(self):
        if self.split == "train" and self.rng.random() < 0.25:
            return self.held(self.spliced)
        return self.held(lambda: self.pick(C.FIRST_NAMES) if self.rng.random() < 0.5 else self.made_up())

    def place(self):
        return self.held(lambda: self.pick(C.CITIES) if self.rng.random() < 0.6 else self.made_up())

    def number(self, low, high):
        return self.held(lambda: self.rng.randint(low, high))

    def small(self, low, high):
        return self.rng.randint(low, high)

    def some(self, options, low, high):
        return self.rng.sample(options, self.rng.randint(low, high))

    # ---- memory -------------------------------------------------------
    def facts(self):
        """(statement, reply, question, answer, value) for one remembered thing."""
        kind = self.pick(["name"] * 5 + ["city", "colour", "number", "pet", "food", "age", "job", "friend", "hobby", "code"])
        p = self.pick
        if kind == "name":
            v = self.name()
            say = p([f"My name is {v}", f"My name is {v}.", f"I'm {v}.", f"Hi, I am {v}.", f"Call me {v}.", f"Hello! My name is {v}."])
            return kind, say, f"Nice to meet you, {v}!", p(["What's my name?", "What is my name?", "Do you remember my name?", "Who am I?", "Can you tell me my name?"]), f"Your name is {v}!", v
        if kind == "city":
            v = self.place()
            return kind, p([f"I live in {v}.", f"My home is in {v}.", f"My city is {v}."]), f"{v} sounds like a nice place!", p(["Where do I live?", "What city do I live in?", "Which city is my home?"]), f"You live in {v}.", v
        if kind == "colour":
            v = p(C.COLOUR_NAMES)
            return kind, p([f"My favourite colour is {v}.", f"I like {v} best of all colours.", f"My favorite color is {v}."]), f"{v.capitalize()} is a lovely colour!", p(["What is my favourite colour?", "Which colour do I like best?", "What's my favorite color?"]), f"Your favourite colour is {v}.", v
        if kind in ("number", "code"):
            v = str(self.number(10, 9999))
            word = "secret number" if kind == "number" else "code"
            return kind, p([f"My {word} is {v}.", f"Remember this {word}: {v}.", f"The {word} is {v}."]), f"Okay, I will remember {v}.", p([f"What is my {word}?", f"What was the {word}?", f"Tell me the {word}."]), f"The {word} is {v}.", v
        if kind == "pet":
            v, animal = self.name(), p(C.PET_KINDS)
            return kind, p([f"My {animal} is called {v}.", f"I have a {animal} named {v}.", f"My {animal}'s name is {v}."]), f"{v} is a great name for a {animal}!", p([f"What is my {animal} called?", f"What is my {animal}'s name?", "What is the name of my pet?"]), f"Your {animal} is called {v}.", v
        if kind == "food":
            v = p(C.FOODS)
            return kind, p([f"My favourite food is {v}.", f"I love eating {v}."]), "Yum, that sounds tasty!", p(["What is my favourite food?", "What do I love eating?"]), f"Your favourite food is {v}.", v
        if kind == "age":
            v = str(self.small(5, 99))
            return kind, p([f"I am {v} years old.", f"My age is {v}."]), f"{v} is a great age!", p(["How old am I?", "What is my age?"]), f"You are {v} years old.", v
        if kind == "job":
            v = p(C.JOBS)
            article = "an" if v[0] in "aeiou" else "a"
            return kind, p([f"I work as {article} {v}.", f"I am {article} {v}."]), "That sounds like interesting work!", p(["What is my job?", "What do I do for work?"]), f"You are {article} {v}.", v
        if kind == "friend":
            v = self.name()
            who = p(["best friend", "brother", "sister", "boss", "teacher", "neighbour"])
            return kind, p([f"My {who} is {v}.", f"My {who}'s name is {v}."]), f"Say hello to {v} from me!", p([f"What is my {who}'s name?", f"Who is my {who}?"]), f"Your {who} is {v}.", v
        v = p(C.HOBBIES)
        return "hobby", p([f"My hobby is {v}.", f"I enjoy {v}."]), f"{v.capitalize()} is fun!", p(["What is my hobby?", "What do I enjoy?"]), f"Your hobby is {v}.", v

    def memory(self, fillers, want=None):
        """State facts, talk about other things, ask for the facts."""
        told, turns = {}, []
        for _ in range(self.rng.choice((1, 1, 1, 2, 2, 3))):
            while True:
                fact = self.facts()
                if want and not told and fact[0] != want:
                    continue
                if fact[3] not in {t[3] for t in told.values()} and fact[0] not in told:
                    break
            told[fact[0]] = fact
            turns.append(Turn(fact[1], fact[2], expect=fact[5], kind="told"))
            if self.rng.random() < 0.3 and fillers:
                turns.append(self.filler())
        if not want and "name" in told and self.rng.random() < 0.12:
            new = self.name()
            turns.append(Turn(self.pick([f"Actually, call me {new}.", f"Sorry, my name is {new}."]), f"Nice to meet you, {new}!", expect=new))
            told["name"] = told["name"][:4] + (f"Your name is {new}!", new)
        turns += [self.filler() for _ in range(fillers)]
        asked = list(told.values())
        if not want:
            self.rng.shuffle(asked)
        for fact in asked[:1] if want else asked:
            turns.append(Turn(fact[3], fact[4], expect=fact[5], kind="recall"))
        return turns

    def unknown(self):
        """Questions whose only honest answer is that it does not know."""
        roll = self.rng.random()
        if roll < 0.35:
            word = self.held(self.made_up).lower()
            if self.rng.random() < 0.5:
                word = self.pick([w for w in C.ITEMS + C.OBJECTS + C.FOODS + C.HOBBIES if w not in self.known])
            return Turn(self.pick([f"What is {word}?", f"What is a {word}?", f"Explain {word}.", f"Tell me about {word}.", f"Define {word}."]), "I don't know that word yet.")
        if roll < 0.45:
            land = self.held(self.made_up)
            return Turn(self.pick([f"What is the capital of {land}?", f"Capital of {land}?"]), "I don't know that country.")
        return self.pick([
            Turn("What's my name?", "I don't know your name yet."), Turn("What is my name?", "I don't know your name yet."),
            Turn("Do you remember my name?", "I don't know your name yet."), Turn("Who am I?", "I don't know your name yet."),
            Turn("Where do I live?", "I don't know where you live yet."), Turn("How old am I?", "I don't know your age yet."),
            Turn("What is my favourite colour?", "I don't know your favourite colour yet."),
            Turn("What is my secret number?", "You have not told me your secret number yet."),
            Turn("What is my job?", "I don't know your job yet.")])

    # ---- single skills ------------------------------------------------
    def define(self, brief):
        term, short, more = self.pick(self.definitions)
        bare = term.split(" ", 1)[1] if term.split(" ")[0] in ("a", "an", "the") else term
        ask = self.pick([f"What is {term}?", f"Explain {term}", f"What is {term}?", f"Explain {term}.", f"Tell me about {term}.", f"Define {bare}."])
        return Turn(ask, short if brief else f"{short} {more}", expect=short, kind="define")

    def joke(self):
        return Turn(self.pick(["Tell me a joke", "Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Tell me another joke."]), self.pick(self.jokes), kind="joke")

    def arithmetic(self, operation=None, thinking=False):
        while True:
            op = operation or self.pick("+++--*")
            if op == "*":
                a, b = self.small(0, 12), self.small(0, 12)
            else:
                top = self.rng.choice((10, 20, 100, 100))
                a, b = self.small(0, top - 1), self.small(0, top - 1)
            if op == "-" and b > a:
                a, b = b, a
            if op == "*" and self.split == "train" or in_split(f"{a}{op}{b}", self.split):
                break
        value = {"+": a + b, "-": a - b, "*": a * b}[op]
        sign = {"+": "+", "-": "-", "*": self.pick(["*", "×", "x"])}[op]
        word = {"+": "plus", "-": "minus", "*": "times"}[op]
        ask = self.pick([f"What is {a} {sign} {b}?", f"{a} {sign} {b} = ?", f"What is {a} {word} {b}?", f"Calculate {a} {sign} {b}.", f"What is {a} {sign} {b}?"])
        sign = "×" if op == "*" else sign
        return Turn(ask, f"{a} {sign} {b} = {value}", self.steps(a, b, op, value) if thinking else "", str(value), "sum")

    @staticmethod
    def steps(a, b, op, value):
        if op == "*":
            if min(a, b) < 2:
                return f"Multiply {a} by {b}. The result is {value}."
            small, big = min(a, b), max(a, b)
            sums = [str(big * i) for i in range(1, small + 1)]
            return f"Count {big} {small} times: " + ", ".join(sums) + f". The result is {value}."
        a1, a0, b1, b0 = a // 10, a % 10, b // 10, b % 10
        if op == "+":
            ones = a0 + b0
            carry = ones // 10
            text = f"Ones: {a0} + {b0} = {ones}, write {ones % 10}, carry {carry}.\nTens: {a1} + {b1} + {carry} = {a1 + b1 + carry}.\n"
        else:
            borrow = 1 if a0 < b0 else 0
            text = f"Ones: {a0 + 10 * borrow} - {b0} = {a0 + 10 * borrow - b0}, borrow {borrow}.\nTens: {a1} - {b1} - {borrow} = {a1 - b1 - borrow}.\n"
        return text + f"The result is {value}."

    def as_json(self):
        p = self.pick
        a, b = self.name(), self.name()
        n, m = self.number(1, 99), self.number(1, 99)
        city, food, job = self.place(), p(C.FOODS), p(C.JOBS)
        items = self.some(C.ITEMS, 2, 4)
        article = "an" if job[0] in "aeiou" else "a"
        joined = ", ".join(items[:-1]) + " and " + items[-1]
        ask, value = p([
            (f"Reply in JSON with name and age: {a} is {n}.", {"name": a, "age": n}),
            (f"Reply in JSON with name and age: {a} is {n} years old.", {"name": a, "age": n}),
            (f"Reply in JSON with name and city: {a} lives in {city}.", {"name": a, "city": city}),
            (f"Reply in JSON with name, age and city: {a} is {n} and lives in {city}.", {"name": a, "age": n, "city": city}),
            (f"Reply in JSON with name and job: {a} is {article} {job}.", {"name": a, "job": job}),
            (f"Reply in JSON with item and count: There are {n} {food}.", {"item": food, "count": n}),
            (f"Reply in JSON with a list called items: {joined}.", {"items": items}),
            (f"Reply in JSON with a list called people: {a} is {n} and {b} is {m}.", {"people": [{"name": a, "age": n}, {"name": b, "age": m}]}),
            (f"Reply in JSON with name and a nested pet: {a} has a cat called {b}.", {"name": a, "pet": {"kind": "cat", "name": b}}),
            (f"Reply in JSON with name and a nested address: {a} lives in {city}, house {n}.", {"name": a, "address": {"city": city, "house": n}}),
            (f"Reply in JSON with name and a list called likes: {a} likes {items[0]} and {items[1]}.", {"name": a, "likes": items[:2]}),
            (f"Reply in JSON with x and y: x is {n} and y is {m}.", {"x": n, "y": m}),
            (f"Reply in JSON with sender and receiver: {a} writes to {b}.", {"sender": a, "receiver": b}),
        ])
        text = json.dumps(value, ensure_ascii=False)
        return Turn(ask, text, expect=text, kind="json")

    def small_skill(self):
        p = self.pick
        roll = self.small(0, 15)
        if roll == 0:
            n = self.small(3, 15)
            return Turn(p([f"Count to {n}.", f"Count from 1 to {n}."]), ", ".join(map(str, range(1, n + 1))))
        if roll == 1:
            words = self.some(C.ITEMS, 2, 4)
            return Turn("Make a list: " + ", ".join(words) + ".", "\n".join(f"- {w}" for w in words))
        if roll == 2:
            text = p([self.name(), " ".join(self.some(C.SPELL_WORDS, 2, 4)), str(self.number(10, 99999))])
            return Turn(p([f"Repeat: {text}", f"Say {text}", f"Repeat after me: {text}"]), text, expect=text, kind="repeat")
        if roll == 3:
            w = p(C.SPELL_WORDS)
            return Turn(p([f"Reverse the word {w}.", f"Spell {w} backwards."]), "-".join(reversed(w)), expect="-".join(reversed(w)), kind="reverse")
        if roll == 4:
            w = p(C.SPELL_WORDS)
            return Turn(p([f"Spell {w}.", f"How do you spell {w}?"]), "-".join(w), expect="-".join(w), kind="spell")
        if roll == 5:
            a, b = self.small(0, 999), self.small(0, 999)
            if a == b:
                b += 1
            big = self.rng.random() < 0.5
            return Turn(f"Which is {'larger' if big else 'smaller'}, {a} or {b}?", f"{max(a, b) if big else min(a, b)} is {'larger' if big else 'smaller'}.")
        if roll == 6:
            i = self.small(0, 6)
            q, r = p([(f"What day comes after {C.DAYS[i]}?", C.DAYS[(i + 1) % 7]), (f"What day comes before {C.DAYS[i]}?", C.DAYS[i - 1]), ("List the days of the week.", ", ".join(C.DAYS))])
            return Turn(q, r + ".")
        if roll == 7:
            i = self.small(0, 11)
            q, r = p([(f"What month comes after {C.MONTHS[i]}?", C.MONTHS[(i + 1) % 12]), (f"Which month is number {i + 1}?", C.MONTHS[i])])
            return Turn(q, r + ".")
        if roll == 8:
            pair = p(self.opposites)
            a, b = pair if self.rng.random() < 0.5 else pair[::-1]
            return Turn(p([f"What is the opposite of {a}?", f"Opposite of {a}?"]), f"The opposite of {a} is {b}.")
        if roll in (9, 10):
            country, city = p(self.capitals)
            return Turn(p([f"What is the capital of {country}?", f"Capital of {country}?", f"Tell me the capital of {country}."]), f"The capital of {country} is {city}.", expect=city, kind="capital")
        if roll == 11:
            thing, colour = p(self.colours)
            return Turn(p([f"What colour is {thing}?", f"What color is {thing}?"]), f"{thing[0].upper() + thing[1:]} is {colour}.")
        if roll == 12:
            n = self.small(1, 30)
            big, small, factor = p([("kilometre", "metre", 1000), ("metre", "centimetre", 100), ("hour", "minute", 60), ("minute", "second", 60), ("kilogram", "gram", 1000), ("day", "hour", 24), ("week", "day", 7), ("year", "month", 12), ("byte", "bit", 8)])
            plural = lambda k, w: f"{k} {w}" + ("" if k == 1 else "s")
            return Turn(f"How many {small}s are in {plural(n, big)}?", f"{plural(n, big)} = {plural(n * factor, small)}")
        if roll in (13, 14):
            row = p(self.words)
            i = self.small(1, 4)
            language = ["English", "Spanish", "French", "German", "Chinese"][i]
            if self.rng.random() < 0.7:
                return Turn(p([f"How do you say {row[0]} in {language}?", f"Translate {row[0]} to {language}.", f"What is {row[0]} in {language}?"]), row[i], expect=row[i], kind="translate")
            return Turn(f"Translate {row[i]} from {language} to English.", row[0], expect=row[0], kind="translate")
        n = self.small(1, 6)
        while self.split == "train" and not in_split(f"{n}+{n}", "train"):
            n = self.small(1, 6)
        things = p(C.OBJECTS)
        return Turn(f"I have {n} {things} and get {n} more. How many {things} do I have?", f"You have {2 * n} {things}.")

    def unicode_skill(self):
        p = self.pick
        roll = self.small(0, 6)
        if roll <= 1:
            return Turn(*p(C.CHINESE_LINES))
        if roll == 2:
            e = p(sorted(C.EMOJI_NAMES))
            return p([Turn(f"What is {e}?", f"{e} is {C.EMOJI_NAMES[e]}."), Turn(f"Show me {C.EMOJI_NAMES[e]} as an emoji.", e)])
        if roll == 3:
            e = " ".join(p(C.EMOJI) for _ in range(self.small(1, 4)))
            return Turn(f"Repeat: {e}", e)
        if roll == 4:
            text = "".join(p(self.words)[4] for _ in range(self.small(1, 3)))
            return Turn(p([f"Repeat: {text}", f"请重复：{text}"]), text)
        if roll == 5:
            row = p(self.words)
            return Turn(f"{row[4]}用英语怎么说？", row[0])
        a, b = self.small(0, 20), self.small(0, 20)
        while self.split == "train" and not in_split(f"{a}+{b}", "train"):
            a, b = self.small(0, 20), self.small(0, 20)
        return Turn(f"{a}加{b}等于几？", f"{a}加{b}等于{a + b}。")

    def greeting(self):
        p = self.pick
        return p([
            Turn(p(["Hello!", "Hi", "Hi there!", "Hello", "Hey!"]), "Hello! How can I help you?"),
            Turn(p(["Thanks!", "Thank you!", "Thank you very much."]), "You're welcome!"),
            Turn(p(["Bye!", "Goodbye!", "See you later."]), "Goodbye! Have a nice day!"),
            Turn("How are you?", "I'm fine, thank you! How can I help you?"),
            Turn(p(["Good morning!", "Good evening!"]), "Hello! It is nice to see you."),
            Turn(p(["Who are you?", "What are you?"]), "I am q35-nano, a very small language model."),
            Turn("What can you do?", "I can chat, define words, add small numbers, remember names and write JSON."),
            Turn(p(["What's the weather today?", "What time is it?"]), "I can't see that from here, sorry."),
            Turn("Are you human?", "No, I am a small language model."),
            Turn(p(["Great!", "Nice.", "Cool!"]), "I'm glad to hear that!"),
            Turn("Say hi with an emoji.", "Hi! 😀"),
        ])

    def filler(self):
        roll = self.rng.random()
        if roll < 0.25:
            return self.define(True)
        if roll < 0.42:
            return self.arithmetic()
        if roll < 0.70:
            return self.small_skill()
        if roll < 0.80:
            return self.unicode_skill()
        if roll < 0.92:
            return self.greeting()
        return self.joke() if roll < 0.96 else self.as_json()

    # ---- whole conversations -------------------------------------------
    def long_memory(self):
        """Up to four facts first; each is asked for once, anywhere in the next 8 to 44 (at times 110) turns."""
        told = {}
        while len(told) < self.rng.choice((1, 2, 3, 4)):
            fact = self.facts()
            if fact[3] not in {t[3] for t in told.values()}:
                told.setdefault(fact[0], fact)
        turns = [Turn(fact[1], fact[2], expect=fact[5], kind="told") for fact in told.values()]
        tail = [self.filler() for _ in range(self.small(8, self.rng.choice((44, 44, 110))))]
        asked = [Turn(fact[3], fact[4], expect=fact[5], kind="recall") for fact in told.values()]
        self.rng.shuffle(asked)
        tail.append(asked.pop())
        for turn in asked:
            tail.insert(self.rng.randrange(len(tail)), turn)
        return turns + tail

    def thought(self, turn):
        """What to think before a turn that needs no steps."""
        if turn.kind == "told":
            return f"I should remember {turn.expect}."
        if turn.kind == "recall":
            return f"The user told me: {turn.expect}."
        return {"define": "I know this word.", "joke": "I know a joke.", "json": "The reply must be JSON only."}.get(
            turn.kind, "I can answer this directly.")

    def casual(self, text):
        """The same text as people type it in a hurry: no capital at the start, no mark at the end."""
        if self.rng.random() < 0.5:
            text = text.rstrip("?.!") or text
        first = text.split(" ")[0]
        return text[0].lower() + text[1:] if first in CASUAL else text

    # How often each kind of conversation is drawn, out of 100.
    MIX = {"memory": 26, "long_memory": 6, "unknown": 6, "define": 9, "joke": 3, "sum_steps": 9, "sum": 14,
           "json": 10, "skill": 10, "unicode": 4, "greeting": 3}

    def conversation(self):
        p = self.pick
        kind = self.rng.choices(list(self.MIX), list(self.MIX.values()))[0]
        brief = ["Answer briefly.", "Answer briefly.", "Answer in one sentence."]
        plain = [None, None, "You are a helpful assistant.", "You are a friendly assistant."]
        system = p(plain + brief)
        thinking = kind == "sum_steps"
        if kind == "memory":
            turns = self.memory(int(self.rng.random() ** 2 * 7))
            system = p([None, "Answer briefly.", "You are a helpful assistant.", "You are a friendly assistant."])
            if self.rng.random() < 0.3:
                turns.insert(0, self.greeting())
        elif kind == "long_memory":
            turns = self.long_memory()
        elif kind == "unknown":
            turns = [self.filler() for _ in range(self.small(0, 2))] + [self.unknown()]
        elif kind == "define":
            is_brief = self.rng.random() < 0.5
            system = p(brief) if is_brief else p(plain)
            turns = [self.define(is_brief) for _ in range(self.small(1, 3))]
        elif kind == "joke":
            system = p(["Be funny.", "Be funny.", None])
            turns = [self.joke() for _ in range(self.small(1, 2))]
        elif kind == "sum_steps":
            turns = [self.arithmetic(thinking=True)]
            if self.rng.random() < 0.3:
                turns.insert(0, self.filler())
        elif kind == "sum":
            turns = [self.arithmetic() for _ in range(self.small(1, 4))]
        elif kind == "json":
            system = p([None, "Reply in JSON.", "Answer briefly."])
            turns = [self.as_json() for _ in range(self.small(1, 2))]
        else:
            make = {"skill": self.small_skill, "unicode": self.unicode_skill, "greeting": self.greeting}[kind]
            turns = [make() for _ in range(self.small(1, 3))]
        if self.rng.random() < 0.2 and kind not in ("long_memory", "sum_steps"):
            turns = turns[:self.small(1, len(turns))]  # so that every kind of turn comes last sometimes
        if self.rng.random() < 0.1 and turns[-1].kind != "sum":
            thinking = True
            turns[-1].think = turns[-1].think or self.thought(turns[-1])
        if self.rng.random() < 0.2:
            for turn in turns:
                if turn.kind not in ("json", "repeat"):
                    turn.user = self.casual(turn.user)
        return {"system": system, "turns": turns, "thinking": thinking and bool(turns[-1].think)}


def segments(chat):
    """[(text, is_target)] of a whole conversation; special tokens are written in the text."""
    out = []
    if chat["system"]:
        out.append((f"<|im_start|>system\n{chat['system']}<|im_end|>\n", False))
    last = len(chat["turns"]) - 1
    for i, turn in enumerate(chat["turns"]):
        out.append((f"<|im_start|>user\n{turn.user}<|im_end|>\n<|im_start|>assistant\n", False))
        if i == last and chat["thinking"]:
            out.append(("<think>\n", False))
            out.append((f"{turn.think}\n</think>\n\n{turn.reply}<|im_end|>", True))
        else:
            if i == last:
                out.append(("<think>\n\n</think>\n\n", False))
            out.append((f"{turn.reply}<|im_end|>", True))
        out.append(("\n", False))
    out.append(("<|endoftext|>", False))
    return out


def prompt(messages, thinking):
    """What the chat template renders for messages that end with a user's, ready for the reply."""
    head = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return head + "<|im_start|>assistant\n" + ("<think>\n" if thinking else "<think>\n\n</think>\n\n")


def messages(chat):
    """Chat messages up to the last user turn, for an eval."""
    out = [{"role": "system", "content": chat["system"]}] if chat["system"] else []
    for turn in chat["turns"][:-1]:
        out += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.reply}]
    return out + [{"role": "user", "content": chat["turns"][-1].user}]


def eval_items(split, seed, count=200):
    maker = Maker(seed, split)
    items = []

    def add(kind, match, system, turns, thinking=False):
        chat = {"system": system, "turns": turns, "thinking": thinking}
        items.append({"kind": kind, "match": match, "thinking": thinking, "messages": messages(chat),
                      "reply": turns[-1].reply, "expect": turns[-1].expect or turns[-1].reply})

    for i in range(count):  # gaps of 0 .. 5 turns, then a few long ones
        gap = i % 6
        add("recall_name", "contains", maker.pick([None, "Answer briefly."]), maker.memory(gap, want="name"))
    for i in range(count // 4):
        add("recall_long", "contains", None, maker.memory(12 + i % 28, want="name"))
    for _ in range(count // 2):
        add("recall_other", "contains", None, maker.memory(maker.small(0, 4), want=maker.pick(["city", "number", "pet", "friend", "code"])))
    for _ in range(count):
        add("json", "json", maker.pick([None, "Reply in JSON."]), [maker.as_json()])
    for thinking in (False, True):
        for _ in range(count):
            add("sum_think" if thinking else "sum", "number", None, [maker.arithmetic("+", thinking)], thinking)
    for operation in "-*":
        for _ in range(count // 4):
            add("subtract" if operation == "-" else "multiply", "number", None, [maker.arithmetic(operation)])
    for brief in (True, False):
        for _ in range(count // 4):
            add("define_brief" if brief else "define_long", "exact", "Answer briefly." if brief else None, [maker.define(brief)])
            items[-1]["expect"] = items[-1]["reply"]
    wanted = {"repeat": count // 4, "capital": count // 4, "translate": count // 4, "spell": count // 4, "reverse": count // 4}
    while any(wanted.values()):
        turn = maker.small_skill()
        if wanted.get(turn.kind, 0) > 0:
            wanted[turn.kind] -= 1
            add(turn.kind, "exact_word", None, [turn])
    return items


def main():
    if sys.argv[1] == "show":
        maker = Maker(int(sys.argv[2]))
        for _ in range(int(sys.argv[3])):
            print("".join(text for text, _ in segments(maker.conversation())))
    else:
        with open(sys.argv[4], "w", encoding="utf-8") as f:
            for item in eval_items(sys.argv[2], int(sys.argv[3])):
                f.write(json.dumps(item, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
