"""SNOMED CT codes of structures for DICOM Segmentations, and the colours of structures in pictures and viewers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["STRUCTURE_COLOURS", "Concept", "StructureCode", "structure_code", "structure_colour"]

# Okabe and Ito's colours, distinguishable with colour blindness, for the classes 1..7; further classes repeat them.
STRUCTURE_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")


@dataclass(frozen=True)
class Concept:
    """A code, the scheme it belongs to, and its meaning in words."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class StructureCode:
    """The codes of a segment: its kind, the structure itself, and its side if the structure does not include it."""

    category: Concept
    kind: Concept
    side: Concept | None = None


ANATOMICAL_STRUCTURE = Concept("91723000", "SCT", "Anatomical Structure")
TISSUE = Concept("85756007", "SCT", "Tissue")
SIDES = {"left": Concept("7771000", "SCT", "Left"), "right": Concept("24028007", "SCT", "Right")}
# Schemes that begin with 99 are private; these codes are defined by this project only.
OWN_SCHEME = "99GLUA"

SNOMED = {
    "adrenal gland": "23451007",
    "aorta": "15825003",
    "ascending aorta": "54247002",
    "bladder": "89837001",
    "brain": "12738006",
    "duodenum": "38848004",
    "esophagus": "32849002",
    "gallbladder": "28231008",
    "heart": "80891009",
    "inferior vena cava": "64131007",
    "kidney": "64033007",
    "left atrium": "82471001",
    "left ventricle": "87878005",
    "liver": "10200004",
    "lung": "39607008",
    "myocardium": "74281007",
    "pancreas": "15776009",
    "prostate": "41216001",
    "pulmonary artery": "81040000",
    "right atrium": "73829009",
    "right ventricle": "53085002",
    "spleen": "78961009",
    "stomach": "69695003",
}


def structure_code(name: str) -> StructureCode:
    """SNOMED CT codes of a structure's name in ``label_names``, whatever its case and underscores.

    An unknown name gets a private code with the name as its meaning.
    """
    words = name.lower().replace("_", " ").split()
    whole, side, part = " ".join(words), SIDES.get(words[0] if words else ""), " ".join(words[1:])
    if whole in SNOMED:
        return StructureCode(ANATOMICAL_STRUCTURE, Concept(SNOMED[whole], "SCT", whole.capitalize()))
    if side is not None and part in SNOMED:
        return StructureCode(ANATOMICAL_STRUCTURE, Concept(SNOMED[part], "SCT", part.capitalize()), side)
    return StructureCode(TISSUE, Concept(whole.replace(" ", "_").upper()[:16], OWN_SCHEME, name[:64]))


def structure_colour(class_id: int) -> str:
    """The colour of class ``class_id`` (1..K) in every picture and viewer."""
    return STRUCTURE_COLOURS[(class_id - 1) % len(STRUCTURE_COLOURS)]
