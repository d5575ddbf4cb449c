"""The published settings, one recipe a method."""

from __future__ import annotations

from typing import Any

from explainguide.hooks.layers import INPUT
from explainguide.recipes.settings import Recipe

__all__ = ["RECIPES"]

_MODEL_GUIDANCE: dict[str, Any] = {
    "source": "Rao et al., 2023, Eq. 1, 2 and 6, Sec. 3.5 and D.1, Tab. D1",
    "attribution": "ixg",
    "loss": "energy",
    "lam": 1e-3,
    "lambdas": (5e-4, 1e-3, 5e-3),
    "reduction": "sum",
    "optimizer": "adam",
    "lr": 1e-4,
    "weight_decay": 0.0,
    "schedule": "constant",
    "batch_size": 64,
    "epochs": 50,
    "advice": "Fine-tune without guidance first, then guide. lambda belongs to a sum over a batch of "
    "64: another batch size asks for another lambda. With annotations on few images take 0.05, 0.1 "
    "or 0.5 (Tab. D2). 50 epochs are for VOC, 10 for COCO. For loss='l1' lambda is 0.001, 0.005 or "
    "0.01.",
}

RECIPES: dict[str, Recipe] = {
    found.name: found
    for found in (
        Recipe(
            name="robustvit",
            text="pull the attention relevance of a trained ViT onto the object, in a short "
            "fine-tuning",
            source="Chefer et al., 2022 (RobustViT), Eq. 1 to 5, Tab. 5",
            attribution="relevance",
            loss="relevance",
            loss_options={"background": 2.0, "foreground": 0.3},
            lam=0.8,
            region="masks",
            class_loss="confidence-boosting",
            class_weight=0.2,
            optimizer="adamw",
            lr=3e-6,
            weight_decay=1e-4,
            schedule="cosine",
            batch_size=8,
            epochs=50,
            advice="For a trained classifier; 3 images with masks of each of 500 classes were enough. "
            "Learning rates: ViT-B 3e-6, ViT-L 9e-7, AugReg-S 2e-6, AugReg-B 6e-7, AugReg-L 9e-7, "
            "DeiT-S 1e-6, DeiT-B 8e-7. For another model search from 5e-7 to 5e-6 and take the "
            "highest at which the validation accuracy falls by no more than 2 to 3%. DeiT-B needs "
            "temperature=0.65. The authors' program multiplies the rate by 0.85 every second epoch, "
            "for which the cosine stands, and takes the gradients of the attention as constants, as "
            "AttentionRelevance(model, detach_gradient=True) does.",
        ),
        Recipe(
            name="gradmask",
            text="make the gradient of the class's logit small outside the object",
            source="Simpson et al., 2019; Chefer et al., 2022, Eq. 9",
            layer=INPUT,
            attribution="gradient",
            loss="gradmask",
            lam=1.0,
            region="masks",
            advice="Search lambda and the learning rate together, from those of the unguided "
            "training: the penalty can also be met by making all gradients small. The values of "
            "Chefer et al., Tab. 7 (50, with weight 3e-9 for the classification) are of a program "
            "in which the penalty gives the parameters no gradient, so they do not carry over.",
        ),
        Recipe(
            name="rrr",
            text="right for the right reasons: no gradient of the log probabilities outside the "
            "object",
            source="Ross et al., 2017, Eq. 1, and the authors' program",
            layer=INPUT,
            attribution="gradient",
            loss="rrr",
            loss_options={"normalize": False},
            score="sum_log_probs",
            lam=1000.0,
            region="masks",
            optimizer="adam",
            lr=1e-3,
            weight_decay=0.0,
            schedule="constant",
            batch_size=256,
            epochs=64,
            advice="Choose lambda so that both losses are of the same order; 1000 is for small "
            "perceptrons. There both are sums over the batch, which is the same as two means. The "
            "RRR* of Rao et al. is another loss: recipe('model-guidance/final').guide(model, "
            "loss='rrr'), with lambda 5e-6, 1e-5 or 5e-5.",
        ),
        Recipe(
            name="model-guidance/final",
            text="move the evidence for a class into its boxes, at the last layer",
            **_MODEL_GUIDANCE,
        ),
        Recipe(
            name="model-guidance/input",
            text="move the evidence for a class into its boxes, at the image",
            layer=INPUT,
            **_MODEL_GUIDANCE,
        ),
        Recipe(
            name="reff",
            text="keep Grad-CAM at four stages of a ResNet off what is outside the object",
            source="Adachi and Yamaguchi, 2022 (ReFF), Eq. 3, Sec. 4.2; supplement B, Tab. 4",
            layer=("layer1", "layer2", "layer3", "layer4"),
            layer_weights=(15.0, 60.0, 250.0, 1000.0),
            attribution="gradcam",
            loss="reff",
            lam=1e-6,
            lambdas=(1e-8, 1e-7, 1e-6, 1e-5),
            region="masks",
            optimizer="sgd",
            lr=0.01,
            weight_decay=1e-5,
            schedule="constant",
            batch_size=32,
            epochs=50,
            advice="The lambdas are those that the supplement tries for the variants l1 and l2, of "
            "which 1e-6 was best; larger ones are worth a try with the norm. The paper's momentum is "
            "0.8 (here 0.9). Images without a mask get one there from a trained pseudo-annotator.",
        ),
    )
}
