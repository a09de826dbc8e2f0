"""Tunes the scorers of a `retention` indexer end to end: what is lost when entries go is what they learn to keep.

`palimpsest calibrate` fits scorers to how much attention a key receives while the model repeats the text. That is a stand-in.
Here the model reads documents with a soft form of the service's eviction inside its own forward pass and answers questions
on what stood in them: facts that were planted, and sentences of the text as it is. The gradient of the answers' loss, and of
how far its predictions of the text are from those of the full cache, goes to the scorers. The model's weights stay as they
are. Some documents are read with a memory of what went, so that scorers learn what it makes up for. The idea of learning
retention through the language model's loss is that of Dynamic Memory Compression (arXiv 2403.09636) and TRIM-KV (arXiv
2512.03324); stride boundaries, one threshold per KV head over all layers, and scorers that are linear in the hidden state
are this project's.

    pip install torch transformers accelerate gguf safetensors
    python3 calibrate/make_corpus.py CORPUS
    palimpsest calibrate --corpus CORPUS --documents 48 --out start.safetensors
    python3 calibrate/make_corpus.py --prose CORPUS
    python3 calibrate/tune.py --model MODEL.gguf --corpus CORPUS --start start.safetensors --out tuned.safetensors
    python3 calibrate/tune.py --model MODEL.gguf --corpus CORPUS --start start.safetensors tuned.safetensors --steps 0 \
        --out indexer.safetensors

The last line takes the mean: scorers are linear and started from one another, and their mean keeps more of what is asked for
in other ways than either (EVALUATION.md). `--second start.safetensors` gives every head a second scorer, whose score passes with
age: a token stays for the better of two reasons, that it may be asked for at any time, or that it is in use now.

Documents, wordings, names and kinds of values are not those of the evaluation. Same seed, same documents; sums of floats
differ between machines. A step takes half a minute on one shared core and up to 16 GB.
"""

import argparse
import json
import pathlib
import random
import re
import struct
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file
from torch.utils.checkpoint import checkpoint
from tokenizers import pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer

STRIDE = 256
SINKS = 4
WINDOW = 12
# Selectable slots per KV head as a share of the document, drawn for each.
BUDGET = (0.05, 0.16)
# Lengths of documents, strides.
LENGTHS = [8, 8, 8, 16]
# Share of the documents whose questions are on planted facts; the others' are on their own sentences.
PLANTED = 0.4
# How sharply a slot below the threshold is gone, nats of score.
TEMPERATURE = 0.5
# Age scale, tokens; that of the service's policy.
AGE = 256
# Log of the share by which a slot counts as gone to the memory.
HALF = -0.6931
# Where a second scorer starts: nats that it loses in `AGE` tokens, and nats that it is given ahead.
RATE, OFFSET = 1.0, 2.0
# How much faster biases and rates are learned than weights.
SINGLE = 15
# Weight of the text, as divergence from the full cache's predictions, beside the answers' loss.
TEXT_WEIGHT = 6.0
CLIP = 1.0
# What is saved is a running mean, since every step sees a single document. A step's share of it.
AVERAGE = 0.04
# Share of the documents that are read with a memory of what went; its centroids as a share of the budget.
WITH_MEMORY, CENTROIDS = 0.6, 1 / 24
# Slots that a centroid costs: it is kept in f32, slots in f16.
CENTROID_SLOTS = 2
# Steps between two saved files, so that an interrupted run is not lost.
SAVE_EVERY = 20
NAMES = (
    "amber birch cobalt dune ember fjord glade harbor iris jade kelp lotus maple nectar onyx pearl quartz raven saddle tulip "
    "umber violet willow yarrow zephyr anchor basil cedar delta echo falcon granite"
).split()
# A fact, a question, and how its answer begins.
FACTS = [
    ("Locker {a} opens with the code {v}", "Which code opens locker {a}?", "Locker {a} opens with the code"),
    ("The badge of {a} carries the number {v}", "What number is on the badge of {a}?", "The badge of {a} carries the number"),
    ("{a} was given the serial {v} by the registry", "Which serial did {a} get?", "{a} was given the serial"),
    ("Let {a} be {v}", "What is {a}?", "{a} is"),
    ("Parcel {a} travels under reference {v}", "Under which reference does parcel {a} travel?", "Parcel {a} travels under reference"),
    ("Remember this: {a} lives at {v}", "Where does {a} live?", "{a} lives at"),
    ("In the ledger {a} is entered as {v}", "How is {a} entered in the ledger?", "In the ledger {a} is entered as"),
    ("The password that {a} uses is {v}", "Which password does {a} use?", "The password that {a} uses is"),
]
# Questions on the text's own sentences, and how their answers begin.
RECALLS = [
    ("Complete this sentence as it stands in the text: {head} ...", "{head}"),
    ("What does the text say about {topic}?", "{head}"),
    ("Quote the sentence that has {topic} in it.", "{head}"),
    ("How does the text go on after this: {head}", ""),
    ("What is left out here: {head} ____", "What is left out is"),
]
# Words that could not be guessed: numbers, names.
TELLING = re.compile(r"\d[\w.:/-]*|(?<=[a-z,] )[A-Z][\w-]+")
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n"


