"""Encoding: what the model reads and what it should write, for tokenizers of several kinds."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from dollartune.backbones.loading import Backbone, load_backbone
from dollartune.errors import UserError
from dollartune.tasks.base import Example, Task, Template
from dollartune.train.batching import Collator
from dollartune.train.encoding import Encoder, collate_prompts


def a_task(words: dict[str, str] | None = None, prompt: str = "{text}\nQuestion: {question}\nAnswer:") -> Task:
    return Task("t", "classification", dict, Template(prompt), words or {"0": "no", "1": "yes"})


def an_example(text: str = "The sky is blue.", question: str = "Is it?") -> Example:
    return Example("test/0", {"text": text, "question": question}, "1")


def word_tokenizer(vocabulary: list[str], split: bool) -> Any:
    """Words as tokens; without `split` the whole text is looked up at once."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(["<pad>", "<end>", "<unk>", *vocabulary])}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    if split:
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", bos_token="<end>"
    )


def test_prompt_and_answer_spell_the_text(backbone: Backbone) -> None:
    encoder = Encoder(backbone)
    (encoded,) = encoder.encode(a_task(), [an_example()])
    tokenizer = backbone.processor
    assert tokenizer.decode(encoded.prompt, skip_special_tokens=True).endswith("Answer:")
    assert tokenizer.decode(encoded.answer, skip_special_tokens=True).strip() == "yes"
    assert encoded.answer[-1] == tokenizer.eos_token_id
    together = tokenizer.decode((*encoded.prompt, *encoded.answer), skip_special_tokens=True)
    assert together == "The sky is blue.\nQuestion: Is it?\nAnswer: yes"
    assert encoded.length == len(encoded.prompt) + len(encoded.answer)


def test_the_answers_tokens_are_those_that_follow_the_prompt(backbone: Backbone) -> None:
    words = word_tokenizer(["Answer", ":", "yes", "no", "Is", "it", "?"], split=True)
    encoder = Encoder(replace(backbone, processor=words))
    (encoded,) = encoder.encode(a_task(prompt="{question} Answer:"), [an_example()])
    assert encoded.prompt == tuple(words("Is it ? Answer :").input_ids)
    assert encoded.answer == (*words("yes").input_ids, words.eos_token_id)


def test_where_the_prompts_tokens_are_no_prefix_the_answer_is_encoded_by_itself(backbone: Backbone) -> None:
    whole = word_tokenizer(["Answer:", "Answer: yes", " yes", "Answer: no", " no"], split=False)
    encoder = Encoder(replace(backbone, processor=whole))
    assert encoder.label_answers(a_task()) == [
        (whole.convert_tokens_to_ids(" no"),),
        (whole.convert_tokens_to_ids(" yes"),),
    ]


def test_label_answers_have_an_end_mark_only_where_one_begins_another(backbone: Backbone) -> None:
    words = word_tokenizer(["Answer", ":", "good", "very", "bad"], split=True)
    encoder = Encoder(replace(backbone, processor=words))
    end = words.eos_token_id
    good, very, bad = (words.convert_tokens_to_ids(word) for word in ("good", "very", "bad"))
    assert encoder.label_answers(a_task({"a": "good", "b": "bad"})) == [(good,), (bad,)]
    assert encoder.label_answers(a_task({"a": "good", "b": "good very"})) == [(good, end), (good, very, end)]


def test_encoder_decoders_read_the_prompt_and_write_the_answer(local_backbone: Any) -> None:
    t5 = load_backbone(str(local_backbone("t5")))
    (encoded,) = Encoder(t5).encode(a_task(), [an_example()])
    assert t5.processor.decode(encoded.prompt, skip_special_tokens=True).endswith("Answer:")
    assert t5.processor.decode(encoded.answer, skip_special_tokens=True).strip() == "yes"
    batch = Collator(t5)([encoded])
    start = t5.model.config.decoder_start_token_id
    assert batch.inputs["decoder_input_ids"].tolist() == [[start, *encoded.answer[:-1]]]
    assert batch.targets.tolist() == list(encoded.answer)
    assert batch.keep is not None
    assert batch.keep[1].tolist() == list(range(len(encoded.answer)))


