"""Many processes, one run: how they find each other, agree, write once and end together."""

from jaxmlcl.distributed._channel import Lost
from jaxmlcl.distributed._group import Group, check_devices, describe_devices, group, join
from jaxmlcl.distributed._launcher import Settings, find_place

__all__ = [
    "Group",
    "Lost",
    "Settings",
    "check_devices",
    "describe_devices",
    "find_place",
    "group",
    "join",
]
