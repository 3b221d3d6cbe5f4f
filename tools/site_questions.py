"""Questions that reply on the site: gives those of an executed notebook what a page needs to judge an answer.

All that is said is said by `lora_lab.course`: the replies here are those of `grade` to chosen answers, as HTML, and
`docs/questions.js` picks one. They are in base64, so that nobody reads one by accident: that is no lock.
"""

import base64
import html
import json
import re

import site_math
from lora_lab.course import question_files
from lora_lab.course.cards import answer_text, hint_texts, markdown, outcome
from lora_lab.course.controls import control
from lora_lab.course.progress_file import Record
from lora_lab.course.question_kinds import (
    Choice,
    Code,
    Match,
    Multiple,
    Number,
    Order,
    Predict,
    Question,
    Verdict,
    escape,
)

CARD = re.compile(r'class="lora-lab-quiz lora-lab-static" data-question="([^"]+)"')
_PLAIN = {"kind", "wanted", "lines", "items", "choices", "unit"}  # text that is no HTML
MEASURED = re.compile(r"Question (\S+): measured (.*)\.\n")
PROGRESS = "lesson | name | solved |"  # begins what `progress()` shows
OWN_COUNT = ('<div class="lora-lab-count">In a notebook, your answers to all lessons are counted here; on this page, '
             'where scripts run, those to its own questions.</div>')
RESULT = "result-of:"  # begins the tags of a cell whose outputs settle predictions, for `questions.js`