class Documents:
    """Passages with planted facts, and questions on them."""

    def __init__(self, tokenizer, corpus):
        files = sorted(pathlib.Path(corpus).glob("*.txt"))
        self.text = "".join(f.read_text(errors="replace") for f in files)
        if len(self.text) < 100_000:
            sys.exit(f"error: {corpus} holds {len(self.text)} characters of .txt files, 100,000 are needed")
        self.tokenizer = tokenizer

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def draw(self, seed):
        """Token ids, length of the part that is evicted from, and positions of the answers' tokens."""
        draws = random.Random(seed)
        length = STRIDE * draws.choice(LENGTHS)
        while True:
            start = draws.randrange(len(self.text) - 16 * length)
            passage = self.encode(self.text[start : start + 14 * length])[:length]
            kind = self._planted if draws.random() < PLANTED else self._recalls
            ids, questions = kind(draws, passage, length)
            if questions:
                return self._ask(ids, questions)

    def _ask(self, ids, questions):
        """Up to four `(question, beginning of the answer, answer)` behind a document."""
        ids, length, answers = list(ids), len(ids), []
        for index, (question, opening, answer) in enumerate(questions[:4]):
            turn = "\n\n" if index == 0 else "<|im_start|>user\n"
            ids += self.encode(turn + question + "<|im_end|>\n<|im_start|>assistant\n" + opening)
            answer = self.encode(" " + answer if opening else answer)
            answers += range(len(ids), len(ids) + len(answer))
            ids += answer + self.encode(".<|im_end|>\n")
        return ids, length, answers

    def _planted(self, draws, passage, length):
        sentences = self.tokenizer.decode(passage).split(". ")
        one_kind, facts = draws.choice([None, draws.choice(FACTS)]), {}
        for _ in range(draws.randint(2, 6)):
            name = "-".join(draws.sample(NAMES, draws.randint(1, 2)))
            kind, value = one_kind or draws.choice(FACTS), _value(draws)
            if name not in facts:
                facts[name] = (kind, value)
                sentences.insert(draws.randint(0, len(sentences)), kind[0].format(a=name, v=value))
        ids = self.encode(SYSTEM + ". ".join(sentences))[:length]
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        ids += self.encode(" ")[:1] * (length - len(ids))
        whole = [(n, k, v) for n, (k, v) in facts.items() if k[0].format(a=n, v=v) in text]
        draws.shuffle(whole)
        return ids, [(k[1].format(a=n), k[2].format(a=n), v) for n, k, v in whole]

    def _recalls(self, draws, passage, length):
        ids = self.encode(SYSTEM + self.tokenizer.decode(passage))[:length]
        text = " ".join(self.tokenizer.decode(ids[len(self.encode(SYSTEM)) :]).split())
        sentences = [s.rstrip(".!?") for s in re.split(r"(?<=[.!?]) ", text)[1:-1]]
        questions = []
        for sentence in draws.sample(sentences, min(len(sentences), 24)):
            words = sentence.split(" ")
            cuts = [c for c in range(4, len(words)) if sum(map(len, words[:c])) < 200]
            telling = [c for c in cuts if TELLING.match(" ".join(["a", words[c]]), 2)]
            if not cuts or len(words) > 60 or (not telling and draws.random() < 0.7):
                continue
            cut = draws.choice(telling or cuts)
            head = " ".join(words[draws.randint(0, min(cut - 4, 8)) : cut])
            question, opening = draws.choice(RECALLS)
            topic = max(head.split(" "), key=len).strip(".,:;()\"")
            questions.append((question.format(head=head, topic=topic), opening.format(head=head), " ".join(words[cut : cut + 5])))
        return ids, questions if len(ids) == length else []


