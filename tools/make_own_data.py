"""Write the three small sets of rows that `lora_lab.data` has: `python tools/make_own_data.py`.

Everything in them was written for this course, and is licensed as the rest of it. The same seed writes the same files.
"""

import csv
import io
import itertools
import json
import random
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "lora_lab" / "data" / "sets"
SEED = 2026

THINGS = ("kettle", "desk lamp", "backpack", "bike light", "coffee grinder", "headphones", "rain jacket", "keyboard",
          "garden hose", "wall clock", "blender", "yoga mat", "monitor stand", "toolbox", "tent")
NAMES = ("Anna", "Bilal", "Chen", "Dora", "Emre", "Fatou", "Goran", "Hana", "Ivo", "Jun", "Kofi", "Lena", "Mara",
         "Nils", "Oksana", "Paulo", "Quentin", "Rosa", "Sana", "Tomas")
TOWNS = ("Bergen", "Porto", "Graz", "Lyon", "Cork", "Ghent", "Turku", "Split", "Leeds", "Basel", "Malmo", "Pisa")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
COLOURS = ("red", "blue", "green", "black", "white", "yellow", "grey")

# What people write to a shop: a problem, and a second sentence that belongs to it.
SUPPORT = {
    "billing": (
        ("I was charged twice for the {thing}", "the invoice for my {thing} has the wrong company on it",
         "my card was debited although I cancelled the {thing}", "the discount code did nothing at the checkout",
         "the receipt shows a higher price than the page did", "you took {n} euros and I do not know what for",
         "I need the bill for the {thing} with our tax number", "the instalments do not add up to the price"),
        ("my bank says the money left on {day}", "please send it to accounting at our office in {town}",
         "the statement came this morning", "{name} in our finance team is asking", "I paid by card, not by transfer",
         "it should have been {n} euros", "the first amount was right", "I have kept the e-mail with the price")),
    "delivery": (
        ("the {thing} was meant to be here on {day}", "the parcel went to a neighbour whom nobody knows",
         "tracking has not moved for {n} days", "the courier left the box in the rain",
         "I have moved to {town} since I placed the order", "only half of my order is in the box",
         "nobody rang and the parcel went back to the depot", "the driver says the address does not exist"),
        ("we were at home all of {day}", "the street has two houses with that number", "can it come to {town} instead",
         "{name} could sign for it", "the carrier does not pick up the phone", "I need it for a birthday on {day}",
         "the depot is {n} kilometres away", "the tracking page is empty")),
    "returns": (
        ("I would like to send the {thing} back", "the {thing} is not the colour that I ordered",
         "how do I print the label for a return", "you got my {thing} back {n} days ago and said nothing",
         "the {thing} does not fit and I want another size", "my {thing} broke on its first day",
         "may I return a gift that {name} bought", "I changed my mind about the {thing}"),
        ("it is still in its box", "I never used it", "where do I take the parcel in {town}",
         "the period ends on {day}", "a voucher would be fine as well", "the seal is broken, the rest is new",
         "I have no printer", "I would rather swap it for a {thing2}")),
    "account": (
        ("I cannot sign in since {day}", "the link for a new password never comes",
         "please delete my account and all that is stored", "somebody ordered a {thing} in my name",
         "how do I change my e-mail address", "my points are gone after the update",
         "the second factor asks for a phone that I sold", "two accounts came up with the name {name}"),
        ("I have looked into the spam folder", "the address is right, I checked with {name}",
         "I need access by {day}", "the page only says that something went wrong",
         "I have been a customer for {n} years", "it works on the phone of {name}", "the old number no longer exists",
         "I did not ask for that")),
    "technical": (
        ("the {thing} makes a noise like a saw", "the light of the {thing} blinks and nothing else happens",
         "the app does not find my {thing}", "the {thing} switches itself off after {n} minutes",
         "where is the manual of the {thing}", "the battery of my {thing} gets hot",
         "the website freezes when I open the basket", "the {thing} lost its settings over night"),
        ("I have tried another socket", "it began on {day}", "the version is the newest one",
         "{name} has the same one and it works", "a restart does not help", "I held the button for {n} seconds",
         "it did work in {town}", "there is no error message")),
}
OPENINGS = ("", "", "Hello, ", "Hi there, ", "Good morning, ", "Dear team, ")
CLOSINGS = ("", "", " Thanks.", " Please help.", " Regards, {name}", " What can I do?")