def answering(notebook):
    """Return `notebook` with data for `questions.js` in its questions and beside what was measured for predictions, and
    with a place for the page's own count instead of the author's.

    Raises LabError for a question that is no longer there, ValueError for a measurement in another format than today's.
    """
    data = [output["data"] for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    found = (MEASURED.match(one.get("text/plain", "")) for one in data)
    measured = {match[1]: match[2] for match in found if match}
    for one in data:
        if card := CARD.search(one.get("text/html", "")):
            question = question_files.find(html.unescape(card[1]))
            if not isinstance(question, Code):
                content = json.dumps(_drawn(page_data(question, measured.get(question.id)))).encode()
                mark = f'{card[0]} data-card="{base64.b64encode(content).decode()}"'
                one["text/html"] = one["text/html"].replace(card[0], mark)
            else:
                one["text/html"] = one["text/html"].replace(">Change the code", ">In the notebook, change the code")
            one["text/html"] = site_math.in_html(one["text/html"])
        elif match := MEASURED.match(one.get("text/plain", "")):
            question = question_files.find(match[1])
            before = outcome(question, Record(measured=question.value(match[2])))
            mark = f'class="lora-lab-measured" id="{_place(question)}" data-question="{html.escape(question.id)}"'
            one["text/html"] = site_math.in_html(f"<div {mark}>{before}</div>{markdown(question.answer)}")
        elif one.get("text/plain", "").startswith(PROGRESS):
            one["text/html"] = OWN_COUNT
    return notebook


def folded(notebook):
    """Return `notebook` with folds around the outputs that settle a prediction: of the cells below its card, as far as
    the one that measures it, and of those that follow without a word between, which often draw the same. Where several
    are asked at once, an output belongs to the one that is measured first.
    """
    asked, measured = {}, {}
    for place, cell in enumerate(notebook.cells):
        for data in (output["data"] for output in cell.get("outputs", []) if "data" in output):
            if card := CARD.search(data.get("text/html", "")):
                asked[html.unescape(card[1])] = place
            elif match := MEASURED.match(data.get("text/plain", "")):
                measured[match[1]] = place
    taken = {*asked.values(), *measured.values()}
    for name, place in measured.items():
        for after in range(place + 1, len(notebook.cells)):
            if after in taken or notebook.cells[after].cell_type != "code":
                break
            measured[name] = after
    for place, cell in enumerate(notebook.cells):
        ends = {name: end for name, end in measured.items() if name in asked and asked[name] < place <= end}
        if ends and cell.get("outputs") and place not in asked.values():
            names = [name for name, end in ends.items() if end == min(ends.values())]
            cell.metadata.tags = [*cell.metadata.get("tags", []), "hide-output", *(RESULT + name for name in names)]
            cell.metadata.mystnb = {"code_prompt_show": "Show the result without predicting",
                                    "code_prompt_hide": "Hide the result"}
    return notebook


def _drawn(data):
    """Return data of a page with its formulas drawn: all that is HTML, wherever it stands."""
    if isinstance(data, dict):
        return {name: part if name in _PLAIN else _drawn(part) for name, part in data.items()}
    if isinstance(data, list):
        return list(map(_drawn, data))
    return site_math.in_html(data) if isinstance(data, str) else data


def page_data(question: Question, measured: str | None = None) -> dict:
    """Return what the page needs of a question: what it shows, the replies as HTML, and what decides between them.

    `measured` is what became of a prediction, as it is shown. A reply is [solved, HTML]; solved is None where an answer
    could not be judged.
    """
    kind = type(question)
    return {"kind": kind.__name__.lower(), "wanted": control(question).wanted, "hints": hint_texts(question),
            "answer": answer_text(question)} | _OF_KIND[kind](question, *([measured] if kind is Predict else []))


def _place(question: Question) -> str:
    """Return the id of the place on the page where a prediction was measured."""
    return f"measured-{question.id.replace('/', '-')}"


def reply(verdict: Verdict) -> list:
    """Return a verdict as the page holds it."""
    return [verdict.solved, markdown(verdict.text)]


def _remark(verdict: Verdict) -> str:
    """Return the one line of the list that `verdict` says."""
    return re.fullmatch(r"<ul>\n(<li>.*</li>\n)</ul>\n", markdown(verdict.text), re.DOTALL)[1]


def _choice(question: Choice) -> dict:
    return {"lines": question.lines, "replies": [reply(question.grade(place)) for place in range(len(question.option))]}


def _multiple(question: Multiple) -> dict:
    right = [option.right for option in question.option]
    return {"lines": question.lines, "right": right, "missing": reply(question.grade([])),
            "all": reply(question.grade([place for place, yes in enumerate(right) if yes])),
            "remarks": ["" if yes else _remark(question.grade([place])) for place, yes in enumerate(right)]}


def _number(question: Number) -> dict:
    return {"unit": question.unit, "value": question.value, "tolerance": max(question.tolerance, 1e-9),
            "all": reply(question.grade(repr(question.value))), "unread": reply(question.grade("")),
            "near": [[near.value, reply(Verdict(False, near.says))] for near in question.near],
            "otherwise": reply(Verdict(False, question.otherwise))}


def _match(question: Match) -> dict:
    right = [question.choices.index(pair.choice) for pair in question.pair]
    other = [(place + 1) % len(question.choices) for place in right]
    wrong = [question.grade([*right[:i], other[i], *right[i + 1:]]) for i in range(len(right))]
    return {"items": question.items, "choices": question.choices, "right": right,
            "remarks": list(map(_remark, wrong)), "all": reply(question.grade(right))}


def _order(question: Order) -> dict:
    texts = [item.text for item in question.item]
    right = [texts.index(text) for text in question.items]
    swapped = [[{i: i + 1, i + 1: i}.get(place, place) for place in right] for i in range(len(right) - 1)]
    return {"items": question.items, "choices": question.choices, "right": right,
            "replies": [reply(question.grade(places)) for places in swapped], "all": reply(question.grade(right)),
            "same": reply(question.grade([0] * len(right)))}


def _predict(question: Predict, shown: str | None) -> dict:
    """`committed` is what the card says, by band; `outcomes` what is said where it was measured."""
    where = f"[stands below](#{_place(question)})." if shown else "is for your own run to say."
    data = {"lines": question.lines, "committed": [
        markdown(f"Committed: **{escape(line)}**. Now read on: what the experiment measured {where}")
        for line in question.lines]}
    if shown is None:
        return data
    value = question.value(shown)
    if question.format.format(value) != shown:
        raise ValueError(f"{question.id} was measured as {shown!r}, its format is {question.format!r}: run the lesson.")
    return data | {"measured": value, "right": question.right(value),
                   "outcomes": [outcome(question, Record(answer=place, measured=value))
                                for place in range(len(question.band))]}


_OF_KIND = {Choice: _choice, Multiple: _multiple, Number: _number, Match: _match, Order: _order, Predict: _predict}