def test_what_does_not_fit_is_shortened_and_the_question_stays(backbone: Backbone) -> None:
    encoder = Encoder(backbone, max_length=48)
    long = an_example(text=" ".join(["many words about nothing"] * 60))
    (encoded,) = encoder.encode(a_task(), [long])
    text = backbone.processor.decode(encoded.prompt, skip_special_tokens=True)
    assert len(encoded.prompt) + len(encoded.answer) <= 48
    assert text.endswith("Question: Is it?\nAnswer:")
    assert text.startswith("many words")
    assert encoder.shortened == 1


def test_a_column_that_the_prompt_does_not_show_has_no_part_in_shortening(backbone: Backbone) -> None:
    encoder = Encoder(backbone, max_length=48)
    long = an_example(text=" ".join(["many words about nothing"] * 60))
    beside = replace(long, fields={**long.fields, "notes": "longer than all that is shown " * 200})
    shown, with_notes = encoder.encode(a_task(), [long, beside])
    assert with_notes.prompt == shown.prompt


def test_a_question_that_is_too_long_itself_keeps_its_end(backbone: Backbone) -> None:
    encoder = Encoder(backbone, max_length=16)
    task = a_task(
        prompt="A prompt of many words that alone is longer than anything that fits in here: {question} Answer:"
    )
    (encoded,) = encoder.encode(task, [an_example()])
    assert len(encoded.prompt) <= 16
    assert backbone.processor.decode(encoded.prompt).endswith("Answer:")


@pytest.mark.parametrize("family", ["bart", "opt", "t5"])
def test_no_input_is_longer_than_the_positions(local_backbone: Any, family: str) -> None:
    found = load_backbone(str(local_backbone(family)))
    encoder = Encoder(found)
    text = an_example(text="word " * 400)
    (encoded,) = encoder.encode(a_task(), [text])
    assert encoder.max_length == (512 if family == "t5" else 128)
    assert len(encoded.prompt) <= encoder.max_length
    writing = replace(a_task(), kind="generation", label_words={}, max_answer_tokens=40)
    (encoded,) = encoder.encode(writing, [replace(text, label=None, target="short")])
    if family == "opt":  # what is generated needs places too
        assert len(encoded.prompt) + 40 < 128


def test_answers_that_are_too_long_leave_room_for_the_prompt(backbone: Backbone) -> None:
    task = replace(a_task(), kind="generation", label_words={}, max_answer_tokens=8)
    example = replace(an_example(), label=None, target="a long story " * 50)
    (encoded,) = Encoder(backbone, max_length=40).encode(task, [example])
    assert len(encoded.answer) <= 21
    assert len(encoded.prompt) + len(encoded.answer) <= 40
    assert len(encoded.prompt) > 5


def test_a_classifier_reads_one_column_alone_and_two_as_a_pair(local_backbone: Any) -> None:
    bert = load_backbone(str(local_backbone("bert")), "classification", ("0", "1"))
    encoder = Encoder(bert)
    (single,) = encoder.encode(a_task(prompt="{text}"), [an_example()])
    (pair,) = encoder.encode(a_task(), [an_example()])
    assert single.label == 1
    assert bert.processor.decode(single.prompt, skip_special_tokens=True) == "The sky is blue."
    assert len(pair.prompt) > len(single.prompt)
    with pytest.raises(UserError, match="has no label"):
        encoder.encode(a_task(), [replace(an_example(), label=None)])


def test_prompts_alone_are_padded_on_the_side_that_is_asked_for(backbone: Backbone) -> None:
    rows = Encoder(backbone).encode(a_task(prompt="{text}"), [an_example("one"), an_example("one two three four")])
    left = collate_prompts(rows, 0, left=True)
    right = collate_prompts(rows, 0, left=False)
    assert left["attention_mask"][0].tolist() == sorted(left["attention_mask"][0].tolist())
    assert torch.equal(left["input_ids"][0][left["attention_mask"][0] == 1], torch.tensor(rows[0].prompt))
    assert right["attention_mask"][0, 0] == 1
    assert right["attention_mask"][0, -1] == 0


def worded(words: dict[str, str]) -> Task:
    rows = [Example(f"train/{n}", {"text": f"row {n}"}, label=next(iter(words))) for n in range(3)]
    return Task("marks", "classification", lambda: {"train": rows}, template=Template("{text}:"), label_words=words)


