"""Five real hosts on one machine: artifacts, images, containers, Salt keys, deploy."""

import sys
from pathlib import Path

# What the platform and the lab both compute (the digest of Salt's environment) is computed in one place.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "_utils"))
