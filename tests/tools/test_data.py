"""Files of rows in many forms, and dirt in them: understood or refused with a reason, found with its places."""

import csv
import gzip
import io
import json
import random
import sys
from types import SimpleNamespace

import make_own_data
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lora_lab import LabError, data, models, pocket, smart_home
from lora_lab.data import __main__ as command
from lora_lab.data import reading

ROWS = [(f"What is {a} plus {b}?", str(a + b)) for a in range(4) for b in range(3)]
CHAT = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "How much is 2 + 2?"}, {"role": "assistant", "content": "4"}]


def written(folder, name, content, encoding="utf-8"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def as_csv(rows, names=("prompt", "completion"), sign=","):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=sign)
    writer.writerows([names, *rows])
    return text.getvalue()


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("name, content, encoding", [
    ("a.csv", as_csv(ROWS), "utf-8"),
    ("a.csv", as_csv(ROWS), "utf-8-sig"),
    ("a.csv", as_csv(ROWS), "utf-16"),
    ("a.tsv", as_csv(ROWS, sign="\t"), "utf-8"),
    ("a.csv", as_csv(ROWS, sign=";"), "utf-8"),
    ("a.csv", as_csv(ROWS, ("Question", "Answer")).replace("\r\n", "\n"), "utf-8"),
    ("a.txt", as_csv(ROWS, ("x", "y")), "utf-8"),
    ("a.csv", as_csv([(i, *row) for i, row in enumerate(ROWS)], ("id", "left", "right")), "utf-8"),
    ("a.jsonl", lines(dict(prompt=a, completion=b) for a, b in ROWS), "utf-8"),
    ("a.jsonl", lines(dict(prompt=a, completion=int(b)) for a, b in ROWS), "utf-8"),
    ("a.json", json.dumps([dict(question=a, answer=b) for a, b in ROWS], indent=1), "utf-8"),
    ("a.json", json.dumps({"data": [dict(text=a, label=b) for a, b in ROWS]}), "utf-8"),
    ("a.json", json.dumps(dict(input=[a for a, _ in ROWS], output=[b for _, b in ROWS])), "utf-8"),
    ("a.jsonl", lines({"messages": [dict(role="user", content=a), dict(role="assistant", content=b)]}
                      for a, b in ROWS), "utf-8"),
    ("a.json", json.dumps([{"id": 3, "conversations": [{"from": "human", "value": a}, {"from": "gpt", "value": b}]}
                           for a, b in ROWS]), "utf-8"),
    ("a.json", json.dumps([[dict(role="user", content=[{"type": "text", "text": a}]),
                            dict(role="assistant", content=b)] for a, b in ROWS]), "utf-8"),
], ids=str)
def test_forms_are_understood(name, content, encoding, tmp_path):
    found = data.read(written(tmp_path, name, content, encoding))
    assert found.pairs == ROWS and not found.odd, found


GERMAN = [(f"Größe {i} – „bitte“", "Ärger") for i in range(20)]
TOOLS = [{"role": "user", "content": "weather?"}, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
         {"role": "tool", "content": "18"}, {"role": "assistant", "content": "It is 18."}]


