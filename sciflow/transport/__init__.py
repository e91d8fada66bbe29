"""Transport: flows whose weights are a velocity, and everything that joins noise to data.

A `TransportFlow` is a `Flow` like any other: `flow(condition)` samples and, where a density exists, has `log_prob`. What it
is made of are small parts that compose freely: couplings, paths, heads, bases, spaces, objectives, steppers, guidance.
`compatibility` says what does not go together, and why.
"""

from sciflow.transport.bases import ConditionShift, Empirical, FlowBase, Shift, UniformOn, WrappedNormal
from sciflow.transport.couplings import (
    ConditionalOT,
    ExactOT,
    Given,
    Independent,
    PartialOT,
    Prefetched,
    SchroedingerCoupling,
    Sinkhorn,
    UnbalancedOT,
    WeightedCoupling,
    WithinClasses,
)  # fmt: skip
from sciflow.transport.denoiser import as_denoiser, from_denoiser
from sciflow.transport.divergence import Exact, Hutchinson, LogDensity
from sciflow.transport.flow import TransportFlow
from sciflow.transport.guidance import (
    Classifier,
    ClassifierFree,
    Composed,
    CosineRamp,
    DensityGuidance,
    EndpointEnergy,
    Interval,
    LinearConstraint,
    PiecewiseLinear,
    PriorGuidance,
    Rescheduled,
    Scheduled,
    Tilt,
)  # fmt: skip
from sciflow.transport.heads import CategoricalEndpoint, Endpoint, GaussianMixture, Velocity, VelocityAndNoise
from sciflow.transport.objectives import (
    AlphaFlow,
    ConsistencyFlowMatching,
    ContrastiveFlowMatching,
    FlowMapDistillation,
    FlowMatching,
    LikelihoodFlowMatching,
    LocalFlow,
    LocalFlowMatching,
    MeanFlow,
    PiecewiseReflow,
    Reflow,
    SplitMeanFlow,
    WeightedFlowMatching,
    fit_local,
)  # fmt: skip
from sciflow.transport.pair import Bridge, Pair
from sciflow.transport.paths import (
    Cosine,
    Geodesic,
    Linear,
    LinearBeta,
    Polynomial,
    SchroedingerBridge,
    StochasticInterpolant,
    VariancePreserving,
)  # fmt: skip
from sciflow.transport.preconditioned import Preconditioned
from sciflow.transport.reflow import reflow_pairs
from sciflow.transport.spaces import (
    Box,
    Euclidean,
    HyperbolicBall,
    MeanFreeSpace,
    ProductSpace,
    Rotations,
    Simplex,
    Sphere,
    Torus,
)  # fmt: skip
from sciflow.transport.steppers import Adaptive, Adjoint, EndpointStep, FixedStep, MapStep, SDEStep, bellman_steps
from sciflow.transport.times import (
    Importance,
    LogitNormal,
    LogUniformNoise,
    PowerLaw,
    Stratified,
    Uniform,
    UShaped,
)  # fmt: skip

__all__ = [
    "Adaptive", "Adjoint", "AlphaFlow", "Box", "Bridge", "CategoricalEndpoint", "Classifier", "ClassifierFree",
    "Composed", "ConditionShift", "ConditionalOT", "ConsistencyFlowMatching", "ContrastiveFlowMatching", "Cosine",
    "CosineRamp", "DensityGuidance", "Empirical", "Endpoint", "EndpointEnergy", "EndpointStep", "Euclidean", "Exact",
    "ExactOT", "FixedStep", "FlowBase", "FlowMapDistillation", "FlowMatching", "GaussianMixture", "Geodesic", "Given",
    "Hutchinson", "HyperbolicBall", "Importance", "Independent", "Interval", "LikelihoodFlowMatching", "Linear",
    "LinearBeta", "LinearConstraint", "LocalFlow", "LocalFlowMatching", "LogDensity", "LogUniformNoise",
    "LogitNormal", "MapStep", "MeanFlow", "MeanFreeSpace", "Pair", "PartialOT", "PiecewiseLinear", "PiecewiseReflow",
    "Polynomial", "PowerLaw", "Preconditioned", "Prefetched", "PriorGuidance", "ProductSpace", "Reflow", "Rescheduled",
    "Rotations", "SDEStep", "Scheduled", "SchroedingerBridge", "SchroedingerCoupling", "Shift", "Simplex", "Sinkhorn", "Sphere",
    "SplitMeanFlow", "StochasticInterpolant", "Stratified", "Tilt", "Torus", "TransportFlow", "UShaped",
    "UnbalancedOT", "Uniform", "UniformOn", "VariancePreserving", "Velocity", "VelocityAndNoise", "WeightedCoupling",
    "WeightedFlowMatching", "WithinClasses", "WrappedNormal", "as_denoiser", "bellman_steps", "fit_local",
    "from_denoiser", "reflow_pairs",
]  # fmt: skip
