"""The search index, compared with a plain look through the text."""

import json

from docs.book.search import index, script

MASKS = (
    "<h1 id='masks'>Masks</h1><p>A mask of p&amp;q.</p><h2 id='two'>Two <code>fully_shard</code></h2><p>Shard it</p>"
)
PAGES = [
    ("a.html", "Masks", MASKS + "<pre>model.fully_shard(x)</pre>"),
    ("b.html", "Memory", "<p>Before</p><h1 id='memory'>Memory</h1><script>secret</script><p>mask</p><svg>drawn</svg>"),
]


def places(found, word):
    flat = found["places"][found["words"].index(word)]
    sections = [found["sections"][n] for n in flat[::2]]
    return {
        (found["pages"][page][0], anchor): weight
        for (page, anchor, *_), weight in zip(sections, flat[1::2], strict=True)
    }


def test_words_lead_to_their_sections_and_headings_count_more():
    found = index(PAGES)
    assert places(found, "mask") == {("a.html", "masks"): 1, ("b.html", "memory"): 1}
    assert places(found, "masks") == {("a.html", "masks"): 8}
    assert places(found, "fully_shard") == {("a.html", "two"): 9}  # heading and code
    assert places(found, "shard") == {("a.html", "two"): 9}  # parts of names, too; 9 is the most
    assert places(found, "before") == {("b.html", ""): 1}
    assert not {"secret", "drawn", "p"} & set(found["words"])
    assert found["sections"][0][2:] == ["Masks", "A mask of p&q."]


def test_the_index_is_a_script_that_nothing_in_it_ends():
    text = script(index([("a.html", "</script>", "<p>&lt;/script&gt; \u2028 é</p>")]))
    assert text.isascii()
    value = json.loads(text.removeprefix("window.bookIndex = ").rstrip(";\n"))
    assert value["pages"] == [["a.html", "</script>"]]


def test_words_are_sorted_as_the_browser_compares_them():
    words = index([("a.html", "x", "<p>zz \U0001d4b3\U0001d4b3 \ufb01\ufb01 ab</p>")])["words"]
    assert words == sorted(words, key=lambda word: word.encode("utf-16-be"))
