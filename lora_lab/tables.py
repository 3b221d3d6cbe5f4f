"""Rows as an HTML table, without the libraries that plots need."""

import html

from IPython.display import HTML


def table(rows: list[dict]) -> HTML:
    """Rows (dicts with the same keys) as a table; cells are escaped."""
    def line(tag, cells):
        return "".join(f'<{tag} style="text-align:left">{html.escape(str(cell))}</{tag}>' for cell in cells)

    head = line("th", rows[0])
    body = "".join(f"<tr>{line('td', row.values())}</tr>" for row in rows)
    return HTML(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
