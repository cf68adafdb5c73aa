"""The table of a data set: `image, path, patient, target, split`; every rule about splits and bad rows lives here."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)
