"""The engine: bundles of weights, segmentation, embedding, clustering, scoring. torch lives here.

`import models` and `models.analysis` do not import torch; `models.engine` does.
"""
