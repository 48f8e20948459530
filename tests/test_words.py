"""volmig speaks the trade's English: words that it does not use, and a glossary of those that it does."""

import re

import pytest

from tests.words import PACKAGES, ROOT, of_document, of_documents, of_source, of_templates

# What is wrong -> what to write. Each stood on pages once; see docs/glossary.md.
INSTEAD = {
    r"told|tells?|telling": "reports, shows, notifies",
    r"somebody|anybody|everybody": "someone, or name who acts",
    r"by itself": "automatically",
    r"of its own": "its own …, separate",
    r"look(s|ed)? (at|again)": "check, inspect, scan, read",
    r"asked (of|for)": "request, require, read",
    r"carr(y|ies|ied) over": "migrate",
    r"consent(s|ed|ing)?": "approval, approve",
    r"the record": "the audit log",
    r"ledgers?": "inventory",
    r"things?": "object, or what it is",
    r"anew": "again",
    r"meanwhile": "until then, or leave it out",
    r"once more": "again",
    r"not for you to know": "not found, or no access",
}
BANNED = {re.compile(rf"\b(?:{words})\b", re.I): better for words, better in INSTEAD.items()}
# What cannot be changed here: the name of a check (engine), a column's (that would be a migration), a field of the API,
# and an act in plans, which are the same as in earlier releases.
FIXED = (
    "not locked by somebody else",
    "everybody with a role is a member",
    "{consents}",
    "so that it lasts when others export anew",
)
QUOTED = re.compile("|".join(map(re.escape, FIXED)))


def faults(text):
    """The banned words in a text."""
    return [found.group() for pattern in BANNED for found in [pattern.search(QUOTED.sub("", text))] if found]


def wrong(texts):
    return [(where, faults(text), text[:120]) for where, text in texts if faults(text)]


def test_pages_use_the_trades_words():
    assert wrong(of_templates()) == []


def test_documents_use_the_trades_words():
    assert wrong(of_documents()) == []


@pytest.mark.parametrize("package", ["volmig", "hosts", "jobs"])
def test_messages_use_the_trades_words(package):
    assert wrong(of_source(package)) == []


@pytest.mark.parametrize(
    "text",
    [
        "The cloud, as Nova last told.",
        "Somebody else has to decide.",
        "renamed back by itself",
        "It is looked at once more",
        "A purge is asked for already.",
        "Your consent is withdrawn",
        "The record keeps it.",
        "Not in the ledger",
    ],
)
def test_each_of_these_would_be_found(text):
    assert faults(text)


def test_the_readers_find_what_people_read():
    """A reader that goes blind would pass everything."""
    templates, documents = dict(of_templates()), dict(of_documents())
    source = dict(of_source("volmig", "hosts", "jobs"))
    assert len(templates) > 50
    assert len(documents) > 20
    assert len(source) > 2000
    assert any("it reserves its volume" in text for text in source.values()), "descriptions of the API are read, too"


# The glossary

TERMS = re.compile(r"^\*\*(.+?)\*\*", re.M)
# The left column of the table of one word for one thing, each as the product writes it.
ONE_WORD = (
    "migration, hypervisor, source, relay, destination, approval, decision, audit log, event, inventory, drift, "
    "orphaned, missing, cut-over, swap, pre-flight check, unreachable, scan, refresh, retention, copy round"
)


def product():
    """All that the product says, and the names in its code, in small letters."""
    said = [text for _, text in [*of_templates(), *of_source("volmig", "hosts", "jobs")]]
    names = [path.read_text(encoding="utf-8") for room in PACKAGES for path in (ROOT / room).rglob("*.py")]
    return " ".join([*said, *names]).lower()


def terms():
    return TERMS.findall((ROOT / "docs/glossary.md").read_text(encoding="utf-8"))


def test_the_glossary_is_in_order_and_has_each_term_once():
    found = [each.lower() for each in terms()]
    assert found == sorted(set(found))


def test_each_term_has_a_sentence_or_two():
    entries = re.split(TERMS, (ROOT / "docs/glossary.md").read_text(encoding="utf-8"))[2::2]
    assert all(5 <= len(each.split()) <= 60 for each in entries), [each[:40] for each in entries]


def test_the_one_word_for_each_thing_is_in_the_glossary():
    assert {each.strip() for each in ONE_WORD.split(",")} <= {each.lower() for each in terms()}


def test_the_product_uses_each_term_of_the_glossary():
    """In pages, messages or names in code; a document alone does not count."""
    all_of_it = product()
    stems = {term: re.escape(term.lower()).replace(r"\-", "[- ]?").replace(r"\ ", "[ _-]") for term in terms()}
    assert [term for term, stem in stems.items() if not re.search(rf"\b{stem}", all_of_it)] == []


def test_documents_without_code_are_read_as_paragraphs():
    text = "One `told` two\nthree\n\n```sh\ntell me\n```\nfour"
    assert [said for _, said in of_document(text, "x")] == ["One two three", "four"]