def _value(draws):
    def digits(alphabet, least, most):
        return "".join(draws.choice(alphabet) for _ in range(draws.randint(least, most)))

    kind, hexadecimal = draws.randrange(6), "0123456789abcdef"
    if kind <= 2:
        return digits("0123456789", 4, 8)
    if kind == 3:
        return digits(hexadecimal, 8, 20)
    if kind == 4:
        return "-".join(digits(hexadecimal, 3, 8) for _ in range(draws.randint(2, 4)))
    return " ".join(draws.choice(NAMES) for _ in range(draws.randint(1, 3)))


class Scorers(torch.nn.Module):
    """`max(m, n - e^f age / AGE)` per layer and KV head, `m` and `n` linear in the hidden state; `m` alone without a second scorer.
    Of both a change is trained, on standardised inputs."""

    def __init__(self, tensors, layers):
        super().__init__()
        self.parts = [p for p in ["", "recent."] if f"retention.0.{p}weight" in tensors]
        stack = lambda name: torch.stack([_stacked(tensors, layers, part + name) for part in self.parts])
        # [parts, layers, K, E] and [parts, layers, K].
        self.weight, self.bias = stack("weight"), stack("bias")
        self.fade = torch.nn.Parameter((-stack("rate")[-1]).clamp(min=1e-3).log())
        self.mean, self.deviation = None, None
        self.change = torch.nn.Parameter(torch.zeros_like(self.weight))
        self.shift = torch.nn.Parameter(torch.zeros_like(self.bias))
        self.means = {name: p.detach().clone() for name, p in self.named_parameters()}

    def average(self):
        """To be called after every step."""
        for name, p in self.named_parameters():
            self.means[name].lerp_(p.detach(), AVERAGE)

    def standardise(self, hidden):
        self.mean = torch.stack([h.mean(0) for h in hidden])
        self.deviation = torch.stack([h.std(0) + 1e-3 for h in hidden])

    def forward(self, layer, x):
        """Scores of new tokens, `[n, K, parts]`."""
        flat = lambda t: t[:, layer].flatten(0, 1)
        scores = F.linear(x, flat(self.weight), flat(self.bias))
        if self.mean is not None:
            scores = scores + F.linear((x - self.mean[layer]) / self.deviation[layer], flat(self.change), flat(self.shift))
        return scores.unflatten(-1, (len(self.parts), -1)).transpose(-1, -2)

    def faded(self, layer, scores, age):
        """`[n, K]` scores of tokens that are `age` `[n]` old."""
        if len(self.parts) == 1:
            return scores[..., 0]
        return torch.maximum(scores[..., 0], scores[..., 1] - self.fade[layer].exp() * (age / AGE)[:, None])

    def folded(self):
        """Tensors of the averaged scorers for inputs as they are, by the ends of their names."""
        tensors = {}
        for index, part in enumerate(self.parts):
            change = self.means["change"][index] / self.deviation[:, None]
            bias = self.bias[index] + self.means["shift"][index] - (change * self.mean[:, None]).sum(-1)
            rate = -self.means["fade"].exp() if part else torch.zeros_like(bias)
            tensors |= {part + "weight": self.weight[index] + change, part + "bias": bias, part + "rate": rate}
        return tensors


