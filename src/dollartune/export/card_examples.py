"""The example of a model card: a whole program for each format, that asks one row as the adapter was tuned to be asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dollartune.backbones.locate import is_own_name


def example(info: Mapping[str, Any], form: str) -> list[str]:
    """Lines of Markdown.

    Args:
        info: what `adapter.json` holds, and what `handover.asked_by_hand` adds where the format is not ours.
        form: `dollartune`, `peft`, `merged`, `gguf` or `head`, whose facts are `info['head']`.
    """
    if form == "head":
        code = _head(info, info["head"])
    else:
        code = _ours(info) if form == "dollartune" else _theirs(info, form)
    needs_name = form in ("peft", "head") and is_own_name(str(info.get("backbone")))
    return [*_install(form, needs_name), "", "```python", *code, "```", *(_LLAMA_CPP if form == "gguf" else ())]


_LLAMA_CPP = ("", "Or with llama.cpp:", "", "```bash", "llama-server -m model.gguf", "```")


def _install(form: str, needs_name: bool) -> list[str]:
    """The command that makes the example run.

    Args:
        needs_name: whether the backbone has a name that DollarTune alone knows.
    """
    packages = {
        "dollartune": "dollartune",
        "peft": "peft torch transformers",
        "merged": "torch transformers",
        "gguf": "gguf accelerate torch transformers",
        "head": "torch transformers scikit-learn",
    }[form]
    return ["```bash", f"pip install {packages}{' dollartune' if needs_name else ''}", "```"]


def _base(name: str) -> tuple[list[str], list[str], str]:
    """How a program names the backbone: imports, lines before its first use, the expression."""
    if not is_own_name(name):
        return [], [], json.dumps(name)
    found = f"base = resolve({json.dumps(name)})  # the folder of the weights that it was tuned on"
    return ["from dollartune.backbones.locate import resolve"], [found], "base"


def _row(info: Mapping[str, Any]) -> str:
    columns = _columns(str((info.get("task") or {}).get("prompt") or ""))
    return json.dumps(dict.fromkeys(columns, "..."), ensure_ascii=False)


def _columns(prompt: str) -> tuple[str, ...]:
    from dollartune.tasks.base import Template

    return Template(prompt).columns if prompt else ()


def _ours(info: Mapping[str, Any]) -> list[str]:
    image = not (info.get("task") or {}).get("prompt")
    row = '{"image": Image.open("picture.png")}' if image else _row(info)
    return [
        "from pathlib import Path",
        "",
        *(["from PIL import Image", ""] if image else []),
        "from dollartune import open_adapter",
        "from dollartune.evaluate.predict import predict_rows",
        "",
        'tuned = open_adapter(Path("."))',
        f"print(predict_rows(tuned, [{row}])[0].predicted)",
    ]


def _theirs(info: Mapping[str, Any], form: str) -> list[str]:
    task = info.get("task") or {}
    whole = form in ("merged", "gguf")
    imports, found, base = ([], [], '"."') if whole else _base(str(info.get("backbone")))
    file = ', gguf_file="model.gguf"' if form == "gguf" else ""
    auto = auto_class(info)
    image = bool(task) and not task.get("prompt")
    processor = "AutoImageProcessor" if image else "AutoTokenizer"
    labels = (task.get("label_words") or {}) if info.get("objective") == "classification" else {}
    # The backbone may come with a head of other classes; the adapter brings its own.
    count = f", num_labels={len(labels)}, ignore_mismatched_sizes=True" if labels and form == "peft" else ""
    lines = ["import torch"]
    lines += [*imports, *(["from PIL import Image"] if image else [])]
    lines += ["from peft import PeftModel"] if form == "peft" else []
    lines += [
        f"from transformers import {', '.join(sorted([auto, processor]))}",
        "",
        *found,
        f"processor = {processor}.from_pretrained({base}{file})",
        f"model = {auto}.from_pretrained({base}{count}{file})",
        *(['model = PeftModel.from_pretrained(model, ".")'] if form == "peft" else []),
        "model.eval()",
    ]
    if not task:
        return lines
    lines.append("")
    if image:
        lines.append(_picture(info))
    else:
        lines.append(f"row = {_row(info)}")
        if info.get("objective") != "classification" or len(_columns(str(task["prompt"]))) > 2:
            lines.append(f"prompt = {json.dumps(task['prompt'], ensure_ascii=False)}.format(**row)")
    if info.get("objective") == "classification":
        return [*lines, *_classify(task, image)]
    if task.get("chat_template"):
        system = [{"role": "system", "content": task["system"]}] if task.get("system") else []
        lines += [
            f'messages = [*{json.dumps(system, ensure_ascii=False)}, {{"role": "user", "content": prompt}}]',
            "prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)",
        ]
    special = ", add_special_tokens=False" if task.get("chat_template") else ""
    lines.append(f'inputs = processor(prompt, return_tensors="pt"{special})')
    return [*lines, *(_label_words(task, info) if task.get("label_words") else _generate(task, info))]


def _head(info: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Features of one row by transformers, then the head in scikit-learn."""
    image, pooling = facts["kind"] == "vision", facts["pooling"]
    processor = "AutoImageProcessor" if image else "AutoTokenizer"
    imports, found, base = _base(str(facts["backbone"]))
    lines = [
        *(["import math"] if facts["counts_tokens"] else []),
        "import numpy",
        *(["import torch"] if pooling else []),
        *imports,
        *(["from PIL import Image"] if image else []),
        "from safetensors.numpy import load_file",
        "from sklearn.linear_model import LogisticRegression",
        f"from transformers import {', '.join(sorted([*(['AutoModel'] if pooling else []), processor]))}",
        "",
        *found,
        f"processor = {processor}.from_pretrained({base})",
    ]
    if pooling:
        encoder = ".get_encoder()" if facts["kind"] == "encoder_decoder" else ""
        lines.append(
            f"model = AutoModel.from_pretrained({base}, dtype=torch.{info.get('dtype') or 'float32'}){encoder}.eval()"
        )
    lines += [f'head = load_file("head.safetensors")  # {", ".join(_head_names(facts))}', ""]
    if facts["counts_tokens"]:
        lines += [*_COUNTS.splitlines(), ""]
    columns = _columns(str(facts["prompt"] or ""))
    if image:
        lines.append(_picture(facts))
    else:
        pair = 1 <= len(columns) <= 2
        lines.append(f"row = {_row(info)}")
        lines += [] if pair else [f"text = {json.dumps(facts['prompt'], ensure_ascii=False)}.format(**row)"]
        given = "*row.values()" if pair else "text"
        lines.append(
            f'inputs = processor({given}, truncation=True, max_length={facts["max_length"]}, return_tensors="pt")'
        )
    if facts["counts_tokens"]:
        lines.append("tokens = inputs.input_ids[0].tolist()")
    parts = []
    if pooling:
        if facts["first_tokens"]:
            lines.append(f"inputs = {{name: value[:, :{facts['first_tokens']}] for name, value in inputs.items()}}")
        if facts["kind"] == "encoder_decoder":
            lines.append("inputs.pop('token_type_ids', None)".replace("'", '"'))
        deep = facts["middle"] is not None
        lines += [
            "with torch.no_grad():",
            f"    output = model(**inputs{', output_hidden_states=True' if deep else ''})",
            "states = output.last_hidden_state[0].float()",
            *([f"middle = output.hidden_states[{facts['middle']}][0].float()"] if deep else []),
        ]
        for name in pooling:
            part, _, of_middle = name.partition("@")
            read = {"mean": ".mean(0)", "last": "[-1]", "first": "[0]"}[part]
            parts.append(f"{'middle' if of_middle else 'states'}{read}.numpy()")
    parts += ["counted(tokens)"] if facts["counts_tokens"] else []
    lines += [f"features = numpy.concatenate([{', '.join(parts)}])", ""]
    whole = 'numpy.concatenate([head["weight"], head["words"]], axis=1)' if facts["counts_tokens"] else 'head["weight"]'
    lines += [
        "classifier = LogisticRegression()",
        f"classifier.classes_ = numpy.array({json.dumps(facts['labels'], ensure_ascii=False)})",
        f'weight, bias = {whole}, head["bias"]',
    ]
    # Of two classes scikit-learn keeps the weights of the second against the first.
    two = len(facts["labels"]) == 2
    lines.append(
        "classifier.coef_, classifier.intercept_ = "
        + ("weight[1:] - weight[:1], bias[1:] - bias[:1]" if two else "weight, bias")
    )
    return [*lines, "print(classifier.predict([features])[0], classifier.predict_proba([features])[0].tolist())"]


