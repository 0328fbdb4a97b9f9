"""What an exported folder does in the version of transformers that this process imports.

    python in_transformers.py FOLDER INPUTS OUTPUT [STEPS]

It needs torch, transformers and the folder only, so that it runs beside any version. Logits of the
INPUTS go to OUTPUT; what can be checked here is. Generation is compared in float64, where no two
logits are equal by rounding.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

FREE: dict[str, Any] = dict(do_sample=False, eos_token_id=None, pad_token_id=0)
"""Of `generate`: greedy, and never done."""
PROMPTS = (1, 6, 7, 8, 40, 65, 66, 300)
"""Lengths in tokens; the window of the tests has 6 or 64 keys beside the token."""
IMPLEMENTATIONS = ("sdpa", "eager")


def model_of(folder: str, dtype: torch.dtype, implementation: str = "sdpa") -> Any:
    found = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=dtype, attn_implementation=implementation
    )
    assert found.config._attn_implementation == implementation and found.dtype == dtype
    return found.eval()


def logits_of(folder: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the logits of the rows, and of the same tokens packed, by implementation and type."""
    out = {}
    for implementation in IMPLEMENTATIONS:
        for dtype in (torch.float32, torch.bfloat16):
            model = model_of(folder, dtype, implementation)
            name = f"{implementation} {str(dtype).removeprefix('torch.')}"
            tokens, positions = inputs["tokens"], inputs["position_ids"]
            with torch.no_grad():
                out[f"{name} whole"] = model(tokens).logits
                out[f"{name} packed"] = model(tokens, position_ids=positions).logits
    return out


def near(found: Tensor, expected: Tensor) -> bool:
    """In float64, but for the angles of the rotary embedding, which are the same in both."""
    return bool((found - expected).abs().max() <= 1e-9 * expected.abs().max())


def cache_of(out: Any) -> dict[str, Any]:
    name = "cache" if "cache" in out else "past_key_values"
    return {name: out[name]}


def check_forward(model: Any, tokens: Tensor) -> None:
    """Pieces, padding, hidden states, embeddings as input, and what is kept of the logits."""
    whole = model(tokens, use_cache=False, output_hidden_states=True)
    assert len(whole.hidden_states) == model.config.plt_num_loops
    assert near(model.lm_head(whole.hidden_states[-1]), whole.logits)
    assert not any(near(x, whole.hidden_states[-1]) for x in whole.hidden_states[:-1])
    held: dict[str, Any] = {}
    pieces, begin, length = [], 0, tokens.shape[1]
    for size in (5, 1, 1, 14, 1, length - 22):
        out = model(tokens[:, begin : begin + size], use_cache=True, **held)
        held, begin = cache_of(out), begin + size
        pieces.append(out.logits)
    assert near(torch.cat(pieces, 1), whole.logits)
    embedded = model(inputs_embeds=model.get_input_embeddings()(tokens), use_cache=False)
    assert near(embedded.logits, whole.logits)
    assert near(model(tokens, logits_to_keep=3).logits, whole.logits[:, -3:])
    padded = torch.cat([torch.zeros(len(tokens), 9, dtype=tokens.dtype), tokens], 1)
    mask = torch.ones_like(padded)
    mask[:, :9] = 0
    assert near(model(padded, attention_mask=mask).logits[:, 9:], whole.logits)


def check_padded_pieces(model: Any, tokens: Tensor) -> None:
    """Rows that are padded on the left by more than the first piece."""
    whole = model(tokens, use_cache=False).logits
    padded = torch.cat([torch.zeros(len(tokens), 9, dtype=tokens.dtype), tokens], 1)
    mask = (torch.arange(padded.shape[1]) >= 9).long().expand_as(padded)
    held: dict[str, Any] = {}
    pieces, begin = [], 0
    for size in (4, 3, 8, 1, padded.shape[1] - 16):
        end = begin + size
        out = model(padded[:, begin:end], attention_mask=mask[:, :end], use_cache=True, **held)
        held, begin = cache_of(out), end
        pieces.append(out.logits)
    assert near(torch.cat(pieces, 1)[:, 9:], whole)


