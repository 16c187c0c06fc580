"""A tagger and a text classifier of spaCy, trained by its own loop with thinc's Adam and ours."""

import pickle

import numpy as np
import pytest

thinc = pytest.importorskip("thinc.api", reason="thinc is not installed")
spacy = pytest.importorskip("spacy", reason="spaCy is not installed")

from spacy.training import Example  # noqa: E402
from spacy.training.initialize import init_nlp  # noqa: E402
from spacy.training.loop import train  # noqa: E402
from spacy_texts import documents  # noqa: E402

import adamas.thinc  # noqa: E402

CONFIG = """
[nlp]
lang = "en"
pipeline = ["tok2vec", "tagger", "textcat"]

[components]

[components.tok2vec]
factory = "tok2vec"

[components.tok2vec.model]
@architectures = "spacy.HashEmbedCNN.v2"
width = 32
depth = 2
embed_size = 200
window_size = 1
maxout_pieces = 2
subword_features = true
pretrained_vectors = null

[components.tagger]
factory = "tagger"

[components.tagger.model]
@architectures = "spacy.Tagger.v2"

[components.tagger.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = 32

[components.textcat]
factory = "textcat"

[components.textcat.model]
@architectures = "spacy.TextCatEnsemble.v2"

[components.textcat.model.linear_model]
@architectures = "spacy.TextCatBOW.v3"
exclusive_classes = true
length = 1024
ngram_size = 1
no_output_layer = false

[components.textcat.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = 32

[corpora]

[corpora.train]
@readers = "spacy.Corpus.v1"
path = PLACE

[corpora.dev]
@readers = "spacy.Corpus.v1"
path = PLACE

[training]
max_steps = 24
eval_frequency = 8
seed = 1

[training.score_weights]
tag_acc = 0.5
cats_score = 0.5

[training.batcher]
@batchers = "spacy.batch_by_sequence.v1"
size = 16

[training.logger]
@loggers = "scores.v1"

[training.optimizer]
@optimizers = "NAME"
learn_rate = 0.01
use_averages = true
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    place = tmp_path_factory.mktemp("corpus") / "train.spacy"
    spacy.tokens.DocBin(docs=documents(160), store_user_data=True).to_disk(place)
    return place


@pytest.fixture(scope="module")
def logger():
    """Register a logger that keeps the scores, as long as these tests run."""
    scores = []

    def keep(nlp, stdout=None, stderr=None):
        def log(info):
            if info is not None and info["score"] is not None:
                scores.append((info["step"], info["score"], dict(info["losses"])))

        return log, lambda: None

    spacy.registry.loggers.register("scores.v1", func=lambda: keep)
    return scores


def trained(name, corpus, logger, output=None, **optimizer):
    """Return the pipeline that spaCy's loop makes of a config, and the scores on the way."""
    text = CONFIG.replace("NAME", name).replace("PLACE", f'"{corpus}"')
    config = thinc.Config().from_str(text)
    config["training"]["optimizer"].update(optimizer)
    config = spacy.util.load_config(spacy.language.DEFAULT_CONFIG_PATH).merge(config)
    logger.clear()
    nlp = init_nlp(config)
    train(nlp, output)
    return nlp, list(logger)


@pytest.fixture(scope="module")
def both(corpus, logger):
    return {name: trained(name, corpus, logger) for name in ("Adam.v1", "adamas.Adam.v1")}


def arrays(nlp):
    return {
        (component, node, parameter): array.get_param(parameter)
        for component, pipe in nlp.pipeline
        for node, array in enumerate(pipe.model.walk())
        for parameter in array.param_names
        if array.has_param(parameter)
    }


def test_scores_are_those_of_thincs_own(both):
    (_, theirs), (_, ours) = both["Adam.v1"], both["adamas.Adam.v1"]
    assert [step for step, *_ in ours] == [step for step, *_ in theirs] == [0, 8, 16, 24]
    assert ours[-1][1] > 0.95
    for (step, found, losses), (_, wanted, their_losses) in zip(ours, theirs, strict=True):
        assert found == pytest.approx(wanted, abs=0.02)
        if step <= 8:  # later on, training has enlarged what rounding has made different
            assert losses == pytest.approx(their_losses, rel=0.01)