@pytest.mark.parametrize("name, content, form, row", [
    ("excel.csv", "\ufeffsep=;\r\nTicket;Team;\r\n" + '"a; ""b""\r\nc";x;\r\n' * 9, "semicolons",
     ('a; "b"\r\nc', "x")),
    ("mixed.csv", b"".join((",".join(row) + "\n").encode(("utf-8", "cp1252")[i % 2])
                           for i, row in enumerate([("text", "label"), *GERMAN])), "10 lines of it", GERMAN[0]),
    ("utf16.csv", as_csv(ROWS).encode("utf-16-le"), "CSV", ROWS[0]),
    ("utf32.csv", as_csv(ROWS).encode("utf-32"), "CSV", ROWS[0]),
    ("packed.csv.gz", gzip.compress(as_csv(ROWS).encode()), "CSV", ROWS[0]),
    ("packed.jsonl.gz", gzip.compress(lines(dict(prompt=a, response=b) for a, b in ROWS).encode()), "JSON l", ROWS[0]),
    ("u2028.jsonl", lines([dict(prompt="a\u2028b", response="c\x85d")] * 9), "JSON lines", ("a\u2028b", "c\x85d")),
    ("big.json", json.dumps({f"id{i}": dict(question=a, answer=b) for i, (a, b) in enumerate(ROWS)}), "each", ROWS[0]),
    ("pairs.json", json.dumps(ROWS), "JSON", ROWS[0]),
    ("trl.jsonl", lines([dict(prompt=CHAT[:3], completion=CHAT[3:])]), "chats",
     ("Hello\nHi\nHow much is 2 + 2?", "4")),
    ("gemini.json", json.dumps([{"contents": [{"role": "user", "parts": [{"text": "a"}]},
                                              {"role": "model", "parts": [{"text": "b"}]}]}]), "chats", ("a", "b")),
    ("alpaca.json", json.dumps([dict(instruction="c", input="d", output="e", history=[["a", "b"]], system="s")] * 2),
     "chats", ("s\na\nb\nc\nd", "e")),
    ("tools.jsonl", lines([{"messages": TOOLS}]), "chats", ('weather?\n[{"id": "1"}]\n18', "It is 18.")),
    ("calls.json", json.dumps([{"conversations": [dict([("from", role), ("value", text)]) for role, text in (
        ("human", "a"), ("function_call", "f"), ("observation", "g"), ("gpt", "b"))]}]),
     "chats", ("a\nf\ng", "b")),
    ("nan.jsonl", '{"prompt": "a", "response": NaN}\n', "JSON", ("a", "")),
    ("halves.jsonl", '{"prompt": "bad \\ud83d", "response": "\\ud83d\\ude00"}\n', "JSON", ("bad \ufffd", "\U0001f600")),
], ids=lambda value: value if isinstance(value, str) and "." in value[-9:] else "")
def test_files_of_other_programs_are_understood(name, content, form, row, tmp_path):
    found = data.read(written(tmp_path, name, content))
    assert found.pairs[0] == row and form in found.form and not found.odd, found


def test_western_letters_without_unicode_are_read(tmp_path):
    """French, German, Spanish, Danish, Icelandic, Portuguese: each as Windows writes it."""
    words = "l’école créée, naïveté; Größe „süß“; ¿Qué pasó?; Smørrebrød på øen; þetta er íslenska; coração, 5 °C"
    rows = [(part, "€ 5") for part in words.split("; ")]
    found = data.read(written(tmp_path, "a.csv", as_csv(rows), "cp1252"))
    assert found.pairs == rows and "6 lines of it in Windows-1252" in found.form


def test_lines_are_those_of_the_file_and_second_columns_are_told(tmp_path):
    text = 'prompt,answer,answer\n"a\nb",c,d\ne,f\ng,h,i,\n'
    found = data.read(written(tmp_path, "a.csv", text))
    assert [row.place for row in found.rows] == ["line 2", "line 5"] and found.rows[0].answer == "c"
    assert [place for place, _ in found.odd] == ["line 1", "line 4"] and "'answer (2)'" in found.odd[0][1]


def test_parquet_and_workbooks_are_read_by_their_libraries_or_refused(tmp_path, monkeypatch):
    """Stand-ins for both, which are not among the course's packages."""
    sheet = SimpleNamespace(title="Mine", iter_rows=lambda values_only: [("prompt", "answer", None), ("a", 1, None)])
    rows = SimpleNamespace(to_pylist=lambda: [dict(text="c", label="d")])
    monkeypatch.setitem(sys.modules, "openpyxl", SimpleNamespace(
        load_workbook=lambda file, **_: SimpleNamespace(worksheets=[sheet])))
    monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(
        BufferReader=bytes, parquet=SimpleNamespace(read_table=lambda content: rows)))
    book, table = written(tmp_path, "a.xlsx", b"PK\x03\x04"), written(tmp_path, "a.parquet", b"PAR1")
    assert data.read(book).pairs == [("a", "1")] and data.read(table).pairs == [("c", "d")]
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for path, library in ((book, "openpyxl"), (table, "pyarrow")):
        with pytest.raises(LabError, match=f"pip install {library}"):
            data.read(path)