def _picture(facts: Mapping[str, Any]) -> str:
    return f'inputs = processor(Image.open("picture.png").convert("{facts.get("image_mode") or "RGB"}"), return_tensors="pt")'


def _head_names(facts: Mapping[str, Any]) -> list[str]:
    return ["weight", "bias", *(["keys", "idf", "words"] if facts["counts_tokens"] else [])]


_COUNTS = """\
def counted(tokens):
    \"\"\"Weights of the tokens and pairs that the head knows: (1 + log count) · idf, of length 1.\"\"\"
    pairs = [(first + 1) * 2**21 + second for first, second in zip(tokens, tokens[1:])]
    keys, counts = numpy.unique(numpy.array(tokens + pairs), return_counts=True)
    weights = numpy.zeros(len(head["keys"]))
    for key, count in zip(keys, counts):
        place = numpy.searchsorted(head["keys"], key)
        if place < len(weights) and head["keys"][place] == key:
            weights[place] = (1 + math.log(count)) * head["idf"][place]
    return weights / (numpy.linalg.norm(weights) or 1)"""
"""As `methods.token_counts` counts."""


def _classify(task: Mapping[str, Any], image: bool) -> list[str]:
    labels = json.dumps(list(task.get("label_words") or {}), ensure_ascii=False)
    # A classifier reads one column alone and two as a pair; with more, the prompt that they are put into.
    columns = _columns(str(task.get("prompt") or ""))
    given = "*row.values()" if 1 <= len(columns) <= 2 else "prompt"
    read = [] if image else [f'inputs = processor({given}, truncation=True, return_tensors="pt")']
    return [
        f"labels = {labels}",
        *read,
        "with torch.no_grad():",
        "    probabilities = model(**inputs).logits[0].softmax(-1)",
        "print(labels[int(probabilities.argmax())], probabilities.tolist())",
    ]


