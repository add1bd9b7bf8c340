"""Tools that save a model and load it."""

# ruff: noqa: ARG001 (a tool that does the same to every model does not ask which it is)

from __future__ import annotations

import copy
import io
import logging
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scripts.benchmarking.tools.catalogue.registering import TRANSFORMERS, tool
from scripts.benchmarking.tools.judging import Used
from scripts.benchmarking.tools.subjects import Subject, SwappedPlain


def _through(dumps: Callable[[Any], Any], loads: Callable[[Any], Any], model: nn.Module) -> Used:
    return Used(loads(dumps(model)))


@tool("pickle", "saves", "Python")
def _(model: nn.Module, subject: Subject) -> Used:
    return _through(pickle.dumps, pickle.loads, model)


@tool("torch.save, torch.load of a whole model", "saves")
def _(model: nn.Module, subject: Subject) -> Used:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return Used(torch.load(file, weights_only=False))


@tool("cloudpickle", "saves", "cloudpickle")
def _(model: nn.Module, subject: Subject) -> Used:
    import cloudpickle

    return _through(cloudpickle.dumps, cloudpickle.loads, model)


@tool("dill", "saves", "dill")
def _(model: nn.Module, subject: Subject) -> Used:
    import dill

    return _through(dill.dumps, dill.loads, model)


@tool("joblib.dump, joblib.load", "saves", "joblib")
def _(model: nn.Module, subject: Subject) -> Used:
    import joblib

    with tempfile.TemporaryDirectory() as folder:
        joblib.dump(model, Path(folder) / "model")
        return Used(joblib.load(Path(folder) / "model"))


@tool("state_dict, load_state_dict", "saves")
def _(model: nn.Module, subject: Subject) -> Used:
    made = subject.build(isinstance(model, SwappedPlain) or _swapped(model, subject))
    made.load_state_dict(model.state_dict())
    return Used(made, carries="config" if subject.name != "plain" else "weights")


def _swapped(model: nn.Module, subject: Subject) -> bool:
    """Whether the model's configuration names the other function."""
    config = getattr(model, "config", None)
    return config is not None and config.to_dict() != subject.build().config.to_dict()


@tool("save_pretrained, from_pretrained", "saves", "transformers", TRANSFORMERS)
def _(model: nn.Module, subject: Subject) -> Used:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return Used(type(model).from_pretrained(folder).eval(), carries="config")


@tool("safetensors.torch.save_model, load_model", "saves", "safetensors")
def _(model: nn.Module, subject: Subject) -> Used:
    from safetensors.torch import load_model, save_model

    made = subject.build(isinstance(model, SwappedPlain) or _swapped(model, subject))
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, f"{folder}/model.safetensors")
        load_model(made, f"{folder}/model.safetensors")
    return Used(made, carries="config" if subject.name != "plain" else "weights")


def _there_and_back(model: nn.Module) -> nn.Module:
    return model


@tool("multiprocessing, spawned", "saves", "torch", ("llama",))
def _(model: nn.Module, subject: Subject) -> Used:
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        return Used(copy.deepcopy(pool.apply(copy.copy, (model,))))  # a copy: the memory is the other process's


@tool("ray.put, ray.get", "saves", "ray", ("gpt2", "llama", "bert"))
def _(model: nn.Module, subject: Subject) -> Used:
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    return Used(copy.deepcopy(ray.get(ray.put(model))))  # a copy: what ray holds cannot be written to


@tool("dask.distributed's serialize", "saves", "distributed", ("gpt2", "llama", "bert", "t5"))
def _(model: nn.Module, subject: Subject) -> Used:
    from distributed.protocol import deserialize, serialize

    return Used(copy.deepcopy(deserialize(*serialize(model, serializers=["pickle"]))))


@tool("skorch's NeuralNet, cloned", "copies", "skorch", ("plain",))
def _(model: nn.Module, subject: Subject) -> Used:
    from sklearn.base import clone
    from skorch import NeuralNet

    net = clone(NeuralNet(model, criterion=nn.MSELoss)).initialize()
    return Used(net.module_.eval())


def _dense(swapped: bool) -> nn.Module:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    return SentenceTransformer(
        modules=[Dense(8, 16, activation_function=nn.SiLU() if swapped else nn.ReLU())], device="cpu"
    )


DENSE = Subject(
    "SentenceTransformer with a Dense",
    "behind a linear layer, saved by its class's name",
    _dense,
    lambda: {"input": {"sentence_embedding": torch.randn(4, 8, generator=torch.Generator().manual_seed(1))}},
    "0",
    "activation_function",
)


@tool("SentenceTransformer.save", "saves", "sentence-transformers", (DENSE,))
def _(model: nn.Module, subject: Subject) -> Used:
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as folder:
        model.save(folder, create_model_card=False)
        return Used(SentenceTransformer(folder, device="cpu").eval(), carries="function")  # the activation's class
