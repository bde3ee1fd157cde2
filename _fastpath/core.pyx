# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The compiled part: ring, sampler, frame and scan codecs, window kernels, SNMP codec, experts. No policy, one compile unit."""
include "ring.pxi"
include "frames.pxi"
include "scans.pxi"
include "sampler.pxi"
include "window.pxi"
include "snmp.pxi"
include "experts.pxi"