def check_refusals(model: Any, tokens: Tensor) -> None:
    held = cache_of(model(tokens[:, :5], use_cache=True))
    holed = torch.ones_like(tokens)
    holed[:, 3] = 0
    ones = torch.ones_like(tokens)
    for said, tried in (
        ("use_cache is false", dict(input_ids=tokens[:, 5:8], use_cache=False, **held)),
        ("of the new ones or of all", dict(input_ids=tokens, attention_mask=ones[:, :-1])),
        (
            "of the new ones or of all",
            dict(input_ids=tokens[:, 5:8], attention_mask=ones[:, :6], use_cache=True, **held),
        ),
        ("between the tokens", dict(input_ids=tokens, attention_mask=holed)),
    ):
        try:
            model(**tried)
        except ValueError as error:
            assert said in str(error), error
        else:
            raise AssertionError(said)
    for part in (model, model.model):  # as accelerate leaves it, which is not needed here
        part.hf_device_map = {"model": 0, "lm_head": "cpu"}
        try:
            part(tokens[:, :5])
        except ValueError as error:
            assert "device_map puts parts on 0, cpu" in str(error), error
        else:
            raise AssertionError("a map of two devices")
        part.hf_device_map = {"": "cpu"}
    model.config.output_hidden_states = True
    assert len(model(tokens[:, :5]).hidden_states) == model.config.plt_num_loops
    model.config.output_hidden_states = False


def is_greedy(model: Any, tokens: Tensor, prompt: int) -> bool:
    """Say whether each token behind the prompt is the likeliest by one full forward pass."""
    logits = model(tokens, use_cache=False).logits[:, prompt - 1 : -1]
    return torch.equal(logits.argmax(-1), tokens[:, prompt:])


def check_generate(model: Any, tokens: Tensor, steps: int, lengths: tuple[int, ...]) -> None:
    """With cache as without, as the full forward pass, and in batches that are padded."""
    singles = {}
    for length in lengths:
        prompt = tokens[:1, :length]
        found = model.generate(prompt, max_new_tokens=steps, **FREE)
        assert found.shape[1] == length + steps and is_greedy(model, found, length), length
        singles[length] = found[:, length:]
    prompt = tokens[:1, : lengths[len(lengths) // 2]]
    plain = model.generate(prompt, max_new_tokens=steps, use_cache=False, **FREE)
    assert torch.equal(plain, model.generate(prompt, max_new_tokens=steps, **FREE))
    longest = max(lengths)
    batch = torch.zeros(len(lengths), longest, dtype=tokens.dtype)
    mask = torch.zeros_like(batch)
    for row, length in enumerate(lengths):
        batch[row, longest - length :] = tokens[0, :length]
        mask[row, longest - length :] = 1
    found = model.generate(batch, attention_mask=mask, max_new_tokens=steps, **FREE)
    for row, length in enumerate(lengths):
        assert torch.equal(found[row, longest:], singles[length][0]), length


def check_ways_to_generate(model: Any, tokens: Tensor) -> None:
    prompt, few = tokens[:, :30], dict(max_new_tokens=12)
    greedy = model.generate(prompt, **few, **FREE)
    beams = [model.generate(prompt, num_beams=3, use_cache=u, **few, **FREE) for u in (True, False)]
    assert torch.equal(*beams)
    sampled = model.generate(
        prompt, do_sample=True, num_return_sequences=3, eos_token_id=None, pad_token_id=0, **few
    )
    assert sampled.shape == (3 * len(prompt), 42)
    embedded = model.generate(inputs_embeds=model.get_input_embeddings()(prompt), **few, **FREE)
    assert torch.equal(embedded, greedy[:, 30:])
    said = model.generate(
        prompt, return_dict_in_generate=True, output_hidden_states=True, output_logits=True,
        **few, **FREE,
    )  # fmt: skip
    assert len(said.logits) == 12 and len(said.hidden_states[-1]) == model.config.plt_num_loops
    # of two documents in a row, only the last one is gone on with
    packed = torch.cat([tokens[1:, :11], tokens[:1, :30]], 1)
    positions = torch.cat([torch.arange(11), torch.arange(30)])[None]
    out = model(packed, position_ids=positions, use_cache=True)
    for step in range(12):
        following = out.logits[:, -1:].argmax(-1)
        assert following.item() == greedy[0, 30 + step], step
        out = model(following, use_cache=True, **cache_of(out))
    for assisted in (dict(assistant_model=model), dict(prompt_lookup_num_tokens=3)):
        try:
            model.generate(tokens[:1, :30], **assisted, **few, **FREE)
        except ValueError as error:
            assert "stateful" in str(error), error
        else:
            raise AssertionError("assisted decoding needs a cache that can go back")


def check_training(model: Any, tokens: Tensor) -> None:
    """The loss, and gradients that recomputing does not change."""
    model.train()
    found = []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable()
        out = model(tokens, labels=tokens)
        out.loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters()}
        assert all(g.abs().max() > 0 for g in grads.values())
        model.zero_grad()
        found.append((out.loss, grads))
    assert model.model.gradient_checkpointing
    logits = out.logits[:, :-1].flatten(0, 1).float()
    plain = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
    assert (found[0][0] - plain).abs() <= 1e-5 * plain
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][name], grad) for name, grad in found[1][1].items())
    model.gradient_checkpointing_disable()
    model.eval()