def test_a_data_set_of_the_hub_needs_a_library_that_runs_no_code(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(LabError, match="owner/name is no file here.*pip install datasets"):
        data.read("owner/name")
    with pytest.raises(LabError, match="rows.jsonl cannot be read: No such file"):
        data.read("folder/rows.jsonl")
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return [dict(prompt="a", response="b")]

    library = SimpleNamespace(__version__="4.1.0", load_dataset=load_dataset, config=SimpleNamespace(HF_HUB_OFFLINE=0))
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setattr(models, "hub_answers", lambda: False)
    with pytest.raises(LabError, match="the hub cannot be reached"):
        data.read("owner/name")
    library.config.HF_HUB_OFFLINE = 1
    assert data.read("owner/name").pairs == data.read("owner/name:test[:10]").pairs == [("a", "b")]
    assert asked == [("owner/name", "train"), ("owner/name", "test[:10]")]
    sys.modules["datasets"].__version__ = "3.6.0"
    with pytest.raises(LabError, match="may run a program"):
        data.read("owner/name")
    sys.modules["datasets"].__version__ = "5.0.0"
    sys.modules["datasets"].load_dataset = lambda *_, **__: 1 / 0
    with pytest.raises(LabError, match="no data set of the hub that can be read: division by zero"):
        data.read("owner/name")


def test_a_chat_of_many_turns_keeps_them_and_its_last_answer(tmp_path):
    found = data.read(written(tmp_path, "a.json", json.dumps(CHAT)))
    assert len(found.rows) == 1 and found.rows[0].answer == "4" and found.rows[0].messages == tuple(CHAT)
    row = {"system": "Be brief.", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}
    read = data.read(written(tmp_path, "b.jsonl", lines([row]))).rows[0]
    assert [m["role"] for m in read.messages] == ["system", "user", "assistant"] and read.prompt == "Be brief.\nHi"


def test_columns_are_named_or_asked_for(tmp_path):
    path = written(tmp_path, "a.csv", as_csv([(1, *row) for row in ROWS], ("n", "ask", "say")))
    with pytest.raises(LabError, match="Found n, ask, say"):
        data.read(path)
    assert data.read(path, prompt="ask", answer="say").pairs == ROWS
    with pytest.raises(LabError, match="Did you mean 'ask'"):
        data.read(path, prompt="asks", answer="say")


def test_an_instruction_stands_before_its_input(tmp_path):
    row = dict(instruction="Add.", input="1 and 2", output="3")
    assert data.read(written(tmp_path, "a.json", json.dumps([row]))).pairs == [("Add.\n1 and 2", "3")]


def test_odd_rows_are_named_and_the_others_read(tmp_path):
    text = lines([dict(prompt="a", completion="b")]) + "{broken\n"
    text += lines([[1], {"prompt": {"x": 1}, "completion": ""}])
    found = data.read(written(tmp_path, "a.jsonl", text + lines([dict(prompt="c", completion={"d": 1})])))
    assert found.pairs == [("a", "b"), ("c", '{"d": 1}')]
    assert [place for place, _ in found.odd] == ["line 2", "line 3", "line 4"]
    table = data.read(written(tmp_path, "a.csv", as_csv([*ROWS, ("one cell",)])))
    assert table.odd == [(f"line {len(ROWS) + 2}", "1 cells where the first line has 2")]
    assert "one cell" not in repr(table.show()) and "1 cells" in repr(table.show())


@pytest.mark.parametrize("at", [0, 2])
def test_a_row_that_is_no_chat_is_odd_among_chats(at, tmp_path):
    rows = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]} for _ in range(3)]
    rows.insert(at, {"id": 7})
    (tmp_path / "chats.json").write_text(json.dumps(rows))
    read = data.read(tmp_path / "chats.json")
    assert len(read.rows) == 3 and read.odd == [(f"row {at + 1}", "neither a chat nor a known pair of columns: id")]


def test_lines_of_several_encodings(tmp_path):
    content = "prompt,completion\nça va,oui\n".encode() + "garçon,naïf\n".encode("cp1252")
    assert data.read(written(tmp_path, "a.csv", content)).pairs == [("ça va", "oui"), ("garçon", "naïf")]