def support(rng: random.Random, n: int) -> list[tuple[str, str]]:
    """Messages to a shop, each with the team that it is for."""
    pools = {team: rng.sample(pairs := list(itertools.product(*parts)), len(pairs)) for team, parts in SUPPORT.items()}
    found = []
    for number in range(n):
        team = list(SUPPORT)[number % len(SUPPORT)]
        problem, more = pools[team].pop()
        opening, closing = rng.choice(OPENINGS), rng.choice(CLOSINGS)
        problem = problem if opening else problem[0].upper() + problem[1:]
        text = f"{opening}{problem}. {more[0].upper()}{more[1:]}.{closing}"
        first, second = rng.sample(THINGS, 2)
        found.append((text.format(thing=first, thing2=second, n=rng.randint(2, 90), day=rng.choice(DAYS),
                                  town=rng.choice(TOWNS), name=rng.choice(NAMES)), team))
    return found


ORDERS = (
    "Please send {count} {colour} {thing}s to {name} in {town} by {day}.",
    "{name} in {town} needs {count} {thing}s, {colour} ones, on {day}.",
    "Can we have {count} of the {colour} {thing}s in {town} by {day}? They are for {name}.",
    "By {day}, {count} {thing}s for {name}, {town}. Colour: {colour}.",
    "I am ordering {count} {thing}s for {name}. {colour} if you have it, and to {town} before {day} ends.",
    "For {name} ({town}): {colour} {thing}s, {count} pieces, no later than {day}.",
    "We are short of {colour} {thing}s in {town}. {count} would do, and {name} will be there on {day}.",
    "{count} {thing}s in {colour}, as always to {town}. {name} takes them on {day}.",
    "On {day} a van goes to {town}. Put {count} {colour} {thing}s on it for {name}.",
    "{name} asks for {colour} {thing}s again, {count} this time. {town}, {day}.",
)
PLAIN = ("kettle", "lamp", "backpack", "tent", "blender", "toolbox", "keyboard", "clock", "mug", "chair")


def orders(rng: random.Random, n: int) -> list[dict]:
    """Orders in words, and what they say as JSON."""
    found = {}
    while len(found) < n:
        fields = dict(thing=rng.choice(PLAIN), count=rng.randint(2, 60), colour=rng.choice(COLOURS),
                      name=rng.choice(NAMES), town=rng.choice(TOWNS), day=rng.choice(DAYS))
        text = rng.choice(ORDERS).format(**fields)
        found[text[0].upper() + text[1:]] = {"item": fields["thing"], "count": fields["count"],
                                             "colour": fields["colour"], "to": fields["name"],
                                             "town": fields["town"], "day": fields["day"]}
    return [{"text": text, "order": order} for text, order in found.items()]


ACTS = ("send me the {what}", "check the {what} again", "call {name} about the {what}", "fix the {what}",
        "bring the {what} on {day}", "move the {what} to {day}", "print the {what}", "sign the {what}",
        "explain the {what} to {name}", "translate the {what}", "delete the {what}", "shorten the {what}")
WHAT = ("report", "contract", "slides", "offer", "schedule", "minutes", "budget", "invitation", "drawing", "plan",
        "summary", "price list")
BLUNT = ("{Act}.", "{Act} now.", "You have to {act}.", "I want you to {act}.", "{Act}, and hurry up.",
         "Why did you not {act}?", "{Act} at once.")
SOFT = {"{Act}.": "Could you please {act}?", "{Act} now.": "Could you please {act} as soon as you can?",
        "You have to {act}.": "It would help me a lot if you could {act}.",
        "I want you to {act}.": "I would be grateful if you could {act}.",
        "{Act}, and hurry up.": "Could you please {act} as soon as you can?",
        "Why did you not {act}?": "May I remind you to {act}?",
        "{Act} at once.": "Could you please {act} as soon as you can?"}


def style(rng: random.Random, n: int) -> list[dict]:
    """Blunt sentences and how one would put them politely, as chats."""
    found = {}
    while len(found) < n:
        act = rng.choice(ACTS).format(what=rng.choice(WHAT), name=rng.choice(NAMES), day=rng.choice(DAYS))
        form = rng.choice(BLUNT)
        fill = dict(act=act, Act=act[0].upper() + act[1:])
        found[form.format(**fill)] = SOFT[form].format(**fill)
    return [{"messages": [{"role": "user", "content": blunt}, {"role": "assistant", "content": soft}]}
            for blunt, soft in found.items()]


def main(folder: Path = FOLDER) -> None:
    """Write the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("message", "team"), *support(random.Random(f"{SEED}/support"), 300)])
    (folder / "support.csv").write_text(text.getvalue(), encoding="utf-8")
    for name, make in (("orders", orders), ("style", style)):
        rows = make(random.Random(f"{SEED}/{name}"), 300)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