def check_files(folder: str, model: Any, tokens: Tensor, again: Path) -> None:
    """Tokenizer, saving and loading, a new model from the config."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    text = "def add(a, b):\n    return a"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text and tokenizer.padding_side == "left"
    assert tokenizer.eos_token_id in torch.tensor(model.generation_config.eos_token_id)
    assert tokenizer.pad_token_id == model.generation_config.pad_token_id
    talk = [{"role": "user", "content": "loop"}]
    said = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert said == "<|im_start|>user\nloop<|im_end|>\n<|im_start|>assistant\n"
    (end,) = tokenizer("<|im_end|>")["input_ids"]
    assert end in model.generation_config.eos_token_id
    model.save_pretrained(again)
    saved = model_of(str(again), model.dtype, model.config._attn_implementation)
    assert torch.equal(saved(tokens).logits, model(tokens).logits)
    assert saved.config.rope_theta == model.config.rope_theta
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    config.tie_word_embeddings = True
    new = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    assert new.lm_head.weight is new.model.embed_tokens.weight
    for name, parameter in new.named_parameters():
        is_gate = "plt_gate" in name and "norm" not in name
        wanted = 0.0 if is_gate else 1.0 if "norm" in name else None
        assert wanted is None or bool((parameter == wanted).all()), name


def main(folder: str, inputs: str, output: str, steps: int) -> None:
    torch.set_num_threads(1)
    given = torch.load(inputs, weights_only=True)
    torch.manual_seed(int(given["tokens"][0, 0]))
    torch.save(logits_of(folder, given), output)
    tokens, few = given["tokens"], steps < 100
    with torch.no_grad():
        for implementation in IMPLEMENTATIONS[:1] if few else IMPLEMENTATIONS:
            model = model_of(folder, torch.float64, implementation)
            check_forward(model, tokens)
            check_padded_pieces(model, tokens)
            check_refusals(model, tokens)
            check_generate(model, tokens, steps, PROMPTS[::3] if few else PROMPTS)
            check_ways_to_generate(model, tokens)
        check_files(folder, model, tokens, Path(output).with_suffix(".again"))
    check_training(model, tokens[:, :40])
    print(f"transformers {transformers.__version__}: all of {folder} agrees")


if __name__ == "__main__":
    main(*sys.argv[1:4], steps=int(sys.argv[4]) if len(sys.argv) > 4 else 12)
