"""F1, mAP and accuracies of an evaluation, through torchmetrics, are scikit-learn's."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    recall_score,
)

from explainguide.evaluation.classification import ClassificationScores

CPU = torch.device("cpu")


def scores_of(logits, labels, *, multilabel, cuts=(0, 3, 20)):
    scores = ClassificationScores(logits.shape[1], multilabel, CPU)
    for start, stop in pairwise(cuts):
        scores.update(logits[start:stop], labels[start:stop])
    return scores.compute()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("absent", [False, True])
def test_multi_hot(ties, absent):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 4, generator=generator) * 3
    labels = (torch.rand(20, 4, generator=generator) > 0.7).float()
    if ties:
        logits = logits.round()  # zeros among them, which say yes
    if absent:
        labels[:, 2] = 0  # no image shows it: of F1 it can only be a false positive
    found = scores_of(logits, labels, multilabel=True)
    truth, said = labels.int().numpy(), (logits >= 0).int().numpy()
    assert found["f1"] == pytest.approx(f1_score(truth, said, average="micro"), abs=1e-6)
    each = [
        average_precision_score(truth[:, k], logits[:, k].numpy())
        for k in range(4)
        if truth[:, k].any()
    ]
    assert len(each) == 4 - absent
    assert found["map"] == pytest.approx(np.mean(each), abs=1e-6)


def test_large_logits_are_still_ranked():
    """In float32 their sigmoids are all 1."""
    logits = torch.tensor([[20.0], [21.0], [22.0], [-1.0]])
    labels = torch.tensor([[1.0], [0.0], [1.0], [0.0]])
    found = scores_of(logits, labels, multilabel=True, cuts=(0, 4))
    assert found["map"] == pytest.approx(
        average_precision_score(labels[:, 0].numpy(), logits[:, 0].numpy()), abs=1e-6
    )
    assert found["f1"] == pytest.approx(0.8)  # two right, one said too much


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_class_indices(classes):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(20, classes, generator=generator)
    labels = torch.randint(0, max(classes, 2) - (classes == 5), (20,), generator=generator)
    found = scores_of(logits, labels, multilabel=False)
    said = (logits[:, 0] >= 0).long() if classes == 1 else logits.argmax(1)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels.numpy(), said.numpy()))
    recall = recall_score(
        labels.numpy(), said.numpy(), labels=labels.unique().numpy(), average=None, zero_division=0
    )
    assert found["worst_class_accuracy"] == pytest.approx(recall.min())