@pytest.mark.parametrize("name, content, said", [
    ("a.csv", "", "is empty"), ("a.txt", "one line of prose\nand another", "one column"),
    ("a.xlsx", b"PK\x03\x04....", "openpyxl|damaged"), ("a.pdf", b"%PDF-1.7", "PDF"),
    ("a.jsonl", b"\x80\x04\x95", "pickle"),
    ("a.json", "{]" * 9, "neither JSON"), ("a.json", "[1, 2, 3]", "No row could be used"),
    ("a.json", "[" * 100_000, "neither JSON|too deeply"), ("a.bin", b"a,b\0\0\1\2", "no text file"),
    ("a.jsonl", lines([{"messages": [{"role": "user", "content": "only asked"}]}]), "without an answer"),
    ("a.json", json.dumps([dict(a=1, b=2, c=3)]), "Which columns"),
    ("a.csv", "Reports 2026;;\nask;say;n\nlift stops;lift;1\n", "looks like a title"),
    ("a.zip", b"PK\x03\x04....", "a zip archive"),
    ("a.csv.gz", gzip.compress(b"a,b\nc,d", mtime=0)[:-9], "cannot be read"),
    ("a.csv", "prompt,answer\nzażółć gęślą,jaźń\n".encode("iso8859-2"), "neither UTF-8 nor in Windows' Western"),
    ("a.csv", "prompt,answer\n日本語の質問,答え\n".encode("shift_jis"), "neither UTF-8 nor in Windows' Western"),
    ("a.csv", "prompt,answer\nGröße,Maß\n".encode("mac_roman"), "neither UTF-8 nor in Windows' Western"),
    ("a.csv", "prompt,answer\nПривет как дела,хорошо\n".encode("cp1251"), "neither UTF-8 nor in Windows' Western"),
    ("a.csv", "The printer on floor two is jammed,hardware\nIt is again,hardware\n", "looks like a row"),
    ("a.txt", "12/03/2024, 14:01 - Anna: Hi, you\n", "messenger"), ("a.csv", "prompt,answer\n", "nothing below"),
    ("a.txt", "[12.03.24, 14:01:11] Anna: Hi\n", "messenger"),
    ("a.json", json.dumps({"data": [dict(title="t", paragraphs=[dict(context="c")])] * 2}), "Which columns"),
])
def test_what_cannot_be_understood_is_refused_with_a_reason(name, content, said, tmp_path):
    with pytest.raises(LabError, match=said):
        data.read(written(tmp_path, name, content))


def test_a_folder_needs_the_library_or_is_refused(tmp_path):
    with pytest.raises(LabError, match="datasets|save_to_disk"):
        data.read(tmp_path)
    with pytest.raises(LabError, match="cannot be read|no file"):
        data.read(tmp_path / "none.csv")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.text(alphabet='{}[]",:\n\t;ab1\\', max_size=80).map(str.encode),
       name=st.sampled_from(["a.csv", "a.json", "a.jsonl", "a"]))
def test_any_bytes_end_in_rows_or_a_reason(content, name, tmp_path):
    try:
        assert data.read(written(tmp_path, name, content)).rows
    except LabError:
        pass


def test_a_hundred_thousand_rows_are_read_split_and_checked(tmp_path):
    rng = random.Random(0)
    rows = [(f"ticket {i}: " + " ".join(f"w{rng.randrange(5000)}" for _ in range(4)), rng.choice("ab"))
            for i in range(100_000)]
    found = data.read(written(tmp_path, "a.csv", as_csv(rows)))
    kept, held_out = data.split(found, 0.01)
    assert len(found.rows) == len(kept) + len(held_out) == 100_000
    assert not data.check(kept[:30_000], test=held_out)  # all of them take ten seconds more


