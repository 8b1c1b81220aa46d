"""Diverse and representative choices from a table of features: arrays in, rows out.

One algorithm a file, each a `Picker`: `next` names the best row that is allowed now, `add` takes it. So the plain
choice of k rows (`pick`) and a strategy that minds a budget run the same code. No N x N matrix is ever held.
"""

from __future__ import annotations

from dal_dense.select.badge import badge
from dal_dense.select.base import Picker, pick
from dal_dense.select.facility_location import FacilityLocation
from dal_dense.select.k_center import KCenter
from dal_dense.select.k_means import Clusters, k_means, k_means_picker
from dal_dense.select.prob_cover import ProbCover, pure_radius
from dal_dense.select.typiclust import typiclust

__all__ = [
    "Clusters",
    "FacilityLocation",
    "KCenter",
    "Picker",
    "ProbCover",
    "badge",
    "k_means",
    "k_means_picker",
    "pick",
    "pure_radius",
    "typiclust",
]
