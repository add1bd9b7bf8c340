"""The models that tools are tried on: one for each way in which a patch reaches an activation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.activations import ACT2FN


class Plain(nn.Module):
    """No model of transformers: an activation inside ``nn.Sequential``, one in a module, one written in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.act = ACT2FN["quick_gelu"]
        self.mix = nn.Linear(8, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.body(x))
        hidden = F.relu(self.mix(hidden))
        return self.out(hidden)


class SwappedPlain(Plain):
    """What a swap to SiLU makes of ``Plain``, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.body[1] = nn.SiLU()
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.body(x))
        hidden = F.silu(self.mix(hidden))
        return self.out(hidden)


@dataclass(frozen=True)
class Subject:
    """A tiny model with random weights, its input, and the function that a swap gives it.

    Attributes:
        name: of the model's family.
        reached: how a patch reaches its activations.
        make: the model, as it is or with the other function, which its own configuration (or another class) sets.
        inputs: keyword arguments of one forward.
        owner: the qualified name of the module that applies an activation; act: of the activation below it.
        swap: the other function's name.
        layers: the qualified name of its list of layers; None without.
    """

    name: str
    reached: str
    make: Callable[[bool], nn.Module]
    inputs: Callable[[], dict[str, Any]]
    owner: str
    act: str
    swap: str = "silu"
    layers: str | None = None

    def build(self, swapped: bool = False) -> nn.Module:
        torch.manual_seed(0)
        model = self.make(swapped).eval()
        for weight in model.parameters():  # larger than at initialisation, so that the activations see large inputs
            if weight.dim() > 1:
                weight.data.mul_(3.0)
        return model

    def outputs(self, model: Callable[..., Any]) -> list[Tensor]:
        """The main output, without gradients."""
        torch.manual_seed(0)
        with torch.no_grad():
            output = model(**self.inputs())
        first = (
            output
            if isinstance(output, Tensor)
            else next(iter(output.values() if isinstance(output, Mapping) else output))
        )
        return [first.detach().clone()]

    def of(self, model: nn.Module, path: str) -> nn.Module:
        """A module by its qualified name in the unwrapped model, also in a wrapper of it."""
        for name, module in model.named_modules():
            if name == path or name.endswith("." + path):
                return module
        raise LookupError(f"{type(model).__name__} has no {path}")


_SMALL: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
_TOKENS: dict[str, Any] = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def _ids(length: int = 7) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 64, (2, length), generator=torch.Generator().manual_seed(1))}


def _gpt2(swapped: bool) -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=32, n_head=4, n_layer=2, n_positions=32, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **_TOKENS
    )
    if swapped:
        config.activation_function = "silu"
    return transformers.GPT2LMHeadModel(config)


def _bert(swapped: bool) -> nn.Module:
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            **_SMALL,
            vocab_size=64,
            max_position_embeddings=32,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            hidden_act="silu" if swapped else "gelu",
        )
    )


def _llama(swapped: bool) -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **_SMALL,
            **_TOKENS,
            num_key_value_heads=2,
            max_position_embeddings=32,
            hidden_act="relu" if swapped else "silu",
        )
    )


def _t5(swapped: bool) -> nn.Module:
    config = transformers.T5Config(
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_heads=4,
        num_layers=1,
        vocab_size=64,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        feed_forward_proj="gated-gelu",
    )
    if swapped:
        config.dense_act_fn = "silu"
    return transformers.T5ForConditionalGeneration(config)


def _xlm(swapped: bool) -> nn.Module:
    return transformers.XLMForSequenceClassification(
        transformers.XLMConfig(
            emb_dim=32,
            n_heads=4,
            n_layers=2,
            vocab_size=64,
            max_position_embeddings=32,
            dropout=0.0,
            attention_dropout=0.0,
            gelu_activation=not swapped,
        )
    )


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("gpt2", "behind a linear layer", _gpt2, _ids, "transformer.h.0.mlp", "act", layers="transformer.h"),
        Subject(
            "bert",
            "behind a linear layer, same bits",
            _bert,
            _ids,
            "bert.encoder.layer.0.intermediate",
            "intermediate_act_fn",
            layers="bert.encoder.layer",
        ),
        Subject("llama", "gated", _llama, _ids, "model.layers.0.mlp", "act_fn", swap="relu", layers="model.layers"),
        Subject(
            "t5",
            "gated, of two stacks",
            _t5,
            lambda: {**_ids(), "decoder_input_ids": _ids(5)["input_ids"]},
            "encoder.block.0.layer.1.DenseReluDense",
            "act",
            layers="encoder.block",
        ),
        Subject(
            "xlm", "one module for all models of the process", _xlm, _ids, "transformer.ffns.0", "act", swap="relu"
        ),
        Subject(
            "plain",
            "inside nn.Sequential, in a module, written in the root's forward",
            lambda swapped: SwappedPlain() if swapped else Plain(),
            lambda: {"x": torch.randn(4, 8, generator=torch.Generator().manual_seed(1))},
            "",
            "act",
        ),
    )
}
