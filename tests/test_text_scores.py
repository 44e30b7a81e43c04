"""BERTScore against a computation by hand, and the vision model's score, on tiny random networks of transformers."""

import json
import shutil
import sys

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, processors
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from asyncpatch_jax.metrics import text
from asyncpatch_jax.metrics.text import (
    RATING,
    VisionLanguage,
    Words,
    bert_score,
    captions,
    qwen_score,
    read_bert,
    vlm_score,
)
from tests import tiny

CANDIDATES = ["a red dog", "two cats on the street", "a sheep"]
REFERENCES = ["the dog is red", "two cats on the street", "a car and a horse"]


def words_tokenizer(special, template):
    words = dict.fromkeys(
        " ".join([*CANDIDATES, *REFERENCES, "Does this image show Please answer yes or no Yes", *"0123456789"]).split()
    )
    vocab = {word: i for i, word in enumerate([*special, *words])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=special[0]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(special)
    if template:
        pairs = [(token, vocab[token]) for token in template.split() if token in vocab]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=pairs)
    return backend, vocab


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    backend, vocab = words_tokenizer(["[UNK]", "[PAD]", "[CLS]", "[SEP]"], "[CLS] $A [SEP]")
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocab), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=20
    )
    tiny.randomised(transformers.BertModel(config), seed=0).save_pretrained(folder)
    return folder


def test_no_code_of_a_folder_is_run(bert, tmp_path, monkeypatch):
    """A model that transformers has not, with its code beside it; nobody is asked either."""
    folder = shutil.copytree(bert, tmp_path / "bert")
    (folder / "code.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()")
    content = json.loads((folder / "config.json").read_text())
    content |= {"auto_map": {"AutoConfig": "code.Own", "AutoModel": "code.Own"}, "model_type": "own"}
    (folder / "config.json").write_text(json.dumps(content))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ValueError, match=r"that transformers' own code reads, got .*bert: .*contains custom code"):
        read_bert(folder, 1)
    assert not (tmp_path / "ran").exists()


def by_hand(a, b):
    """Precision of a text against another: means over the tokens between the first and the last."""
    best = []
    for x in a[1:-1]:
        best.append(max(float(x @ y) / float(np.linalg.norm(x) * np.linalg.norm(y)) for y in b))
    return np.mean(best)


def test_bert_score_is_that_by_hand(bert):
    scores = bert_score(read_bert(bert, 2), CANDIDATES, REFERENCES)
    model = transformers.BertModel.from_pretrained(bert).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    for i, pair in enumerate(zip(CANDIDATES, REFERENCES, strict=True)):
        with torch.no_grad():
            a, b = (
                model(**tokenizer(one, return_tensors="pt"), output_hidden_states=True).hidden_states[2][0].numpy()
                for one in pair
            )
        precision, recall = by_hand(a, b), by_hand(b, a)
        assert len(a) == len(pair[0].split()) + 2
        np.testing.assert_allclose(scores.precision[i], precision, rtol=1e-5)
        np.testing.assert_allclose(scores.recall[i], recall, rtol=1e-5)
        np.testing.assert_allclose(scores.f1[i], 2 * precision * recall / (precision + recall), rtol=1e-5)
    np.testing.assert_allclose(scores.f1[1], 1, rtol=1e-5)  # the same text
    assert scores.f1[2] < 0.99


def test_roberta_s_vectors_are_transformers(bert, tmp_path):
    """Of a checkpoint that predicts words: its places begin after padding's, and it has a head and a later layer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    tokenizer.save_pretrained(tmp_path)
    settings = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 20}
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer), pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-2, max_position_embeddings=24,
        **settings,
    )  # fmt: skip
    model = tiny.randomised(transformers.RobertaForMaskedLM(config), seed=0)
    model.save_pretrained(tmp_path)
    long = " ".join(["a red dog"] * 12)  # of more tokens than there are places
    ours = read_bert(tmp_path, 2)([*CANDIDATES, long] * 9)  # more than a batch
    for said, words in zip([*CANDIDATES, long], ours[-4:], strict=True):
        tokens = tokenizer(said, return_tensors="pt", truncation=True, max_length=22)
        with torch.no_grad():
            theirs = model.roberta(**tokens, output_hidden_states=True).hidden_states[2][0]
        np.testing.assert_allclose(words.vectors, theirs, atol=2e-5)
        assert words.counted.tolist() == [False] + [True] * (len(theirs) - 2) + [False]


def test_bert_score_of_known_vectors():
    """Two candidates' tokens along axes 0 and 1, references along 0 alone, with special tokens along axis 2."""
    eye = np.eye(3, dtype=np.float32)
    said = {"both": [2, 0, 1, 2], "one": [2, 0, 2]}

    def embed(texts):
        return [Words(3 * eye[said[t]], np.array([False] + [True] * (len(said[t]) - 2) + [False])) for t in texts]

    scores = bert_score(embed, ["both"], ["one"])
    assert (scores.precision[0], scores.recall[0]) == (0.5, 1.0)
    np.testing.assert_allclose(scores.f1[0], 2 / 3, rtol=1e-6)