DIRT = {
    "empty": lambda rng, row, rows: (row[0], " "),
    "spoilt letters": lambda rng, row, rows: (row[0].replace("e", "Ã©", 1) + " Ã¼", row[1]),
    "duplicate": lambda rng, row, rows: rng.choice(rows),
    "contradiction": lambda rng, row, rows: (rng.choice(rows)[0].upper(), '{"room":"moon","light":1}'),
    "too long": lambda rng, row, rows: (row[0] * 30, row[1]),
    "special tokens": lambda rng, row, rows: (row[0] + "<end>", row[1]),
}


@pytest.mark.parametrize("nothing", ["", "\u00a0", "\u200b", "#N/A", " NaN", "NULL", "\ufeff"])
def test_what_programs_write_for_nothing_is_empty(nothing):
    rows = [data.Row("ask", nothing, "1"), data.Row("none", "none", "2"), data.Row("a null", "null", "3")]
    (found,) = data.check(rows)
    assert (found.what, found.places) == ("empty", ("1",))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", DIRT)
def test_seeded_dirt_is_found_with_its_rows(kind, seed):
    rng = random.Random(f"{kind}/{seed}")
    rows = [(c.prompt, c.answer) for c in smart_home.commands("train", n=300, seed=seed)]
    clean = [data.Row(*row, f"line {i}") for i, row in enumerate(rows)]
    assert not data.check(clean, pocket.tokenizer(), max_length=120)
    dirty = [data.Row(*DIRT[kind](rng, rng.choice(rows), rows), f"dirt {i}") for i in range(20)]
    found = {f.what: f for f in data.check([*clean, *dirty], pocket.tokenizer(), max_length=120)}
    named = {place for place in found[kind].places if place.startswith("dirt")}
    assert len(named) >= 19, found
    if kind != "contradiction":  # there the first of two is named, too
        assert named == set(found[kind].places)


@pytest.mark.parametrize("change", [str.upper, lambda t: t + "!", lambda t: t.replace("the", "teh", 1),
                                    lambda t: f"  {t} "])
def test_leaks_are_found_and_other_rows_are_none(change):
    rows = [data.Row(c.text, c.answer, f"train {i}") for i, c in enumerate(smart_home.commands("train", n=300))]
    test = [data.Row(c.text, c.answer, f"test {i}")
            for i, c in enumerate(smart_home.commands("test phrasings", n=60))]
    alike = [place for finding in data.check(rows, test=test) for place in finding.places]
    assert len(alike) <= 1  # two phrasings that differ in a word
    leaked = [data.Row(change(row.prompt), row.answer, f"leak {i}") for i, row in enumerate(rows[:40])]
    (finding,) = data.check(rows, test=[*test, *leaked])
    assert finding.what == "leak" and len(finding.places) >= 38
    assert [place for place in finding.places if not place.startswith("leak")] == alike


@pytest.mark.parametrize("name", ["support", "orders", "style"])
def test_the_sets_of_the_course_are_clean_and_as_their_script_writes_them(name, tmp_path):
    found = data.read(data.example(name))
    assert len(found.rows) == 300 and not found.odd
    kept, held_out = data.split(found, 0.2)
    assert not data.check(kept, test=held_out)
    make_own_data.main(tmp_path)
    assert (tmp_path / data.example(name).name).read_bytes() == data.example(name).read_bytes()


def test_an_unknown_set_is_refused():
    with pytest.raises(LabError, match="Did you mean 'support'"):
        data.example("suport")


def test_equal_prompts_stay_on_one_side():
    rows = [data.Row(f"prompt {i // 4}", f"{i}", f"{i}") for i in range(400)]
    kept, held_out = data.split(rows, 0.25, seed=1)
    assert not {row.prompt for row in kept} & {row.prompt for row in held_out}
    assert 90 <= len(held_out) <= 110 and data.split(rows, 0.25, seed=2)[1] != held_out


def test_rows_needed_tell_two_shares_apart_as_often_as_said():
    """Drawn 2,000 times, with the test that the formula is for."""
    rng = random.Random(0)
    for before, after in ((0.5, 0.7), (0.8, 0.9)):
        n, told = data.rows_needed(before, after), 0
        for _ in range(2000):
            a, b = (sum(rng.random() < p for _ in range(n)) / n for p in (before, after))
            middle = (a + b) / 2
            told += abs(b - a) > 1.96 * (2 * middle * (1 - middle) / n) ** 0.5
        assert 0.77 < told / 2000 < 0.84, (before, after, n, told)
    assert data.rows_needed(0.5, 0.51) > 10_000 > data.rows_needed(0.0, 1.0)


