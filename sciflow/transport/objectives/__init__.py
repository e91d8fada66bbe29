"""What a transport learns: velocities, average velocities in one or few steps, straight lines."""

from sciflow.transport.objectives.alpha_flow import AlphaFlow
from sciflow.transport.objectives.base import TransportObjective
from sciflow.transport.objectives.consistency import ConsistencyFlowMatching
from sciflow.transport.objectives.contrastive import ContrastiveFlowMatching
from sciflow.transport.objectives.flow_map import FlowMapObjective
from sciflow.transport.objectives.flow_map_distillation import FlowMapDistillation
from sciflow.transport.objectives.flow_matching import FlowMatching
from sciflow.transport.objectives.likelihood_weighting import LikelihoodFlowMatching
from sciflow.transport.objectives.local_flow_matching import LocalFlow, LocalFlowMatching, fit_local
from sciflow.transport.objectives.mean_flow import MeanFlow
from sciflow.transport.objectives.piecewise import PiecewiseReflow
from sciflow.transport.objectives.reflow import Reflow
from sciflow.transport.objectives.split_mean_flow import SplitMeanFlow
from sciflow.transport.objectives.weighted import WeightedFlowMatching

__all__ = [
    "AlphaFlow",
    "ConsistencyFlowMatching",
    "ContrastiveFlowMatching",
    "FlowMapDistillation",
    "FlowMapObjective",
    "FlowMatching",
    "LikelihoodFlowMatching",
    "LocalFlow",
    "LocalFlowMatching",
    "MeanFlow",
    "PiecewiseReflow",
    "Reflow",
    "SplitMeanFlow",
    "TransportObjective",
    "WeightedFlowMatching",
    "fit_local",
]
