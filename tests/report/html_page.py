"""A page of HTML as tests look at it."""

import html.parser


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and all of the text; tags must close in order."""

    VOID = ("meta", "br", "img", "link", "hr", "input")

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, words = [], [], []
        self.handle_data = lambda data: words.append(data) if "style" not in self.open else None
        self.feed(page)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def values(self, attribute):
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)
