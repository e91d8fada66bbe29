"""The XML header of ISMRMRD, which fastMRI files carry too: matrix, field of view, limits, trajectory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from sciflow.errors import UserError

__all__ = ["Encoding", "Header", "parse_header"]


@dataclass(frozen=True)
class Encoding:
    """One encoding: `encoded` and `recon` matrices and fields of view (x, y, z), in mm; `limits` name -> (min, max, centre)."""

    encoded: tuple[int, int, int]
    encoded_mm: tuple[float, float, float]
    recon: tuple[int, int, int]
    recon_mm: tuple[float, float, float]
    limits: Mapping[str, tuple[int, int, int]]
    trajectory: str
    calibration_mode: str = ""
    acceleration: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Header:
    """What is used of a header: its encodings, the receiver noise bandwidth (1.0 if unstated), and facts for the attributes."""

    encodings: tuple[Encoding, ...]
    noise_bandwidth: float
    facts: Mapping[str, Any]


def parse_header(text: str | bytes, label: str) -> Header:
    """The header from its XML; `UserError` if it is no XML or states no matrix or field of view.

    Source: Inati et al., "ISMRM Raw data format: A proposed standard for MRI raw datasets", 2017, doi 10.1002/mrm.26089.
    """
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f"{label}: its ISMRMRD header is no valid XML ({error}): the file is damaged") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    found = [_encoding(element, label) for element in root.iter("encoding")]
    if not found:
        raise UserError(f"{label}: its ISMRMRD header states no encoding (matrix size and field of view are needed)")
    system = "acquisitionSystemInformation"
    facts: dict[str, Any] = {}
    for name, at in (("field_strength_T", "systemFieldStrength_T"), ("vendor", "systemVendor"), ("model", "systemModel")):
        value = root.findtext(f"{system}/{at}")
        if value:
            facts[name] = float(value) if name.endswith("_T") else value
    return Header(tuple(found), float(root.findtext(f"{system}/relativeReceiverNoiseBandwidth") or 1.0), facts)


def _encoding(element: ElementTree.Element, label: str) -> Encoding:
    def triple(at: str, kind: type) -> Any:
        try:
            return tuple(kind(float(element.findtext(f"{at}/{axis}") or "")) for axis in "xyz")
        except ValueError:
            raise UserError(f"{label}: its ISMRMRD header lacks {at} (x, y, z)") from None

    limits = {}
    for limit in element.findall("encodingLimits/*"):
        numbers = [limit.findtext(name) for name in ("minimum", "maximum", "center")]
        if all(numbers):
            low, high, centre = (int(number or 0) for number in numbers)
            limits[limit.tag] = (low, high, centre)
    parallel = "parallelImaging"
    factors = [element.findtext(f"{parallel}/accelerationFactor/kspace_encoding_step_{step}") for step in (1, 2)]
    return Encoding(
        encoded=triple("encodedSpace/matrixSize", int),
        encoded_mm=triple("encodedSpace/fieldOfView_mm", float),
        recon=triple("reconSpace/matrixSize", int),
        recon_mm=triple("reconSpace/fieldOfView_mm", float),
        limits=limits,
        trajectory=(element.findtext("trajectory") or "cartesian").strip(),
        calibration_mode=(element.findtext(f"{parallel}/calibrationMode") or "").strip(),
        acceleration=(int(factors[0] or 1), int(factors[1] or 1)),
    )
