"""Rows as an HTML table, without the libraries that plots need."""

import html

from IPython.display import HTML


class Page(HTML):
    """HTML with a text for places that show none, such as a plain Python program."""

    def __init__(self, data: str, text: str):
        super().__init__(data)
        self.text = text

    def __repr__(self) -> str:
        return self.text


def table(rows: list[dict]) -> Page:
    """Rows (dicts with the same keys) as a table; cells are escaped."""
    def line(tag, cells):
        return "".join(f'<{tag} style="text-align:left">{html.escape(str(cell))}</{tag}>' for cell in cells)

    head = line("th", rows[0])
    body = "".join(f"<tr>{line('td', row.values())}</tr>" for row in rows)
    text = "\n".join(" | ".join(map(str, cells)) for cells in (rows[0], *(row.values() for row in rows)))
    return Page(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>", text)