@pytest.mark.parametrize("words", [{"0": "\u9f98", "1": "\u9f99"}, {"a": "\u6f22 \u5b57", "b": "\u6f23 \u5b57"}])
def test_label_words_of_equal_tokens_are_refused(words: dict[str, str]) -> None:
    """A tokenizer without byte fallback reads whatever it does not know as one token, and every row would be 0.5 / 0.5."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backbone = load_backbone("tiny-decoder")
    plain = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "Answer": 2, ":": 3, "row": 4, "yes": 5}, "<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", eos_token="</s>", pad_token="</s>")
    encoder = Encoder(replace(backbone, processor=tokenizer))
    task = worded(words)
    with pytest.raises(UserError, match=r"(?s)are the same tokens.*label_words"):
        encoder.label_answers(task)
    with pytest.raises(UserError, match="are the same tokens"):
        encoder.encode(task, task.load()["train"])
    one = worded({"0": "yes", "1": "\u9f98"})
    assert encoder.label_notes(one) == [
        "the tokenizer does not know all of the answers '\u9f98' and reads them in part as <unk>"
    ]
    assert len(encoder.encode(one, one.load()["train"])) == 3


def test_an_input_of_just_the_longest_length_is_not_shortened(local_backbone: Any) -> None:
    backbone = load_backbone(str(local_backbone("bert")), "classification", ("no", "yes"))
    task = Task("t", "classification", dict, Template("{text}"), {"no": "no", "yes": "yes"})
    example = Example("test/0", {"text": "The sky is blue and so is the sea."}, "yes")
    (whole,) = Encoder(backbone, 128).encode(task, [example])
    for length, shortened in ((len(whole.prompt), 0), (len(whole.prompt) - 1, 1)):
        encoder = Encoder(backbone, length)
        encoder.encode(task, [example])
        assert encoder.shortened == shortened


class Counting:
    """A tokenizer that keeps the lengths of the texts that it is given, call by call."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.read = inner, list[list[int]]()

    def __call__(self, *texts: Any, **named: Any) -> Any:
        self.read.append([len(one) for text in texts for one in ([text] if isinstance(text, str) else text)])
        return self.inner(*texts, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.mark.parametrize("prompt", ["{text}", "{text} {question}"])
def test_rows_of_a_classifier_are_tokenized_together_as_each_alone(local_backbone: Any, prompt: str) -> None:
    bert = load_backbone(str(local_backbone("bert")), "classification", ("0", "1"))
    examples = [replace(an_example(f"The sky is blue{', or so,' * (n % 7)}."), id=f"train/{n}") for n in range(40)]
    counting = Counting(bert.processor)
    rows = Encoder(replace(bert, processor=counting)).encode(a_task(prompt=prompt), examples)
    assert len(counting.read) == 1
    for row, example in zip(rows, examples, strict=True):
        texts = [example.fields[name] for name in a_task(prompt=prompt).template.columns]
        assert row.prompt == tuple(bert.processor(*texts).input_ids)
        assert row.example_id == example.id


@pytest.mark.parametrize("prompt", ["{text}", "{text} {question}"])
def test_of_a_long_text_only_what_can_be_read_is_tokenized(local_backbone: Any, prompt: str) -> None:
    bert = load_backbone(str(local_backbone("bert")), "classification", ("0", "1"))
    counting = Counting(bert.processor)
    encoder = Encoder(replace(bert, processor=counting), 16)
    long = an_example(" ".join(f"The sky is blue on day {n}." for n in range(1000)))
    (row,) = encoder.encode(a_task(prompt=prompt), [long])
    texts = [long.fields[name] for name in a_task(prompt=prompt).template.columns]
    whole = bert.processor(*texts, truncation=True, max_length=16)
    assert row.prompt == tuple(whole.input_ids)
    assert encoder.shortened == 1
    assert sum(map(sum, counting.read)) < 6 * 8 * 16
    # one word without an end cannot be cut, and a few long words are no beginning that says enough
    # pages of white space may come first
    for text in ("x" * 5000, " ".join(["zzzz" * 64] * 20), "\n" * 3000 + "The sky is blue."):
        (row,) = encoder.encode(a_task(prompt="{text}"), [an_example(text)])
        assert row.prompt == tuple(bert.processor(text, truncation=True, max_length=16).input_ids)
