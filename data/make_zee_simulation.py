"""Make `Zee_sim_pythia8_7TeV.csv`: Pythia 8 electron pairs through a crude parametrised detector with pile-up.

    pip install --only-binary :all: pythia8mc==8.317.2 awkward     # by hand: GPL, so never a dependency of sciflow
    python data/make_zee_simulation.py generate zee zee7.npz       # Z/gamma* -> ee at 7 TeV, tune 14
    python data/make_zee_simulation.py generate minbias minbias7.npz
    python data/make_zee_simulation.py simulate zee7.npz minbias7.npz Zee_sim_pythia8_7TeV.csv

Generator output is reduced to two electrons per event with sums of transverse momentum in a cone of 0.3 around each
(charged, photons, neutral hadrons), and to such sums in random cones of minimum-bias events for the pile-up. From the
committed seeds, `simulate` is deterministic down to the byte; Pythia's own output depends on its build.
The detector's constants were set by hand: the sample is a simulation that needs correcting, not a model of CMS.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

CONE, PILE_UP, SEED = 0.3, 6, 11
ELECTRON, PHOTON, CHARGED, NEUTRINOS = 11, 22, (211, 321, 2212, 11, 13), (12, 14, 16)
PROCESSES = {
    "zee": [
        "WeakSingleBoson:ffbar2gmZ = on",
        "23:onMode = off",
        "23:onIfAny = 11",
        "PhaseSpace:mHatMin = 55.",
        "PhaseSpace:mHatMax = 130.",
    ],
    "minbias": ["SoftQCD:nonDiffractive = on"],
}


def pythia(process: str, tune: int, seed: int) -> tuple[Any, Any]:
    """A generator at 7 TeV; electrons far from the acceptance are vetoed before the shower, which saves most of the time.

    Also returns the veto, which has to be kept alive.
    """
    import pythia8mc

    class Acceptance(pythia8mc.UserHooks):
        def canVetoProcessLevel(self) -> bool:
            return True

        def doVetoProcessLevel(self, event: Any) -> bool:
            hard = (event[i] for i in range(event.size()))
            near = (p for p in hard if p.isFinal() and abs(p.id()) == ELECTRON and p.pT() > 18.75 and abs(p.eta()) < 2.7)
            return len(list(near)) < 2

    generator = pythia8mc.Pythia("", False)
    settings = ["Print:quiet = on", "Beams:eCM = 7000.", "Random:setSeed = on", f"Random:seed = {seed}", f"Tune:pp = {tune}"]
    for line in settings + PROCESSES[process]:
        generator.readString(line)
    hook = Acceptance()
    if process == "zee":
        generator.setUserHooksPtr(hook)
    generator.init()
    return generator, hook


def particles(batch: Any) -> dict[str, Any]:
    """Final visible particles of a batch within |eta| < 3, jagged."""
    import awkward as ak

    final = batch.prt[batch.prt.status > 0]
    kind = abs(final.id)
    pt = np.hypot(final.p.px, final.p.py)
    eta = np.arcsinh(final.p.pz / np.maximum(pt, 1e-9))
    visible = ~ak.zeros_like(kind, dtype=bool)
    for neutrino in NEUTRINOS:
        visible = visible & (kind != neutrino)
    keep = visible & (abs(eta) < 3.0)
    phi = np.arctan2(final.p.py, final.p.px)
    charged = ak.zeros_like(kind, dtype=bool)
    for code in CHARGED:
        charged = charged | (kind == code)
    columns = {"pt": pt, "eta": eta, "phi": phi, "kind": kind, "id": final.id, "charged": charged}
    return {name: values[keep] for name, values in columns.items()}


def cone(event: dict[str, Any], eta: Any, phi: Any) -> Any:
    """Which particles lie within the cone around a direction, and their distance."""
    turn = (event["phi"] - phi + np.pi) % (2 * np.pi) - np.pi
    distance = np.hypot(event["eta"] - eta, turn)
    return distance < CONE, distance


def sums(event: dict[str, Any], inside: Any, charged: Any) -> list[np.ndarray]:
    """Sums of transverse momentum inside the cone: charged, photons, neutral hadrons."""
    import awkward as ak

    photon = event["kind"] == PHOTON
    parts = (charged, photon, ~event["charged"] & ~photon)
    return [ak.to_numpy(ak.sum(event["pt"][inside & part], axis=1)) for part in parts]


def random_cones(event: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
    """Sums in ten random cones of each minimum-bias event, shape (10 events, 3)."""
    size = len(event["pt"])
    found = []
    for _ in range(10):
        inside, _ = cone(event, rng.uniform(-2.5, 2.5, size), rng.uniform(-np.pi, np.pi, size))
        found.append(np.stack(sums(event, inside, event["charged"]), axis=1))
    return np.stack(found, axis=1).reshape(-1, 3)


def electron_pairs(event: dict[str, Any]) -> np.ndarray:
    """(events, 15): for the two leading electrons pt, eta, phi, id and three isolation sums; then the charged multiplicity."""
    import awkward as ak

    found = (event["kind"] == ELECTRON) & (event["pt"] > 25.0) & (abs(event["eta"]) < 2.6)
    order = ak.argsort(event["pt"][found], axis=1, ascending=False)
    enough = ak.num(order) >= 2
    leading = [event[name][found][order][enough][:, :2] for name in ("pt", "eta", "phi", "id")]
    event = {name: values[enough] for name, values in event.items()}
    columns = []
    for k in (0, 1):
        inside, distance = cone(event, leading[1][:, k], leading[2][:, k])
        ring = inside & (distance > 0.01)
        hard = event["charged"] & (event["pt"] > 0.7)
        charged, photons, neutral = sums(event, ring, hard)
        # hadrons of either charge reach the hadronic calorimeter
        hadrons = ak.to_numpy(ak.sum(event["pt"][ring & event["charged"] & (event["kind"] != ELECTRON)], axis=1))
        columns += [ak.to_numpy(values[:, k]) for values in leading] + [charged, photons, neutral + 0.7 * hadrons]
    tracks = event["charged"] & (abs(event["eta"]) < 2.5) & (event["pt"] > 0.5)
    return np.stack([*columns, ak.to_numpy(ak.sum(tracks, axis=1))], axis=1)


def generate(process: str, rows: int, tune: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Rows of reduced events, and the names of their columns."""
    generator, hook = pythia(process, tune, seed)
    made, found = 0, []
    while sum(map(len, found)) < rows:
        event, made = particles(generator.nextBatch(200)), made + 200
        found.append(electron_pairs(event) if process == "zee" else random_cones(event, np.random.default_rng(seed + made)))
    del hook
    one = ("pt", "eta", "phi", "id", "chiso", "gamiso", "hadiso")
    names = [f"{name}{k}" for k in (1, 2) for name in one] + ["nch"] if process == "zee" else ["ch", "gam", "had"]
    return np.concatenate(found).astype(np.float32), names