def _stacked(tensors, layers, name):
    return torch.tensor([tensors[f"retention.{layer}.{name}"].tolist() for layer in range(layers)])


class Centroids:
    """What went from a layer, as the service's `centroid` memory keeps it, but that entries which go together join the
    centroid that was nearest before any of them came."""

    def __init__(self, kv_heads, slots, dim):
        self.slots, self.gone = slots, torch.zeros(kv_heads, 0, dtype=torch.bool)
        self.entries, self.counts = torch.zeros(kv_heads, 2, slots, dim), torch.zeros(kv_heads, slots)

    @torch.no_grad()
    def absorb(self, keys, values, gone):
        """`keys` and `values` `[K, n, D]` of all tokens so far, and which of them are gone by now `[K, n]`."""
        before = F.pad(self.gone, (0, gone.shape[1] - self.gone.shape[1]))
        self.gone = gone | before
        for head, new in enumerate(self.gone & ~before):
            rows, used = torch.stack([keys[head][new], values[head][new]]), int(self.counts[head].count_nonzero())
            first, rest = rows[:, : self.slots - used], rows[:, self.slots - used :]
            self.entries[head][:, used : used + first.shape[1]] = first
            self.counts[head][used : used + first.shape[1]] = 1
            if rest.shape[1]:
                nearest = torch.cdist(rest[0], self.entries[head][0]).argmin(-1)
                sums = (self.entries[head] * self.counts[head][:, None]).index_add(1, nearest, rest)
                self.counts[head] += torch.bincount(nearest, minlength=self.slots)
                self.entries[head] = sums / self.counts[head][:, None]


