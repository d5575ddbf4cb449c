"""What the B-cos units share, of :mod:`explainguide.bcos.transform`, under their first name."""

from explainguide.bcos.transform import BcosUnit, Gain, check_unit

__all__ = ["BcosUnit", "Gain", "check_unit"]
