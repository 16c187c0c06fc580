"""Texts with tags and categories that are made up, for spaCy to learn; bench/ has them too."""

import numpy as np
import spacy

TAGS = {
    "DET": ("the", "a", "every", "some"),
    "ADJ": ("red", "old", "happy", "tall", "quiet"),
    "NOUN": ("dog", "house", "child", "tree", "river", "bird"),
    "VERB": ("sees", "likes", "finds", "follows"),
    "ADV": ("often", "gladly", "never"),
}
PATTERNS = (
    ("DET", "NOUN", "VERB", "DET", "NOUN"),
    ("DET", "ADJ", "NOUN", "ADV", "VERB", "DET", "NOUN"),
    ("DET", "NOUN", "VERB", "ADV"),
)
HAPPY = ("happy", "likes", "gladly")


def documents(count):
    """Return texts with tags and categories, the same for each call."""
    rng = np.random.default_rng(7)
    vocabulary = spacy.blank("en")
    for i in range(count):
        pattern = PATTERNS[i % len(PATTERNS)]
        words = [str(rng.choice(TAGS[tag])) for tag in pattern]
        is_happy = any(word in HAPPY for word in words)
        doc = spacy.tokens.Doc(vocabulary.vocab, words, tags=pattern)
        doc.cats = {"happy": float(is_happy), "other": float(not is_happy)}
        yield doc