@pytest.mark.parametrize("call", [
    lambda: data.check([]), lambda: data.check([("a", "b")]), lambda: data.split(3), lambda: data.read(3),
    lambda: data.split([data.Row("a", "b", "1")] * 3), lambda: data.rows_needed(0.5, 0.5),
    lambda: data.rows_needed(2, 0.5), lambda: data.split([data.Row("a", "b", "1")], test=2),
])
def test_odd_arguments_are_refused_with_a_reason(call):
    with pytest.raises(LabError):
        call()


def test_the_command_prints_what_was_understood_and_what_is_odd(tmp_path, capsys):
    assert command.main([str(data.example("support"))]) == 0
    assert "300 rows, read as CSV" in (said := capsys.readouterr().out) and "Nothing found" in said
    odd = written(tmp_path, "a.csv", "ask,why,say\na,b,c\na,b,c\nd,e,\nf\n")
    assert command.main([str(odd)]) == 2 and "Which columns" in capsys.readouterr().err
    assert command.main([str(odd), "--prompt", "ask", "--answer", "say"]) == 1
    said = capsys.readouterr().out
    assert "Odd, line 5: 1 cells" in said and "Rows that repeat an earlier one: 1 (line 3)" in said


def test_prompts_that_are_alike_stay_on_one_side_of_a_split_unless_they_are_most_of_the_rows():
    forms = [f"Ticket of room {room}: the {thing} in it is broken since Monday, please send somebody" for room in "ABC"
             for thing in ("lamp", "heating", "door lock")]
    rng = random.Random(0)
    others = [" ".join("".join(rng.choices("abcdefghiklmnoprstuw", k=6)) for _ in range(6)) for _ in range(90)]
    found = reading.from_rows([{"prompt": text, "answer": "same"} for text in forms[:4] + others])
    for seed in range(5):
        train, test = data.split(found, 0.3, seed)
        assert sum(row.prompt in forms for row in test) in (0, 4)
        assert not [finding for finding in data.check(train, test=test) if finding.what == "leak"]
    alike = reading.from_rows([{"prompt": f"{forms[0]} {n}", "answer": "same"} for n in range(40)])
    train, test = data.split(alike, 0.25)
    assert (len(train), len(test)) == (30, 10) and any(f.what == "leak" for f in data.check(train, test=test))


def test_few_answers_in_several_spellings_are_named_with_the_usual_one():
    kinds = ["Network / VPN"] * 9 + ["Network/VPN"] * 2 + ["Printer"] * 8 + ["printer "]
    found = data.check(reading.from_rows([{"prompt": f"{n} {n * n}", "answer": kind} for n, kind in enumerate(kinds)]))
    (spelling,) = [finding for finding in found if finding.what == "spelling"]
    assert len(spelling.places) == 3 and "'Network/VPN' beside 'Network / VPN'" in str(spelling)
    whole = [{"prompt": f"{n} {n * n}", "answer": f"{n}, it is"} for n in range(20)]
    whole += [{"prompt": "x", "answer": "7 it is"}]
    assert not [finding for finding in data.check(reading.from_rows(whole)) if finding.what == "spelling"]


def test_a_subject_and_a_body_make_one_prompt(tmp_path, capsys):
    file = written(tmp_path, "a.csv", "no,subject,body,team\n1,Late,Where is it?,delivery\n2,Broken,,returns\n")
    found = data.read(file, prompt=["subject", "body"], answer="team")
    assert [row.prompt for row in found.rows] == ["Late\nWhere is it?", "Broken"]
    command.main([str(file), "--prompt", "subject", "--prompt", "body", "--answer", "team"])
    assert "subject + body" in capsys.readouterr().out
    with pytest.raises(LabError, match="Did you mean 'body'"):
        data.read(file, prompt=["subject", "boddy"], answer="team")
    with pytest.raises(LabError, match="a list of names"):
        data.read(file, prompt=[], answer="team")