def _label_words(task: Mapping[str, Any], info: Mapping[str, Any]) -> list[str]:
    """The label whose word is the likeliest answer, as evaluation scored it."""
    written = info.get("kind") == "encoder_decoder"
    # An answer follows the prompt after a space; a template's turn, and an encoder-decoder's text, begin without one.
    space = "" if task.get("chat_template") or written else " "
    end = str(info.get("answer_end") or "")
    words = json.dumps({label: space + word + end for label, word in task["label_words"].items()}, ensure_ascii=False)
    why = "  # with the mark that ends an answer, as one word begins another" if end else ""
    offsets = info.get("label_offsets")
    added = [f"added = {json.dumps(offsets, ensure_ascii=False)}  # to each log-probability"] if offsets else []
    scored = "score(words[label])" + (" + added[label]" if offsets else "")
    if written:
        score = [
            "    answer = processor(word, add_special_tokens=False, return_tensors='pt').input_ids",
            "    with torch.no_grad():",
            "        logits = model(**inputs, labels=answer).logits",
            "    return logits[0].log_softmax(-1).gather(-1, answer[0][:, None]).sum().item()",
        ]
    else:
        score = [
            "    answer = processor(word, add_special_tokens=False, return_tensors='pt').input_ids",
            "    with torch.no_grad():",
            "        logits = model(input_ids=torch.cat([inputs.input_ids, answer], dim=1)).logits",
            "    before = logits[0, -answer.shape[1] - 1 : -1].log_softmax(-1)  # each token by what came before it",
            "    return before.gather(-1, answer[0][:, None]).sum().item()",
        ]
    score = [line.replace("'", '"') for line in score]
    return [
        f"words = {words}{why}",
        *added,
        "",
        "def score(word):",
        *score,
        "",
        f"print(max(words, key=lambda label: {scored}))",
    ]


def _generate(task: Mapping[str, Any], info: Mapping[str, Any]) -> list[str]:
    tokens = int(task.get("max_answer_tokens") or 64)
    cut = "" if info.get("kind") == "encoder_decoder" else "[inputs.input_ids.shape[1] :]"
    return [
        f"written = model.generate(**inputs, max_new_tokens={tokens}, do_sample=False)",
        f"print(processor.decode(written[0]{cut}, skip_special_tokens=True))",
    ]


def auto_class(info: Mapping[str, Any]) -> str:
    """transformers' class for the backbone."""
    task = info.get("task") or {}
    if info.get("objective") == "classification":
        image = task and not task.get("prompt")
        return "AutoModelForImageClassification" if image else "AutoModelForSequenceClassification"
    return "AutoModelForSeq2SeqLM" if info.get("kind") == "encoder_decoder" else "AutoModelForCausalLM"