def test_weights_are_those_of_thincs_own(both):
    found, wanted = (arrays(both[name][0]) for name in ("adamas.Adam.v1", "Adam.v1"))
    assert found.keys() == wanted.keys()
    assert len(found) > 20
    close = [np.isclose(found[k], wanted[k], rtol=0.02, atol=0.02).mean() for k in wanted]
    assert min(close) > 0.9, close


def test_the_config_differs_in_one_line():
    configs = [CONFIG.replace("NAME", name).splitlines() for name in ("Adam.v1", "adamas.Adam.v1")]
    changed = [pair for pair in zip(*configs, strict=True) if pair[0] != pair[1]]
    assert changed == [('@optimizers = "Adam.v1"', '@optimizers = "adamas.Adam.v1"')]


def test_a_pipeline_on_disk_names_the_optimizer_and_keeps_none(corpus, logger, tmp_path):
    """Neither spaCy nor thinc saves the state of optimizers, whosever they are."""
    nlp, _ = trained("adamas.Adam.v1", corpus, logger, tmp_path, use_averages=False)
    loaded = spacy.load(tmp_path / "model-last")
    assert loaded.config["training"]["optimizer"]["@optimizers"] == "adamas.Adam.v1"
    assert loaded._optimizer is None
    text = "the happy dog often likes every child"
    assert [token.tag_ for token in loaded(text)] == [token.tag_ for token in nlp(text)]
    resumed = loaded.resume_training()
    assert type(resumed) is adamas.thinc.Optimizer
    assert not resumed.mom1
    nlp.from_bytes(nlp.to_bytes())


def small(optimizer="adamas.Adam.v1"):
    """Return a pipeline that trains without spaCy's loop, and its examples."""
    nlp = spacy.blank("en")
    nlp.config["training"]["optimizer"] = {"@optimizers": optimizer, "learn_rate": 0.01}
    examples = [Example(nlp.make_doc(doc.text), doc) for doc in documents(32)]
    nlp.add_pipe("tagger")
    nlp.add_pipe("textcat")
    thinc.fix_random_seed(1)
    nlp.initialize(lambda: examples)
    return nlp, examples


def test_a_training_goes_on_after_a_pickle():
    """Of the optimizer beside the models' weights: its keys are the numbers of their nodes."""
    nlp, examples = small()
    models = {name: pipe.model for name, pipe in nlp.pipeline}
    for _ in range(2):
        nlp.update(examples, drop=0.0)
    optimizer = nlp._optimizer
    assert type(optimizer) is adamas.thinc.Optimizer
    assert len(optimizer.averages) == len(optimizer.mom1) == len(optimizer.nr_update) > 20
    kept = pickle.dumps((optimizer, {name: model.to_bytes() for name, model in models.items()}))
    results = []
    for restores in (False, True):
        if restores:
            nlp._optimizer, weights = pickle.loads(kept)  # noqa: S301
            for name, model in models.items():
                model.from_bytes(weights[name])
        thinc.fix_random_seed(3)
        for _ in range(3):
            nlp.update(examples, drop=0.0)
        ours = nlp._optimizer
        states = (arrays(nlp), ours.mom1, ours.mom2, ours.averages)
        results.append([{key: a.copy() for key, a in one.items()} for one in states])
    for one, other in zip(*results, strict=True):
        assert one.keys() == other.keys()
        for key, array in one.items():
            np.testing.assert_array_equal(array, other[key])


def test_rehearsal_reads_the_rates():
    nlp, examples = small()
    nlp.resume_training()
    before = dict(nlp._optimizer.nr_update)
    nlp.rehearse(examples[:4], losses={})
    assert nlp._optimizer.nr_update != before
