"""Plain torch and MLflow on the whole test split, to be held against what a checkout says of it.

Run in the checkout, with the address of MLflow's model as its argument; prints JSON.
"""

import json
import sys

import mlflow.pyfunc
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from digits.model.net import Net


def main(address: str) -> None:
    test = load_file("data/processed/test.safetensors")
    images, labels = test["images"], test["labels"].long()
    _, channels, height, width = images.shape
    net = Net(10, (channels, height, width))
    net.load_state_dict(load_file("models/net.safetensors"))
    net.eval()
    with torch.no_grad():
        expected = net(images).double()
    answers = mlflow.pyfunc.load_model(address).predict(images.numpy())
    found = {
        "accuracy": (expected.argmax(1) == labels).double().mean().item(),
        "loss": F.nll_loss(expected, labels).item(),
        "served": float(np.abs(answers - expected.numpy()).max()),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