def test_what_bert_score_refuses(bert, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="got 1 and 2"):
        bert_score(read_bert(bert, 1), ["a"], ["a", "b"])
    with pytest.raises(ValueError, match="at least one token"):
        bert_score(read_bert(bert, 1), ["a"], [""])
    with pytest.raises(ValueError, match="layer from 0 to 3, got 4"):
        read_bert(bert, 4)
    with pytest.raises(ValueError, match="expected a folder"):
        read_bert(bert / "nowhere", 1)
    other = shutil.copytree(bert, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "deberta"}))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="expected torch: pip install torch"):
        read_bert(other, 1)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"asyncpatch_jax\[text\]"):
        read_bert(bert, 1)


class Processor:
    """What Qwen2.5-VL's processor does with one image and one question; the real one needs torchvision."""

    def __init__(self):
        special = ["<unk>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|im_end|>"]
        backend, self.vocab = words_tokenizer(special, None)
        kinds = {"unk_token": "<unk>", "eos_token": "<|im_end|>"}
        self.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **kinds)
        self.images = Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=4096
        )

    def apply_chat_template(self, messages, **kwargs):
        assert kwargs["tokenize"]
        assert kwargs["return_dict"]
        assert kwargs["add_generation_prompt"]
        (message,) = messages
        image, question = message["content"]
        found = dict(self.images(image["image"], return_tensors="pt"))
        count = int(found["image_grid_thw"].prod()) // 4
        start, pad, end = (self.vocab[f"<|{name}|>"] for name in ("vision_start", "image_pad", "vision_end"))
        ids = [start, *[pad] * count, end, *self.tokenizer.encode(question["text"], add_special_tokens=False)]
        ids = torch.tensor([ids])
        mask = {"attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == pad).long()}
        return transformers.BatchFeature({"input_ids": ids, **mask, **found})


@pytest.fixture(scope="module")
def vlm():
    processor = Processor()
    vocab = processor.vocab
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(vocab), "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "eos_token_id": vocab["<|im_end|>"],
            "bos_token_id": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 20, "num_heads": 2, "patch_size": 4,
            "out_hidden_size": 16, "window_size": 16, "fullatt_block_indexes": [1],
        },
        image_token_id=vocab["<|image_pad|>"],
        vision_start_token_id=vocab["<|vision_start|>"],
        vision_end_token_id=vocab["<|vision_end|>"],
    )  # fmt: skip
    model = tiny.randomised(transformers.Qwen2_5_VLForConditionalGeneration(config), seed=0)
    return VisionLanguage(model, processor)


def some_images(count=3):
    return np.random.default_rng(0).integers(0, 256, (count, 16, 24, 3), dtype=np.uint8)


def test_vlm_score_is_the_probability_of_yes(vlm):
    images = some_images()
    scores = vlm_score(vlm, images, CANDIDATES)
    assert scores.shape == (3,)
    yes = vlm.processor.vocab["Yes"]
    for image, words, score in zip(images, CANDIDATES, scores, strict=True):
        inputs = text._inputs(vlm, image, f'Does this image show "{words}"? Please answer yes or no.')
        with torch.no_grad():
            theirs = torch.softmax(vlm.model(**inputs).logits[0, -1], -1)[yes]
        np.testing.assert_allclose(score, theirs, rtol=1e-4)
    other = vlm_score(vlm, images[::-1], CANDIDATES)
    assert np.abs(other - scores).max() > 1e-4  # it sees the image
    assert np.abs(vlm_score(vlm, images, REFERENCES) - scores)[[0, 2]].min() > 1e-5  # and the text
    with pytest.raises(ValueError, match="each of 3 images, got 2"):
        vlm_score(vlm, images, CANDIDATES[:2])


def test_qwen_score_is_the_likeliest_digit(vlm):
    images, question = some_images(), "does this image show {} yes or no"
    scores = qwen_score(vlm, images, CANDIDATES, question)
    digits = [vlm.processor.vocab[str(digit)] for digit in range(10)]
    for image, words, score in zip(images, CANDIDATES, scores, strict=True):
        with torch.no_grad():
            logits = vlm.model(**text._inputs(vlm, image, f"does this image show {words} yes or no")).logits[0, -1]
        assert score == int(logits[digits].argmax())
    many = qwen_score(vlm, np.concatenate([some_images(), 255 - some_images()]), CANDIDATES + REFERENCES, question)
    assert len(set(many)) > 1  # it sees the image and the text
    assert RATING.count("{}") == 1
    with pytest.raises(ValueError, match=r"a question with \{\} for the text, got 'how good\?'"):
        qwen_score(vlm, images, CANDIDATES, "how good?")
    with pytest.raises(ValueError, match="each of 3 images, got 2"):
        qwen_score(vlm, images, CANDIDATES[:2])


def test_captions_are_the_likeliest_words(vlm):
    images = some_images(2)
    said = captions(vlm, images, "Please answer", max_tokens=3)
    assert len(said) == 2
    inputs = text._inputs(vlm, images[0], "Please answer")
    with torch.no_grad():
        first = int(vlm.model(**inputs).logits[0, -1].argmax())
    assert said[0].split()[:1] == vlm.processor.tokenizer.decode([first], skip_special_tokens=True).split()


def test_a_tokenizer_that_cuts_yes(vlm):
    class Cut:
        def encode(self, words, **kwargs):
            return [1, 2]

    processor = type("Other", (), {"tokenizer": Cut()})()
    with pytest.raises(ValueError, match="one token, got 2"):
        vlm_score(VisionLanguage(vlm.model, processor), some_images(1), ["a dog"])
    with pytest.raises(ValueError, match="each digit is one token, got 2"):
        qwen_score(VisionLanguage(vlm.model, processor), some_images(1), ["a dog"])
