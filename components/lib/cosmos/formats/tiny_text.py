"""A tiny T5 in the layout that transformers writes: a real unigram vocabulary, random weights.

The vocabulary is trained with sentencepiece on the text below, so that prompts about driving and
robots split into a handful of pieces and everything else into letters. Training is single
threaded, hence deterministic.
"""

from __future__ import annotations

import io
from pathlib import Path

D_MODEL = 64
VOCABULARY = 160
EXTRA_IDS = 100

SUBJECTS = (
    "a car",
    "a truck",
    "a cyclist",
    "a pedestrian",
    "a bus",
    "a robot arm",
    "a teal robot",
    "a delivery robot",
    "a dog",
    "a rabbit",
    "an animal",
    "traffic",
)
ACTIONS = (
    "drives along the road",
    "stops at the traffic light",
    "turns left at the crossing",
    "turns right into a side street",
    "waits behind a parked van",
    "overtakes slowly on the motorway",
    "walks across the zebra crossing",
    "rides beside the river",
    "picks up a small box",
    "moves through the warehouse",
    "runs over the green meadow",
    "stands still in the middle of the picture",
)
SETTINGS = (
    "on a sunny day",
    "in heavy rain",
    "at night under street lamps",
    "in thick fog",
    "in the snow",
    "in the city centre",
    "on a country lane",
    "seen from the front camera",
    "seen from above",
    "with trees in the background",
)


def corpus() -> list[str]:
    """Sentences of captions, one for each subject, action and setting, and the prompt forms."""
    sentences = [
        f"A video of {subject} that {action} {setting}."
        for subject in SUBJECTS
        for action in ACTIONS
        for setting in SETTINGS
    ]
    sentences += [f"A video of sks {subject.split()[-1]}." for subject in SUBJECTS]
    sentences.append("The quick brown fox jumps over the lazy dog, 0 1 2 3 4 5 6 7 8 9.")
    sentences.append("PACK MY BOX WITH FIVE DOZEN LIQUOR JUGS; what a jinxed vow: \"yes\" - 'no'!?")
    return sentences


def write_tiny_t5(folder: Path, seed: int) -> Path:
    """Write config, weights and tokenizer of a T5 encoder of width 64; returns ``folder``."""
    import sentencepiece
    import torch
    from transformers import T5Config, T5EncoderModel, T5Tokenizer
    from transformers.utils import logging

    folder.mkdir(parents=True, exist_ok=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="unigram",
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(len(pieces))]
    vocabulary += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(EXTRA_IDS))]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=EXTRA_IDS)
    tokenizer.save_pretrained(str(folder))
    config = T5Config(
        d_model=D_MODEL,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        vocab_size=len(tokenizer),
        feed_forward_proj="relu",
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = T5EncoderModel(config)
    logging.disable_progress_bar()  # a bar for one small file would only break the log's lines
    encoder.save_pretrained(str(folder))
    return folder
