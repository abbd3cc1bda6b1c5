"""A page of HTML, read for tests."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Parsed HTML page: elements with their attributes, and tables as rows of texts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.tables, self.cell = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(" ".join(self.cell.split()))
            self.cell = None

    def handle_data(self, data):
        if self.cell is not None:
            self.cell += data

    def values(self, attribute):
        return [found[attribute] for _, found in self.elements if attribute in found]

    def table(self, *heading):
        (found,) = (rows[1:] for rows in self.tables if [cell for cell in rows[0] if cell] == list(heading))
        return [[cell for cell in row if cell] for row in found]