def detector(x: dict[str, np.ndarray], pile_up: np.ndarray, seed: int = SEED) -> pd.DataFrame:
    """Smeared electrons with shower shape, H/E and isolations; the order of the random numbers is part of the result."""
    rng = np.random.default_rng(seed)
    events = len(x["pt1"])
    vertices = rng.poisson(PILE_UP, events)
    table: dict[str, Any] = {}
    for k in "12":
        pt, eta = x["pt" + k], x["eta" + k]
        energy, barrel = pt * np.cosh(eta), np.abs(eta) < 1.4442
        stochastic = np.where(barrel, 0.03, 0.05) / np.sqrt(energy)
        resolution = np.sqrt(stochastic**2 + (0.15 / energy) ** 2 + np.where(barrel, 0.009, 0.02) ** 2)
        brem = rng.random(events) < 0.1 + 0.12 * np.abs(eta)
        scale = 1 + resolution * rng.standard_normal(events)
        scale = scale * np.where(brem, np.exp(-rng.exponential(0.03, events)), 1.0)
        overlaid = np.zeros((events, 3))
        for vertex in range(vertices.max()):
            overlaid += pile_up[rng.integers(0, len(pile_up), events)] * (vertex < vertices)[:, None]
        table["pt" + k], table["eta" + k], table["phi" + k] = pt * scale, eta, x["phi" + k]
        table["Q" + k], table["type" + k] = -np.sign(x["id" + k]).astype(int), np.where(barrel, "EB", "EE")
        u = rng.standard_normal(events)
        width_barrel = 0.0091 * np.exp(0.07 * u + 0.04 * brem)
        table["sigmaEtaEta" + k] = np.where(barrel, width_barrel, 0.0235 * np.exp(0.12 * u + 0.08 * brem))
        no_leak = rng.random(events) < np.where(barrel, 0.70, 0.45)
        leak = rng.exponential(np.where(barrel, 0.022, 0.030) * np.sqrt(40 / pt), events)
        table["HoverE" + k] = np.where(no_leak, 0, leak)
        table["isoTrack" + k] = x["chiso" + k]
        table["isoEcal" + k] = x["gamiso" + k] + overlaid[:, 1] + rng.gamma(1.3, np.where(barrel, 0.6, 0.5), events)
        hadronic = 0.4 * x["hadiso" + k] + 0.6 * (overlaid[:, 2] + 0.3 * overlaid[:, 0]) + rng.normal(0, 0.3, events)
        table["isoHcal" + k] = np.where(hadronic < 0.45, 0, hadronic)
    frame = pd.DataFrame(table)
    frame["nPU"] = vertices
    frame = frame[accepted(frame)].reset_index(drop=True)
    swap = rng.random(len(frame)) < 0.5  # the real file is not ordered in pt
    for name in [column[:-1] for column in frame.columns if column.endswith("1")]:
        frame.loc[swap, [name + "1", name + "2"]] = frame.loc[swap, [name + "2", name + "1"]].to_numpy()
    return frame


def accepted(frame: pd.DataFrame) -> pd.Series:
    """60 < m_ee < 120 GeV, pt > 25 GeV, |eta| < 2.5 outside the gap between barrel and endcaps."""
    angle = np.cosh(frame.eta1 - frame.eta2) - np.cos(frame.phi1 - frame.phi2)
    mass = np.sqrt(2 * frame.pt1 * frame.pt2 * angle)
    keep = (mass > 60) & (mass < 120)
    for k in "12":
        eta = frame["eta" + k].abs()
        keep &= (frame["pt" + k] > 25) & (eta < 2.5) & ~((eta > 1.4442) & (eta < 1.566))
    return keep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    first = steps.add_parser("generate", help="run Pythia and reduce its events")
    first.add_argument("process", choices=sorted(PROCESSES))
    first.add_argument("output", type=Path)
    first.add_argument("--rows", type=int, default=7000)
    first.add_argument("--tune", type=int, default=14)
    first.add_argument("--seed", type=int, default=1)
    second = steps.add_parser("simulate", help="detector and pile-up")
    second.add_argument("events", type=Path)
    second.add_argument("minbias", type=Path)
    second.add_argument("output", type=Path)
    options = parser.parse_args()
    if options.step == "generate":
        rows, names = generate(options.process, options.rows, options.tune, options.seed)
        np.savez_compressed(options.output, x=rows, cols=np.array(names))
        return
    events = np.load(options.events)
    columns = dict(zip(events["cols"], events["x"].T.astype(float), strict=True))
    detector(columns, np.load(options.minbias)["x"]).to_csv(options.output, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