class Reader:
    """The frozen model (Llama, Mistral, Qwen2, Qwen3) with soft eviction at stride boundaries."""

    def __init__(self, model, scorers):
        self.model, self.scorers, config = model, scorers, model.config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.hidden = None

    def _norm(self, norm, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight

    def _rotate(self, x, tables):
        cos, sin = tables
        half = self.dim // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    def _gates(self, scores, end, budget):
        """Log of the share of each slot that is left at the boundary `end`, `[end, K]` per layer."""
        if budget is None or end <= budget + SINKS + WINDOW:
            return None
        last = end - WINDOW
        age = (end - 1 - torch.arange(SINKS, last)).float()
        candidates = [self.scorers.faded(layer, torch.cat(s)[SINKS:last], age) for layer, s in enumerate(scores)]
        pool = torch.stack(candidates).detach()
        thresholds = torch.stack([_threshold(pool[..., k], budget * len(scores)) for k in range(self.kv_heads)])
        edge = lambda rows: torch.zeros(rows, self.kv_heads)
        gate = lambda s: torch.cat([edge(SINKS), F.logsigmoid((s - thresholds) / TEMPERATURE), edge(WINDOW)])
        return [gate(s) for s in candidates]

    def _attend(self, attention, x, past, gate, tables):
        rows, project = len(x), lambda linear, heads: linear(x).view(rows, heads, self.dim)
        q, k = project(attention.q_proj, self.heads), project(attention.k_proj, self.kv_heads)
        if hasattr(attention, "q_norm"):
            q, k = self._norm(attention.q_norm, q), self._norm(attention.k_norm, k)
        q, k = self._rotate(q.transpose(0, 1), tables), self._rotate(k.transpose(0, 1), tables)
        past[0].append(k)
        past[1].append(project(attention.v_proj, self.kv_heads).transpose(0, 1))
        keys, values = torch.cat(past[0], 1), torch.cat(past[1], 1)
        left = torch.zeros(self.kv_heads, keys.shape[1] - rows) if gate is None else gate.T
        if past[2]:
            keys, values = torch.cat([past[2].entries[:, 0], keys], 1), torch.cat([past[2].entries[:, 1], values], 1)
            left = torch.cat([past[2].counts.log(), left], 1)
        # Nothing of the attention is kept for the backward pass: it is what grows with the document.
        read = checkpoint(self._mix, q.reshape(self.kv_heads, -1, rows, self.dim), keys, values, left, use_reentrant=False)
        return attention.o_proj(read.reshape(self.heads, rows, self.dim).transpose(0, 1).reshape(rows, -1))

    def _mix(self, queries, keys, values, left):
        rows = queries.shape[2]
        logits = torch.einsum("khqd,ksd->khqs", queries, keys) * self.dim**-0.5
        own = torch.full((rows, rows), float("-inf")).triu(1)
        mask = torch.cat([left[:, None, None].expand(-1, 1, rows, -1), own[None, None].expand(self.kv_heads, 1, -1, -1)], -1)
        return torch.einsum("khqs,ksd->khqd", torch.softmax(logits + mask, -1), values)

    def read(self, ids, length, budget, centroids=0):
        """Hidden states before the output projection; eviction at every boundary up to `length`, none with no budget.
        `centroids` is the size of the memory, which pays nothing here."""
        layers = self.model.model.layers
        past = [([], [], centroids and Centroids(self.kv_heads, centroids, self.dim)) for _ in layers]
        scores, self.hidden, out = [[] for _ in layers], [[] for _ in layers], []
        starts = [*range(0, length, STRIDE), length]
        for start, end in zip(starts, [*starts[1:], len(ids)]):
            gates = self._gates(scores, start, budget) if start else None
            for (keys, values, memory), gate in zip(past, gates or []):
                if memory:
                    memory.absorb(torch.cat(keys, 1), torch.cat(values, 1), gate.T < HALF)
            x = self.model.model.embed_tokens(torch.tensor(ids[start:end]))
            tables = self.model.model.rotary_emb(x[None], torch.arange(start, end)[None])
            tables = (tables[0][0], tables[1][0])
            for index, layer in enumerate(layers):
                h = self._norm(layer.input_layernorm, x)
                self.hidden[index].append(h.detach())
                scores[index].append(self.scorers(index, h))
                x = x + self._attend(layer.self_attn, h, past[index], gates and gates[index], tables)
                x = x + layer.mlp(self._norm(layer.post_attention_layernorm, x))
            out.append(self._norm(self.model.model.norm, x))
        return torch.cat(out)


def _threshold(scores, count):
    """Where the soft shares of all slots add up to `count`."""
    low, high = scores.min() - 20, scores.max() + 20
    for _ in range(40):
        middle = (low + high) / 2
        above = torch.sigmoid((scores - middle) / TEMPERATURE).sum() > count
        low, high = (middle, high) if above else (low, middle)
    return (low + high) / 2


def losses_of(reader, document, budget, centroids):
    """Nats per token: of the answers; of the text's second half, over the full cache; of the full cache's answers."""
    ids, length, answers = document
    targets, text = torch.tensor([ids[p] for p in answers]), torch.arange(length // 2, length)[:: max(1, length // 1024)]
    logits = lambda hidden, at: reader.model.lm_head(hidden[[p - 1 for p in at]])
    with torch.no_grad():
        full = reader.read(ids, length, None)
        wanted = torch.softmax(logits(full, text), -1)
        floor = F.cross_entropy(logits(full, answers), targets)
    hidden = reader.read(ids, length, budget - CENTROID_SLOTS * centroids, centroids)
    said = torch.log_softmax(logits(hidden, text), -1)
    divergence = (torch.special.entr(wanted).sum(-1) + (wanted * said).sum(-1)).mean().neg()
    return F.cross_entropy(logits(hidden, answers), targets), divergence, floor


def load(path):
    """Model and tokenizer of a GGUF file or a Hugging Face directory."""
    path = pathlib.Path(path)
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name} if path.is_file() else {"pretrained_model_name_or_path": path}
    model = AutoModelForCausalLM.from_pretrained(dtype=torch.float32, **where).requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(**where).backend_tokenizer
    if path.is_file():
        # transformers' conversion of this GGUF tokenizer does not split digits and adds a token in front.
        level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return model, tokenizer


def mean_of(paths):
    """Tensors of the first file, with the mean of all files' `retention` scorers."""
    first, *others = [load_file(path) for path in paths]
    for name in [n for n in first if n.startswith("retention.")]:
        first[name] = sum([other[name] for other in others], first[name]) / len(paths)
    return first


def with_second(tensors, path, layers):
    """`tensors` and, as their second scorer, the first one of `path`, which starts with so much in hand that it matters."""
    other = load_file(path)
    for layer in range(layers):
        tensors[f"retention.{layer}.recent.weight"] = other[f"retention.{layer}.weight"]
        tensors[f"retention.{layer}.recent.bias"] = other[f"retention.{layer}.bias"] + np.float32(OFFSET)
        tensors[f"retention.{layer}.recent.rate"] = np.full_like(other[f"retention.{layer}.rate"], -RATE)
    return tensors


def metadata_of(path):
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        return json.loads(file.read(size))["__metadata__"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ["--model", "--corpus", "--out"]:
        parser.add_argument(name, required=True)
    parser.add_argument("--start", required=True, nargs="+", help="indexer files; of several, the mean of their scorers")
    parser.add_argument("--steps", type=int, default=80, help="0: only the mean of the files of --start is written")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--second", help="indexer file whose scorers a second scorer starts from, of what is in use now and passes")
    args = parser.parse_args()
    model, tokenizer = load(args.model)
    tensors, documents, layers = mean_of(args.start), Documents(tokenizer, args.corpus), model.config.num_hidden_layers
    if args.second:
        tensors = with_second(tensors, args.second, layers)
    scorers = Scorers(tensors, layers)
    reader = Reader(model, scorers)
    with torch.no_grad():
        reader.read(*documents.draw(0)[:2], None)
    scorers.standardise([torch.cat(h) for h in reader.hidden])
    # One number for a whole head has to move further than one of many hundred.
    single = {"params": [scorers.shift, scorers.fade], "lr": SINGLE * args.rate}
    optimizer = torch.optim.Adam([{"params": [scorers.change], "lr": args.rate}, single], betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 5) * (1 - 0.9 * step / max(1, args.steps)))
    # Rates go up in five steps, then down to a tenth.
    recent = []
    for step in range(args.steps):
        seed, began = args.seed * 100_003 + step, time.time()
        document, draws = documents.draw(seed), random.Random(~seed)
        budget = document[1] * draws.uniform(*BUDGET)
        centroids = max(4, round(budget * CENTROIDS)) if draws.random() < WITH_MEMORY else 0
        answers, text, full = losses_of(reader, document, budget, centroids)
        optimizer.zero_grad()
        (answers + TEXT_WEIGHT * text).backward()
        torch.nn.utils.clip_grad_norm_(scorers.parameters(), CLIP)
        optimizer.step()
        scorers.average()
        schedule.step()
        recent = [*recent[-19:], (answers.item(), full.item(), text.item())]
        means = "answers {:.3f} (full cache {:.3f}), text +{:.3f}".format(*(sum(column) / len(recent) for column in zip(*recent)))
        print(f"step {step + 1:4} of {args.steps}: {means} nats a token, {time.time() - began:.1f} s", flush=True)
        if (step + 1) % SAVE_EVERY == 0:
            save(scorers, tensors, args, step + 1)
    save(scorers, tensors, args, args.steps)


def save(scorers, tensors, args, steps):
    for name, layers in scorers.folded().items():
        for layer, values in enumerate(layers):
            tensors[f"retention.{layer}.{name}"] = values.clone().numpy()
    start = " and ".join(pathlib.Path(path).stem for path in args.start)
    how = f"{steps} of {args.steps} steps of calibrate/tune.py, seed {args.seed}, from {start}"
    metadata = {**metadata_of(args.start[0]), "tuned": how}
    save_file(tensors, args.out, metadata={**metadata, "recent": "1"} if len(scorers.parts) == 2 else metadata)


if __name__ == "__main__":
    main()
